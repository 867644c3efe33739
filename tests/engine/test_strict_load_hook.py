"""What does not arrive whole stops the run before its first step, in one sentence."""

import os
import runpy
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from training_runs import (
    ON_CPU_RANKS,
    build_runner,
    draw_images,
    last_checkpoint,
    line_cfg,
    on_ranks,
    train,
    training_cfg,
)

from pera_mm.engine.hooks.strict_load import StrictLoadHook
from pera_mm.registry import MODELS

ROOT = Path(__file__).parents[2]
STRICT = dict(type='pera_mm.StrictLoadHook')


class Steps(Hook):
    """Counts the iterations that were begun."""

    begun = 0

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.begun += 1


@pytest.fixture
def cfg(tmp_path, tiny_cfg, tiny_pipeline):
    """Makes the config of 2 epochs of 2 iterations, saved every 2."""
    images = draw_images(tmp_path / 'images', 4)

    def make(model=tiny_cfg, max_epochs=2, **options):
        cfg = training_cfg(tmp_path / 'run', images, deepcopy(model), tiny_pipeline, interval=2,
                           max_epochs=max_epochs, **options)
        cfg['default_hooks']['weights'] = STRICT
        return cfg

    return make


def refused(cfg) -> str:
    """The sentence that ends a run before its first step."""
    steps = Steps()
    with pytest.raises(ValueError) as error:
        build_runner(cfg, (steps,)).train()
    assert steps.begun == 0
    assert '\n' not in str(error.value)
    return str(error.value)


def edit(folder, change):
    """Change the last checkpoint of a run."""
    path = (folder / 'last_checkpoint').read_text()
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, path)


def wider(model):
    model['backbone']['arch'].update(embed_dims=64)


def more_prototypes(model):
    model['projector'].update(num_prototypes=128)


def deeper(model):
    model['backbone']['arch'].update(num_layers=5)


def shallower(model):
    model['backbone']['arch'].update(num_layers=3)


def larger(model):
    model['backbone'].update(img_size=128)


@pytest.mark.parametrize(('change', 'words'), [
    (wider, 'misshaped (first mask_token, [1, 1, 32] in the file, [1, 1, 64] in the model)'),
    (more_prototypes, ': 5 misshaped (first student.projector.last_layer.weight_v, [64, 16] in the '
     'file, [128, 16] in the model)'),
    (deeper, ': 24 missing (first student.backbone.layers.4.ln1.weight)'),
    (shallower, ': 24 without a place (first student.backbone.layers.3.ln1.weight)'),
    (larger, ': 2 misshaped (first student.backbone.pos_embed, [1, 17, 32] in the file, '
     '[1, 65, 32] in the model)'),
])
def test_a_resume_of_another_model(tmp_path, cfg, tiny_cfg, change, words):
    train(cfg())
    other = deepcopy(tiny_cfg)
    change(other)
    sentence = refused(cfg(other, resume=True, max_epochs=3))
    assert sentence.startswith(f'{tmp_path}/run/iter_4.pth does not fit this run: ')
    assert words in sentence
    assert 'nothing was loaded' in sentence and 'load_from' in sentence


@pytest.mark.parametrize(('change', 'words'), [
    (lambda checkpoint: checkpoint['state_dict'].update(surplus=torch.zeros(1)),
     '1 without a place (first surplus)'),
    (lambda checkpoint: checkpoint['state_dict'].update(weight=[1., 1.]),
     '1 misshaped (first weight, a list in the file, [2] in the model)'),
    (lambda checkpoint: checkpoint['optimizer']['state'][0].update(exp_avg=torch.zeros(9)),
     'exp_avg of weight in its optimizer state is [9], the parameter [2]'),
    (lambda checkpoint: checkpoint['optimizer'].update(state=[]),
     'its optimizer state is not that of one optimizer'),
    (lambda checkpoint: checkpoint['optimizer'].update(line=checkpoint['optimizer'].pop('state')),
     'its optimizer state is not that of one optimizer'),
    (lambda checkpoint: checkpoint['optimizer']['param_groups'].append(dict(params=[1])),
     'its optimizer has 2 groups of parameters, that of the config 1'),
    (lambda checkpoint: checkpoint['optimizer']['param_groups'][0]['params'].append(1),
     'its optimizer has 2 parameters in group 0, that of the config 1'),
    (lambda checkpoint: checkpoint['optimizer']['param_groups'][0].update(params=['bias']),
     'its optimizer has bias where that of the config has weight'),
    (lambda checkpoint: checkpoint['param_schedulers'].pop(),
     'it has the states of 2 param_schedulers, the config has 3'),
    (lambda checkpoint: checkpoint.pop('param_schedulers'),
     'it has the states of 0 param_schedulers, the config has 3'),
])
def test_a_resume_whose_file_does_not_fit(tmp_path, change, words):
    cfg = line_cfg(tmp_path)
    cfg['custom_hooks'] = [STRICT]
    train(cfg)
    edit(tmp_path, change)
    assert words in refused(dict(cfg, resume=True))


def test_a_resume_with_another_optimizer(tmp_path):
    cfg = line_cfg(tmp_path)
    cfg['custom_hooks'] = [STRICT]
    train(cfg)
    cfg['optim_wrapper']['optimizer'] = dict(type='SGD', lr=0.1)
    sentence = refused(dict(cfg, resume=True))
    assert 'its optimizer is of another type, with amsgrad, betas, ' in sentence
    assert ' in place of dampening, momentum, nesterov; nothing was loaded' in sentence


@pytest.mark.parametrize(('left', 'words'), [
    (['state_dict'], 'no epoch and iteration, no optimizer, no message_hub'),
    (['state_dict', 'meta', 'message_hub'], 'has weights but no optimizer, so no run'),
])
def test_a_resume_of_weights_alone(tmp_path, left, words):
    cfg = line_cfg(tmp_path / 'run')
    cfg['custom_hooks'] = [STRICT]
    train(cfg)
    file = tmp_path / 'weights.pth'
    whole = last_checkpoint(tmp_path / 'run')
    torch.save({key: whole[key] for key in left}, file)
    sentence = refused(dict(cfg, resume=True, load_from=str(file)))
    assert words in sentence and f'load_from={file}' in sentence
    torch.save(whole['state_dict'], file)
    assert 'no epoch and iteration' in refused(dict(cfg, resume=True, load_from=str(file)))
    torch.save([1], file)
    assert 'holds a list, not a checkpoint' in refused(dict(cfg, load_from=str(file)))


def test_a_moving_average_resumes_only_if_it_fits(tmp_path):
    cfg = line_cfg(tmp_path)
    cfg['custom_hooks'] = [STRICT, dict(type='EMAHook')]
    train(cfg)
    more = line_cfg(tmp_path, max_epochs=3, resume=True)
    more['custom_hooks'] = cfg['custom_hooks']
    for change, words in [
            (lambda checkpoint: None, None),
            (lambda checkpoint: checkpoint['ema_state_dict'].pop('module.weight'),
             '1 missing (first weight)')]:
        edit(tmp_path, change)
        if words:
            assert words in refused(more)
        else:
            assert train(more).iter == 18


# load_from ---------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path, tiny_cfg):
    """A file with the weights of a PerA, all of them different from a new one's."""
    state = {key: torch.randn_like(value)
             for key, value in MODELS.build(tiny_cfg).state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'weights.pth')
    return tmp_path / 'weights.pth'


class Start(Hook):
    """Keeps the weights that training starts with."""

    def before_train(self, runner):
        self.state = {key: value.clone() for key, value in runner.model.state_dict().items()}


@pytest.mark.parametrize('change', [wider, more_prototypes, deeper, shallower])
def test_the_weights_of_another_model(cfg, tiny_cfg, weights, change):
    change(tiny_cfg)
    sentence = refused(cfg(tiny_cfg, load_from=str(weights)))
    assert f'{weights} does not fit the model of the config: ' in sentence
    assert 'nothing was loaded' in sentence and 'default_hooks.weights.may_differ' in sentence


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_weights_that_fit_arrive(cfg, weights, tmp_path, prefix):
    state = torch.load(weights)['state_dict']
    bare = tmp_path / 'bare.pth'
    torch.save({prefix + key: value for key, value in state.items()}, bare)
    start = Start()
    train(cfg(load_from=str(bare)), start)
    assert all(torch.equal(start.state[key], value) for key, value in state.items())


def test_position_embeddings_are_resized(cfg, tiny_cfg, weights):
    larger(tiny_cfg)
    start = Start()
    train(cfg(tiny_cfg, load_from=str(weights)), start)
    state = torch.load(weights)['state_dict']
    assert start.state['student.backbone.pos_embed'].shape == (1, 65, 32)
    assert torch.equal(start.state['student.backbone.pos_embed'][:, 0],
                       state['student.backbone.pos_embed'][:, 0])
    state['teacher.backbone.pos_embed'] = torch.zeros(1, 19, 32)  # not a square
    torch.save(dict(state_dict=state), weights)
    assert '1 misshaped (first teacher.backbone.pos_embed' in refused(
        cfg(tiny_cfg, load_from=str(weights)))


def test_what_may_differ_is_left_out(cfg, tiny_cfg, weights, tmp_path):
    more_prototypes(tiny_cfg)
    options = cfg(tiny_cfg, load_from=str(weights))
    options['log_level'] = 'INFO'
    options['default_hooks']['weights'] = dict(
        STRICT, may_differ=['student.projector.last_layer.', 'teacher.projector.last_layer.'])
    assert ': 1 misshaped (first distillation.center.value, ' in refused(options)
    options['default_hooks']['weights']['may_differ'].append('distillation.center.value')
    start = Start()
    train(options, start)
    state = torch.load(weights)['state_dict']
    loaded = [key for key in state if torch.equal(start.state[key], state[key])]
    assert len(loaded) == len(state) - 5
    log = ''.join(path.read_text() for path in (tmp_path / 'run').glob('*/*.log'))
    assert 'left out, as may_differ allows: 5 misshaped (first student.projector.last' in log
    assert start.state['student.projector.last_layer.weight_v'].shape == (128, 16)


def test_a_tensor_that_is_not_finite(cfg, weights):
    state = torch.load(weights)['state_dict']
    state['mask_token'][0, 0, 7] = float('nan')
    torch.save(dict(state_dict=state), weights)
    assert 'holds inf or nan in 1 of its tensors (first mask_token)' in refused(
        cfg(load_from=str(weights)))


def test_an_empty_prefix_is_refused():
    assert StrictLoadHook('head.').may_differ == ('head.',)
    with pytest.raises(ValueError, match='empty prefix'):
        StrictLoadHook(['head.', ''])


# Everywhere --------------------------------------------------------------------------------------

TOY = """
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS


@DATASETS.register_module(force=True)
class Points(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.rand(4), index % 2


@MODELS.register_module(force=True)
class Toy(BaseModel):
    def __init__(self, classes=2, width=4):
        super().__init__()
        self.backbone = torch.nn.Linear(4, width)
        self.head = torch.nn.Linear(width, classes)

    def forward(self, x, y, mode):
        scores = self.head(self.backbone(x))
        loss = torch.nn.functional.cross_entropy(scores, y)
        return dict(loss=loss) if mode == 'loss' else list(scores)


@METRICS.register_module(force=True)
class Count(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(count=len(results))
"""
CONFIG = """
custom_imports = dict(imports=['toy_classes', 'pera_mm'], allow_failed_imports=False)
model = dict(type='Toy', classes=2, width=4)
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(type='Points'),
                        sampler=dict(type='DefaultSampler', shuffle=False),
                        collate_fn=dict(type='default_collate'))
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.1, fused=True))
test_dataloader = train_dataloader
test_cfg = dict()
test_evaluator = dict(type='Count')
default_hooks = dict(weights=dict(type='pera_mm.StrictLoadHook', may_differ=[]),
                     checkpoint=dict(type='CheckpointHook', interval=1))
load_from = None
"""


@pytest.fixture
def tool(tmp_path, monkeypatch, capsys):
    """Runs ``python tools/NAME ARGUMENTS`` in a folder with a toy; exit code and stderr."""
    (tmp_path / 'toy_classes.py').write_text(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')

    def run(name, *arguments):
        run.number += 1
        config = tmp_path / f'toy{os.getpid()}_{tmp_path.parent.name}_{run.number}.py'
        config.write_text(CONFIG)  # MMEngine names a run by its config and the second
        monkeypatch.setattr(sys, 'argv', [name, str(config), *arguments])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err

    run.number = 0
    return run


def test_the_tools_say_it_in_one_sentence(tool, tmp_path):
    assert tool('train.py', '--work-dir', 'first')[0] == 0
    assert tool('test.py', 'first/epoch_1.pth')[0] == 0
    torch.save(dict(state_dict={'backbone.stem.weight': torch.zeros(3)}), 'other.pth')
    wide, classes = ['--cfg-options', 'model.width=8'], ['--cfg-options', 'model.classes=5']
    for arguments, words in [
            (['test.py', 'other.pth'],
             'other.pth does not fit the model of the config: 4 missing (first backbone.weight), '
             '1 without a place (first backbone.stem.weight); nothing was loaded'),
            (['test.py', 'first/epoch_1.pth', *classes], '2 misshaped (first head.weight, [2, 4]'),
            (['train.py', *classes, 'load_from=first/epoch_1.pth'], '2 misshaped (first head.weig'),
            (['train.py', '--resume', 'first/epoch_1.pth', *wide, 'train_cfg.max_epochs=2'],
             'first/epoch_1.pth does not fit this run: 3 misshaped (first backbone.weight'),
            (['train.py', '--resume', 'other.pth'], 'other.pth has weights but no epoch')]:
        code, error = tool(*arguments)
        assert code.startswith('Error: ') and words in code and '\n' not in code
        assert 'Traceback' not in error
    assert tool('train.py', *classes, 'load_from=first/epoch_1.pth',
                'default_hooks.weights.may_differ=[head.]')[0] == 0


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')) + sorted(
    path for path in (ROOT / 'configs').rglob('*/*.py')
    if not {'_base_', 'collect'} & set(path.parts)), ids=lambda path: path.stem)
def test_every_config_has_the_hook(path):
    cfg = Config.fromfile(path, import_custom_modules=False)
    hook = cfg.default_hooks.weights.type
    assert hook == ('pera_mm.ContinueHook' if 'continue' in path.stem else
                    'pera_mm.StrictLoadHook')


def _note_the_refusal(cfg: dict, folder: Path) -> None:
    try:
        build_runner(cfg).train()
    except ValueError as error:
        (folder / f'rank{os.environ["RANK"]}').write_text(str(error))


@pytest.mark.dist
@pytest.mark.parametrize('options', [
    ON_CPU_RANKS,
    pytest.param(dict(launcher='pytorch',
                      strategy=dict(type='pera_mm.engine.strategy.ShardedStrategy')),
                 marks=pytest.mark.slow)], ids=['ddp', 'sharded'])
@pytest.mark.parametrize('resume', [True, False])
def test_two_ranks_stop_together(tmp_path, cfg, tiny_cfg, options, resume):
    assert on_ranks(train, cfg(**options)) == [0, 0]
    more_prototypes(tiny_cfg)
    start = dict(resume=True) if resume else dict(load_from=str(tmp_path / 'run/iter_2.pth'))
    ranks = cfg(tiny_cfg, max_epochs=3, **options, **start)
    assert on_ranks(_note_the_refusal, ranks, tmp_path) == [0, 0]
    first, second = ((tmp_path / f'rank{rank}').read_text() for rank in (0, 1))
    assert first == second and ': 5 misshaped (first student.projector.last_layer' in first


@pytest.mark.dist
@pytest.mark.slow
def test_a_sharded_run_resumes_with_the_hook(tmp_path, cfg):
    sharded = dict(launcher='pytorch',
                   strategy=dict(type='pera_mm.engine.strategy.ShardedStrategy'))
    assert on_ranks(train, cfg(**sharded)) == [0, 0]
    assert on_ranks(train, cfg(max_epochs=3, resume=True, **sharded)) == [0, 0]
    assert last_checkpoint(tmp_path / 'run')['meta']['iter'] == 3
    edit(tmp_path / 'run', lambda checkpoint: checkpoint['optimizer']['state']['mask_token'].update(
        exp_avg=torch.zeros(1, 1, 16)))
    assert on_ranks(_note_the_refusal, cfg(max_epochs=4, resume=True, **sharded), tmp_path) == [
        0, 0]
    assert 'exp_avg of mask_token in its optimizer state is [1, 1, 16], the parameter ' in (
        tmp_path / 'rank1').read_text()
