"""MAE, ViT-S/16: a size of ours, for benchmarks beside configs/pera/pera_vits_rsrsd.py.

Target:   none published.
Command:  tools/dist_train.sh configs/baselines/mae_vits_tov-100k.py 1
"""

_base_ = 'mae_vitb_tov-100k.py'
# MMPretrain's own 'small' is 768 wide with 8 layers
arch = dict(embed_dims=384, num_layers=12, num_heads=6, feedforward_channels=1536)
model = dict(backbone=dict(arch=dict(_delete_=True, **arch)), neck=dict(embed_dim=384))
