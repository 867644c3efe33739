# DIOR as published: 11 725 images for training, 11 738 for testing, 800 x 800 pixels, 20 classes.
# tools/data/prepare.py dior SRC data/dior  makes this layout and verifies it. Flips and colors are
# those of the authors' first code.
data_root = 'data/dior'
xml = 'Annotations/Horizontal Bounding Boxes'
scale = (512, 512)  # of the paper; boxes go with the image

train_pipeline = [
    dict(type='pera_mm.LoadRGB'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='mmpretrain.NumpyToPIL', to_rgb=False),
    dict(type='mmpretrain.torchvision/ColorJitter', brightness=0.4, contrast=0.4, saturation=0.2,
         hue=0.1),
    dict(type='mmpretrain.PILToNumpy', to_bgr=False),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'skipped',
                   'worker')),
]
test_pipeline = [
    dict(type='pera_mm.LoadRGB'),
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

# AP50 by two measures: the area under the whole precision-recall curve (pascal_voc/mAP), and COCO's
# 101 points of it (coco101/mAP50), torchmetrics' map_50, by which the authors' first code scores.
val_evaluator = [
    dict(type='pera_mm.EdgeVOCMetric', metric='mAP', iou_thrs=0.5, eval_mode='area'),
    dict(type='pera_mm.COCO101Metric'),
]
test_evaluator = val_evaluator

custom_hooks = [dict(type='pera_mm.SkippedImagesHook'), dict(type='pera_mm.DataCheckHook')]
