"""Equation 7: the centre of the teacher's scores."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from reference import paper
from torch import multiprocessing

from pera_mm.models.losses.centre import Centre

K = 16


def scores(num_crops: int, num_images: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_crops * num_images, K, generator=generator)


def groups(seed: int = 0, num_images: int = 3) -> list[torch.Tensor]:
    """The teacher's rows of 2 global and 8 local crops."""
    return [scores(2, num_images, seed), scores(8, num_images, seed + 100)]


def step(centre: Centre, *teacher: torch.Tensor) -> None:
    centre.remember(*teacher)
    centre.accumulate()
    centre.update()


def test_targets_by_hand():
    centre = Centre(2)
    centre.value.copy_(torch.tensor([[1., 2.]]))
    targets = centre.targets(torch.tensor([[[0.5 * math.log(3) + 1., 2.]]]), 0.5)
    torch.testing.assert_close(targets, torch.tensor([[[0.75, 0.25]]]))


@pytest.mark.parametrize('momentum', [0., 0.1, 0.5, 0.9, 1.])
def test_by_hand_over_ten_batches(momentum):
    centre = Centre(K, momentum)
    expected = torch.zeros(1, K)
    for batch in range(10):
        teacher = groups(batch)
        torch.testing.assert_close(centre.value, expected)  # it serves the NEXT batch
        step(centre, *teacher)
        expected = paper.update_centre(expected, paper.batch_mean(teacher), momentum)
    torch.testing.assert_close(centre.value, expected)


def test_every_row_weighs_alike():
    # 6 rows of ones and 24 rows of zeros: the mean is 0.2, not 0.5
    centre = Centre(K)
    step(centre, torch.ones(6, K), torch.zeros(24, K))
    torch.testing.assert_close(centre.value, torch.full((1, K), 0.1 * 0.2))


def test_it_moves_in_update_only():
    centre = Centre(K)
    centre.remember(*groups())
    centre.update()  # nothing was accumulated
    assert not centre.value.any()
    centre.accumulate()
    assert not centre.value.any()
    centre.update()
    assert centre.value.any()


def test_the_last_of_repeated_batches_counts_once():
    once, twice = Centre(K), Centre(K)
    twice.remember(*groups(2))  # a look at other data, then the batch itself
    step(twice, *groups(1))
    step(once, *groups(1))
    assert torch.equal(once.value, twice.value) and once.value.any()


def test_a_batch_that_is_accumulated_twice_counts_once():
    once, twice = Centre(K), Centre(K)
    for centre, times in ((once, 1), (twice, 2)):
        centre.remember(*groups(1))
        for _ in range(times):
            centre.accumulate()
        step(centre, *groups(2))
    assert torch.equal(once.value, twice.value)


def test_accumulated_batches_equal_one_large_batch():
    small, large = Centre(K), Centre(K)
    batches = [groups(i, num_images=2) for i in range(3)]
    for batch in batches:
        small.remember(*batch)
        small.accumulate()
    small.update()
    step(large, *(torch.cat(parts) for parts in zip(*batches)))
    torch.testing.assert_close(small.value, large.value)


def test_the_next_update_starts_afresh():
    centre = Centre(K, momentum=0.)
    step(centre, torch.ones(6, K))
    step(centre, torch.full((6, K), 5.))
    torch.testing.assert_close(centre.value, torch.full((1, K), 5.))


def test_without_rows_it_stays():
    centre = Centre(K)
    step(centre, *groups())
    before = centre.value.clone()
    step(centre, torch.zeros(0, K))
    assert torch.equal(centre.value, before)


def test_it_travels_in_the_state_dict():
    centre = Centre(K)
    step(centre, *groups(1))
    assert list(centre.state_dict()) == ['value']
    assert centre.value.dtype == torch.float32
    other = Centre(K)
    other.load_state_dict(centre.state_dict())
    for each in (centre, other):
        step(each, *groups(2))
    assert torch.equal(centre.value, other.value)


def centre_of_rank(rank: int, folder: Path) -> None:
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    centre = Centre(K)
    for batch in range(3):  # rank 0 sees 1 image per batch, rank 1 sees 2
        step(centre, *(rows[::3] if rank == 0 else torch.cat([rows[1::3], rows[2::3]])
                       for rows in groups(batch)))
    torch.save(centre.value, folder / f'{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.dist
def test_centre_of_two_processes_is_that_of_one(tmp_path):
    multiprocessing.start_processes(centre_of_rank, (tmp_path,), nprocs=2, start_method='fork')
    alone = Centre(K)
    for batch in range(3):
        step(alone, *groups(batch))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f'{rank}.pth'), alone.value)
