"""A checkpoint hook whose files are complete or absent, even if a signal stops the run."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process, master_only
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop
from mmengine.runner.checkpoint import find_latest_checkpoint

from pera_mm.engine.finite import check_weights
from pera_mm.engine.hooks.teacher import made_update
from pera_mm.engine.loops import ResumableTrainLoop
from pera_mm.errors import FileError, UserError
from pera_mm.files import Claim
from pera_mm.registry import HOOKS
from pera_mm.stopping import GuardedWorker, StopSignals, end_with_launcher

INCOMPLETE = '.incomplete'  # suffix of what is being written
GLOO_TIMEOUT = 1800  # s, PyTorch's default


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """A ``CheckpointHook`` that is safe against a kill and a full disk.

    A checkpoint (a file, or a folder of FSDP or DeepSpeed) is written beside its place with the
    suffix ``.incomplete``, flushed to the disk, and only then renamed. ``last_checkpoint`` follows
    in the same way. Outdated checkpoints are removed last. The next start removes what a kill left
    behind. ``out_dir`` must be on a file system (no object store).

    With gradient accumulation a save waits for the next optimizer step, because a checkpoint does
    not hold accumulated gradients. Arguments are those of :class:`mmengine.hooks.CheckpointHook`;
    ``save_best`` is written by MMEngine's own code and is not atomic.

    A training run has its work folder to itself. SIGINT and SIGTERM stop it after the next
    optimizer step, with a checkpoint of that step and exit code 130 or 143. MMEngine's own epoch
    loop cannot continue within an epoch: there, and during a validation, no new checkpoint is
    written. A second signal stops at once. Ranks end with their launcher (torchrun).

    Raises:
        OSError: on all ranks, if a checkpoint cannot be written; the last good one is named.
        NotFiniteError: on all ranks, if the weights to be written are inf or nan.
        ValueError: if another run trains in the work folder, or it cannot be written to.
        SystemExit: after SIGINT or SIGTERM.
    """

    def before_run(self, runner: Any) -> None:
        """Answer signals with one line from here on; before the first step, end at once."""
        end_with_launcher()
        self._signals = StopSignals()
        self._signals.install()

    def before_train(self, runner: Any) -> None:
        """Prepare as the parent does, then remove what a kill left behind."""
        if '://' in str(self.out_dir or runner.work_dir):
            raise UserError('AtomicCheckpointHook writes to a file system, not to '
                            f'{self.out_dir or runner.work_dir}; use CheckpointHook there.')
        self._claim_folder(runner)
        super().before_train(runner)
        self._save_is_due = False
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = list(self.keep_ckpt_ids)  # one more during a save
        if is_main_process():
            _remove_incomplete(Path(self.out_dir), Path(runner.work_dir))
        self._saved = -1  # the last iteration saved
        self._stop_signal = 0  # number of the signal that all ranks agreed on; 0: none
        self._gloo = _gloo_group(runner)
        for loop in (runner.train_loop, runner.val_loop):
            if loop is not None:
                loop.dataloader.worker_init_fn = GuardedWorker(loop.dataloader.worker_init_fn)
        self._signals.defer()

    def after_run(self, runner: Any) -> None:
        """Leave the signals and the work folder to others."""
        self._signals.restore()
        claim = getattr(self, '_claim', None)  # a test claims nothing
        if claim is not None:
            claim.release()

    def _claim_folder(self, runner: Any) -> None:
        """Claim the work folder for the run on rank 0; if it may not, all ranks stop."""
        self._claim, refused = None, None
        if is_main_process():
            try:
                self._claim = Claim(Path(runner.work_dir))
            except UserError as error:
                refused = error
        failed = torch.tensor(int(refused is not None))
        all_reduce(failed, 'max')
        if refused is not None:
            raise UserError(str(refused))
        if failed:
            raise SystemExit(1)  # rank 0 says why

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Save if due now, or if due before and this is the optimizer step it waited for."""
        if not self.by_epoch and (
                self.every_n_train_iters(runner, self.interval, self.save_begin)
                or (self.save_last and self.is_last_train_iter(runner))):
            self._save_is_due = True
        if self._save_is_due and made_update(runner):
            step = runner.epoch if self.by_epoch else runner.iter + 1
            meta = dict(epoch=runner.epoch, iter=runner.iter + 1)
            self._save_checkpoint_with_step(runner, step, meta, by_epoch=False)
            self._saved = runner.iter + 1
        self._stop_signal = self._stop_signal or self._agreed_signal()
        if self._stop_signal and made_update(runner):
            self._save_for_stop(runner)
            barrier()  # the launcher kills the others when one has ended
            self._stop(runner, self._stop_signal, runner.iter + 1)

    def before_val(self, runner: Any) -> None:
        """Stop if a signal came since the last step."""
        self.after_val_iter(runner, 0)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                       outputs: Any = None) -> None:
        """Stop if a signal came; each rank for itself, because their batches may differ."""
        if self._signals.pending:
            self._stop(runner, self._signals.pending, runner.iter)

    def _agreed_signal(self) -> int:
        """Return the number of a signal that any rank received, else 0; the same on all ranks.

        Ranks receive a signal in different iterations, so they agree in every iteration. This
        takes less than 1 ms over gloo, and no rank waits for its GPU.
        """
        number = torch.tensor(int(self._signals.pending or 0))
        if get_world_size() > 1:
            dist.all_reduce(number, dist.ReduceOp.MAX, group=self._gloo)
        return int(number)

    def _save_for_stop(self, runner: Any) -> None:
        """Save this iteration if the loop can continue from it and it is not saved yet."""
        step, loop = runner.iter + 1, runner.train_loop
        if self._saved == step or (isinstance(loop, EpochBasedTrainLoop)
                                   and not isinstance(loop, ResumableTrainLoop)):
            return
        meta = dict(epoch=runner.epoch, iter=step)
        if self.by_epoch:
            self._write(runner, f'iter_{step}.pth', meta, by_epoch=False)
        else:
            self._save_checkpoint_with_step(runner, step, meta)

    def _stop(self, runner: Any, number: int, iteration: int) -> None:
        """Say where the run can continue, and end this process."""
        last = find_latest_checkpoint(runner.work_dir)
        where = f'checkpoint {last}; continue with --resume' if last else 'no checkpoint yet'
        runner.logger.warning(f'Stopped by {signal.Signals(number).name} after iteration '
                              f'{iteration}; {where}.')
        runner.visualizer.close()
        self.after_run(runner)
        raise SystemExit(128 + number)

    def _save_checkpoint(self, runner: Any) -> None:
        """Save at the end of an epoch as the parent does, unless gradients are accumulating."""
        self._save_is_due = not made_update(runner)
        if not self._save_is_due:
            meta = dict(epoch=runner.epoch + 1, iter=runner.iter)
            self._save_checkpoint_with_step(runner, runner.epoch + 1, meta, by_epoch=True)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict,
                                   by_epoch: bool | None = None) -> None:
        """Write and publish a checkpoint, then drop the outdated ones.

        ``by_epoch`` says to MMEngine whether the epoch counter has yet to move.
        """
        self._save_is_due = False
        self._list_kept(runner, step)
        self._write(runner, self.filename_tmpl.format(step), meta,
                    self.by_epoch if by_epoch is None else by_epoch)
        self._drop_outdated(runner)

    def _write(self, runner: Any, name: str, meta: dict, by_epoch: bool) -> None:
        folder = str(self.out_dir)
        path = Path(folder, name)
        check_weights(runner)
        runner.message_hub.update_info('last_ckpt', str(path))
        self._on_all_ranks(runner, path, lambda: runner.save_checkpoint(
            folder, name + INCOMPLETE, save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=by_epoch,
            **self.args))
        self._on_all_ranks(runner, path, lambda: _publish(path, runner.work_dir))
        self.last_ckpt = str(path)

    @staticmethod
    def _on_all_ranks(runner: Any, path: Path, write: Callable[[], None]) -> None:
        """Let every rank write; raise on all ranks if one fails."""
        error = None
        try:
            write()
        except Exception as caught:  # pickle and torch have errors of their own
            error = caught
        failed = torch.tensor(int(error is not None))
        all_reduce(failed, 'max')
        if failed:
            if is_main_process():
                _remove_incomplete(path.parent, Path(runner.work_dir))
            reason = (getattr(error, 'strerror', None) or str(error)) if error else (
                'another rank failed')
            last = find_latest_checkpoint(runner.work_dir)
            good = f'the last good one is {last}' if last else 'there is none yet'
            raise FileError(
                f'cannot write the checkpoint {path} ({reason}); {good}: make room on that disk '
                'or remove the cause, and continue with --resume.') from error

    def _list_kept(self, runner: Any, step: int) -> None:
        """List the new checkpoint before it is written, because a resume reads the list in it."""
        if self.max_keep_ckpts > 0:
            if step not in self.keep_ckpt_ids:
                self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _drop_outdated(self, runner: Any) -> None:
        while 0 < self.max_keep_ckpts < len(self.keep_ckpt_ids):
            outdated = Path(self.out_dir) / self.filename_tmpl.format(self.keep_ckpt_ids.pop(0))
            if is_main_process():
                _remove(outdated)
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))


def _gloo_group(runner: Any) -> Any:
    """Return a process group that needs no GPU; None: the default group."""
    if get_world_size() == 1 or dist.get_backend() == 'gloo':
        return None
    timeout = (runner.cfg.get('env_cfg', {}).get('dist_cfg') or {}).get('timeout', GLOO_TIMEOUT)
    return dist.new_group(backend='gloo', timeout=timedelta(seconds=timeout))


@master_only
def _publish(path: Path, work_dir: str) -> None:
    """Give the complete checkpoint its name, then point ``last_checkpoint`` to it."""
    incomplete = path.with_name(path.name + INCOMPLETE)
    for part in _files(incomplete):
        _flush(part)
    if path.is_dir():
        shutil.rmtree(path)  # a folder can only be renamed onto an empty one
    _rename(incomplete, path)
    pointer = Path(work_dir, 'last_checkpoint')
    incomplete = pointer.with_name(pointer.name + INCOMPLETE)
    incomplete.write_text(str(path))
    _flush(incomplete)
    _rename(incomplete, pointer)


def _rename(incomplete: Path, path: Path) -> None:
    os.replace(incomplete, path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Wait until the disk has the data; a rename alone may reach the disk before it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(path: Path) -> Iterator[Path]:
    return (part for part in path.rglob('*') if part.is_file()) if path.is_dir() else iter([path])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_incomplete(*folders: Path) -> None:
    for folder in folders:
        for path in folder.glob(f'*{INCOMPLETE}'):
            _remove(path)
