"""PerA, the demo's small ViT, on real images: RSSCN7, 7 land uses (labels only for the probe).

The data set is not downloaded: put its class folders under data/rsscn7, or change data_root.

Target:   kNN and linear around 74 % after 20 epochs; measured: docs/measurements.md.
Hardware: one CPU core, a quarter of an hour.
Command:  python tools/train.py configs/pera/pera_tiny_rsscn7.py
"""

_base_ = 'pera_tiny_scenes.py'
data_root = 'data/rsscn7'
train_dataloader = dict(dataset=dict(source=data_root))
train_cfg = dict(max_epochs=20)  # of 43 steps
default_hooks = dict(
    probe=dict(data_root=data_root, interval=4), painting=dict(data_root=data_root, interval=4))
