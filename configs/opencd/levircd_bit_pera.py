"""Change detection on LEVIR-CD with the real Open-CD: its BIT, data set, pipeline and metric.

Only the backbone, the neck and the random crop are ours, by name. Schedule and augmentation are
those of configs/levircd_bit_pera.py. Each takes the other's weights: the same state dict gives the
same maps. Masks are read differently: in Open-CD every value from 128 on silently counts as
changed.

Open-CD (1.1.0, github likyoo/open-cd) is not on the package index and needs einops:
          pip install einops; pip install --no-deps PATH/TO/open-cd

Target:   F1 of the changed class 92.34 (Table 6)
Hardware: as configs/levircd_bit_pera.py
Memory:   as there: about 18 GB (computed)
Command:  python tools/train.py configs/opencd/levircd_bit_pera.py
          or Open-CD's own tools/train.py with the same argument
"""

_base_ = '../levircd_bit_pera.py'

default_scope = 'opencd'
custom_imports = dict(
    imports=['pera_mm', 'pera_mm.downstream.bit_head', 'pera_mm.downstream.metrics',
             'pera_mm.downstream.resized_crop', 'opencd', 'opencd.datasets', 'opencd.engine',
             'opencd.models', 'opencd.visualization'],
    allow_failed_imports=False)

model = dict(
    type='SiamEncoderDecoder',
    data_preprocessor=dict(type='DualInputSegDataPreProcessor', bgr_to_rgb=True),
    decode_head=dict(type='BITHead', norm_cfg=dict(type='LN')))

train_pipeline = [
    dict(type='MultiImgLoadImageFromFile'),
    dict(type='MultiImgLoadAnnotations'),
    dict(type='pera_mm.RandomResizedCrop', scale=512, crop_ratio_range=(0.4, 1.0),
         aspect_ratio_range=(0.75, 1.33)),
    dict(type='MultiImgRandomFlip', prob=0.5, direction='horizontal'),
    dict(type='MultiImgRandomFlip', prob=0.5, direction='vertical'),
    dict(type='MultiImgExchangeTime', prob=0.1),
    dict(type='MultiImgPackSegInputs'),
]
test_pipeline = [
    dict(type='MultiImgLoadImageFromFile'),
    dict(type='MultiImgLoadAnnotations'),
    dict(type='MultiImgPackSegInputs'),
]
data_root = 'data/levircd'
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='LEVIR_CD_Dataset',
        data_root=data_root,
        data_prefix=dict(img_path_from='train_512/A', img_path_to='train_512/B',
                         seg_map_path='train_512/label'),
        pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='LEVIR_CD_Dataset',
        data_root=data_root,
        data_prefix=dict(img_path_from='val/A', img_path_to='val/B', seg_map_path='val/label'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='LEVIR_CD_Dataset',
        data_root=data_root,
        data_prefix=dict(img_path_from='test/A', img_path_to='test/B', seg_map_path='test/label'),
        test_mode=True,
        pipeline=test_pipeline))
# Open-CD's metric has no score of one class; ours adds change/F1, which picks the best checkpoint.
val_evaluator = [
    dict(type='mmseg.IoUMetric', iou_metrics=['mFscore', 'mIoU']),
    dict(type='pera_mm.ConfusionMetric', protocols=dict(change=dict(average=[1]))),
]
test_evaluator = val_evaluator

default_hooks = dict(visualization=dict(type='CDVisualizationHook', img_shape=(1024, 1024, 3)))
visualizer = dict(
    type='CDLocalVisualizer', alpha=1.0, vis_backends=[dict(type='CDLocalVisBackend')])
custom_hooks = []
