"""The training loop that continues in the middle of an epoch."""

from collections.abc import Iterator
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
        ValueError: on an epoch without a single batch; on a scheduler that begins after the end
            of the training; on resuming with another number of iterations per epoch (other data,
            batch size or number of processes), or in mid-epoch with a sampler that has no
            ``start``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if len(self.dataloader) == 0:  # else MMEngine's schedulers assert something about lengths
            batches = self.dataloader.batch_sampler
            raise UserError(
                f'an epoch of {len(batches.sampler)} images per process has not one batch of '
                f'{batches.batch_size}: lower train_dataloader.batch_size, use fewer processes, '
                'or check that source holds all of your images.')
        self._check_schedulers()

    def _check_schedulers(self) -> None:
        """Raise if ``max_epochs`` cuts a schedule off; MMEngine's own error names no setting."""
        for cfg in _scheduler_configs(self.runner.param_schedulers):
            unit, last = (('epoch', self.max_epochs) if cfg.get('by_epoch', True) else
                          ('iteration', self.max_iters))
            begin = cfg.get('begin', 0)
            if begin >= cfg.get('end', last):
                raise UserError(
                    f'param_scheduler: {cfg["type"]} begins at {unit} {begin}, but ends at '
                    f'{cfg.get("end", last)} (train_cfg.max_epochs is {self.max_epochs}): lower '
                    'its begin and the end of the scheduler before it in param_scheduler.')

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
        hub, now = self.runner.message_hub, len(self.dataloader)
        sampler = self.dataloader.batch_sampler.sampler
        if self._iter:
            saved = hub.get_info('iters_per_epoch', now)
            if saved != now:
                raise UserError(
                    f'the checkpoint was made with {saved} iterations per epoch but this run has '
                    f'{now}: resume with the same data and the same global batch (processes x '
                    'batch size), or start a new run with load_from.')
            sampler.seed = hub.get_info('sampler_seed', getattr(sampler, 'seed', None))
        hub.update_info('iters_per_epoch', now)
        hub.update_info('sampler_seed', getattr(sampler, 'seed', None))


def _scheduler_configs(node: Any) -> Iterator[dict]:
    """Yield the configs of schedulers: one, a list, or either for each optimizer by name."""
    if isinstance(node, dict) and 'type' in node:
        yield node
    elif isinstance(node, (dict, list, tuple)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _scheduler_configs(child)
