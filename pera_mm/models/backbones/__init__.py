from pera_mm.models.backbones.mimetic import MimeticMAEViT, MimeticMoCoV3ViT
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.models.backbones.pretrained import PretrainedBackbone
from pera_mm.models.backbones.vit_adapter import ViTAdapter, ViTPyramid

__all__ = [
    'MimeticMAEViT', 'MimeticMoCoV3ViT', 'PerAViT', 'PretrainedBackbone', 'ViTAdapter', 'ViTPyramid'
]
