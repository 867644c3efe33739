"""AID, 20 % for training: as aid_tr20_pera_vitb.py, with patches of 8 px: 64 x 64 of an image.

Target:   89.3 OA pre-trained with configs/pera/ablations/table12_patch-8.py (paper, Table 12).
Memory:   about 24 GB (computed) with 16 images on one GPU in bf16.
Command:  mim train mmpretrain configs/classification/aid_tr20_pera_vitb_patch-8.py
"""

_base_ = 'aid_tr20_pera_vitb.py'
model = dict(
    backbone=dict(
        patch_size=8, init_cfg=dict(checkpoint='checkpoints/pera_vitb_patch-8.safetensors')))
