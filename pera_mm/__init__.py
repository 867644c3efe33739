"""PerA pre-training for remote-sensing images, as an OpenMMLab plugin."""

from importlib import import_module
from typing import Any

from pera_mm import config_mistakes, options
from pera_mm.bridges import building, loops, multimodal, ops
from pera_mm.weights import loading

__version__ = '0.1.0'

ops.activate()
multimodal.activate()
loading.activate()
building.activate()
loops.activate()
config_mistakes.activate()
options.activate()

LAZY = {'load_backbone': 'pera_mm.weights.backbone',  # imported when they are asked for
        'predict': 'pera_mm.mapping.run'}


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(import_module(LAZY[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
