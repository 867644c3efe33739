"""SIGINT and SIGTERM stop a run after its step, with a checkpoint; one run per work folder."""

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import METRICS, MODELS
from test_resume import assert_same_end
from training_runs import (
    ON_CPU_RANKS,
    TIMEOUT,
    Line,
    draw_images,
    in_process,
    last_checkpoint,
    line_cfg,
    on_ranks,
    processes,
    train,
    training_cfg,
)

from pera_mm import files
from pera_mm.stopping import sigterm_as_interrupt, stopped_in_one_line


class SignalHook(Hook):
    """Sends a signal to this process (and its workers) within an iteration or at another point."""

    priority = 'HIGH'

    def __init__(self, number: int, after: int | None = None, point: str = '', times: int = 1,
                 workers: bool = False, rank: int | None = None) -> None:
        self.number, self.after, self.times = number, after, times
        self.workers, self.rank = workers, rank
        if point:
            setattr(self, point, lambda runner, *args, **kwargs: self._send())

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after and self.rank in (None, get_rank()):
            self._send()

    def _send(self) -> None:
        for sent in range(self.times):
            time.sleep(1.1 * bool(sent))  # what comes within a second is the same Ctrl-C
            if self.workers:  # from another process, as of Slurm; a parent may end its workers
                workers = [str(worker.pid) for worker in multiprocessing.active_children()]
                assert workers
                subprocess.run(['kill', f'-{self.number}', *workers], check=True)
                time.sleep(0.2)
            os.kill(os.getpid(), self.number)


def said(folder: Path) -> str:
    return ''.join(path.read_text() for path in sorted(folder.glob('*/*.log')))


def stops(cfg: dict, *hooks: Hook) -> int:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as stop:
        train(cfg, *hooks)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return stop.value.code


@pytest.mark.parametrize(('number', 'num_workers', 'accumulate', 'at', 'saved'), [
    (signal.SIGTERM, 2, 1, 4, 4),
    (signal.SIGINT, 2, 2, 7, 8),  # in the middle of an accumulation, with workers
    pytest.param(signal.SIGTERM, 0, 1, 6, 6, marks=pytest.mark.slow),  # at the end of an epoch
])
def test_stopped_and_resumed_equals_uninterrupted(
        tmp_path, tiny_cfg, tiny_pipeline, number, num_workers, accumulate, at, saved):
    images = draw_images(tmp_path / 'images', 13)

    def cfg(name: str, **options) -> dict:
        return training_cfg(tmp_path / name, images, tiny_cfg, tiny_pipeline,
                            num_workers=num_workers, accumulate=accumulate, interval=12, **options)

    train(cfg('whole'))
    code = stops(cfg('stopped'), SignalHook(number, at, workers=num_workers > 0))
    assert code == 128 + number
    assert last_checkpoint(tmp_path / 'stopped')['meta']['iter'] == saved
    assert (f'Stopped by {number.name} after iteration {saved}; checkpoint '
            f'{tmp_path}/stopped/iter_{saved}.pth; continue with --resume.'
            in said(tmp_path / 'stopped'))
    train(cfg('stopped', resume=True))
    assert_same_end(tmp_path / 'whole', tmp_path / 'stopped')


def test_a_checkpoint_of_the_same_step_is_not_written_twice(tmp_path):
    assert stops(line_cfg(tmp_path, interval=3), SignalHook(signal.SIGTERM, 6)) == 143
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_3.pth', 'iter_6.pth']


def test_saved_by_epoch_a_stop_is_named_by_its_iteration(tmp_path):
    cfg = line_cfg(tmp_path, interval=1, max_epochs=3)
    cfg['default_hooks']['checkpoint'].update(by_epoch=True)
    assert stops(cfg, SignalHook(signal.SIGTERM, 8)) == 143
    assert Path((tmp_path / 'last_checkpoint').read_text()).name == 'iter_8.pth'
    end = train(dict(cfg, resume=True)).model.weight
    whole = train(dict(cfg, work_dir=str(tmp_path / 'whole'))).model.weight
    assert torch.equal(end, whole)


def test_a_second_signal_stops_at_once(tmp_path, capsys):
    assert stops(line_cfg(tmp_path), SignalHook(signal.SIGINT, 2, times=2)) == 130
    assert not list(tmp_path.glob('*.pth'))
    assert capsys.readouterr().err == 'Stopped by SIGINT.\n'


def test_before_the_first_step(tmp_path, capsys):
    cfg = line_cfg(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train(cfg, SignalHook(signal.SIGTERM, point='before_train'))
    assert stop.value.code == 143
    assert not list(tmp_path.glob('*.pth'))
    assert 'Stopped by SIGTERM.\n' in capsys.readouterr().err
    train(cfg)


@METRICS.register_module()
class NoMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        """Nothing."""

    def compute_metrics(self, results):
        return {}


@MODELS.register_module()
class PredictingLine(Line):
    def forward(self, inputs: torch.Tensor, mode: str = 'tensor'):
        return super().forward(inputs) if mode == 'loss' else [0.]


@pytest.mark.parametrize('point', ['before_val', 'before_val_iter'])
def test_in_a_validation_the_last_checkpoint_stands(tmp_path, point):
    cfg = dict(line_cfg(tmp_path, interval=1), model=dict(type='PredictingLine'))
    cfg['default_hooks']['checkpoint'].update(by_epoch=True)
    cfg['train_cfg'] = dict(type='EpochBasedTrainLoop', max_epochs=2)
    cfg.update(val_cfg=dict(), val_evaluator=dict(type='NoMetric'), val_dataloader=dict(
        batch_size=2, num_workers=0, dataset=dict(type='Numbers', number=4),
        sampler=dict(type='DefaultSampler'), collate_fn=dict(type='default_collate')))
    assert stops(cfg, SignalHook(signal.SIGTERM, point=point)) == 143
    assert f'after iteration 6; checkpoint {tmp_path}/epoch_1.pth' in said(tmp_path)


def test_the_epoch_loop_of_mmengine_stops_without_a_checkpoint(tmp_path):
    cfg = dict(line_cfg(tmp_path, interval=1), train_cfg=dict(by_epoch=True, max_epochs=2))
    cfg['default_hooks']['checkpoint'].update(by_epoch=True)
    assert stops(cfg, SignalHook(signal.SIGINT, 2)) == 130
    assert 'Stopped by SIGINT after iteration 2; no checkpoint yet.' in said(tmp_path)
    assert not list(tmp_path.glob('*.pth'))


@pytest.mark.dist
def test_ranks_stop_after_the_same_step(tmp_path):
    cfg = dict(line_cfg(tmp_path, interval=100, max_epochs=9), **ON_CPU_RANKS)
    assert on_ranks(train, cfg, SignalHook(signal.SIGTERM, 5, rank=1)) == [143, 143]
    assert last_checkpoint(tmp_path)['meta']['iter'] == 5


# -- one run per work folder -----------------------------------------------------------------


class WaitHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        Path(runner.work_dir, 'training').touch()
        time.sleep(TIMEOUT)


@pytest.fixture
def running(tmp_path):
    """A training run in ``tmp_path`` that does not end."""
    process = processes().Process(
        target=train, args=(line_cfg(tmp_path, num_workers=1), WaitHook()))
    process.start()
    deadline = time.monotonic() + TIMEOUT
    while not (tmp_path / 'training').exists():
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def test_another_run_in_the_folder_is_refused_until_the_first_is_killed(
        tmp_path, running, monkeypatch):
    monkeypatch.setattr(files, 'MAX_WAIT', .2)
    with pytest.raises(ValueError, match=f'another run is at work in {tmp_path} '
                                         rf'\(process {running.pid} on \S+ since .*\): wait for '
                                         'its end or give another --work-dir'):
        train(line_cfg(tmp_path))
    monkeypatch.undo()
    running.kill()
    train(line_cfg(tmp_path))
    assert last_checkpoint(tmp_path)['meta']['iter'] == 12
    assert in_process(train, line_cfg(tmp_path)) == 0, 'a run that has ended claims nothing'


def _train_or_refuse_soon(cfg: dict) -> None:
    files.MAX_WAIT = .2
    train(cfg)


@pytest.mark.dist
def test_all_ranks_of_a_refused_run_stop(tmp_path, running):
    assert on_ranks(_train_or_refuse_soon, dict(line_cfg(tmp_path), **ON_CPU_RANKS)) == [1, 1]


def test_code_that_catches_everything_cannot_hide_a_signal(capsys):
    """MMEngine formats its config with yapf, which turns whatever is raised into another error."""
    with pytest.raises(SystemExit) as stop, stopped_in_one_line():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(TIMEOUT)
        except BaseException as error:
            raise SyntaxError('Failed to format the config file') from error
    assert stop.value.code == 143
    assert capsys.readouterr().err == 'Stopped by SIGTERM.\n'
    with pytest.raises(SyntaxError), stopped_in_one_line():
        raise SyntaxError


@pytest.mark.parametrize('context', [stopped_in_one_line, sigterm_as_interrupt])
def test_sigterm_ends_a_forked_child_that_is_not_running_python(context):
    """A handler in Python would not run before a wait that begins right after the signal."""
    with context():
        mine = signal.getsignal(signal.SIGTERM)
        child = os.fork()
        if child == 0:
            os._exit(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
        assert os.waitpid(child, 0)[1] == 0
        assert callable(mine)
        assert signal.getsignal(signal.SIGTERM) == mine
