"""Small PerA whose student learns to paint in minutes, with two changes that are not the authors'.

Their predictor's pixels are cosines times a length that starts at 1, and their positions start a
tenth as large as the content of the patches, so the student does not know where it is to paint.
Here a plain MLP predicts pixels, and positions start as sines of the size of the content.

Target:   measured: docs/measurements.md.
Command:  python tools/train.py configs/small/pera_paints.py
"""

_base_ = 'pera.py'
model = dict(
    backbone=dict(sine_positions=0.25),
    predictor=dict(_delete_=True, type='pera_mm.MLPPixelHead', hidden_channels=512))
