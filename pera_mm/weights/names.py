"""The names of a model's tensors in every layout, one to one."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pera_mm.errors import UserError
from pera_mm.weights.fitting import Differences, short

StateDict: TypeAlias = Mapping[str, Tensor]

CENTER = 'distillation.center.value'  # of the prototype scores; the authors' files do not have it

_BLOCK = {
    'ln1': 'norm1',
    'attn.qkv': 'attn.qkv',
    'attn.proj': 'attn.proj',
    'ln2': 'norm2',
    'ffn.layers.0.0': 'mlp.fc1',
    'ffn.layers.1': 'mlp.fc2',
}


def backbone_names(depth: int) -> dict[str, str]:
    """Map our keys of a ViT backbone to timm's (and the reference's): 12 x depth + 6 pairs."""
    modules = {'patch_embed.projection': 'patch_embed.proj'}
    for i in range(depth):
        modules |= {f'layers.{i}.{ours}': f'blocks.{i}.{timm}' for ours, timm in _BLOCK.items()}
    modules['ln1'] = 'norm'
    names = {'cls_token': 'cls_token', 'pos_embed': 'pos_embed'}
    for ours, timm in modules.items():
        names |= {f'{ours}.{kind}': f'{timm}.{kind}' for kind in ('weight', 'bias')}
    return names


def pera_names(depth: int) -> dict[str, str]:
    """Map our keys of a whole model to the PerA authors', in their order: 24 x depth + 37 pairs."""
    head = [f'mlp.{i}.{kind}' for i in (0, 2, 4) for kind in ('weight', 'bias')]
    last = ['last_layer.weight_v', 'last_layer.weight_g']
    names = {'mask_token': 's_mask_token'}
    names |= {f'predictor.{key}': f'pred_head.mlp0.{key}' for key in head}
    names |= {f'predictor.{key}': f'pred_head.{key}' for key in last}
    for network in ('student', 'teacher'):
        for ours, theirs in backbone_names(depth).items():
            names[f'{network}.backbone.{ours}'] = f'{network}.backbone.{theirs}'
        names |= {f'{network}.projector.{k}': f'{network}.cls_head.{k}' for k in head + last}
    return names


def reference_to_pera(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename the PerA authors' weights to our names; every tensor is accounted for.

    Their trainer does not save the center, so ``distillation.center.value`` is not in the result.

    Args:
        state: Their file, or its ``'model'`` part.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    state = weights_of(state)
    names = {theirs: ours for ours, theirs in pera_names(_depth(state)).items()}
    return _rename(state, names, "the reference's state dict")


def pera_to_reference(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename our weights to the PerA authors' names, in their order, without the center.

    Args:
        state: A checkpoint of ours, or its ``'state_dict'`` part.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    state = {k: v for k, v in weights_of(state).items() if k != CENTER}
    return _rename(state, pera_names(_depth(state)), 'the PerA state dict')


def pera_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Extract the whole PerA model of a checkpoint under our names; every tensor is accounted for.

    Args:
        state: A checkpoint of ours or the authors' raw training file.

    Returns:
        The 24 x depth + 37 tensors, and ``distillation.center.value`` where the file has it.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    state = weights_of(state)
    if 's_mask_token' in state or any('cls_head.' in key for key in state):
        return reference_to_pera(state)
    known = [*pera_names(_depth(state)), CENTER] if CENTER in state else pera_names(_depth(state))
    return _rename(state, {key: key for key in known}, 'the PerA model')


def timm_to_backbone(state: StateDict) -> dict[str, Tensor]:
    """Rename the tensors of a timm ViT without classifier to the names of our backbone.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    names = {timm: ours for ours, timm in backbone_names(_depth(state)).items()}
    return _rename(state, names, 'the timm backbone')


def backbone_to_timm(state: StateDict) -> dict[str, Tensor]:
    """Rename our backbone to timm's names.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    return _rename(state, backbone_names(_depth(state)), 'the backbone')


_HF_BLOCK = {
    'ln1': 'layernorm_before',
    'attn.proj': 'attention.output.dense',
    'ln2': 'layernorm_after',
    'ffn.layers.0.0': 'intermediate.dense',
    'ffn.layers.1': 'output.dense',
}


def hf_names(depth: int) -> dict[str, str | tuple[str, str, str]]:
    """Map our keys to those of Hugging Face's ``ViTModel``; three for queries, keys and values.

    Files on their hub have these names, and every version of transformers reads them.
    """
    modules = {
        'patch_embed.projection': 'embeddings.patch_embeddings.projection', 'ln1': 'layernorm'}
    for i in range(depth):
        there = f'encoder.layer.{i}'
        modules |= {f'layers.{i}.{ours}': f'{there}.{hf}' for ours, hf in _HF_BLOCK.items()}
    names: dict[str, str | tuple[str, str, str]] = {
        'cls_token': 'embeddings.cls_token', 'pos_embed': 'embeddings.position_embeddings'}
    for kind in ('weight', 'bias'):
        names |= {f'{ours}.{kind}': f'{hf}.{kind}' for ours, hf in modules.items()}
        for i in range(depth):
            there = f'encoder.layer.{i}.attention.attention'
            names[f'layers.{i}.attn.qkv.{kind}'] = (
                f'{there}.query.{kind}', f'{there}.key.{kind}', f'{there}.value.{kind}')
    return names


def backbone_to_hf(state: StateDict) -> dict[str, Tensor]:
    """Rename our backbone to the names of Hugging Face's ``ViTModel``: 16 x depth + 6 tensors.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    names = hf_names(_depth(state))
    _check_names(state, names, 'the backbone')
    out: dict[str, Tensor] = {}
    for ours, hf in names.items():
        out.update({hf: state[ours]} if isinstance(hf, str) else zip(hf, state[ours].chunk(3)))
    return out


def hf_to_backbone(state: StateDict) -> dict[str, Tensor]:
    """Rename a Hugging Face ``ViTModel`` to the names of our backbone, without its pooler.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    state = {key: value for key, value in state.items() if not key.startswith('pooler.')}
    names = hf_names(_depth(state))
    flat = [key for hf in names.values() for key in ([hf] if isinstance(hf, str) else hf)]
    _check_names(state, flat, 'the Hugging Face ViT')
    return {ours: state[hf] if isinstance(hf, str) else torch.cat([state[key] for key in hf])
            for ours, hf in names.items()}


def teacher_backbone(state: Mapping[str, Any], network: str = 'teacher') -> dict[str, Tensor]:
    """Extract the teacher's backbone, which downstream tasks use (paper, section 3.2.3).

    Where queries, keys and values have no bias, as in the reference's DINO, it becomes zero.
    LayerScale, as in DINOv2, is multiplied into the layer before it. Neither changes the function.

    Args:
        state: A checkpoint of ours, the authors' raw training file, one of MMPretrain (MAE,
            MoCo v3, a classifier: its ViT is ``backbone``), or a bare backbone under our names,
            timm's or Hugging Face's.
        network: ``'teacher'`` or ``'student'``. It has no effect where there is only one backbone.

    Returns:
        The 12 x depth + 6 tensors of the backbone under our names.

    Raises:
        ValueError: If there is no such backbone, or not every tensor of it.
    """
    if network not in ('teacher', 'student'):
        raise UserError(f"network must be 'teacher' or 'student', got {network!r}.")
    state = weights_of(state)
    if 'embeddings.cls_token' in state:
        return hf_to_backbone(state)
    prefix = backbone_prefix(state, network)
    if prefix is None:
        groups = sorted({'.'.join(key.split('.')[:2]) for key in state})
        other = {'teacher': 'student', 'student': 'teacher'}[network]
        hint = f' (network={other!r} is there)' if f'{other}.backbone.cls_token' in state else ''
        raise UserError(
            f'There is no {network} backbone among the {len(state)} tensors of this checkpoint: '
            f'expected keys {network}.backbone.*, backbone.* or a bare ViT (cls_token, '
            f'pos_embed, …), found {_listed(groups)}{hint}.'
        )
    found = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    found = _without_layer_scale(_with_qkv_bias(found))
    if any(key.startswith(('blocks.', 'patch_embed.proj.')) for key in found):
        return timm_to_backbone(found)
    return _rename(found, {key: key for key in backbone_names(_depth(found))}, 'the backbone')


def backbone_prefix(state: Mapping[str, Any], network: str) -> str | None:
    """Find the prefix of the keys of a network's backbone; None if there is no such backbone."""
    prefixes = (f'{network}.backbone.', 'backbone.', '')
    return next((prefix for prefix in prefixes if f'{prefix}cls_token' in state), None)


def _with_qkv_bias(backbone: StateDict) -> dict[str, Tensor]:
    """Add zeros for the bias if no layer has one; if only some have it, the file is incomplete."""
    weights = [key for key in backbone if key.endswith('.attn.qkv.weight')]
    biases = {key: key.replace('weight', 'bias') for key in weights}
    if any(bias in backbone for bias in biases.values()):
        return dict(backbone)
    zeros = {bias: backbone[key].new_zeros(backbone[key].shape[:1])
             for key, bias in biases.items()}
    return {**backbone, **zeros}


def _without_layer_scale(backbone: StateDict) -> dict[str, Tensor]:
    """Replace ``gamma * (W x + b)`` by ``(gamma W) x + gamma b``."""
    backbone = dict(backbone)
    for gamma, layer in (('attn.gamma1.weight', 'attn.proj'), ('ffn.gamma2.weight',
                                                               'ffn.layers.1')):
        for key in [key for key in backbone if key.endswith(gamma)]:
            scale, prefix = backbone.pop(key), key.removesuffix(gamma)
            weight, bias = (f'{prefix}{layer}.{part}' for part in ('weight', 'bias'))
            backbone[weight] = backbone[weight] * scale.unsqueeze(1)
            backbone[bias] = backbone[bias] * scale
    return backbone


def weights_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Find the state dict in a file of MMEngine ('state_dict') or of the authors ('model').

    Raises:
        ValueError: If there are no weights by name.
    """
    if not isinstance(checkpoint, Mapping):
        raise UserError(f'The file holds an object of type {type(checkpoint).__name__}, not '
                        'weights by name: take a checkpoint.')
    weights = checkpoint
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), Mapping):
            weights = checkpoint[key]
            break
    if not all(isinstance(name, str) for name in weights):
        raise UserError('The file holds weights whose names are not text: take a checkpoint.')
    return weights


def _depth(state: StateDict) -> int:
    matches = (re.search(r'(?:^|\.)(?:layers?|blocks)\.(\d+)\.', key) for key in state)
    return len({match.group(1) for match in matches if match})


def _check_names(state: StateDict, names: Iterable[str], what: str) -> None:
    """Raise a UserError unless the tensors have exactly these names."""
    expected, found = set(names), set(state)
    differences = Differences(sorted(expected - found), sorted(found - expected), {})
    if differences:
        raise UserError(f'Not every tensor of {what} is accounted for: {differences}.')


def _rename(state: StateDict, names: Mapping[str, str], what: str) -> dict[str, Tensor]:
    """Rename all tensors, in the order of ``names``."""
    _check_names(state, names, what)
    return {new: state[old] for old, new in names.items()}


def _listed(keys: list[str], limit: int = 12) -> str:
    more = f' and {len(keys) - limit} more' if len(keys) > limit else ''
    return ', '.join(short(key) for key in keys[:limit]) + more if keys else 'none'
