"""The training loop that continues in the middle of an epoch."""

from collections.abc import Mapping
from typing import Any

from mmengine.runner import EpochBasedTrainLoop

from pera_mm.errors import UserError
from pera_mm.registry import LOOPS


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """An epoch loop that resumes exactly, at any iteration.

    The sampler's ``start`` (:class:`~pera_mm.datasets.sampler.DrawSampler`) skips the iterations of
    an epoch that are already done, so no image is read in vain. If all iterations of an epoch are
    done but its end was not reached, its ``after_train_epoch`` hooks and validation still run.

    Checkpoints may be saved by iteration or by epoch. With gradient accumulation they must fall
    on an optimizer step, since the gradients gathered so far are not saved:
    :class:`~pera_mm.engine.hooks.checkpoint.AtomicCheckpointHook` ensures this.

    Raises:
        ValueError: on resuming with another number of iterations per epoch (other data, batch size
            or number of processes), or in mid-epoch with a sampler that has no ``start``.
    """

    def run(self) -> Any:
        """Train from ``(epoch, iter)``, which a resume has set, to the end."""
        self._match_checkpoint()
        return super().run()

    def run_epoch(self) -> None:
        """Run one epoch, without the iterations that were done before a resume."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        self._skip_done(done)
        for idx, data_batch in enumerate(self.dataloader, start=done):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _skip_done(self, iterations: int) -> None:
        batches = self.dataloader.batch_sampler
        if hasattr(batches.sampler, 'start'):
            batches.sampler.start = iterations * batches.batch_size
        elif iterations:
            raise UserError(
                f'cannot resume after {iterations} iterations of an epoch with '
                f'{type(batches.sampler).__name__}: set train_dataloader.sampler to '
                "dict(type='pera_mm.DrawSampler'), or save checkpoints by epoch.")

    def _match_checkpoint(self) -> None:
        """Keep in the message hub, which is saved, what the order of the data depends on."""
        hub, sampler = self.runner.message_hub, self.dataloader.batch_sampler.sampler
        if self._iter:
            check_epoch(hub.runtime_info, self)
            sampler.seed = hub.get_info('sampler_seed', getattr(sampler, 'seed', None))
        hub.update_info('iters_per_epoch', len(self.dataloader))
        hub.update_info('sampler_seed', getattr(sampler, 'seed', None))


def check_epoch(saved: Mapping[str, Any], loop: Any) -> None:
    """Check that an epoch is as long as it was when a checkpoint was made.

    Args:
        saved: the information in the message hub of the checkpoint.
        loop: any training loop.

    Raises:
        ValueError: if it is not.
    """
    now = len(loop.dataloader)
    before = saved.get('iters_per_epoch', now)
    if before != now:
        raise UserError(
            f'the checkpoint was made with {before} iterations per epoch but this run has {now}: '
            'resume with the same data and the same global batch (processes x batch size), or '
            'start a new run with load_from.')
