"""UC Merced, 80 % for training: as aid_tr20_pera_linear.py.

Target:   none published.
Memory:   about 3 GB (computed), as aid_tr20_pera_linear.py.
Command:  mim train mmpretrain configs/classification/ucm_tr80_pera_linear.py
"""

_base_ = 'aid_tr20_pera_linear.py'
data_root = 'data/ucm'
train_dataloader = dict(dataset=dict(data_root=data_root, ann_file='splits/tr80_train.txt'))
val_dataloader = dict(dataset=dict(data_root=data_root, ann_file='splits/tr80_test.txt'))
test_dataloader = val_dataloader
model = dict(data_preprocessor=dict(num_classes=21), head=dict(num_classes=21))
