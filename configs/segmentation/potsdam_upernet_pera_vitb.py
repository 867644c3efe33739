"""Potsdam: as potsdam_upernet_pera.py, with ViT-B.

Memory:   about 18 GB (computed) with 8 images on one GPU in bf16;
          7 GB with --cfg-options model.backbone.with_cp=True.
Command:  mim train mmseg configs/segmentation/potsdam_upernet_pera_vitb.py
"""

_base_ = '../potsdam_upernet_pera.py'
model = dict(
    backbone=dict(
        vit=dict(arch='base', init_cfg=dict(checkpoint='checkpoints/pera_vitb.safetensors')),
        with_cp=False),
    decode_head=dict(in_channels=[768, 768, 768, 768]))
