"""LoveDA: ViT-Adapter + UPerNet on the pretrained ViT-G (paper 4.2.2).

As Potsdam with half the learning rate, in tiles of 512 px as there: four of each training image,
1,261 steps an epoch, 252,200 in all. The data are as tools/data/prepare.py loveda writes them: the
official splits, cities and country together, the training split cut, the others whole (1024 px);
masks hold 1 to 7, 0 is not labelled. The test split has no masks, so this config tests on the
validation split; segmentation/loveda_upernet_pera_submission.py predicts the test split.

Target:   54.02 mIoU on the test server (paper, Table 5).
Hardware: batch 8 in all: on N GPUs set train_dataloader.batch_size to 8 / N.
Memory:   as Potsdam: about 15 GB (computed).
Command:  mim train mmseg configs/loveda_upernet_pera.py
"""

_base_ = 'potsdam_upernet_pera.py'

data_root = 'data/loveda'
classes = ('background', 'building', 'road', 'water', 'barren', 'forest', 'agricultural')
loveda = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(dataset=dict(**loveda, data_prefix=dict(
    img_path='img_dir/train_512', seg_map_path='ann_dir/train_512')))
val_dataloader = dict(num_workers=4, dataset=loveda)
test_dataloader = val_dataloader
val_evaluator = dict(protocols={'_delete_': True, '7-class': dict()})
test_evaluator = val_evaluator

model = dict(decode_head=dict(num_classes=7))
train_cfg = dict(val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=5e-5))
default_hooks = dict(checkpoint=dict(save_best='7-class/mIoU'))
