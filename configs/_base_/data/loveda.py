# LoveDA in MMSegmentation's layout, as tools/data/prepare.py loveda writes it: images of 1024 px in
# the official splits, cities and country together; the test split has no masks, so what is tested
# here is the validation split, and configs/loveda_upernet_pera_submission.py predicts the other.
# Masks hold 1 to 7, 0 is not labelled. A random crop is 1/4 to 1/16 of an image's area, enlarged to
# 512 px: the same ground area as on a tile of 512 px. No colour is changed.
data_root = 'data/loveda'
image_size = (1024, 1024)
crop_size = (512, 512)
classes = ('background', 'building', 'road', 'water', 'barren', 'forest', 'agricultural')

meta_keys = ('img_path', 'seg_map_path', 'ori_shape', 'img_shape', 'skipped')
train_pipeline = [
    dict(type='pera_mm.LoadRGB'),
    dict(type='pera_mm.LoadMask'),
    dict(type='RandomResize', scale=image_size, ratio_range=(1.0, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
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
    num_workers=4,
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

val_evaluator = dict(type='pera_mm.ConfusionMetric', protocols={'7-class': dict()})
test_evaluator = val_evaluator
