"""What the tensors of a ViT do not say: heads, LayerNorm's eps, activation, mean and std."""

import ast
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pera_mm.errors import UserError, printable
from pera_mm.registry import MODELS
from pera_mm.weights.loading import read_metadata

ACTIVATIONS = dict(gelu='GELU', quick_gelu='mmpretrain.QuickGELU')  # by Hugging Face's name
# transformers' own values of a model's type, which a config.json may leave out: eps, activation.
_HF_DEFAULTS = {
    'vit': (1e-12, 'gelu'), 'deit': (1e-12, 'gelu'), 'vit_mae': (1e-12, 'gelu'),
    'vit_msn': (1e-6, 'gelu'), 'dinov2': (1e-6, 'gelu'), 'dinov2_with_registers': (1e-6, 'gelu'),
    'clip_vision_model': (1e-5, 'quick_gelu')}


@dataclass(frozen=True)
class Facts:
    """What is known of a ViT beside its tensors; None: unknown.

    Attributes:
        heads: of the attention.
        eps: of LayerNorm.
        activation: of the MLP, a name among :data:`ACTIVATIONS`.
        statistics: mean and standard deviation of the images, 0-255 units, one of each a channel.
    """

    heads: Any = None
    eps: float | None = None
    activation: str | None = None
    statistics: tuple[Iterable[float], Iterable[float]] | None = None


def read_facts(file: Path, checkpoint: Mapping[str, Any], shape: Mapping[str, int]) -> Facts:
    """Read the facts of a file of weights; nothing of it is run.

    They come from the header of an exported file, or from the config in the checkpoint, a config
    of MMEngine beside it, or config.json and preprocessor_config.json of timm, Hugging Face or
    open_clip beside it. A config of another ViT is passed over.

    Args:
        file: as it was loaded; it need not exist any more.
        checkpoint: its content.
        shape: of the ViT in it, by :func:`pera_mm.weights.public.shape_of`.

    Raises:
        ValueError: if the header is damaged, or the ViT has an activation that PerAViT lacks.
    """
    header = read_metadata(file) if file.is_file() else {}
    if {'num_heads', 'mean', 'std'} <= header.keys():
        return _of_header(header)
    for text in config_texts(checkpoint, file.parent):
        model = _model_of(text)
        if (arch := _arch(model)) and {**arch, **shape} == arch:
            return _of_model(model)
    return _of_json(file.parent, shape['embed_dims'], shape['num_layers'])


def mismatches(facts: Facts, vit: Any) -> list[str]:
    """Compare the facts of a file with a ViT that takes its tensors.

    Returns:
        What the ViT has otherwise, where the function changes only a little.

    Raises:
        ValueError: if it has other heads or another activation.
    """
    layer = vit.layers[0]
    if facts.heads not in (None, layer.attn.num_heads):
        raise UserError(f'its attention has {facts.heads} heads, that of the config '
                        f'{layer.attn.num_heads}: set num_heads of arch to {facts.heads}.')
    activation = 'gelu' if isinstance(layer.ffn.layers[0][1], nn.GELU) else 'quick_gelu'
    if facts.activation not in (None, activation):
        raise UserError(
            f'its activation is {facts.activation}, that of the config {activation}: give the ViT '
            f"layer_cfgs=dict(act_cfg=dict(type='{ACTIVATIONS[facts.activation]}')).")
    if facts.eps in (None, layer.ln1.eps):
        return []
    return [f'its LayerNorm has eps {facts.eps}, that of the config {layer.ln1.eps} '
            '(norm_cfg of the ViT)']


def _of_header(header: Mapping[str, str]) -> Facts:
    """Read the header that tools/weights/convert.py wrote."""
    try:
        mean, std = ([255 * value for value in json.loads(header[key])] for key in ('mean', 'std'))
        eps = float(header.get('layer_norm_eps', 1e-6))
        return Facts(int(header['num_heads']), eps, header.get('activation', 'gelu'), (mean, std))
    except (TypeError, ValueError):
        raise UserError('its header is damaged (num_heads, layer_norm_eps, mean or std): convert '
                        'the source again with tools/weights/convert.py.') from None


# Configs of MMEngine ----------------------------------------------------------------------------


def config_texts(checkpoint: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the text of the config in a checkpoint, or of those in the folder that it lies in."""
    meta = checkpoint.get('meta')
    inside = meta.get('cfg') if isinstance(meta, Mapping) else None
    return [inside] if isinstance(inside, str) else config_texts_in(folder)


def config_texts_in(folder: Path) -> list[str]:
    """Read the configs that MMEngine wrote into a work folder, the newest first."""
    configs = sorted(folder.glob('*.py'), key=lambda path: -path.stat().st_mtime)
    return [path.read_text(errors='replace') for path in configs]


def _model_of(text: str) -> dict[str, Any]:
    """Read ``model = dict(...)`` of a config's text; nothing of it is run."""
    with suppress(SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        for statement in ast.parse(text).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id='model')], value=value):
                    model = _literal(value)
                    return model if isinstance(model, dict) else {}
    return {}


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=pairs):
            return {pair.arg: _literal(pair.value) for pair in pairs}
        case ast.Dict(keys=keys, values=values):
            return {ast.literal_eval(key): _literal(value) for key, value in zip(keys, values)
                    if key is not None}
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
    return ast.literal_eval(node)


def _vit(model: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the ViT, which in downstream tasks may be inside an adapter."""
    backbone = model.get('backbone')
    backbone = backbone if isinstance(backbone, dict) else {}
    return backbone['vit'] if isinstance(backbone.get('vit'), dict) else backbone


def _arch(model: dict[str, Any]) -> dict[str, Any]:
    vit = _vit(model)
    arch = vit.get('arch', 'base') if vit else None
    zoo = MODELS.get('PerAViT').arch_zoo  # by name: the ViT's module imports this one
    return arch if isinstance(arch, dict) else zoo.get(str(arch), {})


def _of_model(model: dict[str, Any]) -> Facts:
    vit, preprocessor = _vit(model), model.get('data_preprocessor')
    norm, layers = vit.get('norm_cfg'), vit.get('layer_cfgs')
    eps = norm.get('eps') if isinstance(norm, dict) else None
    statistics = None
    if isinstance(preprocessor, dict) and {'mean', 'std'} <= preprocessor.keys():
        statistics = preprocessor['mean'], preprocessor['std']
    activation = layers.get('act_cfg') if isinstance(layers, dict) else None
    kind = str(activation.get('type')) if isinstance(activation, dict) else 'GELU'
    return Facts(_arch(model).get('num_heads'), eps if isinstance(eps, float) else None,
                 'quick_gelu' if 'QuickGELU' in kind else 'gelu', statistics)


# config.json of others --------------------------------------------------------------------------


def _of_json(folder: Path, width: int, depth: int) -> Facts:
    config = _json(folder / 'config.json')
    if isinstance(config.get('architecture'), str):
        return _of_timm(config, width)
    if config:
        return _of_hugging_face(config, _json(folder / 'preprocessor_config.json'), width, depth)
    return _of_open_clip(_json(folder / 'open_clip_config.json'), width, depth)


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}
    return {}


def _inner(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    inner = config.get(name)
    return inner if isinstance(inner, dict) else {}


def _of_timm(config: Mapping[str, Any], width: int) -> Facts:
    """Read timm's; its ViTs have one eps each with and without a norm before the layers."""
    if config.get('num_features', width) != width:
        return Facts()
    args, statistics = _inner(config, 'model_args'), _inner(config, 'pretrained_cfg')
    quick = 'quickgelu' in config['architecture'] or args.get('act_layer') == 'quick_gelu'
    return Facts(args.get('num_heads'), None, 'quick_gelu' if quick else 'gelu',
                 _statistics(statistics.get('mean'), statistics.get('std')))


def _of_hugging_face(config: Mapping[str, Any], preprocessor: Mapping[str, Any], width: int,
                     depth: int) -> Facts:
    kind = config.get('model_type')
    if kind == 'clip':
        config, kind = _inner(config, 'vision_config'), 'clip_vision_model'
    if kind not in _HF_DEFAULTS or (config.get('hidden_size', 768),
                                    config.get('num_hidden_layers', 12)) != (width, depth):
        return Facts()
    eps, activation = _HF_DEFAULTS[kind]
    activation = config.get('hidden_act', activation)
    if activation not in ACTIVATIONS:
        raise UserError(f'its activation is {printable(str(activation))[:40]}, and PerAViT has '
                        f'{" and ".join(ACTIVATIONS)}.')
    statistics = _statistics(preprocessor.get('image_mean'), preprocessor.get('image_std'))
    eps = config.get('layer_norm_eps', eps)
    return Facts(config.get('num_attention_heads', 12), eps if isinstance(eps, float) else None,
                 activation, statistics)


def _of_open_clip(config: Mapping[str, Any], width: int, depth: int) -> Facts:
    model, images = _inner(config, 'model_cfg'), _inner(config, 'preprocess_cfg')
    vision = _inner(model, 'vision_cfg')
    if (vision.get('width'), vision.get('layers')) != (width, depth):
        return Facts()
    head = vision.get('head_width', 64)
    return Facts(width // head if isinstance(head, int) and head > 0 else None, 1e-5,
                 'quick_gelu' if model.get('quick_gelu') else 'gelu',
                 _statistics(images.get('mean'), images.get('std')))


def _statistics(mean: Any, std: Any) -> tuple[list[float], list[float]] | None:
    """Bring mean and std from 0-1 to 0-255 units."""
    if not (isinstance(mean, list) and isinstance(std, list)):
        return None
    with suppress(TypeError):
        return [255 * value for value in mean], [255 * value for value in std]
    return None

