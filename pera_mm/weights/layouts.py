"""The names of a ViT's tensors in our layout and in those of others, one to one."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pera_mm.errors import UserError
from pera_mm.weights.fitting import Differences

Names = Mapping[str, str | tuple[str, ...]]
KINDS = ('weight', 'bias')


@dataclass(frozen=True)
class Layout:
    """How one library names the tensors of a ViT, against our names.

    A module's name with ``{}`` has the kind of tensor there, not after a dot.

    Attributes:
        title: what has this layout, for messages.
        cls: the key of [cls].
        positions: the key of the position embedding.
        modules: the modules beside the layers: patch embedding, final norm, norm before the layers.
        layer: the prefix of layer ``{}``.
        parts: the modules of a layer; three where queries, keys and values are apart.
        scales: LayerScale's keys of a layer: of the attention, and of the MLP.
    """

    title: str
    cls: str
    positions: str
    modules: Mapping[str, str]
    layer: str
    parts: Names
    scales: tuple[str, str] = ('', '')

    def depth(self, keys: Iterable[str]) -> int:
        """Count the layers that some key belongs to."""
        pattern = re.compile(re.escape(self.layer).replace(r'\{\}', r'(\d+)') + r'\.')
        return len({match.group(1) for match in map(pattern.match, keys) if match})

    def has_pre_norm(self, keys: Iterable[str]) -> bool:
        """Whether there is a norm before the layers, as in CLIP."""
        norm = self.modules.get('pre_norm')
        return norm is not None and f'{norm}.weight' in keys

    def names(self, depth: int, pre_norm: bool = False) -> Names:
        """Map our keys to theirs: 12 x depth + 6, or 12 x depth + 7 with a norm before the layers.

        With that norm, the patch embedding has no bias.
        """
        names: dict[str, str | tuple[str, ...]] = {
            'cls_token': self.cls, 'pos_embed': self.positions}
        for ours, theirs in self._modules(depth):
            if pre_norm or ours != 'pre_norm':
                names |= {f'{ours}.{kind}': _key(theirs, kind) for kind in KINDS}
        if pre_norm:
            del names['patch_embed.projection.bias']
        return names

    def _modules(self, depth: int) -> Iterator[tuple[str, str | tuple[str, ...]]]:
        """List the modules in their order: before the layers, the layers, the final norm."""
        outer = dict(self.modules)
        last = outer.pop('ln1')
        yield from outer.items()
        for index in range(depth):
            there = self.layer.format(index)
            for ours, parts in self.parts.items():
                inside = (f'{there}.{parts}' if isinstance(parts, str)
                          else tuple(f'{there}.{part}' for part in parts))
                yield f'layers.{index}.{ours}', inside
        yield 'ln1', last

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a ViT to our names; every tensor is accounted for.

        Raises:
            ValueError: If a key is missing or unknown.
        """
        names = self.names(self.depth(state), self.has_pre_norm(state))
        flat = [key for theirs in names.values()
                for key in ([theirs] if isinstance(theirs, str) else theirs)]
        check_names(state, flat, self.title)
        return {ours: state[theirs] if isinstance(theirs, str)
                else torch.cat([state[key] for key in theirs]) for ours, theirs in names.items()}

    def from_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a ViT of ours to these names.

        Raises:
            ValueError: If a key is missing or unknown.
        """
        names = self.names(OURS.depth(state), OURS.has_pre_norm(state))
        check_names(state, names, OURS.title)
        out: dict[str, Tensor] = {}
        for ours, theirs in names.items():
            out.update({theirs: state[ours]} if isinstance(theirs, str)
                       else zip(theirs, state[ours].chunk(len(theirs))))
        return out


def _key(module: str | tuple[str, ...], kind: str) -> str | tuple[str, ...]:
    if isinstance(module, tuple):
        return tuple(f'{part}.{kind}' for part in module)
    return module.format(kind) if '{}' in module else f'{module}.{kind}'


def check_names(state: Iterable[str], names: Iterable[str], what: str) -> None:
    """Raise a UserError unless the tensors have exactly these names."""
    expected, found = set(names), set(state)
    differences = Differences(sorted(expected - found), sorted(found - expected), {})
    if differences:
        raise UserError(f'Not every tensor of {what} is accounted for: {differences}.')


_OWN_PARTS = ('ln1', 'attn.qkv', 'attn.proj', 'ln2', 'ffn.layers.0.0', 'ffn.layers.1')


def _parts(*theirs: str | tuple[str, ...]) -> Names:
    return dict(zip(_OWN_PARTS, theirs, strict=True))


def _three(prefix: str, *parts: str) -> tuple[str, ...]:
    return tuple(prefix + part for part in parts)


OURS = Layout(
    'the backbone', 'cls_token', 'pos_embed',
    {'patch_embed.projection': 'patch_embed.projection', 'pre_norm': 'pre_norm', 'ln1': 'ln1'},
    'layers.{}', _parts(*_OWN_PARTS), ('attn.gamma1.weight', 'ffn.gamma2.weight'))

# Also of the PerA authors, DINO, DINOv2 and MAE.
TIMM = Layout(
    'the timm backbone', 'cls_token', 'pos_embed',
    {'patch_embed.projection': 'patch_embed.proj', 'pre_norm': 'norm_pre', 'ln1': 'norm'},
    'blocks.{}', _parts('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2'),
    ('ls1.gamma', 'ls2.gamma'))

# Files on Hugging Face's hub have these names, and every version of transformers reads and writes
# them: ViT, DeiT, MAE and MSN.
_QKV = _three('attention.attention.', 'query', 'key', 'value')
_HF_MODULES = {
    'patch_embed.projection': 'embeddings.patch_embeddings.projection', 'ln1': 'layernorm'}
HF = Layout(
    'the Hugging Face ViT', 'embeddings.cls_token', 'embeddings.position_embeddings', _HF_MODULES,
    'encoder.layer.{}', _parts('layernorm_before', _QKV, 'attention.output.dense',
                               'layernorm_after', 'intermediate.dense', 'output.dense'))
HF_DINOV2 = Layout(
    'the Hugging Face DINOv2', HF.cls, HF.positions, _HF_MODULES, HF.layer,
    _parts('norm1', _QKV, 'attention.output.dense', 'norm2', 'mlp.fc1', 'mlp.fc2'),
    ('layer_scale1.lambda1', 'layer_scale2.lambda1'))
HF_CLIP = Layout(
    'the Hugging Face CLIP', 'embeddings.class_embedding', 'embeddings.position_embedding.weight',
    {'patch_embed.projection': 'embeddings.patch_embedding', 'pre_norm': 'pre_layrnorm',
     'ln1': 'post_layernorm'}, 'encoder.layers.{}',
    _parts('layer_norm1', _three('self_attn.', 'q_proj', 'k_proj', 'v_proj'), 'self_attn.out_proj',
           'layer_norm2', 'mlp.fc1', 'mlp.fc2'))
OPEN_CLIP = Layout(
    'the CLIP of OpenAI or open_clip', 'class_embedding', 'positional_embedding',
    {'patch_embed.projection': 'conv1', 'pre_norm': 'ln_pre', 'ln1': 'ln_post'},
    'transformer.resblocks.{}',
    _parts('ln_1', 'attn.in_proj_{}', 'attn.out_proj', 'ln_2', 'mlp.c_fc', 'mlp.c_proj'))
