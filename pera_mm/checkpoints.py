"""Checkpoints: reading them safely, and translating their key names.

torch.load refuses MMEngine's checkpoints since torch 2.6, because they hold its HistoryBuffer,
numpy scalars and a pickled ``getattr``; with ``weights_only=False`` it runs whatever a file
asks for. Here an unpickler admits exactly what such checkpoints hold and refuses everything
else by name.
"""

import os
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeAlias
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import barrier
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

MMAP_FROM = 2**30  # bytes: larger files are mapped, so that eight ranks share one copy in memory

StateDict: TypeAlias = Mapping[str, Tensor]
MapLocation: TypeAlias = str | torch.device | Callable | None

# -- safe loading ---------------------------------------------------------------------------

# The methods that checkpoints hold as getattr(class, name).
_METHODS = (
    (HistoryBuffer, ('min', 'max', 'mean', 'current')),
    (OneCycleParamScheduler, ('_annealing_cos', '_annealing_linear')),
)


class _ForeignGlobalError(Exception):
    """A file asks for an object that is not admitted; the message is its name."""


def _method(owner: Any, name: str) -> Any:
    """Stands in for ``getattr``."""
    if any(owner is known and name in names for known, names in _METHODS):
        return getattr(owner, name)
    owner_name = getattr(owner, '__qualname__', type(owner).__qualname__)
    raise _ForeignGlobalError(f'getattr({owner_name}, {name!r})')


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for ``_codecs.encode``, by which protocol 2 writes the bytes of a scalar."""
    if encoding != 'latin1':
        raise _ForeignGlobalError(f'_codecs.encode to {encoding!r}')
    return text.encode(encoding)


def _admitted() -> dict[str, Any]:
    known = {
        'builtins.getattr': _method,
        'builtins.set': set,
        'collections.Counter': Counter,  # MultiStepLR's milestones
        'collections.OrderedDict': OrderedDict,
        '_codecs.encode': _encode,
        'numpy.dtype': np.dtype,
        'numpy.ndarray': np.ndarray,
        'mmengine.config.config.ConfigDict': ConfigDict,
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler': OneCycleParamScheduler,
        'torch.Size': torch.Size,
        'torch.device': torch.device,
        'torch.storage.UntypedStorage': torch.UntypedStorage,
        'torch.serialization._get_layout': torch.serialization._get_layout,
    }
    for core in ('numpy.core', 'numpy._core'):  # numpy 1 and 2
        known[f'{core}.multiarray.scalar'] = np.float64(0).__reduce__()[0]
        known[f'{core}.multiarray._reconstruct'] = np.zeros(0).__reduce__()[0]
    for name in ('tensor', 'tensor_v2', 'parameter', 'sparse_tensor'):
        known[f'torch._utils._rebuild_{name}'] = getattr(torch._utils, f'_rebuild_{name}')
    dtypes = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]
    return known | {str(dtype): dtype for dtype in dtypes}


_ADMITTED = _admitted()


def _trusted() -> dict[str, Any]:
    """What the user has admitted by ``torch.serialization.add_safe_globals``."""
    pairs = [
        item if isinstance(item, tuple) else (item, f'{item.__module__}.{item.__qualname__}')
        for item in torch.serialization.get_safe_globals()
    ]
    return {name: value for value, name in pairs}


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler (the C one cannot be stopped from setting a function's attributes)."""

    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up among what is admitted, and nowhere else."""
        full_name = f'{module}.{name}'.replace('__builtin__.', 'builtins.')
        for admitted in (_ADMITTED, _trusted()):
            if full_name in admitted:
                return admitted[full_name]
        raise _ForeignGlobalError(full_name)

    def load_build(self) -> None:
        """Set the state of an object, but never of a class or a function."""
        target = self.stack[-2]  # type: ignore[attr-defined]
        if callable(target):
            raise _ForeignGlobalError(f'new attributes for {target!r}')
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build


def _load(file: Any, **kwargs: Any) -> Any:
    return _Unpickler(file, **kwargs).load()


# What torch.load calls a pickle module; it serves its zip format and the one before.
_PICKLE = SimpleNamespace(__name__='pera_mm.checkpoints', Unpickler=_Unpickler, load=_load)


def load_checkpoint(
    path: str | Path, map_location: MapLocation = 'cpu', mmap: bool | None = None
) -> Any:
    """Read a ``torch.save`` or safetensors file without running anything that it brings.

    Args:
        path: A local file: safetensors, or torch's zip format or the older one.
        map_location: As in ``torch.load``.
        mmap: Map the tensors into memory instead of reading them (zip format only). By default
            for files of 1 GiB and more.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a whole checkpoint, or asks for a Python object that no
            checkpoint of MMEngine or of the PerA authors holds.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'There is no checkpoint {path}: check the path.')
    if _is_safetensors(path):
        return _load_safetensors(path, map_location)
    is_zip = _is_zip(path)
    if mmap is None:
        mmap = path.stat().st_size >= MMAP_FROM
    try:
        return torch.load(
            str(path),
            map_location=map_location,
            pickle_module=_PICKLE,
            weights_only=False,
            mmap=mmap and is_zip,
        )
    except _ForeignGlobalError as error:
        raise ValueError(
            f'{path} asks for the Python object {error}, which is not part of a plain checkpoint, '
            'so the file is refused and nothing of it was run: get the weights from a source you '
            'trust, or, if you trust this one, admit the object first with '
            'torch.serialization.add_safe_globals([...]).'
        ) from None
    except (
        AttributeError,
        EOFError,
        IndexError,
        KeyError,
        OverflowError,
        pickle.UnpicklingError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        # Of the RuntimeErrors only those of the reader: no memory, no GPU speak for themselves.
        if isinstance(error, RuntimeError) and not re.search('PytorchStream|EOF', str(error)):
            raise
        raise _unreadable(path, str(error)) from None


def _is_zip(path: Path) -> bool:
    """Tell torch's two formats apart and keep everything else from torch.load."""
    with path.open('rb') as file:
        start = file.read(2)
    if start == b'PK':
        try:
            records = torch._C.PyTorchFileReader(str(path)).get_all_records()
        except RuntimeError as error:
            raise _unreadable(path, str(error)) from None
        if 'constants.pkl' in records:  # torch.load would run it
            raise ValueError(
                f'{path} is a TorchScript program, not a checkpoint: save the state dict of the '
                'model with torch.save and load that.'
            )
        return True
    if not start.startswith(pickle.PROTO):
        raise _unreadable(path, 'neither a zip nor a pickle file')
    return False


def _is_safetensors(path: Path) -> bool:
    """A safetensors file starts with the length of its header and the brace of a JSON object."""
    with path.open('rb') as file:
        return file.read(9)[8:] == b'{'


def _load_safetensors(path: Path, map_location: MapLocation) -> dict[str, Tensor]:
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise _unreadable(path, str(error), 'safetensors file') from None
    if isinstance(map_location, str | torch.device):
        return {key: value.to(map_location) for key, value in state.items()}
    return state


def read_metadata(path: str | Path) -> dict[str, str]:
    """What a safetensors file says of itself; nothing for another kind of file.

    Raises:
        ValueError: If the file is a safetensors file, but not a whole one.
    """
    path = Path(path).expanduser()
    if not _is_safetensors(path):
        return {}
    try:
        with safe_open(path, 'pt') as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise _unreadable(path, str(error), 'safetensors file') from None


def _unreadable(path: Path, reason: str, kind: str = 'torch checkpoint') -> ValueError:
    size = path.stat().st_size
    return ValueError(
        f'{path} ({size:,} bytes) is not a whole {kind} '
        f'({reason.splitlines()[0] if reason else "it ends too early"}): it was cut off while '
        'being written or copied, or is something else; compare its size with the original and '
        'copy it again, or go back to the checkpoint before it.'
    )


def load_from_local(filename: str, map_location: MapLocation = None) -> Any:
    """MMEngine's loader of local files, by :func:`load_checkpoint`."""
    return load_checkpoint(filename, map_location)


def load_from_http(filename: str, map_location: MapLocation = None) -> Any:
    """Download a file once per machine, into torch.hub's cache, and load it as a local one.

    Raises:
        ValueError: If it cannot be downloaded, and as :func:`load_checkpoint`.
    """
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(filename).path).name)
    if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(filename, str(path), progress=os.isatty(0))
        except OSError as error:  # urllib's errors are OSErrors
            raise ValueError(f'{filename} could not be downloaded: {error}. Download it by other '
                             'means and give the path of the file.') from None
    barrier()
    return load_checkpoint(path, map_location)


def activate() -> None:
    """Let MMEngine's runners and initialisers load files and URLs with ours."""
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http, force=True)


CENTER = 'distillation.center'  # of the prototype scores; the authors' files do not have it

# -- key names ------------------------------------------------------------------------------

_BLOCK = {
    'ln1': 'norm1',
    'attn.qkv': 'attn.qkv',
    'attn.proj': 'attn.proj',
    'ln2': 'norm2',
    'ffn.layers.0.0': 'mlp.fc1',
    'ffn.layers.1': 'mlp.fc2',
}


def backbone_names(depth: int) -> dict[str, str]:
    """Our key → timm's key (also the reference's) of a ViT backbone: 12 x depth + 6 of them."""
    modules = {'patch_embed.projection': 'patch_embed.proj'}
    for i in range(depth):
        modules |= {f'layers.{i}.{ours}': f'blocks.{i}.{timm}' for ours, timm in _BLOCK.items()}
    modules['ln1'] = 'norm'
    names = {'cls_token': 'cls_token', 'pos_embed': 'pos_embed'}
    for ours, timm in modules.items():
        names |= {f'{ours}.{kind}': f'{timm}.{kind}' for kind in ('weight', 'bias')}
    return names


def pera_names(depth: int) -> dict[str, str]:
    """Our key → the PerA authors' key of a whole model, in their order: 24 x depth + 37."""
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
    """The PerA authors' weights under our names, every tensor accounted for.

    Their trainer does not save the centre, so ``distillation.center`` is not in the result.

    Args:
        state: Their file, or its ``'model'`` part.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    state = weights_of(state)
    names = {theirs: ours for ours, theirs in pera_names(_depth(state)).items()}
    return _rename(state, names, "the reference's state dict")


def pera_to_reference(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Our weights under the PerA authors' names, in their order; they do not keep the centre.

    Args:
        state: A checkpoint of ours, or its ``'state_dict'`` part.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    state = {k: v for k, v in weights_of(state).items() if k != CENTER}
    return _rename(state, pera_names(_depth(state)), 'the PerA state dict')


def pera_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The whole PerA model of a checkpoint under our names, every tensor accounted for.

    Args:
        state: A checkpoint of ours or the authors' raw training file.

    Returns:
        The 24 x depth + 37 tensors, and ``distillation.center`` where the file has it.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    state = weights_of(state)
    if 's_mask_token' in state or any('cls_head.' in key for key in state):
        return reference_to_pera(state)
    known = [*pera_names(_depth(state)), CENTER] if CENTER in state else pera_names(_depth(state))
    return _rename(state, {key: key for key in known}, 'the PerA model')


def timm_to_backbone(state: StateDict) -> dict[str, Tensor]:
    """A timm ViT without classifier under the names of our backbone.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    names = {timm: ours for ours, timm in backbone_names(_depth(state)).items()}
    return _rename(state, names, 'the timm backbone')


def backbone_to_timm(state: StateDict) -> dict[str, Tensor]:
    """Our backbone under timm's names.

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
    """Our key → the key of Hugging Face's ``ViTModel``; three for queries, keys and values.

    These are the names of the files on their hub, which every version of transformers reads.
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
    """Our backbone under the names of Hugging Face's ``ViTModel``: 16 x depth + 6 tensors.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    names = hf_names(_depth(state))
    _account(state, names, 'the backbone')
    out: dict[str, Tensor] = {}
    for ours, hf in names.items():
        out.update({hf: state[ours]} if isinstance(hf, str) else zip(hf, state[ours].chunk(3)))
    return out


def hf_to_backbone(state: StateDict) -> dict[str, Tensor]:
    """A Hugging Face ``ViTModel`` under the names of our backbone; its pooler is left out.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    state = {key: value for key, value in state.items() if not key.startswith('pooler.')}
    names = hf_names(_depth(state))
    flat = [key for hf in names.values() for key in ([hf] if isinstance(hf, str) else hf)]
    _account(state, flat, 'the Hugging Face ViT')
    return {ours: state[hf] if isinstance(hf, str) else torch.cat([state[key] for key in hf])
            for ours, hf in names.items()}


def teacher_backbone(state: Mapping[str, Any], network: str = 'teacher') -> dict[str, Tensor]:
    """The teacher's backbone, which is what downstream tasks use (paper, section 3.2.3).

    A ViT whose queries, keys and values have no bias, as that of the reference's DINO, gets zeros
    for it; LayerScale, as DINOv2 has it, is multiplied into the layer before it. Neither changes
    the function.

    Args:
        state: A checkpoint of ours, the authors' raw training file, one of MMPretrain (MAE,
            MoCo v3, a classifier: its ViT is ``backbone``), or a bare backbone under our names,
            timm's or Hugging Face's.
        network: ``'teacher'``, or ``'student'`` to take the other one; where there is only one
            backbone it is taken as it is.

    Returns:
        The 12 x depth + 6 tensors of the backbone under our names.

    Raises:
        ValueError: If there is no such backbone, or not every tensor of it.
    """
    if network not in ('teacher', 'student'):
        raise ValueError(f"network must be 'teacher' or 'student', got {network!r}.")
    state = weights_of(state)
    if 'embeddings.cls_token' in state:
        return hf_to_backbone(state)
    prefix = backbone_prefix(state, network)
    if prefix is None:
        groups = sorted({'.'.join(key.split('.')[:2]) for key in state})
        other = {'teacher': 'student', 'student': 'teacher'}[network]
        hint = f' (network={other!r} is there)' if f'{other}.backbone.cls_token' in state else ''
        raise ValueError(
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
    """What the keys of a network's backbone start with, or None if it is not there."""
    prefixes = (f'{network}.backbone.', 'backbone.', '')
    return next((prefix for prefix in prefixes if f'{prefix}cls_token' in state), None)


def _with_qkv_bias(backbone: StateDict) -> dict[str, Tensor]:
    """Zeros where no layer at all has the bias; where only some have it, a tensor is missing."""
    weights = [key for key in backbone if key.endswith('.attn.qkv.weight')]
    biases = {key: key.replace('weight', 'bias') for key in weights}
    if any(bias in backbone for bias in biases.values()):
        return dict(backbone)
    zeros = {bias: backbone[key].new_zeros(backbone[key].shape[:1])
             for key, bias in biases.items()}
    return {**backbone, **zeros}


def _without_layer_scale(backbone: StateDict) -> dict[str, Tensor]:
    """``gamma * (W x + b)`` as ``(gamma W) x + gamma b``."""
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
    """The state dict within a file of MMEngine ('state_dict') or of the authors ('model')."""
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), Mapping):
            return checkpoint[key]
    return checkpoint


def _depth(state: StateDict) -> int:
    matches = (re.search(r'(?:^|\.)(?:layers?|blocks)\.(\d+)\.', key) for key in state)
    return len({match.group(1) for match in matches if match})


def _account(state: StateDict, names: Iterable[str], what: str) -> None:
    expected, found = set(names), set(state)
    if expected != found:
        raise ValueError(
            f'Not every tensor of {what} is accounted for: '
            f'missing {_listed(sorted(expected - found))}; '
            f'unknown {_listed(sorted(found - expected))}.'
        )


def _rename(state: StateDict, names: Mapping[str, str], what: str) -> dict[str, Tensor]:
    """The tensors under their new names, in the order of ``names``."""
    _account(state, names, what)
    return {new: state[old] for old, new in names.items()}


def _listed(keys: list[str], limit: int = 12) -> str:
    more = f' and {len(keys) - limit} more' if len(keys) > limit else ''
    return ', '.join(keys[:limit]) + more if keys else 'none'
