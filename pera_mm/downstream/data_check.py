"""A check of all files before the first step, so that a wrong file costs seconds, not hours.

It also counts the labels of each class (:mod:`pera_mm.downstream.class_shares`).
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from numpy.typing import NDArray
from PIL import Image

from pera_mm.datasets.masks import MASKS
from pera_mm.datasets.reading import reason_of
from pera_mm.downstream.class_shares import (
    ClassCounts,
    LabelCounter,
    join,
    shares_line,
    weights_advice,
)
from pera_mm.engine.hooks.teacher import inner_model
from pera_mm.errors import UserError
from pera_mm.registry import HOOKS

PATH_KEYS = ('img_path', 'img_path2', 'seg_map_path')
PROGRESS_INTERVAL = 5  # seconds between two lines of progress in the log


@HOOKS.register_module()
class DataCheckHook(Hook):
    """A check, before training, that the files of the train and the validation set fit.

    The headers of all images, second images and masks are read (0.03 ms per file on a local disk).
    The files of a sample must have one size, at least that of the window cut out of it
    (``crop_size`` of the pipeline, of the sliding window in validation). Then evenly spaced
    samples are loaded through the pipeline, up to the mask (classification, detection: the image),
    so that its loader can refuse unknown labels.

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
            validation set is unreadable, or all files of the train set are.
    """

    def __init__(self, num_loaded: int = 200) -> None:
        self.num_loaded = num_loaded

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
        self._check_split(runner, runner.train_dataloader, 'train', None)
        if runner.val_loop is not None:
            test_cfg = getattr(inner_model(runner), 'test_cfg', None) or {}
            window = test_cfg.get('crop_size') if test_cfg.get('mode') == 'slide' else None
            self._check_split(runner, runner.val_dataloader, 'val', window)

    def _check_split(self, runner: Runner, loader: Any, name: str,
                     window: Sequence[int] | None) -> None:
        counts = join([self._check(runner, dataset, name, window)
                       for dataset in _datasets_in(loader.dataset)])
        if counts is None:
            return
        runner.logger.info(shares_line(counts, name))
        is_weighted = any(getattr(module, 'class_weight', None) is not None
                          for module in inner_model(runner).modules())
        if name == 'train' and not is_weighted and (advice := weights_advice(counts)):
            runner.logger.info(advice)

    def _check(self, runner: Runner, dataset: Any, name: str,
               window: Sequence[int] | None) -> ClassCounts | None:
        transforms = dataset.pipeline.transforms
        window = window or next(
            (step.crop_size for step in transforms if hasattr(step, 'crop_size')), None)
        note = partial(_progress, runner.logger, f'of the {name} set checked')
        unreadable: dict[str, str] = {}
        counter = LabelCounter(dataset)
        for index in note(range(len(dataset))):
            sample = dataset.get_data_info(index)
            unreadable.update(check_sizes(sample, window if 'seg_map_path' in sample else None))
            counter.add_sample(sample)
        number = min(self.num_loaded, len(dataset))
        for index in note(np.linspace(0, len(dataset) - 1, number, dtype=int).tolist()):
            mask, skipped = _load_sample(dataset.get_data_info(index), transforms)
            unreadable.update(skipped)
            if mask is not None:
                counter.add_mask(mask)
        self._report_unreadable(runner, unreadable, name, len(dataset))
        return counter.result()

    @staticmethod
    def _report_unreadable(runner: Runner, unreadable: dict[str, str], name: str,
                           samples: int) -> None:
        if not unreadable:
            return
        path, reason = next(iter(unreadable.items()))
        found = f'{len(unreadable)} files of the {name} set cannot be read, such as {path} ' \
                f'({reason})'
        if name != 'train':
            raise UserError(f'{found}; a score without them would not be comparable: repair '
                            'them.')
        if len(unreadable) >= samples:
            raise UserError(f'{found}: there is nothing to train on.')
        runner.logger.warning(f'{found}; other samples take their places.')


def _datasets_in(dataset: Any) -> list[Any]:
    """List the data sets in a ConcatDataset or in a RepeatDataset, or the data set itself."""
    return getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', dataset)]


def check_sizes(sample: dict, window: Sequence[int] | None) -> dict[str, str]:
    """Compare the sizes in the headers of a sample's files.

    Args:
        sample: with the paths, under the keys of PATH_KEYS that it has.
        window: height and width of the window that is cut out of it; None: no window.

    Returns:
        path to reason, for every file that is not a readable image.

    Raises:
        ValueError: on a missing file, different sizes, or an image smaller than the window.
    """
    sizes, unreadable = {}, {}
    for path in (sample[key] for key in PATH_KEYS if sample.get(key)):
        try:
            sizes[path] = _image_size(path)
        except FileNotFoundError:
            raise UserError(f'{path} is missing, which belongs to {sample["img_path"]}: every '
                            'sample needs all its files under one name.') from None
        except Exception as error:  # decoders raise anything on broken bytes
            unreadable[path] = f'{type(error).__name__}: {error}'
    if len(sizes) > 1:
        from pera_mm.downstream.segmentation import check_equal_sizes  # needs mmseg

        check_equal_sizes(sizes)
    for path, (width, height) in sizes.items():
        if window is not None and (height < window[0] or width < window[1]):
            raise UserError(f'{path} is {width} x {height} pixels, smaller than the window of '
                            f'{window[1]} x {window[0]} that is cut out of it: take larger '
                            'images or a smaller crop_size.')
    return unreadable


def _image_size(path: str) -> tuple[int, int]:
    """Read width and height from the header alone."""
    with open(path, 'rb') as file:
        try:
            with Image.open(file, formats=MASKS) as image:
                return image.size
        except OSError:
            # For formats that Pillow does not read, such as deep TIFFs.
            from rasterio import open as open_raster

            with open_raster(path) as raster:
                return raster.width, raster.height


def _load_sample(sample: dict, transforms: Iterable[Any]) -> tuple[NDArray | None, dict[str, str]]:
    """Run the pipeline up to the mask, or without masks up to the image.

    Returns:
        the mask, uint8 ``[H, W]``, where there is one; path and reason of an unreadable file.
    """
    skipped: list[tuple[str, str]] = []
    results: dict | None = sample | dict(skipped=skipped)
    last = 'gt_seg_map' if 'seg_map_path' in sample else 'img'
    for transform in transforms:
        try:
            results = transform(results)
        except Exception as error:  # MMDetection's loader passes on what its decoder raises
            if last != 'img' or isinstance(error, (UserError, MemoryError, ImportError)):
                raise
            return None, {sample['img_path']: reason_of(error)}
        if results is None or last in results:
            break
    return (results or {}).get('gt_seg_map'), dict(skipped)


def _progress(logger: Any, what: str, indexes: Sequence[int]) -> Iterator[int]:
    """Yield the indexes; log the progress from time to time."""
    last_line = time.monotonic()
    for done, index in enumerate(indexes):
        if time.monotonic() - last_line > PROGRESS_INTERVAL:
            last_line = time.monotonic()
            logger.info(f'{done} of {len(indexes)} samples {what}')
        yield index
