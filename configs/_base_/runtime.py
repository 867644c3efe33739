# What every self-distillation shares: the hooks that need a teacher.
_base_ = 'runtime_common.py'
default_hooks = dict(
    config_check=dict(type='pera_mm.ConfigCheckHook'),
    schedule=dict(  # of ViT-B in the authors' configs; ViT-G has its own
        type='pera_mm.ScheduleHook',
        teacher_temp=dict(start=0.03, end=0.05, warmup_epochs=30),
        momentum=dict(start=0.992, end=1.0)),  # share of the OLD teacher weights
    teacher=dict(type='pera_mm.TeacherHook'),
    health=dict(type='pera_mm.HealthHook', interval=50))
