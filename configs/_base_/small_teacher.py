# Hooks of the small runs with a teacher, which follows faster (momentum .95) than in 200 epochs: it
# remembers 20 steps of some 400.
_base_ = 'runtime.py'
default_hooks = dict(
    checkpoint=dict(interval=86, max_keep_ckpts=1),  # two epochs; and at the end
    schedule=dict(
        teacher_temp=dict(start=0.04, end=0.05, warmup_epochs=1.5),
        momentum=dict(start=0.95, end=1.0)),
    logger=dict(interval=10),
    health=dict(interval=10))
