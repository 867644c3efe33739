"""A hook that refuses a run whose parts do not fit each other, before the first update."""

from functools import partial
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pera_mm.engine.hooks.teacher import inner_model
from pera_mm.engine.loops import check_epoch
from pera_mm.errors import UserError
from pera_mm.registry import HOOKS


@HOOKS.register_module()
class RunCheckHook(Hook):
    """Refuse a resume with other settings, and a batch of one image that cannot be normalized.

    MMEngine restores the schedules and the settings of the optimizer from the checkpoint. What the
    config has instead changes nothing: the rate runs down before the end, or stays what it was.
    Here other epochs, schedules or settings of the optimizer are an error, as is another number of
    iterations per epoch (another batch size, other data, another number of processes).

    A batch norm over a single value fails in torch, and in the last batch of an epoch it does so
    after hours. If a batch has one image, the first forward pass shows whether it would.

    Raises:
        ValueError: on all ranks.
    """

    priority = 'ABOVE_NORMAL'  # after StrictLoadHook: the states are there and as many

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare what a resume restores with what the config has."""
        if not runner._resume:
            return
        check_epoch(checkpoint['message_hub']['runtime_info'], runner.train_loop)
        wrapper, schedules = runner.optim_wrapper, runner.param_schedulers
        if isinstance(schedules, list):
            for own, saved in zip(schedules, checkpoint['param_schedulers']):
                _check_schedule(own, saved)
        if isinstance(wrapper, OptimWrapper):
            for own, saved in zip(wrapper.param_groups, checkpoint['optimizer']['param_groups']):
                _check_settings(own, saved)

    def before_train(self, runner: Runner) -> None:
        """Note the length of an epoch for a resume; prepare for a batch of one."""
        runner.message_hub.update_info('iters_per_epoch', len(runner.train_dataloader))
        self._handles = _watch_batch_norm(inner_model(runner), runner.train_dataloader)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Watch no longer."""
        while self._handles:
            self._handles.pop().remove()


def _check_schedule(own: Any, saved: dict) -> None:
    if (own.begin, own.end) != (saved.get('begin'), saved.get('end')):
        unit = 'epoch' if own.by_epoch else 'iteration'
        raise UserError(
            f'the checkpoint was made with a {type(own).__name__} from {unit} {saved.get("begin")} '
            f'to {saved.get("end")} but this run has one from {own.begin} to {own.end}: resume '
            'with the same train_cfg.max_epochs and param_scheduler, or start a new run with '
            'load_from.')


def _check_settings(own: dict, saved: dict) -> None:
    for name, value in own.items():
        key = f'initial_{name}' if f'initial_{name}' in own else name  # where a schedule moves it
        is_number = isinstance(value, (int, float, tuple)) and not isinstance(value, bool)
        if is_number and key in saved and saved[key] != own[key]:
            raise UserError(
                f'the checkpoint was made with {name}={saved[key]} of the optimizer but this run '
                f'has {own[key]}, which a resume would ignore: resume with the same '
                'optim_wrapper, or start a new run with load_from.')


def _watch_batch_norm(model: nn.Module, loader: Any) -> list[Any]:
    """Let the next forward pass fail where a batch of one image leaves a norm a single value.

    Returns:
        handles to remove the watch; none if every batch has two images or more.
    """
    batches = loader.batch_sampler
    size, sampler = getattr(batches, 'batch_size', 2), getattr(batches, 'sampler', loader.dataset)
    images = len(sampler)
    whole = getattr(batches, 'drop_last', True) or isinstance(sampler, InfiniteSampler)
    rest = 0 if whole else images % size
    if 1 not in (size, rest):
        return []
    remedy = ('set train_dataloader.batch_size to at least 2' if size == 1 else
              'set train_dataloader.drop_last=True or another train_dataloader.batch_size')
    where = 'a batch' if size == 1 else 'the last batch of an epoch'
    return [module.register_forward_pre_hook(partial(
        _check_values, min(size, images),
        f'{where} has one image per process, of which the batch norm {name} gets a single value '
        f'per channel: {remedy}.'))
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)]


def _check_values(images: int, sentence: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
    values = inputs[0].numel() / inputs[0].shape[1]
    if module.training and values <= images:
        raise UserError(sentence)
