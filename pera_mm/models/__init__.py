from pera_mm.models.backbones import PerAViT, PretrainedBackbone, ViTAdapter, ViTPyramid
from pera_mm.models.heads import PixelHead, PrototypeHead
from pera_mm.models.losses import DistillationLoss, KoLeoLoss, PixelLoss
from pera_mm.models.preprocessor import CropPreprocessor, ViewsPreprocessor
from pera_mm.models.selfsup import PerA

__all__ = [
    'CropPreprocessor', 'DistillationLoss', 'KoLeoLoss', 'PerA', 'PerAViT', 'PixelHead',
    'PixelLoss', 'PretrainedBackbone', 'PrototypeHead', 'ViTAdapter', 'ViTPyramid',
    'ViewsPreprocessor'
]
