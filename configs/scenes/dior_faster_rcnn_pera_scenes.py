"""The twin of detection/dior_faster_rcnn_pera_fpn.py on drawn scenes: a tiny ViT, narrow heads.

It starts from the teacher that `make demo` leaves behind.

Target:   mAP50 around 0.16: seven classes, most objects of 8 pixels, few steps
Hardware: one CPU core, about five minutes
Command:  python tools/data/make_scenes.py data/scenes/detection detection 900 --size 160
          mim train mmdet configs/scenes/dior_faster_rcnn_pera_scenes.py
"""

_base_ = ['../detection/dior_faster_rcnn_pera_fpn.py', '../_base_/scenes.py']

classes = ('airplane', 'baseballfield', 'groundtrackfield', 'ship', 'storagetank', 'tenniscourt',
           'vehicle')
model = dict(
    backbone=dict(vit=dict(**_base_.frozen_demo_vit, img_size=160), with_cp=False),
    neck=dict(in_channels=[128] * 4, out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=len(classes))),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=500),
        rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=500)))

scale = (160, 160)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = scale
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = scale
here = dict(data_root='data/scenes/detection', metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=2, num_workers=1, dataset=dict(pipeline=train_pipeline, **here))
val_dataloader = dict(
    batch_size=4, num_workers=1, dataset=dict(pipeline=test_pipeline, **here))
test_dataloader = val_dataloader

auto_scale_lr = dict(base_batch_size=2)
train_cfg = dict(max_epochs=2, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [dict(_base_.warmup, end=1 / 3), dict(_base_.cosine, begin=1 / 3)]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=2))
