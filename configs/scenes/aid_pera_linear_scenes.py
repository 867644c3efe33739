"""AID: as aid_pera_scenes.py, a linear classifier on the frozen ViT.

Data:     as for aid_pera_scenes.py
Hardware: one CPU core, three minutes.
Command:  mim train mmpretrain configs/scenes/aid_pera_linear_scenes.py
"""

_base_ = 'aid_pera_scenes.py'
model = dict(backbone=dict(frozen_stages=4, drop_path_rate=0.))
optim_wrapper = dict(optimizer=dict(lr=5e-3, weight_decay=0.))
param_scheduler = [dict(_base_.cosine, begin=0, eta_min=0)]
