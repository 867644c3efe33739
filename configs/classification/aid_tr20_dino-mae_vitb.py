"""AID, 20 % for training: as aid_tr20_pera_vitb.py, for DINO and MAE of configs/baselines.

The authors train these two with LayerNorm eps 1e-5. DINO's ViT has no biases of queries, keys and
values; they start as zeros.

Target:   80.1 OA for DINO, 84.9 for MAE, pre-trained on TOV-100k (paper, Table 9).
Command:  mim train mmpretrain configs/classification/aid_tr20_dino-mae_vitb.py \
              --cfg-options model.backbone.init_cfg.checkpoint=CHECKPOINT
"""

_base_ = 'aid_tr20_pera_vitb.py'
model = dict(
    backbone=dict(
        norm_cfg=dict(type='LN', eps=1e-5),
        init_cfg=dict(checkpoint='checkpoints/dino_vitb.safetensors')))
