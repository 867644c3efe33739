"""AID, 20 % for training: a linear classifier on the frozen ViT-G.

The paper's tables are of fine-tuning; these settings are ours: 100 epochs, no stochastic depth.

Target:   none published.
Memory:   about 3 GB (computed) with 16 images on one GPU in bf16.
Command:  mim train mmpretrain configs/classification/aid_tr20_pera_linear.py
"""

_base_ = '../aid_tr20_pera.py'
model = dict(backbone=dict(frozen_stages=40, drop_path_rate=0.))
train_cfg = dict(max_epochs=100)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.))
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=True, convert_to_iter_based=True),
]
