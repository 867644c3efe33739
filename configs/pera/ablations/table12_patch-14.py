"""Table 12: patch size 14.

96 px is not a multiple of 14, so local crops are 98 px: 49 patches, split 10/10/29.

Target:   90.5 OA on AID 20 % (patch 16: 90.1).
Command:  tools/dist_train.sh configs/pera/ablations/table12_patch-14.py 1
"""

_base_ = '../pera_vitb_tov-100k.py'
pipeline = dict(crops=dict(local_crops=dict(size=98)), mask=dict(patch_size=14))
train_dataloader = dict(dataset=dict(pipeline=pipeline))
model = dict(backbone=dict(patch_size=14))
