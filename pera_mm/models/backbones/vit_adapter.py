"""A PerA ViT as the backbone of dense tasks: four maps at strides 4, 8, 16 and 32.

:class:`ViTAdapter` is what the paper fine-tunes with (figure 2d); :class:`ViTPyramid` is the cheap
alternative. Both *have* a ViT, whose weights a checkpoint brings (``PretrainedBackbone``).

Shapes: B images, D width of the ViT.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pera_mm.errors import UserError
from pera_mm.models.backbones.adapter_layers import (
    Extractor,
    Injector,
    SpatialPrior,
    TokenGrid,
    make_token_grid,
    to_maps,
    to_tokens,
)
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.registry import MODELS

STRIDES = (4, 8, 16, 32)
NUM_GROUPS = 4  # groups of layers of the ViT, each between an injector and an extractor
LAST_EXTRACTORS = 3  # after the last group the pyramid reads the patches three times


class DenseViT(BaseModule):
    """The base of both: a ViT, and images of any size.

    Args:
        vit: config of a :class:`PerAViT`.
        with_cp: recompute activations in the backward pass: less memory, about a third more time.
        init_cfg: of the whole module; the ViT's own is in ``vit``.
    """

    def __init__(self, vit: dict, with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        self.vit: PerAViT = MODELS.build(vit)
        if not isinstance(self.vit, PerAViT):
            raise UserError(f'{type(self).__name__}: vit must be a pera_mm.PerAViT, got '
                            f'{type(self.vit).__name__}.')
        self.embed_dims, self.with_cp = self.vit.embed_dims, with_cp
        for layer in self.vit.layers if with_cp else ():
            layer.with_cp = True

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps.

        Args:
            images: ``[B, 3, H, W]``, any H and W; zeros pad the right and lower edge to a multiple
                of 32, and the maps are cropped again.

        Returns:
            Four maps ``[B, D, ceil(H/s), ceil(W/s)]``, s = 4, 8, 16, 32.
        """
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        maps = self.pyramid(padded)
        return tuple(x[..., :-(-height // s), :-(-width // s)] for x, s in zip(maps, STRIDES))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of images whose sides are multiples of 32."""
        raise NotImplementedError

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens ``[B, 1 + N, D]`` and their grid.

        An image that patches do not divide is resized to the nearest size that they do divide.
        """
        patch = self.vit.patch_size
        size = [(side + patch // 2) // patch * patch for side in images.shape[-2:]]
        if list(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode='bilinear', antialias=True)
        return self.vit.embed_all(images)


@MODELS.register_module()
class ViTAdapter(DenseViT):
    """The ViT-Adapter (Chen et al. 2023, arXiv 2205.08534) around a PerA ViT.

    A pyramid of convolutional features runs beside the ViT. Before each of four groups of layers,
    an injector adds the pyramid to the patch tokens; after the group, an extractor updates the
    pyramid from them. Both are deformable attention. The ViT keeps its [cls], which takes part in
    its layers only (the authors drop it). With injectors at zero, the ViT computes what it was
    trained for.

    Three public sources differ, and options name what each of them has: the original for
    segmentation and for detection (its ViT-L), and the code of PerA's authors (SathShen/PerASCD),
    whose values the configs of the paper have. The defaults are older than our knowledge of it.

    ================  ========================  =====================  ============
    option            original, segmentation    original, detection    authors
    ================  ========================  =====================  ============
    ``vit_feature``   'stages'                  'last'                 'stages'
    ``deform_ratio``  0.5                       0.5                    1.0
    ``shared_norm``   False                     False                  True
    ================  ========================  =====================  ============

    The ViT's attention is always global, where the original's detector has windows in 20 of 24
    layers, and there is no LayerScale, as in the authors' ViT. The extractors drop their MLP at the
    ViT's full rate of stochastic depth, as in all three.

    Args:
        vit: config of a :class:`PerAViT`.
        interaction_indexes: first and last layer of each of four groups; None divides the depth
            evenly (12: [[0, 2], [3, 5], [6, 8], [9, 11]]; 40: [[0, 9], [10, 19], ...]).
        vit_feature: 'stages' adds the ViT's map after each group to the map of the pyramid that has
            the group's number, 'last' adds the last one to all four; both resize it.
        deform_heads: attention heads; None takes the ViT's.
        deform_points: points that a head samples per level.
        deform_ratio: width of the sampled values / D, in (0, 1].
        shared_norm: True: the ViT's final LayerNorm, one module, normalizes the queries, tokens and
            MLP inputs of all injectors and extractors, and no map of the ViT. False: each of them
            has norms of its own, and the final LayerNorm is applied to the last map (as in
            MMPretrain). A state dict fits one of the two.
        ffn_ratio: hidden width of the extractors' MLP / D.
        prior_channels: width of the convolutional stem.
        norm_cfg: norm of the convolutions and of the four maps; 'BN', which the runner makes
            synchronous in distributed training, 'GN', ...
        with_cp: recompute activations in the backward pass, the ViT's too: less memory, about a
            third more time.
        init_cfg: of the whole module.

    Raises:
        ValueError: unknown ``vit_feature``; a ``deform_ratio`` out of range, or that makes a width
            that the heads do not divide; a depth below four, or groups that do not follow each
            other from the first layer to the last.
    """

    def __init__(self,
                 vit: dict,
                 interaction_indexes: Sequence[Sequence[int]] | None = None,
                 vit_feature: str = 'stages',
                 deform_heads: int | None = None,
                 deform_points: int = 4,
                 deform_ratio: float = 0.5,
                 shared_norm: bool = False,
                 ffn_ratio: float = 0.25,
                 prior_channels: int = 64,
                 norm_cfg: dict | None = None,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(vit, with_cp, init_cfg)
        if vit_feature not in ('stages', 'last'):
            raise UserError("ViTAdapter: vit_feature must be 'stages' (segmentation) or 'last' "
                            f'(detection), got {vit_feature!r}.')
        dims, norm_cfg = self.embed_dims, norm_cfg or dict(type='BN')
        self.groups = divide_layers(interaction_indexes, self.vit.num_layers)
        self.vit_feature, self.shared_norm = vit_feature, shared_norm
        attention = dict(
            num_heads=deform_heads or self.vit.layers[0].attn.num_heads,
            num_points=deform_points, value_ratio=deform_ratio)
        drop_path = max(layer.drop_path_rate for layer in self.vit.layers)

        def extractor() -> Extractor:
            return Extractor(dims, attention, ffn_ratio, drop_path, not shared_norm)

        self.prior = SpatialPrior(dims, prior_channels, norm_cfg)
        self.level_embed = nn.Parameter(torch.zeros(3, dims))
        self.injectors = nn.ModuleList(
            Injector(dims, attention, not shared_norm) for _ in self.groups)
        self.extractors = nn.ModuleList(
            nn.ModuleList(extractor() for _ in range(number))
            for number in (*[1] * (NUM_GROUPS - 1), LAST_EXTRACTORS))
        self.up = nn.ConvTranspose2d(dims, dims, 2, 2)
        self.norms = nn.ModuleList(build_norm_layer(norm_cfg, dims)[1] for _ in STRIDES)

    def init_weights(self) -> None:
        """Initialize the adapter's own parts at random, and the ViT by its ``init_cfg``."""
        for name, module in self.named_modules():
            if name.startswith('vit'):
                continue
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                init_convolution(module)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (m for m in self.modules() if hasattr(m, 'sampling_offsets')):
            layer.init_weights()
        nn.init.normal_(self.level_embed)
        super().init_weights()

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of images whose sides are multiples of 32."""
        finest, *maps = self.prior(images)
        grid = make_token_grid([x.shape[-2:] for x in maps], images.device)
        tokens = to_tokens([x + level[:, None, None] for x, level in zip(maps, self.level_embed)])
        tokens, vit_maps = self._interact(images, tokens, grid)
        maps = to_maps(tokens, grid.shapes)
        maps = [finest + self.up(maps[0]), *maps]
        if self.vit_feature == 'last':
            vit_maps = vit_maps[-1:] * NUM_GROUPS
        return [norm(x + F.interpolate(vit_map, x.shape[-2:], mode='bilinear'))
                for norm, x, vit_map in zip(self.norms, maps, vit_maps)]

    def _interact(self, images: Tensor, pyramid: Tensor,
                  grid: TokenGrid) -> tuple[Tensor, list[Tensor]]:
        """Return the pyramid ``[B, S, D]`` after all groups, and the ViT's map of each group."""
        x, shape = self._embed(images)
        patch_grid, vit_maps = make_token_grid([shape], images.device), []
        norm = self.vit.ln1 if self.shared_norm else None
        for (first, last), injector, extractors in zip(self.groups, self.injectors,
                                                       self.extractors):
            cls, patches = x[:, :1], x[:, 1:]
            patches = self._run(injector, patches, pyramid, patch_grid, grid, norm)
            x = torch.cat([cls, patches], dim=1)
            for layer in self.vit.layers[first:last + 1]:
                x = layer(x)
            if last == self.vit.num_layers - 1 and not self.shared_norm:
                x = self.vit.ln1(x)
            for extractor in extractors:
                pyramid = self._run(extractor, pyramid, x[:, 1:], grid, patch_grid, norm)
            vit_maps += to_maps(x[:, 1:], [shape])
        return pyramid, vit_maps

    def _run(self, module: nn.Module, *args: Any) -> Tensor:
        if self.with_cp and self.training and torch.is_grad_enabled():
            return checkpoint(module, *args, use_reentrant=False)
        return module(*args)


def init_convolution(module: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Draw the weights from a normal of variance 2 / fan-out (He et al. 2015), as ViT-Adapter does.

    A channel of a grouped convolution feeds the channels of its own group alone. PyTorch's
    ``kaiming_normal_`` counts all of them: a depthwise weight would start sqrt(channels) times
    too small.
    """
    fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
    nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))


def divide_layers(indexes: Sequence[Sequence[int]] | None, depth: int) -> list[tuple[int, int]]:
    """Return the ``(first, last)`` layers of four groups, divided evenly if ``indexes`` is None.

    Raises:
        ValueError: if the groups do not follow each other over all ``depth`` layers.
    """
    if indexes is None and depth >= NUM_GROUPS:
        ends = [round(depth * (i + 1) / NUM_GROUPS) for i in range(NUM_GROUPS)]
        return [(start, end - 1) for start, end in zip([0, *ends], ends)]
    groups = [(first, last) for first, last in indexes or ()]
    layers = [layer for first, last in groups for layer in range(first, last + 1)]
    if len(groups) != NUM_GROUPS or layers != list(range(depth)) or any(a > b for a, b in groups):
        raise UserError(
            f'ViTAdapter: interaction_indexes {indexes} must be four groups [first, last] that '
            f'follow each other over the {depth} layers of the ViT; leave them out to divide the '
            'depth evenly.')
    return groups


@MODELS.register_module()
class ViTPyramid(DenseViT):
    """The last map of a plain ViT at four strides: ViTDet's simple pyramid (Li et al. 2022).

    Two transposed convolutions make stride 4, one makes 8, and a pooling makes 32; a norm follows
    each. It has a few percent of ViTAdapter's extra cost and serves as its ablation. The width
    stays that of the ViT; heads reduce it.

    Args:
        vit: config of a :class:`PerAViT`.
        norm_cfg: norm of the maps.
        with_cp: recompute the ViT's activations in the backward pass.
        init_cfg: of the whole module.
    """

    def __init__(self, vit: dict, norm_cfg: dict | None = None, with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(vit, with_cp, init_cfg)
        dims, norm_cfg = self.embed_dims, norm_cfg or dict(type='BN')

        def up() -> nn.Module:
            return nn.ConvTranspose2d(dims, dims, 2, 2)

        self.scales = nn.ModuleList([
            nn.Sequential(up(), build_norm_layer(norm_cfg, dims)[1], nn.GELU(), up()),
            up(),
            nn.Identity(),
            nn.MaxPool2d(2, 2),
        ])
        self.norms = nn.ModuleList(build_norm_layer(norm_cfg, dims)[1] for _ in STRIDES)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of images whose sides are multiples of 32."""
        x, shape = self._embed(images)
        for layer in self.vit.layers:
            x = layer(x)
        feature, = to_maps(self.vit.ln1(x)[:, 1:], [shape])
        stride = STRIDES[2]  # the map that `scales` starts from
        if self.vit.patch_size != stride:
            feature = F.interpolate(feature, [side // stride for side in images.shape[-2:]],
                                    mode='bilinear')
        return [norm(scale(feature)) for norm, scale in zip(self.norms, self.scales)]
