"""DINO in small (Table 9), as in the PerA authors' repository; compare configs/small/pera.py.

Target:   measured: docs/measurements.md.
Hardware: one CPU core, minutes.
Command:  python tools/train.py configs/small/dino.py
"""

_base_ = ['../_base_/models/dino_vit-b.py', '../_base_/small.py', '../_base_/small_teacher.py']
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **_base_.small_arch),
        img_size=112,
        drop_path_uniform=True),  # as the other methods of this comparison
    projector=dict(num_prototypes=2048, **_base_.small_head))

train_pipeline = _base_.train_pipeline
train_pipeline[1].update(disjoint=False)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
default_hooks = dict(schedule=dict(teacher_temp=dict(start=0.04, end=0.04, warmup_epochs=0)))
