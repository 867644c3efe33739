"""The last layers stand still for the first epochs, everything else moves; also on two ranks."""

import pytest
import torch
from mmengine.hooks import Hook
from training_runs import (
    ON_CPU_RANKS,
    build_runner,
    draw_images,
    last_checkpoint,
    on_ranks,
    train,
    training_cfg,
)

from pera_mm.engine.hooks.freeze_last_layer import FreezeLastLayerHook
from pera_mm.engine.hooks.teacher import inner_model


@pytest.fixture
def cfg(tmp_path, tiny_cfg, tiny_pipeline):
    """Makes the config of 2 epochs of 3 iterations; no weight decay, so what is frozen is equal."""
    tiny_cfg['backbone'].update(drop_path_rate=0.)
    tiny_cfg.update(koleo=None, data_preprocessor=dict(
        type='pera_mm.CropPreprocessor', student={}, teacher={}))
    images = draw_images(tmp_path / 'images', 12)

    def make(name: str, epochs: int = 1, **options) -> dict:
        made = training_cfg(tmp_path / name, images, tiny_cfg, tiny_pipeline, batch_size=4,
                            **options)
        made['optim_wrapper']['optimizer']['weight_decay'] = 0.
        made['param_scheduler'] = []
        made['custom_hooks'].append(dict(type='pera_mm.FreezeLastLayerHook', epochs=epochs))
        return made

    return make


class Watch(Hook):
    """Keeps the student's weights, and the norms of its gradients, after each iteration."""

    def __init__(self) -> None:
        self.states: list[dict] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        student = inner_model(runner).student
        self.states.append({name: value.clone() for name, value in student.state_dict().items()})


def moved(watch: Watch, name: str) -> list[bool]:
    values = [state[name] for state in watch.states]
    return [not torch.equal(one, two) for one, two in zip(values, values[1:])]


@pytest.mark.parametrize('epochs, frozen', [(0, 0), (1, 2), (2, 5)])
def test_frozen_for_so_many_epochs_of_three_iterations(cfg, epochs, frozen):
    watch = Watch()
    runner = build_runner(cfg('run', epochs), (watch, ))
    runner.train()
    for name in ('projector.last_layer.weight_v', 'projector.last_layer.weight_g'):
        assert moved(watch, name) == [False] * frozen + [True] * (5 - frozen)
    assert all(moved(watch, 'projector.mlp.0.weight'))
    assert not inner_model(runner).student.projector.last_layer.weight_v._backward_hooks


def test_a_run_resumed_after_the_epoch_is_not_frozen(cfg, tmp_path):
    build_runner(cfg('run', interval=3, max_epochs=2)).train()
    (tmp_path / 'run/last_checkpoint').write_text(str(tmp_path / 'run/iter_3.pth'))
    watch = Watch()
    build_runner(cfg('run', resume=True), (watch, )).train()
    assert moved(watch, 'projector.last_layer.weight_v') == [True, True]


@pytest.mark.dist
def test_two_processes_equal_one(cfg, tmp_path):
    train(cfg('one', interval=6))
    ranks = cfg('two', interval=6, **ON_CPU_RANKS)
    ranks['train_dataloader']['batch_size'] = 2
    assert on_ranks(train, ranks) == [0, 0]
    one, two = (last_checkpoint(tmp_path / name)['state_dict'] for name in ('one', 'two'))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-5, msg=name)


def test_negative_epochs():
    with pytest.raises(ValueError, match='epochs must be 0 or more, got -1'):
        FreezeLastLayerHook(-1)
