import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler

from pera_mm.datasets.sampler import Draw, DrawSampler
from pera_mm.registry import DATA_SAMPLERS
from pera_mm.seeds import hash_seed


def draws(size, rank=0, world_size=1, epoch=0, start=0, **settings):
    sampler = DrawSampler(range(size), **settings)
    sampler.rank, sampler.world_size = rank, world_size
    sampler.set_epoch(epoch)
    sampler.start = start
    return list(sampler)


def test_an_epoch_draws_every_image_once_in_a_new_order():
    first, second = draws(50, epoch=0), draws(50, epoch=1)
    for epoch in (first, second):
        assert sorted(draw.index for draw in epoch) == list(range(50))
        assert all(0 <= draw.seed < 2**63 for draw in epoch)
    assert [d.index for d in first] != [d.index for d in second]
    assert len({draw.seed for draw in first + second}) == 100


def test_same_seed_same_draws():
    assert draws(50, seed=3, epoch=2) == draws(50, seed=3, epoch=2)
    assert draws(50, seed=3) != draws(50, seed=4)


def test_golden_draws():
    """Frozen: another machine, version or refactor must draw the same."""
    assert hash_seed(0, 1, 2) == 4529435921577843265
    assert hash_seed(12, 3) != hash_seed(1, 23)


@pytest.mark.parametrize('world_size', [1, 2, 3, 4])
def test_ranks_share_the_single_process_epoch(world_size):
    alone = draws(50)
    ranks = [draws(50, rank, world_size) for rank in range(world_size)]
    assert {len(rank) for rank in ranks} == {50 // world_size}
    together = [draw for step in zip(*ranks) for draw in step]
    assert together == alone[:50 // world_size * world_size]


def test_start_leaves_out_the_first_samples_once():
    sampler = DrawSampler(range(20), seed=1)
    sampler.start = 7
    assert len(sampler) == 20
    resumed = list(sampler)
    whole = list(sampler)
    assert len(whole) == 20 and resumed == whole[7:]
    assert draws(20, 1, 2, start=4) == draws(20, 1, 2)[4:]


def test_batches_after_a_resume_equal_the_uninterrupted_ones():
    sampler = DrawSampler(range(20))
    whole = list(BatchSampler(sampler, 4, drop_last=True))
    sampler.start = 8
    assert list(BatchSampler(sampler, 4, drop_last=True)) == whole[2:]


def test_unshuffled_is_ascending_but_has_new_seeds():
    first, second = draws(9, shuffle=False), draws(9, shuffle=False, epoch=1)
    assert [d.index for d in first] == list(range(9)) == [d.index for d in second]
    assert not {d.seed for d in first} & {d.seed for d in second}


def test_the_data_set_may_order_the_epoch():
    class Backwards:

        def __len__(self):
            return 6

        def epoch_order(self, generator):
            assert isinstance(generator, torch.Generator)
            return torch.tensor([5, 4, 3, 3, 3, 0])

    assert [draw.index for draw in DrawSampler(Backwards())] == [5, 4, 3, 3, 3, 0]


def test_seeds_make_independent_generators():
    """First uniform number of 2000 consecutive draws: mean 0.5, uncorrelated neighbors."""
    first = np.array([np.random.default_rng(draw.seed).random() for draw in draws(2000)])
    assert abs(first.mean() - 0.5) < 4 * (1 / 12 / 2000)**0.5
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 4 / 2000**0.5


def test_more_ranks_than_images(monkeypatch):
    monkeypatch.setattr('pera_mm.datasets.sampler.get_dist_info', lambda: (0, 4))
    with pytest.raises(ValueError, match='3 images, fewer than the 4 processes'):
        DrawSampler(range(3))


def test_built_as_the_runner_does():
    sampler = DATA_SAMPLERS.build(dict(type='pera_mm.DrawSampler'),
                                  default_args=dict(dataset=range(4), seed=None))
    assert isinstance(next(iter(sampler)), Draw)
    assert isinstance(sampler.seed, int)
