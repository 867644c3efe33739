"""PerA, ViT-S/16, RSRSD-5m: a size of ours for smaller machines and for benchmarks.

Target:   none published.
Command:  tools/dist_train.sh configs/pera/pera_vits_rsrsd.py 8
"""

_base_ = 'pera_vitb_rsrsd.py'
model = dict(backbone=dict(arch='small'))
