"""UC Merced, 80 % for training: as AID with another learning rate and weight decay.

Target:   100.0 OA (paper, Table 3).
Memory:   as AID: about 32 GB (computed).
Command:  mim train mmpretrain configs/ucm_tr80_pera.py
"""

_base_ = 'aid_tr20_pera.py'
data_root = 'data/ucm'
train_dataloader = dict(dataset=dict(data_root=data_root, ann_file='splits/tr80_train.txt'))
val_dataloader = dict(dataset=dict(data_root=data_root, ann_file='splits/tr80_test.txt'))
test_dataloader = val_dataloader
model = dict(data_preprocessor=dict(num_classes=21), head=dict(num_classes=21))
optim_wrapper = dict(optimizer=dict(lr=5e-5, weight_decay=1e-4))
