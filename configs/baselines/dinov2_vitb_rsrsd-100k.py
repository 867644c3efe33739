"""DINOv2, ViT-B/16, 100,000 random images of RSRSD-5m, 200 epochs: uncurated images in Table 8.

Target:   AID, 20 % for training, fine-tuned: 79.3 OA (paper, Table 8; TOV-100k: 82.3).
Hardware: as dinov2_vitb_tov-100k.py.
Command:  tools/dist_train.sh configs/baselines/dinov2_vitb_rsrsd-100k.py 1
"""

_base_ = 'dinov2_vitb_tov-100k.py'
train_dataloader = dict(dataset=dict(source='data/rsrsd-100k.txt'))
