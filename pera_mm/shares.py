"""Whole numbers in proportion to weights."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def largest_remainder(total: int, weights: Sequence[float]) -> NDArray[np.int64]:
    """Divide ``total`` into whole numbers in proportion to the weights.

    Every exact share is rounded down. The units left over go one each to the largest remainders,
    the first of equal ones. Remainders are computed in float64: whichever of two remainders is
    larger only by rounding gets the unit.

    Args:
        total: The number to divide, 0 or more.
        weights: At least one; none below 0, and their sum above 0.

    Returns:
        One number per weight ``[len(weights)]``; they sum to ``total``.
    """
    exact = np.asarray(weights, float) * (total / np.sum(weights))
    parts = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(parts - exact, kind='stable')  # the largest first
    parts[by_remainder[:total - parts.sum()]] += 1
    return parts
