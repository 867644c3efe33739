"""Equation 8."""

import math

import pytest
import torch
from reference import paper

from pera_mm.models.losses.koleo_loss import KoLeoLoss


def directions(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


@pytest.mark.parametrize(('degrees', 'mean_log'), [
    ((0., 180.), math.log(2)),
    ((0., 60.), 0.),
    ((0., 90.), math.log(2) / 2),
    ((0., 60., 180.), math.log(3) / 6),  # chords 1, 1, sqrt 3
])
def test_by_hand(degrees, mean_log):
    loss = KoLeoLoss(loss_weight=1.)(directions(*degrees).unsqueeze(0))
    assert loss.item() == pytest.approx(-mean_log, abs=1e-6)


def test_length_does_not_matter():
    features = torch.randn(1, 5, 8)
    lengths = torch.tensor([1., 10., 0.1, 3., 100.]).reshape(1, 5, 1)
    torch.testing.assert_close(KoLeoLoss()(features * lengths), KoLeoLoss()(features))


def test_the_crops_are_summed_and_strangers_to_each_other():
    first, second = torch.randn(2, 1, 6, 8)
    loss = KoLeoLoss()
    torch.testing.assert_close(loss(torch.cat([first, second])), loss(first) + loss(second))


def test_weight_is_the_reference_one():
    features = directions(0., 180.).unsqueeze(0)
    assert KoLeoLoss()(features).item() == pytest.approx(-0.1 * math.log(2))


def test_loss_and_gradient_equal_the_oracle():
    features = torch.randn(2, 7, 64, requires_grad=True)
    ours = KoLeoLoss()(features)
    gradient, = torch.autograd.grad(ours, features)
    oracle = 0.1 * paper.koleo_loss(list(features))
    expected, = torch.autograd.grad(oracle, features)
    torch.testing.assert_close(ours, oracle)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_duplicates_stay_finite():
    features = torch.ones(1, 3, 8, requires_grad=True)
    loss = KoLeoLoss()(features)
    loss.backward()
    # distance = eps * sqrt(8), then + eps
    expected = -0.1 * math.log(1e-8 * math.sqrt(8) + 1e-8)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert features.grad.isfinite().all()


def test_zero_features_stay_finite():
    features = torch.zeros(1, 3, 8, requires_grad=True)
    KoLeoLoss()(features).backward()
    assert features.grad.isfinite().all()


def test_pushes_neighbors_apart():
    features = directions(0., 10.).unsqueeze(0).requires_grad_()
    KoLeoLoss()(features).backward()
    moved = features.detach() - features.grad
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(moved[0, 0], moved[0, 1], dim=0) < cosine(*features[0].detach(), dim=0)


def test_batch_of_one_is_refused():
    with pytest.raises(ValueError, match='at least 2 images per device, got 1.*koleo=None'):
        KoLeoLoss()(torch.randn(2, 1, 8))


def test_float32_under_autocast():
    # in bfloat16 the three similarities are all 1: the third would take the first for its nearest
    def chord(degrees: float) -> float:
        return 2 * math.sin(math.radians(degrees / 2))

    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = KoLeoLoss(loss_weight=1.)(directions(0., 2., 3.).unsqueeze(0))
    expected = -(math.log(chord(2)) + 2 * math.log(chord(1))) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-4)
