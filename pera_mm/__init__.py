"""PerA pre-training for remote-sensing images, as an OpenMMLab plugin."""

__version__ = '0.1.0'
