"""The toolboxes' data sets with labels; unreadable files are replaced or refused."""

import os
from collections.abc import Sequence
from typing import Any

from mmpretrain.datasets import CustomDataset
from torch.utils.data import get_worker_info

from pera_mm.datasets.unlabeled import MAX_REDRAWS
from pera_mm.errors import RunError, UserError
from pera_mm.registry import DATASETS

MAX_NAMED = 5  # items that a sentence names; the rest is counted


def first_few(items: Sequence[str], separator: str = ', ') -> str:
    """Join the first five items, and count the others."""
    rest = [f'and {len(items) - MAX_NAMED} more'] if len(items) > MAX_NAMED else []
    return separator.join([*items[:MAX_NAMED], *rest])


def how_to_prepare(path: str) -> str:
    """Name the tool that makes a missing folder, as a part of a sentence."""
    if path.startswith('data/scenes/'):  # where the twins of configs/scenes look
        return ("draw the scenes with tools/data/make_scenes.py, by the command in the config's "
                'header')
    return 'prepare the data with tools/data/prepare.py'


class RedrawUnreadable:
    """A mix-in for a data set of MMEngine's kind: one policy for files that cannot be read.

    The loading (:meth:`run_pipeline`; its default is the pipeline, with a transform such as
    :class:`pera_mm.datasets.transforms.load_rgb.LoadRGB`) appends an unreadable file to the
    sample's ``skipped``, a list of (path, reason), and returns None. In training another sample is
    drawn, and ``pera_mm.SkippedImagesHook`` reports the file by the sample's ``worker`` (-1: the
    main process). In a test the file is an error, since a score without it would not be
    comparable. The message counts all such files of the data set and names the first.
    """

    def prepare_data(self, idx: int) -> Any:
        """Load the sample ``idx``, or in training another one.

        Raises:
            ValueError: in a test, if the file cannot be read.
            RuntimeError: if 100 samples drawn one after another cannot be read.
        """
        dataset: Any = self
        skipped: list[tuple[str, str]] = []
        while len(skipped) < MAX_REDRAWS:
            before = len(skipped)
            sample = self._load(idx, skipped)
            if sample is not None or len(skipped) == before:  # a crop without objects is None, too
                return sample
            if dataset.test_mode:
                raise self._error(self._all_unreadable() or skipped)  # none: it can be read again
            idx = dataset._rand_another()
        path, reason = skipped[-1]
        raise RunError(f'{MAX_REDRAWS} samples drawn one after another could not be read, the '
                       f'last for {path} ({reason}): check the data.')

    def run_pipeline(self, sample: dict) -> Any:
        """Load and transform a sample; None where its file was appended to ``skipped``."""
        dataset: Any = self
        return dataset.pipeline(sample)

    def _load(self, idx: int, skipped: list[tuple[str, str]]) -> Any:
        dataset: Any = self
        worker = get_worker_info()
        return self.run_pipeline(dataset.get_data_info(idx) | dict(
            skipped=skipped, worker=-1 if worker is None else worker.id))

    def _all_unreadable(self) -> list[tuple[str, str]]:
        """Load every sample; return path and reason of the files that cannot be read."""
        dataset: Any = self
        skipped: list[tuple[str, str]] = []
        for idx in range(len(dataset)):
            self._load(idx, skipped)
        return skipped

    def _error(self, unreadable: list[tuple[str, str]]) -> UserError:
        dataset: Any = self
        files = first_few([f'{path} ({reason})' for path, reason in unreadable])
        return UserError(f'{len(unreadable)} of {len(dataset)} test samples cannot be read: '
                         f'{files}; a score without them would not be comparable: repair these '
                         'files.')


@DATASETS.register_module()
class LabelledImages(RedrawUnreadable, CustomDataset):
    """A data set of images with one class each: MMPretrain's ``CustomDataset``.

    The classes come from a text file (``ann_file``) with lines ``path class-index``, or from a
    folder per class.

    Raises:
        ValueError: if the list or the folder is missing; in a test, if a file cannot be read.
    """

    def load_data_list(self) -> list[dict]:
        """List the samples as MMPretrain does.

        Raises:
            ValueError: if the list or the folder is missing.
        """
        needed = self.ann_file or self.img_prefix
        if not os.path.exists(needed):
            raise UserError(f'There is no {needed}: {how_to_prepare(needed)}, split a folder of '
                            'your own with tools/data/make_splits.py, or correct data_root and '
                            'ann_file of the dataset.')
        return super().load_data_list()
