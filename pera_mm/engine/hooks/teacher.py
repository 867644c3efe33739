"""The hook that moves the teacher and the center (paper eq. 7 and 10)."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from pera_mm.registry import HOOKS


def inner_model(runner: Any) -> nn.Module:
    """The self-distillation model itself, without the wrapper of DDP, FSDP or DeepSpeed."""
    model = runner.model
    while is_model_wrapper(model):
        model = model.module
    return model


def made_update(runner: Any) -> bool:
    """Return whether the ``train_step`` that just ran ended in an optimizer step.

    False on the micro-iterations of gradient accumulation. DeepSpeed's wrapper has no
    ``should_update``; its engine counts micro-steps itself.
    """
    wrapper = runner.optim_wrapper
    if hasattr(wrapper, 'should_update'):
        return wrapper.should_update()
    engine = wrapper.model
    return engine.micro_steps % engine.gradient_accumulation_steps() == 0


@HOOKS.register_module()
class TeacherHook(Hook):
    """Move the teacher (eq. 10) and the center (eq. 7) after an optimizer step.

    Every micro-iteration adds its batch to the pending center; the step moves both. The
    reference moves them on every micro-iteration, so its accumulation count changes the pace of
    the teacher. A step that an fp16 gradient scaler skipped counts, too: the teacher then moves
    towards an unchanged student. This is harmless, and the reference does the same.
    """

    priority = 'NORMAL'

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Count this batch; advance if the optimizer made a step."""
        model = inner_model(runner)
        model.accumulate()
        if made_update(runner):
            with _gathered_root(runner.model):
                model.advance()


def _gathered_root(model: nn.Module) -> AbstractContextManager:
    """Gather under FSDP what is in no inner unit (tokens, embeddings, last norm).

    The root unit holds these of both networks in one flat vector, and the cuts ignore the border
    between the networks. Inner units are alike in student and teacher, so their shards match.
    """
    if isinstance(model, FullyShardedDataParallel):
        return FullyShardedDataParallel.summon_full_params(model, recurse=False)
    return nullcontext()
