"""Fine-tuning in any loop: what is refused before the first step, and what stops it.

The four tasks are small twins on scenes; the rest is a model of two numbers in each kind of loop.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from training_runs import ON_CPU_RANKS, draw_images, line_cfg, on_ranks, training_cfg
from training_runs import build_runner as build_plain

import pera_mm  # noqa: F401
from pera_mm.launch import build_runner, errors_in_one_sentence
from pera_mm.scenes.folders import write_scenes

ROOT = Path(__file__).parents[2]
SIDE = 64
NUMBER = 15  # scenes, one for each class of the classification
# The kind of scenes, and where the pipeline has the size of an image.
TASKS = dict(aid_pera=('classification', 1), potsdam_upernet_pera=('segmentation', 2),
             levircd_bit_pera=('change', 1), dior_faster_rcnn_pera=('detection', 2))
TRAINED = dict(aid_pera=15, potsdam_upernet_pera=12, levircd_bit_pera=8, dior_faster_rcnn_pera=7)
TRY = ('look for broken pixels or labels, or start again with a lower optim_wrapper.optimizer.lr, '
       'a longer warm-up or a lower optim_wrapper.clip_grad.max_norm.')


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('scenes')
    for kind, _ in TASKS.values():
        write_scenes(folder / kind, kind, NUMBER, size=SIDE)
    images = sorted(path.relative_to(folder / 'classification')
                    for path in (folder / 'classification').rglob('*.jpg'))
    (folder / 'classification/all.txt').write_text(''.join(
        f'{path} {index}\n' for index, path in enumerate(images)))
    return folder


@pytest.fixture
def twin(scenes, tmp_path) -> Callable[..., Config]:
    """The config of a task, with a random ViT and batches of two, without a validation."""

    def make(name: str, **options) -> Config:
        cfg = Config.fromfile(ROOT / f'configs/scenes/{name}_scenes.py')
        init_default_scope(cfg.default_scope)
        cfg.model.backbone.get('vit', cfg.model.backbone).update(img_size=SIDE, init_cfg=None)
        kind, place = TASKS[name]
        whole = kind in ('change', 'detection')
        cfg.train_pipeline[place].scale = (SIDE, SIDE) if whole else SIDE
        cfg.train_dataloader.update(num_workers=0, persistent_workers=False, batch_size=2)
        cfg.train_dataloader.dataset.update(
            data_root=str(scenes / kind), pipeline=cfg.train_pipeline)
        if kind == 'classification':
            cfg.train_dataloader.dataset.ann_file = 'all.txt'
        cfg.merge_from_dict({
            'work_dir': str(tmp_path / 'work'), 'launcher': 'none', 'visualizer.vis_backends': [],
            'log_level': 'WARNING', 'val_dataloader': None, 'val_cfg': None, 'val_evaluator': None,
            'experiment_name': f'{tmp_path.name}_{make.number}', 'train_cfg.max_epochs': 3,
            'default_hooks.checkpoint': dict(interval=1, save_best=None), **options})
        make.number += 1
        return cfg

    make.number = 0
    return make


def said_by(train: Callable) -> str:
    """What tools/train.py says at the end of a run that may not go on."""
    with pytest.raises(SystemExit) as stop, errors_in_one_sentence():
        train()
    assert '\n' not in stop.value.code and stop.value.code.startswith('Error: ')
    return stop.value.code.removeprefix('Error: ')


def refused(cfg: Config) -> str:
    return said_by(lambda: build_runner(cfg).train())


# -- the four tasks ------------------------------------------------------------------------------


@pytest.mark.parametrize('name', TASKS)
def test_a_learning_rate_that_breaks_everything_stops_each_task(twin, tmp_path, name):
    said = refused(twin(name, **{'optim_wrapper.optimizer.lr': 1e30, 'param_scheduler': [],
                                 'optim_wrapper.clip_grad': None}))
    assert re.fullmatch(
        'training stops in iteration 2, because the norm of the gradients is (nan|inf); there is '
        f'no checkpoint yet: {re.escape(TRY)}', said)
    assert not list((tmp_path / 'work').glob('*.pth'))


@pytest.mark.parametrize('name', TASKS)
def test_fewer_images_than_a_batch_are_refused_in_each_task(twin, name):
    batch = {'train_dataloader.batch_size': 16, 'train_dataloader.drop_last': True}
    said = refused(twin(name, **batch) if 'dior' not in name else twin(
        name, **batch, **{'train_dataloader.batch_sampler': None}))
    assert said.startswith(f'an epoch of {TRAINED[name]} images per process has not one batch of '
                           '16: lower train_dataloader.batch_size, use fewer processes, or check '
                           'that train_dataloader.dataset finds all of your images.')


@pytest.mark.parametrize('name', TASKS)
def test_a_training_that_ends_within_its_warm_up_is_refused_in_each_task(twin, name):
    late = [dict(type='LinearLR', start_factor=0.1, end=20, convert_to_iter_based=True),
            dict(type='CosineAnnealingLR', begin=20, convert_to_iter_based=True)]
    assert refused(twin(name, param_scheduler=late)) == (
        'param_scheduler: CosineAnnealingLR begins at epoch 20, but ends at 3 '
        '(train_cfg.max_epochs is 3): lower its begin and the end of the scheduler before it in '
        'param_scheduler.')


def test_a_resume_with_another_batch_or_another_end_is_refused(twin):
    def cfg(**options) -> Config:
        return twin('aid_pera', param_scheduler=[dict(type='CosineAnnealingLR')], **options)

    build_runner(cfg(**{'train_cfg.max_epochs': 1})).train()
    assert refused(cfg(**{'train_dataloader.batch_size': 3}, resume=True)) == (
        'the checkpoint was made with 7 iterations per epoch but this run has 5: resume with the '
        'same data and the same global batch (processes x batch size), or start a new run with '
        'load_from.')
    assert refused(cfg(resume=True)) == (
        'the checkpoint was made with a CosineAnnealingLR from epoch 0 to 1 but this run has one '
        'from 0 to 3: resume with the same train_cfg.max_epochs and param_scheduler, or start a '
        'new run with load_from.')


def test_a_batch_of_one_that_cannot_be_normalized_is_refused(twin):
    assert refused(twin('potsdam_upernet_pera', **{'train_dataloader.batch_size': 1})) == (
        'a batch has one image per process, of which the batch norm '
        'decode_head.psp_modules.0.1.bn gets a single value per channel: set '
        'train_dataloader.batch_size to at least 2.')


# -- each kind of loop ---------------------------------------------------------------------------

LOOPS = ['EpochBasedTrainLoop', 'IterBasedTrainLoop', 'pera_mm.ResumableTrainLoop']


def loop_cfg(work_dir: Path, loop: str, **options) -> dict:
    """12 iterations of 2 of 12 samples in one of the loops, with the hooks of fine-tuning."""
    options = dict(batch_size=2, max_epochs=2) | options
    cfg = line_cfg(work_dir, **options)
    cfg['custom_hooks'] = [dict(type='pera_mm.StrictLoadHook'), dict(type='pera_mm.RunCheckHook')]
    epochs = options['max_epochs']
    by_epoch = loop != 'IterBasedTrainLoop'
    if by_epoch:
        cfg['train_cfg'] = dict(type=loop, max_epochs=epochs)
        cfg['default_hooks']['checkpoint'].update(by_epoch=True, interval=1)
    else:
        cfg['train_cfg'] = dict(type=loop, max_iters=6 * epochs)
    if not loop.startswith('pera_mm'):
        sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
        cfg['train_dataloader']['sampler'] = dict(type=sampler, shuffle=True)
    cfg['param_scheduler'] = [dict(type='CosineAnnealingLR', by_epoch=by_epoch)]
    return cfg


def train(cfg: dict) -> object:
    runner = build_plain(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize('loop', LOOPS)
def test_a_resume_continues_the_same_run_and_no_other(tmp_path, loop):
    runner = train(loop_cfg(tmp_path, loop))
    assert runner.iter == 12
    middle = next(tmp_path.glob('iter_9.pth'), tmp_path / 'epoch_1.pth')

    def resumed(change: Callable[[dict], None] | None = None, **options) -> dict:
        cfg = dict(loop_cfg(tmp_path, loop, **options), resume=True, load_from=str(middle))
        if change:
            change(cfg)
        return cfg

    assert train(resumed()).iter == 12
    unit, end = ('iteration', 12) if loop == 'IterBasedTrainLoop' else ('epoch', 2)
    for cfg, words in [
            (resumed(batch_size=3), 'the checkpoint was made with 6 iterations per epoch but this '
             'run has 4: resume with the same data and the same global batch'),
            (resumed(max_epochs=4), f'the checkpoint was made with a CosineAnnealingLR from {unit} '
             f'0 to {end} but this run has one from 0 to {2 * end}: resume with the same '
             'train_cfg.max_epochs and param_scheduler, or start'),
            (resumed(lambda cfg: cfg['optim_wrapper']['optimizer'].update(lr=0.1)),
             'the checkpoint was made with lr=0.001 of the optimizer but this run has 0.1, which '
             'a resume would ignore: resume with the same optim_wrapper, or start a new run with '),
            (resumed(lambda cfg: cfg['optim_wrapper']['optimizer'].update(betas=(0.5, 0.9))),
             'the checkpoint was made with betas=(0.9, 0.999) of the optimizer but this run has '
             '(0.5, 0.9)')]:
        assert said_by(lambda: train(cfg)).startswith(words)  # noqa: B023


def test_without_a_schedule_a_resume_may_train_for_longer(tmp_path):
    cfg = dict(loop_cfg(tmp_path, LOOPS[0]), param_scheduler=[])
    train(cfg)
    cfg['train_cfg']['max_epochs'] = 3
    assert train(dict(cfg, resume=True)).iter == 18


@pytest.mark.parametrize('loop', LOOPS)
def test_a_schedule_beyond_the_end_is_refused_or_said(tmp_path, loop, capfd):
    cfg = loop_cfg(tmp_path, loop)
    unit, end, length = ('iteration', 12, 'train_cfg.max_iters is 12') if 'Iter' in loop else (
        'epoch', 2, 'train_cfg.max_epochs is 2')
    warmup = dict(type='LinearLR', start_factor=0.1, end=end + 1, by_epoch='Iter' not in loop)
    late = dict(type='CosineAnnealingLR', begin=end, by_epoch='Iter' not in loop)
    assert said_by(lambda: train(dict(cfg, param_scheduler=[late]))).startswith(
        f'param_scheduler: CosineAnnealingLR begins at {unit} {end}, but ends at {end} ({length})')
    assert said_by(lambda: train(dict(cfg, param_scheduler=dict(late, begin='20')))) == (
        "param_scheduler: begin of CosineAnnealingLR is '20': give a number.")
    capfd.readouterr()
    assert train(dict(cfg, param_scheduler=[warmup])).iter == 12
    assert capfd.readouterr().out.count(
        f'param_scheduler: LinearLR ends at {unit} {end + 1}, which the training never reaches '
        f'({length}): lower its end in param_scheduler, or train for longer.') == 1


@pytest.mark.parametrize(('schedule', 'reason'), [
    (dict(type='LinearLR', start_factor=5.), 'Starting multiplicative factor should between 0'),
    (dict(type='LinearLR', by_epoch=False, convert_to_iter_based=True), 'Only epoch-based')])
def test_a_schedule_that_mmengine_refuses_is_one_sentence(tmp_path, schedule, reason):
    cfg = dict(loop_cfg(tmp_path, LOOPS[0]), param_scheduler=[schedule])
    assert said_by(lambda: train(cfg)).startswith(
        f'LinearLR cannot be built from the config: {reason}')


def test_an_endless_sampler_may_have_fewer_images_than_a_batch(tmp_path):
    cfg = loop_cfg(tmp_path, 'IterBasedTrainLoop', batch_size=50)
    assert train(cfg).iter == 12
    cfg['train_dataloader']['sampler'] = dict(type='DefaultSampler')
    assert said_by(lambda: train(cfg)).startswith(
        'an epoch of 12 images per process has not one batch of 50: lower')


# -- a batch of one ------------------------------------------------------------------------------


@MODELS.register_module()
class Pooled(BaseModel):
    """A batch norm over ``side`` x ``side`` values per image."""

    def __init__(self, side: int, norm: str = 'BatchNorm2d') -> None:
        super().__init__()
        self.side = side
        self.norm = getattr(nn, norm)(2)

    def forward(self, inputs: torch.Tensor, mode: str = 'tensor') -> dict:
        return dict(loss=self.norm(inputs[:, :, None, None].expand(
            -1, -1, self.side, self.side)).square().mean())


@pytest.mark.parametrize(('side', 'batch', 'drop_last', 'words'), [
    (1, 1, True, 'a batch has one image per process, of which the batch norm norm gets a single '
     'value per channel: set train_dataloader.batch_size to at least 2.'),
    (1, 11, False, 'the last batch of an epoch has one image per process, of which the batch norm '
     'norm gets a single value per channel: set train_dataloader.drop_last=True or another '
     'train_dataloader.batch_size.'),
    (1, 11, True, None), (1, 5, False, None), (2, 1, True, None), (2, 11, False, None)])
def test_a_batch_norm_over_one_value_is_refused_at_the_first_step(
        tmp_path, side, batch, drop_last, words):
    cfg = loop_cfg(tmp_path, LOOPS[0], batch_size=batch)
    cfg['model'] = dict(type='Pooled', side=side)
    cfg['train_dataloader']['drop_last'] = drop_last
    if words:
        assert said_by(lambda: train(cfg)) == words
        assert not list(tmp_path.glob('*.pth'))
    else:
        runner = train(cfg)
        assert not runner.model.norm._forward_pre_hooks


def test_a_frozen_batch_norm_takes_one_image(tmp_path):
    cfg = loop_cfg(tmp_path, LOOPS[0], batch_size=1)
    cfg['model'] = dict(type='Pooled', side=1)
    runner = build_plain(cfg)
    runner.model.norm.train = lambda mode=True: runner.model.norm
    runner.model.norm.training = False
    runner.train()
    assert runner.iter == 24


def refuse_on_rank(cfg: dict) -> None:
    assert said_by(lambda: train(cfg)).startswith('the checkpoint was made with 3 iterations per')


@pytest.mark.dist
@pytest.mark.timeout(60)
def test_both_ranks_refuse_a_resume_with_another_batch(tmp_path):
    assert on_ranks(train, dict(loop_cfg(tmp_path, LOOPS[0]), **ON_CPU_RANKS)) == [0, 0]
    other = dict(loop_cfg(tmp_path, LOOPS[0], batch_size=3), resume=True, **ON_CPU_RANKS)
    assert on_ranks(refuse_on_rank, other) == [0, 0]


def test_a_pre_training_has_the_same_checks(tmp_path, tiny_cfg, tiny_pipeline):
    cfg = Config.fromfile(ROOT / 'configs/pera/pera_tiny_scenes.py')
    assert cfg.default_hooks.run_check.type == 'pera_mm.RunCheckHook'
    assert cfg.default_hooks.finite.type == 'pera_mm.FiniteHook'
    images = draw_images(tmp_path / 'images', 4)
    made = training_cfg(tmp_path / 'run', images, tiny_cfg, tiny_pipeline)
    made['custom_hooks'].append(dict(type='pera_mm.RunCheckHook'))
    train(made)
    made['train_cfg']['max_epochs'] = 3
    assert 'was made with a CosineAnnealingLR from iteration 2 to 4 but' in said_by(
        lambda: train(dict(made, resume=True)))
