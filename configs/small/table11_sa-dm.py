"""Small Table 11: spatial alignment and disjoint mask, without pixel prediction.

Student and teacher keep their 20 % and 60 % of the patches; no network sees the 20 % of the
learnable part. (Sharing them out would change the student's input, too.)

Target:   measured: docs/measurements.md.
Command:  python tools/train.py configs/small/table11_sa-dm.py
"""

_base_ = 'pera.py'
model = dict(predictor=None, pixel=None)
