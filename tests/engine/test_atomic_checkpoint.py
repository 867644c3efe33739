"""A checkpoint is complete or not there: kills, full disks, gradient accumulation."""

import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from training_runs import TIMEOUT, last_checkpoint, line_cfg, processes, train


class FullDiskHook(Hook):
    """From an iteration on no file may grow beyond 100 kB: the kernel says EFBIG."""

    priority = 'HIGH'

    def __init__(self, after: int) -> None:
        self.after = after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))


@pytest.fixture
def room_again():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def checkpoints(folder: Path) -> list[str]:
    """Names of checkpoints and of what is left of them, oldest first."""
    names = [path.name for path in folder.iterdir() if path.is_file()]
    return sorted((name for name in names if '.pth' in name or 'last_checkpoint' in name),
                  key=lambda name: (len(name), name))


def meta(path: Path) -> tuple[int, int]:
    saved = torch.load(path, weights_only=False)['meta']
    return saved['epoch'], saved['iter']


def test_keeps_the_newest_and_points_to_the_last(tmp_path):
    train(line_cfg(tmp_path, max_epochs=2, interval=3))
    assert checkpoints(tmp_path) == ['iter_9.pth', 'iter_12.pth', 'last_checkpoint']
    assert last_checkpoint(tmp_path)['meta']['iter'] == 12


def test_a_resumed_run_keeps_the_limit(tmp_path):
    cfg = line_cfg(tmp_path, max_epochs=2, interval=3)
    train(cfg)
    cfg = dict(cfg, resume=True, train_cfg=dict(cfg['train_cfg'], max_epochs=3))
    train(cfg)
    assert checkpoints(tmp_path) == ['iter_15.pth', 'iter_18.pth', 'last_checkpoint']


def test_a_full_disk_stops_with_a_sentence_and_spares_the_last_good_one(tmp_path, room_again):
    cfg = line_cfg(tmp_path, ballast=1, max_epochs=2, interval=3)
    cfg['default_hooks']['checkpoint'].update(max_keep_ckpts=1)
    message = (r'cannot write the checkpoint \S*iter_9.pth \(File too large\); the last good one '
               r'is \S*iter_6.pth: make room on that disk or remove the cause, and continue '
               r'with --resume\.')
    with pytest.raises(OSError, match=message):
        train(cfg, FullDiskHook(8))
    assert checkpoints(tmp_path) == ['iter_6.pth', 'last_checkpoint']
    assert last_checkpoint(tmp_path)['meta']['iter'] == 6
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    train(dict(cfg, resume=True))
    assert checkpoints(tmp_path) == ['iter_12.pth', 'last_checkpoint']


class Unpicklable(Hook):
    """Puts into the checkpoint what pickle refuses, with an error that is no OSError."""

    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint['odd'] = lambda: None


def test_what_cannot_be_pickled_stops_with_a_sentence_too(tmp_path):
    with pytest.raises(OSError, match=r'iter_3.pth \(.*pickle.*\); there is none yet: make room'):
        train(line_cfg(tmp_path), Unpicklable())
    assert checkpoints(tmp_path) == []


def test_leftovers_in_both_folders_are_removed(tmp_path):
    cfg = line_cfg(tmp_path / 'run')
    cfg['default_hooks']['checkpoint'].update(out_dir=str(tmp_path / 'far'))
    left = [tmp_path / 'run/last_checkpoint.incomplete', tmp_path / 'far/run/iter_9.pth.incomplete']
    for path in left:
        path.parent.mkdir(parents=True)
        path.touch()
    train(cfg)
    assert [path.exists() for path in left] == [False, False]
    assert (tmp_path / 'far/run/iter_12.pth').exists()


def test_killed_while_writing_leaves_the_last_good_one(tmp_path):
    cfg = line_cfg(tmp_path, ballast=150, max_epochs=2, interval=6)
    cfg['default_hooks']['checkpoint'].update(max_keep_ckpts=1)
    process = processes().Process(target=train, args=(cfg,))
    process.start()
    incomplete = tmp_path / 'iter_12.pth.incomplete'
    deadline = time.monotonic() + TIMEOUT
    while not incomplete.exists():
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -9
    assert checkpoints(tmp_path) == ['iter_6.pth', 'last_checkpoint', 'iter_12.pth.incomplete']
    assert last_checkpoint(tmp_path)['meta']['iter'] == 6
    train(dict(cfg, resume=True))
    assert checkpoints(tmp_path) == ['iter_12.pth', 'last_checkpoint']


def test_a_save_waits_for_the_optimizer_step(tmp_path):
    cfg = line_cfg(tmp_path, max_epochs=2, interval=3, accumulate=2)
    cfg['default_hooks']['checkpoint'].update(max_keep_ckpts=-1)
    train(cfg)
    assert checkpoints(tmp_path) == [
        'iter_4.pth', 'iter_6.pth', 'iter_10.pth', 'iter_12.pth', 'last_checkpoint']
    assert meta(tmp_path / 'iter_10.pth') == (1, 10)


def test_a_save_by_epoch_waits_as_well(tmp_path):
    """5 iterations an epoch, steps at every second: epoch 1 is saved after iteration 6."""
    cfg = line_cfg(tmp_path, number=10, max_epochs=3, interval=1, accumulate=2)
    cfg['default_hooks']['checkpoint'].update(by_epoch=True, max_keep_ckpts=-1)
    train(cfg)
    assert checkpoints(tmp_path) == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth',
                                     'last_checkpoint']
    assert [meta(tmp_path / f'epoch_{number}.pth') for number in (1, 2, 3)] == [
        (1, 6), (2, 10), (3, 15)]
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    end = train(cfg).model.weight.clone()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    assert torch.equal(train(dict(cfg, resume=True)).model.weight, end)


def test_an_object_store_is_refused(tmp_path):
    cfg = line_cfg(tmp_path)
    cfg['default_hooks']['checkpoint'].update(out_dir='s3://bucket/runs')
    with pytest.raises(ValueError, match='writes to a file system, not to s3://bucket/runs'):
        train(cfg)
