"""Small Table 11: disjoint mask and pixel prediction, without spatial alignment.

Student and teacher each cut the crop of a pair anew (another box, other flips), so their patches
are apart in the patch grid only, not on the ground.

Target:   measured with patches of 16 px only: docs/measurements.md.
Command:  python tools/train.py configs/small/table11_dm-pp.py
"""

_base_ = 'pera.py'
train_dataloader = dict(dataset=dict(pipeline=dict(crops=dict(aligned=False))))
