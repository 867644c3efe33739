"""Small DINO with the start of attention and positions of pera_short.py; else small/dino.py.

Target:   measured: docs/measurements.md.
Hardware: one CPU core, minutes.
Command:  python tools/train.py configs/small/dino_short.py
"""

_base_ = 'dino.py'
model = dict(
    backbone=dict(
        arch='mini', sine_positions=0.25, mimetic=dict(query_key=1.0, value_output=0.2)))
