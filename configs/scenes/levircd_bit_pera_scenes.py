"""Siamese ViT-Adapter + BIT on drawn change scenes: the whole of levircd_bit_pera.py in minutes.

Target:   F1 of the changed class around 30; measured: docs/measurements.md
Data:     python tools/data/make_scenes.py data/scenes/change change 600 --size 256
Weights:  make demo leaves them in work_dirs/demo
Hardware: one CPU core, about nine minutes
Command:  mim train mmseg configs/scenes/levircd_bit_pera_scenes.py
"""

_base_ = ['../levircd_bit_pera.py', '../_base_/scenes.py']

model = dict(
    backbone=dict(vit=dict(**_base_.demo_vit, img_size=128), with_cp=False),
    neck=dict(in_channels=128),
    test_cfg=dict(_delete_=True, mode='whole'))

data_root = 'data/scenes/change'
train_pipeline = _base_.train_pipeline
# 5 % of the pixels change: in a few minutes nothing is learned from crops without a change, which
# MMSegmentation's crop avoids, nor from houses of one or two patches, which are enlarged here.
train_pipeline[1:2] = [
    dict(type='RandomResize', scale=(256, 256), ratio_range=(1.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(64, 64), cat_max_ratio=0.75),
]
train_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        data_prefix=dict(img_path='train/A', img_path2='train/B', seg_map_path='train/label'),
        pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root))
test_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root))

train_cfg = dict(max_epochs=8, val_interval=8)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3), paramwise_cfg=dict(layer_decay_rate=_base_.layer_decay_rate))
param_scheduler = [_base_.warmup, _base_.cosine]
inference_modes = {
    '_delete_': True,
    'whole 256': dict(mode='whole'),
    'sliding 128, stride 64': dict(mode='slide', crop_size=(128, 128), stride=(64, 64)),
    'tiles 128': dict(mode='slide', crop_size=(128, 128), stride=(128, 128)),
}
default_hooks = dict(logger=dict(interval=15), checkpoint=dict(interval=8))
