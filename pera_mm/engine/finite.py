"""The stop of a run that has diverged: one sentence for all tasks, precisions and wrappers."""

from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.logging import MessageHub

from pera_mm.errors import NotFiniteError

LARGEST_WEIGHT = 1e15  # no useful weight comes near; products of such weights overflow


def not_finite(what: str, hub: MessageHub, autocast: bool = False) -> NotFiniteError:
    """Make the error that names the iteration, the last good checkpoint and what to try.

    Args:
        what: is not finite; a clause.
        hub: of the run; it knows the iteration and the checkpoint.
        autocast: whether the run computes with fewer bits than float32.
    """
    step, last = hub.get_info('iter'), hub.get_info('last_ckpt')
    when = '' if step is None else f' in iteration {step + 1}'
    where, start = 'there is no checkpoint yet', 'start again'
    if last and Path(last).exists():
        where = f'the last good checkpoint is {last}'
        start = 'start from it (with load_from, because --resume keeps the learning rate)'
    precision = ', in float32 (--amp off)' if autocast else ''
    return NotFiniteError(
        f'training stops{when}, because {what}; {where}: look for broken pixels or labels, or '
        f'{start} with a lower optim_wrapper.optimizer.lr, a longer warm-up{precision} or a lower '
        'optim_wrapper.clip_grad.max_norm.')


def check_weights(runner: Any) -> None:
    """Stop all ranks if a weight is inf, nan or absurdly large, so that no checkpoint gets it.

    Raises:
        NotFiniteError: on all ranks, also where each has its own shard of the weights.
    """
    tensors = (*runner.model.parameters(), *runner.model.buffers())
    peaks = [torch.linalg.vector_norm(tensor.detach(), torch.inf).float().cpu()
             for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    broken = torch.tensor(float(not all(peak <= LARGEST_WEIGHT for peak in peaks)))
    all_reduce(broken, 'max')
    if broken:
        raise not_finite(f'the weights hold inf, nan or numbers beyond {LARGEST_WEIGHT:g}',
                         runner.message_hub)
