# ViT-Adapter + UPerNet (paper 4.2.2) in MMSegmentation. Our reading of "hidden channels 512, output
# channels 256": pyramid pooling and feature pyramid have 512 (MMSegmentation's `channels`), and the
# map they are fused into, from which each pixel is classified, has 256. MMSegmentation's own head
# would have 512 there, too. The paper names one loss and no auxiliary head: there is none.
_base_ = '../normalization.py'

default_scope = 'mmseg'
custom_imports = dict(
    imports=['pera_mm', 'pera_mm.downstream.data_check', 'pera_mm.downstream.metrics',
             'pera_mm.downstream.resized_crop', 'pera_mm.downstream.segmentation'],
    allow_failed_imports=False)
custom_hooks = [dict(type='pera_mm.DataCheckHook'), dict(type='pera_mm.SkippedImagesHook')]

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        **_base_.normalization.imagenet,
        bgr_to_rgb=False,  # pera_mm.LoadRGB reads RGB
        size_divisor=1,
        pad_val=0,
        seg_pad_val=255),
    backbone=dict(
        type='pera_mm.ViTAdapter',
        vit=dict(
            type='pera_mm.PerAViT', arch='pera-g', img_size=512, patch_size=16,
            drop_path_rate=0.1,
            init_cfg=dict(type='pera_mm.PretrainedBackbone',
                          checkpoint='checkpoints/pera_vitg.safetensors', network='teacher')),
        # the authors' code (SathShen/PerASCD)
        vit_feature='stages',
        deform_ratio=1.0,
        shared_norm=True,
        norm_cfg=dict(type='BN'),
        with_cp=False),
    decode_head=dict(
        type='pera_mm.UPerHead',
        in_channels=[1024, 1024, 1024, 1024],
        in_index=[0, 1, 2, 3],
        channels=512,
        output_channels=256,
        pool_scales=(1, 2, 3, 6),
        dropout_ratio=0.1,
        num_classes=6,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(512, 512)))
