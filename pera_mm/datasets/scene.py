"""Scenes of any size, read in windows as a model takes them.

The rule is that of :mod:`pera_mm.datasets.reading`: 8-bit pixels stay as they are, others are
mapped linearly to 0..255; pixels without a value (nodata, masked, transparent, NaN) are 0. Only
``scale='auto'`` differs: the 2nd and 98th percentile are those of the whole scene, so that all
windows are mapped alike; they are taken from about a million pixels of it.
"""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pera_mm.datasets.reading import SUFFIXES
from pera_mm.datasets.scene_grids import (
    URL,
    Areas,
    check_gsd,
    on_grid_of,
    open_raster,
    overlap,
    pixel_sides,
    resampled,
)
from pera_mm.datasets.scene_pixels import Date, Limits, Reading
from pera_mm.errors import MissingFileError, UserError


class Scene:
    """A scene of one or two dates on one grid of pixels, open for reading by one thread at a time.

    Args:
        place: path or URL of a raster that GDAL reads; of two dates the newer one, whose grid it
            is.
        reading: what the model takes.
        before: the older date; it is resampled to the grid of the newer one (bilinear; palettes:
            nearest), and only pixels that are valid in both are valid.
        gsd: meters per pixel to which the scene is resampled: averaged to larger pixels,
            bilinear to smaller ones (palettes: nearest).
        aoi: only pixels whose centers lie in polygons of this file are wanted.

    Attributes:
        file: the newer date, an open raster of rasterio.
        overlap: the share of the scene that the older date covers.

    Raises:
        UserError: if a file cannot be opened, does not fit the reading, has no georeference where
            one is needed, or the dates or the polygons do not meet the scene.
    """

    def __init__(self, place: str, reading: Reading, before: str | None = None,
                 gsd: float | None = None, aoi: 'str | Path | None' = None) -> None:
        self.place = place
        self._files = ExitStack()
        try:
            newer = self._files.enter_context(closing(open_raster(place)))
            if gsd is not None:
                newer = self._files.enter_context(resampled(newer, gsd))
            self.file = newer
            self.height, self.width = newer.height, newer.width
            self.transform, self.crs = newer.transform, newer.crs
            check_gsd(newer, reading.gsd, gsd)
            self.overlap = 1.
            dates = [newer]
            if before is not None:
                older = self._files.enter_context(closing(open_raster(before)))
                self.overlap = overlap(older, newer)
                dates.insert(0, self._files.enter_context(on_grid_of(newer, older)))
            self._dates = [Date(file, reading, place) for file, place in
                           zip(dates, [place] if before is None else [before, place])]
            self._areas = None if aoi is None else Areas(aoi, newer)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self) -> 'Scene':
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def pixel_area(self) -> float | None:
        """Compute the area of a pixel in the middle of the scene, in m²; None without a CRS."""
        sides = pixel_sides(self)
        return None if sides is None else sides[0] * sides[1]

    def limits(self) -> Limits:
        """Return the values of each band that become 0 and 255, of two dates of the newer one.

        With ``scale='auto'`` it reads a sample of the whole scene. There are none for 8-bit pixels,
        and where the sample has no valid pixel.

        Raises:
            UserError: if the scene cannot be read.
        """
        return self._dates[-1].limits

    def may_have_pixels(self, top: int, left: int, height: int, width: int) -> bool:
        """Return False for a part that has no wanted pixel for sure, without reading it."""
        window = Window(left, top, width, height)
        return all(date.covers(window) for date in self._dates) and (
            self._areas is None or self._areas.touch(window))

    def read(self, top: int, left: int, size: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """Read a square window; beyond the scene's end it is filled with the mirrored scene.

        Args:
            top: its first row.
            left: its first column.
            size: its side in pixels.

        Returns:
            Pixels ``[dates * channels, size, size]``, uint8 or float32, 0 where they are not
            valid; and ``[size, size]``, which pixels are wanted: valid in every date, inside the
            polygons.

        Raises:
            FileError: if the file cannot be read there.
        """
        window = Window(left, top, min(size, self.width - left), min(size, self.height - top))
        parts = [date.read(window) for date in self._dates]
        pixels = np.concatenate([part[0] for part in parts])
        wanted = np.logical_and.reduce([part[1] for part in parts])
        if self._areas is not None and wanted.any():
            wanted &= self._areas.mask(window)
        missing = size - window.height, size - window.width
        if any(missing):
            sides = [(0, number) for number in missing]
            pixels = np.pad(pixels, [(0, 0), *sides], mode='symmetric')
            wanted = np.pad(wanted, sides)
        return pixels, wanted


def list_scenes(places: Sequence[str | Path]) -> list[str]:
    """List the rasters that places name.

    Args:
        places: files, URLs, folders (their rasters, sorted), and ``.txt`` files with one of these
            on each line.

    Raises:
        UserError: if a place does not exist or has no raster.
    """
    found: list[str] = []
    for place in map(str, places):
        path = Path(place)
        if URL.match(place):
            found.append(place)
        elif path.is_dir():
            suffixes = {*(suffix.decode() for suffix in SUFFIXES), '.vrt'}
            files = sorted(str(each) for each in path.iterdir() if each.is_file()
                           and each.suffix.lower() in suffixes and not each.name.startswith('.'))
            if not files:
                raise UserError(f'No raster in the folder {place}: it needs files that end in '
                                f'{", ".join(sorted(suffixes))}.')
            found += files
        elif path.suffix == '.txt' and path.is_file():
            lines = [line.strip() for line in path.read_text().splitlines()]
            found += list_scenes([line for line in lines if line])
        elif path.exists():
            found.append(place)
        else:
            raise MissingFileError(f'There is no scene {place}: give a raster, a folder, a list '
                                   '(.txt) or a URL.')
    return found
