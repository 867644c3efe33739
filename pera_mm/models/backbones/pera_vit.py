"""The ViT of PerA: MMPretrain's ViT plus sparse input and packed groups (paper fig. 2b).

Shapes: R rows (crops x images), L tokens of a row, k patches, D embedding width. A *group* is the
tokens ``[R, L, D]`` of all crops of one size; groups share every linear layer and are apart only
in attention. A layer on 2 global crops of 157 patches and 8 local ones of 7, for B images::

    split          [2B, 158, D]   [8B, 8, D]     the rows that stochastic depth keeps
    concatenate    [2B * 158 + 8B * 8, D]        LayerNorm, QKV: one matrix product for all crops
    split          [2B, 158, 3D]  [8B, 8, 3D]    attention: a token sees those of its own row
    concatenate    [2B * 158 + 8B * 8, D]        projection
    split          [2B, 158, D]   [8B, 8, D]     added to the rows that were kept
    concatenate    [2B * 158 + 8B * 8, D]        LayerNorm, MLP; split and added in the same way
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.drop import drop_path
from mmengine.model import initialize
from mmengine.model.weight_init import trunc_normal_
from mmpretrain.models.backbones.vision_transformer import (
    TransformerEncoderLayer,
    VisionTransformer,
)
from mmpretrain.models.utils import build_2d_sincos_position_embedding, resize_pos_embed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pera_mm.errors import UserError
from pera_mm.models.backbones.mimetic import check_mimetic, start_mimetically
from pera_mm.patches import gather_patches, patch_grid
from pera_mm.registry import MODELS


class PackedEncoderLayer(TransformerEncoderLayer):
    """A pre-norm transformer layer over one tensor or over several groups of tokens.

    The parameters and their names are the parent's. What differs is the forward: LayerNorm, QKV,
    projection and MLP see the tokens of all groups at once.

    Stochastic depth leaves out a fixed number of a group's rows, so that a dropped row costs
    nothing (reference: layers/block.py L159-226). One dense tensor, as in fine-tuning, may have a
    single row: there each row is dropped with the probability ``drop_path_rate`` by itself.
    """

    drop_path_rate = 0.  # share of the rows of each group that a branch leaves out in training
    with_cp = False  # recompute the activations in the backward pass

    def init_weights(self) -> None:
        """Draw weights from a truncated normal, std .02, as the reference (parent: Xavier)."""
        super(TransformerEncoderLayer, self).init_weights()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor | list[Tensor],
                outputs: Sequence[int | None] | None = None) -> Tensor | list[Tensor]:
        """Run the layer on one tensor ``[R, L, D]`` or on a list of groups.

        Args:
            x: the tokens.
            outputs: of groups, as in :meth:`PerAViT.encode`.

        Returns:
            the same form as ``x``.
        """
        dense = isinstance(x, Tensor)
        layer, groups = (self._dense, [x]) if dense else (partial(self._sparse, outputs), x)
        if self.with_cp and self.training and torch.is_grad_enabled():
            groups = checkpoint(layer, *groups, use_reentrant=False)
        else:
            groups = layer(*groups)
        return groups[0] if dense else groups

    def _dense(self, x: Tensor) -> list[Tensor]:
        for branch in (self._attention, self._mlp):
            update, = branch([x])
            x = x + drop_path(update, self.drop_path_rate, self.training)
        return [x]

    def _sparse(self, outputs: Sequence[int | None] | None, *groups: Tensor) -> list[Tensor]:
        if outputs is None:
            updated = self._residual(groups, groups, self._attention)
        else:
            ends = [_output_tokens(x, number) for x, number in zip(groups, outputs)]
            updated = self._residual(ends, groups, partial(self._attention_of_outputs, outputs))
        return self._residual(updated, updated, self._mlp)

    def _residual(self, bases: Sequence[Tensor], groups: Sequence[Tensor],
                  branch: Callable[[Sequence[Tensor]], list[Tensor]]) -> list[Tensor]:
        """Add the ``branch`` of ``groups`` to ``bases``: all their tokens, or the output tokens.

        Stochastic depth adds it to the kept rows only, scaled by rows / kept rows.
        """
        if not (self.training and self.drop_path_rate > 0):
            return [base + update for base, update in zip(bases, branch(groups))]
        kept = [self._kept_rows(x) for x in groups]
        updates = branch([x[rows] for x, rows in zip(groups, kept)])
        return [
            base.index_add(0, rows, update.to(base.dtype), alpha=len(base) / len(rows))
            for base, rows, update in zip(bases, kept, updates)
        ]

    def _kept_rows(self, x: Tensor) -> Tensor:
        kept = max(int(len(x) * (1 - self.drop_path_rate)), 1)
        return torch.randperm(len(x), device=x.device)[:kept]

    def _attention(self, groups: Sequence[Tensor]) -> list[Tensor]:
        qkv = self.attn.qkv(self.ln1(_pack(groups)))
        return self._attend([part.chunk(3, dim=2) for part in _unpack(qkv, groups)])

    def _attention_of_outputs(self, outputs: Sequence[int | None],
                           groups: Sequence[Tensor]) -> list[Tensor]:
        """Compute :meth:`_attention` of the output tokens; keys and values are of all tokens."""
        tokens = self.ln1(_pack(groups))
        ends = [_output_tokens(x, number) for x, number in zip(_unpack(tokens, groups), outputs)]
        weight, bias, width = self.attn.qkv.weight, self.attn.qkv.bias, tokens.shape[-1]
        biases = (None, None) if bias is None else (bias[:width], bias[width:])
        queries = _unpack(F.linear(_pack(ends), weight[:width], biases[0]), ends)
        pairs = _unpack(F.linear(tokens, weight[width:], biases[1]), groups)
        return self._attend([(q, *kv.chunk(2, dim=2)) for q, kv in zip(queries, pairs)])

    def _attend(self, triples: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Attend with each group's queries ``[R, Q, D]``, keys and values, and project."""
        attn = self.attn
        dropout = attn.attn_drop if self.training else 0.
        mixed = []
        for triple in triples:
            q, k, v = (x.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for x in triple)
            heads = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # [R, heads, Q, d]
            mixed.append(heads.transpose(1, 2).flatten(2))
        return _unpack(attn.gamma1(attn.proj_drop(attn.proj(_pack(mixed)))), mixed)

    def _mlp(self, groups: Sequence[Tensor]) -> list[Tensor]:
        tokens = self.ln2(_pack(groups))
        return _unpack(self.ffn(tokens), groups)


def _pack(groups: Sequence[Tensor]) -> Tensor:
    """Join groups ``[R_i, L_i, D]`` to all their tokens ``[sum R_i L_i, D]``."""
    return torch.cat([x.flatten(0, 1) for x in groups]) if len(groups) > 1 else groups[0].flatten(
        0, 1)


def _unpack(tokens: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Invert :func:`_pack`, with the rows and lengths of ``like``."""
    sizes = [x.shape[:2] for x in like]
    parts = tokens.split([rows * length for rows, length in sizes])
    return [part.unflatten(0, size) for part, size in zip(parts, sizes)]


def _output_tokens(x: Tensor, number: int | None) -> Tensor:
    """Return [cls] and the last ``number`` tokens of ``[R, L, D]``; None: all tokens."""
    if number is None:
        return x
    return torch.cat([x[:, :1], x[:, x.shape[1] - number:]], dim=1) if number else x[:, :1]


# Arguments of MMPretrain's ViT with the only value that the sparse forward supports.
GRID_MARGIN = .1  # patches
FIXED_ARGUMENTS = dict(drop_rate=0., final_norm=True, with_cls_token=True)


def _check_sines(std: float, width: int) -> None:
    if not 0 < std < math.inf:
        raise UserError(f'sine_positions is a standard deviation above 0, not {std}; leave it out '
                        'for random positions.')
    if width % 4:
        raise UserError(f'sine_positions needs a width that 4 divides, not embed_dims={width}.')


@MODELS.register_module()
class PerAViT(VisionTransformer):
    """A Vision Transformer with a sparse forward.

    The dense ``forward`` and the parameter names are those of
    :class:`mmpretrain.models.VisionTransformer`, so its configs, heads and layer-wise decay apply.

    Args:
        arch: 'tiny' (192 x 12), 'small' (384 x 12), 'base' (768 x 12), 'large' (1024 x 24),
            'pera-g' (1024 x 40: the paper's ViT-G/16-1024, 505,443,328 parameters), or a dict with
            ``embed_dims, num_layers, num_heads, feedforward_channels``.
        img_size: side in pixels of the crops whose position embedding is stored.
        patch_size: patch side in pixels.
        drop_path_rate: share of rows that each residual branch leaves out in training.
        drop_path_uniform: True: the same share in every layer (reference, DINOv2); False: from 0
            in the first layer to ``drop_path_rate`` in the last (DINO). At least one row of a
            group is left out of a layer whose share is above 0.
        with_cp: recompute activations in the backward pass (less memory, about a third more time).
        sine_positions: let the positions of the patches start as the two-dimensional sines and
            cosines of MAE and MoCo v3, with this standard deviation, and learn from there; None:
            from N(0, 0.02²), as in the reference.
        mimetic: let attention start as in trained ViTs, with the strengths ``query_key`` and
            ``value_output`` of :func:`~pera_mm.models.backbones.mimetic.start_mimetically`; None:
            from N(0, 0.02²), as in the reference.
        **kwargs: further arguments of MMPretrain's ViT (``out_type``, ``out_indices``, ...). CLIP's
            is ``pre_norm=True, norm_cfg=dict(type='LN', eps=1e-5)`` and, if trained with
            QuickGELU, ``layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU'))``.

    Raises:
        ValueError: for an unknown ``arch``, an ``img_size`` that is not a multiple of
            ``patch_size``, a ``drop_path_rate`` outside [0, 1), ``sine_positions`` not above 0 or
            with a width that 4 does not divide, other strengths than the two of ``mimetic`` or one
            not above 0, more ``frozen_stages`` than layers, or another value of one of the
            :data:`FIXED_ARGUMENTS`.
    """

    arch_zoo = {
        name: dict(embed_dims=dims, num_layers=layers, num_heads=heads,
                   feedforward_channels=4 * dims)
        for name, dims, layers, heads in (('mini', 128, 4, 8), ('demo', 128, 4, 2),
                                          ('tiny', 192, 12, 3), ('small', 384, 12, 6),
                                          ('base', 768, 12, 12), ('large', 1024, 24, 16),
                                          ('pera-g', 1024, 40, 16))
    }

    def __init__(self,
                 arch: str | dict = 'base',
                 img_size: int | tuple[int, int] = 448,
                 patch_size: int = 16,
                 drop_path_rate: float = 0.,
                 drop_path_uniform: bool = True,
                 with_cp: bool = False,
                 sine_positions: float | None = None,
                 mimetic: dict[str, float] | None = None,
                 **kwargs: Any) -> None:
        _check_arch(arch, tuple(self.arch_zoo))
        patch_grid(*((img_size, img_size) if isinstance(img_size, int) else img_size), patch_size)
        if not 0 <= drop_path_rate < 1:
            raise UserError(f'drop_path_rate must lie in [0, 1), got {drop_path_rate}.')
        for name, value in FIXED_ARGUMENTS.items():
            if kwargs.get(name, value) != value:
                raise UserError(
                    f'PerAViT: {name}={kwargs[name]} is not possible: its sparse forward embeds '
                    '[cls], has no token dropout, and needs the final norm; leave '
                    f'{name} out.')
        depth = (self.arch_zoo[arch] if isinstance(arch, str) else arch)['num_layers']
        if kwargs.get('frozen_stages', -1) > depth:
            raise UserError(f'PerAViT: frozen_stages={kwargs["frozen_stages"]} of {depth} layers '
                            f'is not possible; {depth} freezes the whole ViT.')
        super().__init__(arch, img_size, patch_size, **kwargs)
        self.patch_size = patch_size
        self.sine_positions = sine_positions
        if sine_positions is not None:
            _check_sines(sine_positions, self.embed_dims)
        self.mimetic = mimetic
        if mimetic is not None:
            check_mimetic(mimetic)
        last = max(depth - 1, 1)
        for number, layer in enumerate(self.layers):
            # The parent names its layer class in its constructor; ours has the same parameters
            # and another forward.
            layer.__class__ = PackedEncoderLayer
            layer.drop_path_rate = drop_path_rate * (1. if drop_path_uniform else number / last)
            layer.with_cp = with_cp
            layer.ffn.add_identity = False  # the residual is added to the kept rows only

    def init_weights(self) -> None:
        """Draw [cls] from N(0, 1e-6), as the reference; the parent draws the position embedding.

        With ``PretrainedBackbone`` as ``init_cfg``, every tensor comes from the checkpoint.
        """
        configs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg or {}]
        kinds = {getattr(cfg.get('type'), '__name__', cfg.get('type')) for cfg in configs}
        if kinds & {'pera_mm.PretrainedBackbone', 'PretrainedBackbone'}:
            initialize(self, self.init_cfg)
            self._is_init = True  # MMEngine would now draw the layers anew
            return
        super().init_weights()
        if kinds != {'Pretrained'}:
            nn.init.normal_(self.cls_token, std=1e-6)
            if self.sine_positions is not None:
                self._start_with_sines(self.sine_positions)
            if self.mimetic is not None:
                for layer in self.layers:
                    start_mimetically(layer.attn, **self.mimetic)

    @torch.no_grad()
    def _start_with_sines(self, std: float) -> None:
        rows, columns = self.patch_resolution
        table = build_2d_sincos_position_embedding((rows, columns), self.embed_dims)[0]
        table = table.unflatten(0, (columns, rows)).transpose(0, 1).flatten(0, 1)  # row by row
        self.pos_embed[0, 1:] = table / table.std() * std

    def embed(self, images: Tensor, indices: Tensor) -> Tensor:
        """Embed only the named patches; hidden ones never reach the network.

        Args:
            images: ``[R, 3, H, W]``.
            indices: patch indices, int64 ``[R, k]``.

        Returns:
            ``[R, 1 + k, D]``, [cls] first, position embedding added; after the norm before the
            layers, if there is one.
        """
        patches = gather_patches(images, indices, self.patch_size).flatten(2)  # [R, k, 3*p*p]
        projection = self.patch_embed.projection
        tokens = F.linear(patches, projection.weight.flatten(1), projection.bias)
        grid = patch_grid(*images.shape[-2:], self.patch_size)
        tokens = tokens + self.positions(indices, grid)
        cls = self.cls_token + self.pos_embed[:, :1]
        return self.pre_norm(torch.cat([cls.expand(len(tokens), -1, -1), tokens], dim=1))

    def embed_all(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed all patches, as MMPretrain's forward does.

        Args:
            images: ``[B, 3, H, W]``, sides multiples of the patch size.

        Returns:
            ``[B, 1 + N, D]``, [cls] first, position embedding added (resampled to exactly this
            size, without the 0.1 of :meth:`positions`; after the norm before the layers, if there
            is one), and the patches' rows and columns.
        """
        tokens, grid = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        positions = resize_pos_embed(self.pos_embed, self.patch_resolution, grid,
                                     self.interpolate_mode, self.num_extra_tokens)
        return self.pre_norm(tokens + positions), grid

    def positions(self, indices: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the position embedding ``[R, k, D]`` of patches ``[R, k]`` of a crop ``grid``."""
        return F.embedding(indices, self._position_table(grid))

    def _position_table(self, grid: tuple[int, int]) -> Tensor:
        """Resample the stored grid to ``grid``: ``[N, D]``.

        The scale is that of a grid 0.1 patch larger, as in DINO and the reference
        (vision_transformer.py L150-174), whose weights are trained with it.
        """
        stored, table = tuple(self.patch_resolution), self.pos_embed[0, 1:]
        if grid == stored:
            return table
        planes = table.float().unflatten(0, stored).permute(2, 0, 1).unsqueeze(0)  # [1, D, h, w]
        scale = tuple((new + GRID_MARGIN) / old for new, old in zip(grid, stored))
        planes = F.interpolate(planes, scale_factor=scale, mode='bicubic')
        return planes[0].flatten(1).t().to(table.dtype)

    def encode(self, groups: list[Tensor], start: int = 0, stop: int | None = None,
               outputs: Sequence[int | None] | None = None) -> list[Tensor]:
        """Run layers ``start`` to ``stop - 1`` on all groups together.

        Args:
            groups: tokens ``[R, L, D]`` of each.
            outputs: for each group, how many of its last tokens to return beside [cls] (None:
                all). The last layer computes no others. This changes no returned value: other
                tokens read a token only through its key and value.

        Returns:
            ``[R, L, D]`` of each group, or ``[R, 1 + outputs, D]``.
        """
        layers = self.layers[start:stop]
        for number, layer in enumerate(layers, 1):
            groups = layer(groups, outputs if number == len(layers) else None)
        return groups

    def apply_final_norm(self, groups: list[Tensor]) -> list[Tensor]:
        """Apply the final LayerNorm to every group."""
        return [self.ln1(x) for x in groups]


def _check_arch(arch: str | dict, known: tuple[str, ...]) -> None:
    keys = {'embed_dims', 'num_layers', 'num_heads', 'feedforward_channels'}
    if isinstance(arch, str) and arch not in known:
        raise UserError(f"unknown arch '{arch}'; take one of {', '.join(known)} or a dict with "
                        f"{', '.join(sorted(keys))}.")
    if not isinstance(arch, str):
        if keys - set(arch):
            raise UserError(f"the arch dict lacks {', '.join(sorted(keys - set(arch)))}.")
        if arch['embed_dims'] % arch['num_heads']:
            raise UserError(f"embed_dims {arch['embed_dims']} is not divisible by num_heads "
                            f"{arch['num_heads']}.")
