"""Small Table 13: student 30 %, learnable 10 %, teacher 60 % of the patches.

Target:   none; it has not been measured.
Command:  python tools/train.py configs/small/table13_s30-l10-t60.py
"""

_base_ = 'pera.py'
mask = dict(student=0.3, learnable=0.1, teacher=0.6)
train_dataloader = dict(dataset=dict(pipeline=dict(mask=mask)))
