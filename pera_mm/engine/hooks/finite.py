"""A hook that stops a run whose loss is inf or nan."""

from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from pera_mm.engine.finite import not_finite
from pera_mm.engine.hooks.strict_load import checkpoint_path
from pera_mm.engine.optim_wrapper import AutocastOptimWrapper
from pera_mm.registry import HOOKS

SMALLEST_SCALE = 2.**-24  # the smallest number of float16; a gradient cannot need less


@HOOKS.register_module()
class FiniteHook(Hook):
    """Stop all ranks in the iteration in which the loss is inf or nan, in every task.

    All ranks check the loss together (they exchange one number), unless an ``AutocastOptimWrapper``
    checks the gradients. With another optimizer wrapper nothing else stops the run, and a rank that
    stops alone leaves the others waiting.

    With float16 a gradient that overflows is normal: the scaler skips the step and halves its
    scale. If it does so without end, the run stops, too.

    Raises:
        NotFiniteError: on all ranks, if the loss of any is inf or nan, or the scale of float16
            falls below :data:`SMALLEST_SCALE`.
    """

    priority = 'ABOVE_NORMAL'  # before TeacherHook: a broken student never reaches the teacher

    def before_train(self, runner: Runner) -> None:
        """Note from where the run was resumed: the path in the checkpoint may be an old one."""
        if runner.iter:
            runner.message_hub.update_info('last_ckpt', checkpoint_path(runner))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict[str, Tensor] | None = None) -> None:
        """Check the loss, and the scale of float16."""
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, AutocastOptimWrapper) or outputs is None or 'loss' not in outputs:
            return
        what = _about_loss(outputs)
        scaled = isinstance(wrapper, AmpOptimWrapper)
        if what is None and scaled and wrapper.loss_scaler.get_scale() < SMALLEST_SCALE:
            what = ('the gradients are inf or nan at every scale of the loss down to '
                    f'{SMALLEST_SCALE:.2g}')
        if what is not None:
            raise not_finite(what, runner.message_hub, autocast=scaled)


def _about_loss(losses: dict[str, Tensor]) -> str | None:
    """Say whose loss is not finite, the same on all ranks; None if every loss is."""
    broken = (~torch.isfinite(losses['loss'].detach())).float()
    all_reduce(broken, op='max')
    if not broken:
        return None
    mine = [name for name, value in losses.items() if not torch.isfinite(value)]
    found = [f'rank {rank}: {", ".join(names)}'
             for rank, names in enumerate(all_gather_object(mine)) if names]
    return f'the loss is inf or nan ({"; ".join(found)})'
