"""AID, 20 % for training: as aid_tr20_pera.py, with ViT-B.

Target:   90.1 OA pre-trained on TOV-100k, 90.0 on RSRSD-100k (paper, Table 8).
Command:  mim train mmpretrain configs/classification/aid_tr20_pera_vitb.py
"""

_base_ = '../aid_tr20_pera.py'
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint='checkpoints/pera_vitb.safetensors')),
    head=dict(in_channels=768))
