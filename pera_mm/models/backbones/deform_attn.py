"""Multi-scale deformable attention (Zhu et al. 2021, eq. 3), on any device.

Shapes: B images, Q queries, D width, h heads, P points, L levels of H_l x W_l tokens,
S = sum of H_l * W_l, V = values' width.
"""

from collections.abc import Callable, Sequence
from functools import cache
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pera_mm.bridges import ops
from pera_mm.errors import UserError


def sample_levels(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor,
                  weights: Tensor) -> Tensor:
    """Compute the weighted sum of bilinear samples of every level, with PyTorch's own operators.

    Args:
        value: ``[B, S, h, V/h]``, the levels one after the other, each in raster order.
        shapes: ``(H_l, W_l)`` of the L levels.
        locations: ``[B, Q, h, L, P, 2]`` as x, y; 0 and 1 are the outer edges of a level, and
            outside them a level is 0.
        weights: ``[B, Q, h, L, P]``.

    Returns:
        ``[B, Q, V]``.
    """
    batch, _, heads = locations.shape[:3]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [B*h, Q, L, P, 2]
    shares = weights.transpose(1, 2).flatten(0, 1)  # [B*h, Q, L, P]
    levels = value.transpose(1, 2).flatten(0, 1).split([h * w for h, w in shapes], dim=1)
    total = value.new_zeros(())
    for i, (level, shape) in enumerate(zip(levels, shapes)):
        plane = level.transpose(1, 2).unflatten(2, shape)  # [B*h, V/h, H, W]
        samples = F.grid_sample(plane, grids[:, :, i], align_corners=False)  # [B*h, V/h, Q, P]
        # No matrix product, which autocast would do in half precision.
        total = total + (samples * shares[:, None, :, i]).sum(-1)  # [B*h, V/h, Q]
    return total.unflatten(0, (batch, heads)).flatten(1, 2).transpose(1, 2)


def sample_levels_compiled(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor,
                           weights: Tensor) -> Tensor:
    """Compute :func:`sample_levels` with mmcv's compiled operator."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    sizes = torch.tensor(shapes, device=value.device)
    starts = sizes.prod(1).cumsum(0) - sizes.prod(1)
    return MultiScaleDeformableAttnFunction.apply(
        value.contiguous(), sizes, starts, locations.contiguous(), weights.contiguous(),
        len(value))


def sample_levels_by_gathers(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor,
                             weights: Tensor) -> Tensor:
    """Compute :func:`sample_levels` by gathering four tokens for every sample, for exported graphs.

    ONNX has a GridSample, but TensorRT 10 computes it wrongly here, and older runtimes lack it.
    """
    batch, _, heads = locations.shape[:3]
    lengths = [height * width for height, width in shapes]
    starts = value.new_tensor([sum(lengths[:i]) for i in range(len(shapes))])[:, None, None]
    sizes = value.new_tensor(shapes)[:, None, None]  # [L, 1, 1, 2] as rows, columns
    steps = value.new_tensor([[0, 0], [0, 1], [1, 0], [1, 1]])  # to the four neighbors
    places = locations.transpose(1, 2).flatten(0, 1).flip(-1).unsqueeze(-2) * sizes - 0.5
    corner = places.floor()  # [B*h, Q, L, P, 1, 2]
    nearness = torch.where(steps > 0, places - corner, 1 - (places - corner))
    neighbors = corner + steps  # [B*h, Q, L, P, 4, 2]
    inside = ((neighbors >= 0) & (neighbors < sizes)).all(-1)
    shares = nearness[..., 0] * nearness[..., 1] * inside
    shares = shares * weights.transpose(1, 2).flatten(0, 1)[..., None]  # [B*h, Q, L, P, 4]
    neighbors = torch.minimum(neighbors.clamp(min=0), sizes - 1)  # before they are whole numbers
    index = (neighbors[..., 0] * sizes[..., 1] + neighbors[..., 1] + starts).long().flatten(2)
    heads_first = torch.arange(batch * heads, device=value.device) * sum(lengths)
    tokens = value.transpose(1, 2).flatten(0, 2)  # [B*h*S, V/h]
    samples = tokens[index + heads_first[:, None, None]]  # [B*h, Q, L*P*4, V/h]
    total = (shares.flatten(2)[:, :, None] @ samples).squeeze(2)  # [B*h, Q, V/h]
    return total.unflatten(0, (batch, heads)).transpose(1, 2).flatten(2)


@cache
def _is_compiled() -> bool:
    return ops.provider() == 'compiled'


class DeformableAttention(nn.Module):
    """An attention in which every query samples P points of every level, around its own place.

    It samples in float32, also under autocast: the eight significant bits of bfloat16 are too few
    for a position in a map, and mmcv's compiled operator is slow in it.

    With ``by_gathers`` set to True it samples with :func:`sample_levels_by_gathers`.

    Args:
        embed_dims: D.
        num_heads: h.
        num_levels: L.
        num_points: P.
        value_ratio: V / D in (0, 1]; below 1 saves memory.

    Raises:
        ValueError: if the ratio is out of range, or V is not a multiple of h.
    """

    by_gathers = False

    def __init__(self, embed_dims: int, num_heads: int, num_levels: int, num_points: int = 4,
                 value_ratio: float = 1.) -> None:
        super().__init__()
        if not 0 < value_ratio <= 1:
            raise UserError(f'deformable attention: the value ratio {value_ratio:g} must be above '
                            '0 and at most 1; change deform_ratio.')
        value_dims = int(embed_dims * value_ratio)
        if value_dims < num_heads or value_dims % num_heads:
            raise UserError(
                f'deformable attention: {embed_dims} x value ratio {value_ratio:g} = {value_dims} '
                f'is not divisible by {num_heads} heads; change deform_heads or deform_ratio.')
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dims, 2 * samples)
        self.attention_weights = nn.Linear(embed_dims, samples)
        self.value_proj = nn.Linear(embed_dims, value_dims)
        self.output_proj = nn.Linear(value_dims, embed_dims)
        self.init_weights()

    def init_weights(self) -> None:
        """Let the heads look in h directions, point p at distance p, all with the same weight."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(self.num_heads) * (2 * pi / self.num_heads)
        ring = torch.stack([angles.cos(), angles.sin()], dim=1)
        ring = ring / ring.abs().amax(1, keepdim=True)  # on a square, not a circle  [h, 2]
        distance = torch.arange(1, self.num_points + 1.)
        offsets = torch.einsum('hc,p->hpc', ring, distance)[:, None].expand(
            -1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, places: Tensor, tokens: Tensor,
                shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Attend.

        Args:
            queries: ``[B, Q, D]``.
            places: where each query is, ``[Q, 2]`` as x, y in 0-1 of the image.
            tokens: ``[B, S, D]`` of all levels.
            shapes: ``(H_l, W_l)`` of the L levels.

        Returns:
            ``[B, Q, D]``.
        """
        points = (self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(tokens).unflatten(2, (self.num_heads, -1)).float()
        offsets = self.sampling_offsets(queries).unflatten(2, (*points, 2)).float()
        weights = self.attention_weights(queries).unflatten(2, (self.num_heads, -1))
        weights = weights.float().softmax(-1).unflatten(3, points[1:])
        widths = offsets.new_tensor([(w, h) for h, w in shapes])[:, None]  # [L, 1, 2]
        locations = places.float()[:, None, None, None] + offsets / widths
        sampled = self._sampler(value)(value, shapes, locations, weights)
        return self.output_proj(sampled.to(queries.dtype))

    def _sampler(self, value: Tensor) -> Callable[..., Tensor]:
        if self.by_gathers:
            return sample_levels_by_gathers
        return sample_levels_compiled if value.is_cuda and _is_compiled() else sample_levels
