"""DINOv2, ViT-S/16: a size of ours, for benchmarks beside configs/pera/pera_vits_rsrsd.py.

Target:   none published.
Command:  tools/dist_train.sh configs/baselines/dinov2_vits_tov-100k.py 1
"""

_base_ = 'dinov2_vitb_tov-100k.py'
model = dict(backbone=dict(arch='small'))
