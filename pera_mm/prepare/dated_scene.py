"""A scene cut into tiles, alone or with an older date on the same grid.

Pixels stay raw here: a tile has all bands and the type of its scene, and keeps nodata, mask and
palette, where :class:`pera_mm.datasets.scene.Scene` gives what a model takes.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pera_mm.datasets.reading import PERCENTILES
from pera_mm.datasets.scene_grids import has_grid, on_grid_of, open_raster, overlap
from pera_mm.datasets.scene_pixels import Date, Reading
from pera_mm.errors import UserError
from pera_mm.prepare.tiles import tile_name, tile_starts

Bounds = tuple[float, float, float, float]  # left, bottom, right, top


class Tile(NamedTuple):
    """A square of a scene; x and y are its upper left corner in pixels."""

    scene: int
    x: int
    y: int
    name: str  # without suffix


class DatedScene:
    """A scene, or two dates of one place on the grid of the newer one.

    Args:
        path: A raster that GDAL reads, the newer date.
        before: One of the older date, if there are two.
        stack: It closes the files.

    Raises:
        ValueError: if a file cannot be read or has no place on the Earth, or the dates have other
            bands or no common area.
    """

    def __init__(self, path: Path, before: Path | None, stack: ExitStack) -> None:
        self.path = path
        self.newer = stack.enter_context(open_raster(str(path)))
        _check_place(self.newer)
        self.dates = [self.newer]
        if before is not None:
            older = stack.enter_context(open_raster(str(before)))
            _check_place(older)
            if _bands(older) != _bands(self.newer):
                raise UserError(f'{before} has {_bands(older)}, {path} has {_bands(self.newer)}: '
                                'both dates need the same bands.')
            overlap(older, self.newer)
            self.dates.insert(0, stack.enter_context(on_grid_of(self.newer, older)))

    @property
    def crs(self) -> Any:
        """The coordinate reference system, as rasterio has it."""
        return self.newer.crs

    def bounds(self, crs: Any) -> Bounds:
        """Compute the bounds of the scene in a coordinate system."""
        return _bounds_in(self.newer, crs)

    def tiles(self, number: int, side: int) -> list[Tile]:
        """Cut the scene; the last tiles of a row and of a column are shifted back.

        Raises:
            ValueError: if the scene is smaller than a tile.
        """
        try:
            xs, ys = (tile_starts(length, side) for length in self.newer.shape[::-1])
        except UserError as error:
            raise UserError(f'{self.path}: {error}; choose a smaller --tile.') from None
        return [Tile(number, x, y, tile_name(self.path.stem, (x, y)).removesuffix('.png'))
                for y in ys for x in xs]

    def tile_bounds(self, tile: Tile, side: int, crs: Any) -> Bounds:
        """Compute the bounds of a tile in a coordinate system."""
        return _bounds_in(self.newer, crs, (tile.x, tile.y, side, side))

    def tile_transform(self, tile: Tile, side: int) -> Any:
        """Return the affine transform from the pixels of a tile to the scene's CRS."""
        from rasterio.windows import transform

        return transform(_window(tile, side), self.newer.transform)

    def valid(self, tile: Tile, side: int) -> NDArray[np.bool_]:
        """Find the pixels that have a value at every date, ``[side, side]``."""
        window = _window(tile, side)
        valid = np.ones((side, side), bool)
        for date in self.dates:
            valid &= date.dataset_mask(window=window) > 0
            if np.dtype(date.dtypes[0]).kind == 'f':
                valid &= np.isfinite(date.read(1, window=window))
        return valid

    def images(self, tile: Tile, valid: NDArray[np.bool_]) -> Iterator[bytes]:
        """Cut a tile out of each date, the older first, as GeoTIFF files.

        Args:
            tile: The tile.
            valid: From :meth:`valid`; of two dates, both are empty where it is False.
        """
        side = len(valid)
        for date in self.dates:
            pixels = date.read(range(1, self.newer.count + 1), window=_window(tile, side))
            if len(self.dates) > 1:
                pixels[:, ~valid] = 0 if self.newer.nodata is None else self.newer.nodata
            yield _geotiff(pixels, valid, self.newer, self.tile_transform(tile, side))


def check_bands(scenes: list[DatedScene]) -> None:
    """Check that all scenes have one number and one type of bands.

    Raises:
        ValueError: if not.
    """
    first = scenes[0].newer
    for scene in scenes[1:]:
        if _bands(scene.newer) != _bands(first):
            raise UserError(f'{scene.path} has {_bands(scene.newer)}, {scenes[0].path} has '
                            f'{_bands(first)}: the scenes of a data set need the same bands.')


def common_scale(scenes: list[DatedScene]) -> tuple[float, float] | None:
    """Find one scale for all tiles of scenes, as a config and ``tools/predict.py`` take it.

    Returns:
        The 2nd and 98th percentile of all bands of all scenes and dates, from a sample of each;
        None for 8-bit pixels, which stay as they are, and where both are equal.

    Raises:
        ValueError: if a scene cannot be read.
    """
    first = scenes[0].newer
    if first.dtypes[0] == 'uint8':
        return None
    bands = tuple(number for number, color in enumerate(first.colorinterp, 1)
                  if color.name != 'alpha')
    files = [file for scene in scenes for file in scene.dates]
    samples = []
    for file in files:
        values, valid = Date(file, Reading(bands, len(bands)), file.name).sample()
        samples.append(values[:, valid][:, ::len(files)].ravel())  # of all a million pixels
    known = np.concatenate(samples)
    low, high = np.percentile(known, PERCENTILES).tolist() if len(known) else (0., 0.)
    return (low, high) if low < high else None


def _check_place(raster: Any) -> None:
    """Check that a scene has a place on the Earth.

    Raises:
        ValueError: if not.
    """
    if not has_grid(raster):
        raise UserError(
            f'{raster.name} has no coordinate reference system or no place, so polygons cannot be '
            'laid over it: give it both with "gdal_translate -a_srs EPSG:... -a_ullr ...", or '
            'warp it by its control points with gdalwarp.')


def _bands(raster: Any) -> str:
    return f'{raster.count} bands of {raster.dtypes[0]}'


def _bounds_in(raster: Any, crs: Any, part: tuple[int, int, int, int] | None = None) -> Bounds:
    """Compute the bounds of a raster, or of a part (x, y, width, height in pixels), in a CRS."""
    from rasterio.transform import xy
    from rasterio.warp import transform_bounds

    x, y, width, height = part or (0, 0, raster.width, raster.height)
    xs, ys = xy(raster.transform, [y, y, y + height, y + height], [x, x + width, x, x + width],
                offset='ul')
    return transform_bounds(raster.crs, crs, min(xs), min(ys), max(xs), max(ys))


def _window(tile: Tile, side: int) -> Any:
    from rasterio.windows import Window

    return Window(tile.x, tile.y, side, side)


def _geotiff(pixels: NDArray, valid: NDArray[np.bool_], scene: Any, transform: Any) -> bytes:
    """Encode a tile ``[bands, H, W]`` with what its scene says about pixels and place."""
    from rasterio import Env
    from rasterio.enums import ColorInterp, MaskFlags
    from rasterio.io import MemoryFile

    _, height, width = pixels.shape
    with Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as memory:
        with memory.open(driver='GTiff', count=len(pixels), height=height, width=width,
                         dtype=pixels.dtype, crs=scene.crs, transform=transform,
                         nodata=scene.nodata, compress='deflate') as file:
            file.colorinterp = scene.colorinterp
            if scene.colorinterp[0] == ColorInterp.palette:
                file.write_colormap(1, scene.colormap(1))
            file.write(pixels)
            if scene.mask_flag_enums[0] == [MaskFlags.per_dataset]:
                file.write_mask(valid)
        return memory.read()
