"""The checks of a config before a runner is built from it.

The types and keys of what a runner builds are checked when it builds them
(:mod:`pera_mm.bridges.building`). Here is what MMEngine takes as it is: names of the settings
themselves, numbers of loaders and loops, intervals, and hooks that are switched off.
"""

import copy
import math
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher, get_close_matches
from functools import wraps
from importlib.util import find_spec
from inspect import signature
from typing import Any

from mmengine.registry import MODELS, OPTIMIZERS
from mmengine.runner import (
    EpochBasedTrainLoop,
    FlexibleRunner,
    IterBasedTrainLoop,
    Runner,
)
from torch import nn
from torch.utils.data import DataLoader

from pera_mm.bridges.building import check_keys, find
from pera_mm.errors import UserError

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
NO_SCALARS = ('model', *LOADERS, 'train_cfg', 'val_cfg', 'test_cfg', 'optim_wrapper',
              'default_hooks', 'custom_hooks', 'param_scheduler', 'val_evaluator',
              'test_evaluator', 'visualizer', 'env_cfg', 'randomness', 'auto_scale_lr')
SETTINGS = {*signature(Runner).parameters, *signature(FlexibleRunner).parameters, 'custom_imports',
            'runner_type', 'tta_model', 'tta_pipeline', 'find_unused_parameters', 'sync_bn',
            'activation_checkpointing', 'model_wrapper_cfg'} - {'cfg'}
SIMILAR = 0.9  # of an unknown setting to a known one; other settings are a config's own variables
OF_WORKERS = ('persistent_workers', 'prefetch_factor')  # torch refuses them without workers
OF_MMENGINE = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
SCOPES = ('mmengine', 'mmpretrain', 'mmseg', 'mmdet', 'opencd', 'pera_mm')
IOU_SCORES = {'aAcc', 'mIoU', 'mAcc', 'mDice', 'mFscore', 'mPrecision', 'mRecall'}


def activate() -> None:
    """Check every config that a runner is built from; a second call changes nothing."""
    for kind in (Runner, FlexibleRunner):
        if not hasattr(kind.from_cfg, '__wrapped__'):
            _check_before(kind)


def _check_before(kind: Any) -> None:
    build = kind.from_cfg.__func__

    @wraps(build)
    def from_cfg(cls: type, cfg: Any) -> Any:
        cfg = copy.deepcopy(cfg)
        notes = check(cfg)
        runner = build(cls, cfg)
        _check_widths(runner.model)
        _check_class_weights(runner.model)
        for note in [*notes, *_about_loading(runner)]:
            runner.logger.warning(note)
        return runner

    kind.from_cfg = classmethod(from_cfg)


def check(cfg: Any) -> list[str]:
    """Check a config, and mend what has one meaning.

    Args:
        cfg: of a runner. Changed in place: hooks that are None are removed, and the settings of
            workers where there are none.

    Returns:
        One sentence for each thing that was changed, or is as a user may not expect.

    Raises:
        ValueError: on what no run can mean.
    """
    _check_settings(cfg)
    notes: list[str] = []
    for name in LOADERS:
        if isinstance(cfg.get(name), dict):
            notes += _check_loader(name, cfg[name])
    _check_optimizer(_dict(cfg.get('optim_wrapper')), cfg.get('default_scope'))
    notes += _check_training(cfg)
    notes += _check_hooks(cfg)
    return notes


def _check_settings(cfg: Any) -> None:
    for key in cfg.keys() - SETTINGS:
        if known := _meant(key, cfg):
            raise UserError(f'the config has {key}, which nothing reads; did you mean {known}? A '
                            'variable of your own needs another name.')
    for key in NO_SCALARS:
        if isinstance(cfg.get(key), (str, int, float)):
            raise UserError(f'{key} is {cfg[key]!r}: give a dict, or the keys below it, like '
                            f'{key}.KEY=VALUE.')
    windows = _dict(_dict(cfg.get('model')).get('test_cfg')).get('mode')  # of MMSegmentation
    if match := get_close_matches(str(windows), ('slide', 'whole'), n=1):
        if windows != match[0]:
            raise UserError(f'model.test_cfg.mode is {windows!r}; did you mean {match[0]}?')
    scope = cfg.get('default_scope')
    if isinstance(scope, str) and find_spec(scope.partition('.')[0] or '-') is None:
        match = get_close_matches(scope, [*SCOPES, *MODELS.children], n=1)
        if match and scope not in match:
            raise UserError(f'default_scope is {scope!r}, and there is no such toolbox; did you '
                            f'mean {match[0]}?')
    randomness = cfg.get('randomness') or {}
    check_keys(Runner.set_randomness, randomness, 'randomness')
    if randomness.get('seed') is not None:
        _check_integer('randomness.seed', randomness['seed'], 0)


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _meant(key: str, cfg: Any) -> str | None:
    """Find the setting that an unknown one is a typo of, if it is not a variable of the config."""
    for known in sorted(SETTINGS):
        plural = key == f'{known}s' and known in cfg
        if not plural and (SequenceMatcher(None, key, known).ratio() >= SIMILAR
                           or sorted(key) == sorted(known)):
            return known
    return None


def _check_loader(name: str, loader: dict) -> Iterator[str]:
    given = loader.keys() - {'num_batch_per_epoch', 'disable_subprocess_warning'}
    check_keys(DataLoader, given, name)
    if 'dataset' not in loader:
        raise UserError(f'{name} has no dataset: add {name}.dataset.')
    for key in ('pipeline', 'data_prefix'):
        if _dict(loader['dataset']).get(key, '') is None:
            raise UserError(f'{name}.dataset.{key} is None: leave it as it is in the base, or give '
                            'your own.')
    if loader.get('batch_size', 1) is not None or not loader.get('batch_sampler'):
        _check_integer(f'{name}.batch_size', loader.get('batch_size', 1), 1)
    workers = loader.get('num_workers', 0)
    _check_integer(f'{name}.num_workers', workers, 0)
    for key in OF_WORKERS:
        if workers == 0 and loader.pop(key, None):
            yield f'{name}.{key} is switched off, because num_workers is 0.'


def _check_optimizer(wrapper: dict, scope: str | None) -> None:
    optimizer, clip = (_dict(wrapper.get(key)) for key in ('optimizer', 'clip_grad'))
    if isinstance(optimizer.get('type'), str):  # MMEngine asks for its signature first
        find(OPTIMIZERS, optimizer['type'], scope)
    _check_positive('optim_wrapper.optimizer.lr', optimizer.get('lr', 1))
    _check_positive('optim_wrapper.clip_grad.max_norm', clip.get('max_norm', 1))
    _check_integer('optim_wrapper.accumulative_counts', wrapper.get('accumulative_counts', 1), 1)


def _check_training(cfg: Any) -> Iterator[str]:
    loop = cfg.get('train_cfg')
    if not isinstance(loop, dict):
        return
    if 'type' not in loop:
        if 'by_epoch' not in loop:
            raise UserError('train_cfg has neither type nor by_epoch: add by_epoch=True for '
                            'max_epochs, or by_epoch=False for max_iters.')
        kind = EpochBasedTrainLoop if loop['by_epoch'] else IterBasedTrainLoop
        check_keys(kind, loop.keys() - {'by_epoch'}, 'train_cfg')
    for key in ('max_epochs', 'max_iters', 'val_interval'):
        if key in loop:
            whole = isinstance(loop[key], float) and loop[key].is_integer()  # MMEngine takes 3e4
            _check_integer(f'train_cfg.{key}', int(loop[key]) if whole else loop[key], 1)
    last = loop.get('max_epochs', loop.get('max_iters'))
    if cfg.get('val_dataloader') is None or last is None:
        return
    for key, result in (('val_begin', 'it never validates'),
                        ('val_interval', 'it validates once, at the end')):
        if loop.get(key, 1) > last:
            yield f'train_cfg.{key} is {loop[key]}, but the training ends at {last}: {result}.'


def _check_hooks(cfg: Any) -> Iterator[str]:
    if 'default_hooks' in cfg and cfg['default_hooks'] is None:
        raise UserError('default_hooks=None would also take away the hooks that the model trains '
                        'with and that load checkpoints completely: switch single ones off, like '
                        'default_hooks.logger=None.')
    hooks = cfg.get('default_hooks') or {}
    for name in [name for name, hook in hooks.items() if hook is None]:
        if name not in OF_MMENGINE:  # MMEngine asserts that others are not None
            del hooks[name]
        elif name == 'checkpoint' and cfg.get('train_cfg'):
            yield 'default_hooks.checkpoint is None: this run saves no checkpoint.'
    named = [(f'default_hooks.{name}', hook) for name, hook in hooks.items()]
    named += [(f'custom_hooks.{index}', hook)
              for index, hook in enumerate(cfg.get('custom_hooks') or ())]
    for name, hook in named:
        if isinstance(hook, dict) and hook.get('interval', -1) not in (-1, None):
            _check_integer(f'{name}.interval', hook['interval'], 1)
    _check_best(hooks.get('checkpoint'), cfg.get('val_evaluator'))


def _check_best(checkpoint: Any, evaluator: Any) -> None:
    """Raise if the best checkpoint is that by a score which the evaluators do not have."""
    best = _dict(checkpoint).get('save_best')
    if best is None or evaluator is None:
        return
    scores: set[str] = set()
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        known = _scores_of(metric) if isinstance(metric, dict) else None
        if known is None:
            return
        scores |= known
    for name in {best} if isinstance(best, str) else set(best):
        if name != 'auto' and name not in scores:
            raise UserError(f'default_hooks.checkpoint.save_best is {name!r}, which val_evaluator '
                            f'does not score: take one of {", ".join(sorted(scores))}.')


def _scores_of(metric: dict) -> set[str] | None:
    """Return the names of a metric's scores; None if they are not known here."""
    kind = str(metric.get('type')).rpartition('.')[2]
    if metric.get('prefix') is not None:
        return None
    if kind == 'ConfusionMetric':
        return {f'{name}/{score}' for name, protocol in (metric.get('protocols') or {}).items()
                for score in (('F1', 'IoU', 'precision', 'recall')
                              if len(protocol.get('average', ())) == 1 else ('mF1', 'mIoU', 'OA'))}
    if kind == 'IoUMetric':
        return IOU_SCORES
    if kind == 'Accuracy' and metric.get('thrs', 0.) == 0.:
        topk = metric.get('topk', (1,))
        return {f'accuracy/top{k}' for k in ((topk,) if isinstance(topk, int) else topk)}
    return None


def _about_loading(runner: Any) -> Iterable[str]:
    names = {kind.__name__ for hook in runner.hooks for kind in type(hook).__mro__}
    if isinstance(runner, Runner) and 'StrictLoadHook' not in names and (
            runner._load_from or runner._resume):
        yield ('no hook of this config is a pera_mm.StrictLoadHook, so a checkpoint that does not '
               'fit is loaded in part, and the rest stays random.')


def _check_widths(model: Any) -> None:
    """Raise if what follows one of our backbones expects other channels than it gives."""
    backbone: Any = getattr(model, 'backbone', None)
    if not type(backbone).__module__.startswith('pera_mm.models.backbones.'):
        return
    for name in ('neck', 'head', 'decode_head'):
        part = getattr(model, name, None)
        if part is not None:
            expected = getattr(part, 'in_channels', backbone.embed_dims)
            for channels in expected if isinstance(expected, (list, tuple)) else [expected]:
                if channels != backbone.embed_dims:
                    raise UserError(f'model.{name}.in_channels is {expected}, but the backbone '
                                    f'gives {backbone.embed_dims} channels: write that.')
            return  # what follows sees the channels of this


def _check_class_weights(model: Any) -> None:
    """Raise if a loss has weights of more or fewer classes than its head has."""
    for name in ('decode_head', 'auxiliary_head', 'head'):
        part: Any = getattr(model, name, None)
        for head in part if isinstance(part, nn.ModuleList) else [part]:
            classes = getattr(head, 'out_channels', getattr(head, 'num_classes', None))
            for loss in head.modules() if classes else ():
                weights = getattr(loss, 'class_weight', None)
                if isinstance(weights, (list, tuple)) and len(weights) != classes:
                    raise UserError(f'model.{name} has {classes} classes, but the class_weight of '
                                    f'its {type(loss).__name__} has {len(weights)} values: give '
                                    'one for each class.')


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f'{name} is {value!r}: give a whole number of at least {least}.')


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, (bool, str)) or value is None or not 0 < value < math.inf:
        raise UserError(f'{name} is {value!r}: give a number above 0.')
