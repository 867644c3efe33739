"""Settings that no run can mean are refused before a runner is built, others are mended or said."""

import copy
from pathlib import Path

import pytest
import torch
from made_data import TINY_ARCH
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import FlexibleRunner, Runner

from pera_mm.config_mistakes import check
from pera_mm.errors import UserError

ROOT = Path(__file__).parents[1]


@MODELS.register_module(name='TinyModel')
class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs, mode):
        return dict(loss=self.layer(inputs.float()).mean())


@DATASETS.register_module(name='TinyData')
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.ones(1))


CONFIG = dict(
    model=dict(type='TinyModel'), work_dir='/nowhere', default_scope='mmpretrain',
    train_dataloader=dict(dataset=dict(type='TinyData'), sampler=dict(type='DefaultSampler'),
                          collate_fn=dict(type='default_collate'), batch_size=2, num_workers=0),
    train_cfg=dict(by_epoch=True, max_epochs=3),
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
    default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
    randomness=dict(seed=0))


def changed(**changes):
    cfg = Config(copy.deepcopy(CONFIG))
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return cfg


def test_a_sound_config_is_as_it_was():
    cfg = changed()
    assert check(cfg) == []
    assert cfg.to_dict() == Config(CONFIG).to_dict()


@pytest.mark.parametrize(('changes', 'sentence'), [
    (dict(train_dataloder=dict(batch_size=3)), 'the config has train_dataloder, which nothing '
     'reads; did you mean train_dataloader? A variable of your own needs another name.'),
    (dict(modle=dict(a=1)), 'the config has modle, .* did you mean model?'),
    (dict(custom_hook=[]), 'the config has custom_hook, .* did you mean custom_hooks?'),
    (dict(model=5), 'model is 5: give a dict, or the keys below it, like model.KEY=VALUE.'),
    (dict(optim_wrapper='AdamW'), "optim_wrapper is 'AdamW': give a dict"),
    (dict(model__test_cfg=dict(mode='slid')), "model.test_cfg.mode is 'slid'; did you mean slide?"),
    (dict(train_dataloader__dataset__pipeline=None),
     'train_dataloader.dataset.pipeline is None: leave it'),
    (dict(default_scope='mmpretrained'), "default_scope is 'mmpretrained', and there is no such "
     'toolbox; did you mean mmpretrain?'),
    (dict(randomness__seed='ten'), "randomness.seed is 'ten': give a whole number of at least 0."),
    (dict(randomness__sed=1), 'randomness has no argument sed; did you mean seed?'),

    (dict(train_dataloader__bach_size=3),
     'train_dataloader has no argument bach_size; did you mean batch_size?'),
    *((dict(train_dataloader__batch_size=wrong),
       f'train_dataloader.batch_size is {wrong!r}: give a whole number of at least 1.')
      for wrong in (0, -1, 8.5, 8.0, 'eight', None, True)),
    (dict(val_dataloader=dict(dataset=dict(type='TinyData'), batch_size=0)),
     'val_dataloader.batch_size is 0: give'),
    (dict(val_dataloader=dict(batch_size=1)), 'val_dataloader has no dataset: add'),
    *((dict(train_dataloader__num_workers=wrong),
       f'train_dataloader.num_workers is {wrong!r}: give a whole number of at least 0.')
      for wrong in (-1, 'two', 0.5, None)),

    (dict(optim_wrapper__optimizer__type='AdanW'), 'there is no optimizer AdanW; did you mean'),
    *((dict(optim_wrapper__optimizer__lr=wrong),
       f'optim_wrapper.optimizer.lr is {wrong!r}: give a number above 0.')
      for wrong in (0, -1, 'fast', None, float('nan'), float('inf'))),
    (dict(optim_wrapper__clip_grad=dict(max_norm=-1)),
     'optim_wrapper.clip_grad.max_norm is -1: give a number above 0.'),
    (dict(optim_wrapper__accumulative_counts=0),
     'optim_wrapper.accumulative_counts is 0: give a whole number of at least 1.'),

    *((dict(train_cfg__max_epochs=wrong),
       f'train_cfg.max_epochs is {wrong!r}: give a whole number of at least 1.')
      for wrong in (0, 2.5, '3')),
    (dict(train_cfg__max_epoch=3), 'train_cfg has no argument max_epoch; did you mean max_epochs?'),
    (dict(train_cfg=dict(_delete_=True, max_epochs=3)), 'train_cfg has neither type nor by_epoch'),
    (dict(train_cfg__val_interval=0), 'train_cfg.val_interval is 0: give a whole'),

    (dict(default_hooks=None), 'default_hooks=None would also take away the hooks that'),
    (dict(default_hooks__checkpoint__interval=0),
     'default_hooks.checkpoint.interval is 0: give a whole number of at least 1.'),
    (dict(custom_hooks=[dict(type='EMAHook'), dict(type='EMAHook', interval='often')]),
     "custom_hooks.1.interval is 'often': give a whole number"),
])
def test_what_no_run_can_mean_is_one_sentence(changes, sentence):
    cfg = changed()
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    with pytest.raises(UserError, match=f'^{sentence.replace("?", "[?]")}'):
        check(cfg)


def test_settings_of_workers_are_switched_off_where_there_are_none():
    cfg = changed(train_dataloader__persistent_workers=True, train_dataloader__prefetch_factor=2)
    assert check(cfg) == [
        f'train_dataloader.{key} is switched off, because num_workers is 0.'
        for key in ('persistent_workers', 'prefetch_factor')]
    assert cfg.train_dataloader == changed().train_dataloader
    cfg = changed(train_dataloader__persistent_workers=True, train_dataloader__num_workers=1)
    assert check(cfg) == [] and cfg.train_dataloader.persistent_workers


def test_a_batch_sampler_has_the_batch_size():
    assert check(changed(train_dataloader__batch_size=None,
                         train_dataloader__batch_sampler=dict(type='X', batch_size=3))) == []


def test_a_hook_that_is_none_is_removed():
    cfg = changed(default_hooks__probe=None, default_hooks__timer=None)
    assert check(cfg) == []
    assert cfg.default_hooks == dict(timer=None, checkpoint=CONFIG['default_hooks']['checkpoint'])
    assert check(changed(default_hooks__checkpoint=None)) == [
        'default_hooks.checkpoint is None: this run saves no checkpoint.']


@pytest.mark.parametrize(('loop', 'note'), [
    (dict(val_interval=3), []),
    (dict(val_interval=4), ['train_cfg.val_interval is 4, but the training ends at 3: it validates '
                            'once, at the end.']),
    (dict(val_begin=4), ['train_cfg.val_begin is 4, but the training ends at 3: it never '
                         'validates.'])])
def test_validation_beyond_the_end_is_said(loop, note):
    cfg = changed(train_cfg=loop)
    assert check(cfg) == []  # nothing to validate with
    cfg.val_dataloader = CONFIG['train_dataloader']
    assert check(cfg) == note


@pytest.mark.parametrize(('metric', 'right', 'wrong'), [
    (dict(type='pera_mm.ConfusionMetric', protocols={'6-class': {}, 'car': dict(average=[4])}),
     ('6-class/mF1', 'car/IoU', 'auto'), ('6-class/F1', 'car/mIoU', 'mIoU')),
    (dict(type='IoUMetric'), ('mIoU', 'aAcc'), ('mIou', 'accuracy/top1')),
    (dict(type='Accuracy', topk=(1, 5)), ('accuracy/top5',), ('top1', 'accuracy/top2')),
    (dict(type='Accuracy', prefix='x'), ('x/top1', 'anything'), ())])
def test_the_best_by_a_score_that_nothing_computes(metric, right, wrong):
    for name in right:
        check(changed(val_evaluator=metric, default_hooks__checkpoint__save_best=name))
        other = [metric, dict(type='Unknown')]
        check(changed(val_evaluator=other, default_hooks__checkpoint__save_best='anything'))
    for name in wrong:
        with pytest.raises(UserError, match=f"save_best is '{name}', which val_evaluator does not "
                                            'score: take one of '):
            check(changed(val_evaluator=[metric], default_hooks__checkpoint__save_best=name))


def test_variables_of_a_config_stay():
    assert check(changed(train_pipeline=[], test_pipeline=[], models=dict(), head=1, data_root='x',
                         val_evaluator_abs=dict(), train_dataset=dict())) == []


def test_runners_are_checked_and_say_it_in_their_log(tmp_path):
    options = dict(work_dir=str(tmp_path), experiment_name=tmp_path.name)
    with pytest.raises(UserError, match='randomness.seed'):
        Runner.from_cfg(changed(randomness__seed='ten', **options))
    with pytest.raises(UserError, match='randomness.seed'):
        FlexibleRunner.from_cfg(changed(randomness__seed='ten', **options))
    cfg = changed(train_dataloader__persistent_workers=True, default_hooks__probe=None, **options)
    before = copy.deepcopy(cfg.to_dict())
    runner = Runner.from_cfg(cfg)
    assert cfg.to_dict() == before
    runner.train()
    assert runner.iter == 6
    log, = tmp_path.glob('*/*.log')
    assert 'WARNING - train_dataloader.persistent_workers is switched off' in log.read_text()
    assert 'StrictLoadHook' not in log.read_text()


@pytest.mark.parametrize(('hooks', 'said'), [
    ({}, True), (dict(default_hooks__weights=dict(type='pera_mm.StrictLoadHook')), False)])
def test_loading_without_the_strict_hook_is_said(tmp_path, hooks, said):
    Runner.from_cfg(changed(load_from='x.pth', work_dir=str(tmp_path),
                            experiment_name=tmp_path.name, **hooks))
    log, = tmp_path.glob('*/*.log')
    assert ('no hook of this config is a pera_mm.StrictLoadHook' in log.read_text()) == said


@pytest.mark.parametrize(('head', 'sentence'), [
    (dict(type='LinearClsHead', num_classes=2, in_channels=64),
     'model.head.in_channels is 64, but the backbone gives 32 channels: write that.'),
    (dict(type='LinearClsHead', num_classes=2, in_channels=32,
          loss=dict(type='CrossEntropyLoss', class_weight=[1., 2., 3.])),
     'model.head has 2 classes, but the class_weight of its CrossEntropyLoss has 3 values: give'),
    (dict(type='LinearClsHead', num_classes=2, in_channels=32,
          loss=dict(type='CrossEntropyLoss', class_weight=[1., 2.])), None)])
def test_a_head_that_does_not_fit(tmp_path, head, sentence):
    vit = dict(type='pera_mm.PerAViT', arch=TINY_ARCH, img_size=32, patch_size=16,
               out_type='cls_token')
    cfg = changed(work_dir=str(tmp_path), experiment_name=tmp_path.name, model=dict(
        _delete_=True, type='ImageClassifier', backbone=vit, head=head))
    if sentence is None:
        Runner.from_cfg(cfg)
    else:
        with pytest.raises(UserError, match=sentence):
            Runner.from_cfg(cfg)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_no_config_of_the_project_is_refused():
    files = [path for path in ROOT.glob('configs/**/*.py') if '_base_' not in path.parts]
    checked = 0
    for path in files:
        try:
            cfg = Config.fromfile(path)
        except ImportError:  # of a toolbox that is not installed here
            continue
        assert check(cfg) == [], path
        checked += 1
    assert checked > len(files) / 2
