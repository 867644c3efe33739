"""PerA pre-training for remote-sensing images, as an OpenMMLab plugin."""

from pera_mm import multimodal_bridge, ops_bridge
from pera_mm.weights import loading

__version__ = '0.1.0'

ops_bridge.activate()
multimodal_bridge.activate()
loading.activate()
