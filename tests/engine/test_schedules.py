"""Schedules against the reference's arrays (pera_reference.md §5), and MMEngine's against them."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from pera_mm.engine.schedules import cosine, linear_warmup

EPOCHS, ITERS = 200, 7


def reference_array(total: int, warmup: int, warm_start: float, start: float,
                    final: float) -> np.ndarray:
    """What the reference's CosineScheduler fills in: both ends of the warm-up are included."""
    steps = np.arange(total - warmup)
    decay = final + 0.5 * (start - final) * (1 + np.cos(np.pi * steps / len(steps)))
    return np.concatenate([np.linspace(warm_start, start, warmup), decay])


def test_cosine_hits_its_ends_and_its_middle():
    assert cosine(0, 1000, 0.992, 1.0) == pytest.approx(0.992, abs=1e-15)
    assert cosine(500, 1000, 0.992, 1.0) == pytest.approx(0.996, abs=1e-12)
    assert cosine(250, 1000, 0.0, 1.0) == pytest.approx(0.5 - 0.5 * 2**-0.5, abs=1e-12)
    assert cosine(1000, 1000, 0.992, 1.0) == 1.0
    assert cosine(1001, 1000, 0.992, 1.0) == 1.0
    assert cosine(0, 0, 0.992, 1.0) == 1.0


def test_linear_warmup_includes_both_ends():
    values = [linear_warmup(step, 5, 0.03, 0.05) for step in range(8)]
    np.testing.assert_allclose(values, [.03, .035, .04, .045, .05, .05, .05, .05], rtol=1e-12)
    assert values[4] == values[5] == 0.05


@pytest.mark.parametrize(('warmup', 'values'), [(0, [2., 2.]), (1, [1., 2.]), (2, [1., 2.])])
def test_short_warmups_follow_linspace(warmup, values):
    assert [linear_warmup(step, warmup, 1., 2.) for step in range(2)] == values


def test_both_curves_equal_the_reference_arrays():
    total, warmup = EPOCHS * ITERS, 30 * ITERS
    momentum = reference_array(total, 0, 0., .992, 1.)
    np.testing.assert_allclose([cosine(i, total, .992, 1.) for i in range(total)], momentum,
                               rtol=1e-12)
    temperature = np.concatenate([np.linspace(.03, .05, warmup), np.full(total - warmup, .05)])
    np.testing.assert_allclose([linear_warmup(i, warmup, .03, .05) for i in range(total)],
                               temperature, rtol=1e-12)


def mmengine_values(schedulers: list[dict], iters: int) -> np.ndarray:
    """(lr, weight decay) of every iteration as MMEngine sets them: ``[steps, 2]``."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    wrapper = OptimWrapper(torch.optim.AdamW([parameter], lr=1e-3, weight_decay=0.04))
    built = []
    for cfg in schedulers:
        cfg = dict(cfg)
        cfg.setdefault('end', EPOCHS)  # as the Runner does
        built.append(PARAM_SCHEDULERS.build(
            cfg, default_args=dict(optimizer=wrapper, epoch_length=iters)))
    values = []
    for _ in range(EPOCHS * iters):
        group = wrapper.optimizer.param_groups[0]
        values.append((group['lr'], group['weight_decay']))
        wrapper.step()
        for scheduler in built:
            scheduler.step()
    return np.array(values)


@pytest.fixture
def shipped_schedulers(request) -> list[dict]:
    path = request.config.rootpath / 'configs/_base_/schedules/pera_200e.py'
    return Config.fromfile(path)['param_scheduler']


@pytest.mark.parametrize('iters', [1, 7, 52])
def test_shipped_config_gives_the_reference_arrays(shipped_schedulers, iters):
    values = mmengine_values(shipped_schedulers, iters)
    total = EPOCHS * iters
    lr = reference_array(total, 20 * iters, 0., 1e-3, 1e-6)
    weight_decay = reference_array(total, 0, 0., 0.04, 0.2)
    np.testing.assert_allclose(values[:, 0], lr, rtol=1e-9, atol=1e-20)
    np.testing.assert_allclose(values[:, 1], weight_decay, rtol=1e-9)
    assert values[20 * iters - 1, 0] == pytest.approx(1e-3)
    assert values[20 * iters, 0] == pytest.approx(1e-3)
