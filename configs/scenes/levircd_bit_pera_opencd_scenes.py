"""The real Open-CD's BIT on drawn change scenes: as configs/scenes/levircd_bit_pera_scenes.py.

Target:   as there; not run at this length
Command:  python tools/train.py configs/scenes/levircd_bit_pera_opencd_scenes.py
"""

_base_ = ['../opencd/levircd_bit_pera.py', '../_base_/scenes.py']

model = dict(
    backbone=dict(vit=dict(**_base_.demo_vit, img_size=128), with_cp=False),
    neck=dict(in_channels=128),
    test_cfg=dict(_delete_=True, mode='whole'))

data_root = 'data/scenes/change'
train_pipeline = _base_.train_pipeline
# 5 % of the pixels change: in a few minutes nothing is learned from crops without a change.
# Open-CD's crop avoids those.
train_pipeline[2:3] = [
    dict(type='MultiImgRandomResize', scale=(256, 256), ratio_range=(1.5, 2.0), keep_ratio=True),
    dict(type='MultiImgRandomCrop', crop_size=(64, 64), cat_max_ratio=0.75),
]
train_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        data_prefix=dict(img_path_from='train/A', img_path_to='train/B',
                         seg_map_path='train/label'),
        pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root))
test_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root))

train_cfg = dict(max_epochs=8, val_interval=8)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3), paramwise_cfg=dict(layer_decay_rate=_base_.layer_decay_rate))
param_scheduler = [_base_.warmup, _base_.cosine]
default_hooks = dict(
    logger=dict(interval=15),
    checkpoint=dict(interval=8),
    visualization=dict(img_shape=(256, 256, 3)))
