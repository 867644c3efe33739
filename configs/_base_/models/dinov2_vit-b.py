# DINOv2 with ViT-B/16 as in the PerA authors' repository (its DINOv2 classes and the first commit's
# Configs/dinov2_vitb.yaml); DINOv2 itself: configs/baselines/dinov2_vitb_tov-100k_original.py.
_base_ = 'dino_vit-b.py'
model = dict(
    type='pera_mm.DINOv2',
    backbone=dict(
        drop_path_rate=0.3, drop_path_uniform=True, qkv_bias=True, norm_cfg=dict(eps=1e-6)),
    projector=dict(norm_last_layer=False),
    patch_projector=dict(
        type='pera_mm.PrototypeHead',
        num_prototypes=65536,
        hidden_channels=2048,
        bottleneck_channels=256),
    ibot=dict(type='pera_mm.IBOTLoss', student_temp=0.1, center_momentum=0.9, loss_weight=1.0),
    koleo=dict(type='pera_mm.KoLeoLoss', loss_weight=0.1),
    koleo_on='scores')
