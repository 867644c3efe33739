"""Signs of collapse: hand values at both ends and in between, and plain slow versions."""

import math

import numpy as np
import pytest
import torch

from pera_mm.evaluation.collapse import (
    alignment,
    band_statistics,
    color_share,
    effective_rank,
    feature_std,
    nearest_distance,
    prototype_use,
    teacher_entropy,
    uniformity,
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
    assert math.isnan(uniformity(one))
    assert math.isnan(alignment(one.transpose(0, 1)))  # and what needs two crops


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(2, 4, K)
    assert teacher_entropy(logits.bfloat16(), torch.zeros(1, K), 0.04) == pytest.approx(
        teacher_entropy(logits, torch.zeros(1, K), 0.04), abs=0.02)
    assert effective_rank(torch.randn(10, 32).bfloat16()) > 5


def test_alignment_compares_the_crops_of_an_image_and_not_images():
    crop = torch.tensor([[1., 0.], [0., 3.]])  # two images, at a right angle to each other
    assert alignment(torch.stack([crop, 2 * crop])) == 0
    assert alignment(torch.stack([crop, -crop])) == pytest.approx(4)
    assert alignment(torch.stack([crop, crop.flip(0)])) == pytest.approx(2)
    third = torch.stack([crop, crop, -crop])  # pairs of crops: 0, 4, 4
    assert alignment(third) == pytest.approx(8 / 3)


def test_uniformity_by_hand():
    assert uniformity(torch.ones(2, 3, 8)) == pytest.approx(0)
    opposite = torch.tensor([[[1., 0.], [-5., 0.]]])  # distance 2
    assert uniformity(opposite) == pytest.approx(-8)
    # Two crops, each of one pair of images: the mean is taken before the logarithm.
    equal = torch.tensor([[[1., 0.], [1., 0.]]])
    assert uniformity(torch.cat([opposite, equal])) == pytest.approx(
        math.log((1 + math.exp(-8)) / 2))


def test_uniformity_of_random_directions_is_minus_four():
    spread = torch.randn(2, 100, 2000, generator=torch.Generator().manual_seed(0))
    assert uniformity(spread) == pytest.approx(-4, abs=0.02)


def test_alignment_and_uniformity_equal_loops_over_pairs():
    features = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)) + 1
    unit = (features / features.norm(dim=-1, keepdim=True)).double().numpy()
    near = [((unit[a, b] - unit[c, b])**2).sum()
            for b in range(4) for a in range(3) for c in range(a)]
    far = [math.exp(-2 * ((unit[a, b] - unit[a, c])**2).sum())
           for a in range(3) for b in range(4) for c in range(4) if b != c]
    assert alignment(features) == pytest.approx(float(np.mean(near)), rel=1e-5)
    assert uniformity(features) == pytest.approx(math.log(np.mean(far)), rel=1e-5)


def test_band_statistics_by_hand():
    image = torch.tensor([[[[1., 3.]], [[5., 5.]]]])  # bands (1, 3) and (5, 5)
    assert band_statistics(image).tolist() == [[2., 5., 1., 0.]]


def unit_rows(angles: torch.Tensor) -> torch.Tensor:
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_color_share_is_one_for_features_made_of_color():
    angles = torch.rand(200, 1, generator=torch.Generator().manual_seed(0))
    colors = torch.cat([angles.cos(), angles.sin()], dim=1)
    assert color_share(unit_rows(angles[:, 0]), colors) == pytest.approx(1)
    # Scale and offset of the colors do not matter, as for normalized pixels.
    assert color_share(unit_rows(angles[:, 0]), 50 * colors + 7) == pytest.approx(1)


@pytest.mark.parametrize('rows', [60, 600])
def test_color_share_of_unrelated_colors_is_zero_on_average(rows):
    generator = torch.Generator().manual_seed(0)
    shares = [color_share(torch.randn(rows, 8, generator=generator),
                          torch.randn(rows, 6, generator=generator)) for _ in range(100)]
    assert abs(np.mean(shares)) < 0.01  # without the adjustment: 6 / 59 = .10 for 60 rows


def test_color_share_equals_a_regression_per_feature():
    generator = torch.Generator().manual_seed(0)
    colors = torch.randn(100, 3, generator=generator)
    features = torch.randn(100, 5, generator=generator) + colors @ torch.randn(
        3, 5, generator=generator)
    unit = (features / features.norm(dim=1, keepdim=True)).double().numpy()
    design = np.column_stack([np.ones(100), colors.double().numpy()])
    left = total = 0.
    for column in unit.T:
        solution, *_ = np.linalg.lstsq(design, column, rcond=None)
        left += ((column - design @ solution)**2).sum()
        total += ((column - column.mean())**2).sum()
    assert color_share(features, colors) == pytest.approx(1 - left / total * 99 / 96, rel=1e-6)


def test_equal_bands_count_once():
    generator = torch.Generator().manual_seed(0)
    features, band = torch.randn(100, 4, generator=generator), torch.rand(100, 1)
    assert color_share(features, band.repeat(1, 3)) == pytest.approx(color_share(features, band))


def test_color_share_needs_images_and_variance():
    colors = torch.randn(60, 6)
    assert math.isfinite(color_share(torch.randn(60, 8), colors))
    assert math.isnan(color_share(torch.randn(59, 8), colors[:59]))
    assert math.isnan(color_share(torch.ones(60, 8), colors))
    assert math.isfinite(color_share(torch.randn(60, 8), torch.ones(60, 6)))  # equal colors
