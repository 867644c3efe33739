"""Small Table 11: spatial alignment alone (no iBOT, no disjoint mask, no pixel prediction).

Student and teacher see all patches of the same crop, in different colors. The paper gives no
details; this reading changes nothing else.

Target:   measured with patches of 16 px only: docs/measurements.md.
Command:  python tools/train.py configs/small/table11_sa.py
"""

_base_ = 'pera.py'
train_dataloader = dict(dataset=dict(pipeline=dict(mask=dict(disjoint=False))))
model = dict(predictor=None, pixel=None)
