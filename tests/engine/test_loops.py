"""ResumableTrainLoop with a model of two numbers: what is drawn, when, and what is refused."""

from pathlib import Path

import pytest
from mmengine.hooks import Hook
from training_runs import build_runner, line_cfg, train

from pera_mm.launch import errors_in_one_sentence


class Recorder(Hook):
    """Notes the images, the learning rate and the epochs' ends."""

    def __init__(self) -> None:
        self.images: list[list[float]] = []
        self.rates: list[float] = []
        self.batch_idx: list[int] = []
        self.ends: list[int] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.images.append(data_batch['inputs'].tolist())
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])
        self.batch_idx.append(batch_idx)

    def after_train_epoch(self, runner):
        self.ends.append(runner.epoch)


def record(cfg: dict) -> tuple[Recorder, object]:
    recorder = Recorder()
    return recorder, train(cfg, recorder)


def resume_at(cfg: dict, step: int) -> dict:
    """The same run as if it had been stopped right after the checkpoint of ``step``."""
    folder = Path(cfg['work_dir'])
    (folder / 'last_checkpoint').write_text(str(folder / f'iter_{step}.pth'))
    return dict(cfg, resume=True)


@pytest.fixture
def cfg(tmp_path):
    """12 samples, batch 2: 3 epochs of 6 iterations; saved every 2, all kept."""
    cfg = line_cfg(tmp_path, max_epochs=3, interval=2)
    cfg['default_hooks']['checkpoint'].update(max_keep_ckpts=-1)
    return cfg


def test_resume_in_mid_epoch_continues_the_draws_and_the_schedules(cfg):
    whole, _ = record(cfg)
    rest, runner = record(resume_at(cfg, 8))
    assert len(whole.images) == 18
    assert rest.images == whole.images[8:]
    assert rest.rates == whole.rates[8:]
    assert rest.batch_idx == whole.batch_idx[8:] == [2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    assert rest.ends == [1, 2]
    assert (runner.epoch, runner.iter) == (3, 18)


def test_an_epoch_without_a_batch_is_refused(tmp_path):
    with pytest.raises(ValueError, match='12 images per process has not one batch of 16: lower'):
        train(line_cfg(tmp_path, batch_size=16))


@pytest.mark.parametrize(('begin', 'by_epoch', 'sentence'), [
    (20, True, 'CosineAnnealingLR begins at epoch 20, but ends at 5 (train_cfg.max_epochs is 5)'),
    (30, False, 'CosineAnnealingLR begins at iteration 30, but ends at 30 (train_cfg.max_epochs'),
])
@pytest.mark.parametrize('form', ['list', 'one', 'by name'])
def test_a_scheduler_after_the_end_is_refused(tmp_path, form, begin, by_epoch, sentence):
    late = dict(type='CosineAnnealingLR', eta_min=1e-6, begin=begin, by_epoch=by_epoch)
    warmup = dict(type='LinearLR', start_factor=1e-30, end=20)
    schedulers = dict([('list', [warmup, late]), ('one', late),
                       ('by name', dict(student=[warmup, late]))])
    cfg = dict(line_cfg(tmp_path, max_epochs=5), param_scheduler=schedulers[form])
    runner = build_runner(cfg)
    with pytest.raises(SystemExit) as stop, errors_in_one_sentence():
        runner.train()
    said = stop.value.code
    assert said.startswith(f'Error: param_scheduler: {sentence}')
    assert said.endswith(': lower its begin and the end of the scheduler before it in '
                         'param_scheduler.')


def test_finished_iterations_are_not_read_again(cfg):
    train(cfg)
    runner = train(resume_at(cfg, 8))
    assert len(runner.train_dataloader.dataset.read) == (18 - 8) * 2


def test_an_epoch_without_its_end_still_gets_it(cfg):
    whole, _ = record(cfg)
    rest, _ = record(resume_at(cfg, 6))
    assert rest.ends == [0, 1, 2]
    assert rest.images == whole.images[6:]


def test_a_finished_run_trains_no_more(cfg):
    train(cfg)
    rest, runner = record(resume_at(cfg, 18))
    assert rest.images == []
    assert runner.iter == 18


def test_checkpoints_saved_by_epoch_resume_too(cfg):
    cfg['default_hooks']['checkpoint'].update(by_epoch=True, interval=1)
    whole, _ = record(cfg)
    folder = Path(cfg['work_dir'])
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    rest, _ = record(dict(cfg, resume=True))
    assert rest.images == whole.images[6:]
    assert rest.ends == [1, 2]


def test_a_run_without_a_seed_resumes_its_own_order(cfg):
    cfg['randomness'] = dict(seed=None)
    whole, _ = record(cfg)
    rest, _ = record(resume_at(cfg, 8))
    assert rest.images == whole.images[8:]


def test_another_epoch_length_is_refused(cfg):
    train(cfg)
    cfg['train_dataloader']['batch_size'] = 3
    with pytest.raises(ValueError, match='6 iterations per epoch but this run has 4: resume with'):
        train(resume_at(cfg, 8))


def test_mid_epoch_needs_a_sampler_with_a_start(cfg):
    cfg['train_dataloader']['sampler'] = dict(type='DefaultSampler')
    train(cfg)
    with pytest.raises(ValueError, match='after 2 iterations of an epoch with DefaultSampler'):
        train(resume_at(cfg, 8))


def test_resumes_in_mid_epoch_with_workers_that_stay(cfg):
    whole, _ = record(cfg)
    cfg['train_dataloader'].update(num_workers=1, persistent_workers=True)
    rest, _ = record(resume_at(cfg, 8))
    assert rest.images == whole.images[8:]


def test_the_loop_is_found_by_its_name(cfg):
    from pera_mm.engine.loops import ResumableTrainLoop
    assert type(build_runner(cfg).train_loop) is ResumableTrainLoop
