# Siamese ViT-Adapter + BIT (paper 4.2.3) in MMSegmentation. BIT keeps its own parameters: 4 tokens
# of 32 channels a date, one encoder and eight decoder layers of 8 heads, working at stride 4. Where
# its ResNet gave one map of 256 channels, the neck makes one of the adapter's four: a 1 x 1
# convolution of each, summed at stride 4.
_base_ = '../normalization.py'

# both dates of a pair, stacked along the channels
normalization = {name: {key: values * 2 for key, values in statistics.items()}
                 for name, statistics in _base_.normalization.items()}
default_scope = 'mmseg'
custom_imports = dict(
    imports=['pera_mm', 'pera_mm.downstream.bit_head', 'pera_mm.downstream.change',
             'pera_mm.downstream.data_check', 'pera_mm.downstream.metrics',
             'pera_mm.downstream.resized_crop'],
    allow_failed_imports=False)
custom_hooks = [dict(type='pera_mm.DataCheckHook'), dict(type='pera_mm.SkippedImagesHook')]

model = dict(
    type='pera_mm.SiameseEncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        **normalization['imagenet'],
        bgr_to_rgb=False,  # pera_mm.LoadPair reads RGB
        size_divisor=1,
        pad_val=0,
        seg_pad_val=255),
    backbone=dict(
        type='pera_mm.ViTAdapter',
        vit=dict(
            type='pera_mm.PerAViT', arch='pera-g', img_size=512, patch_size=16,
            drop_path_rate=0.2,
            init_cfg=dict(type='pera_mm.PretrainedBackbone',
                          checkpoint='checkpoints/pera_vitg.safetensors', network='teacher')),
        # the authors' code (SathShen/PerASCD)
        vit_feature='stages',
        deform_ratio=1.0,
        shared_norm=True,
        norm_cfg=dict(type='BN'),
        with_cp=False),
    neck=dict(type='pera_mm.PairNeck', in_channels=1024, out_channels=256),
    decode_head=dict(
        type='pera_mm.BITHead',
        in_channels=256,
        channels=32,
        token_len=4,
        embed_dims=64,
        enc_depth=1,
        dec_depth=8,
        num_heads=8,
        pre_upsample=1,
        upsample_size=4,
        num_classes=2,
        dropout_ratio=0,
        align_corners=False,
        loss_decode=dict(type='mmseg.CrossEntropyLoss')),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(512, 512)))
