"""PerA in small: the base of the small comparisons of Tables 8, 9, 11 and 13.

A ViT of 0.9M parameters on 1,400 real images (RSSCN7: put its class folders under data/rsscn7);
all of configs/small share data, optimizer, schedule and budget.

Target:   measured: docs/measurements.md.
Hardware: one CPU core, minutes.
Command:  python tools/train.py configs/small/pera.py
"""

_base_ = ['../_base_/models/pera_vit-b.py', '../_base_/small.py', '../_base_/small_teacher.py']
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **_base_.small_arch), img_size=112, drop_path_rate=0.1),
    projector=dict(num_prototypes=2048, **_base_.small_head),
    predictor=_base_.small_head)
