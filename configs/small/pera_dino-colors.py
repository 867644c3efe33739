"""Small PerA in DINO's strong colors, drawn anew for student and teacher; else small/pera.py.

Target:   none; it has not been measured.
Command:  python tools/train.py configs/small/pera_dino-colors.py
"""

_base_ = ['pera.py', '../_base_/dino_colors.py']
colors = dict(_delete_=True, **_base_.dino_colors)
model = dict(data_preprocessor=dict(student=colors, teacher=colors))
