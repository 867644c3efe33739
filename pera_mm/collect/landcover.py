"""A land-cover map of any size: GeoTIFFs or COGs, local or remote, read window by window.

Every raster may have its own coordinate system. Areas and places are reckoned in the equal-area
plane of EPSG:6933 (WGS84, the ellipsoid as it is): there a pixel's area is its area on the ground,
and a place drawn uniformly in the plane is drawn uniformly per km², whether the raster counts in
degrees or in the metres of a UTM zone.

A path is anything that GDAL opens: a glob of local files, an http(s) address or /vsicurl/, /vsis3/
or /vsigs/ path of a cloud-optimised GeoTIFF, of which only the windows asked for are transferred,
or an image of Google Earth Engine (``EEDAI:`` and its name; GDAL's driver logs in with
GOOGLE_APPLICATION_CREDENTIALS, a service account's file, or EEDA_BEARER, an access token).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what PROJ and GDAL raise; no RasterioError
from rasterio.errors import RasterioError
from rasterio.warp import transform, transform_bounds
from rasterio.windows import Window

from pera_mm.collect.rasters import find_rasters, opened

# Class codes to names; '' is no data. ESRI 10 m Annual Land Cover (2021 and later: 11 is rangeland)
# and ESA WorldCover v100/v200.
LEGENDS: dict[str, dict[int, str]] = {
    'esri': {0: '', 1: 'water', 2: 'forest', 4: 'wetland', 5: 'farmland', 7: 'urban', 8: 'desert',
             9: 'ice', 10: 'cloud', 11: 'grassland'},
    'worldcover': {0: '', 10: 'forest', 20: 'shrubland', 30: 'grassland', 40: 'farmland',
                   50: 'urban', 60: 'desert', 70: 'ice', 80: 'water', 90: 'wetland',
                   95: 'wetland', 100: 'moss'},
}
SIDE = 1024  # pixels looked at per window and direction
CELL = 2000.0  # m; within it a pixel's area and its continent are taken as constant
DEGREES, PLANE = 'EPSG:4326', 'EPSG:6933'
PLANE_WIDTH = 2 * 17367530.445161372  # m, from -180° to 180°
DATA_TYPES = ('uint8', 'int8', 'uint16', 'int16')
NO_DATA, UNKNOWN = -1, -2


class Raster(NamedTuple):
    """What the head of a file says."""

    path: str
    crs: Any
    transform: Any  # (column, row) to coordinates
    height: int
    width: int
    bounds: tuple[float, float, float, float]  # west, south, east (> west), north in degrees


class Grid(NamedTuple):
    """Where the pixels looked at in one window lie.

    Pixels are grouped to cells of at most 2 km, which the last row and column of cells may cut.
    """

    rows: NDArray[np.int64]  # first pixel row of every cell, and the end [R + 1]
    cols: NDArray[np.int64]  # [C + 1]
    corners: NDArray[np.float64]  # of the cells, x and y in the plane, metres [R + 1, C + 1, 2]

    @property
    def shape(self) -> tuple[int, int]:
        """Pixel rows and columns looked at."""
        return int(self.rows[-1]), int(self.cols[-1])

    def pixel_areas(self) -> NDArray[np.float64]:
        """Area of one pixel of each cell, km² [R, C]."""
        first = self.corners[1:, 1:] - self.corners[:-1, :-1]
        second = self.corners[:-1, 1:] - self.corners[1:, :-1]
        cell = np.abs(first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]) / 2
        return cell / np.diff(self.rows)[:, None] / np.diff(self.cols) / 1e6

    def centres(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Longitudes and latitudes of the cells' centres, degrees [R, C] each."""
        middle = (self.corners[1:, 1:] + self.corners[:-1, :-1]
                  + self.corners[:-1, 1:] + self.corners[1:, :-1]) / 4
        return to_degrees(middle)

    def spread(self, cells: NDArray) -> NDArray:
        """Values of the cells [R, C], repeated for their pixels [H, W]."""
        tall = np.repeat(cells, np.diff(self.rows), axis=0)
        return np.repeat(tall, np.diff(self.cols), axis=1)

    def places(self, row: NDArray, col: NDArray) -> NDArray[np.float64]:
        """Points of the plane at fractional pixel rows and columns [n], metres [n, 2]."""
        r = np.searchsorted(self.rows, row, side='right') - 1
        c = np.searchsorted(self.cols, col, side='right') - 1
        down = ((row - self.rows[r]) / np.diff(self.rows)[r])[:, None]
        right = ((col - self.cols[c]) / np.diff(self.cols)[c])[:, None]
        above = self.corners[r, c] * (1 - right) + self.corners[r, c + 1] * right
        below = self.corners[r + 1, c] * (1 - right) + self.corners[r + 1, c + 1] * right
        return above * (1 - down) + below * down


class LandCover:
    """The classes of a land-cover map and where they lie.

    Where rasters overlap, the one whose path sorts first counts and the others are no data, to
    within a cell of 2 km.

    Args:
        paths: One path or several: local globs, or addresses that GDAL opens.
        legend: 'esri', 'worldcover', or a dictionary of every class code's name, '' for no data.
            The raster's own no-data value is no data in any case. Codes may share a name.
        step: Only every step-th pixel of every step-th row is looked at (GDAL's nearest neighbour;
            from the overviews where the file has them) and stands for its square of step x step.
            1 is exact. A global map of 10 m has 10^12 pixels: with a step of 16 one looks at
            6 * 10^9, and a point's class is that of the map within 160 m.

    Attributes:
        rasters: What the files' heads say, by path.
        classes: The names in the legend, in its order.

    Raises:
        ValueError: if a pattern matches no file, a raster cannot be read, has no georeference or
            holds no class codes (float, or several bands), or legend or step are none.
    """

    def __init__(self, paths: str | Sequence[str], legend: str | Mapping[int, str] = 'esri',
                 step: int = 1) -> None:
        if step < 1 or step != int(step):
            raise ValueError(f'landcover.step must be a whole number from 1, got {step}.')
        self.step = int(step)
        names = _legend(legend)
        self.classes = tuple(dict.fromkeys(name for name in names.values() if name))
        self.rasters = [_open(path) for path in sorted(find_rasters(paths, 'landcover.paths'))]
        # By code + 32768, so that every data type fits.
        self._index = np.full(1 << 17, UNKNOWN, np.int8)
        for code, name in names.items():
            self._index[code + 32768] = self.classes.index(name) if name else NO_DATA

    @cached_property
    def _bounds(self) -> NDArray[np.float64]:
        return np.array([raster.bounds for raster in self.rasters])

    def count_windows(self, number: int) -> int:
        """How many windows one raster has."""
        raster, side = self.rasters[number], SIDE * self.step
        return -(-raster.height // side) * -(-raster.width // side)

    def windows(self, number: int, chosen: range | None = None) -> Iterator[Window]:
        """The windows of one raster, row by row: all, or those with these numbers."""
        raster, side = self.rasters[number], SIDE * self.step
        across = -(-raster.width // side)
        for index in range(self.count_windows(number)) if chosen is None else chosen:
            row, col = index // across * side, index % across * side
            yield Window(col, row, min(side, raster.width - col), min(side, raster.height - row))

    def grid(self, number: int, window: Window) -> Grid:
        """Where the pixels of a window lie."""
        raster = self.rasters[number]
        height, width = self._looked_at(window)
        a, b, _, d, e, _ = raster.transform[:6]
        metres = 111_320 if raster.crs.is_geographic else raster.crs.linear_units_factor[1]
        pixel = max(np.hypot(a, d), np.hypot(b, e)) * self.step * metres
        side = int(np.clip(CELL / pixel, 1, SIDE))
        rows = np.append(np.arange(0, height, side), height)
        cols = np.append(np.arange(0, width, side), width)
        full_rows = window.row_off + rows * (window.height / height)
        full_cols = window.col_off + cols * (window.width / width)
        x, y = _apply(raster.transform, *np.meshgrid(full_cols, full_rows))
        corners = _to_plane(raster.crs, x, y)
        # Beyond the antimeridian x goes on, so that a window that crosses it stays in one piece.
        for axis in (0, 1):
            corners[..., 0] = np.unwrap(corners[..., 0], period=PLANE_WIDTH, axis=axis)
        return Grid(rows, cols, corners)

    def _looked_at(self, window: Window) -> tuple[int, int]:
        return -(-window.height // self.step), -(-window.width // self.step)

    def read(self, number: int, window: Window) -> NDArray[np.int8]:
        """Classes of the pixels looked at in a window.

        Returns:
            int8 [H, W], indices into ``classes``; -1 where there is no data.

        Raises:
            ValueError: if a code is not in the legend, or the file cannot be read.
        """
        return self._read(number, window, self._looked_at(window))

    def _read(self, number: int, window: Window, shape: tuple[int, int]) -> NDArray[np.int8]:
        raster = self.rasters[number]
        try:
            with opened(raster.path) as file:
                codes = file.read(1, window=window, out_shape=shape)
                nodata = file.nodata
        except (RasterioError, CPLE_BaseError) as error:
            raise ValueError(f'{raster.path} cannot be read: {_line(error)}.') from None
        classes = self._index[codes.astype(np.int32) + 32768]
        if nodata is not None:
            classes[codes == nodata] = NO_DATA
        if (classes == UNKNOWN).any():
            at = np.unravel_index((classes == UNKNOWN).argmax(), shape)
            row = window.row_off + (at[0] + 0.5) * window.height / shape[0]
            col = window.col_off + (at[1] + 0.5) * window.width / shape[1]
            lon, lat = to_degrees(_to_plane(raster.crs, *_apply(raster.transform, col, row)))
            raise ValueError(
                f'{raster.path} has the class code {codes[at]} in row {int(row)}, column '
                f'{int(col)} ({lon:.4f}° E, {lat:.4f}° N), which the legend does not know: name it '
                "in landcover.legend, '' if it is no data.")
        return classes

    def first(self, number: int, grid: Grid) -> NDArray[np.bool_]:
        """Whether no raster before this one has data at the centre of a cell, [R, C]."""
        lon, lat = grid.centres()
        is_first = np.ones(lon.shape, bool)
        west, south, east, north = self._bounds[:number].T
        low, high = np.array([grid.corners[..., 0].min(), grid.corners[..., 0].max()]) * (
            360 / PLANE_WIDTH)
        near = ((west - low) % 360 <= high - low) | ((low - west) % 360 <= east - west)
        near &= (south <= lat.max()) & (lat.min() <= north)
        for other in np.flatnonzero(near):
            west, south, east, north = self._bounds[other]
            inside = ((lon - west) % 360 <= east - west) & (south <= lat) & (lat <= north)
            if inside.any():
                is_first[inside] &= ~self._has_data(int(other), lon[inside], lat[inside])
        return is_first

    def _has_data(self, number: int, lon: NDArray, lat: NDArray) -> NDArray[np.bool_]:
        """Whether a raster has data at places in degrees within its bounds, [n]."""
        raster = self.rasters[number]
        x, y = map(np.array, transform(DEGREES, raster.crs, lon, lat))
        if raster.crs.is_geographic:  # its degrees may go from 0 to 360
            x = raster.transform.c + (x - raster.transform.c) % 360
        col, row = _apply(~raster.transform, x, y)
        inside = (0 <= col) & (col < raster.width) & (0 <= row) & (row < raster.height)
        if not inside.any():
            return inside
        row, col = row[inside].astype(int), col[inside].astype(int)
        top, left = row.min(), col.min()
        window = Window(left, top, col.max() - left + 1, row.max() - top + 1)
        most = 4 * max(round(len(lon)**0.5), 64)  # no finer than needed to tell cells apart
        height, width = min(window.height, most), min(window.width, most)
        known = self._read(number, window, (height, width)) != NO_DATA
        inside[inside] = known[(row - top) * height // window.height,
                               (col - left) * width // window.width]
        return inside


def _legend(legend: str | Mapping[Any, str]) -> dict[int, str]:
    """Code to name; a config's command line makes the codes texts."""
    if isinstance(legend, str):
        if legend not in LEGENDS:
            raise ValueError(f'landcover.legend is {legend!r}; it must be '
                             f'{" or ".join(map(repr, LEGENDS))}, or a dictionary of code: name.')
        return LEGENDS[legend]
    try:
        names = {int(code): str(name) for code, name in legend.items()}
    except (ValueError, AttributeError):
        names = {}
    if not any(names.values()) or min(names) < -32768 or max(names) > 65535:
        raise ValueError('landcover.legend must be a dictionary of class code: name with whole '
                         f'numbers as codes, e.g. {{1: "water"}}, got {legend!r}.')
    return names


def _open(path: str) -> Raster:
    try:
        with opened(path) as file:
            if file.crs is None or file.transform.is_identity:
                raise ValueError(f'{path} has no georeference (coordinate system and position); '
                                 'give it one, e.g. with gdal_edit.py -a_srs -a_ullr.')
            if file.count != 1 or file.dtypes[0] not in DATA_TYPES:
                raise ValueError(f'{path} is no land-cover map: it has {file.count} bands of '
                                 f'{file.dtypes[0]}, not one of class codes in 8 or 16 bits.')
            west, south, east, north = transform_bounds(file.crs, DEGREES, *file.bounds)
            if not np.isfinite((west, south, east, north)).all():
                raise ValueError(_beyond(path))
            if west > east:  # it crosses the antimeridian
                east += 360
            return Raster(path, file.crs, file.transform, file.height, file.width,
                          (west, south, east, north))
    except (RasterioError, CPLE_BaseError) as error:
        raise ValueError(f'{path} cannot be read as a raster: {_line(error)}.') from None


def _apply(affine: Any, col: Any, row: Any) -> tuple[Any, Any]:
    a, b, c, d, e, f = affine[:6]
    return a * col + b * row + c, d * col + e * row + f


def _line(error: Exception) -> str:
    return ' '.join(str(error).split()).rstrip('.')


def _to_plane(crs: Any, x: Any, y: Any) -> NDArray[np.float64]:
    """Coordinates in any system to the equal-area plane, metres [..., 2]."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if crs.is_geographic:
        y = y.clip(-90, 90)  # global rasters may reach over the poles by half a pixel
    try:
        plane = np.stack(transform(crs, PLANE, x.ravel(), y.ravel()), axis=-1)
    except CPLE_BaseError:
        plane = np.full((1, 2), np.inf)
    if not np.isfinite(plane).all():
        raise ValueError(_beyond(f'a land-cover raster in {crs}'))
    return plane.reshape(*x.shape, 2)


def _beyond(what: str) -> str:
    return (f'{what} reaches beyond the globe; cut it to where its coordinate system holds, or '
            'warp it to EPSG:4326.')


def to_degrees(plane: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of the plane [..., 2] to longitudes (-180 to 180) and latitudes, degrees [...]."""
    lon, lat = transform(PLANE, DEGREES, plane[..., 0].ravel(), plane[..., 1].ravel())
    lon = (np.array(lon) + 180) % 360 - 180
    return lon.reshape(plane.shape[:-1]), np.array(lat).reshape(plane.shape[:-1])
