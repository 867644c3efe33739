"""AID, 20 % for training: as aid_tr20_pera_vitb.py, with patches of 14 px.

512 px is not a multiple of 14; the nearest is 518 px: 37 x 37 patches.

Target:   90.5 OA pre-trained with configs/pera/ablations/table12_patch-14.py (paper, Table 12).
Memory:   about 9 GB (computed) with 16 images on one GPU in bf16.
Command:  mim train mmpretrain configs/classification/aid_tr20_pera_vitb_patch-14.py
"""

_base_ = 'aid_tr20_pera_vitb.py'
size = 518
model = dict(
    backbone=dict(
        img_size=size, patch_size=14,
        init_cfg=dict(checkpoint='checkpoints/pera_vitb_patch-14.safetensors')))
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[1].scale = size
test_pipeline[1].scale = (size, size)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
