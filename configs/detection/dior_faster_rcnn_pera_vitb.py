"""As dior_faster_rcnn_pera.py with ViT-B.

Target:   none in the paper
Hardware: 2 GPUs of 24 GB with 8 images each
Command:  mim train mmdet configs/detection/dior_faster_rcnn_pera_vitb.py
"""

_base_ = '../dior_faster_rcnn_pera.py'

model = dict(
    backbone=dict(
        vit=dict(arch='base', init_cfg=dict(checkpoint='checkpoints/pera_vitb.safetensors'))),
    neck=dict(in_channels=[768] * 4))
