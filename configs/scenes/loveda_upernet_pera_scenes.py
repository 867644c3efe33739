"""LoveDA: as loveda_upernet_pera.py, small. On drawn scenes it is Potsdam's twin, scored by mIoU.

Data:     python tools/data/make_scenes.py data/scenes/segmentation segmentation 250 --size 256
Weights:  make demo leaves them in work_dirs/demo
Hardware: one CPU core, about four minutes.
Command:  mim train mmseg configs/scenes/loveda_upernet_pera_scenes.py
"""

_base_ = 'potsdam_upernet_pera_scenes.py'
val_evaluator = dict(protocols={'_delete_': True, '7-class': dict()})
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best='7-class/mIoU'))
