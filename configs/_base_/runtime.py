# What every pre-training shares; `default_hooks` is keyed by name so that a config changes one
# hook without repeating the others.
default_scope = 'mmpretrain'
custom_imports = dict(imports=['pera_mm'], allow_failed_imports=False)

default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='pera_mm.AtomicCheckpointHook', interval=10),
    step_seed=dict(type='pera_mm.StepSeedHook'),
    teacher=dict(type='pera_mm.TeacherHook'),
    health=dict(type='pera_mm.HealthHook', interval=50),
    skipped=dict(type='pera_mm.SkippedImagesHook', max_share=0.05))

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
visualizer = dict(
    type='Visualizer',
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
log_processor = dict(window_size=10)
randomness = dict(seed=10)
log_level = 'INFO'
load_from = None
resume = False
