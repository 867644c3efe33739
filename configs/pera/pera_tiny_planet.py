"""The demo's model on what the data pipeline collects on its drawn planet: docs/rsrsd.md.

Hardware: two CPU cores, about a minute.
Command:  python tools/train.py configs/pera/pera_tiny_planet.py
"""

_base_ = '../small/pera_short.py'
train_dataloader = dict(dataset=dict(source='work_dirs/collect/planet/packed'))
