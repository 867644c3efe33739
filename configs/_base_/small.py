# The paper's tables in small, the same for all methods: real images (RSSCN7: 1,400 of them, 43
# steps an epoch), crops a quarter of the paper's side, eight epochs on one CPU core, one optimizer
# and one schedule. Widths are `small_*`; a leaf hands them to its model.
small_arch = dict(embed_dims=128, num_layers=4, num_heads=2, feedforward_channels=512)
small_head = dict(hidden_channels=512, bottleneck_channels=128)

train_pipeline = [
    dict(
        type='pera_mm.AlignedCrops',
        global_crops=dict(number=2, size=112, scale=(0.4, 1.0)),
        local_crops=dict(number=4, size=48, scale=(0.05, 0.4)),
        ratio=(0.75, 1.33)),
    dict(type='pera_mm.DisjointMask', patch_size=16, student=0.2, learnable=0.2, teacher=0.6),
    dict(type='pera_mm.PackCrops'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='pera_mm.DrawSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='pera_mm.UnlabeledImages', source='data/rsscn7', pipeline=train_pipeline))

optim_wrapper = dict(
    type='pera_mm.AutocastOptimWrapper',
    constructor='pera_mm.TrainedOnlyConstructor',
    dtype='bfloat16',  # on a GPU; a CPU trains in float32
    optimizer=dict(
        type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=2e-5, weight_decay=0.04, fused=True),
    clip_grad=dict(max_norm=3.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-30, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, begin=1, by_epoch=True,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min=0.2,
         by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(type='pera_mm.ResumableTrainLoop', max_epochs=8)
