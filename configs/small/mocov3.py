"""Small MoCo v3: its row of Table 9. Data, optimizer, schedule and budget as small/pera.py.

Two crops of 128 px (112/128 = the paper's 448/512); the temperature is the original's.

Target:   measured: docs/measurements.md.
Hardware: one CPU core, minutes.
Command:  python tools/train.py configs/small/mocov3.py
"""

_base_ = [
    '../_base_/models/mocov3_vit-b.py', '../_base_/datasets/rsscn7.py',
    '../_base_/schedules/small_8e.py', '../_base_/runtime_common.py'
]
# PerAViT's 'demo', which MMPretrain's class does not know
arch = dict(embed_dims=128, num_layers=4, num_heads=2, feedforward_channels=512)
model = dict(
    base_momentum=0.02,  # .98 of the old weights stay, rising to 1
    backbone=dict(arch=dict(_delete_=True, **arch), img_size=128, patch_size=8),
    neck=dict(in_channels=128, hid_channels=512, out_channels=128),
    head=dict(predictor=dict(in_channels=128, hid_channels=512, out_channels=128)))

crops = dict(
    global_crops=dict(size=128, scale=(0.08, 1.0)),
    local_crops=dict(number=0),
    ratio=(3 / 4, 4 / 3),
    vertical_flip=0.0)
train_dataloader = dict(
    dataset=dict(pipeline=dict(crops=crops, mask=dict(disjoint=False))))
default_hooks = dict(
    checkpoint=dict(interval=86, max_keep_ckpts=1),  # two epochs; and at the end
    logger=dict(interval=10))
