# MAE with ViT-B/16 on one crop of 512 px: MMPretrain's classes. The mask is drawn by MAEViT.
_base_ = '../normalization.py'

model = dict(
    type='MAE',
    data_preprocessor=dict(
        type='pera_mm.ViewsPreprocessor',
        **_base_.normalization.imagenet,
        non_blocking=True),
    backbone=dict(
        type='MAEViT', arch='base', img_size=512, patch_size=16, mask_ratio=0.75),
    neck=dict(
        type='MAEPretrainDecoder', num_patches=32 * 32, patch_size=16, embed_dim=768,
        decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16),
    head=dict(
        type='MAEPretrainHead', patch_size=16,
        loss=dict(type='PixelReconstructionLoss', criterion='L2')),
    init_cfg=[
        dict(type='Xavier', layer='Linear', distribution='uniform'),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    ])
