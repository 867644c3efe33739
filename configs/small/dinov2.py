"""DINOv2 in small (Tables 8, 9, 11), as in the PerA authors' repository; compare small/pera.py.

Target:   measured: docs/measurements.md.
Hardware: one CPU core, minutes.
Command:  python tools/train.py configs/small/dinov2.py
"""

_base_ = ['../_base_/models/dinov2_vit-b.py', '../_base_/small.py', '../_base_/small_teacher.py']
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **_base_.small_arch), img_size=112, drop_path_rate=0.1),
    projector=dict(num_prototypes=2048, **_base_.small_head),
    patch_projector=dict(num_prototypes=2048, **_base_.small_head))

train_pipeline = _base_.train_pipeline
train_pipeline[1] = dict(type='pera_mm.BlockMask', patch_size=16, ratio=(0.1, 0.5))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
# .04 to .07 in the same share of the run as 30 of 200 epochs
default_hooks = dict(schedule=dict(teacher_temp=dict(start=0.04, end=0.07, warmup_epochs=1.2)))
