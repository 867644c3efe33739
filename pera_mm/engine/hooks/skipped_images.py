"""A hook that counts and names unreadable images, and stops the run for too many."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pera_mm.errors import RunError, UserError, printable
from pera_mm.registry import HOOKS

MAX_SHOWN = 20  # paths in a report in the log


@HOOKS.register_module()
class SkippedImagesHook(Hook):
    """Report the images that workers could not read, and stop if there are too many.

    At the end of every epoch rank 0 logs how many each worker skipped and the first 20 paths
    with their reasons, and adds every new path to ``<work_dir>/skipped_images.txt`` (path, tab,
    reason). The number since the epoch began, over all ranks, is the scalar
    ``train/skipped_images``.

    The share of unreadable images among all images drawn in the epoch is checked every
    ``interval`` iterations, once all ranks together drew ``min_samples``, and at the end of the
    epoch. All ranks check the same sum, so they stop together.

    Args:
        max_share: More than this share of unreadable images stops the run, in [0, 1].
        min_samples: Images that must have been drawn before a share means something.
        interval: Iterations between two checks.

    Raises:
        RuntimeError: on every rank, if the share is above ``max_share``.
    """

    def __init__(self, max_share: float = 0.05, min_samples: int = 1000,
                 interval: int = 50) -> None:
        if not 0 <= max_share <= 1:
            raise UserError(f'max_share is a share of the images in [0, 1], got {max_share}.')
        self.max_share = max_share
        self.min_samples = min_samples
        self.interval = interval
        self._reset_counts()

    def _reset_counts(self) -> None:
        self.num_samples = 0
        self.num_skipped: Counter[int] = Counter()  # by worker of this rank
        self.reasons: dict[str, str] = {}  # by path

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin to count anew."""
        self._reset_counts()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        """Count this rank's batch; every ``interval`` iterations check all ranks."""
        for sample in data_batch['data_samples']:
            skipped = sample.get('skipped', [])
            self.num_samples += 1
            self.num_skipped[sample.get('worker', -1)] += len(skipped)
            self.reasons.update({path: reason for path, reason in skipped})
        if self.every_n_inner_iters(batch_idx, self.interval):
            skipped, drawn = self._sum_over_ranks(runner)
            if drawn >= self.min_samples and skipped > self.max_share * drawn:
                self._report(runner, skipped, drawn)
                self._stop_if_too_many(skipped, drawn)

    def after_train_epoch(self, runner: Runner) -> None:
        """Report the epoch, and stop if it had too many."""
        skipped, drawn = self._sum_over_ranks(runner)
        if skipped:
            self._report(runner, skipped, drawn)
        self._stop_if_too_many(skipped, drawn)

    def _sum_over_ranks(self, runner: Runner) -> tuple[int, int]:
        """Sum the images skipped and drawn since the epoch began, over all ranks."""
        own = self.num_skipped.total()
        sums = torch.tensor([own, own + self.num_samples])
        all_reduce(sums)
        skipped, drawn = sums.tolist()
        runner.message_hub.update_scalar('train/skipped_images', skipped)
        return skipped, drawn

    def _stop_if_too_many(self, skipped: int, drawn: int) -> None:
        if skipped > self.max_share * drawn:
            raise RunError(
                f'{skipped} of {drawn} images drawn in this epoch could not be read, more than '
                f'max_share={self.max_share:g} of SkippedImagesHook allows; repair or remove the '
                'files named in skipped_images.txt in the work directory.')

    def _report(self, runner: Runner, skipped: int, drawn: int) -> None:
        """Gather from all ranks; rank 0 logs and writes."""
        gathered = all_gather_object((dict(self.num_skipped), self.reasons))
        if get_rank() != 0:
            return
        workers = [f'rank {rank} worker {worker}: {count}'
                   for rank, (counts, _) in enumerate(gathered)
                   for worker, count in sorted(counts.items()) if count]
        reasons = {path: reason for _, found in gathered for path, reason in found.items()}
        file = Path(runner.work_dir) / 'skipped_images.txt'
        _append_new(file, reasons)
        lines = [printable(f'{path}: {reason}') for path, reason in sorted(reasons.items())]
        more = len(lines) - MAX_SHOWN
        rest = [f'and {more} more, all in {printable(file)}'] if more > 0 else []
        runner.logger.warning('\n  '.join([
            f'{skipped} of {drawn} images drawn in epoch {runner.epoch + 1} could not be read and '
            f'were replaced ({", ".join(workers)}):', *lines[:MAX_SHOWN], *rest]))


def _append_new(file: Path, reasons: dict[str, str]) -> None:
    """Add the paths that the file does not name yet; a resumed run continues its file."""
    known = set()
    if file.exists():
        known = {line.split(b'\t')[0] for line in file.read_bytes().splitlines()}
    with open(file, 'ab') as stream:  # bytes: a path need not be UTF-8
        for path, reason in sorted(reasons.items()):
            if os.fsencode(path) not in known:
                stream.write(os.fsencode(path) + b'\t' + printable(reason).encode() + b'\n')
