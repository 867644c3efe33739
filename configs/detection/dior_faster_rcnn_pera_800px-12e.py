"""As dior_faster_rcnn_pera_fpn.py, but as most others train on DIOR: 800 pixels, 12 epochs.

MMDetection's "1x": the learning rate falls to a tenth after epochs 8 and 11, after a warm-up of 500
iterations.

Target:   none in the paper
Hardware: batch 16 in all, as configs/dior_faster_rcnn_pera.py
Memory:   as there about 34 GB (computed), 124 GB without recomputing.
Command:  mim train mmdet configs/detection/dior_faster_rcnn_pera_800px-12e.py
"""

_base_ = 'dior_faster_rcnn_pera_fpn.py'

model = dict(backbone=dict(vit=dict(img_size=800)))

scale = (800, 800)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = scale
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = scale
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=12, val_interval=3)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=500, by_epoch=False),
    dict(type='MultiStepLR', milestones=[8, 11], gamma=0.1, by_epoch=True),
]
default_hooks = dict(checkpoint=dict(interval=3))
