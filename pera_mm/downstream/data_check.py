"""A check of all files before the first step, so that a wrong file costs seconds, not hours.

It also counts the labels of each class (:mod:`pera_mm.downstream.class_shares`).
``tools/data/check.py`` (:mod:`pera_mm.downstream.data_report`) makes the same checks without a
model.
"""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pera_mm.datasets.matching import first_few
from pera_mm.downstream.class_check import class_faults, heads_of, lacks_second
from pera_mm.downstream.class_shares import (
    ClassCounts,
    LabelCounter,
    join,
    shares_line,
    weights_advice,
)
from pera_mm.downstream.sample_check import (
    check_sizes,
    datasets_in,
    fault_of_unreadable,
    load,
    read_heads,
    window_of,
)
from pera_mm.engine.hooks.teacher import inner_model
from pera_mm.errors import UserError
from pera_mm.registry import HOOKS

PROGRESS_INTERVAL = 5  # seconds between two lines of progress in the log


class _Part(NamedTuple):
    """A data set that was looked at: its counter, and the samples that were loaded."""

    dataset: Any
    counter: LabelCounter
    loaded: set[int]


@HOOKS.register_module()
class DataCheckHook(Hook):
    """A check, before training, that the files of the train and the validation set fit.

    The headers of all images, second images and masks are read (0.03 ms per file on a local disk).
    The files of a sample must have one size, at least that of the window cut out of it
    (``crop_size`` of the pipeline, of the sliding window in validation). Then evenly spaced
    samples are loaded through the pipeline, up to the mask (classification, detection: the image),
    so that its loader can refuse unknown labels.

    The classes of the head, of the train set and of the validation set must be the same, and masks
    must show two of them: if those loaded do not, the others are loaded until one does.

    The log shows the share of each class among the pixels of these masks, among all images
    (classification) or among all boxes (detection). If a class has less than 5 % of the pixels or
    images of the train set, the log shows the line of the config that weighs the classes. A model
    with weights gets no such advice, nor does detection.

    Unreadable files of the train set are counted and named in the log; the data set replaces them.
    One process checks, and all get the result.

    Args:
        num_loaded: the number of samples that are loaded from each data set.

    Raises:
        ValueError: on all ranks, with the name of the file, if a file does not fit, a file of the
            validation set is unreadable, all files of the train set are, or the classes do not fit.
    """

    def __init__(self, num_loaded: int = 200) -> None:
        self.num_loaded = num_loaded
        self._trained: Sequence[str] | None = None  # the classes of the checkpoint, if named

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note the classes that the checkpoint was trained with."""
        meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
        self._trained = meta.get('classes')

    def before_test(self, runner: Runner) -> None:
        """Compare the classes of the test set with those of the checkpoint.

        Without ``metainfo.classes`` they are the folders that hold images, and a class without
        images in the test set would move the labels of those after it.

        Raises:
            ValueError: if they are not one list.
        """
        classes = getattr(runner.test_dataloader.dataset, 'metainfo', {}).get('classes')
        if classes and self._trained and tuple(classes) != tuple(self._trained):
            raise UserError(
                f'the checkpoint was trained with the classes {first_few(self._trained)}, and the '
                f'test set has {first_few(classes)}; a label is a place in this list: give the '
                'test set metainfo=dict(classes=(...)) with the names and the order of the '
                'training.')

    def before_train(self, runner: Runner) -> None:
        """Check both data sets.

        Raises:
            ValueError: on all ranks, if a file does not fit.
        """
        verdict: list[str | None] = [None]
        cause = None
        if is_main_process():
            try:
                self._check_all(runner)
            except Exception as error:  # otherwise the other ranks wait for this one
                verdict, cause = [str(error)], error
        broadcast_object_list(verdict)
        if verdict[0] is not None:
            if cause is not None and not isinstance(cause, ValueError):
                raise cause
            raise UserError(verdict[0]) from None

    def _check_all(self, runner: Runner) -> None:
        model = inner_model(runner)
        splits = dict(train=self._check_split(runner, runner.train_dataloader, 'train', None))
        if runner.val_loop is not None:
            test_cfg = getattr(model, 'test_cfg', None) or {}
            splits['val'] = self._check_split(runner, runner.val_dataloader, 'val', test_cfg)
        for fault in class_faults(splits, heads_of(model)):
            raise UserError(fault)

    def _check_split(self, runner: Runner, loader: Any, name: str,
                     test_cfg: dict | None) -> ClassCounts | None:
        parts = [self._check(runner, dataset, name, window_of(dataset, test_cfg))
                 for dataset in datasets_in(loader.dataset)]
        counts = join([part.counter.result() for part in parts])
        if counts is not None and lacks_second(counts):
            counts = _look_further(runner, parts, name)
        if counts is None:
            return None
        runner.logger.info(shares_line(counts, name))
        is_weighted = any(getattr(module, 'class_weight', None) is not None
                          for module in inner_model(runner).modules())
        if name == 'train' and not is_weighted and (advice := weights_advice(counts)):
            runner.logger.info(advice)
        return counts

    def _check(self, runner: Runner, dataset: Any, name: str,
               window: Sequence[int] | None) -> _Part:
        transforms = dataset.pipeline.transforms
        note = partial(_progress, runner.logger, f'of the {name} set checked')
        unreadable: dict[str, str] = {}
        counter = LabelCounter(dataset)
        for index in note(range(len(dataset))):
            sample = dataset.get_data_info(index)
            heads, broken = read_heads(sample)
            check_sizes(heads, window if sample.get('seg_map_path') else None)
            unreadable.update(broken)
            counter.add_sample(sample)
        number = min(self.num_loaded, len(dataset))
        chosen = np.linspace(0, len(dataset) - 1, number, dtype=int).tolist()
        for index in note(chosen):
            sample = dataset.get_data_info(index)
            loaded = load(sample, transforms)
            unreadable.update(loaded.unreadable)
            if loaded.mask is not None:
                counter.add_mask(loaded.mask, sample['seg_map_path'])
        if (fault := fault_of_unreadable(unreadable, name, len(dataset))) is not None:
            if fault.is_fatal:
                raise UserError(fault.text)
            runner.logger.warning(fault.text)
        return _Part(dataset, counter, set(chosen))


def _look_further(runner: Runner, parts: Sequence[_Part], name: str) -> ClassCounts | None:
    """Load other masks until a second class is seen."""
    for part in parts:
        for index in _progress(runner.logger, f'of the {name} set searched for a second class',
                               range(len(part.dataset))):
            if index in part.loaded:
                continue
            sample = part.dataset.get_data_info(index)
            loaded = load(sample, part.dataset.pipeline.transforms)
            if loaded.mask is not None:
                part.counter.add_mask(loaded.mask, sample['seg_map_path'])
            counts = join([each.counter.result() for each in parts])
            if counts is not None and not lacks_second(counts):
                return counts
    return join([part.counter.result() for part in parts])


def _progress(logger: Any, what: str, indexes: Sequence[int]) -> Iterator[int]:
    """Yield the indexes; log the progress from time to time."""
    last_line = time.monotonic()
    for done, index in enumerate(indexes):
        if time.monotonic() - last_line > PROGRESS_INTERVAL:
            last_line = time.monotonic()
            logger.info(f'{done} of {len(indexes)} samples {what}')
        yield index
