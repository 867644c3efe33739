"""The predictor q of fig. 2a: mask tokens to pixels."""

from pera_mm.models.heads.cosine_head import CosineHead
from pera_mm.registry import MODELS


@MODELS.register_module()
class PixelHead(CosineHead):
    """The head for pixels of a patch: ``[..., D]`` to ``[..., p*p*3]``.

    The values are in (row, column, channel) order. As in the reference (pixel_head.py) the
    output is ``g * cosine``, without bias.

    Args:
        in_channels: width D of the backbone.
        patch_size: patch side p in pixels; the model gives its backbone's.
        hidden_channels: width of the two hidden layers.
        bottleneck_channels: width of the normalized embedding.
    """

    def __init__(self, in_channels: int, patch_size: int, hidden_channels: int = 2048,
                 bottleneck_channels: int = 384) -> None:
        super().__init__(in_channels, patch_size**2 * 3, hidden_channels, bottleneck_channels)
