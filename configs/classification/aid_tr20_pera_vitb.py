"""AID, 20 % for training: as aid_tr20_pera.py, with ViT-B: the rows of Tables 8, 9, 11 and 13.

It is for every ViT-B/16 with LayerNorm eps 1e-6: PerA, DINOv2 and MoCo v3, on any images and with
any mask. docs/reproduce.md lists the rows.

Target:   PerA 90.1 OA pre-trained on TOV-100k, 90.0 on RSRSD-100k; DINOv2 82.3 and 79.3 (paper,
          Table 8); MoCo v3 69.2 on TOV-100k (Table 9).
Memory:   about 7 GB (computed) with 16 images on one GPU in bf16.
Command:  mim train mmpretrain configs/classification/aid_tr20_pera_vitb.py \
              --cfg-options model.backbone.init_cfg.checkpoint=CHECKPOINT
"""

_base_ = '../aid_tr20_pera.py'
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint='checkpoints/pera_vitb.safetensors')),
    head=dict(in_channels=768))
