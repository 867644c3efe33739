"""The patch and position embeddings of a ViT, resampled to those of another size."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor

PATCHES, POSITIONS = 'patch_embed.projection.weight', 'pos_embed'


def resample_patches(weight: Tensor, size: int) -> Tensor:
    """Resample the convolution of a patch embedding, so that its tokens stay about the same.

    With ``B`` the matrix that resizes a patch, the new weights are ``pinv(B^T) w``: a patch ``x``
    and a resized patch ``B x`` then give the same token where that is possible, always if patches
    become larger ("FlexiViT", arXiv 2212.08013, section 3.4).

    Args:
        weight: ``[D, C, p, p]``.
        size: the new side of a patch, pixels.

    Returns:
        ``[D, C, size, size]``.
    """
    old = weight.shape[-2:]
    ones = torch.eye(old.numel(), device=weight.device).view(-1, 1, *old)
    resized = F.interpolate(ones, (size, size), mode='bicubic', antialias=True)
    inverse = torch.linalg.pinv(resized.flatten(1).double())  # of B^T; [size^2, p^2]
    found = weight.flatten(2).double() @ inverse.t()
    return found.unflatten(2, (size, size)).to(weight.dtype)


def resize_embeddings(state: Mapping[str, Any], vit: Any) -> tuple[dict[str, Any], list[str]]:
    """Bring the patch and position embeddings of a file to the sizes of a ViT.

    What cannot be brought there (another width, patches or a grid that are not square) stays.

    Args:
        state: a backbone under our names.
        vit: the :class:`~pera_mm.models.backbones.pera_vit.PerAViT` that takes it.

    Returns:
        The tensors, and what was done, in words.
    """
    state, said = dict(state), []
    weight, table = state.get(PATCHES), state.get(POSITIONS)
    if isinstance(weight, Tensor) and weight.ndim == 4 and (
            weight.shape[2] == weight.shape[3] != vit.patch_size):
        state[PATCHES] = resample_patches(weight, vit.patch_size)
        said.append(f'patch embedding resampled from {weight.shape[3]} to {vit.patch_size} pixels')
    if isinstance(table, Tensor) and table.ndim == 3 and table.shape[1] > 1:
        source, target = (isqrt(table.shape[1] - 1), ) * 2, tuple(vit.patch_resolution)
        if source != target and source[0]**2 == table.shape[1] - 1:
            state[POSITIONS] = resize_pos_embed(table, source, target, vit.interpolate_mode)
            said.append(f'position embedding resized from {source} to {target} patches')
    return state, said
