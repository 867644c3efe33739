"""Equations 5-7."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from reference import paper
from torch import multiprocessing

from pera_mm.models.losses.distillation_loss import DistillationLoss

K = 16


def scores(num_crops: int, num_images: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_crops, num_images, K, generator=torch.Generator().manual_seed(seed))


def groups(seed: int = 0, num_images: int = 3) -> list[torch.Tensor]:
    """2 global and 8 local crops."""
    return [scores(2, num_images, seed), scores(8, num_images, seed + 100)]


def step(loss: DistillationLoss, teacher: list[torch.Tensor]) -> None:
    loss(teacher, teacher, 0.05)
    loss.accumulate()
    loss.update_center()


def test_by_hand():
    # q = softmax((z - c) / .5) = (3/4, 1/4), p = softmax(z / .1) = (2/3, 1/3)
    loss = DistillationLoss(num_prototypes=2)
    loss.center.copy_(torch.tensor([[1., 2.]]))
    teacher = torch.tensor([[[0.5 * math.log(3) + 1., 2.]]])
    student = torch.tensor([[[0.1 * math.log(2), 0.]]])
    expected = -(0.75 * math.log(2 / 3) + 0.25 * math.log(1 / 3))
    assert loss([student], [teacher], 0.5).item() == pytest.approx(expected, rel=1e-6)


def test_uniform_scores_give_log_k():
    zeros = [torch.zeros(2, 3, K)]
    assert DistillationLoss(K)(zeros, zeros, 0.04).item() == pytest.approx(math.log(K))


@pytest.mark.parametrize('centre', [0., 1.])
@pytest.mark.parametrize('num_local', [0, 8])
def test_loss_and_gradient_equal_the_oracle(centre, num_local):
    student = [scores(2, seed=1), scores(8, seed=2)][:2 if num_local else 1]
    teacher = [scores(2, seed=3), scores(8, seed=4)][:2 if num_local else 1]
    student = [x.requires_grad_() for x in student]
    loss = DistillationLoss(K)
    loss.center.copy_(centre * scores(1, 1, seed=5)[0])
    ours = loss(student, teacher, 0.05)
    oracle = paper.distillation_loss([crop for group in student for crop in group],
                                     [crop for group in teacher for crop in group], loss.center,
                                     student_temp=0.1, teacher_temp=0.05)
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


@pytest.mark.parametrize('momentum', [0., 0.1, 0.5, 0.9, 1.])
def test_centre_by_hand_over_ten_batches(momentum):
    loss = DistillationLoss(K, center_momentum=momentum)
    expected = torch.zeros(1, K)
    for batch in range(10):
        teacher = groups(batch)
        torch.testing.assert_close(loss.center, expected)  # it serves the NEXT batch
        step(loss, teacher)
        crops = [crop for group in teacher for crop in group]
        expected = paper.update_centre(expected, paper.batch_mean(crops), momentum)
    torch.testing.assert_close(loss.center, expected)


def test_centre_weighs_every_row_alike():
    # 2 global crops of ones and 8 local crops of zeros: the mean is 0.2, not 0.5
    loss = DistillationLoss(K)
    step(loss, [torch.ones(2, 3, K), torch.zeros(8, 3, K)])
    torch.testing.assert_close(loss.center, torch.full((1, K), 0.1 * 0.2))


def test_forward_moves_nothing():
    loss = DistillationLoss(K)
    first = loss(groups(1), groups(2), 0.05)
    assert torch.equal(loss(groups(1), groups(2), 0.05), first)
    assert not loss.center.any()
    loss.update_center()  # nothing was accumulated
    assert not loss.center.any()


def test_a_repeated_forward_counts_once():
    once, twice = DistillationLoss(K), DistillationLoss(K)
    once(groups(1), groups(2), 0.05)
    twice(groups(3), groups(4), 0.05)  # a look at other data, then the batch itself
    twice(groups(1), groups(2), 0.05)
    for loss in (once, twice):
        loss.accumulate()
        loss.update_center()
    assert torch.equal(once.center, twice.center) and once.center.any()


def test_accumulated_batches_equal_one_large_batch():
    small, large = DistillationLoss(K), DistillationLoss(K)
    batches = [groups(i, num_images=2) for i in range(3)]
    for batch in batches:
        small(batch, batch, 0.05)
        small.accumulate()
    small.update_center()
    step(large, [torch.cat(parts, dim=1) for parts in zip(*batches)])
    torch.testing.assert_close(small.center, large.center)


def test_the_next_update_starts_afresh():
    loss = DistillationLoss(K, center_momentum=0.)
    step(loss, [torch.ones(2, 3, K)])
    step(loss, [torch.full((2, 3, K), 5.)])
    torch.testing.assert_close(loss.center, torch.full((1, K), 5.))


def test_centre_travels_in_the_state_dict():
    loss = DistillationLoss(K)
    step(loss, groups(1))
    assert list(loss.state_dict()) == ['center']
    assert loss.center.dtype == torch.float32
    other = DistillationLoss(K)
    other.load_state_dict(loss.state_dict())
    for each in (loss, other):
        step(each, groups(2))
    assert torch.equal(loss.center, other.center)


def test_half_precision_scores_are_compared_in_float():
    student, teacher = ([x.bfloat16() for x in groups(seed)] for seed in (1, 2))
    loss = DistillationLoss(K)
    value = loss(student, teacher, 0.05)
    expected = loss([x.float() for x in student], [x.float() for x in teacher], 0.05)
    assert value.dtype == torch.float32 and torch.equal(value, expected)


def centre_of_rank(rank: int, folder: Path) -> None:
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    loss = DistillationLoss(K)
    for batch in range(3):  # rank 0 sees 1 image per batch, rank 1 sees 2
        teacher = [crop[:, :1] if rank == 0 else crop[:, 1:] for crop in groups(batch)]
        step(loss, teacher)
    torch.save(loss.center, folder / f'{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.dist
def test_centre_of_two_processes_is_that_of_one(tmp_path):
    multiprocessing.start_processes(centre_of_rank, (tmp_path,), nprocs=2, start_method='fork')
    alone = DistillationLoss(K)
    for batch in range(3):
        step(alone, groups(batch))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f'{rank}.pth'), alone.center)
