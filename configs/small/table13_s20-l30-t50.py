"""Small Table 13: student 20 %, learnable 30 %, teacher 50 % of the patches.

Target:   none; it has not been measured.
Command:  python tools/train.py configs/small/table13_s20-l30-t50.py
"""

_base_ = 'pera.py'
mask = dict(student=0.2, learnable=0.3, teacher=0.5)
train_dataloader = dict(dataset=dict(pipeline=dict(mask=mask)))
