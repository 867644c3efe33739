"""When the teacher and the centre advance (paper eq. 7 and 10)."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from pera_mm.registry import HOOKS


def inner_model(runner: Any) -> nn.Module:
    """The self-distillation model itself, out of DDP, FSDP or DeepSpeed's wrapper."""
    model = runner.model
    while is_model_wrapper(model):
        model = model.module
    return model


def made_update(runner: Any) -> bool:
    """Whether the iteration that just ran its ``train_step`` ended in an optimizer step.

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
    """Moves the teacher (eq. 10) and the centre (eq. 7) after a real optimizer step.

    Every micro-iteration adds its batch to the pending centre; the step moves both. The
    reference moves them on every micro-iteration, which changes the teacher's pace with the
    accumulation count. A step that an fp16 gradient scaler skipped counts as real: the teacher
    then moves towards an unmoved student, which is harmless and what the reference does.
    """

    priority = 'NORMAL'

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Account for this batch; advance if the optimizer stepped."""
        model = inner_model(runner)
        model.accumulate()
        if made_update(runner):
            with _whole_root(runner.model):
                model.advance()


def _whole_root(model: nn.Module) -> AbstractContextManager:
    """Under FSDP, gather what belongs to no inner unit (tokens, embeddings, last norm).

    The root unit holds those of both networks in one flat vector, cut without regard to which is
    whose. Inner units are alike in student and teacher, so their shards match as they are.
    """
    if isinstance(model, FullyShardedDataParallel):
        return FullyShardedDataParallel.summon_full_params(model, recurse=False)
    return nullcontext()
