# PerA with the demo's ViT (0.9M parameters), for crops of 112 px.
_base_ = 'pera_vit-b.py'
head = dict(hidden_channels=512, bottleneck_channels=128)
model = dict(
    backbone=dict(arch='demo', img_size=112, drop_path_rate=0.1),
    projector=dict(num_prototypes=2048, **head),
    predictor=head)
