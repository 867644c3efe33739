"""PerA pre-training for remote-sensing images, as an OpenMMLab plugin."""

from pera_mm import checkpoints, multimodal_bridge, ops_bridge

__version__ = '0.1.0'

ops_bridge.activate()
multimodal_bridge.activate()
checkpoints.activate()
