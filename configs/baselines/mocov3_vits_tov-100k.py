"""MoCo v3, ViT-S/16: a size of ours, for benchmarks beside configs/pera/pera_vits_rsrsd.py.

Target:   none published.
Command:  tools/dist_train.sh configs/baselines/mocov3_vits_tov-100k.py 1
"""

_base_ = 'mocov3_vitb_tov-100k.py'
# MMPretrain's 'mocov3-small' has 12 heads
arch = dict(embed_dims=384, num_layers=12, num_heads=6, feedforward_channels=1536)
model = dict(backbone=dict(arch=dict(_delete_=True, **arch)), neck=dict(in_channels=384))
