"""AID: as aid_tr20_pera.py, small: the demo's ViT on drawn scenes, half of them for training.

Data:     python tools/data/make_scenes.py data/scenes/classification classification 1200 --size 128
          python tools/data/make_splits.py data/scenes/classification \
              data/scenes/classification/splits/tr50 --share 0.5
Weights:  make demo leaves them in work_dirs/demo
Hardware: one CPU core, six minutes.
Command:  mim train mmpretrain configs/scenes/aid_pera_scenes.py
"""

_base_ = ['../aid_tr20_pera.py', '../_base_/scenes.py']
model = dict(
    data_preprocessor=dict(num_classes=15),
    backbone=dict(**_base_.demo_vit, img_size=112),
    head=dict(num_classes=15, in_channels=128))

data_root = 'data/scenes/classification'
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[1].scale = 112
test_pipeline[1].scale = (112, 112)
train_dataloader = dict(
    num_workers=1,
    dataset=dict(data_root=data_root, ann_file='splits/tr50_train.txt', pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=1,
    dataset=dict(data_root=data_root, ann_file='splits/tr50_test.txt', pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=20, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [dict(_base_.warmup, end=2), dict(_base_.cosine, begin=2)]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=5))
