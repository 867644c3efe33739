"""Equations 5 and 6."""

import math

import pytest
import torch
from reference import paper

from pera_mm.models.losses.distillation_loss import DistillationLoss

K = 16


def scores(num_crops: int, num_images: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_crops, num_images, K, generator=torch.Generator().manual_seed(seed))


def groups(seed: int = 0, num_images: int = 3) -> list[torch.Tensor]:
    """2 global and 8 local crops."""
    return [scores(2, num_images, seed), scores(8, num_images, seed + 100)]


def test_by_hand():
    # q = softmax((z - c) / .5) = (3/4, 1/4), p = softmax(z / .1) = (2/3, 1/3)
    loss = DistillationLoss(num_prototypes=2)
    loss.center.value.copy_(torch.tensor([[1., 2.]]))
    teacher = torch.tensor([[[0.5 * math.log(3) + 1., 2.]]])
    student = torch.tensor([[[0.1 * math.log(2), 0.]]])
    expected = -(0.75 * math.log(2 / 3) + 0.25 * math.log(1 / 3))
    assert loss([student], [teacher], 0.5).item() == pytest.approx(expected, rel=1e-6)


def test_uniform_scores_give_log_k():
    zeros = [torch.zeros(2, 3, K)]
    assert DistillationLoss(K)(zeros, zeros, 0.04).item() == pytest.approx(math.log(K))


@pytest.mark.parametrize('center', [0., 1.])
@pytest.mark.parametrize('num_local', [0, 8])
def test_loss_and_gradient_equal_the_oracle(center, num_local):
    student = [scores(2, seed=1), scores(8, seed=2)][:2 if num_local else 1]
    teacher = [scores(2, seed=3), scores(8, seed=4)][:2 if num_local else 1]
    student = [x.requires_grad_() for x in student]
    loss = DistillationLoss(K)
    loss.center.value.copy_(center * scores(1, 1, seed=5)[0])
    ours = loss(student, teacher, 0.05)
    oracle = paper.distillation_loss([crop for group in student for crop in group],
                                     [crop for group in teacher for crop in group],
                                     loss.center.value, student_temp=0.1, teacher_temp=0.05)
    torch.testing.assert_close(ours, oracle, rtol=1e-5, atol=0)
    for gradient, expected in zip(torch.autograd.grad(ours, student),
                                  torch.autograd.grad(oracle, student)):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_ten_pairs_count_alike():
    # one certain disagreement among ten pairs weighs a tenth, wherever it is
    agreed = torch.tensor([40., 0.] + [0.] * (K - 2))
    opposed = torch.tensor([0., 40.] + [0.] * (K - 2))
    loss = DistillationLoss(K)
    for pair in range(10):
        student = agreed.expand(10, 1, K).clone()
        student[pair] = opposed
        teacher = agreed.expand(10, 1, K)
        value = loss(list(student.split([2, 8])), list(teacher.split([2, 8])), 0.1)
        assert value.item() == pytest.approx(400 / 10, rel=1e-5)


def test_no_gradient_reaches_the_teacher():
    student, teacher = scores(2).requires_grad_(), scores(2, seed=1).requires_grad_()
    DistillationLoss(K)([student], [teacher], 0.05).backward()
    assert teacher.grad is None and student.grad is not None


def test_weight():
    student, teacher = groups(1), groups(2)
    torch.testing.assert_close(
        DistillationLoss(K, loss_weight=3.)(student, teacher, 0.05),
        3 * DistillationLoss(K)(student, teacher, 0.05))


@pytest.mark.parametrize('momentum', [0., 0.9])
def test_the_center_is_that_of_all_crops(momentum):
    loss = DistillationLoss(K, center_momentum=momentum)
    expected = torch.zeros(1, K)
    for batch in range(3):
        teacher = groups(batch)
        torch.testing.assert_close(loss.center.value, expected)  # it serves the NEXT batch
        loss(teacher, teacher, 0.05)
        loss.center.accumulate()
        loss.center.update()
        crops = [crop for group in teacher for crop in group]
        expected = paper.update_center(expected, paper.batch_mean(crops), momentum)
    torch.testing.assert_close(loss.center.value, expected)


def test_forward_moves_nothing():
    loss = DistillationLoss(K)
    first = loss(groups(1), groups(2), 0.05)
    assert torch.equal(loss(groups(1), groups(2), 0.05), first)
    assert not loss.center.value.any()
    loss.center.update()  # nothing was accumulated
    assert not loss.center.value.any()


def test_a_repeated_forward_counts_once():
    once, twice = DistillationLoss(K), DistillationLoss(K)
    once(groups(1), groups(2), 0.05)
    twice(groups(3), groups(4), 0.05)  # a look at other data, then the batch itself
    twice(groups(1), groups(2), 0.05)
    for loss in (once, twice):
        loss.center.accumulate()
        loss.center.update()
    assert torch.equal(once.center.value, twice.center.value) and once.center.value.any()


def test_the_center_travels_in_the_state_dict():
    assert list(DistillationLoss(K).state_dict()) == ['center.value']


def test_half_precision_scores_are_compared_in_float():
    student, teacher = ([x.bfloat16() for x in groups(seed)] for seed in (1, 2))
    loss = DistillationLoss(K)
    value = loss(student, teacher, 0.05)
    expected = loss([x.float() for x in student], [x.float() for x in teacher], 0.05)
    assert value.dtype == torch.float32 and torch.equal(value, expected)
