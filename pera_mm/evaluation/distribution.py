"""The distribution of features, and of the differences of two networks (paper, figure 6).

Shapes: R images, D features, B images of a batch, S side in pixels.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from pera_mm.evaluation.collapse import effective_rank
from pera_mm.models.color import ColorRecipe, draw_colors, recolor_
from pera_mm.models.preprocessor import STUDENT_COLORS, TEACHER_COLORS

DEAD = 0.01  # of the deviation of a typical dimension; one below it does not respond to images
TAILS = 0.001  # of the values, on either side of the range
LARGEST = 0.01  # of the differences
BINS = 60  # of a histogram


class Spread(NamedTuple):
    """The distribution of features in numbers."""

    std: float  # of all values
    low: float  # 0.1 % of the values are below
    high: float  # 0.1 % are above
    kurtosis: float  # excess, of all values: 0 for a normal distribution, above for long tails
    dead: int  # dimensions that are the same for all images, see DEAD
    width: int  # D
    rank: float  # see effective_rank


class Difference(NamedTuple):
    """The difference of two networks' features of the same images in numbers."""

    mean: float  # of the absolute differences
    relative: float  # the same, over the root mean square of the teacher's features
    cosine: float  # mean over the images


def spread(features: Tensor) -> Spread:
    """Describe features ``[R, D]``.

    A dimension is dead if its standard deviation over the images is at most 1 % of the root mean
    square of all dimensions' deviations.
    """
    features = features.double()
    centered = features - features.mean()
    deviation = features.std(dim=0, unbiased=False)
    low, high = np.quantile(features.numpy(), (TAILS, 1 - TAILS))  # torch's is for small tensors
    return Spread(
        std=float(centered.square().mean().sqrt()), low=float(low), high=float(high),
        kurtosis=float(centered.pow(4).mean() / centered.square().mean()**2) - 3,
        dead=int((deviation <= DEAD * deviation.square().mean().sqrt()).sum()),
        width=features.shape[1], rank=effective_rank(features))


def difference(student: Tensor, teacher: Tensor) -> Difference:
    """Compare the features ``[R, D]`` of two networks."""
    distance = (student - teacher).abs().mean()
    return Difference(float(distance), float(distance / teacher.square().mean().sqrt()),
                      float(cosine_similarity(student, teacher).mean()))


def aligned_views(pixels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make two views of each image that differ in their colors alone, as PerA's networks see it.

    Args:
        pixels: uint8 RGB ``[B, S, S, 3]``.
        seed: of the colors; PyTorch's own generator stays as it was.

    Returns:
        The student's and the teacher's view, uint8 ``[B, 3, S, S]``.
    """
    unit = pixels.movedim(-1, 1).float() / 255
    views = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for colors in (STUDENT_COLORS, TEACHER_COLORS):
            recipe: dict[str, Any] = dict(colors)
            draw = draw_colors([ColorRecipe(**recipe)], len(pixels))
            views.append(recolor_(unit.clone(), draw).mul(255).round().byte())
    return views[0], views[1]


def histograms(values: dict[str, Tensor],
               from_zero: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Compute densities in common bins, by the name of each checkpoint.

    Args:
        values: of each checkpoint.
        from_zero: bins from 0 that leave out the largest 1 %, instead of 0.1 % at either end.

    Returns:
        The centers of the bins, and the densities of all values there.
    """
    numbers = {name: each.double().flatten().numpy() for name, each in values.items()}
    share = LARGEST if from_zero else TAILS
    low = 0. if from_zero else min(np.quantile(each, share) for each in numbers.values())
    high = max(np.quantile(each, 1 - share) for each in numbers.values())
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    centers = (edges[1:] + edges[:-1]) / 2
    return {name: (centers, np.histogram(each, edges)[0] / (len(each) * (edges[1] - edges[0])))
            for name, each in numbers.items()}
