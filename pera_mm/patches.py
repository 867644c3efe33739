"""The patch grid of a crop, and its split in three disjoint parts (paper eq. 1-3).

Shapes: R rows (crops x images), C channels, H x W pixels, p patch size,
N = (H/p) * (W/p) patches in raster order, k patches of one part.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pera_mm.errors import UserError

SUM_TOLERANCE = 1e-6  # of the shares, whose sum is 1


class PatchCounts(NamedTuple):
    """The number of the N patches of a crop in each part."""

    student: int
    learnable: int
    teacher: int


class PatchSplit(NamedTuple):
    """The patch indices of each part, ascending (raster order is kept), and the block mask."""

    student: Tensor  # int64 [..., k]
    learnable: Tensor  # int64 [..., k], k may be 0
    teacher: Tensor  # int64 [..., k]
    # bool [..., N], True where a patch is hidden from DINOv2's student; [..., 0] without BlockMask
    masked: Tensor

    def counts(self) -> PatchCounts:
        """Return the number of patches of each part."""
        return PatchCounts(*(part.shape[-1] for part in self[:3]))


def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Return the rows and columns of patches in a ``height`` x ``width`` crop (pixels).

    Raises:
        ValueError: if a side is not a positive multiple of ``patch_size``.
    """
    for name, side in (('height', height), ('width', width)):
        if patch_size < 1 or side < patch_size or side % patch_size:
            below = max(side // patch_size, 1) * patch_size if patch_size > 0 else side
            raise UserError(
                f'crop {name} {side} is not a multiple of the patch size {patch_size}; '
                f'take {below} or {below + patch_size} instead.')
    return height // patch_size, width // patch_size


def split_counts(num_patches: int, student: float, learnable: float,
                 teacher: float) -> PatchCounts:
    """Compute the exact patch counts for three ratios, rounded as in the reference (pera.py L75).

    Args:
        num_patches: N.
        student, learnable, teacher: shares in (0, 1] that sum to 1. ``learnable`` may be 0
            (no pixel prediction).

    Raises:
        ValueError: if the shares do not sum to 1, or leave the student or the teacher (or a
            learnable share above 0) without a patch.
    """
    shares = dict(student=student, learnable=learnable, teacher=teacher)
    listed = ', '.join(f'{name} {share:g}' for name, share in shares.items())
    if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > SUM_TOLERANCE:
        raise UserError(f'the mask ratios must be >= 0 and sum to 1, got {listed} '
                        f'(sum {sum(shares.values()):g}).')
    student_and_learnable = int(round(num_patches * (1 - teacher)))
    n_student = int(round(num_patches * student)) if learnable else student_and_learnable
    counts = PatchCounts(n_student, student_and_learnable - n_student,
                         num_patches - student_and_learnable)
    for name, count in counts._asdict().items():
        if count < 1 and not (name == 'learnable' and learnable == 0):
            raise UserError(f'the mask ratios ({listed}) leave the {name} part of a crop of '
                            f'{num_patches} patches empty; raise its ratio or the crop size.')
    return counts


def split_patches(num_crops: int, counts: PatchCounts, generator: torch.Generator) -> PatchSplit:
    """Split the patches of every crop in three: one permutation, sliced (eq. 3: U = s + l + t).

    Returns:
        Indices ``[num_crops, k]`` per part, no block mask. Every patch is in exactly one part.
    """
    noise = torch.rand(num_crops, sum(counts), generator=generator)
    parts = noise.argsort(dim=1).split(list(counts), dim=1)
    return PatchSplit(*(part.sort(dim=1).values for part in parts), _no_mask(num_crops))


def whole_crop(num_crops: int, num_patches: int) -> PatchSplit:
    """Return the split without a disjoint mask (Table 11): both networks see every patch."""
    everything = torch.arange(num_patches).expand(num_crops, -1).contiguous()
    return PatchSplit(everything, everything[:, :0], everything, _no_mask(num_crops))


def _no_mask(num_crops: int) -> Tensor:
    return torch.empty(num_crops, 0, dtype=torch.bool)


def gather_patches(images: Tensor, indices: Tensor, patch_size: int) -> Tensor:
    """Cut only the named patches out of the images.

    Args:
        images: ``[R, C, H, W]``.
        indices: int64 ``[R, k]``, raster order.

    Returns:
        ``[R, k, C, p, p]``, the order in which a patch-embedding convolution reads them.
    """
    rows, channels, height, width = images.shape
    h, w = patch_grid(height, width, patch_size)
    cells = images.reshape(rows, channels, h, patch_size, w, patch_size)
    row = torch.arange(rows, device=images.device).unsqueeze(1)
    return cells[row, :, indices // w, :, indices % w, :]  # [R, k, C, p, p]


def flatten_patches(patches: Tensor) -> Tensor:
    """Flatten ``[R, k, C, p, p]`` to ``[R, k, p*p*C]``, (row, column, channel), channel fastest."""
    return patches.permute(0, 1, 3, 4, 2).flatten(2)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut ``[R, C, H, W]`` into ``[R, N, p*p*C]`` in (row, column, channel) order."""
    h, w = patch_grid(*images.shape[-2:], patch_size)
    cells = images.unflatten(3, (w, patch_size)).unflatten(2, (h, patch_size))
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Invert :func:`patchify`: ``[R, N, p*p*C]`` to ``[R, C, H, W]``."""
    h, w = grid
    cells = patches.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, (h, w))
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
