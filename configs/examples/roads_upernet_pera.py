"""Roads: a data set of your own, in one file (docs/adding_a_dataset.md).

25 aerial images of 400 px in images/, gray masks of the same names in groundtruth/, road where a
mask is above 127. ViT-B; the last five images are for validation.

Command:  mim train mmseg configs/examples/roads_upernet_pera.py
"""

_base_ = '../segmentation/potsdam_upernet_pera_vitb.py'
roads = dict(data_root='data/roads', metainfo=dict(classes=('other', 'road')), threshold=127,
             data_prefix=dict(img_path='images', seg_map_path='groundtruth'),
             reduce_zero_label=False)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = 400
train_dataloader = dict(dataset=dict(**roads, indices=20, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**roads, indices=[20, 21, 22, 23, 24]))
test_dataloader = val_dataloader
val_evaluator = dict(protocols=dict(_delete_=True, road=dict(average=[1])))
test_evaluator = val_evaluator
model = dict(decode_head=dict(num_classes=2), test_cfg=dict(mode='whole'))
default_hooks = dict(checkpoint=dict(save_best='road/F1'))
