"""PerA pre-training for remote-sensing images, as an OpenMMLab plugin."""

from pera_mm.bridges import multimodal, ops
from pera_mm.weights import loading

__version__ = '0.1.0'

ops.activate()
multimodal.activate()
loading.activate()
