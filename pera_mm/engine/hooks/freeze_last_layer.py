"""A hook that keeps the prototypes fixed while the features begin to move."""

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.hooks import RemovableHandle

from pera_mm.engine.hooks.teacher import inner_model
from pera_mm.errors import UserError
from pera_mm.registry import HOOKS


@HOOKS.register_module()
class FreezeLastLayerHook(Hook):
    """Zero the gradient of the student's last layers in the first epochs (DINO, DINOv2).

    The gradients become zero while they are computed, so DDP exchanges zeros and clipping measures
    zeros. DINO instead drops them after clipping, and DINOv2 sets the layers' learning rate to 0.
    Weight decay continues; it does not change the output of a weight-normalized layer.

    Args:
        epochs: number of frozen epochs, 0 or more; 1 in both papers.

    Raises:
        ValueError: at build for negative ``epochs``; before the run under FSDP, which hides the
            layers in flat vectors.
    """

    def __init__(self, epochs: int = 1) -> None:
        if epochs < 0:
            raise UserError(f'FreezeLastLayerHook: epochs must be 0 or more, got {epochs}.')
        self.epochs = epochs
        self._handles: list[RemovableHandle] = []

    def before_train(self, runner: Runner) -> None:
        """Raise under FSDP, where the layers cannot be found."""
        if isinstance(runner.model, FullyShardedDataParallel) and self.epochs:
            raise UserError('FreezeLastLayerHook cannot find the last layer under FSDP; train '
                            'with DDP, or set default_hooks.freeze_last_layer.epochs=0.')

    def before_train_epoch(self, runner: Runner) -> None:
        """Freeze the layers, or thaw them after the last frozen epoch."""
        self._thaw()
        if runner.epoch < self.epochs:
            student = inner_model(runner).student
            self._handles = [
                parameter.register_hook(torch.zeros_like)
                for name, parameter in student.named_parameters()
                if 'last_layer' in name and parameter.requires_grad
            ]

    def after_train(self, runner: Runner) -> None:
        """Remove the gradient hooks from the model."""
        self._thaw()

    def _thaw(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
