"""LoveDA: ViT-Adapter + UPerNet on the pretrained ViT-G (paper 4.2.2).

Trained on the official train split, validated on the official val split; the test split's score
comes from the server: see loveda_upernet_pera_submission.py.

Target:   54.02 mIoU on the test server (paper, Table 5).
Hardware: batch 8 in all: on N GPUs set train_dataloader.batch_size to 8 / N.
Command:  mim train mmseg configs/loveda_upernet_pera.py
"""

_base_ = ['_base_/finetune.py', '_base_/models/upernet_pera.py', '_base_/data/loveda.py']

model = dict(decode_head=dict(num_classes=7))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=200, val_interval=10)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-5, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-30, begin=0, end=20, by_epoch=True,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=5e-6, begin=20, by_epoch=True,
         convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=10, save_best='7-class/mIoU', rule='greater'))
