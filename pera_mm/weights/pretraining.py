"""What the file of a pre-training holds besides one backbone: the painter, and both networks."""

import ast
from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pera_mm.errors import UserError
from pera_mm.registry import MODELS
from pera_mm.weights.backbone import NormalizedViT, backbone_of
from pera_mm.weights.facts import config_texts, config_texts_in
from pera_mm.weights.loading import file_of, load_checkpoint
from pera_mm.weights.names import CENTER, MLP_PREDICTOR, pera_weights, weights_of
from pera_mm.weights.public import find_backbone

MOMENTUM_ENCODER = 'momentum_encoder.module.0.'  # MoCo v3's teacher in MMPretrain
PREDICTORS = {'predictor.last_layer.weight_v', 'pred_head.last_layer.weight_v',  # ours, theirs
              *MLP_PREDICTOR}


class MaskRatios(NamedTuple):
    """The shares of a crop's patches that the student of a run sees and paints."""

    student: float = 0.2
    learnable: float = 0.2


class Pair(NamedTuple):
    """The two networks of a pre-training."""

    student: NormalizedViT
    teacher: NormalizedViT


def load_painter(path: str | Path) -> nn.Module:
    """Load a whole PerA with its predictor, in eval mode.

    Its sizes come from the tensors; heads, mean and std as for
    :func:`~pera_mm.weights.backbone.load_backbone`.

    Args:
        path: a checkpoint of ours, the authors' raw training file, or a run's work folder.

    Raises:
        ValueError: if the file has no predictor, or not every tensor of a PerA.
    """
    file = file_of(path)
    checkpoint = load_checkpoint(file)
    backbone = backbone_of(checkpoint, file)
    if not PREDICTORS & weights_of(checkpoint).keys():
        raise UserError(f'{file} has no predictor, so it can paint no pixels: give a '
                        'checkpoint of a pre-training by PerA with pixel prediction, or the '
                        "authors' training file.")
    try:
        state = pera_weights(checkpoint)
    except UserError as error:
        raise UserError(f'{file}: {error}') from None
    state = {name: value.detach().float() for name, value in state.items()}
    scores = 'student.projector.last_layer.weight_g'
    state.setdefault(CENTER, torch.zeros(1, len(state[scores])))  # it has no part in painting
    with torch.device('meta'):
        model = MODELS.build(_config(state, backbone.vit))
    # Their eps, activation and norm before the layers are not in the config above.
    model.teacher.backbone, model.student.backbone = backbone.vit, deepcopy(backbone.vit)
    model.load_state_dict(state, assign=True)
    model.data_preprocessor = MODELS.build(dict(
        type='pera_mm.CropPreprocessor', mean=backbone.mean.flatten().tolist(),
        std=backbone.std.flatten().tolist()))
    return model.requires_grad_(False).eval()


def _config(state: Mapping[str, torch.Tensor], vit: nn.Module) -> dict[str, Any]:
    """Describe the PerA that has these tensors."""
    mlp = state['student.backbone.layers.0.ffn.layers.1.weight']
    arch = dict(embed_dims=vit.embed_dims, num_layers=len(vit.layers),
                num_heads=vit.layers[0].attn.num_heads, feedforward_channels=mlp.shape[1])

    def head(kind: str, prefix: str) -> dict[str, Any]:
        last = state[f'{prefix}.last_layer.weight_v']
        return dict(type=f'pera_mm.{kind}', bottleneck_channels=last.shape[1],
                    hidden_channels=len(state[f'{prefix}.mlp.0.weight']))

    if MLP_PREDICTOR <= state.keys():
        predictor = dict(type='pera_mm.MLPPixelHead',
                         hidden_channels=len(state['predictor.hidden.weight']))
    else:
        predictor = head('PixelHead', 'predictor')
    prototypes = len(state['student.projector.last_layer.weight_g'])
    return dict(
        type='pera_mm.PerA',
        backbone=dict(type='pera_mm.PerAViT', arch=arch, img_size=vit.img_size,
                      patch_size=vit.patch_size),
        projector=dict(head('PrototypeHead', 'student.projector'), num_prototypes=prototypes),
        predictor=predictor,
        distillation=dict(type='pera_mm.DistillationLoss'), pixel=dict(type='pera_mm.PixelLoss'))


def load_pair(path: str | Path) -> Pair:
    """Load student and teacher of a pre-training by PerA, DINO, DINOv2 or MoCo v3.

    Args:
        path: as for :func:`load_painter`.

    Raises:
        ValueError: if the file does not hold both.
    """
    file = file_of(path)
    checkpoint = load_checkpoint(file)
    loaded = backbone_of(checkpoint, file)
    weights = weights_of(checkpoint)
    momentum = {name.removeprefix(MOMENTUM_ENCODER): value for name, value in weights.items()
                if name.startswith(MOMENTUM_ENCODER)}
    if momentum:
        return Pair(loaded, _with_weights(loaded, momentum))
    if all(isinstance(checkpoint.get(name), Mapping) or f'{name}.backbone.cls_token' in weights
           for name in Pair._fields):
        return Pair(_with_weights(loaded, checkpoint, 'student'), loaded)
    raise UserError(f'{file} does not hold a student and a teacher: give a checkpoint of a '
                    'pre-training by PerA, DINO, DINOv2 or MoCo v3, not a backbone, a classifier '
                    'or an MAE.')


def _with_weights(model: NormalizedViT, checkpoint: Mapping[str, Any],
                  network: str = 'teacher') -> NormalizedViT:
    """Return a copy of a ViT with the weights of a network of the checkpoint."""
    other = deepcopy(model)
    state = find_backbone(checkpoint, network).state
    other.vit.load_state_dict({name: value.float() for name, value in state.items()})
    return other


def mask_ratios(path: str | Path) -> MaskRatios | None:
    """Read the shares of ``DisjointMask`` from the config in a checkpoint or beside it, as data.

    Args:
        path: a checkpoint, or a run's work folder.

    Returns:
        None if there is no config with such a mask.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = _ratios_in(config_texts_in(path))
        if found is not None or not (path / 'last_checkpoint').is_file():
            return found
        path = file_of(path)
    return _ratios_in(config_texts(load_checkpoint(path), path.parent))


def _ratios_in(texts: Iterable[str]) -> MaskRatios | None:
    for text in texts:
        with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            for node in ast.walk(ast.parse(text)):
                step = _fields(node)
                if str(step.get('type')).rpartition('.')[2] == 'DisjointMask':
                    shares = {name: float(step[name]) for name in MaskRatios._fields
                              if name in step}
                    return MaskRatios(**shares)
    return None


def _fields(node: ast.AST) -> dict[str, Any]:
    """Return the constants of ``dict(name=constant, ...)`` or ``{'name': constant, ...}``."""
    found: list[tuple[Any, ast.expr]]
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=pairs):
            found = [(pair.arg, pair.value) for pair in pairs]
        case ast.Dict(keys=keys, values=values):
            found = [(key.value if isinstance(key, ast.Constant) else None, value)
                     for key, value in zip(keys, values)]
        case _:
            return {}
    return {str(name): value.value for name, value in found if isinstance(value, ast.Constant)}
