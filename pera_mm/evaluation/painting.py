"""How well the student paints the pixels that it does not see (paper eq. 9, figure 4b).

Shapes: B images, S side in pixels, N patches of an image, k patches of one part, p patch side.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pera_mm.patches import PatchSplit, patch_grid, patchify, split_counts
from pera_mm.structures import CropViews


class Painting(NamedTuple):
    """Images as normalized patches, and what the student made of them."""

    patches: Tensor  # float [B, N, p*p*3]: the images themselves
    painted: Tensor  # the same, with the student's pixels in all hidden patches
    hidden: Tensor  # bool [B, N]: the patches that the student did not see


def paint_hidden(model: nn.Module, normalized: Tensor, visible: float = 0.2, per_pass: float = 0.2,
                 seed: int = 0) -> Painting:
    """Let the student paint everything that it does not see.

    In training it sees the share ``visible`` of the patches and paints the share ``per_pass``. Here
    several such passes with the same visible patches cover the rest of the picture, so that each
    pass is as in training. No random number of PyTorch's own generators is drawn.

    Args:
        model: a PerA with a predictor.
        normalized: float ``[B, 3, S, S]``, S a multiple of the patch size.
        visible: share of patches that the student sees (the student ratio of the run).
        per_pass: share of patches painted at a time (the learnable ratio of the run).
        seed: of the mask.
    """
    rows, cols = patch_grid(*normalized.shape[-2:], model.patch_size)
    counts = split_counts(rows * cols, visible, per_pass, 1 - visible - per_pass)
    noise = torch.rand(len(normalized), rows * cols,
                       generator=torch.Generator().manual_seed(seed))
    order = noise.argsort(dim=1).to(normalized.device)
    seen, hidden = order[:, :counts.student].sort(dim=1).values, order[:, counts.student:]
    patches = patchify(normalized, model.patch_size)
    painted = patches.clone()
    for start in range(0, hidden.shape[1], counts.learnable):
        start = min(start, hidden.shape[1] - counts.learnable)  # the last pass is complete
        part = hidden[:, start:start + counts.learnable].sort(dim=1).values
        pixels = _paint(model, normalized, seen, part)
        painted.scatter_(1, part.unsqueeze(-1).expand_as(pixels), pixels)
    is_hidden = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
    return Painting(patches, painted, is_hidden.scatter_(1, seen, False))


def variance_explained(painting: Painting) -> float:
    """Compute the share of the hidden pixels' variance that the painted ones explain.

    The variance is that within an image and a band: 0 is as good as the mean color of the image's
    own hidden pixels, the best single color; 1 is perfect; what is worse than that color is below
    0. Images count by their variance, so that empty water does not.
    """
    hidden = painting.hidden.unsqueeze(-1)  # [B, N, 1]
    errors = ((painting.painted - painting.patches) * hidden).square().sum()
    pixels = painting.patches.unflatten(-1, (-1, 3))  # [B, N, p*p, 3]
    inside = hidden.unsqueeze(-1)
    count = inside.sum(dim=1, keepdim=True) * pixels.shape[2]
    mean = (pixels * inside).sum(dim=(1, 2), keepdim=True) / count
    variance = ((pixels - mean) * inside).square().sum()
    return float(1 - errors / variance)


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
