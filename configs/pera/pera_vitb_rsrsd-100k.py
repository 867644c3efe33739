"""PerA, ViT-B/16, 100,000 random images of RSRSD-5m, 200 epochs: uncurated images in Table 8.

Target:   AID, 20 % for training, fine-tuned: 90.0 OA (paper, Table 8; TOV-100k: 90.1).
Hardware: as pera_vitb_tov-100k.py.
Command:  tools/dist_train.sh configs/pera/pera_vitb_rsrsd-100k.py 1
"""

_base_ = [
    '../_base_/models/pera_vit-b.py', '../_base_/datasets/rsrsd-100k.py',
    '../_base_/schedules/pera_200e.py', '../_base_/runtime.py'
]
