from pera_mm.models.heads.pixel_head import MLPPixelHead, PixelHead
from pera_mm.models.heads.prototype_head import PrototypeHead

__all__ = ['MLPPixelHead', 'PixelHead', 'PrototypeHead']
