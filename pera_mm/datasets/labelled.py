"""Labelled data sets of the toolboxes, with pre-training's rule for files that cannot be read."""

import os
from typing import Any

from mmpretrain.datasets import CustomDataset

from pera_mm.datasets.unlabeled import MAX_REDRAWS
from pera_mm.errors import RunError, UserError
from pera_mm.registry import DATASETS


class RedrawUnreadable:
    """Put before a data set of MMEngine's kind: unreadable files are replaced, and named.

    A loading transform of ours (:class:`pera_mm.datasets.transforms.load_rgb.LoadRGB`) appends an
    unreadable file to the sample's ``skipped``, a list of (path, reason), and returns None. In
    training another sample is drawn, and ``pera_mm.SkippedImagesHook`` reports the file. In a test
    it is an error, since a score without it would not be comparable.
    """

    def prepare_data(self, idx: int) -> Any:
        """The sample ``idx``, or in training another one.

        Raises:
            ValueError: in a test, if the file cannot be read.
            RuntimeError: if 100 samples drawn one after another cannot be read.
        """
        skipped: list[tuple[str, str]] = []
        dataset: Any = self
        while len(skipped) < MAX_REDRAWS:
            sample = dataset.pipeline(dataset.get_data_info(idx) | dict(skipped=skipped))
            if sample is not None:
                return sample
            path, reason = skipped[-1]
            if dataset.test_mode:
                raise UserError(f'{path} cannot be read ({reason}); a score without it would not '
                                'be comparable: repair it.')
            idx = dataset._rand_another()
        raise RunError(f'{MAX_REDRAWS} samples drawn one after another could not be read, the '
                           f'last for {path} ({reason}): check the data.')


@DATASETS.register_module()
class LabelledImages(RedrawUnreadable, CustomDataset):
    """Images with one class each: MMPretrain's ``CustomDataset``.

    Either a text file (``ann_file``) with lines ``path class-index``, or a folder per class.

    Raises:
        ValueError: if the list or the folder is missing.
    """

    def load_data_list(self) -> list[dict]:
        """As MMPretrain's."""
        needed = self.ann_file or self.img_prefix
        if not os.path.exists(needed):
            raise UserError(f'There is no {needed}: prepare the data with tools/data/prepare.py, '
                            'deal a folder of your own with tools/data/make_splits.py, or correct '
                            'data_root and ann_file of the dataset.')
        return super().load_data_list()
