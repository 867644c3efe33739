"""The loss of the pixel prediction (paper eq. 4)."""

from torch import Tensor, nn

from pera_mm.registry import MODELS


@MODELS.register_module()
class PixelLoss(nn.Module):
    """The squared error, summed over the values of a patch and averaged over patches.

    The reference sums as well (pera_loss.py). With weight 0.01 and 768 values per patch, this is
    7.68 times the mean squared error per value that eq. 4 suggests.

    Args:
        loss_weight: C2 of eq. 9; 0.01 in the reference, 0.1 in the paper's text.
    """

    def __init__(self, loss_weight: float = 0.01) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the weighted scalar from normalized pixels, both ``[..., p*p*3]``."""
        error = (prediction.float() - target.float()).square()
        return self.loss_weight * error.sum(-1).mean()
