"""KoLeo: features spread out (paper eq. 8)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pera_mm.errors import UserError
from pera_mm.registry import MODELS


@MODELS.register_module()
class KoLeoLoss(nn.Module):
    """Minus the mean log distance of each feature to its nearest neighbour in the batch.

    As in the reference (koleo_loss.py): on L2-normalised features, per crop over the images of
    one device, the crops' terms summed. Unlike the reference always in float32, and a feature is
    never its own neighbour (there it is when the only other one points the opposite way).

    Args:
        loss_weight: C3 of eq. 9; 0.1 in the reference, 0.01 in the paper's text.
        eps: added to the difference and to the distance; two equal features stay finite.
    """

    def __init__(self, loss_weight: float = 0.1, eps: float = 1e-8) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """Features ``[n crops, B, K]``; returns the weighted scalar.

        Raises:
            ValueError: if B is 1: an image has no neighbour then.
        """
        self.check_batch_size(features.shape[1])
        with torch.autocast(features.device.type, enabled=False):
            features = F.normalize(features.float(), dim=-1, eps=self.eps)
            with torch.no_grad():
                similarity = features @ features.mT  # [n, B, B]
                similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
                nearest = similarity.argmax(dim=2, keepdim=True).expand_as(features)
            distance = F.pairwise_distance(features, features.gather(1, nearest), eps=self.eps)
            return -self.loss_weight * (distance + self.eps).log().mean(dim=1).sum()

    @staticmethod
    def check_batch_size(batch_size: int) -> None:
        """Raise unless there are neighbours to keep away from."""
        if batch_size < 2:
            raise UserError('the KoLeo loss needs at least 2 images per device, got 1; raise '
                            'train_dataloader.batch_size or set model.koleo=None.')
