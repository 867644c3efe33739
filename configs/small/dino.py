"""Small DINO (Table 9), as in the PerA authors' repository; compare configs/small/pera.py.

Target:   measured: docs/measurements.md.
Hardware: one CPU core, minutes.
Command:  python tools/train.py configs/small/dino.py
"""

_base_ = [
    '../_base_/models/dino_vit-b.py', '../_base_/datasets/rsscn7.py',
    '../_base_/schedules/small_8e.py', '../_base_/small_teacher.py'
]
model = dict(
    # one rate of stochastic depth in all layers, as the other methods of this comparison
    backbone=dict(arch='demo', img_size=112, patch_size=8, drop_path_uniform=True),
    projector=dict(num_prototypes=2048, hidden_channels=512, bottleneck_channels=128))
train_dataloader = dict(dataset=dict(pipeline=dict(mask=dict(disjoint=False))))
default_hooks = dict(schedule=dict(teacher_temp=dict(start=0.04, end=0.04, warmup_epochs=0)))
