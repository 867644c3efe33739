"""As dior_faster_rcnn_pera_fpn.py with ViT-B.

Target:   none in the paper
Hardware: batch 16 in all, as configs/dior_faster_rcnn_pera.py
Memory:   about 25 GB (computed) with 16 images on one GPU in bf16.
Command:  mim train mmdet configs/detection/dior_faster_rcnn_pera_vitb.py
"""

_base_ = 'dior_faster_rcnn_pera_fpn.py'

model = dict(
    backbone=dict(
        with_cp=False,
        vit=dict(arch='base', init_cfg=dict(checkpoint='checkpoints/pera_vitb.safetensors'))),
    neck=dict(in_channels=[768] * 4))
