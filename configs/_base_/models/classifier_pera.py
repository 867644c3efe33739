# A linear classifier on [cls] (paper 4.2.1): after the final norm, as pre-training's projector.
_base_ = '../normalization.py'

default_scope = 'mmpretrain'
custom_imports = dict(
    imports=['pera_mm', 'pera_mm.downstream.data_check'], allow_failed_imports=False)
custom_hooks = [dict(type='pera_mm.SkippedImagesHook'), dict(type='pera_mm.DataCheckHook')]
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        num_classes=30,
        **_base_.normalization.imagenet,
        to_rgb=False),  # pera_mm.LoadRGB reads RGB
    backbone=dict(
        type='pera_mm.PerAViT', arch='pera-g', img_size=512, patch_size=16, drop_path_rate=0.3,
        out_type='cls_token',
        frozen_stages=-1,
        with_cp=False,
        init_cfg=dict(type='pera_mm.PretrainedBackbone',
                      checkpoint='checkpoints/pera_vitg.safetensors', network='teacher')),
    head=dict(
        type='LinearClsHead', num_classes=30, in_channels=1024, topk=(1, ),
        loss=dict(type='CrossEntropyLoss')))
