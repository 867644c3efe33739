"""The names of a whole model's tensors, ours and the PerA authors', one to one."""

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from pera_mm.errors import UserError
from pera_mm.weights.layouts import TIMM, check_names

StateDict: TypeAlias = Mapping[str, Tensor]

MLP_PREDICTOR = {f'predictor.{layer}.{kind}' for layer in ('hidden', 'output')
                 for kind in ('weight', 'bias')}  # an MLPPixelHead, which the authors do not have
CENTER = 'distillation.center.value'  # of the prototype scores; the authors' files do not have it


def pera_names(depth: int, pre_norm: bool = False) -> dict[str, str]:
    """Map our keys of a whole model to the PerA authors', in their order: 24 x depth + 37 pairs.

    Two more if the backbones have a norm before the layers, as CLIP's have.
    """
    head = [f'mlp.{i}.{kind}' for i in (0, 2, 4) for kind in ('weight', 'bias')]
    last = ['last_layer.weight_v', 'last_layer.weight_g']
    names = {'mask_token': 's_mask_token'}
    names |= {f'predictor.{key}': f'pred_head.mlp0.{key}' for key in head}
    names |= {f'predictor.{key}': f'pred_head.{key}' for key in last}
    for network in ('student', 'teacher'):
        for ours, theirs in TIMM.names(depth, pre_norm).items():
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
    names = {theirs: ours for ours, theirs in _names_for(state).items()}
    return _rename(state, names, "the reference's state dict")


def pera_to_reference(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename our weights to the PerA authors' names, in their order, without the center.

    Args:
        state: A checkpoint of ours, or its ``'state_dict'`` part.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    state = {k: v for k, v in weights_of(state).items() if k != CENTER}
    if MLP_PREDICTOR <= state.keys():
        raise UserError("this PerA paints with an MLPPixelHead, which the authors' code does not "
                        'have: convert its teacher alone.')
    return _rename(state, _names_for(state), 'the PerA state dict')


def pera_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Extract the whole PerA model of a checkpoint under our names; every tensor is accounted for.

    Args:
        state: A checkpoint of ours or the authors' raw training file.

    Returns:
        The 24 x depth + 37 tensors (33 with an ``MLPPixelHead``), and
        ``distillation.center.value`` where the file has it.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    state = weights_of(state)
    if 's_mask_token' in state or any('cls_head.' in key for key in state):
        return reference_to_pera(state)
    known = [*_names_for(state), CENTER] if CENTER in state else list(_names_for(state))
    if MLP_PREDICTOR <= state.keys():
        known = [key for key in known if not key.startswith('predictor.')] + sorted(MLP_PREDICTOR)
    return _rename(state, {key: key for key in known}, 'the PerA model')


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


def _names_for(state: StateDict) -> dict[str, str]:
    matches = (re.search(r'(?:^|\.)(?:layers?|blocks)\.(\d+)\.', key) for key in state)
    depth = len({match.group(1) for match in matches if match})
    return pera_names(depth, any('backbone.pre_norm.' in key or 'backbone.norm_pre.' in key
                                 for key in state))


def _rename(state: StateDict, names: Mapping[str, str], what: str) -> dict[str, Tensor]:
    """Rename all tensors, in the order of ``names``."""
    check_names(state, names, what)
    return {new: state[old] for old, new in names.items()}

