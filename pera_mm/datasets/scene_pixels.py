"""The pixels of one date of a scene, as a model takes them."""

import xml.etree.ElementTree as ET
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from pera_mm.datasets.raster_bands import choose_bands, has_mask, opacity_of
from pera_mm.datasets.reading import PERCENTILES, Scale, reason_of, to_uint8
from pera_mm.errors import FileError, UserError

SAMPLE_SIDE = 1024  # pixels; the percentiles of a scene come from so many rows and columns

Limits = tuple[tuple[float, float], ...]  # the values of each band that become 0 and 255


class Reading(NamedTuple):
    """The pixels that a model takes from each date of a scene.

    Attributes:
        bands: 1-based; one band is repeated ``channels`` times. None: those of
            :mod:`pera_mm.datasets.raster_bands`.
        channels: of the model's input, for one date.
        scale: as in :mod:`pera_mm.datasets.reading`, or (low, high) of each band; None: the values
            stay as they are, as float32.
        is_bgr: the channels are passed in reverse order.
        gsd: meters per pixel of the training data, if the config says so.
    """

    bands: tuple[int, ...] | None = (1, 2, 3)
    channels: int = 3
    scale: Scale | Limits | None = 'auto'
    is_bgr: bool = False
    gsd: float | None = None


class Date:
    """One date of a scene: an open raster, and how its pixels become a model's.

    Args:
        file: the raster.
        reading: what the model takes.
        place: its name in errors.

    Raises:
        UserError: if it lacks a band.
    """

    def __init__(self, file: Any, reading: Reading, place: str) -> None:
        self.file, self.reading, self.place = file, reading, place
        self.colors = _color_table(file, reading)
        opacity = opacity_of(file, place)
        self.bands = (1,) if self.colors is not None else reading.bands or choose_bands(
            file, opacity, reading.channels)
        _check_bands(file, self.bands, opacity, place)
        is_warped = isinstance(file, WarpedVRT)  # beyond its source every band is 0, alpha too
        self.has_mask = has_mask(file, self.bands,
                                 is_warped or opacity not in (None, *self.bands))
        self.is_float = np.dtype(file.dtypes[self.bands[0] - 1]).kind == 'f'
        self.rectangles = _source_rectangles(file, self.bands) if self.has_mask else None

    def covers(self, window: Window) -> bool:
        """Return False if a VRT has no source in the window."""
        if self.rectangles is None:
            return True
        left, top, right, bottom = self.rectangles
        return bool(np.any((left < window.col_off + window.width) & (right > window.col_off)
                           & (top < window.row_off + window.height) & (bottom > window.row_off)))

    def read(self, window: Window) -> tuple[NDArray, NDArray[np.bool_]]:
        """Read ``[channels, H, W]``, and the valid pixels ``[H, W]``."""
        try:
            values = self.file.read(self.bands, window=window)
            valid = self._valid(values, window=window)
        except RasterioError as error:
            raise FileError(
                f'{self.place} cannot be read at rows {window.row_off} to '
                f'{window.row_off + window.height}, columns {window.col_off} to '
                f'{window.col_off + window.width} ({reason_of(error.__cause__ or error)}): repair '
                'or replace the file.') from None
        return self._as_input(values, valid), valid

    def _valid(self, values: NDArray, **where: Any) -> NDArray[np.bool_]:
        valid = np.ones(values.shape[1:], bool)
        if self.has_mask:
            valid = self.file.read_masks(self.bands, **where).max(axis=0) > 0
        if self.is_float:
            valid &= np.isfinite(values).all(axis=0)
        return valid

    def _as_input(self, values: NDArray, valid: NDArray[np.bool_]) -> NDArray:
        if self.colors is not None:
            values = self.colors[values[0]].transpose(2, 0, 1)
        elif self.reading.scale is None:
            values = values.astype(np.float32)
        elif values.dtype != np.uint8:
            values = self._stretched(values, valid) if valid.any() else np.zeros(
                values.shape, np.uint8)
        values = np.where(valid, values, values.dtype.type(0))
        if len(values) == 1:
            values = np.repeat(values, self.reading.channels, axis=0)
        return values[::-1] if self.reading.is_bgr else values

    def _stretched(self, values: NDArray, valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        if not self.limits:
            raise UserError(f'{self.place} has no valid pixel in a sample of the whole scene, so '
                            'what becomes 0 and 255 is unknown: say so with --scale LOW HIGH.')
        return np.stack([
            to_uint8(value[None], valid, limit)[0] if limit[0] < limit[1]
            else np.zeros(value.shape, np.uint8) for value, limit in zip(values, self.limits)])

    @cached_property
    def limits(self) -> Limits:
        """As :meth:`pera_mm.datasets.scene.Scene.limits` gives them."""
        scale = self.reading.scale
        if scale is None or {self.file.dtypes[band - 1] for band in self.bands} == {'uint8'}:
            return ()
        if scale == 'auto':
            values, valid = self.sample()
            if not valid.any():
                return ()
            scale = tuple(np.percentile(values[:, valid], PERCENTILES, axis=1).T.tolist())
        return tuple((float(low), float(high)) for low, high in
                     np.broadcast_to(scale, (len(self.bands), 2)))

    def sample(self) -> tuple[NDArray, NDArray[np.bool_]]:
        """Read at most a million pixels that are spread over the raster.

        Returns:
            Values ``[bands, H, W]``, and the valid pixels ``[H, W]``.

        Raises:
            FileError: if the file cannot be read.
        """
        sides = [min(side, SAMPLE_SIDE) for side in self.file.shape]
        try:
            values = self.file.read(self.bands, out_shape=(len(self.bands), *sides))
            valid = self._valid(values, out_shape=(len(self.bands), *sides))
        except RasterioError as error:
            raise FileError(
                f'{self.place} cannot be read ({reason_of(error.__cause__ or error)}), so what '
                'becomes 0 and 255 (--scale LOW HIGH) is unknown: repair or replace the '
                'file.') from None
        return values, valid


def _check_bands(file: Any, bands: tuple[int, ...], opacity: int | None, place: str) -> None:
    """Raise a UserError if the file lacks one of the bands."""
    first = bands == tuple(range(1, len(bands) + 1))  # opacity counts only where it is named
    has = file.count - (first and opacity is not None)
    if has < max(bands):
        numbers = ', '.join(map(str, bands))
        raise UserError(f'{place} has {has} band{"s" if has > 1 else ""}, and the model takes the '
                        f'bands {numbers}: give another scene, or name its bands with --bands.')


def _color_table(file: Any, reading: Reading) -> NDArray[np.uint8] | None:
    """Return the RGB of each value ``[256, 3]`` of a file with a palette, else None."""
    if file.colorinterp[0] != ColorInterp.palette or reading.channels != 3 or (
            file.dtypes[0] != 'uint8'):
        return None
    table = np.zeros((256, 3), np.uint8)
    for value, color in file.colormap(1).items():
        table[value] = color[:3]
    return table


def _source_rectangles(file: Any, bands: tuple[int, ...]) -> NDArray | None:
    """List where a VRT has sources; elsewhere nothing is valid.

    Returns:
        Left, top, right and bottom of each source in pixels ``[4, sources]``; None if pixels may
        be valid anywhere.
    """
    if file.driver != 'VRT' or isinstance(file, WarpedVRT):
        return None
    try:
        root = ET.fromstring(file.tags(ns='xml:VRT')['xml:VRT'])
    except (KeyError, ET.ParseError):
        return None
    if root.get('subClass') or root.find('MaskBand') is not None:
        return None
    rectangles = {(0., 0., 0., 0.)}
    for number, band in enumerate(root.findall('VRTRasterBand'), 1):
        if number not in bands:
            continue
        if band.get('subClass') or band.find('NoDataValue') is None:
            return None
        for source in band:
            if not source.tag.endswith('Source'):
                continue
            place = source.find('DstRect')
            if place is None:
                return None
            left, top, width, height = (
                float(place.get(key, 0)) for key in ('xOff', 'yOff', 'xSize', 'ySize'))
            rectangles.add((left, top, left + width, top + height))
    return np.array(sorted(rectangles)).T
