"""The demo's model on what the data pipeline collects on its drawn planet: docs/rsrsd.md.

Hardware: two CPU cores, about a minute.
Command:  python tools/train.py configs/pera/pera_tiny_planet.py
"""

_base_ = 'pera_tiny_scenes.py'

train_dataloader = dict(dataset=dict(source='work_dirs/collect/planet/packed'))
# Without the probe: there are no labels here.
hooks = {name: hook for name, hook in _base_.default_hooks.items() if name != 'probe'}
default_hooks = dict(_delete_=True, **hooks)
