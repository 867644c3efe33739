"""The one ViT of any checkpoint under our names: ours, the PerA authors', or a public one.

Known layouts: timm's (also of DINO, DINOv2 and MAE as their authors publish them), Hugging Face's
ViT, DeiT, MAE, MSN, DINOv2 and CLIP, and the CLIP of OpenAI and open_clip. What a
:class:`~pera_mm.models.backbones.pera_vit.PerAViT` cannot express is refused by name.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pera_mm.errors import UserError
from pera_mm.weights.fitting import short
from pera_mm.weights.layouts import (
    HF,
    HF_CLIP,
    HF_DINOV2,
    OPEN_CLIP,
    OURS,
    TIMM,
    Layout,
)
from pera_mm.weights.names import weights_of

HF_PREFIXES = ('', 'vit.', 'deit.', 'dinov2.', 'dinov2_with_registers.', 'vision_model.',
               'model.vision_model.')
# Parts of public files that are not of the features: classifiers, poolers, decoders, mask tokens,
# registers, CLIP's projection, and the indices of positions in files of older transformers.
SURPLUS = re.compile(r'(head|classifier|pooler|decoder\w*|proj|mask_token|reg_token|'
                     r'register_tokens|embeddings\.(mask_token|register_tokens|position_ids))'
                     r'(\.|$)')
REGISTERS = ('reg_token', 'register_tokens', 'embeddings.register_tokens')


class Found(NamedTuple):
    """The ViT of a checkpoint.

    Attributes:
        state: the tensors under our names.
        total: how many tensors it was among.
        left: those that are not of it, by groups of keys: ``head.weight (1)``.
        beside: what else is in the file, such as an optimizer.
        changes: what was done to it, in words.
    """

    state: dict[str, Tensor]
    total: int
    left: list[str]
    beside: list[str]
    changes: list[str]

    def report(self) -> list[str]:
        """Return what was left out and what was changed, in words."""
        return ([f'left out: {", ".join(self.left)}'] if self.left else []) + self.changes


def find_backbone(checkpoint: Mapping[str, Any], network: str = 'teacher') -> Found:
    """Find the teacher's backbone, which downstream tasks use (paper, section 3.2.3).

    Where queries, keys and values have no bias, as in the reference's DINO, it becomes zero; so
    does the position of [cls] where it has none. LayerScale, as in DINOv2, is multiplied into the
    layer before it. None of these changes the function. Registers are left out, which does.

    Args:
        checkpoint: A checkpoint of ours, the authors' raw training file, one of MMPretrain (MAE,
            MoCo v3, a classifier: its ViT is ``backbone``), or a ViT in a layout that this module
            knows, alone or with its heads.
        network: ``'teacher'`` or ``'student'``. It has no effect where there is only one backbone.

    Returns:
        The 12 x depth + 6 tensors of the backbone under our names (+ 7: a norm before the layers).

    Raises:
        ValueError: If there is no such backbone, not every tensor of it, or if it is a ViT that
            PerAViT cannot express.
    """
    if network not in ('teacher', 'student'):
        raise UserError(f"network must be 'teacher' or 'student', got {network!r}.")
    weights, beside = _weights(checkpoint, network)
    place = _place(weights, network)
    if place is None:
        _refuse_inexpressible(weights)
        raise _nothing_found(weights, network)
    layout, prefix = place
    state = {key[len(prefix):]: value for key, value in weights.items() if key.startswith(prefix)}
    left = [key for key in weights if not key.startswith(prefix)]
    changes: list[str] = []
    registers = 0
    if layout is not OURS:
        _refuse_inexpressible(state)
        surplus = {key for key in state if SURPLUS.match(key)}
        registers = max((state[key].shape[-2] for key in surplus & set(REGISTERS)), default=0)
        if registers:
            changes.append(f'without its {registers} registers, its features change somewhat')
        left += [prefix + key for key in state if key in surplus]
        state = _without_chunks({k: v for k, v in state.items() if k not in surplus})
    state = _with_qkv_bias(state, layout)
    if _fold_layer_scale(state, layout):
        changes.append('LayerScale multiplied into the layers before it')
    if layout in (HF_CLIP, OPEN_CLIP):
        _add_dimensions(state, layout)
    state = layout.to_ours(state)
    if layout is TIMM and _even_positions(state, registers):
        changes.append('[cls], which has no position, got a position of zeros')
    return Found(state, len(weights), grouped(left), beside, changes)


def shape_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return width, depth and hidden width of a backbone under our names.

    Raises:
        ValueError: if its stored grid or its patches are not square.
    """
    patch, positions = state['patch_embed.projection.weight'].shape, state['pos_embed'].shape[1] - 1
    if patch[2] != patch[3] or isqrt(positions)**2 != positions:
        raise UserError(f'The backbone has {positions} positions and patches of {patch[2]} x '
                        f'{patch[3]} pixels; only a square grid of square patches can be used.')
    return dict(
        embed_dims=state['cls_token'].shape[-1],
        num_layers=sum(key.endswith('.ln2.weight') for key in state),
        feedforward_channels=state['layers.0.ffn.layers.0.0.weight'].shape[0])


def grouped(keys: Iterable[str]) -> list[str]:
    """Name groups of keys by their first two parts, with how many each has."""
    groups = Counter('.'.join(short(key).split('.')[:2]) for key in keys)
    return [f'{name} ({count})' for name, count in groups.items()]


# Where it is ------------------------------------------------------------------------------------


def _weights(checkpoint: Mapping[str, Any], network: str) -> tuple[Mapping[str, Any], list[str]]:
    """Find the weights that the network is among, without DDP's prefix, and what is beside them."""
    file = checkpoint
    if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(network), Mapping):
        checkpoint = checkpoint[network]  # DINO and DINOv2 keep the two networks apart
    weights = weights_of(checkpoint)
    beside = [] if weights is file else [str(key) for key in file if file[key] is not weights]
    if weights and all(key.startswith('module.') for key in weights):
        weights = {key.removeprefix('module.'): value for key, value in weights.items()}
    return weights, beside


def _place(weights: Collection[str], network: str) -> tuple[Layout, str] | None:
    """Find the layout and the prefix of the backbone's keys."""
    for prefix in (f'{network}.backbone.', 'backbone.', ''):
        if f'{prefix}cls_token' in weights:
            blocks = f'{prefix}blocks.', f'{prefix}patch_embed.proj.'
            timm = any(key.startswith(blocks) for key in weights)
            return (TIMM if timm else OURS), prefix
    for prefix in HF_PREFIXES:
        if prefix + HF.cls in weights:
            is_dinov2 = any(key.startswith(f'{prefix}encoder.') and '.norm1.' in key
                            for key in weights)
            return (HF_DINOV2 if is_dinov2 else HF), prefix
        if prefix + HF_CLIP.cls in weights:
            return HF_CLIP, prefix
    for prefix in ('visual.', 'module.visual.', ''):
        if prefix + OPEN_CLIP.cls in weights:
            return OPEN_CLIP, prefix
    return None


def _nothing_found(weights: Collection[str], network: str) -> UserError:
    groups = sorted({'.'.join(key.split('.')[:2]) for key in weights})
    other = {'teacher': 'student', 'student': 'teacher'}[network]
    hint = f' (network={other!r} is there)' if f'{other}.backbone.cls_token' in weights else ''
    return UserError(
        f'There is no {network} backbone among the {len(weights)} tensors of this checkpoint: '
        f'expected keys {network}.backbone.*, backbone.* or a bare ViT (cls_token, '
        f'pos_embed, …), found {_first(groups)}{hint}.')


def _first(keys: list[str], limit: int = 12) -> str:
    more = f' and {len(keys) - limit} more' if len(keys) > limit else ''
    return ', '.join(short(key) for key in keys[:limit]) + more if keys else 'none'


# What it is -------------------------------------------------------------------------------------


def _refuse_inexpressible(state: Mapping[str, Any]) -> None:
    """Raise for a ViT with parts that PerAViT does not have, by its name."""
    if what := _inexpressible(state):
        raise UserError(f'It is {what}, which PerAViT cannot express: take a plain ViT with [cls] '
                        'and position embeddings, such as a ViT or DINO, DINOv2, MAE or CLIP.')


def _inexpressible(state: Mapping[str, Any]) -> str | None:
    def has(pattern: str) -> bool:
        return any(re.search(pattern, key) for key in state)

    positions = has(r'pos_embed|position(al)?_embedding')
    if has(r'relative_position_bias|(^|\.)lambda_1$'):
        return 'a ViT with relative positions, as BEiT, data2vec or Swin'
    if has(r'storage_tokens|rope_embed\.') or not positions and has(
            r'\.gamma_1$|(^|\.)layer\.\d+\.attention\.[qkvo]_proj\.'):
        return 'a DINOv3 ViT, with rotary positions'
    if has(r'attn\.q_bias$|\.mlp\.w1\.'):
        return 'an EVA ViT, with rotary positions or without a bias of the keys'
    if has(r'\.mlp\.(w12|weights_in)\.') or _is_gated(state):
        return 'a ViT with SwiGLU layers, as DINOv2 giant'
    if has(r'dist(illation)?_token'):
        return 'a distilled DeiT, with a second token beside [cls]'
    if has(r'(^|\.)fc_norm\.'):
        return 'a ViT that normalizes the mean of the patches (fc_norm)'
    if has(r'\.[qk]_norm\.'):
        return 'a ViT that normalizes queries and keys'
    if positions and not has(r'cls_token|class_embedding') and has(
            r'(^|\.)(blocks|encoder\.layers?|resblocks)\.\d+\.'):
        return 'a ViT without [cls], as SigLIP or I-JEPA'
    return None


def _is_gated(state: Mapping[str, Any]) -> bool:
    first, second = (next((value for key, value in state.items()
                           if key.endswith(f'.mlp.{name}.weight')), None)
                     for name in ('fc1', 'fc2'))
    return (isinstance(first, Tensor) and isinstance(second, Tensor)
            and first.ndim == second.ndim == 2 and first.shape[0] == 2 * second.shape[1])


# What becomes of it -----------------------------------------------------------------------------


def _without_chunks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the chunks from ``blocks.CHUNK.LAYER.``, as DINOv2 names the layers in training."""
    return {re.sub(r'^blocks\.\d+\.(\d+\.)', r'blocks.\1', key): value
            for key, value in state.items()}


def _with_qkv_bias(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Add zeros for the bias if no layer has one; if only some have it, the file is incomplete."""
    parts = layout.parts['attn.qkv']
    ends = tuple(f'.{part}.weight' for part in ([parts] if isinstance(parts, str) else parts))
    biases = {key: f'{key.removesuffix("weight")}bias' for key in state if key.endswith(ends)}
    if any(bias in state for bias in biases.values()):
        return dict(state)
    return {**state, **{bias: state[key].new_zeros(state[key].shape[:1])
                        for key, bias in biases.items()}}


def _fold_layer_scale(state: dict[str, Tensor], layout: Layout) -> bool:
    """Replace ``gamma * (W x + b)`` by ``(gamma W) x + gamma b``; say if there was a gamma."""
    folded = False
    for scale, ours in zip(layout.scales, ('attn.proj', 'ffn.layers.1')):
        for key in [key for key in state if scale and key.endswith(f'.{scale}')]:
            gamma, module = state.pop(key), f'{key.removesuffix(scale)}{layout.parts[ours]}'
            for name, factor in ((f'{module}.weight', gamma.unsqueeze(-1)),
                                 (f'{module}.bias', gamma)):
                if name in state:  # what is missing is reported with the rest
                    state[name] = state[name] * factor
            folded = True
    return folded


def _add_dimensions(state: dict[str, Tensor], layout: Layout) -> None:
    """Bring CLIP's [cls] from ``[D]`` to ``[1, 1, D]``, and positions from ``[L, D]`` likewise."""
    for key in (layout.cls, layout.positions):
        if key in state:
            state[key] = state[key].reshape(1, -1, state[key].shape[-1])


def _even_positions(state: dict[str, Tensor], registers: int) -> bool:
    """Bring the position embedding of ``[1, L, D]`` to that of [cls] and the patches.

    timm's ViTs have positions for [cls], registers and patches, or for the patches alone.

    Returns:
        Whether a zero position for [cls] was added.
    """
    table = state['pos_embed']
    if table.ndim != 3 or _is_square(table.shape[1] - 1):
        return False
    if _is_square(table.shape[1]):
        state['pos_embed'] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
        return True
    if registers and _is_square(table.shape[1] - 1 - registers):
        state['pos_embed'] = torch.cat([table[:, :1], table[:, 1 + registers:]], dim=1)
    return False


def _is_square(number: int) -> bool:
    return number > 0 and isqrt(number)**2 == number
