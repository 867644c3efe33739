"""Small DINOv2 (Tables 8, 9, 11), as in the PerA authors' repository; compare small/pera.py.

The teacher's temperature ends at PerA's .05: with the .07 of that repository [cls] collapses to
uniform here (docs/health.md).

Target:   measured: docs/measurements.md.
Hardware: one CPU core, minutes.
Command:  python tools/train.py configs/small/dinov2.py
"""

_base_ = [
    '../_base_/models/dinov2_vit-b.py', '../_base_/datasets/rsscn7.py',
    '../_base_/schedules/small_8e.py', '../_base_/small_teacher.py'
]
head = dict(num_prototypes=2048, hidden_channels=512, bottleneck_channels=128)
model = dict(
    backbone=dict(arch='demo', img_size=112, patch_size=8, drop_path_rate=0.1),
    projector=head,
    patch_projector=head)
mask = dict(_delete_=True, type='pera_mm.BlockMask', patch_size=8, ratio=(0.1, 0.5))
train_dataloader = dict(dataset=dict(pipeline=dict(mask=mask)))
