# DINO with ViT-B/16 as in the PerA authors' repository (its DINO classes and the first commit's
# Configs/dino_vitb.yaml); DINO itself: configs/baselines/dino_vitb_tov-100k_original.py.
_base_ = '../normalization.py'

model = dict(
    type='pera_mm.DINO',
    data_preprocessor=dict(
        type='pera_mm.CropPreprocessor',
        **_base_.normalization.imagenet,
        non_blocking=True,
        # jitter alone: no gray, blur or solarization; the second global crop has hardly any
        student=dict(
            global_crops=[
                dict(jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
                dict(jitter=0.1, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
            ],
            local_crops=dict(
                jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)),
        teacher=None),  # sees the student's colors
    backbone=dict(
        type='pera_mm.PerAViT',
        arch='base',
        img_size=448,
        patch_size=16,
        drop_path_rate=0.1,
        drop_path_uniform=False,  # 0 in the first layer to .1 in the last
        qkv_bias=False,
        norm_cfg=dict(type='LN', eps=1e-5)),
    projector=dict(
        type='pera_mm.PrototypeHead',
        num_prototypes=65536,
        hidden_channels=2048,
        bottleneck_channels=256,
        norm_last_layer=True),
    distillation=dict(
        type='pera_mm.CrossCropLoss', student_temp=0.1, center_momentum=0.9, loss_weight=1.0))
