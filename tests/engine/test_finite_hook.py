"""A loss, a gradient or a weight that is inf or nan stops all ranks with one sentence."""

from pathlib import Path

import pytest
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from training_runs import (
    ON_CPU_RANKS,
    Line,
    build_runner,
    draw_images,
    last_checkpoint,
    line_cfg,
    on_ranks,
    train,
    training_cfg,
)

from pera_mm.errors import NotFiniteError
from pera_mm.launch import errors_in_one_sentence

REST = 'with a lower optim_wrapper.optimizer.lr, a longer warm-up{} or a lower ' \
       'optim_wrapper.clip_grad.max_norm.'


@OPTIM_WRAPPERS.register_module()
class ScalerOnCpu(AmpOptimWrapper):
    """MMEngine's wrapper for float16 with PyTorch's scaler, where there is no GPU."""

    def __init__(self, **kwargs) -> None:
        OptimWrapper.__init__(self, **kwargs)
        self._scale_update_param = None
        self.cast_dtype = torch.bfloat16
        self.loss_scaler = torch.amp.GradScaler('cpu')


@MODELS.register_module()
class Kink(Line):
    """Its loss is 0, and the gradient of the root there is nan."""

    def forward(self, inputs: torch.Tensor, mode: str = 'tensor') -> dict:
        return dict(loss=(0 * self.weight).sum().sqrt())


class Spoil(Hook):
    """One value in place of all inputs, on one rank in one iteration."""

    def __init__(self, value: float, iteration: int, rank: int = 0) -> None:
        self.value, self.iteration, self.rank = value, iteration, rank

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (get_rank(), runner.iter) == (self.rank, self.iteration):
            data_batch['inputs'].fill_(self.value)


def cfg_with(tmp_path: Path, kind: str, model: str = 'Line', **options) -> dict:
    """12 iterations, saved every 3, under an optimizer wrapper of a kind."""
    cfg = line_cfg(tmp_path, **options)
    optimizer = cfg['optim_wrapper']['optimizer']
    if kind == 'bfloat16':
        cfg['optim_wrapper'].update(on_cpu=True)
    elif kind != 'pera_mm':
        cfg['optim_wrapper'] = dict(type=kind, optimizer=optimizer)
    cfg['model'] = dict(type=model)
    cfg['custom_hooks'] = [dict(type='pera_mm.FiniteHook')]
    return cfg


def stopped(cfg: dict, *hooks: Hook) -> str:
    with pytest.raises(SystemExit) as stop, errors_in_one_sentence():
        train(cfg, *hooks)
    return stop.value.code


LOSS, NORM = 'the loss is inf or nan (rank 0: loss)', 'the norm of the gradients is nan'


@pytest.mark.parametrize(('kind', 'what', 'precision'), [
    ('pera_mm', NORM, ''),
    ('bfloat16', NORM, ', in float32 (--amp off)'),
    ('OptimWrapper', LOSS, ''),
    ('ScalerOnCpu', LOSS, ', in float32 (--amp off)'),
])
@pytest.mark.parametrize('iteration', [1, 4])
def test_the_sentence_in_each_precision(tmp_path, kind, what, precision, iteration):
    said = stopped(cfg_with(tmp_path, kind), Spoil(torch.nan, iteration))
    last = (f'the last good checkpoint is {tmp_path}/iter_3.pth: look for broken pixels or labels, '
            'or start from it (with load_from, because --resume keeps the learning rate) ')
    none = 'there is no checkpoint yet: look for broken pixels or labels, or start again '
    assert said == (f'Error: training stops in iteration {iteration + 1}, because {what}; '
                    f'{last if iteration > 2 else none}{REST.format(precision)}')
    if iteration > 2:
        weights = last_checkpoint(tmp_path)['state_dict']
        assert all(value.isfinite().all() for value in weights.values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """The loss is finite; a plain wrapper then makes a bad update."""
    cfg = cfg_with(tmp_path, 'OptimWrapper', 'Kink', interval=1)
    assert stopped(cfg).startswith('Error: training stops in iteration 1, because the weights '
                                   'hold inf, nan or numbers beyond 1e+15; there is no checkpoint')
    assert not list(tmp_path.glob('*.pth*'))


def test_a_gradient_that_is_not_finite_is_found_though_the_loss_is(tmp_path):
    said = stopped(cfg_with(tmp_path, 'pera_mm', 'Kink'))
    assert said.startswith(f'Error: training stops in iteration 1, because {NORM}; there is no')


def test_a_step_that_the_scaler_skips_is_normal(tmp_path):
    spoil = Spoil(1e17, 4)  # the loss is 1e34, and times 65,536 beyond float32
    runner = train(cfg_with(tmp_path, 'ScalerOnCpu'), spoil)
    assert runner.iter == 12
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2**15
    assert runner.model.weight.isfinite().all()


def test_a_scaler_that_skips_every_step_stops_the_run(tmp_path):
    cfg = cfg_with(tmp_path, 'ScalerOnCpu', 'Kink', max_epochs=10, interval=100)
    assert stopped(cfg).startswith(
        'Error: training stops in iteration 41, because the gradients are inf or nan at every '
        'scale of the loss down to 6e-08; there is no checkpoint yet: look')  # 2**16 to 2**-25


@pytest.mark.gpu
def test_float16_on_a_gpu_skips_one_bad_gradient_and_stops_at_a_bad_loss(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip('this machine has no GPU')
    runner = train(cfg_with(tmp_path / 'one', 'AmpOptimWrapper'), Spoil(1e17, 4))
    assert (runner.iter, runner.optim_wrapper.loss_scaler.get_scale()) == (12, 2**15)
    said = stopped(cfg_with(tmp_path / 'two', 'AmpOptimWrapper'), Spoil(torch.nan, 4))
    assert said.startswith(f'Error: training stops in iteration 5, because {LOSS}; the last good')
    cfg = cfg_with(tmp_path / 'three', 'AmpOptimWrapper', 'Kink', max_epochs=10, interval=100)
    assert 'in iteration 41, because the gradients are inf or nan at every scale' in stopped(cfg)


def test_after_a_resume_the_checkpoint_is_named_where_it_is_now(tmp_path):
    train(cfg_with(tmp_path / 'old', 'pera_mm'))
    (tmp_path / 'old').rename(tmp_path / 'new')
    last = tmp_path / 'new/iter_9.pth'
    cfg = dict(cfg_with(tmp_path / 'new', 'pera_mm'), resume=True, load_from=str(last))
    assert f'; the last good checkpoint is {last}: look' in stopped(cfg, Spoil(torch.nan, 9))


def test_a_broken_student_never_reaches_the_teacher(tmp_path, tiny_cfg, tiny_pipeline):
    images = draw_images(tmp_path / 'images', 6)
    cfg = training_cfg(tmp_path / 'run', images, tiny_cfg, tiny_pipeline, interval=100)
    cfg['custom_hooks'].append(dict(type='pera_mm.FiniteHook'))
    cfg['optim_wrapper'] = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    cfg['param_scheduler'] = []

    class Poison(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 4:
                runner.model.student.backbone.cls_token.data.fill_(torch.nan)

    runner = build_runner(cfg, (Poison(),))
    sentence = (r'iteration 5, because the loss is inf or nan \(rank 0: loss, loss_cls, '
                r'loss_pixel, loss_koleo\); there is no checkpoint yet')
    with pytest.raises(NotFiniteError, match=sentence):
        runner.train()
    assert all(p.isfinite().all() for p in runner.model.teacher.parameters())


def meet_spoil(cfg: dict, folder: str, value: float) -> None:
    """On one rank of several; writes down how the run ended."""
    try:
        build_runner(cfg, (Spoil(value, 4, rank=1),)).train()
        end = 'trained to the end'
    except NotFiniteError as error:
        end = str(error)
    Path(folder, f'rank{get_rank()}.txt').write_text(end)


@pytest.mark.dist
@pytest.mark.timeout(60)
@pytest.mark.parametrize(('kind', 'what'), [
    ('OptimWrapper', 'the loss is inf or nan (rank 1: loss)'), ('pera_mm', NORM)])
def test_all_ranks_stop_together_when_one_breaks(tmp_path, kind, what):
    cfg = cfg_with(tmp_path / 'run', kind, batch_size=1, **ON_CPU_RANKS)
    assert on_ranks(meet_spoil, cfg, str(tmp_path), torch.nan) == [0, 0]
    ends = [(tmp_path / f'rank{rank}.txt').read_text() for rank in (0, 1)]
    assert ends[0] == ends[1]
    assert ends[0].startswith(f'training stops in iteration 5, because {what}; the last good '
                              f'checkpoint is {tmp_path}/run/iter_3.pth: look')
