"""Table 11 in small: spatial alignment and disjoint mask, without pixel prediction.

Student and teacher keep their 20 % and 60 % of the patches; the 20 % of the learnable part are
seen by nobody. (Sharing them out would change the student's input too.)

Target:   measured: docs/measurements.md.
Command:  python tools/train.py configs/small/table11_sa-dm.py
"""

_base_ = 'pera.py'
model = dict(predictor=None, pixel=None)
