"""Small DINOv2 in PerA's colors: student and teacher differ; else small/dinov2.py.

The crops are PerA's in both.

Target:   none; it has not been measured.
Command:  python tools/train.py configs/small/dinov2_pera-colors.py
"""

_base_ = ['dinov2.py', '../_base_/pera_colors.py']
colors = _base_.pera_colors
model = dict(
    data_preprocessor=dict(
        student=dict(_delete_=True, **colors.student),
        teacher=dict(_delete_=True, **colors.teacher)))
