"""Table 11 in small: spatial alignment alone (no iBOT, no disjoint mask, no pixel prediction).

Student and teacher see all patches of the same crop, in different colours. The paper gives no
details; this reading changes nothing else.

Target:   measured: docs/measurements.md.
Command:  python tools/train.py configs/small/table11_sa.py
"""

_base_ = 'pera.py'
train_pipeline = _base_.train_pipeline
train_pipeline[1].update(disjoint=False)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
model = dict(predictor=None, pixel=None)
