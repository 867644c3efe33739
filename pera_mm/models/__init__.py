from pera_mm.models.backbones import (
    MimeticMAEViT,
    MimeticMoCoV3ViT,
    PerAViT,
    PretrainedBackbone,
    ViTAdapter,
    ViTPyramid,
)
from pera_mm.models.heads import MLPPixelHead, PixelHead, PrototypeHead
from pera_mm.models.losses import (
    CrossCropLoss,
    DistillationLoss,
    IBOTLoss,
    KoLeoLoss,
    PixelLoss,
)
from pera_mm.models.preprocessor import CropPreprocessor, ViewsPreprocessor
from pera_mm.models.selfsup import DINO, DINOv2, PerA

__all__ = [
    'DINO', 'CropPreprocessor', 'CrossCropLoss', 'DINOv2', 'DistillationLoss', 'IBOTLoss',
    'KoLeoLoss', 'MLPPixelHead', 'MimeticMAEViT', 'MimeticMoCoV3ViT', 'PerA', 'PerAViT',
    'PixelHead', 'PixelLoss', 'PretrainedBackbone', 'PrototypeHead', 'ViTAdapter', 'ViTPyramid',
    'ViewsPreprocessor'
]
