"""ScheduleHook and StepSeedHook in a real run."""

import math

import pytest
import torch
from mmengine.hooks import Hook
from training_runs import draw_images, train, training_cfg

from pera_mm.engine.hooks.schedule import ScheduleHook
from pera_mm.seeds import hash_seed

TEMPERATURE = dict(start=.03, end=.05, warmup_epochs=1.5)
MOMENTUM = dict(start=.9, end=1.)


class Recorder(Hook):
    """Notes what the model and torch hold when an iteration begins."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.values: list[tuple[float, float]] = []
        self.drawn: list[float] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.values.append((runner.model.teacher_temp, runner.model.momentum))
        self.drawn.append(torch.rand(()).item())


def test_values_move_per_iteration_and_are_logged(tmp_path, tiny_cfg, tiny_pipeline):
    images = draw_images(tmp_path / 'images', 8)
    cfg = training_cfg(tmp_path, images, tiny_cfg, tiny_pipeline)  # 2 epochs of 4 iterations
    cfg['custom_hooks'][-1]['teacher_temp'] = TEMPERATURE
    recorder = Recorder()
    runner = train(cfg, recorder)

    temperatures = [.03, .034, .038, .042, .046, .05, .05, .05]  # 1.5 epochs: 6 iterations
    momenta = [1 - .05 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    torch.testing.assert_close(torch.tensor(recorder.values, dtype=torch.float64),
                               torch.tensor([temperatures, momenta], dtype=torch.float64).T)
    for name, expected in (('teacher_temp', temperatures), ('momentum', momenta)):
        logged = runner.message_hub.get_scalar(f'train/{name}').data[0]
        assert logged.tolist() == pytest.approx(expected)

    seeds = [hash_seed(10, 0, iteration) for iteration in range(8)]
    drawn = [torch.rand((), generator=torch.Generator().manual_seed(seed)).item()
             for seed in seeds]
    assert recorder.drawn == drawn
    assert len({hash_seed(10, rank, step) for rank in range(8) for step in range(1000)}) == 8000


def test_a_warmup_longer_than_the_run_is_said(tmp_path, tiny_cfg, tiny_pipeline, capfd):
    images = draw_images(tmp_path / 'images', 4)
    cfg = training_cfg(tmp_path, images, tiny_cfg, tiny_pipeline)
    cfg['custom_hooks'][-1]['teacher_temp'] = dict(TEMPERATURE, warmup_epochs=30)
    train(cfg)
    said = ' '.join(capfd.readouterr())
    assert 'warms up over 30 epochs but the run has only 2' in said


@pytest.mark.parametrize(('teacher_temp', 'momentum', 'message'), [
    (dict(start=.03, end=.05), MOMENTUM, 'takes exactly the keys end, start, warmup_epochs'),
    (TEMPERATURE, dict(MOMENTUM, base=1), 'momentum takes exactly the keys end, start, got base'),
    (dict(TEMPERATURE, start=0.), MOMENTUM, 'must be above 0, got 0.0 and 0.05'),
    (dict(TEMPERATURE, warmup_epochs=-1), MOMENTUM, 'warmup_epochs must be 0 or more, got -1'),
    (TEMPERATURE, dict(start=.9, end=1.1), r'must lie in \[0, 1\], got 0.9 and 1.1'),
])
def test_bad_values_are_refused_at_build(teacher_temp, momentum, message):
    with pytest.raises(ValueError, match=message):
        ScheduleHook(teacher_temp, momentum)
