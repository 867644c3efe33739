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

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what PROJ and GDAL raise; no RasterioError
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.warp import transform, transform_bounds
from rasterio.windows import Window

from pera_mm.collect.common.gdal import OpenRasters, find_rasters, in_threads, opened
from pera_mm.collect.common.tables import log
from pera_mm.errors import UserError

# Class codes to names; '' is no data. ESRI 10 m Annual Land Cover (2021 and later: 11 is rangeland)
# and ESA WorldCover v100/v200.
LEGENDS: dict[str, dict[int, str]] = {
    'esri': {0: '', 1: 'water', 2: 'forest', 4: 'wetland', 5: 'farmland', 7: 'urban', 8: 'desert',
             9: 'ice', 10: 'cloud', 11: 'grassland'},
    'worldcover': {0: '', 10: 'forest', 20: 'shrubland', 30: 'grassland', 40: 'farmland',
                   50: 'urban', 60: 'desert', 70: 'ice', 80: 'water', 90: 'wetland',
                   95: 'wetland', 100: 'moss'},
}
SIDE = 1024  # squares looked at per window and direction
CELL = 2000.0  # m; within it a pixel's area and its continent are taken as constant
BAND = 1 << 25  # pixels read at once, at most
BORDER = 1e-4  # of a pixel: so near to another one no place is left
HEADS = 16  # files whose heads are read at once
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
    files: tuple[str, ...]  # that it consists of: itself, a VRT's sources, a mask


class Axis(NamedTuple):
    """Where the squares looked at in one window lie along the rows or columns of their raster.

    Squares are grouped to cells of at most 2 km, of which the window's end may cut the last.
    """

    edges: NDArray[np.float64]  # pixels where the squares begin, and the end [H + 1]
    cells: NDArray[np.int64]  # squares where the cells begin, and the end [R + 1]
    low: NDArray[np.float64]  # pixels from which ... [H]
    high: NDArray[np.float64]  # ... to which a place in the square is drawn [H]


class Grid(NamedTuple):
    """Where the squares looked at in one window lie."""

    down: Axis
    right: Axis
    corners: NDArray[np.float64]  # of the cells, x and y in the plane, metres [R + 1, C + 1, 2]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of squares."""
        return len(self.down.low), len(self.right.low)

    def pixel_areas(self) -> NDArray[np.float64]:
        """Area of one pixel of each cell, km² [R, C]."""
        first = self.corners[1:, 1:] - self.corners[:-1, :-1]
        second = self.corners[:-1, 1:] - self.corners[1:, :-1]
        cell = np.abs(first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]) / 2
        rows, cols = (np.diff(axis.edges[axis.cells]) for axis in (self.down, self.right))
        return cell / rows[:, None] / cols / 1e6

    def areas(self) -> NDArray[np.float64]:
        """Area of each square, km² [H, W]."""
        return (self.spread(self.pixel_areas()) * np.diff(self.down.edges)[:, None]
                * np.diff(self.right.edges))

    def centres(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Longitudes and latitudes of the cells' centres, degrees [R, C] each."""
        middle = (self.corners[1:, 1:] + self.corners[:-1, :-1]
                  + self.corners[:-1, 1:] + self.corners[1:, :-1]) / 4
        return to_degrees(middle)

    def spread(self, cells: NDArray) -> NDArray:
        """Values of the cells [R, C], repeated for their squares [H, W]."""
        tall = np.repeat(cells, np.diff(self.down.cells), axis=0)
        return np.repeat(tall, np.diff(self.right.cells), axis=1)


class LandCover:
    """The classes of a land-cover map and where they lie.

    Where rasters overlap, the one whose path sorts first counts, and of the others the squares
    whose middle has data in an earlier one are no data.

    Args:
        paths: One path or several: local globs, or addresses that GDAL opens.
        legend: 'esri', 'worldcover', or a dictionary of every class code's name, '' for no data.
            The raster's own no-data value is no data in any case. Codes may share a name.
        step: Of every square of step x step pixels only the middle one is looked at. It stands
            for the area of the square, and the square's places are drawn in it: still uniform per
            km², and truly of their class. 1 is exact. A global map of 10 m has 10^12 pixels: with
            a step of 16, 4 * 10^9 are looked at; all are read.
        overviews: Read the overviews of the files instead (GDAL's nearest neighbour), step^2 times
            less to transfer. Places are drawn in the whole square then, so that a point's class is
            the overview's, to within step pixels.

    Attributes:
        rasters: What the files' heads say, by path.
        classes: The names in the legend, in its order.

    Raises:
        ValueError: if a pattern matches no file, a raster cannot be read, has no georeference or
            holds no class codes (float, or several bands), or a setting is none.
    """

    def __init__(self, paths: str | Sequence[str], legend: str | Mapping[int, str] = 'esri',
                 step: int = 1, overviews: bool = False) -> None:
        if not isinstance(step, int | float) or not 1 <= step < 1e6 or step != int(step):
            raise UserError(f'landcover.step must be a whole number from 1, got {step!r}.')
        if not isinstance(overviews, bool):
            raise UserError(f'landcover.overviews must be True or False, got {overviews!r}.')
        self.step, self.overviews = int(step), overviews
        names = _legend(legend)
        self.classes = tuple(dict.fromkeys(name for name in names.values() if name))
        found = sorted(find_rasters(paths, 'landcover.paths'))
        log.info('reading the heads of %d land-cover rasters', len(found))
        self.rasters = in_threads(_open, found, HEADS)
        self._files = OpenRasters()
        # By code + 32768, so that every data type fits.
        self._index = np.full(1 << 17, UNKNOWN, np.int8)
        for code, name in names.items():
            self._index[code + 32768] = self.classes.index(name) if name else NO_DATA

    def close(self) -> None:
        """Close the files; those read again are opened again."""
        self._files.close()

    @cached_property
    def _bounds(self) -> NDArray[np.float64]:
        """West, south, east and north of the rasters in the plane, metres [n, 4]."""
        bounds = np.array([raster.bounds for raster in self.rasters])
        south, north = (np.array(transform(DEGREES, PLANE, 0 * lat, lat.clip(-90, 90)))[1]
                        for lat in (bounds[:, 1], bounds[:, 3]))
        west, east = bounds[:, ::2].T * (PLANE_WIDTH / 360)
        return np.stack([west, south, east, north], axis=1)

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
        """Where the squares of a window lie."""
        raster = self.rasters[number]
        a, b, _, d, e, _ = raster.transform[:6]
        metres = 111_320 if raster.crs.is_geographic else raster.crs.linear_units_factor[1]
        pixel = max(np.hypot(a, d), np.hypot(b, e)) * self.step * metres
        side = int(np.clip(CELL / pixel, 1, SIDE))
        down, right = (self._axis(edges, side) for edges in self._edges(window, self.step))
        x, y = _apply(raster.transform, *np.meshgrid(right.edges[right.cells],
                                                     down.edges[down.cells]))
        corners = _to_plane(raster.crs, x, y)
        # Beyond the antimeridian x goes on, so that a window that crosses it stays in one piece.
        for axis in (0, 1):
            corners[..., 0] = np.unwrap(corners[..., 0], period=PLANE_WIDTH, axis=axis)
        return Grid(down, right, corners)

    def _edges(self, window: Window, step: int) -> Iterator[NDArray[np.float64]]:
        """Pixel rows, then columns, where the squares of a window begin, and the end [H + 1]."""
        for start, length in ((window.row_off, window.height), (window.col_off, window.width)):
            count = -(-length // step)
            if self.overviews:  # GDAL divides what there is
                yield start + np.linspace(0, length, count + 1)
            else:
                yield start + np.minimum(np.arange(count + 1.0) * step, length)

    def _axis(self, edges: NDArray[np.float64], side: int) -> Axis:
        cells = np.append(np.arange(0, len(edges) - 1, side), len(edges) - 1)
        if self.overviews:
            return Axis(edges, cells, edges[:-1], edges[1:])
        middles = _middles(edges).astype(float)
        return Axis(edges, cells, middles, middles + 1)

    def places(self, number: int, grid: Grid, row: NDArray, col: NDArray,
               random: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A random place in each of some squares, uniform per km².

        Args:
            number: Of the raster.
            grid: Of one of its windows.
            row: Of squares of the grid [n].
            col: Of the same squares [n].
            random: Whence the places come.

        Returns:
            Longitudes and latitudes, degrees [n] each, of six decimals (0.1 m).
        """
        raster = self.rasters[number]
        corners = np.array([[
            _to_plane(raster.crs, *_apply(raster.transform, x[col], y[row]))
            for x in (grid.right.low, grid.right.high)] for y in (grid.down.low, grid.down.high)])
        for axis in (0, 1):
            corners[..., 0] = np.unwrap(corners[..., 0], period=PLANE_WIDTH, axis=axis)
        down, right = random.random((2, len(row), 1))
        above, below = corners[:, 0] * (1 - right) + corners[:, 1] * right
        lon, lat = (axis.round(6) for axis in to_degrees(above * (1 - down) + below * down))
        # Rounding moves some over a border: they go one step back, towards the middle.
        x, y = _from_degrees(raster.crs, lon, lat)
        at = zip(_pixels(raster, x, y), (grid.right, grid.down), (col, row))
        is_out = np.any([(pixel < axis.low[index] + BORDER) | (pixel > axis.high[index] - BORDER)
                         for pixel, axis, index in at], axis=0)
        middle_lon, middle_lat = to_degrees(corners.mean(axis=(0, 1)))
        lon[is_out] += 1e-6 * np.sign(middle_lon - lon)[is_out]
        lat[is_out] += 1e-6 * np.sign(middle_lat - lat)[is_out]
        return lon.round(6), lat.round(6)

    def read(self, number: int, window: Window) -> NDArray[np.int8]:
        """Classes of the squares looked at in a window.

        Returns:
            int8 [H, W], indices into ``classes``; -1 where there is no data.

        Raises:
            ValueError: if a code is not in the legend, or the file cannot be read.
        """
        codes, classes = self._read(number, window, self.step)
        if (classes == UNKNOWN).any():
            row, col = np.unravel_index((classes == UNKNOWN).argmax(), classes.shape)
            self._refuse(number, window, int(row), int(col), int(codes[row, col]))
        return classes

    def _refuse(self, number: int, window: Window, row: int, col: int, code: int) -> None:
        """Raise a ValueError about a code that is in no legend."""
        raster = self.rasters[number]
        down, right = (_middles(edges) for edges in self._edges(window, self.step))
        x, y = _apply(raster.transform, right[col] + 0.5, down[row] + 0.5)
        lon, lat = to_degrees(_to_plane(raster.crs, x, y))
        averaged = (' It comes from the overviews, which must have been made with nearest or '
                    'mode.') if self.overviews and self.step > 1 else ''
        raise UserError(
            f'{raster.path} has the class code {code} in row {int(down[row])}, column '
            f'{int(right[col])} ({lon:.4f}° E, {lat:.4f}° N), which the legend does not know: name '
            f"it in landcover.legend, '' if it is no data.{averaged}")

    def _read(self, number: int, window: Window, step: int) -> tuple[NDArray, NDArray[np.int8]]:
        """Codes and classes of the squares of a window, [H, W] each."""
        path = self.rasters[number].path
        try:
            with self._files.opened(path) as file:
                codes = self._looked_at(partial(file.read, 1), window, step)
                classes = self._index[codes.astype(np.int32) + 32768]
                if file.nodata is not None:
                    classes[codes == file.nodata] = NO_DATA
                if MaskFlags.per_dataset in file.mask_flag_enums[0]:  # inside, or a .msk beside it
                    mask = self._looked_at(partial(file.read_masks, 1), window, step)
                    classes[mask == 0] = NO_DATA
        except (RasterioError, CPLE_BaseError) as error:
            raise UserError(f'{path} cannot be read: {_line(error)}; what is finished is kept, '
                            'and the same command goes on.') from None
        return codes, classes

    def _looked_at(self, read: Callable[..., NDArray], window: Window, step: int) -> NDArray:
        """What ``read`` gives for the squares of a window, [H, W]."""
        rows, cols = (_middles(edges) for edges in self._edges(window, step))
        if self.overviews or step == 1:
            return read(window=window, out_shape=(len(rows), len(cols)))
        # GDAL would take the overviews, a VRT even those of its sources, which may be averages.
        count = max(BAND // window.width // step, 1)
        bands = []
        for first in range(0, len(rows), count):
            some = rows[first:first + count]
            band = Window(window.col_off, some[0], window.width, some[-1] - some[0] + 1)
            bands.append(read(window=band)[some - some[0]][:, cols - window.col_off])
        return np.concatenate(bands)

    def first(self, number: int, grid: Grid) -> NDArray[np.bool_]:
        """Whether no raster before this one has data at the middle of a square, [H, W]."""
        is_first = np.ones(grid.shape, bool)
        if not number:
            return is_first
        corners = np.stack([grid.corners[:-1, :-1], grid.corners[:-1, 1:],
                            grid.corners[1:, :-1], grid.corners[1:, 1:]])
        low, high = corners.min(axis=0), corners.max(axis=0)  # of the cells [R, C, 2]
        meet = _overlap(low.min(axis=(0, 1)), high.max(axis=(0, 1)), *self._bounds[:number].T)
        for other in map(int, np.flatnonzero(meet)):
            near = _overlap(low, high, *self._bounds[other])
            if near.any():
                rows, cols = (_span(np.any(near, axis=axis)) for axis in (1, 0))
                here = _squares(grid.down, rows), _squares(grid.right, cols)
                x, y = self._middles_in(self.rasters[other].crs, grid, rows, cols)
                is_first[here] &= ~self._has_data(other, x, y)
        return is_first

    def _middles_in(self, crs: Any, grid: Grid, rows: slice, cols: slice) -> NDArray[np.float64]:
        """The middles of the squares of some cells in a coordinate system, [2, h, w]: x, y."""
        corners = grid.corners[rows.start:rows.stop + 1, cols.start:cols.stop + 1]
        lon, lat = to_degrees(corners)
        places = _from_degrees(crs, lon.ravel(), lat.ravel()).reshape(2, *lon.shape)
        if crs.is_geographic:
            for axis in (0, 1):
                places[0] = np.unwrap(places[0], period=360, axis=axis)
        cell, part = _parts(grid.down, rows)
        places = places[:, cell] * (1 - part[:, None]) + places[:, cell + 1] * part[:, None]
        cell, part = _parts(grid.right, cols)
        return places[..., cell] * (1 - part) + places[..., cell + 1] * part

    def _has_data(self, number: int, x: NDArray, y: NDArray) -> NDArray[np.bool_]:
        """Whether a raster's squares around places in its own coordinates have data, [h, w]."""
        raster = self.rasters[number]
        col, row = _pixels(raster, x, y)
        inside = (0 <= col) & (col < raster.width) & (0 <= row) & (row < raster.height)
        if not inside.any():
            return inside
        row, col = row[inside].astype(int), col[inside].astype(int)
        extent = max(np.ptp(row), np.ptp(col)) // self.step
        step = self.step * (1 + int(extent) // (4 * SIDE))  # if it is much finer than the other
        top, left = row.min() // step * step, col.min() // step * step
        bottom, right = row.max() // step * step + step, col.max() // step * step + step
        window = Window(left, top, min(right, raster.width) - left,
                        min(bottom, raster.height) - top)
        known = self._read(number, window, step)[1] != NO_DATA
        inside[inside] = known[(row - top) // step, (col - left) // step]
        return inside


def _pixels(raster: Raster, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """Columns and rows, with fractions, of places in a raster's own coordinates."""
    if raster.crs.is_geographic:  # its degrees may go from 0 to 360
        ends = np.array([0, raster.width])
        west = _apply(raster.transform, ends, np.array([[0], [raster.height]]))[0].min()
        x = west + (x - west) % 360
    return _apply(~raster.transform, x, y)


def _middles(edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """The pixel in the middle of each square."""
    return ((edges[:-1] + edges[1:]) / 2).astype(np.int64)


def _span(found: NDArray) -> slice:
    """From the first to the last."""
    numbers = np.flatnonzero(found)
    return slice(numbers[0], numbers[-1] + 1)


def _squares(axis: Axis, cells: slice) -> slice:
    """The squares of some cells."""
    return slice(axis.cells[cells.start], axis.cells[cells.stop])


def _parts(axis: Axis, cells: slice) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """In which cell, from the first of some, the middle of each square is, and how far in [h]."""
    first = axis.cells[cells.start:cells.stop + 1]
    cell = np.repeat(np.arange(len(first) - 1), np.diff(first))
    begin, end = axis.edges[first[:-1]][cell], axis.edges[first[1:]][cell]
    middle = ((axis.low + axis.high) / 2)[_squares(axis, cells)]
    return cell, (middle - begin) / (end - begin)


def _overlap(low: NDArray, high: NDArray, west: NDArray, south: NDArray, east: NDArray,
             north: NDArray) -> NDArray[np.bool_]:
    """Whether boxes of the plane, from low to high [..., 2], meet others; x goes round."""
    start, end = low[..., 0], high[..., 0]
    return ((((west - start) % PLANE_WIDTH < end - start)
             | ((start - west) % PLANE_WIDTH < east - west))
            & (south < high[..., 1]) & (low[..., 1] < north))


def _legend(legend: str | Mapping[Any, str]) -> dict[int, str]:
    """Code to name; the codes may be texts of whole numbers."""
    if isinstance(legend, str):
        if legend not in LEGENDS:
            raise UserError(f'landcover.legend is {legend!r}; it must be '
                            f'{" or ".join(map(repr, LEGENDS))}, or a dictionary of code: name.')
        return LEGENDS[legend]
    try:
        names = {int(code): str(name) for code, name in legend.items()}
    except (ValueError, AttributeError):
        names = {}
    if not any(names.values()) or min(names) < -32768 or max(names) > 65535:
        raise UserError('landcover.legend must be a dictionary of class code: name with whole '
                        'numbers as codes, e.g. {1: "water"}, in the config itself (--cfg-options '
                        f'knows no dictionaries), got {legend!r}.')
    return names


def _open(path: str) -> Raster:
    try:
        with opened(path) as file:
            if file.crs is None or file.transform.is_identity:
                raise UserError(f'{path} has no georeference (coordinate system and position); '
                                'give it one, e.g. with gdal_edit.py -a_srs -a_ullr.')
            if not (file.crs.is_geographic or file.crs.is_projected):
                raise UserError(f'{path} has a coordinate system that is neither geographic nor '
                                f'projected ({file.crs.to_string()}); warp it to EPSG:4326.')
            if file.count != 1 or file.dtypes[0] not in DATA_TYPES:
                raise UserError(f'{path} is no land-cover map: it has {file.count} bands of '
                                f'{file.dtypes[0]}, not one of class codes in 8 or 16 bits.')
            west, south, east, north = transform_bounds(file.crs, DEGREES, *file.bounds)
            if not np.isfinite((west, south, east, north)).all():
                raise UserError(_beyond(path))
            if _has_pole(file):
                raise UserError(f'{path} contains a pole, around which longitudes cannot be '
                                'told; cut it to what you need, or warp it to EPSG:4326.')
            if west > east:  # it crosses the antimeridian
                east += 360
            # What programs note beside a file, such as statistics, is not the map.
            files = tuple(name for name in file.files if not name.endswith('.aux.xml'))
            return Raster(path, file.crs, file.transform, file.height, file.width,
                          (west, south, east, north), files)
    except (RasterioError, CPLE_BaseError) as error:
        raise UserError(f'{path} cannot be read as a raster: {_line(error)}.') from None


def _has_pole(file: Any) -> bool:
    """Whether a pole is one place of a raster, and not its border as in degrees."""
    for lat in (-90.0, 90.0):
        x, y = _from_degrees(file.crs, np.array([0.0, 90.0]), np.full(2, lat))
        col, row = _apply(~file.transform, x, y)
        if np.ptp(col) < 1 and np.ptp(row) < 1 and 0 <= col[0] <= file.width \
                and 0 <= row[0] <= file.height:
            return True
    return False


def _apply(affine: Any, col: Any, row: Any) -> tuple[Any, Any]:
    a, b, c, d, e, f = affine[:6]
    return a * col + b * row + c, d * col + e * row + f


def _line(error: Exception) -> str:
    """One line; rasterio often says no more than that GDAL said something."""
    return ' '.join(str(error.__cause__ or error).split()).rstrip('.')


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
        raise UserError(_beyond(f'a land-cover raster in {crs}'))
    return plane.reshape(*x.shape, 2)


def _from_degrees(crs: Any, lon: NDArray, lat: NDArray) -> NDArray[np.float64]:
    """Places in degrees [n] to x and y of any system [2, n]; not a number where it ends."""
    try:
        return np.array(transform(DEGREES, crs, lon, lat))
    except CPLE_BaseError:  # one is enough for PROJ to give none
        if len(lon) == 1:
            return np.full((2, 1), math.nan)
        half = len(lon) // 2
        return np.concatenate([_from_degrees(crs, lon[:half], lat[:half]),
                               _from_degrees(crs, lon[half:], lat[half:])], axis=1)


def _beyond(what: str) -> str:
    return (f'{what} reaches beyond the globe; cut it to where its coordinate system holds, or '
            'warp it to EPSG:4326.')


def to_degrees(plane: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of the plane [..., 2] to longitudes (-180 to 180) and latitudes, degrees [...]."""
    lon, lat = transform(PLANE, DEGREES, plane[..., 0].ravel(), plane[..., 1].ravel())
    lon = (np.array(lon) + 180) % 360 - 180
    return lon.reshape(plane.shape[:-1]), np.array(lat).reshape(plane.shape[:-1])
