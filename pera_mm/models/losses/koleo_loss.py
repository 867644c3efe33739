"""The KoLeo loss, which spreads features (paper eq. 8)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pera_mm.errors import UserError
from pera_mm.registry import MODELS


@MODELS.register_module()
class KoLeoLoss(nn.Module):
    """The negative mean log distance of each feature to its nearest neighbor in the batch.

    As in the reference (koleo_loss.py), features are L2-normalized and compared per crop over the
    images of one device, and the crops' terms are summed. Unlike the reference, it computes in
    float32, and a feature is never its own neighbor (there it is when the only other feature
    points the opposite way).

    Args:
        loss_weight: C3 of eq. 9; 0.1 in the reference, 0.01 in the paper's text.
        eps: added to the difference and to the distance; two equal features stay finite.
    """

    def __init__(self, loss_weight: float = 0.1, eps: float = 1e-8) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """Compute the weighted scalar from features ``[n crops, B, K]``.

        Raises:
            ValueError: if B is 1, because an image then has no neighbor.
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
        """Raise ValueError for a batch of one image."""
        if batch_size < 2:
            raise UserError('the KoLeo loss needs at least 2 images per device, got 1; raise '
                            'train_dataloader.batch_size or set model.koleo=None.')
