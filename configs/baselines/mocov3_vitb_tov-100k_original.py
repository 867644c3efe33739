"""MoCo v3, ViT-B/16, TOV-100k, 200 epochs, as in its own paper and code (Chen et al., 2021).

Its learning rate depends on the batch: 1.5e-4 x images per step / 256. Here these are 16, on one
device; for another number set optim_wrapper.optimizer.lr. The original has 4,096 images per step,
each contrasted with as many. Size of the crops (224 there), images and epochs (300 there) are those
of the PerA paper; docs/baselines.md has the list.

Target:   none published.
Command:  tools/dist_train.sh configs/baselines/mocov3_vitb_tov-100k_original.py 1
"""

_base_ = 'mocov3_vitb_tov-100k.py'
model = dict(
    backbone=dict(stop_grad_conv1=True),
    head=dict(temperature=0.2, loss=dict(loss_weight=2 * 0.2)))

# One parameter group: biases and norms decay too.
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True, type='AdamW', lr=1.5e-4 * 16 / 256, betas=(0.9, 0.999), eps=1e-8,
        weight_decay=0.1, fused=True),
    paramwise_cfg=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-30, end=40, by_epoch=True,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0, begin=40, by_epoch=True,
         convert_to_iter_based=True),
]
