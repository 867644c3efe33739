"""PerA, a 2.7M-parameter ViT, on drawn scenes: what `make demo` runs on two cores.

Target:   a trained teacher that beats the random one by at least 10 points of kNN accuracy;
          measured: docs/measurements.md.
Hardware: two CPU cores, about five minutes.
Command:  python tools/data/make_scenes.py ... (see README.md), then
          python tools/train.py configs/pera/pera_tiny_scenes.py
"""

_base_ = 'pera_vitb_rsrsd.py'

arch = dict(
    _delete_=True, embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768)
head = dict(hidden_channels=512, bottleneck_channels=128)
model = dict(
    backbone=dict(arch=arch, img_size=112, drop_path_rate=0.1),
    projector=dict(num_prototypes=1024, **head),
    predictor=head)

train_pipeline = _base_.train_pipeline
train_pipeline[0].update(
    global_crops=dict(number=2, size=112, scale=(0.4, 1.0)),
    local_crops=dict(number=4, size=48, scale=(0.05, 0.4)))
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    pin_memory=False,
    dataset=dict(source='data/scenes/unlabeled', pipeline=train_pipeline))

train_cfg = dict(max_epochs=20)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-30, end=2, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, begin=2, by_epoch=True,
         convert_to_iter_based=True),
]
default_hooks = dict(
    schedule=dict(
        teacher_temp=dict(start=0.04, end=0.05, warmup_epochs=3),
        momentum=dict(start=0.98, end=1.0)),
    probe=dict(type='pera_mm.ProbeHook', data_root='data/scenes/classification', size=112,
               interval=4),
    logger=dict(interval=10),
    health=dict(interval=10))
