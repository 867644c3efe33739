from pera_mm.models.backbones.pera_vit import PerAViT

__all__ = ['PerAViT']
