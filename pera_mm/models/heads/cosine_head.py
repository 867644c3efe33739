"""The common base of projector and predictor (reference: Networks/PerA/layers/)."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

FLOAT32_EPS = 1e-12  # smallest norm to divide by
HALF_EPS = 1e-6  # the same in half precision, where 1e-12 underflows


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows are ``g * v / ||v||``.

    The product is computed in ``forward``: a weight-normalized module with a stored or hooked
    weight survives neither ``deepcopy`` nor pickling, and the teacher needs both. The norm scales
    the outputs instead of the rows, so the normalized matrix (131072 x 384) is never written.

    Args:
        in_channels: C, width of the input.
        out_channels: K, number of rows.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(nn.Linear(in_channels, out_channels, bias=False).weight.data)
        self.weight_g = nn.Parameter(torch.ones(out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., C]`` to ``[..., K]``.

        The result has the dtype of the weights (float32); autocast rounds the product to its own
        dtype before the scale.
        """
        scale = self.weight_g.squeeze(1) / self.weight_v.norm(dim=1)
        return F.linear(x, self.weight_v) * scale


class CosineHead(BaseModule):
    """A three-layer MLP, L2 normalization and a weight-normalized linear layer.

    Args:
        in_channels: width D of the backbone.
        out_channels: number of outputs.
        hidden_channels: width of the two hidden layers.
        bottleneck_channels: width of the normalized embedding.
        norm_last_layer: True keeps the rows of the last layer at length 1: ``weight_g`` is not
            trained.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int = 2048,
                 bottleneck_channels: int = 384, norm_last_layer: bool = False) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hidden_channels), nn.GELU(),
            nn.Linear(hidden_channels, hidden_channels), nn.GELU(),
            nn.Linear(hidden_channels, bottleneck_channels))
        for layer in self.mlp[::2]:
            nn.init.trunc_normal_(layer.weight, std=.02)
            nn.init.zeros_(layer.bias)
        self.last_layer = WeightNormLinear(bottleneck_channels, out_channels)
        self.last_layer.weight_g.requires_grad_(not norm_last_layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., D]`` to ``[..., out_channels]``."""
        x = self.mlp(x)
        eps = FLOAT32_EPS if x.dtype == torch.float32 else HALF_EPS
        x = F.normalize(x, dim=-1, eps=eps)
        return self.last_layer(x)
