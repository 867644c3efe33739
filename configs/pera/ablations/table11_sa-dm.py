"""Table 11: spatial alignment and disjoint mask, without pixel prediction.

Student and teacher keep their 20 % and 60 % of the patches; no network sees the 20 % of the
learnable part. (Sharing them out would change the student's input, too.)

Target:   84.9 OA on AID 20 % (all three: 90.1).
Command:  tools/dist_train.sh configs/pera/ablations/table11_sa-dm.py 1
"""

_base_ = '../pera_vitb_tov-100k.py'
model = dict(predictor=None, pixel=None)
