"""Change detection on LEVIR-CD: siamese ViT-Adapter (ViT-B) + BIT; all else as with ViT-G.

Target:   none published for ViT-B
Hardware: batch 8 in all, as configs/levircd_bit_pera.py.
Memory:   about 31 GB (computed) with 8 pairs on one GPU in bf16;
          9 GB with --cfg-options model.backbone.with_cp=True.
Command:  mim train mmseg configs/change_detection/levircd_bit_pera_vitb.py
"""

_base_ = '../levircd_bit_pera.py'

model = dict(
    backbone=dict(
        vit=dict(arch='base', init_cfg=dict(checkpoint='checkpoints/pera_vitb.safetensors')),
        with_cp=False),
    neck=dict(in_channels=768))
