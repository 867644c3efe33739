"""Potsdam: as potsdam_upernet_pera.py, small: the demo's ViT on drawn scenes.

Data:     python tools/data/make_scenes.py data/scenes/segmentation segmentation 250 --size 256
Weights:  make demo leaves them in work_dirs/demo
Hardware: two CPU cores, about three minutes.
Command:  mim train mmseg configs/potsdam_upernet_pera_scenes.py
"""

_base_ = 'potsdam_upernet_pera.py'
model = dict(
    backbone=dict(vit=dict(
        arch=dict(_delete_=True, embed_dims=128, num_layers=4, num_heads=2,
                  feedforward_channels=512),
        img_size=128, init_cfg=dict(checkpoint='work_dirs/demo/iter_800.pth'))),
    decode_head=dict(in_channels=[128, 128, 128, 128], channels=64, output_channels=32,
                     num_classes=7),
    test_cfg=dict(crop_size=(128, 128), stride=(128, 128)))

scenes = dict(data_root='data/scenes/segmentation', metainfo=dict(classes=(
    'impervious', 'building', 'low vegetation', 'tree', 'vehicle', 'water', 'bare')))
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = (256, 256)
train_pipeline[3].crop_size = (128, 128)
train_dataloader = dict(num_workers=1, dataset=dict(**scenes, pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=scenes)
test_dataloader = val_dataloader
five = [0, 1, 2, 3, 4]  # the drawn scenes have water (5) and bare ground (6) for clutter
val_evaluator = dict(protocols={
    '_delete_': True,
    '7-class': dict(),
    '5-class': dict(average=five),
    '5-class-ignore': dict(average=five, ignore=[5, 6]),
    '7-class-eroded': dict(border=3),
    '5-class-eroded': dict(average=five, border=3),
    '5-class-ignore-eroded': dict(average=five, ignore=[5, 6], border=3),
})
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=8, val_interval=4)
# Ten times the paper's rate, for a short run; the ViT keeps more of what it has learned.
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(layer_decay_rate=0.65))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-30, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=5e-6, begin=1, end=8, by_epoch=True,
         convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=4, save_best='7-class/mF1'))
