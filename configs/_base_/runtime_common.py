# What every pre-training shares, with a teacher (runtime.py) or without. `default_hooks` is keyed
# by name, so that a config changes one hook without repeating the others.
default_scope = 'mmpretrain'
custom_imports = dict(imports=['pera_mm'], allow_failed_imports=False)

default_hooks = dict(
    weights=dict(type='pera_mm.StrictLoadHook', may_differ=[]),
    run_check=dict(type='pera_mm.RunCheckHook'),
    finite=dict(type='pera_mm.FiniteHook'),
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='pera_mm.AtomicCheckpointHook', by_epoch=False, interval=2000, max_keep_ckpts=3),
    step_seed=dict(type='pera_mm.StepSeedHook'),
    skipped=dict(type='pera_mm.SkippedImagesHook', max_share=0.05))

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # seconds that the other ranks wait while one writes a checkpoint or fits the probe
    dist_cfg=dict(backend='nccl', timeout=7200))
visualizer = dict(
    type='Visualizer',
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
log_processor = dict(window_size=10)
randomness = dict(seed=10)
log_level = 'INFO'
load_from = None
resume = False
