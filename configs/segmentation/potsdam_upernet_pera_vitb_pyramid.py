"""Potsdam: as potsdam_upernet_pera_vitb.py, without the adapter: a plain ViT with a simple pyramid.

The ablation of ViT-Adapter, and the cheap alternative. Other configs can be changed likewise.

Target:   none published.
Memory:   about 7 GB (computed) with 8 images on one GPU in bf16.
Command:  mim train mmseg configs/segmentation/potsdam_upernet_pera_vitb_pyramid.py
"""

_base_ = 'potsdam_upernet_pera_vitb.py'
model = dict(backbone=dict(
    _delete_=True, type='pera_mm.ViTPyramid', vit=_base_.model.backbone.vit,
    norm_cfg=dict(type='BN'), with_cp=False))
