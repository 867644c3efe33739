"""Distributions of features and of differences: closed forms."""

import math

import numpy as np
import pytest
import torch

from pera_mm.evaluation.distribution import aligned_views, difference, histograms, spread


def test_spread_of_two_values_and_of_a_normal_distribution():
    coins = torch.tensor([[1., -1.], [-1., 1.]]).repeat(50, 1)
    found = spread(coins)
    assert (found.std, found.low, found.high) == (1., -1., 1.)
    assert found.kurtosis == pytest.approx(-2)
    assert (found.dead, found.width, found.rank) == (0, 2, pytest.approx(1))
    normal = spread(torch.randn(2000, 50) * 3 + 1)
    assert normal.std == pytest.approx(3, rel=0.02)
    assert normal.kurtosis == pytest.approx(0, abs=0.1)
    assert normal.high == pytest.approx(1 + 3 * 3.09, rel=0.05)
    assert 45 < normal.rank < 50


def test_a_dimension_is_dead_at_one_percent_of_a_typical_deviation():
    features = torch.randn(100, 6)
    features = (features - features.mean(0)) / features.std(0, unbiased=False)
    scales = torch.tensor([1., 1., 1., 1., 0.0078, 0.0083])
    # the root mean square of these deviations is 0.8165
    assert spread(features * scales).dead == 1
    assert spread(features * scales + 5).dead == 1
    assert spread(torch.ones(4, 6)).dead == 6


def test_difference_of_known_features():
    teacher = torch.tensor([[3., 4.], [0., 5.]])
    student = torch.tensor([[4., 3.], [0., 10.]])
    found = difference(student, teacher)
    assert found.mean == pytest.approx((1 + 1 + 0 + 5) / 4)
    assert found.relative == pytest.approx(1.75 / math.sqrt(50 / 4))
    assert found.cosine == pytest.approx((24 / 25 + 1) / 2)
    assert difference(teacher, teacher)[:2] == (0., 0.)


def test_histograms_share_their_bins_and_have_their_area():
    values = dict(narrow=torch.randn(10_000), wide=torch.randn(10_000) * 3)
    (x, narrow), (other, wide) = histograms(values).values()
    assert (x == other).all() and len(x) == 60
    width = x[1] - x[0]
    assert narrow.sum() * width == pytest.approx(1, abs=1e-9)
    assert wide.sum() * width == pytest.approx(0.998, abs=1e-3)
    assert narrow.max() == pytest.approx(0.399, rel=0.1)
    x, y = histograms(dict(a=values['wide'].abs()), from_zero=True)['a']
    assert x[0] == pytest.approx((x[1] - x[0]) / 2)
    assert y.sum() * (x[1] - x[0]) == pytest.approx(0.99, abs=1e-3)


def test_views_differ_in_colors_alone_and_draw_no_random_number():
    pixels = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8)
    state = torch.random.get_rng_state()
    student, teacher = aligned_views(pixels, seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    again, other = aligned_views(pixels, seed=4)[0], aligned_views(pixels, seed=5)[0]
    assert torch.equal(student, again) and not torch.equal(student, other)
    assert student.dtype == torch.uint8 and student.shape == (40, 3, 8, 8)
    original = pixels.movedim(-1, 1)
    same = {name: (view == original).flatten(1).all(1).float().mean().item()
            for name, view in (('student', student), ('teacher', teacher))}
    assert same['student'] < 0.45 and same['teacher'] > 0.75  # the recipes: 20 % and 90 %
    flat = torch.full((30, 8, 8, 3), 90, dtype=torch.uint8)
    for view in aligned_views(flat):
        assert np.ptp(view.flatten(2).numpy(), axis=2).max() == 0  # one color stays one color
