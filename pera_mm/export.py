"""The writers of weights for others: a slim backbone, timm, Hugging Face, the authors' layout.

:func:`whole` gives a writer a hidden path beside the target, so that the target exists only when it
is complete and checked.
"""

import importlib.util
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import inf, isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import pera_mm
from pera_mm.errors import UserError
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.weights.facts import ACTIVATIONS
from pera_mm.weights.layouts import HF, TIMM
from pera_mm.weights.loading import load_checkpoint
from pera_mm.weights.names import pera_to_reference
from pera_mm.weights.public import find_backbone, shape_of

# RGB mean and standard deviation in 0-1 units. Every PerA config of the authors has ImageNet's; the
# same author's PerASCD uses the others with the released weights (pera_reference.md §6.3).
NORMALIZATIONS = dict(
    imagenet=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    perascd=((0.3585, 0.3741, 0.3155), (0.1483, 0.1283, 0.1198)),
    half=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # of most of timm's and Hugging Face's ViTs
    clip=((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
)
# Of a ViT whose file does not say it: without and with a norm before the layers (CLIP).
LAYER_NORM_EPS = {False: 1e-6, True: 1e-5}
# Heads of public ViTs of this width, depth and hidden width that PerAViT has no name for.
_PUBLIC_HEADS = {(1280, 32, 5120): 16, (1408, 40, 6144): 16, (1664, 48, 8192): 16}
READABLE = 0o644  # permissions: all read, the owner writes


@dataclass(frozen=True)
class Backbone:
    """A ViT under our names, with all that its tensors do not say.

    Attributes:
        state: the 12 x depth + 6 tensors, float32 (+ 7 with a norm before the layers).
        heads: of its attention.
        normalization: a name among :data:`NORMALIZATIONS`, or mean and std, 0-1.
        source: where it comes from: ``source``, ``source_sha256``, ``network``.
        activation: of its MLP, a name among :data:`pera_mm.weights.facts.ACTIVATIONS`.
        eps: of LayerNorm; None: the usual one of such a ViT.
    """

    state: dict[str, Tensor]
    heads: int
    normalization: str | tuple[Sequence[float], Sequence[float]]
    source: dict[str, str]
    activation: str = 'gelu'
    eps: float | None = None

    @property
    def arch(self) -> dict[str, int]:
        """The arch dict of :class:`PerAViT`."""
        return dict(**shape_of(self.state), num_heads=self.heads)

    @property
    def name(self) -> str:
        """The name among the archs of :class:`PerAViT`, or 'custom'."""
        return next((name for name, arch in PerAViT.arch_zoo.items() if arch == self.arch),
                    'custom')

    @property
    def patch_size(self) -> int:
        """The side of a patch, pixels."""
        return self.state['patch_embed.projection.weight'].shape[-1]

    @property
    def img_size(self) -> int:
        """The side of the images whose position embedding is stored, pixels."""
        return isqrt(self.state['pos_embed'].shape[1] - 1) * self.patch_size

    @property
    def pre_norm(self) -> bool:
        """Whether it has a norm before the layers, as CLIP."""
        return 'pre_norm.weight' in self.state

    @property
    def layer_norm_eps(self) -> float:
        """LayerNorm's eps."""
        return LAYER_NORM_EPS[self.pre_norm] if self.eps is None else self.eps

    @property
    def statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of its images, 0-1."""
        if isinstance(self.normalization, str):
            return NORMALIZATIONS[self.normalization]
        return self.normalization

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of :class:`PerAViT` beside arch, image and patch size, if it needs any."""
        options: dict[str, Any] = {}
        if self.pre_norm:
            options['pre_norm'] = True
        if self.layer_norm_eps != LAYER_NORM_EPS[False]:
            options['norm_cfg'] = dict(type='LN', eps=self.layer_norm_eps)
        if self.activation != 'gelu':
            options['layer_cfgs'] = dict(act_cfg=dict(type=ACTIVATIONS[self.activation]))
        return options

    def build(self) -> PerAViT:
        """Build the ViT in eval mode; all its tokens are ``[B, 1 + N, D]``, after the last norm."""
        with torch.device('meta'):
            vit = PerAViT(self.arch, self.img_size, self.patch_size, out_type='raw',
                          **self.options)
        vit.load_state_dict(self.state, assign=True)
        vit.eval()
        return vit

    def metadata(self) -> dict[str, str]:
        """Return all that is known of it, as strings, which safetensors requires."""
        mean, std = self.statistics
        name = self.normalization if isinstance(self.normalization, str) else 'custom'
        arch = {key: str(value) for key, value in self.arch.items()}
        return dict(
            format='pt', pera_mm=pera_mm.__version__, arch=self.name, **arch,
            patch_size=str(self.patch_size), img_size=str(self.img_size),
            layer_norm_eps=str(self.layer_norm_eps), pre_norm=str(self.pre_norm).lower(),
            activation=self.activation, normalization=name,
            mean=json.dumps(mean), std=json.dumps(std), **self.source)


def known_heads(state: Mapping[str, Tensor]) -> int | None:
    """Return the heads of a ViT of this width and depth, if all known ones have as many."""
    shape = shape_of(state)
    heads = {arch['num_heads'] for arch in PerAViT.arch_zoo.values()
             if {**shape, 'num_heads': arch['num_heads']} == arch}
    sizes = shape['embed_dims'], shape['num_layers'], shape['feedforward_channels']
    return heads.pop() if len(heads) == 1 else _PUBLIC_HEADS.get(sizes)


def usual_normalization(state: Mapping[str, Tensor]) -> str:
    """Name the mean and std of a ViT whose file does not say them."""
    return 'clip' if 'pre_norm.weight' in state else 'imagenet'


def normalization_of(mean: Iterable[float],
                     std: Iterable[float]) -> str | tuple[list[float], list[float]]:
    """Name mean and std of 0-255 units, or bring them to 0-1 if they have no name."""
    found = [round(value / 255, 6) for value in mean], [round(value / 255, 6) for value in std]
    for name, known in NORMALIZATIONS.items():
        if all(abs(a - b) < 1e-4 for pair in zip(found, known)
               for a, b in zip_longest(*pair, fillvalue=inf)):
            return name
    return found


# Complete or absent ------------------------------------------------------------------------------


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a hidden path to write a file or folder to, which becomes ``path`` if all goes well.

    After any exception, nothing of it is left, and what was at ``path`` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, old = (path.with_name(f'.{path.name}.{end}') for end in ('part', 'old'))
    _remove(part)
    try:
        yield part
        if path.is_dir():
            os.replace(path, old)  # a folder can only be renamed onto an empty one
        os.replace(part, path)
    finally:
        _remove(part)
        if old.exists() and not path.exists():
            os.replace(old, path)
        _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# Writers -----------------------------------------------------------------------------------------


def write_backbone(backbone: Backbone, path: Path) -> None:
    """Write a safetensors file under our names, with :meth:`Backbone.metadata` in its header."""
    _save_tensors(backbone.state, path, backbone)


USAGE = dict(
    backbone="""```python
backbone=dict(
    type='pera_mm.PerAViT', arch={arch}, img_size=512, patch_size={patch_size},{options}
    init_cfg=dict(type='pera_mm.PretrainedBackbone', checkpoint='{file}'))
```""",
    timm="""```python
import timm
vit = timm.create_model('local-dir:{file}', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(vit))
features = vit(transform(image)[None])  # [cls], [1, {embed_dims}]
```""",
    hf="""```python
from transformers import ViTImageProcessor, ViTModel
vit = ViTModel.from_pretrained('{file}', add_pooling_layer=False).eval()
pixels = ViTImageProcessor.from_pretrained('{file}')(image, return_tensors='pt')
features = vit(**pixels).last_hidden_state[:, 0]  # [cls], [1, {embed_dims}]
```""")


def model_card(backbone: Backbone, kind: str, name: str) -> str:
    """Return the text of the README beside the file.

    Args:
        backbone: what was written.
        kind: 'backbone', 'timm' or 'hf'.
        name: of the file or folder.
    """
    facts = backbone.metadata()
    arch = repr(facts['arch']) if facts['arch'] != 'custom' else backbone.arch
    options = ''.join(f'\n    {key}={value!r},' for key, value in backbone.options.items())
    usage = USAGE[kind].format(**facts | dict(file=name, arch=arch, options=options))
    rows = '\n'.join(f'| {key} | {value} |' for key, value in facts.items() if key != 'format')
    count = sum(value.numel() for value in backbone.state.values())
    return f"""# {name}

A Vision Transformer of {count:,} parameters, written by tools/weights/convert.py of pera_mm (PerA,
arXiv 2505.19447). It gives features; it has no classifier.

| | |
|---|---|
{rows}

Images are RGB, scaled to 0-1, then normalized by `mean` and `std`. `normalization` is the name of
these two in pera_mm: docs/weights.md says which to choose.

{usage}

The license is that of the source file.
"""


_TIMM_VITS = {1e-6: 'vit_base_patch16_224', 1e-5: 'vit_base_patch16_clip_224'}  # by eps


def write_timm(backbone: Backbone, folder: Path) -> None:
    """Write a folder for ``timm.create_model('local-dir:FOLDER', pretrained=True)``."""
    mean, std = backbone.statistics
    arch, size = backbone.arch, backbone.img_size
    if backbone.layer_norm_eps not in _TIMM_VITS:
        raise UserError(f'timm has no ViT whose LayerNorm has eps {backbone.layer_norm_eps}, as '
                        'this one: take --to backbone or hf.')
    config = dict(
        architecture=_TIMM_VITS[backbone.layer_norm_eps],  # model_args makes it this one
        num_classes=0,
        num_features=arch['embed_dims'],
        global_pool='token',
        model_args=dict(
            img_size=size, patch_size=backbone.patch_size, embed_dim=arch['embed_dims'],
            depth=arch['num_layers'], num_heads=arch['num_heads'],
            mlp_ratio=arch['feedforward_channels'] / arch['embed_dims'], num_classes=0,
            global_pool='token', pre_norm=backbone.pre_norm, act_layer=backbone.activation),
        pretrained_cfg=dict(
            input_size=[3, size, size], fixed_input_size=True, interpolation='bilinear',
            crop_pct=1.0, mean=mean, std=std, num_classes=0, first_conv='patch_embed.proj',
            classifier='head'))
    _write_folder(folder, backbone, TIMM.from_ours(backbone.state), {'config.json': config})


def write_hf(backbone: Backbone, folder: Path) -> None:
    """Write a folder for ``ViTModel.from_pretrained(FOLDER, add_pooling_layer=False)``."""
    mean, std = backbone.statistics
    arch, size = backbone.arch, backbone.img_size
    if backbone.pre_norm:
        raise UserError("Hugging Face's ViTModel has no norm before the layers, as this ViT: take "
                        '--to backbone or timm.')
    config = dict(
        architectures=['ViTModel'],
        model_type='vit',
        hidden_size=arch['embed_dims'],
        num_hidden_layers=arch['num_layers'],
        num_attention_heads=arch['num_heads'],
        intermediate_size=arch['feedforward_channels'],
        hidden_act=backbone.activation,
        layer_norm_eps=backbone.layer_norm_eps,
        qkv_bias=True,
        image_size=size,
        patch_size=backbone.patch_size,
        num_channels=3,
        encoder_stride=backbone.patch_size)
    preprocessor = dict(
        image_processor_type='ViTImageProcessor',
        do_resize=True,
        size=dict(height=size, width=size),
        resample=2,  # bilinear
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=mean,
        image_std=std)
    _write_folder(folder, backbone, HF.from_ours(backbone.state),
                  {'config.json': config, 'preprocessor_config.json': preprocessor})


def _write_folder(folder: Path, backbone: Backbone, state: Mapping[str, Tensor],
                  configs: Mapping[str, dict]) -> None:
    folder.mkdir()
    _save_tensors(state, folder / 'model.safetensors', backbone)
    for name, config in configs.items():
        (folder / name).write_text(json.dumps(config, indent=2) + '\n')


def _save_tensors(state: Mapping[str, Tensor], path: Path, backbone: Backbone) -> None:
    """Save tensors; copies those that share memory (a fused weight), which safetensors refuses."""
    alone = {key: value.clone(memory_format=torch.contiguous_format)
             if value.untyped_storage().nbytes() > value.nbytes else value.contiguous()
             for key, value in state.items()}
    save_file(alone, path, backbone.metadata())
    path.chmod(READABLE)  # safetensors makes it readable for the owner only


def write_pera(weights: Mapping[str, Tensor], path: Path, meta: Mapping[str, Any]) -> None:
    """Write a whole model in the layout of MMEngine.

    Args:
        weights: the model under our names.
        path: the file.
        meta: all else that is known: ``epoch`` (finished ones), ``source``, …
    """
    torch.save(dict(state_dict=dict(weights),
                    meta=dict(meta, pera_mm_version=pera_mm.__version__)), path)


def write_reference(weights: Mapping[str, Tensor], path: Path, epoch: int) -> None:
    """Write a training file in the authors' layout (pera_reference.md §6.1), to resume there.

    Optimizer and gradient scaler have the state before the first step, because ours differ.

    Args:
        weights: the model under our names; the center is left out, as in their files.
        path: the file.
        epoch: the last finished epoch, from 0.
    """
    model = pera_to_reference(weights)
    optimizer = torch.optim.AdamW([torch.zeros(0) for _ in model], lr=1e-3, betas=(0.9, 0.999),
                                  eps=2e-5, weight_decay=0.04)
    scaler = dict(scale=65536., growth_factor=2., backoff_factor=.5, growth_interval=2000,
                  _growth_tracker=0)
    torch.save(dict(model=model, optimizer=optimizer.state_dict(), scaler=scaler,
                    best_loss=float('nan'), epoch=epoch), path)


# Checks ------------------------------------------------------------------------------------------


@torch.no_grad()
def features(backbone: Backbone, images: Tensor) -> Tensor:
    """Compute all tokens ``[B, 1 + N, D]`` of ``[B, 3, S, S]`` after the final norm."""
    return backbone.build()(images)[-1]


@torch.no_grad()
def timm_features(folder: Path, images: Tensor) -> Tensor:
    """Compute :func:`features` with timm."""
    import timm

    vit = timm.create_model(f'local-dir:{folder}', pretrained=True)
    return vit.eval().forward_features(images)


@torch.no_grad()
def hf_features(folder: Path, images: Tensor) -> Tensor:
    """Compute :func:`features` with transformers."""
    from transformers import ViTModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    vit, found = ViTModel.from_pretrained(folder, add_pooling_layer=False,
                                          output_loading_info=True)
    if found['missing_keys'] or found['unexpected_keys'] or found['mismatched_keys']:
        raise UserError(f'{folder}: transformers did not find every tensor in its place: {found}.')
    return vit.eval()(images).last_hidden_state


def feature_difference(backbone: Backbone, kind: str, path: Path) -> float | None:
    """Compare the features of what was written with the backbone's, on a random image.

    Args:
        backbone: what was written.
        kind: 'timm', 'hf', or anything else for a file that :func:`load_checkpoint` reads.
        path: of what was written.

    Returns:
        The largest difference over the features' root mean square, or None if the library that
        reads it is not installed.
    """
    library = dict(timm='timm', hf='transformers').get(kind)
    if library and importlib.util.find_spec(library) is None:
        return None
    images = torch.randn(1, 3, backbone.img_size, backbone.img_size,
                         generator=torch.Generator().manual_seed(0))
    expected = features(backbone, images)
    if kind == 'timm':
        found = timm_features(path, images)
    elif kind == 'hf':
        found = hf_features(path, images)
    else:
        state = find_backbone(load_checkpoint(path)).state
        found = features(replace(backbone, state=state), images)
    return float((found - expected).abs().max() / expected.square().mean().sqrt())
