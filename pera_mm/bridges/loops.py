"""One sentence where epochs, batches and schedules of a run do not fit each other.

MMEngine builds the loop first, then the schedules from its length. Its schedules assert something
about numbers that no config has. :func:`activate` checks each training loop once it is built, of
whatever class.
"""

from collections.abc import Iterator
from functools import wraps
from typing import Any

from mmengine.dataset import DefaultSampler
from mmengine.runner import FlexibleRunner, IterBasedTrainLoop, Runner
from torch.utils.data import RandomSampler, SequentialSampler

from pera_mm.errors import UserError

FINITE = (DefaultSampler, RandomSampler, SequentialSampler)  # others may give indices without end
NO_END = 10**9  # MMEngine's schedules that end there never end


def activate() -> None:
    """Check the training loop of every runner; a second call changes nothing."""
    for kind in (Runner, FlexibleRunner):
        if not hasattr(kind.build_train_loop, '__wrapped__'):
            _check_after(kind)


def _check_after(kind: Any) -> None:
    build = kind.build_train_loop

    @wraps(build)
    def build_train_loop(self: Any, loop: Any) -> Any:
        built = build(self, loop)
        check_loop(built)
        return built

    kind.build_train_loop = build_train_loop


def check_loop(loop: Any) -> None:
    """Check that an epoch has a batch and that each schedule begins before the end.

    A schedule that ends after the training is one warning in the log.

    Raises:
        ValueError: if not.
    """
    counts_epochs = not isinstance(loop, IterBasedTrainLoop)
    batches = loop.dataloader.batch_sampler  # None in a loader without batches
    sampler = getattr(batches, 'sampler', loop.dataloader.dataset)
    if (counts_epochs or isinstance(sampler, FINITE)) and len(loop.dataloader) == 0:
        raise UserError(
            f'an epoch of {len(sampler)} images per process has not one batch of '
            f'{getattr(batches, "batch_size", 1)}: lower train_dataloader.batch_size, use fewer '
            'processes, or check that train_dataloader.dataset finds all of your images.')
    length = (f'train_cfg.max_epochs is {loop.max_epochs}' if counts_epochs else
              f'train_cfg.max_iters is {loop.max_iters}')
    for cfg in _schedules_in(loop.runner.param_schedulers):
        unit, last = (('epoch', loop.max_epochs) if cfg.get('by_epoch', True) else
                      ('iteration', loop.max_iters))
        begin, end = (_number(cfg, key, other) for key, other in (('begin', 0), ('end', last)))
        if begin >= end:
            raise UserError(
                f'param_scheduler: {cfg["type"]} begins at {unit} {begin}, but ends at {end} '
                f'({length}): lower its begin and the end of the scheduler before it in '
                'param_scheduler.')
        if last < end < NO_END:
            loop.runner.logger.warning(
                f'param_scheduler: {cfg["type"]} ends at {unit} {end}, which the training never '
                f'reaches ({length}): lower its end in param_scheduler, or train for longer.')


def _schedules_in(node: Any) -> Iterator[dict]:
    """Yield the configs of schedules: one, a list, or either for each optimizer by name."""
    if isinstance(node, dict) and 'type' in node:
        yield node
    elif isinstance(node, (dict, list, tuple)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _schedules_in(child)


def _number(cfg: dict, key: str, default: int) -> float:
    value = cfg.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f'param_scheduler: {key} of {cfg["type"]} is {value!r}: give a number.')
    return value
