"""One line from any checkpoint of PerA to a plain PyTorch module, with its normalization."""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pera_mm.errors import UserError
from pera_mm.export import NORMALIZATIONS, Backbone, known_heads, usual_normalization
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.patches import patch_grid
from pera_mm.weights.facts import Facts, read_facts
from pera_mm.weights.loading import file_of, load_checkpoint
from pera_mm.weights.public import Found, find_backbone, shape_of


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
        tokens = self.vit(self.normalize(images))[-1]  # [B, 1 + N, D]
        patches = tokens[:, 1:]
        grid = patches.transpose(1, 2).unflatten(2, (rows, columns))
        return Features(tokens[:, 0], patches.mean(dim=1), grid)

    def normalize(self, images: Tensor) -> Tensor:
        """Bring uint8 RGB ``[B, 3, H, W]`` to the mean and deviation that the ViT expects."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def fingerprint(self) -> str:
        """Compute the SHA-256 of all that the features depend on: equal functions, equal hashes.

        It takes about a second per gigabyte. The file that the weights came from does not matter.
        """
        layer = self.vit.layers[0]
        facts = [layer.attn.num_heads, layer.ln1.eps]
        if not isinstance(activation := layer.ffn.layers[0][1], nn.GELU):
            facts.append(type(activation).__name__)
        digest = hashlib.sha256(' '.join(map(str, facts)).encode())
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
    """Load the teacher's ViT of any checkpoint, or a public ViT, as a plain module, in eval mode.

    Width, depth, patch and image size come from the tensors. The number of heads, mean, std,
    LayerNorm's eps and the activation come from the header of an exported file, or from the config
    in the checkpoint or beside it, which is read as data. Without these, heads are those of the
    only known ViT of this width and depth, and mean and std are ImageNet's, or CLIP's.

    Args:
        path: a checkpoint of ours, the authors' raw training file, a ViT in a layout that
            :mod:`pera_mm.weights.public` knows, or a folder: one that
            ``tools/weights/convert.py``, timm or Hugging Face wrote, or the work folder of a
            training run, whose last checkpoint is taken.

    Raises:
        ValueError: if there is no such file, it is damaged, has no teacher or a ViT that PerAViT
            cannot express, or the number of heads or the activation is not known.
    """
    file = file_of(path)
    return backbone_of(load_checkpoint(file), file)


def backbone_of(checkpoint: Mapping[str, Any], file: Path) -> NormalizedViT:
    """Do what :func:`load_backbone` does, with a checkpoint that is loaded.

    Args:
        checkpoint: the content of the file; the ViT shares its float32 tensors.
        file: where it is; configs beside it are read.

    Raises:
        ValueError: as :func:`load_backbone`.
    """
    try:
        found, facts = find_with_facts(file, checkpoint)
        width = shape_of(found.state)['embed_dims']
        if not isinstance(facts.heads, int) or facts.heads < 1 or width % facts.heads:
            raise UserError(f'the number of attention heads of this ViT of width {width} is '
                            'neither in the file nor in a config beside it: convert it first with '
                            'tools/weights/convert.py --to backbone --heads N.')
        if facts.activation is None:
            raise UserError('the activation of this CLIP, gelu or quick_gelu, is neither in the '
                            'file nor in a config beside it: convert it first with '
                            'tools/weights/convert.py --to backbone --activation NAME.')
        vit = Backbone(found.state, facts.heads, 'imagenet', {}, facts.activation,
                       facts.eps).build()
        mean, std = facts.statistics or [
            [255 * value for value in values]
            for values in NORMALIZATIONS[usual_normalization(found.state)]]
        return NormalizedViT(vit, mean, std).eval()
    except UserError as error:
        raise UserError(f'{file}: {error}') from None


def find_with_facts(file: Path, checkpoint: Mapping[str, Any],
                    network: str = 'teacher') -> tuple[Found, Facts]:
    """Find the ViT of a checkpoint, float32, and what its tensors do not say.

    Args:
        file: where the checkpoint is; configs beside it are read.
        checkpoint: its content.
        network: 'teacher' or 'student'.

    Returns:
        The ViT; and its facts, with the heads of a known ViT of this width and depth, and GELU
        unless it is a CLIP, which may have either activation.

    Raises:
        ValueError: if there is no teacher, a ViT that PerAViT cannot express, or a damaged header.
    """
    found = find_backbone(checkpoint, network)
    state = {key: value.detach().float() for key, value in found.state.items()}
    facts = read_facts(file, checkpoint, shape_of(state))
    usual = None if 'pre_norm.weight' in state else 'gelu'
    return found._replace(state=state), replace(
        facts, heads=facts.heads or known_heads(state), activation=facts.activation or usual)
