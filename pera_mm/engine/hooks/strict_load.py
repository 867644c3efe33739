"""A hook that loads a checkpoint completely, or stops the run before its first step."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel
from mmengine.optim import OptimWrapper
from mmengine.runner.checkpoint import find_latest_checkpoint
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from pera_mm.engine.hooks.teacher import inner_model
from pera_mm.errors import UserError, printable
from pera_mm.registry import HOOKS, MODELS
from pera_mm.weights.fitting import Differences, compare, not_finite
from pera_mm.weights.names import weights_of

DDP_PREFIX = 'module.'  # also of MMEngine's moving averages
# States of torch's optimizers that have the shape of their parameter; fused optimizers trust it.
_ELEMENTWISE_STATES = ('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'momentum_buffer')


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Make ``load_from`` and ``--resume`` strict, in training and in testing.

    MMEngine loads what fits, mentions the rest in the log, and trains or scores the random
    weights that remain. A fused optimizer with states of another shape ends in a segmentation
    fault. Here a tensor that does not arrive is an error before the first step. Position embeddings
    of another image size still count as arriving with ``load_from``: MMPretrain's ViT resizes
    them.

    A resume also needs the states of the optimizer and of the schedules, and they must fit.
    DeepSpeed's strategy does not call this hook; it is strict by itself.

    Args:
        may_differ: prefixes of the keys that need not fit with ``load_from``, such as
            ``['decode_head.conv_seg.']`` for other classes; the log says what was left out. A
            resume ignores it.

    Raises:
        ValueError: on all ranks, if the file does not fit or has a tensor that is not finite.
    """

    priority = 'HIGH'  # before MMEngine's EMAHook copies the weights

    def __init__(self, may_differ: str | Iterable[str] = ()) -> None:
        self.may_differ = (may_differ,) if isinstance(may_differ, str) else tuple(may_differ)
        if not all(self.may_differ):
            raise UserError(f'may_differ of {type(self).__name__} has an empty prefix, which '
                            'every key begins with: name the keys that may differ.')

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Compare before MMEngine puts weights and optimizer state in place."""
        path = checkpoint_path(runner)
        if not isinstance(checkpoint, dict):
            raise UserError(f'{path} holds a {type(checkpoint).__name__}, not a checkpoint: take '
                            'another file.')
        if runner._resume:
            _check_run(path, checkpoint)
        # MMEngine's Runner strips this prefix of DDP, its FSDP strategy does not.
        weights = weights_of(checkpoint)
        found = {str(key).removeprefix(DDP_PREFIX): value for key, value in weights.items()}
        model = plain_model(runner)
        wanted = model.state_dict()
        if runner._resume:
            _check_resumed(path, compare(found, wanted))
            _check_resumed(path, _compare_average(checkpoint, wanted))
            _check_optimizer(path, checkpoint, runner, model)
            _check_schedules(path, checkpoint, runner)
        else:
            resizable = [f'{name}.pos_embed'.removeprefix('.') for name, module
                         in model.named_modules() if isinstance(module, VisionTransformer)]
            found = self.select_fitting(runner, path, found, wanted, resizable)
        if found.keys() != checkpoint.get('state_dict', {}).keys():
            checkpoint['state_dict'] = found

    def select_fitting(self, runner: Any, path: str, found: Mapping[str, Any],
                wanted: Mapping[str, Tensor], resizable: Iterable[str] = ()) -> dict[str, Any]:
        """Return the tensors of a file that has all of ``wanted``, without those that may differ.

        Args:
            runner: its log gets what was left out.
            path: of the file.
            found: what the file holds.
            wanted: state dict of the tensors that must arrive.
            resizable: as in :func:`pera_mm.weights.fitting.compare`.
        """
        free = compare(*(_select(state, self.may_differ) for state in (found, wanted)), resizable)
        strict = compare(*(_select(state, self.may_differ, False) for state in (found, wanted)),
                         resizable)
        if strict:
            raise UserError(
                f'{path} does not fit the model of the config: {strict}; nothing was loaded. Set '
                "the model's sizes to those of the file, take another file, or name what may "
                'differ by its prefix in default_hooks.weights.may_differ.')
        if free:
            runner.logger.warning(f'{path}: left out, as may_differ allows: {free}.')
        left_out = {*free.unknown, *free.misshaped}
        found = {key: value for key, value in found.items() if key not in left_out}
        if broken := not_finite(found):
            raise UserError(f'{path} holds inf or nan in {len(broken)} of its tensors (first '
                            f'{broken[0]}); nothing was loaded: take an earlier checkpoint.')
        return found


def checkpoint_path(runner: Any) -> str:
    """Return the path that the runner loads, for a message."""
    path = runner._resume if isinstance(runner._resume, str) else runner._load_from
    if path is None and runner._resume:
        path = find_latest_checkpoint(runner.work_dir)
    return printable(path or 'the checkpoint')


def plain_model(runner: Any) -> nn.Module:
    """Return the model without its wrappers; if FSDP has sharded it, a copy without data."""
    if isinstance(runner.model, FullyShardedDataParallel):
        with torch.device('meta'):
            return MODELS.build(runner.cfg.model)
    model = inner_model(runner)
    return model.module if isinstance(model, BaseTTAModel) else model


def _select(state: Mapping[str, Any], prefixes: tuple[str, ...], inside: bool = True) -> dict:
    return {key: value for key, value in state.items() if key.startswith(prefixes) == inside}


def _check_run(path: str, checkpoint: Mapping[str, Any]) -> None:
    """Raise unless the file has, besides weights, all that a resumed run needs."""
    meta = checkpoint.get('meta')
    counted = isinstance(meta, Mapping) and {'epoch', 'iter'} <= meta.keys()
    lacking = [] if counted else ['epoch and iteration']
    lacking += [name for name in ('optimizer', 'message_hub') if name not in checkpoint]
    if lacking:
        raise UserError(
            f'{path} has weights but no {", no ".join(lacking)}, so no run can be resumed from it: '
            f'start a new run from its weights, without --resume and with load_from={path}.')


def _check_resumed(path: str, misfit: Differences | str) -> None:
    if misfit:
        raise UserError(
            f'{path} does not fit this run: {misfit}; nothing was loaded. A resume continues the '
            'same model with the same optimizer: set the config back to that of the run which '
            'wrote the file, or start a new run, without --resume and with load_from.')


def _compare_average(checkpoint: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> Differences:
    """Compare the average of MMEngine's EMAHook, which it swaps with the weights key by key."""
    average = checkpoint.get('ema_state_dict')
    if not isinstance(average, Mapping):
        return Differences([], [], {})
    return compare({key.removeprefix(DDP_PREFIX): value for key, value in average.items()
                    if key.startswith(DDP_PREFIX)}, wanted)


def _check_optimizer(path: str, checkpoint: Mapping[str, Any], runner: Any,
                     model: nn.Module) -> None:
    """Raise unless the state of the optimizer fits its parameters."""
    wrapper, saved = runner.optim_wrapper, checkpoint['optimizer']
    if not isinstance(wrapper, OptimWrapper):  # several optimizers: MMEngine's own checks
        return
    if not _is_optimizer_state(saved):
        _check_resumed(path, 'its optimizer state is not that of one optimizer of PyTorch')
    groups, own = saved['param_groups'], wrapper.optimizer.param_groups
    if len(groups) != len(own):
        _check_resumed(path, f'its optimizer has {_plural(len(groups), "group")} of parameters, '
                             f'that of the config {len(own)}')
    sharded = isinstance(runner.model, FullyShardedDataParallel)
    for index, (group, own_group) in enumerate(zip(groups, own)):
        settings, own_settings = ({name for name in one if not name.startswith('initial_')}
                                  for one in (group, own_group))
        if settings - own_settings and own_settings - settings:  # torch adds some, but drops none
            _check_resumed(path, 'its optimizer is of another type, with '
                           f'{", ".join(sorted(settings - own_settings))} in place of '
                           f'{", ".join(sorted(own_settings - settings))}')
        sizes = len(group['params']), len(own_group['params'])
        if sizes[0] != sizes[1] and not sharded:  # FSDP packs the parameters in vectors
            _check_resumed(path, f'its optimizer has {_plural(sizes[0], "parameter")} in group '
                                 f'{index}, that of the config {sizes[1]}')
    keys = chain.from_iterable(group['params'] for group in groups)
    _check_resumed(path, _misfit_of_states(saved['state'], list(keys), own, model, sharded))


def _is_optimizer_state(saved: Any) -> bool:
    if not isinstance(saved, Mapping):
        return False
    groups, states = saved.get('param_groups'), saved.get('state')
    return (isinstance(groups, list) and isinstance(states, Mapping)
            and all(isinstance(state, Mapping) for state in states.values())
            and all(isinstance(group, Mapping) and isinstance(group.get('params'), list)
                    for group in groups))


def _misfit_of_states(states: Mapping[Any, Mapping[str, Any]], keys: list[Any], own: list[dict],
                      model: nn.Module, sharded: bool) -> str:
    """Describe the first state that has another shape than its parameter; '' if all fit.

    PyTorch's own files number the parameters, those of FSDP name them.
    """
    parameters = dict(model.named_parameters())
    if sharded:
        if not set(keys) <= parameters.keys():
            return 'its optimizer state is not keyed by name, as that of a sharded run is'
        names = keys
    else:
        by_identity = {id(value): name for name, value in parameters.items()}
        names = [by_identity.get(id(value)) for group in own for value in group['params']]
    for key, name in zip(keys, names):
        if isinstance(key, str) and key != name:
            return f'its optimizer has {key} where that of the config has {name}'
        for part in _ELEMENTWISE_STATES:
            state = states.get(key, {}).get(part)
            shape = list(getattr(state, 'shape', ()))
            if name and state is not None and shape != list(parameters[name].shape):
                return (f'{part} of {name} in its optimizer state is {shape}, the parameter '
                        f'{list(parameters[name].shape)}')
    return ''


def _check_schedules(path: str, checkpoint: Mapping[str, Any], runner: Any) -> None:
    """Raise unless there is a state for every schedule; MMEngine zips the two lists."""
    own = runner.param_schedulers
    if not isinstance(own, list):  # none, or one list for each of several optimizers
        return
    saved = checkpoint.get('param_schedulers', [])
    if len(saved) != len(own):
        _check_resumed(path, f'it has the states of {_plural(len(saved), "param_scheduler")}, the '
                             f'config has {len(own)}')


def _plural(count: int, noun: str) -> str:
    return f'{count} {noun}{"" if count == 1 else "s"}'
