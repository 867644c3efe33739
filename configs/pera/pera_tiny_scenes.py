"""PerA, a ViT of 0.9M parameters, on drawn scenes: what `make demo` runs on two cores.

The authors' recipe at a small size and on a short schedule, eight epochs of 100 steps: the teacher
follows faster (momentum .98) than over 200 epochs.

Target:   a trained teacher that beats the random one by at least 10 points of kNN accuracy;
          measured: docs/measurements.md.
Hardware: two CPU cores, about five minutes.
Command:  make demo; or, when it has drawn data/scenes,
          python tools/train.py configs/pera/pera_tiny_scenes.py
"""

_base_ = 'pera_vitb_rsrsd.py'

arch = dict(
    _delete_=True, embed_dims=128, num_layers=4, num_heads=2, feedforward_channels=512)
head = dict(hidden_channels=512, bottleneck_channels=128)
model = dict(
    backbone=dict(arch=arch, img_size=112, drop_path_rate=0.1),
    projector=dict(num_prototypes=2048, **head),
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

train_cfg = dict(max_epochs=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-30, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, begin=1, by_epoch=True,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min=0.2,
         by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(
    schedule=dict(
        teacher_temp=dict(start=0.04, end=0.05, warmup_epochs=1.5),
        momentum=dict(start=0.98, end=1.0)),
    probe=dict(type='pera_mm.ProbeHook', data_root='data/scenes/classification', size=112,
               interval=2),
    logger=dict(interval=10),
    health=dict(interval=10))
