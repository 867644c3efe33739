"""Small Table 13: student 30 %, learnable 20 %, teacher 50 % of the patches.

Target:   none; it has not been measured.
Command:  python tools/train.py configs/small/table13_s30-l20-t50.py
"""

_base_ = 'pera.py'
mask = dict(student=0.3, learnable=0.2, teacher=0.5)
train_dataloader = dict(dataset=dict(pipeline=dict(mask=mask)))
