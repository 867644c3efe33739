# DIOR as published: 11 725 images for training, 11 738 for testing, 800 x 800 pixels, 20 classes.
# tools/data/prepare.py dior SRC data/dior  makes this layout and verifies it.
data_root = 'data/dior'
xml = 'Annotations/Horizontal Bounding Boxes'
scale = (512, 512)  # of the paper; boxes go with the image

# Pillow refuses an image that ends early, which OpenCV would fill with gray.
load_image = dict(type='LoadImageFromFile', imdecode_backend='pillow')
train_pipeline = [
    load_image,
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PhotoMetricDistortion'),  # the ranges of torchvision's RandomPhotometricDistort
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
                   'flip_direction', 'skipped', 'worker')),
]
test_pipeline = [
    load_image,
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),  # after Resize: the original boxes are scored
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='pera_mm.DIORDataset',
        data_root=data_root,
        splits=['train', 'val'],
        data_prefix=dict(img='JPEGImages-trainval', xml=xml),
        filter_cfg=dict(filter_empty_gt=True),  # every image of DIOR has objects
        pipeline=train_pipeline))
# The field validates on the test set. Nothing is chosen by it: report the last epoch.
val_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='pera_mm.DIORDataset',
        data_root=data_root,
        splits=['test'],
        data_prefix=dict(img='JPEGImages-test', xml=xml),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

# mAP50 over the whole precision-recall curve; '11points' is that of VOC 2007.
val_evaluator = dict(type='pera_mm.EdgeVOCMetric', metric='mAP', iou_thrs=0.5, eval_mode='area')
test_evaluator = val_evaluator

custom_hooks = [dict(type='NumClassCheckHook'), dict(type='pera_mm.SkippedImagesHook'),
                dict(type='pera_mm.DataCheckHook')]
