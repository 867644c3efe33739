"""Equation 7: the center of the teacher's scores."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from reference import paper
from torch import multiprocessing

from pera_mm.models.losses.center import Center

K = 16


def scores(num_crops: int, num_images: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_crops * num_images, K, generator=generator)


def groups(seed: int = 0, num_images: int = 3) -> list[torch.Tensor]:
    """The teacher's rows of 2 global and 8 local crops."""
    return [scores(2, num_images, seed), scores(8, num_images, seed + 100)]


def step(center: Center, *teacher: torch.Tensor) -> None:
    center.remember(*teacher)
    center.accumulate()
    center.update()


def test_targets_by_hand():
    center = Center(2)
    center.value.copy_(torch.tensor([[1., 2.]]))
    targets = center.targets(torch.tensor([[[0.5 * math.log(3) + 1., 2.]]]), 0.5)
    torch.testing.assert_close(targets, torch.tensor([[[0.75, 0.25]]]))


@pytest.mark.parametrize('momentum', [0., 0.1, 0.5, 0.9, 1.])
def test_by_hand_over_ten_batches(momentum):
    center = Center(K, momentum)
    expected = torch.zeros(1, K)
    for batch in range(10):
        teacher = groups(batch)
        torch.testing.assert_close(center.value, expected)  # it serves the NEXT batch
        step(center, *teacher)
        expected = paper.update_center(expected, paper.batch_mean(teacher), momentum)
    torch.testing.assert_close(center.value, expected)


def test_every_row_weighs_alike():
    # 6 rows of ones and 24 rows of zeros: the mean is 0.2, not 0.5
    center = Center(K)
    step(center, torch.ones(6, K), torch.zeros(24, K))
    torch.testing.assert_close(center.value, torch.full((1, K), 0.1 * 0.2))


def test_it_moves_in_update_only():
    center = Center(K)
    center.remember(*groups())
    center.update()  # nothing was accumulated
    assert not center.value.any()
    center.accumulate()
    assert not center.value.any()
    center.update()
    assert center.value.any()


def test_the_last_of_repeated_batches_counts_once():
    once, twice = Center(K), Center(K)
    twice.remember(*groups(2))  # a look at other data, then the batch itself
    step(twice, *groups(1))
    step(once, *groups(1))
    assert torch.equal(once.value, twice.value) and once.value.any()


def test_a_batch_that_is_accumulated_twice_counts_once():
    once, twice = Center(K), Center(K)
    for center, times in ((once, 1), (twice, 2)):
        center.remember(*groups(1))
        for _ in range(times):
            center.accumulate()
        step(center, *groups(2))
    assert torch.equal(once.value, twice.value)


def test_accumulated_batches_equal_one_large_batch():
    small, large = Center(K), Center(K)
    batches = [groups(i, num_images=2) for i in range(3)]
    for batch in batches:
        small.remember(*batch)
        small.accumulate()
    small.update()
    step(large, *(torch.cat(parts) for parts in zip(*batches)))
    torch.testing.assert_close(small.value, large.value)


def test_the_next_update_starts_afresh():
    center = Center(K, momentum=0.)
    step(center, torch.ones(6, K))
    step(center, torch.full((6, K), 5.))
    torch.testing.assert_close(center.value, torch.full((1, K), 5.))


def test_without_rows_it_stays():
    center = Center(K)
    step(center, *groups())
    before = center.value.clone()
    step(center, torch.zeros(0, K))
    assert torch.equal(center.value, before)


def test_it_travels_in_the_state_dict():
    center = Center(K)
    step(center, *groups(1))
    assert list(center.state_dict()) == ['value']
    assert center.value.dtype == torch.float32
    other = Center(K)
    other.load_state_dict(center.state_dict())
    for each in (center, other):
        step(each, *groups(2))
    assert torch.equal(center.value, other.value)


def center_of_rank(rank: int, folder: Path) -> None:
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    center = Center(K)
    for batch in range(3):  # rank 0 sees 1 image per batch, rank 1 sees 2
        step(center, *(rows[::3] if rank == 0 else torch.cat([rows[1::3], rows[2::3]])
                       for rows in groups(batch)))
    torch.save(center.value, folder / f'{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.dist
def test_center_of_two_processes_is_that_of_one(tmp_path):
    multiprocessing.start_processes(center_of_rank, (tmp_path,), nprocs=2, start_method='fork')
    alone = Center(K)
    for batch in range(3):
        step(alone, *groups(batch))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f'{rank}.pth'), alone.value)
