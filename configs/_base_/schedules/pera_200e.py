# The authors' schedule: every value moves per iteration, the units are epochs.
optim_wrapper = dict(
    type='pera_mm.AutocastOptimWrapper',
    constructor='pera_mm.TrainedOnlyConstructor',  # the teacher is not for the optimizer
    dtype='bfloat16',  # on a GPU; a CPU trains in float32
    # One parameter group: biases and norms decay too, as in the reference.
    optimizer=dict(
        type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=2e-5, weight_decay=0.04, fused=True),
    clip_grad=dict(max_norm=3.0))
param_scheduler = [
    # 0 (MMEngine wants a factor above it) to lr in 20 epochs, both ends included, then a half
    # cosine down to 1e-6
    dict(type='LinearLR', start_factor=1e-30, end=20, by_epoch=True,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, begin=20, by_epoch=True,
         convert_to_iter_based=True),
    # weight decay rises from 0.04 to 0.2 over the whole run
    dict(type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min=0.2,
         by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(type='pera_mm.ResumableTrainLoop', max_epochs=200)
