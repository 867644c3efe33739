"""Killed at any moment, a run resumes and ends bit-equal to the uninterrupted one (on CPU)."""

from pathlib import Path

import pytest
import torch
from training_runs import (
    KillHook,
    draw_images,
    in_process,
    last_checkpoint,
    packed_mixture,
    train,
    training_cfg,
)

KILLED = -9


def assert_same(one: object, two: object, where: str = '') -> None:
    """Two nested states agree to the bit."""
    assert type(one) is type(two), where
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f'{where}.{key}')
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for index, pair in enumerate(zip(one, two)):
            assert_same(*pair, f'{where}[{index}]')
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    else:
        assert one == two, where


def assert_same_end(one: Path, two: Path) -> None:
    ends = [last_checkpoint(folder) for folder in (one, two)]
    for part in ('state_dict', 'optimizer'):
        assert_same(ends[0][part], ends[1][part], part)
    assert ends[0]['meta']['iter'] == ends[1]['meta']['iter'] == 12


@pytest.fixture
def cfg(tmp_path, tiny_cfg, tiny_pipeline):
    """Makes the config of 12 iterations, 2 epochs of 6, saved every 3, in a folder of its own."""
    images = draw_images(tmp_path / 'images', 13)

    def make(name: str, **options) -> dict:
        return training_cfg(tmp_path / name, images, tiny_cfg, tiny_pipeline, **options)

    return make


@pytest.mark.parametrize(('num_workers', 'accumulate', 'kill_after', 'resumed_at'), [
    (0, 1, 5, 3),  # in the first epoch
    (2, 1, 11, 9),  # in the second epoch, with workers
    (0, 2, 11, 10),  # the save due at 9 falls in an accumulation and waits for the step at 10
    pytest.param(2, 2, 7, 6, marks=pytest.mark.slow),  # right at the end of an epoch
    pytest.param(0, 1, 12, 9, marks=pytest.mark.slow),  # killed before the last save
])
def test_killed_and_resumed_equals_uninterrupted(
        cfg, tmp_path, num_workers, accumulate, kill_after, resumed_at):
    options = dict(num_workers=num_workers, accumulate=accumulate)
    train(cfg('whole', **options))
    assert in_process(train, cfg('killed', **options), KillHook(kill_after)) == KILLED
    assert last_checkpoint(tmp_path / 'killed')['meta']['iter'] == resumed_at
    # Nothing of the first run may matter but its checkpoint, not even the worker count.
    train(cfg('killed', resume=True, **dict(options, num_workers=2 - num_workers)))
    assert_same_end(tmp_path / 'whole', tmp_path / 'killed')


def test_packed_images_go_on_in_the_middle_of_a_shard(tmp_path, tiny_cfg, tiny_pipeline):
    def cfg(name: str, **options) -> dict:
        return training_cfg(tmp_path / name, source, tiny_cfg, tiny_pipeline, **options)

    source = packed_mixture(tmp_path / 'data', 6)  # 12 draws an epoch
    train(cfg('whole'))
    assert in_process(train, cfg('killed', num_workers=2), KillHook(5)) == KILLED
    assert last_checkpoint(tmp_path / 'killed')['meta']['iter'] == 3
    train(cfg('killed', resume=True, num_workers=2))
    assert_same_end(tmp_path / 'whole', tmp_path / 'killed')
