"""Small PerA: the base of the small comparisons of Tables 8, 9, 11 and 13.

A ViT of 0.8M parameters on 1,400 real images (RSSCN7: put its class folders under data/rsscn7);
all of configs/small share data, optimizer, schedule and budget.

Target:   measured: docs/measurements.md.
Hardware: one CPU core, minutes.
Command:  python tools/train.py configs/small/pera.py
"""

_base_ = [
    '../_base_/models/pera_demo.py', '../_base_/datasets/rsscn7.py',
    '../_base_/schedules/small_8e.py', '../_base_/small_teacher.py'
]
