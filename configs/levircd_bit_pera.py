"""Change detection on LEVIR-CD: siamese ViT-Adapter (ViT-G) + BIT, in MMSegmentation.

The paper's settings (4.2.3): 500 epochs, batch 8, AdamW, learning rate 1e-4 to 1e-6, drop path
0.2, 512-px tiles, cross entropy. Not given there: the weight decay, 1e-4 as in its Potsdam runs;
and the warm-up of 20 epochs, eps and the clipped gradient, as in the authors' first code. Tested on
the whole 1024-px pairs in windows of 512 px that do not overlap, which are the 512-px tiles of the
paper.

Target:   F1 of the changed class 92.34 (Table 6)
Hardware: batch 8 in all: on N GPUs set train_dataloader.batch_size to 8 / N.
Memory:   about 18 GB (computed) with 8 pairs on one GPU in bf16, since activations are recomputed;
          62 GB with --cfg-options model.backbone.with_cp=False.
Command:  mim train mmseg configs/levircd_bit_pera.py
"""

_base_ = ['_base_/finetune.py', '_base_/models/bit_pera.py', '_base_/datasets/levircd.py']

model = dict(backbone=dict(with_cp=True))
auto_scale_lr = dict(enable=False, base_batch_size=8)  # another total is a warning
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=500, val_interval=10)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4, eps=2e-5),
    clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-30, begin=0, end=20, by_epoch=True,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, begin=20, by_epoch=True,
         convert_to_iter_based=True),
]
# Named ways to predict a test pair, for tools/analysis/protocols.py. 'tiles 512' is the paper's and
# what model.test_cfg does.
inference_modes = {
    'whole 1024': dict(mode='whole'),
    'sliding 512, stride 256': dict(mode='slide', crop_size=(512, 512), stride=(256, 256)),
    'tiles 512': dict(mode='slide', crop_size=(512, 512), stride=(512, 512)),
    'tiles 256': dict(mode='slide', crop_size=(256, 256), stride=(256, 256)),
}
default_hooks = dict(checkpoint=dict(interval=10, save_best='change/F1', rule='greater'))
