"""LoveDA: as loveda_upernet_pera.py, with ViT-B.

Memory:   as potsdam_upernet_pera_vitb.py: about 18 GB (computed).
Command:  mim train mmseg configs/segmentation/loveda_upernet_pera_vitb.py
"""

_base_ = '../loveda_upernet_pera.py'
model = dict(
    backbone=dict(
        vit=dict(arch='base', init_cfg=dict(checkpoint='checkpoints/pera_vitb.safetensors')),
        with_cp=False),
    decode_head=dict(in_channels=[768, 768, 768, 768]))
