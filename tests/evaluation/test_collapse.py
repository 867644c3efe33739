"""Signs of collapse: hand values at both ends and in between."""

import math

import pytest
import torch

from pera_mm.evaluation.collapse import (
    effective_rank,
    feature_std,
    nearest_distance,
    prototype_use,
    teacher_entropy,
)

K = 8


def test_entropy_is_one_for_equal_logits_and_zero_for_a_certain_one():
    zeros = torch.zeros(1, K)
    assert teacher_entropy(torch.full((2, 3, K), 5.), zeros, 0.04) == pytest.approx(1)
    certain = torch.zeros(2, 3, K)
    certain[..., 0] = 10
    assert teacher_entropy(certain, zeros, 0.04) == pytest.approx(0, abs=1e-6)


def test_entropy_of_a_hand_made_distribution():
    # p = (1/2, 1/4, 1/8, 1/8): 1.75 bits of 2.
    p = torch.tensor([0.5, 0.25, 0.125, 0.125])
    logits = 0.04 * p.log()
    assert teacher_entropy(logits, torch.zeros(1, 4), 0.04) == pytest.approx(1.75 / 2)
    assert teacher_entropy(logits / 0.04, torch.zeros(1, 4), 0.04) < 0.2  # colder is sharper


def test_entropy_is_that_of_the_centered_logits():
    logits = torch.randn(2, 3, K)
    center = torch.randn(1, K)
    assert teacher_entropy(logits + center, center, 0.1) == pytest.approx(
        teacher_entropy(logits, torch.zeros(1, K), 0.1), abs=1e-6)


def test_prototype_use_counts_distinct_winners():
    center = torch.zeros(1, K)
    one = torch.eye(K)[torch.tensor([[3, 3, 3, 3, 3]])]  # [1, 5, K]
    assert prototype_use(one, center) == 0
    three = torch.eye(K)[torch.tensor([[0, 1, 2, 2, 2]])]
    assert prototype_use(three, center) == pytest.approx(2 / 4)
    assert prototype_use(torch.cat([one, three]), center) == pytest.approx(1 / 4)  # mean of crops
    assert prototype_use(torch.eye(K).repeat(1, 3, 1), center) == 1  # 24 images, 8 prototypes


def test_prototype_use_looks_past_the_center():
    images = 0.1 * torch.eye(K).unsqueeze(0)
    images[..., 0] += 5  # prototype 0 wins for all, which is what the center takes away
    assert prototype_use(images, torch.zeros(1, K)) == 0
    assert prototype_use(images, images.mean(1)) == 1


def test_feature_std_of_constant_and_of_spread_features():
    assert feature_std(torch.ones(10, 32)) == 0
    # Scale is taken away first, so only the direction counts.
    assert feature_std(torch.ones(10, 32) * torch.rand(10, 1)) == pytest.approx(0, abs=1e-5)
    spread = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    assert feature_std(spread) == pytest.approx(1, abs=0.01)
    opposite = torch.tensor([[1., 0.], [-1., 0.]])  # deviations 1 and 0
    assert feature_std(opposite) == pytest.approx(math.sqrt(2) / 2)


def test_effective_rank_counts_directions():
    assert effective_rank(torch.ones(10, 32)) == 0
    angles = torch.tensor([0.1, 0.2, 0.3, 0.35])
    nearly_a_line = torch.stack([angles.cos(), angles.sin()], 1)
    assert 1 <= effective_rank(nearly_a_line) < 1.5
    # Opposite unit vectors along each of 5 axes: five equal singular values.
    axes = torch.cat([torch.eye(5), -torch.eye(5)])
    assert effective_rank(axes) == pytest.approx(5)


def test_rounding_noise_is_no_direction():
    noise = torch.randn(10, 32, generator=torch.Generator().manual_seed(0))
    assert effective_rank(torch.ones(10, 32) + 1e-6 * noise) == 0


def test_nearest_distance_by_hand():
    crop = torch.tensor([[1., 0.], [0., 1.], [0., 2.]])  # the last two point the same way
    other = torch.tensor([[1., 0.], [-1., 0.], [0., 1.]])
    assert nearest_distance(crop.unsqueeze(0)) == pytest.approx(math.sqrt(2) / 3)
    both = torch.stack([crop, other])  # crops are not compared with each other
    assert nearest_distance(both) == pytest.approx((math.sqrt(2) / 3 + math.sqrt(2)) / 2)


def test_what_needs_two_images_is_nan_for_one():
    one = torch.randn(2, 1, K)
    assert math.isnan(prototype_use(one, torch.zeros(1, K)))
    assert math.isnan(nearest_distance(one))


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(2, 4, K)
    assert teacher_entropy(logits.bfloat16(), torch.zeros(1, K), 0.04) == pytest.approx(
        teacher_entropy(logits, torch.zeros(1, K), 0.04), abs=0.02)
    assert effective_rank(torch.randn(10, 32).bfloat16()) > 5
