"""AID, 50 % for training: as aid_tr20_pera.py.

Target:   the paper gives no number for this split.
Memory:   as aid_tr20_pera.py: about 32 GB (computed).
Command:  mim train mmpretrain configs/classification/aid_tr50_pera.py
"""

_base_ = '../aid_tr20_pera.py'
train_dataloader = dict(dataset=dict(ann_file='splits/tr50_train.txt'))
val_dataloader = dict(dataset=dict(ann_file='splits/tr50_test.txt'))
test_dataloader = val_dataloader
