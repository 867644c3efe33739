"""PerA's ViT-G + ViT-Adapter + Faster R-CNN on DIOR at 512 pixels (section 4.2.4 of the paper).

The paper does not say how long the warm-up is (here one epoch, as in torchvision's references) or
which way images are flipped (here left-right, as there).

Target:   mAP50 75.71 (table 7)
Hardware: 4 GPUs of 80 GB with 4 images each, or --cfg-options model.backbone.with_cp=True on fewer
Command:  mim train mmdet configs/dior_faster_rcnn_pera.py
          python tools/test.py configs/dior_faster_rcnn_pera.py CHECKPOINT
"""

_base_ = [
    '_base_/finetune.py',
    '_base_/models/faster_rcnn_pera.py',
    '_base_/datasets/dior.py',
]

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=10)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=1, by_epoch=True, convert_to_iter_based=True),
    # From the start, where it is flat: a run of one epoch is possible, too.
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=10))
visualizer = dict(type='DetLocalVisualizer')  # draws boxes for MMDetection's DetInferencer
