"""What is embedded: each image of a data set, or each window of scenes, as one square picture.

A *box* is ``(left, top, right, bottom)`` in pixels of a file, from its upper left corner.
"""

import datetime
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock, local
from typing import Any, NamedTuple

import numpy as np

from pera_mm.datasets.completeness import JPEG_2000, TIFF
from pera_mm.datasets.listing import ImageList, Source, open_source
from pera_mm.datasets.reading import (
    RASTER_DRIVERS,
    Scale,
    UnreadableImage,
    decode_safely,
    reason_of,
    rule_of,
)
from pera_mm.datasets.scene import Scene
from pera_mm.datasets.scene_grids import URL, has_grid
from pera_mm.datasets.scene_pixels import Reading
from pera_mm.errors import UserError
from pera_mm.evaluation.features import squared

SCENE_SUFFIXES = ('.tif', '.tiff', '.vrt', '.jp2')
DATE = re.compile(r'(?<!\d)((?:19|20)\d\d)[-_:]?(\d\d)[-_:]?(\d\d)(?!\d)')
OPEN_SCENES = 4  # per thread

Box = tuple[float, float, float, float]


class Frame(NamedTuple):
    """The size of a file in pixels, where it lies, and when it was taken, as far as known."""

    width: int
    height: int
    crs: Any = None  # of rasterio
    transform: Any = None  # from pixels to the CRS
    date: datetime.date | None = None


class Picture(NamedTuple):
    """One square image as the model sees it, and the part of a file that it shows."""

    pixels: np.ndarray  # uint8 RGB [S, S, 3]
    number: int  # in the source
    path: str
    box: Box
    frame: Frame
    keep: np.ndarray  # bool [S/p, S/p]: patches with a valid pixel that no other picture has


class Pictures:
    """The images of a folder, a text list, tar shards or an LMDB, resized to squares.

    Args:
        source: where they are.
        size: S, the side to resize to, pixels.
        patch_size: p, of the model.
        bands: of rasters, see :mod:`pera_mm.datasets.reading`.
        scale: of pixels that are not 8-bit, see there.
    """

    def __init__(self, source: Source, size: int, patch_size: int,
                 bands: tuple[int, ...] | None, scale: Scale) -> None:
        self.source, self.size, self.patch_size = source, size, patch_size
        self.bands, self.scale = bands, scale
        self.unreadable: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return self.source.name(index)

    def read(self, index: int) -> Picture:
        """Read an image.

        Raises:
            UnreadableImage: if it cannot be read.
        """
        data, path = self.source.read(index), self.name(index)
        image = decode_safely(data, self.bands, self.scale, path)
        height, width = image.shape[:2]
        keep = np.ones((self.size // self.patch_size, ) * 2, bool)
        return Picture(squared(image, self.size), index, path, (0, 0, width, height),
                       _frame_of_file(data, path, width, height), keep)


def _frame_of_file(data: bytes, path: str, width: int, height: int) -> Frame:
    if not data.startswith(TIFF + JPEG_2000):
        return Frame(width, height, date=_date_in(path))
    from rasterio.io import MemoryFile

    with MemoryFile(data) as file, file.open(driver=list(RASTER_DRIVERS)) as raster:
        return _frame_of_raster(raster, path)


class Scenes:
    """The square windows of scenes, row by row, without gaps, at the scenes' own resolution.

    Windows start at multiples of their side. The last of a row or column starts earlier, so that it
    ends less than a patch beyond the scene. They are read as :class:`pera_mm.datasets.scene.Scene`
    reads them: palettes become RGB, pixels without a value are black, and pixels of more than 8
    bits get one scale per scene; with 'auto' it is that of the percentiles of the whole scene.

    Args:
        paths: paths and URLs of rasters that GDAL opens. Those that it does not are in
            :attr:`unreadable`.
        size: S, the side of a window, pixels.
        patch_size: p, of the model; S is a multiple.
        bands: one or three, 1-based; None: the first three, or the first.
        scale: (low, high) or 'auto', for pixels that are not 8-bit.
    """

    def __init__(self, paths: Sequence[str], size: int, patch_size: int,
                 bands: tuple[int, ...] | None, scale: Scale) -> None:
        self.size, self.patch_size = size, patch_size
        self.reading = Reading(bands, scale=scale)
        self.paths: list[str] = []
        self.frames: list[Frame] = []
        self.unreadable: list[tuple[str, str]] = []
        for path in paths:
            try:
                with Scene(path, self.reading) as scene:
                    frame = _frame_of_raster(scene.file, path)
            except Exception as error:  # GDAL raises anything on broken bytes
                self.unreadable.append((path, _reason(error, path)))
                continue
            self.paths.append(path)
            self.frames.append(frame)
        counts = [len(self.starts(frame.height)) * len(self.starts(frame.width))
                  for frame in self.frames]
        self.ends = np.cumsum(counts, dtype=np.int64)
        self._open = local()
        self._readings: dict[int, Reading | UnreadableImage] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def name(self, index: int) -> str:
        """Name a window: ``scene.tif (row 512, column 0)``."""
        number, row, column = self._place(index)
        return f'{self.paths[number]} (row {row}, column {column})'

    def starts(self, length: int) -> list[int]:
        """Return the first pixels of the windows along a side of ``length`` pixels."""
        covered = -(-length // self.patch_size) * self.patch_size
        last = max(covered - self.size, 0)
        return [*range(0, last, self.size), last]

    def read(self, index: int) -> Picture | None:
        """Read a window; None if it has no valid pixel.

        Raises:
            UnreadableImage: if it cannot be read.
        """
        number, top, left = self._place(index)
        path, frame = self.paths[number], self.frames[number]
        try:
            pixels, valid = self._scene(number).read(top, left, self.size)
        except (MemoryError, UnreadableImage):
            raise
        except Exception as error:  # GDAL raises anything on broken bytes
            self._scenes().pop(number, None)  # an error of GDAL may show again at its next call
            raise UnreadableImage(_reason(error, path)) from error
        if not valid.any():
            return None
        rgb = np.ascontiguousarray(np.where(valid, pixels, 0).transpose(1, 2, 0))
        box = (left, top, left + self.size, top + self.size)
        return Picture(rgb, index, path, box, frame, self._keep(frame, box, valid))

    def _keep(self, frame: Frame, box: Box, valid: np.ndarray) -> np.ndarray:
        """Mark the patches with a valid pixel that no earlier window of the scene has."""
        side, patch = self.size // self.patch_size, self.patch_size
        keep: np.ndarray = valid.reshape(side, patch, side, patch).max(axis=(1, 3))
        for axis, (start, length) in enumerate(((box[1], frame.height), (box[0], frame.width))):
            starts = self.starts(length)
            number = starts.index(int(start))
            covered = starts[number - 1] + self.size - start if number else 0
            old = slice(int(covered) // patch)
            keep[old if axis == 0 else np.s_[:, old]] = False
        return keep

    def _place(self, index: int) -> tuple[int, int, int]:
        """Return a window's scene, first row and first column."""
        scene = int(np.searchsorted(self.ends, index, side='right'))
        frame = self.frames[scene]
        rows, columns = self.starts(frame.height), self.starts(frame.width)
        number = index - (int(self.ends[scene]) - len(rows) * len(columns))
        return scene, rows[number // len(columns)], columns[number % len(columns)]

    def _scene(self, number: int) -> Scene:
        """Return the scene opened in this thread; GDAL's rasters belong to one thread."""
        scenes = self._scenes()
        if number not in scenes:
            if len(scenes) >= OPEN_SCENES:
                scenes.pop(next(iter(scenes))).close()
            scenes[number] = Scene(self.paths[number], self._reading(number))
        return scenes[number]

    def _scenes(self) -> dict[int, Scene]:
        return self._open.__dict__.setdefault('scenes', {})

    def _reading(self, number: int) -> Reading:
        """Return how a scene is read, with its percentiles, which are found once.

        Raises:
            UnreadableImage: if they are unknown.
        """
        with self._lock:
            if number not in self._readings:
                self._readings[number] = self._with_limits(self.paths[number])
            found = self._readings[number]
        if isinstance(found, UnreadableImage):
            raise UnreadableImage(str(found))
        return found

    def _with_limits(self, path: str) -> Reading | UnreadableImage:
        try:
            with Scene(path, self.reading) as scene:
                return self.reading._replace(scale=scene.limits() or self.reading.scale)
        except MemoryError:
            raise
        except Exception as error:  # GDAL raises anything on broken bytes
            return UnreadableImage(_reason(error, path))


def _reason(error: Exception, path: str) -> str:
    """Say what is wrong with a file, without its path."""
    if isinstance(error, UserError):
        return str(error).removeprefix(f'{path} ')
    return reason_of(error.__cause__ or error)


def _frame_of_raster(raster: Any, path: str) -> Frame:
    placed = has_grid(raster)
    return Frame(raster.width, raster.height, raster.crs if placed else None,
                 raster.transform if placed else None, _date_of(raster, path))


def _date_of(raster: Any, path: str) -> datetime.date | None:
    """Return the day an image was taken: by its metadata, by its name, else when it was made."""
    taken = raster.tags(ns='IMAGERY').get('ACQUISITIONDATETIME', '')
    return _day(taken) or _date_in(path) or _day(raster.tags().get('TIFFTAG_DATETIME', ''))


def _date_in(path: str) -> datetime.date | None:
    return _day(os.path.basename(path))


def _day(text: str) -> datetime.date | None:
    """Find the first date in a text: 20200831, 2020-08-31, 2020_08_31 or 2020:08:31."""
    for match in DATE.finditer(text):
        with suppress(ValueError):
            return datetime.date(*map(int, match.groups()))
    return None


# The source of a command line ---------------------------------------------------------------------


def open_pictures(data: str | Path, size: int, patch_size: int, windows: bool = False,
                  bands: Sequence[int] | None = None,
                  scale: Scale = 'auto') -> Pictures | Scenes:
    """Open the images, or the windows of the scenes, of a command line.

    Args:
        data: a folder, a text list, tar shards or an LMDB of images; or one scene, also as a URL.
        size: S, the side of a picture, pixels.
        patch_size: p, of the model.
        windows: whether the images of a folder or list are scenes, to be cut into windows.
        bands, scale: how rasters become 8-bit RGB, see :mod:`pera_mm.datasets.reading`.

    Raises:
        ValueError: if there is no image, ``size`` is not a multiple of ``patch_size``, or there are
            scenes in an archive.
    """
    if size < patch_size or size % patch_size:
        raise UserError(f'the size {size} is not a multiple of the patch size {patch_size} of the '
                        f'model: take {-(-size // patch_size) * patch_size or patch_size}.')
    from rasterio.errors import NotGeoreferencedWarning

    warnings.simplefilter('ignore', NotGeoreferencedWarning)  # of every thread
    rule = rule_of(bands, scale)
    if URL.match(str(data)) or (
            os.path.isfile(data) and str(data).lower().endswith(SCENE_SUFFIXES)):
        return _scenes([str(data)], size, patch_size, *rule)
    source = open_source(str(data))
    if not windows:
        return Pictures(source, size, patch_size, *rule)
    if not isinstance(source, ImageList):
        raise UserError(f'{data} is an archive, whose images have no windows: give a scene, a '
                        'folder or a list of scenes.')
    return _scenes([source.name(index) for index in range(len(source))], size, patch_size, *rule)


def _scenes(paths: Sequence[str], *rule: Any) -> Scenes:
    scenes = Scenes(paths, *rule)
    if not scenes.paths:
        path, reason = scenes.unreadable[0]
        raise UserError(f'none of the {len(paths)} scenes can be opened; the first is {path} '
                        f'({reason}).')
    return scenes
