"""The bootstrap against closed forms and a plain loop."""

import math

import numpy as np
import pytest

from pera_mm.evaluation.bootstrap import bootstrap_interval


def test_the_interval_of_one_seed_is_that_of_a_binomial_share():
    outcomes = np.arange(400) < 300  # 75 % right
    mean, low, high = bootstrap_interval(outcomes[None], np.arange(400))
    half = 100 * 1.96 * math.sqrt(0.75 * 0.25 / 400)  # the normal approximation, 4.2
    assert mean == 75
    assert low == pytest.approx(75 - half, abs=0.5) and high == pytest.approx(75 + half, abs=0.5)


def test_images_of_a_cluster_count_as_one():
    outcomes = np.repeat(np.arange(40) < 30, 10)[None]
    _, low, high = bootstrap_interval(outcomes, np.repeat(np.arange(40), 10))
    half = 100 * 1.96 * math.sqrt(0.75 * 0.25 / 40)
    assert high - low == pytest.approx(2 * half, rel=0.1)
    _, low, high = bootstrap_interval(outcomes, np.arange(400))
    assert high - low == pytest.approx(2 * half / math.sqrt(10), rel=0.1)


def test_a_stratum_keeps_its_share():
    easy, hard = np.arange(200) < 180, np.arange(200) < 60  # 90 and 30 % right
    outcomes, strata = np.concatenate([easy, hard])[None], np.repeat([0, 1], 200)
    _, low, high = bootstrap_interval(outcomes, np.arange(400), strata)
    # Without the variance between the classes: that of each class, halved
    half = 100 * 1.96 * math.sqrt((0.9 * 0.1 + 0.3 * 0.7) / 200) / 2
    assert high - low == pytest.approx(2 * half, rel=0.1)


def test_seeds_are_drawn_too():
    outcomes = np.repeat([[0.], [1.], [1.]], 50, axis=1)  # no spread over images, one bad seed
    mean, low, high = bootstrap_interval(outcomes, np.arange(50))
    # Three draws of three seeds: all bad 1/27 (above the 2.5 % quantile), all good 8/27.
    assert (mean, low, high) == (pytest.approx(200 / 3), 0, 100)


def test_equals_a_plain_loop():
    rng = np.random.default_rng(1)
    outcomes, clusters = rng.random((3, 30)), rng.integers(0, 8, 30)
    names, means = np.unique(clusters), []
    for _ in range(4000):
        images = np.concatenate([np.where(clusters == name)[0]
                                 for name in rng.choice(names, len(names))])
        means.append(100 * outcomes[rng.integers(0, 3, 3)][:, images].mean())
    interval = bootstrap_interval(outcomes, clusters)
    assert interval[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.6)


def test_a_difference_of_what_is_equal_is_zero_and_has_no_width():
    assert bootstrap_interval(np.zeros((2, 9)), np.arange(9)) == (0, 0, 0)


def test_clusters_must_fit_the_images():
    with pytest.raises(ValueError, match='got 3 and 3 for 4'):
        bootstrap_interval(np.ones((1, 4)), np.arange(3))
    with pytest.raises(ValueError, match='got 0 and 0 for 0'):
        bootstrap_interval(np.ones((1, 0)), np.arange(0))
    with pytest.raises(ValueError, match='got 4 and 2 for 4'):
        bootstrap_interval(np.ones((1, 4)), np.arange(4), np.arange(2))
