"""TeacherHook: teacher and center move after real optimizer steps, and only then."""

from functools import partial

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from training_runs import build_runner, draw_images, on_ranks, train, training_cfg

from pera_mm.engine.hooks.teacher import inner_model


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class Recorder(Hook):
    """Keeps the model's state before the run and after every iteration, hooks included."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.momenta: list[float] = []

    def before_train(self, runner):
        self.states.append(snapshot(runner.model))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.states.append(snapshot(runner.model))
        self.momenta.append(runner.model.momentum)


@pytest.fixture
def cfg(tmp_path, tiny_cfg, tiny_pipeline):
    """8 iterations of 2 images."""
    images = draw_images(tmp_path / 'images', 8)
    return training_cfg(tmp_path, images, tiny_cfg, tiny_pipeline, interval=100)


@pytest.mark.parametrize(('accumulate', 'steps'), [(1, range(1, 9)), (3, (3, 6, 8))])
def test_teacher_is_the_moving_average_of_the_stepped_students(cfg, accumulate, steps):
    """With accumulation 3 the last step is the short tail at iteration 8."""
    cfg['optim_wrapper']['accumulative_counts'] = accumulate
    recorder = Recorder()
    train(cfg, recorder)
    names = [name for name in recorder.states[0] if name.startswith('teacher.')]
    assert len(names) > 50
    moved = 0.
    for iteration in range(1, 9):
        before, now = recorder.states[iteration - 1:iteration + 1]
        momentum = recorder.momenta[iteration - 1]
        for name in names:
            student = now[name.replace('teacher.', 'student.')]
            expected = before[name]
            if iteration in steps:
                expected = momentum * before[name] + (1 - momentum) * student
                moved += (now[name] - before[name]).abs().max().item()
            torch.testing.assert_close(now[name], expected, rtol=1e-6, atol=1e-8)
        center_moved = not torch.equal(*(each['distillation.center.value']
                                         for each in (now, before)))
        assert center_moved == (iteration in steps)
    assert moved > 0


def test_a_step_skipped_by_the_fp16_scaler_does_no_harm(cfg, monkeypatch):
    """MMEngine's AmpOptimWrapper with its scaler on the CPU, whose scale always overflows."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', partial(torch.amp.GradScaler, 'cpu'))
    cfg['optim_wrapper'].update(
        type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(init_scale=float('inf')))
    recorder = Recorder()
    runner = train(cfg, recorder)
    first, last = recorder.states[0], recorder.states[-1]
    assert runner.optim_wrapper.loss_scaler.get_scale() == float('inf')
    for name in first:
        if name.startswith(('student.', 'teacher.')):
            torch.testing.assert_close(last[name], first[name], rtol=1e-6, atol=1e-8)
    assert torch.isfinite(last['distillation.center.value']).all()


def _unwrap_on_a_rank(cfg: dict) -> None:
    runner = build_runner(cfg)
    assert isinstance(runner.model, MMDistributedDataParallel)
    assert inner_model(runner) is runner.model.module


@pytest.mark.dist
def test_inner_model_unwraps_ddp(cfg):
    from training_runs import ON_CPU_RANKS
    assert on_ranks(_unwrap_on_a_rank, dict(cfg, **ON_CPU_RANKS)) == [0, 0]
