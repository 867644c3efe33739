"""Small MAE with the heads and the start of attention of pera_short.py; else small/mae.py.

Its positions are sines anyway.

Target:   measured: docs/measurements.md.
Hardware: one CPU core, minutes.
Command:  python tools/train.py configs/small/mae_short.py
"""

_base_ = 'mae.py'
model = dict(
    backbone=dict(
        type='pera_mm.MimeticMAEViT', arch=dict(num_heads=8),
        mimetic=dict(query_key=1.0, value_output=0.2)))
