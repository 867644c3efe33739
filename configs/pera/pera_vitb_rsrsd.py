"""PerA, ViT-B/16, RSRSD-5m, 200 epochs: the authors' Configs/pera_vitb.yaml.

Source:   Configs/pera_vitb.yaml of SathShen/PerA; batch 16 per device as there, 192 in the paper.
Target:   none published on 5 million images; on 100k images see pera_vitb_tov-100k.py.
Hardware: 8 GPUs; batch 24 per GPU gives the paper's 192.
Command:  tools/dist_train.sh configs/pera/pera_vitb_rsrsd.py 8
"""

_base_ = [
    '../_base_/models/pera_vit-b.py', '../_base_/datasets/rsrsd-5m.py',
    '../_base_/schedules/pera_200e.py', '../_base_/runtime.py'
]
