# AID, 30 classes, 10,000 images of 600 px, as tools/data/prepare.py aid writes it: a folder per
# class, and splits/. The paper names random flips, crops and color distortion; their ranges are
# those of the authors' first code. There is no validation part in the field's protocol: `val` is
# the test part, and the last epoch counts, not the best.
data_root = 'data/aid'
size = 512
meta_keys = ('img_path', 'ori_shape', 'img_shape', 'skipped')
train_pipeline = [
    dict(type='pera_mm.LoadRGB'),
    dict(type='RandomResizedCrop', scale=size, crop_ratio_range=(0.4, 1.0),
         aspect_ratio_range=(0.75, 1.33)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    # torchvision's: MMPretrain's own fails on a negative hue with NumPy 2
    dict(type='NumpyToPIL', to_rgb=False),
    dict(type='torchvision/ColorJitter', brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
    dict(type='PILToNumpy', to_bgr=False),
    dict(type='PackInputs', meta_keys=meta_keys),
]
test_pipeline = [
    dict(type='pera_mm.LoadRGB'),
    dict(type='Resize', scale=(size, size)),
    dict(type='PackInputs', meta_keys=meta_keys),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='pera_mm.LabelledImages', data_root=data_root, ann_file='splits/tr20_train.txt',
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='pera_mm.LabelledImages', data_root=data_root, ann_file='splits/tr20_test.txt',
        test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))  # overall accuracy
test_evaluator = val_evaluator
