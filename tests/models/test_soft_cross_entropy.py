"""The fast cross-entropy against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from pera_mm.models.losses.soft_cross_entropy import ROWS_AT_ONCE, soft_cross_entropy


def draw(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 50, generator=generator)
    targets = torch.randn(rows, 50, generator=generator).softmax(1)
    return logits.requires_grad_(), targets


@pytest.mark.parametrize('rows', [1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 3 * ROWS_AT_ONCE - 1])
@pytest.mark.parametrize('mass', [1., 2.])  # DINO gives a local crop the sum of two targets
def test_value_and_gradient_equal_torchs(rows, mass):
    logits, targets = draw(rows)
    ours = soft_cross_entropy(logits, lambda part: mass * targets[part], temperature=0.1)
    plain = F.cross_entropy(logits / 0.1, mass * targets, reduction='sum')
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(3 * ours, logits)[0],
                               torch.autograd.grad(3 * plain, logits)[0], rtol=1e-5, atol=1e-5)


def test_half_precision_scores_are_compared_in_float32():
    logits, targets = draw(5)
    half = logits.detach().bfloat16().requires_grad_()
    ours = soft_cross_entropy(half, lambda part: targets[part], temperature=0.1)
    plain = F.cross_entropy(half.detach().float() / 0.1, targets, reduction='sum')
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0)
    ours.backward()
    assert half.grad.dtype == torch.bfloat16


def test_extreme_scores_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.]], requires_grad=True)
    loss = soft_cross_entropy(logits, lambda part: torch.tensor([[0., 1., 0.]]), temperature=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(2e5)
    torch.testing.assert_close(logits.grad, torch.tensor([[10., -10., 0.]]))


def test_only_the_gradient_is_kept_for_the_backward_pass():
    logits, targets = draw(8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        soft_cross_entropy(logits, lambda part: targets[part], temperature=0.1)
    assert kept == [logits.shape]
