from pera_mm.models.losses.distillation_loss import DistillationLoss
from pera_mm.models.losses.koleo_loss import KoLeoLoss
from pera_mm.models.losses.pixel_loss import PixelLoss

__all__ = ['DistillationLoss', 'KoLeoLoss', 'PixelLoss']
