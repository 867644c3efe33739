"""MAE, ViT-B/16, TOV-100k, 200 epochs, as in the paper and code of MAE (He et al., 2022).

Its learning rate depends on the batch: 1.5e-4 x images per step / 256. Here these are 16, on one
device; for another number set optim_wrapper.optimizer.lr. Size of the crops (224 there), images and
epochs (800 or 1,600 there) are those of the PerA paper; docs/baselines.md has the list.

Target:   none published.
Command:  tools/dist_train.sh configs/baselines/mae_vitb_tov-100k_original.py 1
"""

_base_ = 'mae_vitb_tov-100k.py'
model = dict(
    backbone=dict(norm_cfg=dict(eps=1e-6)),
    neck=dict(norm_cfg=dict(eps=1e-6)),
    head=dict(norm_pix=True))

crops = dict(global_crops=dict(scale=(0.2, 1.0)))
train_dataloader = dict(dataset=dict(pipeline=dict(crops=crops)))

optim_wrapper = dict(
    optimizer=dict(lr=1.5e-4 * 16 / 256, eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-30, end=40, by_epoch=True,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0, begin=40, by_epoch=True,
         convert_to_iter_based=True),
]
