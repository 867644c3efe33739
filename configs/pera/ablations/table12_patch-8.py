"""Table 12: patch size 8.

448 px make 3,136 patches: about four times the work of patch 16.

Target:   89.3 OA on AID 20 % (patch 16: 90.1).
Command:  tools/dist_train.sh configs/pera/ablations/table12_patch-8.py 1
"""

_base_ = '../pera_vitb_tov-100k.py'
train_dataloader = dict(dataset=dict(pipeline=dict(mask=dict(patch_size=8))))
model = dict(backbone=dict(patch_size=8))
