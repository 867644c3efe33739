"""PerA, a ViT of 0.8M parameters, on drawn scenes: what `make demo` runs on two cores.

The authors' method at a small size and on a short schedule, eight epochs of 50 steps;
_base_/models/pera_demo.py says what was kept and what was shrunk, and small/pera_short.py what
starts otherwise.

Target:   measured: docs/measurements.md.
Hardware: two CPU cores, four to seven minutes.
Command:  make demo; or, when it has drawn data/scenes,
          python tools/train.py configs/pera/pera_tiny_scenes.py
"""

_base_ = '../small/pera_short.py'
train_dataloader = dict(dataset=dict(source='data/scenes/unlabeled'))
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=3),
    probe=dict(type='pera_mm.ProbeHook', data_root='data/scenes/classification', size=112,
               interval=4),
    painting=dict(type='pera_mm.PaintingHook', data_root='data/scenes/classification', size=112,
                  interval=4))
