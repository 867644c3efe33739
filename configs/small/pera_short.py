"""Small PerA with another start, for runs of minutes: what the demo trains.

In some hundred steps a narrow ViT stays near its start. The authors' start, small random weights
and small positions, suits millions of steps: with it the student does not know where it is to
paint. Here heads have 16 channels in place of 64, attention starts as in trained ViTs, positions
start as sines of the size of the content, and a plain MLP predicts pixels: the authors' pixels
are cosines times a length that starts at 1. The pixel loss, which can be learned now, counts five
times as much.

Target:   measured: docs/measurements.md.
Hardware: one CPU core, minutes.
Command:  python tools/train.py configs/small/pera_short.py
"""

_base_ = 'pera.py'
model = dict(
    backbone=dict(
        arch='mini', sine_positions=0.25, mimetic=dict(query_key=1.0, value_output=0.2)),
    predictor=dict(_delete_=True, type='pera_mm.MLPPixelHead', hidden_channels=512),
    pixel=dict(loss_weight=0.02))
