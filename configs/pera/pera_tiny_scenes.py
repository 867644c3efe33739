"""PerA, a ViT of 0.9M parameters, on drawn scenes: what `make demo` runs on two cores.

The authors' recipe at a small size and on a short schedule, eight epochs of 100 steps: the teacher
follows faster (momentum .98) than over 200 epochs.

Target:   a trained teacher that beats the random one by at least 10 points of kNN accuracy;
          measured: docs/measurements.md.
Hardware: two CPU cores, about five minutes.
Command:  make demo; or, when it has drawn data/scenes,
          python tools/train.py configs/pera/pera_tiny_scenes.py
"""

_base_ = '../small/pera.py'
train_dataloader = dict(dataset=dict(source='data/scenes/unlabeled'))
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=3),
    probe=dict(type='pera_mm.ProbeHook', data_root='data/scenes/classification', size=112,
               interval=2))
