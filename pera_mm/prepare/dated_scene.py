"""A scene cut into tiles, alone or with an older date on the same grid."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
        self.newer = stack.enter_context(_opened(path))
        self.dates = [self.newer]
        if before is not None:
            older = stack.enter_context(_opened(before))
            self.dates.insert(0, stack.enter_context(_on_grid_of(self.newer, older)))

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


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a scene.

    Raises:
        ValueError: if it cannot be read or lies nowhere.
    """
    from rasterio import open as open_raster
    from rasterio.errors import RasterioIOError

    try:
        raster = open_raster(path)
    except RasterioIOError as error:
        raise UserError(f'{path} cannot be read as a raster: {error}') from None
    with raster:
        if raster.crs is None or raster.transform.is_identity:
            raise UserError(
                f'{path} has no coordinate reference system or no place, so polygons cannot be '
                'laid over it: give it both with "gdal_translate -a_srs EPSG:... -a_ullr ...", or '
                'warp it by its control points with gdalwarp.')
        yield raster


def _on_grid_of(newer: Any, older: Any) -> Any:
    """Show the older scene on the newer one's grid.

    Raises:
        ValueError: if they have different bands or no common area.
    """
    from rasterio.enums import ColorInterp, MaskFlags, Resampling
    from rasterio.vrt import WarpedVRT

    if _bands(older) != _bands(newer):
        raise UserError(f'{older.name} has {_bands(older)}, {newer.name} has {_bands(newer)}: both '
                        'dates need the same bands.')
    there, here = _bounds_in(older, newer.crs), _bounds_in(newer, newer.crs)
    if any(there[i] >= here[i + 2] or here[i] >= there[i + 2] for i in (0, 1)):
        raise UserError(f'{older.name} and {newer.name} do not overlap: give two dates of one '
                        'place.')
    is_palette = older.colorinterp[0] == ColorInterp.palette
    marked = {MaskFlags.alpha, MaskFlags.nodata} & set(older.mask_flag_enums[0])
    return WarpedVRT(
        older, crs=newer.crs, transform=newer.transform, width=newer.width, height=newer.height,
        resampling=Resampling.nearest if is_palette else Resampling.bilinear,
        add_alpha=not marked)  # what lies beyond the older scene has no value


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
