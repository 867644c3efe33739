# PerA with ViT-B/16 as the authors' configs have it (Configs/pera_vitb.yaml); the paper's text
# differs in some values: docs/paper_code_config.md lists them all.
_base_ = '../normalization.py'

model = dict(
    type='pera_mm.PerA',
    data_preprocessor=dict(
        type='pera_mm.CropPreprocessor',
        **_base_.normalization.imagenet,
        non_blocking=True,
        # jitter and gray are shares of the crops; the rest keeps its colors
        student=dict(
            jitter=0.72, gray=0.08, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
        teacher=dict(
            jitter=0.10, gray=0.00, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)),
    backbone=dict(
        type='pera_mm.PerAViT', arch='base', img_size=448, patch_size=16, drop_path_rate=0.3),
    projector=dict(
        type='pera_mm.PrototypeHead',
        num_prototypes=131072,
        hidden_channels=2048,
        bottleneck_channels=384),
    predictor=dict(type='pera_mm.PixelHead', hidden_channels=2048, bottleneck_channels=384),
    distillation=dict(
        type='pera_mm.DistillationLoss', student_temp=0.1, center_momentum=0.9, loss_weight=1.0),
    pixel=dict(type='pera_mm.PixelLoss', loss_weight=0.01),
    koleo=dict(type='pera_mm.KoLeoLoss', loss_weight=0.1))
