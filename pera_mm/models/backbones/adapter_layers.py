"""The layers of ViT-Adapter (Chen et al. 2023, figure 4): prior, injector, extractor.

Shapes: B images, D width of the ViT, N patch tokens, S tokens of the pyramid: strides 8, 16 and 32
one after the other, each in raster order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.drop import DropPath
from torch import Tensor, nn

from pera_mm.models.backbones.deform_attn import DeformableAttention

Shape = tuple[int, int]


class TokenGrid(NamedTuple):
    """The rows and columns of tokens, level by level, and the place of each in the image."""

    shapes: tuple[Shape, ...]
    places: Tensor  # [tokens, 2]: center of each as x, y in 0-1


def make_token_grid(shapes: Sequence[Shape], device: torch.device) -> TokenGrid:
    """Compute the places of tokens that tile an image in one or several resolutions."""
    places = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        y, x = torch.meshgrid(y, x, indexing='ij')
        places.append(torch.stack([x.flatten(), y.flatten()], dim=1))
    return TokenGrid(tuple(shapes), torch.cat(places))


class SpatialPrior(nn.Module):
    """A pyramid of convolutions, finer than the patches: four maps at strides 4, 8, 16 and 32.

    Args:
        embed_dims: D.
        channels: width of the stem; the later stages have two and four times as many.
        norm_cfg: any norm of MMCV.
    """

    def __init__(self, embed_dims: int, channels: int, norm_cfg: dict) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int) -> ConvModule:
            return ConvModule(inputs, outputs, 3, stride, 1, bias=False, norm_cfg=norm_cfg)

        widths = (channels, 2 * channels, 4 * channels, 4 * channels)
        self.stem = nn.Sequential(conv(3, channels, 2), conv(channels, channels, 1),
                                  conv(channels, channels, 1), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.ModuleList(conv(a, b, 2) for a, b in zip(widths, widths[1:]))
        self.projections = nn.ModuleList(nn.Conv2d(width, embed_dims, 1) for width in widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map ``[B, 3, H, W]``, H and W multiples of 32, to four maps ``[B, D, H/s, W/s]``."""
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [project(x) for project, x in zip(self.projections, maps)]


class Injector(nn.Module):
    """A layer that adds the pyramid to the patch tokens (eq. 1); gamma starts at 0.

    Args:
        embed_dims: D.
        attention: arguments of :class:`DeformableAttention`.
        own_norms: without them, every call brings the norm.
    """

    def __init__(self, embed_dims: int, attention: dict, own_norms: bool = True) -> None:
        super().__init__()
        if own_norms:
            self.query_norm = nn.LayerNorm(embed_dims, eps=1e-6)
            self.token_norm = nn.LayerNorm(embed_dims, eps=1e-6)
        self.attention = DeformableAttention(embed_dims, num_levels=3, **attention)
        self.gamma = nn.Parameter(torch.zeros(embed_dims))

    def forward(self, patches: Tensor, pyramid: Tensor, patch_grid: TokenGrid,
                pyramid_grid: TokenGrid, norm: nn.Module | None = None) -> Tensor:
        """Update the patch tokens ``[B, N, D]`` from the pyramid ``[B, S, D]``.

        ``norm`` takes the place of the layer's own norms.
        """
        update = self.attention((norm or self.query_norm)(patches), patch_grid.places,
                                (norm or self.token_norm)(pyramid), pyramid_grid.shapes)
        return patches + self.gamma * update


class Extractor(nn.Module):
    """A layer in which the pyramid reads the patch tokens (eq. 2-3) and mixes neighbors.

    Args:
        embed_dims: D.
        attention: arguments of :class:`DeformableAttention`.
        ffn_ratio: hidden width of the convolutional MLP / D.
        drop_path_rate: share of images that skip the MLP in training.
        own_norms: without them, every call brings the norm.
    """

    def __init__(self, embed_dims: int, attention: dict, ffn_ratio: float,
                 drop_path_rate: float, own_norms: bool = True) -> None:
        super().__init__()
        if own_norms:
            self.query_norm = nn.LayerNorm(embed_dims, eps=1e-6)
            self.token_norm = nn.LayerNorm(embed_dims, eps=1e-6)
            self.ffn_norm = nn.LayerNorm(embed_dims, eps=1e-6)
        self.attention = DeformableAttention(embed_dims, num_levels=1, **attention)
        self.ffn = ConvMLP(embed_dims, int(embed_dims * ffn_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, pyramid: Tensor, patches: Tensor, pyramid_grid: TokenGrid,
                patch_grid: TokenGrid, norm: nn.Module | None = None) -> Tensor:
        """Update the pyramid ``[B, S, D]`` from the patch tokens ``[B, N, D]``.

        ``norm`` takes the place of the layer's own norms.
        """
        pyramid = pyramid + self.attention(
            (norm or self.query_norm)(pyramid), pyramid_grid.places,
            (norm or self.token_norm)(patches), patch_grid.shapes)
        normed = (norm or self.ffn_norm)(pyramid)
        return pyramid + self.drop_path(self.ffn(normed, pyramid_grid.shapes))


class ConvMLP(nn.Module):
    """An MLP with a depthwise 3 x 3 convolution on every level before its GELU."""

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.depthwise = nn.Conv2d(hidden_dims, hidden_dims, 3, padding=1, groups=hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, embed_dims)

    def forward(self, tokens: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """Map tokens ``[B, S, D]`` of levels of ``shapes`` to the same shape."""
        maps = [self.depthwise(x) for x in to_maps(self.fc1(tokens), shapes)]
        return self.fc2(F.gelu(to_tokens(maps)))


def to_tokens(maps: Sequence[Tensor]) -> Tensor:
    """Convert maps ``[B, D, H_l, W_l]`` to tokens ``[B, S, D]``."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


def to_maps(tokens: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Invert :func:`to_tokens`."""
    levels = tokens.split([height * width for height, width in shapes], dim=1)
    return [x.transpose(1, 2).unflatten(2, shape) for x, shape in zip(levels, shapes)]
