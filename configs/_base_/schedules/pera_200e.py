# The authors' schedule: every value moves per iteration, the units are epochs.
optim_wrapper = dict(
    type='pera_mm.AutocastOptimWrapper',
    dtype='bfloat16',  # on a GPU; a CPU trains in float32
    # One parameter group: biases and norms decay too, as in the reference.
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=2e-5, weight_decay=0.04),
    clip_grad=dict(max_norm=3.0))
train_cfg = dict(type='pera_mm.ResumableTrainLoop', max_epochs=200)
