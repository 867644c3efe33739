# What every fine-tuning shares, whichever toolbox runs it; the toolbox itself (`default_scope`) is
# named where its model is.
default_hooks = dict(
    weights=dict(type='pera_mm.StrictLoadHook', may_differ=[]),
    run_check=dict(type='pera_mm.RunCheckHook'),
    finite=dict(type='pera_mm.FiniteHook'),
    total_batch=dict(type='pera_mm.TotalBatchHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='pera_mm.AtomicCheckpointHook', by_epoch=True, interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'))
sync_bn = 'torch'  # BN over all GPUs of a distributed run; one process keeps plain BN

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
log_processor = dict(by_epoch=True, window_size=10)
randomness = dict(seed=10)
log_level = 'INFO'
load_from = None
resume = False
val_cfg = dict()
test_cfg = dict()
visualizer = dict(
    type='Visualizer',
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
# The paper names no layer-wise decay of the learning rate, so it is off: 1.0. Below 1, layer i of L
# learns at lr * rate ** (L - i); 0.65 to 0.95 are usual for a ViT.
optim_wrapper = dict(
    type='pera_mm.AutocastOptimWrapper',
    dtype='bfloat16',  # of training on a GPU; a CPU trains in float32, and all test in float32
    accumulative_counts=1,
    constructor='pera_mm.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0))
