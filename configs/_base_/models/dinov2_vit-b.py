# DINOv2 with ViT-B/16 as in the PerA authors' repository (its DINOv2 classes and the first commit's
# Configs/dinov2_vitb.yaml); DINOv2 itself: configs/baselines/dinov2_vitb_tov-100k_original.py.
model = dict(
    type='pera_mm.DINOv2',
    data_preprocessor=dict(
        type='pera_mm.CropPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        non_blocking=True,
        # jitter alone: no gray, blur or solarisation; the second global crop has hardly any
        student=dict(
            global_crops=[
                dict(jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
                dict(jitter=0.1, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
            ],
            local_crops=dict(
                jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)),
        teacher=None),  # sees the student's colours
    backbone=dict(
        type='pera_mm.PerAViT', arch='base', img_size=448, patch_size=16, drop_path_rate=0.3),
    projector=dict(
        type='pera_mm.PrototypeHead',
        num_prototypes=65536,
        hidden_channels=2048,
        bottleneck_channels=256),
    patch_projector=dict(
        type='pera_mm.PrototypeHead',
        num_prototypes=65536,
        hidden_channels=2048,
        bottleneck_channels=256),
    distillation=dict(
        type='pera_mm.CrossCropLoss', student_temp=0.1, center_momentum=0.9, loss_weight=1.0),
    ibot=dict(type='pera_mm.IBOTLoss', student_temp=0.1, center_momentum=0.9, loss_weight=1.0),
    koleo=dict(type='pera_mm.KoLeoLoss', loss_weight=0.1),
    koleo_on='scores')
