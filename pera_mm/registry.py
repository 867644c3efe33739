"""The registries of pera_mm: children of MMEngine's, scope ``pera_mm``.

A config names our modules like ``type='pera_mm.PerA'``, from any toolbox. The first look-up of a
name imports the modules under ``locations``, so ``import pera_mm`` is fast.
"""

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry


def _child(name: str, parent: Registry, location: str) -> Registry:
    return Registry(name, parent=parent, scope='pera_mm', locations=[location])


MODELS = _child('model', MMENGINE_MODELS, 'pera_mm.models')
DATASETS = _child('dataset', MMENGINE_DATASETS, 'pera_mm.datasets')
DATA_SAMPLERS = _child('data sampler', MMENGINE_DATA_SAMPLERS, 'pera_mm.datasets')
TRANSFORMS = _child('transform', MMENGINE_TRANSFORMS, 'pera_mm.datasets.transforms')
METRICS = _child('metric', MMENGINE_METRICS, 'pera_mm.evaluation')
HOOKS = _child('hook', MMENGINE_HOOKS, 'pera_mm.engine')
LOOPS = _child('loop', MMENGINE_LOOPS, 'pera_mm.engine')
OPTIM_WRAPPERS = _child('optimizer wrapper', MMENGINE_OPTIM_WRAPPERS, 'pera_mm.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child('optimizer wrapper constructor', MMENGINE_CONSTRUCTORS,
                                    'pera_mm.engine')
WEIGHT_INITIALIZERS = _child('weight initializer', MMENGINE_WEIGHT_INITIALIZERS, 'pera_mm.models')
