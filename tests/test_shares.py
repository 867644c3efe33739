"""Shares are whole, sum to the total, and are at most one unit from the exact ones."""

import numpy as np
import pytest

from pera_mm.shares import largest_remainder


@pytest.mark.parametrize(('total', 'weights', 'parts'), [
    (10, [1, 1, 1], [4, 3, 3]),  # the first of equal remainders
    (7, [2.5, 1, .1], [5, 2, 0]),
    (3, [1, 0], [3, 0]),
    (0, [1, 2], [0, 0]),
    (100, [2, 2, 2, 1, 1, 1], [23, 22, 22, 11, 11, 11]),
    (7, [.6, .1, .1, .1, .1], [4, 1, 1, 1, 0]),
])
def test_units_left_over_go_to_the_largest_remainders(total, weights, parts):
    assert largest_remainder(total, weights).tolist() == parts


def test_shares_are_within_one_unit_of_the_exact_ones():
    generator = np.random.default_rng(0)
    for _ in range(100):
        weights, total = generator.random(9), int(generator.integers(10_000))
        parts = largest_remainder(total, weights)
        assert parts.sum() == total
        assert abs(parts - total * weights / weights.sum()).max() < 1
