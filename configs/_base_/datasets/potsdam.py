# ISPRS Potsdam, RGB, as tools/data/prepare.py potsdam writes it: 24 images of 6000 px for training,
# cut into tiles of 512 px (shifted back at the border), and the 14 test images whole. Masks hold
# 1 to 6, 0 is not labelled. The paper names random flips and random resized crops and no other
# augmentation; the ranges of the crops are those of the authors' first code.
data_root = 'data/potsdam'
classes = ('impervious_surface', 'building', 'low_vegetation', 'tree', 'car', 'clutter')

meta_keys = ('img_path', 'seg_map_path', 'ori_shape', 'img_shape', 'skipped')
train_pipeline = [
    dict(type='pera_mm.LoadRGB'),
    dict(type='pera_mm.LoadMask'),
    dict(type='pera_mm.RandomResizedCrop', scale=512, crop_ratio_range=(0.4, 1.0),
         aspect_ratio_range=(0.75, 1.33)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='PackSegInputs', meta_keys=meta_keys),
]
test_pipeline = [
    dict(type='pera_mm.LoadRGB'),
    dict(type='pera_mm.LoadMask'),
    dict(type='PackSegInputs', meta_keys=meta_keys),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='pera_mm.SegmentationDataset',
        data_root=data_root,
        data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
        metainfo=dict(classes=classes),
        reduce_zero_label=True,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='pera_mm.SegmentationDataset',
        data_root=data_root,
        data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'),
        metainfo=dict(classes=classes),
        reduce_zero_label=True,
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

# The paper does not say which of these its mF1 is. '6-class', not eroded, is the likely 93.08: the
# authors' first code trains on all six classes and averages F1 over all. Clutter is id 5. The
# benchmark's own evaluation erodes borders by a disc of 3 px; its files, which prepare.py puts into
# ann_dir/val_eroded where they are given, take the place of ours with the full protocols:
# --cfg-options test_dataloader.dataset.data_prefix.seg_map_path=ann_dir/val_eroded
five = [0, 1, 2, 3, 4]
val_evaluator = dict(
    type='pera_mm.ConfusionMetric',
    protocols={
        '6-class': dict(),
        '5-class': dict(average=five),
        '5-class-ignore': dict(average=five, ignore=[5]),
        '6-class-eroded': dict(border=3),
        '5-class-eroded': dict(average=five, border=3),
        '5-class-ignore-eroded': dict(average=five, ignore=[5], border=3),
    })
test_evaluator = val_evaluator
