"""Small DINO in PerA's colors: student and teacher differ; else small/dino.py.

The crops are PerA's in both.

Target:   none; it has not been measured.
Command:  python tools/train.py configs/small/dino_pera-colors.py
"""

_base_ = ['dino.py', '../_base_/pera_colors.py']
colors = _base_.pera_colors
model = dict(
    data_preprocessor=dict(
        student=dict(_delete_=True, **colors.student),
        teacher=dict(_delete_=True, **colors.teacher)))
