"""UC Merced, 50 % for training: as ucm_tr80_pera.py.

Target:   99.71 OA (paper, Table 3).
Memory:   as AID: about 32 GB (computed).
Command:  mim train mmpretrain configs/classification/ucm_tr50_pera.py
"""

_base_ = '../ucm_tr80_pera.py'
train_dataloader = dict(dataset=dict(ann_file='splits/tr50_train.txt'))
val_dataloader = dict(dataset=dict(ann_file='splits/tr50_test.txt'))
test_dataloader = val_dataloader
