"""Bootstrap intervals of accuracies over test images and seeds.

Shapes: S seeds, M test images, G clusters of test images, R resamples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pera_mm.errors import UserError

RESAMPLES = 4000


class Interval(NamedTuple):
    """A mean and the ends of its interval, in percent."""

    mean: float
    low: float
    high: float


def bootstrap_interval(outcomes: np.ndarray, clusters: Sequence[int] | np.ndarray,
                       strata: Sequence[int] | np.ndarray | None = None, level: float = 0.95,
                       resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Estimate the interval of the mean outcome; both seeds and test images are drawn anew.

    Each resample draws S of the seeds and G of the clusters with replacement, independently
    (the two-way or pigeonhole bootstrap: Owen 2007, section 3), and takes the mean of the outcomes
    of the drawn seeds on the images of the drawn clusters. The interval has the
    percentiles as its ends (Efron & Tibshirani 1993, section 13.3). With three seeds the part of
    the seeds is rough, and rather too small: their spread is divided by S and not by S - 1.

    For a paired difference of two methods give the difference of their outcomes.

    Args:
        outcomes: float ``[S, M]``: 1 where seed s is right on image m, 0 where it is wrong, or a
            mean or a difference of those.
        clusters: int ``[M]``, images with the same number are drawn together, as they are alike
            (:func:`pera_mm.evaluation.block_split.index_blocks`).
        strata: int ``[M]``, e.g. the classes: each keeps its number of clusters in every resample,
            as it does in the split (Davison & Hinkley 1997, section 3.2). A cluster lies in one
            stratum. None: all images are one.
        level: share of the resamples within the interval, in (0, 1).
        resamples: R.
        seed: of the draws.

    Raises:
        ValueError: without outcomes, or if ``clusters`` or ``strata`` have another length.
    """
    outcomes = np.atleast_2d(np.asarray(outcomes, dtype=np.float64))
    strata = np.zeros(len(clusters), dtype=np.int64) if strata is None else np.asarray(strata)
    if not outcomes.size or not len(clusters) == len(strata) == outcomes.shape[1]:
        raise UserError(f'a bootstrap needs a cluster and a stratum for each of one or more '
                        f'images, got {len(clusters)} and {len(strata)} for {outcomes.shape[1]}.')
    _, first, number = np.unique(clusters, return_index=True, return_inverse=True)
    sizes = np.bincount(number)
    sums = np.stack([np.bincount(number, weights=row) for row in outcomes])  # [S, G]
    rng = np.random.default_rng(seed)
    seeds = _draws(rng, len(sums), resamples)  # [R, S]
    drawn = np.empty((resamples, len(sizes)))  # [R, G]
    for stratum in np.unique(strata):
        members = np.where(strata[first] == stratum)[0]
        drawn[:, members] = _draws(rng, len(members), resamples)
    means = np.einsum('rs,sg,rg->r', seeds, sums, drawn, optimize=True) / (
        len(sums) * (drawn @ sizes))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(100 * float(outcomes.mean()), 100 * float(low), 100 * float(high))


def _draws(rng: np.random.Generator, number: int, resamples: int) -> np.ndarray:
    """How often each of ``number`` is drawn in ``number`` draws: ``[R, number]``."""
    return rng.multinomial(number, np.full(number, 1 / number), size=resamples)
