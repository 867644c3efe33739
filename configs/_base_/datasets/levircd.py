# LEVIR-CD in its official layout, as tools/data/prepare.py levircd writes it: whole pairs of
# 1024 px in {train,val,test}/{A,B,label}, and the training pairs cut into 512 px in train_512.
# The paper names random flips and random resized crops, and no change of colors; the ranges of the
# crops, and that the dates are swapped with probability .1, are those of the authors' first code.
data_root = 'data/levircd'

meta_keys = ('img_path', 'img_path2', 'seg_map_path', 'ori_shape', 'img_shape', 'skipped')
train_pipeline = [
    dict(type='pera_mm.LoadPair'),
    dict(type='pera_mm.RandomResizedCrop', scale=512, crop_ratio_range=(0.4, 1.0),
         aspect_ratio_range=(0.75, 1.33)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='pera_mm.SwapDates', prob=0.1),
    dict(type='PackSegInputs', meta_keys=meta_keys),
]
test_pipeline = [
    dict(type='pera_mm.LoadPair'),
    dict(type='PackSegInputs', meta_keys=meta_keys),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='pera_mm.ChangePairs',
        data_root=data_root,
        data_prefix=dict(img_path='train_512/A', img_path2='train_512/B',
                         seg_map_path='train_512/label'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='pera_mm.ChangePairs',
        data_root=data_root,
        data_prefix=dict(img_path='val/A', img_path2='val/B', seg_map_path='val/label'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='pera_mm.ChangePairs',
        data_root=data_root,
        data_prefix=dict(img_path='test/A', img_path2='test/B', seg_map_path='test/label'),
        test_mode=True,
        pipeline=test_pipeline))

val_evaluator = dict(type='pera_mm.ConfusionMetric', protocols=dict(change=dict(average=[1])))
test_evaluator = val_evaluator
