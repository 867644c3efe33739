"""Small DINOv2 with the start of attention and positions of pera_short.py; else small/dinov2.py.

Target:   measured: docs/measurements.md.
Hardware: one CPU core, minutes.
Command:  python tools/train.py configs/small/dinov2_short.py
"""

_base_ = 'dinov2.py'
model = dict(
    backbone=dict(
        arch='mini', sine_positions=0.25, mimetic=dict(query_key=1.0, value_output=0.2)))
