"""How well the student paints the pixels that it does not see (paper eq. 9, figure 4b).

Shapes: B images, H x W pixels, N patches of an image, k patches of one part, p patch side.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pera_mm.errors import UserError
from pera_mm.patches import PatchSplit, patch_grid, patchify, unpatchify
from pera_mm.structures import CropViews

HIDDEN_GRAY = 235  # 0-255; light, so that it does not look like painted pixels
NO_VARIANCE = 1e-6  # of normalized pixels: rounding


class Painting(NamedTuple):
    """Images as normalized patches, and what the student made of them."""

    patches: Tensor  # float [B, N, p*p*3]: the images themselves
    painted: Tensor  # the same, with the student's pixels in all hidden patches
    hidden: Tensor  # bool [B, N]: the patches that the student did not see


class Triplets(NamedTuple):
    """The pictures that the student saw and painted, and the original; uint8 ``[B, H, W, 3]``."""

    masked: np.ndarray
    predicted: np.ndarray
    original: np.ndarray
    explained: float  # of all images together, see variance_explained
    errors: list[float]  # of each image: root mean square of the hidden pixels, 0-255 units


def paint_hidden(model: nn.Module, normalized: Tensor, visible: float = 0.2, per_pass: float = 0.2,
                 seed: int = 0) -> Painting:
    """Let the student paint everything that it does not see.

    In training it sees the share ``visible`` of the patches and paints the share ``per_pass``. Here
    several such passes with the same visible patches cover the rest of the picture, so that each
    pass is as in training. No random number of PyTorch's own generators is drawn.

    Args:
        model: a PerA with a predictor.
        normalized: float ``[B, 3, H, W]``, sides multiples of the patch size.
        visible: share of patches that the student sees (the student ratio of the run).
        per_pass: share of patches painted at a time (the learnable ratio of the run); all hidden
            ones, where they are fewer.
        seed: of the mask.

    Raises:
        ValueError: if the shares leave no patch to see or to paint.
    """
    rows, cols = patch_grid(*normalized.shape[-2:], model.patch_size)
    student, learnable = _counts(rows * cols, visible, per_pass)
    noise = torch.rand(len(normalized), rows * cols,
                       generator=torch.Generator().manual_seed(seed))
    order = noise.argsort(dim=1).to(normalized.device)
    seen, hidden = order[:, :student].sort(dim=1).values, order[:, student:]
    patches = patchify(normalized, model.patch_size)
    painted = patches.clone()
    for start in range(0, hidden.shape[1], learnable):
        start = min(start, hidden.shape[1] - learnable)  # the last pass is complete
        part = hidden[:, start:start + learnable].sort(dim=1).values
        pixels = _paint(model, normalized, seen, part)
        painted.scatter_(1, part.unsqueeze(-1).expand_as(pixels), pixels)
    is_hidden = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
    return Painting(patches, painted, is_hidden.scatter_(1, seen, False))


def _counts(num_patches: int, visible: float, per_pass: float) -> tuple[int, int]:
    """Return how many patches are seen, and painted at a time, rounded as in training."""
    seen = int(round(num_patches * visible))
    learnable = min(int(round(num_patches * (visible + per_pass))), num_patches) - seen
    if seen < 1 or learnable < 1:
        raise UserError(f'a student that sees {visible:.0%} of the {num_patches} patches of a '
                        f'picture and paints {per_pass:.0%} at a time has none to '
                        f'{"see" if seen < 1 else "paint"}: choose other shares or a larger '
                        'picture.')
    return seen, learnable


def reconstruct(model: nn.Module, images: Tensor, visible: float = 0.2, per_pass: float = 0.2,
                seed: int = 0) -> Triplets:
    """Draw what the student sees and paints, see :func:`paint_hidden`.

    Args:
        model: a PerA with a predictor.
        images: uint8 RGB ``[B, H, W, 3]``, sides multiples of the patch size.
        visible: share of patches that the student sees (the student ratio of the run).
        per_pass: share of patches painted at a time (the learnable ratio of the run).
        seed: of the mask.
    """
    normalized = model.data_preprocessor.normalize(images)  # [B, 3, H, W]
    p, grid = model.patch_size, patch_grid(*normalized.shape[-2:], model.patch_size)
    painting = paint_hidden(model, normalized, visible, per_pass, seed)
    cover = painting.hidden.unsqueeze(-1).expand(-1, -1, p * p)
    hidden = unpatchify(cover, p, grid)[:, 0].cpu().numpy()  # bool [B, H, W]
    masked = _to_uint8(model, unpatchify(painting.patches, p, grid))
    masked[hidden] = HIDDEN_GRAY
    predicted = _to_uint8(model, unpatchify(painting.painted, p, grid))
    original = images.cpu().numpy()
    squares = (predicted.astype(np.float64) - original)**2
    errors = [float(square[where].mean()**.5) for square, where in zip(squares, hidden)]
    return Triplets(masked, predicted, original, variance_explained(painting), errors)


def _to_uint8(model: nn.Module, normalized: Tensor) -> np.ndarray:
    """Undo ``normalize``, whatever its mean and deviation: ``[B, 3, H, W]`` to ``[B, H, W, 3]``."""
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 1, 3)
    black, white = model.data_preprocessor.normalize(ends)  # [3, 1, 1] each
    pixels = (normalized - black) / (white - black) * 255
    return pixels.round().clamp(0, 255).byte().movedim(1, -1).cpu().numpy()


def variance_explained(painting: Painting) -> float:
    """Compute the share of the hidden pixels' variance that the painted ones explain.

    The variance is that within an image and a band: 0 is as good as the mean color of the image's
    own hidden pixels, the best single color; 1 is perfect; what is worse than that color is below
    0. Images count by their variance, so that empty water does not. It is 0 where there is none.
    """
    hidden = painting.hidden.unsqueeze(-1)  # [B, N, 1]
    errors = ((painting.painted - painting.patches) * hidden).square().sum()
    pixels = painting.patches.unflatten(-1, (-1, 3))  # [B, N, p*p, 3]
    inside = hidden.unsqueeze(-1)
    count = inside.sum(dim=1, keepdim=True) * pixels.shape[2]
    mean = (pixels * inside).sum(dim=(1, 2), keepdim=True) / count
    variance = ((pixels - mean) * inside).square().sum()
    return float(1 - errors / variance) if variance > NO_VARIANCE else 0.


def _paint(model: nn.Module, normalized: Tensor, seen: Tensor, part: Tensor) -> Tensor:
    """Let the student paint pixels ``[B, k, p*p*3]`` of ``part`` from the patches ``seen``."""
    crop = normalized.unsqueeze(0)  # one global crop per image
    split = PatchSplit(seen, part, part, masked=seen[:, :0].bool())  # the teacher is not used
    views = CropViews(crop, crop, PatchSplit(*(indices.unsqueeze(0) for indices in split)))
    with _evaluating(model), torch.no_grad():
        return model.study([views]).pixels.float()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
