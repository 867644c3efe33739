from pera_mm.models.losses.cross_crop_loss import CrossCropLoss
from pera_mm.models.losses.distillation_loss import DistillationLoss
from pera_mm.models.losses.ibot_loss import IBOTLoss
from pera_mm.models.losses.koleo_loss import KoLeoLoss
from pera_mm.models.losses.pixel_loss import PixelLoss

__all__ = ['CrossCropLoss', 'DistillationLoss', 'IBOTLoss', 'KoLeoLoss', 'PixelLoss']
