"""UC Merced, 50 % for training: as ucm_tr80_pera_linear.py.

Target:   none published.
Memory:   about 3 GB (computed), as aid_tr20_pera_linear.py.
Command:  mim train mmpretrain configs/classification/ucm_tr50_pera_linear.py
"""

_base_ = 'ucm_tr80_pera_linear.py'
train_dataloader = dict(dataset=dict(ann_file='splits/tr50_train.txt'))
val_dataloader = dict(dataset=dict(ann_file='splits/tr50_test.txt'))
test_dataloader = val_dataloader
