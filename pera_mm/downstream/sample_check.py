"""One sample of a data set with labels: what its files' heads say, and what its loader gives."""

from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pera_mm.datasets.masks import MASKS
from pera_mm.datasets.reading import RASTER_DRIVERS, opened, reason_of
from pera_mm.errors import UserError

PATH_KEYS = ('img_path', 'img_path2', 'seg_map_path')


class Head(NamedTuple):
    """What the head of an image file says: its size in pixels and the type of its pixels."""

    width: int
    height: int
    kind: str  # such as 'JPEG RGB' or 'GTiff 4 x uint16'


class Loaded(NamedTuple):
    """What the loader of a pipeline gives.

    Attributes:
        image: uint8 ``[H, W, channels]``, or a list of two for two dates; None: unreadable.
        mask: uint8 ``[H, W]`` where there is one: class ids, 255 where not labelled.
        unreadable: path to reason.
    """

    image: Any
    mask: NDArray[np.uint8] | None
    unreadable: dict[str, str]


def datasets_in(dataset: Any) -> list[Any]:
    """List the data sets in a ConcatDataset or in a RepeatDataset, or the data set itself."""
    return getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', dataset)]


def paths_of(sample: dict) -> Iterator[str]:
    """Yield the paths of a sample's images and of its mask; Open-CD has a list of two dates."""
    for key in PATH_KEYS:
        found = sample.get(key)
        yield from [found] if isinstance(found, str) else found or ()


def read_head(path: str) -> Head:
    """Read the head of an image or a mask; the decoder's errors pass."""
    try:
        with open(path, 'rb') as file:
            return _head_of_picture(file)
    except UnidentifiedImageError:  # formats that Pillow does not read, such as deep TIFFs
        from rasterio.env import Env  # late: most need no GDAL
        from rasterio.io import DatasetReader

        # Not rasterio.open: some of GDAL's formats name other files and addresses.
        with Env(), DatasetReader(path, driver=list(RASTER_DRIVERS)) as raster:
            return _head_of_raster(raster)


def head_of(data: bytes) -> Head:
    """Read the head in the bytes of an image; the decoder's errors pass."""
    try:
        return _head_of_picture(BytesIO(data))
    except UnidentifiedImageError:
        with opened(data) as raster:
            return _head_of_raster(raster)


def _head_of_picture(file: BinaryIO) -> Head:
    with Image.open(file, formats=MASKS) as image:
        return Head(*image.size, f'{image.format} {image.mode}')


def _head_of_raster(raster: Any) -> Head:
    bands = f'{raster.count} x ' if raster.count > 1 else ''
    return Head(raster.width, raster.height, f'{raster.driver} {bands}{raster.dtypes[0]}')


def read_heads(sample: dict) -> tuple[dict[str, Head], dict[str, str]]:
    """Read the heads of a sample's files.

    Returns:
        path to head; path to reason, for every file that is not a readable image, or not as large
        as its XML says.

    Raises:
        ValueError: on a missing file.
    """
    heads, unreadable = {}, {}
    for path in paths_of(sample):
        try:
            heads[path] = head = read_head(path)
        except FileNotFoundError:
            raise UserError(f'{path} is missing, which belongs to {next(paths_of(sample))}: every '
                            'sample needs all its files under one name.') from None
        except Exception as error:  # decoders raise anything on broken bytes
            unreadable[path] = f'{type(error).__name__}: {error}'
            continue
        if 'xml_path' in sample and head[:2] != (sample['width'], sample['height']):
            unreadable[path] = (f'the image has {head.width} x {head.height} pixels, its XML says '
                                f'{sample["width"]} x {sample["height"]}')
    return heads, unreadable


def check_sizes(heads: dict[str, Head], window: Sequence[int] | None) -> None:
    """Compare the sizes of a sample's files.

    Args:
        heads: path to head.
        window: height and width of the window that is cut out of it; None: no window.

    Raises:
        ValueError: on different sizes, or an image smaller than the window.
    """
    if len(heads) > 1:
        from pera_mm.downstream.segmentation import check_equal_sizes  # needs mmseg

        check_equal_sizes({path: head[:2] for path, head in heads.items()})
    for path, (width, height, _) in heads.items():
        if window is not None and (height < window[0] or width < window[1]):
            raise UserError(f'{path} is {width} x {height} pixels, smaller than the window of '
                            f'{window[1]} x {window[0]} that is cut out of it: take larger '
                            'images or a smaller crop_size.')


def window_of(dataset: Any, test_cfg: dict | None) -> Sequence[int] | None:
    """Return height and width of the window that training or a sliding test cuts out of an image.

    Args:
        dataset: Its pipeline may have a ``crop_size``.
        test_cfg: Of the model, for the data of a test; None: of training.
    """
    if (test_cfg or {}).get('mode') == 'slide':
        return (test_cfg or {}).get('crop_size')
    return next((step.crop_size for step in dataset.pipeline.transforms
                 if hasattr(step, 'crop_size')), None)


class Fault(NamedTuple):
    """What is wrong in one sentence, and whether training cannot begin."""

    text: str
    is_fatal: bool


def fault_of_unreadable(unreadable: dict[str, str], split: str, samples: int) -> Fault | None:
    """Say what unreadable files mean for a split; None if there are none.

    Args:
        unreadable: path to reason.
        split: Its name; in all but the train set each such file is fatal.
        samples: The number of samples that were read.
    """
    if not unreadable:
        return None
    path, reason = next(iter(unreadable.items()))
    found = f'{len(unreadable)} files of the {split} set cannot be read, such as {path} ({reason})'
    if split != 'train':
        return Fault(f'{found}; a score without them would not be comparable: repair them.', True)
    if len(unreadable) >= samples:
        return Fault(f'{found}: there is nothing to train on.', True)
    return Fault(f'{found}; other samples take their places.', False)


def load(sample: dict, transforms: Iterable[Any]) -> Loaded:
    """Run the pipeline up to the mask, or without masks up to the image.

    Raises:
        ValueError: if the loader refuses the mask.
    """
    skipped: list[tuple[str, str]] = []
    results: dict | None = sample | dict(skipped=skipped)
    last = 'gt_seg_map' if sample.get('seg_map_path') else 'img'
    for transform in transforms:
        try:
            results = transform(results)
        except Exception as error:  # MMDetection's loader passes on what its decoder raises
            if last != 'img' or isinstance(error, (UserError, MemoryError, ImportError)):
                raise
            return Loaded(None, None, {next(paths_of(sample)): reason_of(error)})
        if results is None or last in results:
            break
    found = results or {}
    return Loaded(found.get('img'), found.get('gt_seg_map'), dict(skipped))
