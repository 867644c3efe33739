# MoCo v3 with ViT-B/16 on two crops of 512 px: MMPretrain's classes, BYOL's colors. The loss has
# twice the temperature as its weight, in the original too: change both together.
_base_ = '../normalization.py'

mlp = dict(
    type='NonLinearNeck', hid_channels=4096, out_channels=256, with_bias=False,
    with_last_bias=False, with_last_bn_affine=False, with_avg_pool=False,
    norm_cfg=dict(type='BN1d'))  # sync_bn below makes it one over all GPUs
jitter = dict(
    jitter=0.8, gray=0.2, exclusive=False, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
model = dict(
    type='MoCoV3',
    base_momentum=0.01,  # share of the NEW weights: .99 of the old ones stay, rising to 1
    data_preprocessor=dict(
        type='pera_mm.ViewsPreprocessor',
        **_base_.normalization.imagenet,
        non_blocking=True,
        colors=[dict(**jitter, blur=1.0), dict(**jitter, blur=0.1, solarize=0.2)]),
    backbone=dict(
        type='MoCoV3ViT', arch='base', img_size=512, patch_size=16, stop_grad_conv1=True),
    neck=dict(**mlp, in_channels=768, num_layers=3),
    head=dict(
        type='MoCoV3Head',
        predictor=dict(**mlp, in_channels=256, num_layers=2),
        loss=dict(type='CrossEntropyLoss', loss_weight=2 * 0.2),
        temperature=0.2))
sync_bn = 'torch'
find_unused_parameters = True  # MoCoV3ViT freezes its position embedding after DDP has seen it
