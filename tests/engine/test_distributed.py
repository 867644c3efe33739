"""Two real gloo processes: they equal one, and they stop together."""

import os
import resource
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from training_runs import (
    ON_CPU_RANKS,
    draw_images,
    last_checkpoint,
    line_cfg,
    on_ranks,
    packed_mixture,
    train,
    training_cfg,
)

pytestmark = pytest.mark.dist


@pytest.fixture
def cfg(tmp_path, tiny_cfg, tiny_pipeline):
    """Makes 4 iterations, 2 epochs of 2 with 4 images in all, nothing drawn on the device.

    KoLeo is off: its nearest neighbor is sought on each device, as in the reference, so its
    value depends on the batch per device by definition.
    """
    tiny_cfg['backbone'].update(drop_path_rate=0.)
    tiny_cfg.update(koleo=None, data_preprocessor=dict(
        type='pera_mm.CropPreprocessor', student={}, teacher={}))
    drawn = draw_images(tmp_path / 'images', 8)

    def make(name: str, images: str | list[dict] = drawn, **options) -> dict:
        return training_cfg(tmp_path / name, images, tiny_cfg, tiny_pipeline, **options)

    return make


@pytest.mark.parametrize('accumulate', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_equal_one_on_the_same_global_batch(cfg, tmp_path, accumulate):
    options = dict(accumulate=accumulate, interval=4)
    train(cfg('one', batch_size=4, **options))
    assert on_ranks(train, cfg('two', batch_size=2, **options, **ON_CPU_RANKS)) == [0, 0]
    one, two = (last_checkpoint(tmp_path / name) for name in ('one', 'two'))
    assert one['meta']['iter'] == two['meta']['iter'] == 4
    assert one['state_dict'].keys() == two['state_dict'].keys()
    assert one['state_dict']['distillation.center.value'].abs().max() > 1e-3
    for name, value in one['state_dict'].items():
        torch.testing.assert_close(two['state_dict'][name], value, rtol=0, atol=1e-5, msg=name)
    # The first moment is the average of the gradients.
    assert max(state['exp_avg'].abs().max() for state in one['optimizer']['state'].values()) > 0.01
    for index, state in one['optimizer']['state'].items():
        torch.testing.assert_close(two['optimizer']['state'][index]['exp_avg'], state['exp_avg'],
                                   rtol=0, atol=1e-5)


def test_two_processes_with_workers_equal_one_on_packed_images(cfg, tmp_path):
    """Tar shards and an LMDB, mixed by weight: each process reads its half of every step."""
    source = packed_mixture(tmp_path / 'data', 4)  # 8 draws an epoch
    train(cfg('one', batch_size=4, interval=4, images=source))
    assert on_ranks(train, cfg('two', batch_size=2, interval=4, images=source, num_workers=2,
                               **ON_CPU_RANKS)) == [0, 0]
    one, two = (last_checkpoint(tmp_path / name)['state_dict'] for name in ('one', 'two'))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=name)
    assert sorted(path.name for path in (tmp_path / 'data/shards').iterdir()) == [
        '000.tar', 'index.npy']


class SpoilHook(Hook):
    """On rank 1 only, a weight turns into nan right before iteration 3."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and runner.iter == 2:
            runner.model.module.mask_token.data.fill_(float('nan'))


class FullDiskHook(Hook):
    """On rank 0 only, no file may grow beyond 20 kB from iteration 1 on."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))


class UnpicklableHook(Hook):
    """Rank 0, which writes, meets an error that is no OSError."""

    def before_save_checkpoint(self, runner, checkpoint):
        if runner.rank == 0:
            checkpoint['odd'] = lambda: None


def _note_the_stop(cfg: dict, hook: Hook, error: type, folder: Path) -> None:
    """Train; on ``error`` leave its sentence and whether the student is still good."""
    from training_runs import build_runner
    runner = build_runner(cfg, (hook,))
    try:
        runner.train()
    except error as caught:
        student = runner.model.module.student if hasattr(runner.model.module, 'student') else None
        good = student is None or all(p.isfinite().all() for p in student.parameters())
        note = f'{runner.iter} {good} {caught}'
        (folder / f'rank{os.environ["RANK"]}').write_text(note)


def test_a_bad_gradient_on_one_rank_stops_both(cfg, tmp_path):
    ranks = cfg('run', **ON_CPU_RANKS)
    assert on_ranks(_note_the_stop, ranks, SpoilHook(), FloatingPointError, tmp_path) == [0, 0]
    for rank in (0, 1):
        note = (tmp_path / f'rank{rank}').read_text()
        assert note.startswith('2 True training stops in iteration 3, because the norm of the '
                               'gradients is nan; ')


def test_a_full_disk_on_one_rank_stops_both(tmp_path):
    ranks = line_cfg(tmp_path, ballast=1, **ON_CPU_RANKS)
    assert on_ranks(_note_the_stop, ranks, FullDiskHook(), OSError, tmp_path) == [0, 0]
    first, second = ((tmp_path / f'rank{rank}').read_text() for rank in (0, 1))
    assert 'iter_3.pth (File too large); there is none yet' in first
    assert 'iter_3.pth (another rank failed)' in second


def test_any_error_of_a_checkpoint_stops_both(tmp_path):
    ranks = line_cfg(tmp_path, **ON_CPU_RANKS)
    assert on_ranks(_note_the_stop, ranks, UnpicklableHook(), OSError, tmp_path) == [0, 0]
    first, second = ((tmp_path / f'rank{rank}').read_text() for rank in (0, 1))
    assert 'pickle' in first
    assert 'iter_3.pth (another rank failed); there is none yet' in second
