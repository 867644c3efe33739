"""Small MAE: its row of Tables 8 and 9. Data, optimizer, schedule and budget as small/pera.py.

One crop of 128 px (112/128 = the paper's 448/512), a decoder of two narrow layers.

Target:   measured: docs/measurements.md.
Hardware: one CPU core, minutes.
Command:  python tools/train.py configs/small/mae.py
"""

_base_ = [
    '../_base_/models/mae_vit-b.py', '../_base_/datasets/rsscn7.py',
    '../_base_/schedules/small_8e.py', '../_base_/runtime_common.py'
]
# PerAViT's 'demo', which MMPretrain's class does not know
arch = dict(embed_dims=128, num_layers=4, num_heads=2, feedforward_channels=512)
model = dict(
    backbone=dict(arch=dict(_delete_=True, **arch), img_size=128, patch_size=8),
    neck=dict(
        num_patches=16 * 16, patch_size=8, embed_dim=128, decoder_embed_dim=64, decoder_depth=2,
        decoder_num_heads=4),
    head=dict(patch_size=8))

crops = dict(
    global_crops=dict(number=1, size=128),
    local_crops=dict(number=0),
    ratio=(3 / 4, 4 / 3),
    vertical_flip=0.0,
    interpolation='bicubic')
train_dataloader = dict(
    dataset=dict(pipeline=dict(crops=crops, mask=dict(disjoint=False))))
default_hooks = dict(
    checkpoint=dict(interval=86, max_keep_ckpts=1),  # two epochs; and at the end
    logger=dict(interval=10))
