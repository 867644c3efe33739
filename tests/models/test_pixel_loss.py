"""Equation 4."""

import pytest
import torch
from reference import paper

from pera_mm.models.losses.pixel_loss import PixelLoss


def test_by_hand():
    prediction = torch.zeros(1, 2, 768)
    target = torch.stack([torch.full((768,), 1.), torch.full((768,), -3.)]).unsqueeze(0)
    # (768 * 1 + 768 * 9) / 2 tokens, weight 0.01
    assert PixelLoss()(prediction, target).item() == pytest.approx(0.01 * 768 * 5)


def test_sum_over_values_is_768_times_the_mean():
    prediction, target = torch.randn(2, 3, 5, 768)
    mean = torch.nn.functional.mse_loss(prediction, target)
    torch.testing.assert_close(PixelLoss(loss_weight=1.)(prediction, target), 768 * mean)


def test_loss_and_gradient_equal_the_oracle():
    prediction = torch.randn(4, 3, 48, requires_grad=True)
    target = torch.randn(4, 3, 48)
    ours = PixelLoss()(prediction, target)
    gradient, = torch.autograd.grad(ours, prediction)
    oracle = 0.01 * paper.pixel_loss(list(prediction), list(target))
    expected, = torch.autograd.grad(oracle, prediction)
    torch.testing.assert_close(ours, oracle)
    torch.testing.assert_close(gradient, expected)


def test_half_precision_inputs_are_compared_in_float():
    prediction = torch.full((1, 1, 768), 10., dtype=torch.bfloat16)
    loss = PixelLoss(loss_weight=1.)(prediction, torch.zeros(1, 1, 768))
    assert loss.dtype == torch.float32 and loss.item() == 76800.
