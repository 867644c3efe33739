"""One line from any checkpoint of PerA to a plain PyTorch module, with its normalization."""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pera_mm.errors import MissingFileError, UserError
from pera_mm.export import NORMALIZATIONS, Backbone, known_heads, shape_of
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.patches import patch_grid
from pera_mm.weights.loading import load_checkpoint, read_metadata
from pera_mm.weights.names import teacher_backbone


class Features(NamedTuple):
    """What a ViT says of B images, after its final norm; D is its width."""

    cls: Tensor  # [B, D], the [cls] token
    mean: Tensor  # [B, D], the mean of the patch tokens
    grid: Tensor  # [B, D, h, w], the patch tokens where their patches lie


class NormalizedViT(nn.Module):
    """A ViT that takes images as they are, since it knows its mean and standard deviation.

    Args:
        vit: built with ``out_type='raw'``.
        mean: of red, green and blue, 0-255 units.
        std: likewise.

    Raises:
        ValueError: if mean or std are not three numbers.

    Attributes:
        width: D, of the vectors.
        patch_size: the side of a patch, pixels.
        img_size: the side of the images that it was trained on, pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vit: PerAViT, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        self.vit = vit
        for name, values in (('mean', mean), ('std', std)):
            self.register_buffer(name, _three_numbers(name, values))
        self.width: int = vit.embed_dims
        self.patch_size: int = vit.patch_size
        self.img_size: int = vit.img_size[0]

    def forward(self, images: Tensor) -> Features:
        """Compute the features of uint8 images ``[B, 3, H, W]``, RGB, 0-255.

        Any multiple of the patch size will do for H and W. Close to :attr:`img_size` is best.

        Raises:
            ValueError: for another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise UserError('images must be uint8 [B, 3, H, W], RGB, 0-255, without normalization; '
                            f'got {str(images.dtype).removeprefix("torch.")} '
                            f'{list(images.shape)}.')
        rows, columns = patch_grid(*images.shape[-2:], self.patch_size)
        tokens = self.vit((images.to(self.mean.dtype) - self.mean) / self.std)[-1]  # [B, 1 + N, D]
        patches = tokens[:, 1:]
        grid = patches.transpose(1, 2).unflatten(2, (rows, columns))
        return Features(tokens[:, 0], patches.mean(dim=1), grid)

    def fingerprint(self) -> str:
        """Compute the SHA-256 of all that the features depend on: equal functions, equal hashes.

        It takes about a second per gigabyte. The file that the weights came from does not matter.
        """
        layer = self.vit.layers[0]
        digest = hashlib.sha256(f'{layer.attn.num_heads} {layer.ln1.eps}'.encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f'{name} {list(value.shape)} {value.dtype}'.encode())
            flat = value.detach().cpu().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy())
        return digest.hexdigest()


def _three_numbers(name: str, values: Iterable[float]) -> Tensor:
    with suppress(TypeError, ValueError):
        numbers = torch.tensor([float(value) for value in values])
        if numbers.shape == (3, ) and numbers.isfinite().all():
            return numbers.view(3, 1, 1)
    raise UserError(f'the {name} of the images is {values}, but must be three numbers.')


def load_backbone(path: str | Path) -> NormalizedViT:
    """Load the teacher's ViT of any checkpoint of PerA as a plain module, in eval mode.

    Width, depth, patch and image size come from the tensors. The number of heads, mean, std and
    LayerNorm's eps come from the header of an exported file, or from the config in the checkpoint
    or beside it, which is read as data. Without these, heads are those of :class:`PerAViT`'s arch
    of this width and depth, and mean and std are ImageNet's.

    Args:
        path: a checkpoint of ours, the authors' raw training file, a file or folder that
            ``tools/weights/convert.py`` wrote, or the work folder of a training run, whose last
            checkpoint is taken.

    Raises:
        ValueError: if there is no such file, it is damaged or has no teacher, or the number of
            heads is not known.
    """
    file = _checkpoint_in(Path(path).expanduser())
    checkpoint = load_checkpoint(file)
    try:
        state = teacher_backbone(checkpoint)
        state = {key: value.detach().float() for key, value in state.items()}
        return _build(state, _facts(file, checkpoint, state))
    except UserError as error:
        raise UserError(f'{file}: {error}') from None


def _checkpoint_in(path: Path) -> Path:
    """Return a file as it is, and of a folder its last checkpoint or its ``model.safetensors``."""
    if not path.is_dir():
        return path
    pointer, exported = path / 'last_checkpoint', path / 'model.safetensors'
    if pointer.is_file():
        file = path / Path(pointer.read_text().strip()).name  # the folder may have moved
        if file.is_dir():
            raise UserError(f'{file} is sharded (FSDP or DeepSpeed): give a checkpoint in one '
                            'file.')
        return file
    if not exported.is_file():
        raise MissingFileError(f'{path} has neither last_checkpoint, as the work folder of a run, '
                               'nor model.safetensors, as an exported model: give a checkpoint.')
    return exported


def _build(state: dict[str, Tensor], facts: Mapping[str, Any]) -> NormalizedViT:
    heads = facts.get('heads') or known_heads(state)
    width = shape_of(state)['embed_dims']
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(f'the number of attention heads of this ViT of width {width} is neither in '
                        'the file nor in a config beside it: convert it first with '
                        'tools/weights/convert.py --to backbone --heads N.')
    backbone = Backbone(state, heads, 'imagenet', {})
    with torch.device('meta'):
        vit = PerAViT(backbone.arch, backbone.img_size, backbone.patch_size, out_type='raw',
                      **facts.get('vit', {}))
    vit.load_state_dict(state, assign=True)
    mean, std = facts.get('normalization') or map(_to_255, NORMALIZATIONS['imagenet'])
    return NormalizedViT(vit, mean, std).eval()


# What the tensors do not say ---------------------------------------------------------------------


def _facts(file: Path, checkpoint: Mapping[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """Return what is known: heads, normalization (mean and std, 0-255), arguments of the ViT."""
    header = read_metadata(file)
    if {'num_heads', 'mean', 'std'} <= header.keys():
        try:
            mean, std = (_to_255(json.loads(header[key])) for key in ('mean', 'std'))
            return dict(heads=int(header['num_heads']), normalization=(mean, std))
        except (TypeError, ValueError):
            raise UserError('its header is damaged (num_heads, mean or std): convert the source '
                            'again with tools/weights/convert.py.') from None
    meta = checkpoint.get('meta')
    inside = meta.get('cfg') if isinstance(meta, Mapping) else None
    for text in [inside] if isinstance(inside, str) else _texts_beside(file):
        model = _model_of(text)
        if _fits(model, state):
            return _facts_of(model)
    return {}


def _to_255(values: Iterable[float]) -> list[float]:
    return [255 * value for value in values]


def _texts_beside(file: Path) -> list[str]:
    """Read the configs that MMEngine wrote into a work folder, the newest first."""
    configs = sorted(file.parent.glob('*.py'), key=lambda path: -path.stat().st_mtime)
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


def _fits(model: dict[str, Any], state: dict[str, Tensor]) -> bool:
    """Whether a config's backbone has the sizes of these tensors."""
    arch = _arch(model)
    return bool(arch) and {**arch, **shape_of(state)} == arch


def _arch(model: dict[str, Any]) -> dict[str, Any]:
    backbone = model.get('backbone')
    arch = backbone.get('arch', 'base') if isinstance(backbone, dict) else None
    return arch if isinstance(arch, dict) else PerAViT.arch_zoo.get(str(arch), {})


def _facts_of(model: dict[str, Any]) -> dict[str, Any]:
    norm, preprocessor = model['backbone'].get('norm_cfg'), model.get('data_preprocessor')
    facts: dict[str, Any] = dict(heads=_arch(model).get('num_heads'))
    if isinstance(norm, dict) and isinstance(norm.get('eps'), float):
        facts['vit'] = dict(norm_cfg=dict(type='LN', eps=norm['eps']))
    if isinstance(preprocessor, dict) and {'mean', 'std'} <= preprocessor.keys():
        facts['normalization'] = preprocessor['mean'], preprocessor['std']
    return facts
