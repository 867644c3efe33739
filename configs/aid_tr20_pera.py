"""AID, 20 % for training: fine-tuning of the pretrained ViT-G (paper 4.2.1).

Target:   97.13 OA (paper, Table 2).
Hardware: batch 16 in all: on N GPUs set train_dataloader.batch_size to 16 / N.
Memory:   about 32 GB (computed) with 16 images on one GPU in bf16, 50 GB in float32;
          10 GB with --cfg-options model.backbone.with_cp=True (a third more time).
Command:  mim train mmpretrain configs/aid_tr20_pera.py
"""

_base_ = ['_base_/finetune.py', '_base_/models/classifier_pera.py', '_base_/datasets/aid.py']

auto_scale_lr = dict(enable=False, base_batch_size=16)  # another total is a warning
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=200, val_interval=10)
# eps, the clipped gradient and the last learning rate are those of the authors' first code.
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=5e-6, eps=2e-5),
    clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-30, end=20, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, begin=20, by_epoch=True,
         convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=10))
