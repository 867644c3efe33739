from pera_mm.models.selfsup.dino import DINO
from pera_mm.models.selfsup.dinov2 import DINOv2
from pera_mm.models.selfsup.pera import PerA

__all__ = ['DINO', 'DINOv2', 'PerA']
