"""The predictor q of fig. 2a: mask tokens to pixels."""

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from pera_mm.models.heads.cosine_head import CosineHead
from pera_mm.registry import MODELS


@MODELS.register_module()
class PixelHead(CosineHead):
    """The reference's head for pixels of a patch: ``[..., D]`` to ``[..., p*p*3]``.

    The values are in (row, column, channel) order. As in the reference (pixel_head.py) the
    output is ``g * cosine``, without bias. ``g`` starts at 1, so a short run does not learn to
    paint with it: see :class:`MLPPixelHead`.

    Args:
        in_channels: width D of the backbone.
        patch_size: patch side p in pixels; the model gives its backbone's.
        hidden_channels: width of the two hidden layers.
        bottleneck_channels: width of the normalized embedding.
    """

    def __init__(self, in_channels: int, patch_size: int, hidden_channels: int = 2048,
                 bottleneck_channels: int = 384) -> None:
        super().__init__(in_channels, patch_size**2 * 3, hidden_channels, bottleneck_channels)


@MODELS.register_module()
class MLPPixelHead(BaseModule):
    """A plain head for pixels of a patch, without a bound on their values, for short runs.

    It is not the reference's. Shapes and order of the values are those of :class:`PixelHead`.

    Args:
        in_channels: width D of the backbone.
        patch_size: patch side p in pixels; the model gives its backbone's.
        hidden_channels: width of the hidden layer.
    """

    def __init__(self, in_channels: int, patch_size: int, hidden_channels: int = 512) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_channels, hidden_channels)
        self.output = nn.Linear(hidden_channels, patch_size**2 * 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., D]`` to ``[..., p*p*3]``."""
        return self.output(F.gelu(self.hidden(x)))
