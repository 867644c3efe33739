"""Potsdam: as potsdam_upernet_pera.py, small: the demo's ViT on drawn scenes.

Target:   mF1 of all seven classes around 59; measured: docs/measurements.md
Data:     python tools/data/make_scenes.py data/scenes/segmentation segmentation 250 --size 256
Weights:  make demo leaves them in work_dirs/demo
Hardware: one CPU core, about four minutes.
Command:  mim train mmseg configs/scenes/potsdam_upernet_pera_scenes.py
"""

_base_ = ['../potsdam_upernet_pera.py', '../_base_/scenes.py']
model = dict(
    backbone=dict(vit=dict(**_base_.frozen_demo_vit, img_size=128), with_cp=False),
    decode_head=dict(
        in_channels=[128, 128, 128, 128], channels=64, output_channels=32, num_classes=7,
        # Inverse shares of the pixels to the power .75: a short run calls no rare class otherwise.
        loss_decode=dict(class_weight=[0.6, 1.7, 0.4, 1.0, 2.4, 1.6, 0.9])),
    test_cfg=dict(crop_size=(128, 128), stride=(128, 128)))

scenes = dict(data_root='data/scenes/segmentation', metainfo=dict(classes=(
    'impervious', 'building', 'low vegetation', 'tree', 'vehicle', 'water', 'bare')))
train_pipeline = _base_.train_pipeline
# Many steps of small crops, which show objects as large as the test does: 64 px of 256.
train_pipeline[2].update(scale=64, crop_ratio_range=(1 / 16, 1 / 16))
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

inference_modes = {
    '_delete_': True,
    'tiles 128': dict(mode='slide', crop_size=(128, 128), stride=(128, 128)),
    'sliding 128, stride 85': dict(mode='slide', crop_size=(128, 128), stride=(85, 85)),
    'whole image': dict(mode='whole'),
}
train_cfg = dict(max_epochs=14, val_interval=7)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [_base_.warmup, dict(_base_.cosine, eta_min=5e-6)]
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=7, save_best='7-class/mF1'))
