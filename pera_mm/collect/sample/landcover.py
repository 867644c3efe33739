"""A land-cover map of any size: GeoTIFFs or COGs, local or remote, read window by window.

Every raster may have its own coordinate system, in degrees or in the meters of a UTM zone. Areas
and places are computed in the equal-area plane (plane.py), so that they are true per km².

A window is divided into *squares* of ``step x step`` pixels. The pixel in the middle of a square
stands for all of it. Squares are grouped to *cells* of at most 2 km, within which the area of a
pixel and the continent are taken as constant.

A path is anything that GDAL opens: a glob of local files, an http(s) address or /vsicurl/, /vsis3/
or /vsigs/ path of a cloud-optimized GeoTIFF, of which only the requested windows are transferred,
or an image of Google Earth Engine (``EEDAI:`` and its name; GDAL's driver logs in with
GOOGLE_APPLICATION_CREDENTIALS, a service account's file, or EEDA_BEARER, an access token).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what PROJ and GDAL raise; not a RasterioError
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.warp import transform, transform_bounds
from rasterio.windows import Window

from pera_mm.collect.common.gdal import OpenRasters, find_rasters, in_threads, opened
from pera_mm.collect.common.settings import is_number
from pera_mm.collect.common.tables import log
from pera_mm.collect.sample.plane import (
    DEGREES,
    PLANE,
    WIDTH,
    apply_affine,
    beyond_the_globe,
    boxes_meet,
    from_degrees,
    to_degrees,
    to_plane,
    unwrap,
)
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
WINDOW_SIDE = 1024  # squares
MAX_LOOKUP = 4  # sides of a window; no more of an earlier raster is read at once
CELL_SIDE = 2000.0  # m
MAX_READ = 1 << 25  # pixels read at once
MAX_STEP = 1e6  # pixels, exclusive
HEADERS_AT_ONCE = 16  # files
METERS_PER_DEGREE = 111_320  # at the equator
M2_PER_KM2 = 1e6
DECIMALS, LAST_DECIMAL = 6, 1e-6  # of degrees: 0.1 m
BORDER = 1e-4  # of a pixel: no place lies nearer to another pixel
DATA_TYPES = ('uint8', 'int8', 'uint16', 'int16')
MIN_CODE, MAX_CODE = -(1 << 15), (1 << 16) - 1  # of all data types
NO_DATA, UNKNOWN = -1, -2


class Raster(NamedTuple):
    """The header of a file."""

    path: str
    crs: Any
    transform: Any  # (column, row) to coordinates
    height: int
    width: int
    bounds: tuple[float, float, float, float]  # west, south, east (> west), north in degrees
    files: tuple[str, ...]  # that it consists of: itself, a VRT's sources, a mask


class Axis(NamedTuple):
    """The places of the squares of one window along the rows or columns of their raster.

    The end of the window may cut the last square and the last cell.
    """

    edges: NDArray[np.float64]  # pixels where the squares begin, and the end [H + 1]
    cell_edges: NDArray[np.int64]  # squares where the cells begin, and the end [R + 1]
    low: NDArray[np.float64]  # pixels from which ... [H]
    high: NDArray[np.float64]  # ... to which a place in the square is drawn [H]


class Grid(NamedTuple):
    """The places of the squares of one window."""

    row_axis: Axis
    col_axis: Axis
    corners: NDArray[np.float64]  # of the cells, x and y in the plane, meters [R + 1, C + 1, 2]

    @property
    def shape(self) -> tuple[int, int]:
        """The rows and columns of squares."""
        return len(self.row_axis.low), len(self.col_axis.low)

    def pixel_areas(self) -> NDArray[np.float64]:
        """Compute the area of one pixel of each cell, km² [R, C]."""
        # A quadrilateral's area is half the cross product of its diagonals.
        falling = self.corners[1:, 1:] - self.corners[:-1, :-1]
        rising = self.corners[:-1, 1:] - self.corners[1:, :-1]
        cell = np.abs(falling[..., 0] * rising[..., 1] - falling[..., 1] * rising[..., 0]) / 2
        rows, cols = (np.diff(axis.edges[axis.cell_edges])
                      for axis in (self.row_axis, self.col_axis))
        return cell / rows[:, None] / cols / M2_PER_KM2

    def areas(self) -> NDArray[np.float64]:
        """Compute the area of each square, km² [H, W]."""
        return (self.spread(self.pixel_areas()) * np.diff(self.row_axis.edges)[:, None]
                * np.diff(self.col_axis.edges))

    def cell_centers(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute the longitudes and latitudes of the cells' centers, degrees [R, C] each."""
        middle = (self.corners[1:, 1:] + self.corners[:-1, :-1]
                  + self.corners[:-1, 1:] + self.corners[1:, :-1]) / 4
        return to_degrees(middle)

    def spread(self, cells: NDArray) -> NDArray:
        """Repeat the values of the cells [R, C] for their squares [H, W]."""
        tall = np.repeat(cells, np.diff(self.row_axis.cell_edges), axis=0)
        return np.repeat(tall, np.diff(self.col_axis.cell_edges), axis=1)


class LandCover:
    """The classes of a land-cover map and where they lie.

    Where rasters overlap, the one whose path sorts first counts. In the others, a square whose
    middle has data in an earlier raster is no data.

    Args:
        paths: One path or several: local globs, or addresses that GDAL opens.
        legend: 'esri', 'worldcover', or a dictionary of every class code's name, '' for no data.
            The raster's own no-data value always means no data. Codes may share a name.
        step: Of every square of step x step pixels only the middle one counts. It stands for the
            area of the square, and the square's places are drawn in it: still uniform per km², and
            truly of their class. 1 is exact. A global map of 10 m has 10^12 pixels: with a step of
            16, 4 * 10^9 count; all are read.
        overviews: Read the overviews of the files instead (GDAL's nearest neighbor), step^2 times
            less to transfer. Places are drawn in the whole square then, so that a point's class is
            the overview's, to within step pixels.

    Attributes:
        rasters: The headers of the files, by path.
        classes: The names in the legend, in its order.

    Raises:
        UserError: if a pattern matches no file, a raster cannot be read, has no georeference or
            does not hold class codes (float, or several bands), or a setting is invalid.
    """

    def __init__(self, paths: str | Sequence[str], legend: str | Mapping[int, str] = 'esri',
                 step: int = 1, overviews: bool = False) -> None:
        if not is_number(step) or not 1 <= step < MAX_STEP or step != int(step):
            raise UserError(f'landcover.step must be a whole number from 1, got {step!r}.')
        if not isinstance(overviews, bool):
            raise UserError(f'landcover.overviews must be True or False, got {overviews!r}.')
        self.step, self.overviews = int(step), overviews
        names = _legend(legend)
        self.classes = tuple(dict.fromkeys(name for name in names.values() if name))
        found = sorted(find_rasters(paths, 'landcover.paths'))
        log.info('reading the headers of %d land-cover rasters', len(found))
        self.rasters = in_threads(_read_header, found, HEADERS_AT_ONCE)
        self._files = OpenRasters()
        # One lookup per pixel; codes may be negative, so the table begins at MIN_CODE.
        self._class_of_code = np.full(MAX_CODE - MIN_CODE + 1, UNKNOWN, np.int8)
        for code, name in names.items():
            self._class_of_code[code - MIN_CODE] = self.classes.index(name) if name else NO_DATA

    def close(self) -> None:
        """Close the files; a later read opens its file again."""
        self._files.close()

    @cached_property
    def _bounds(self) -> NDArray[np.float64]:
        """The west, south, east and north of the rasters in the plane, meters [n, 4]."""
        bounds = np.array([raster.bounds for raster in self.rasters])
        south, north = (np.array(transform(DEGREES, PLANE, 0 * lat, lat.clip(-90, 90)))[1]
                        for lat in (bounds[:, 1], bounds[:, 3]))
        west, east = bounds[:, ::2].T * (WIDTH / 360)
        return np.stack([west, south, east, north], axis=1)

    def count_windows(self, number: int) -> int:
        """Count the windows of one raster."""
        raster, side = self.rasters[number], WINDOW_SIDE * self.step
        return -(-raster.height // side) * -(-raster.width // side)

    def windows(self, number: int, chosen: range | None = None) -> Iterator[Window]:
        """Give the windows of one raster, row by row: all, or those with the chosen numbers."""
        raster, side = self.rasters[number], WINDOW_SIDE * self.step
        across = -(-raster.width // side)
        for index in range(self.count_windows(number)) if chosen is None else chosen:
            row, col = index // across * side, index % across * side
            yield Window(col, row, min(side, raster.width - col), min(side, raster.height - row))

    # -- where squares lie -----------------------------------------------------------------------

    def grid(self, number: int, window: Window) -> Grid:
        """Compute where the squares of a window of raster ``number`` lie."""
        raster = self.rasters[number]
        a, b, _, d, e, _ = raster.transform[:6]
        unit = METERS_PER_DEGREE if raster.crs.is_geographic else raster.crs.linear_units_factor[1]
        square = max(np.hypot(a, d), np.hypot(b, e)) * self.step * unit  # m, its longer side
        per_cell = int(np.clip(CELL_SIDE / square, 1, WINDOW_SIDE))
        row_axis, col_axis = (self._axis(edges, per_cell)
                              for edges in self._edges(window, self.step))
        x, y = apply_affine(raster.transform, *np.meshgrid(col_axis.edges[col_axis.cell_edges],
                                                           row_axis.edges[row_axis.cell_edges]))
        corners = to_plane(raster.crs, x, y)
        corners[..., 0] = unwrap(corners[..., 0], WIDTH)
        return Grid(row_axis, col_axis, corners)

    def _edges(self, window: Window, step: int) -> Iterator[NDArray[np.float64]]:
        """Yield the pixel rows, then columns, where the squares begin, and the end [H + 1]."""
        for start, length in ((window.row_off, window.height), (window.col_off, window.width)):
            count = -(-length // step)
            if self.overviews:  # GDAL divides the window evenly
                yield start + np.linspace(0, length, count + 1)
            else:
                yield start + np.minimum(np.arange(count + 1.0) * step, length)

    def _axis(self, edges: NDArray[np.float64], per_cell: int) -> Axis:
        cell_edges = np.append(np.arange(0, len(edges) - 1, per_cell), len(edges) - 1)
        if self.overviews:
            return Axis(edges, cell_edges, edges[:-1], edges[1:])
        middles = _middles(edges).astype(float)
        return Axis(edges, cell_edges, middles, middles + 1)

    def random_places(self, number: int, grid: Grid, row: NDArray, col: NDArray,
                      random: np.random.Generator
                      ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draw a random place in each of some squares, uniform per km².

        Args:
            number: Of the raster.
            grid: Of one of its windows.
            row: Of squares of the grid [n].
            col: Of the same squares [n].
            random: The source of randomness.

        Returns:
            Longitudes and latitudes, degrees [n] each, of six decimals (0.1 m).
        """
        raster = self.rasters[number]
        row_axis, col_axis, _ = grid
        corners = np.array([[  # [top and bottom, left and right, n, 2]
            to_plane(raster.crs, *apply_affine(raster.transform, x[col], y[row]))
            for x in (col_axis.low, col_axis.high)] for y in (row_axis.low, row_axis.high)])
        corners[..., 0] = unwrap(corners[..., 0], WIDTH)
        down, right = random.random((2, len(row), 1))
        top, bottom = corners[:, 0] * (1 - right) + corners[:, 1] * right
        lon, lat = (axis.round(DECIMALS) for axis in to_degrees(top * (1 - down) + bottom * down))
        # Rounding moves some places over the border to a pixel of another class, by at most half a
        # unit of the last decimal: one unit towards the middle brings them back.
        x, y = from_degrees(raster.crs, lon, lat)
        at = zip(_pixels(raster, x, y), (col_axis, row_axis), (col, row))
        is_out = np.any([(pixel < axis.low[index] + BORDER) | (pixel > axis.high[index] - BORDER)
                         for pixel, axis, index in at], axis=0)
        middle_lon, middle_lat = to_degrees(corners.mean(axis=(0, 1)))
        lon[is_out] += LAST_DECIMAL * np.sign(middle_lon - lon)[is_out]
        lat[is_out] += LAST_DECIMAL * np.sign(middle_lat - lat)[is_out]
        return lon.round(DECIMALS), lat.round(DECIMALS)

    # -- classes ---------------------------------------------------------------------------------

    def read(self, number: int, window: Window) -> NDArray[np.int8]:
        """Read the classes of the squares of a window.

        Returns:
            int8 [H, W], indices into ``classes``; -1 where there is no data.

        Raises:
            UserError: if a code is not in the legend, or the file cannot be read.
        """
        codes, classes = self._codes_and_classes(number, window, self.step)
        if (classes == UNKNOWN).any():
            row, col = np.unravel_index((classes == UNKNOWN).argmax(), classes.shape)
            self._refuse_code(number, window, int(row), int(col), int(codes[row, col]))
        return classes

    def _refuse_code(self, number: int, window: Window, row: int, col: int, code: int) -> None:
        """Raise a UserError about a square's code that is not in the legend."""
        raster = self.rasters[number]
        rows, cols = (_middles(edges) for edges in self._edges(window, self.step))
        x, y = apply_affine(raster.transform, cols[col] + 0.5, rows[row] + 0.5)
        lon, lat = to_degrees(to_plane(raster.crs, x, y))
        averaged = (' It comes from the overviews, which must have been made with nearest or '
                    'mode.') if self.overviews and self.step > 1 else ''
        raise UserError(
            f'{raster.path} has the class code {code} in row {int(rows[row])}, column '
            f'{int(cols[col])} ({lon:.4f}° E, {lat:.4f}° N), which is not in the legend: name '
            f"it in landcover.legend, '' if it means no data.{averaged}")

    def _codes_and_classes(self, number: int, window: Window,
                           step: int) -> tuple[NDArray, NDArray[np.int8]]:
        """Read the codes and find the classes of the squares of a window, [H, W] each."""
        path = self.rasters[number].path
        try:
            with self._files.opened(path) as file:
                codes = self._read_squares(partial(file.read, 1), window, step)
                classes = self._class_of_code[codes.astype(np.int32) - MIN_CODE]
                if file.nodata is not None:
                    classes[codes == file.nodata] = NO_DATA
                if MaskFlags.per_dataset in file.mask_flag_enums[0]:  # inside, or a .msk beside it
                    mask = self._read_squares(partial(file.read_masks, 1), window, step)
                    classes[mask == 0] = NO_DATA
        except (RasterioError, CPLE_BaseError) as error:
            raise UserError(f'{path} cannot be read: {_in_one_line(error)}; what is finished is '
                            'kept, and the same command continues there.') from None
        return codes, classes

    def _read_squares(self, read: Callable[..., NDArray], window: Window, step: int) -> NDArray:
        """Let ``read`` read the pixels in the middle of the squares of a window, [H, W]."""
        rows, cols = (_middles(edges) for edges in self._edges(window, step))
        if self.overviews or step == 1:
            return read(window=window, out_shape=(len(rows), len(cols)))
        # A smaller out_shape would make GDAL read the overviews, of a VRT even those of its
        # sources, and these may be averages. So all pixels are read, in bands that fit the memory.
        rows_per_band = max(MAX_READ // window.width // step, 1)
        bands = []
        for first in range(0, len(rows), rows_per_band):
            some = rows[first:first + rows_per_band]
            band = Window(window.col_off, some[0], window.width, some[-1] - some[0] + 1)
            bands.append(read(window=band)[some - some[0]][:, cols - window.col_off])
        return np.concatenate(bands)

    # -- overlap ---------------------------------------------------------------------------------

    def not_covered_earlier(self, number: int, grid: Grid) -> NDArray[np.bool_]:
        """Find the squares whose middle has no data in any raster before raster ``number``.

        Returns:
            bool [H, W].
        """
        is_free = np.ones(grid.shape, bool)
        if not number:
            return is_free
        corners = np.stack([grid.corners[:-1, :-1], grid.corners[:-1, 1:],
                            grid.corners[1:, :-1], grid.corners[1:, 1:]])
        low, high = corners.min(axis=0), corners.max(axis=0)  # of the cells [R, C, 2]
        meet = boxes_meet(low.min(axis=(0, 1)), high.max(axis=(0, 1)), *self._bounds[:number].T)
        for other in map(int, np.flatnonzero(meet)):
            near = boxes_meet(low, high, *self._bounds[other])
            if near.any():
                rows, cols = (_first_to_last(np.any(near, axis=axis)) for axis in (1, 0))
                here = _squares(grid.row_axis, rows), _squares(grid.col_axis, cols)
                x, y = self._middles_in(self.rasters[other].crs, grid, rows, cols)
                is_free[here] &= ~self._has_data(other, x, y)
        return is_free

    def _middles_in(self, crs: Any, grid: Grid, rows: slice, cols: slice) -> NDArray[np.float64]:
        """The middles of the squares of some cells in a coordinate system, [2, h, w]: x, y.

        Only the corners of the cells are transformed; between them, x and y are linear.
        """
        corners = grid.corners[rows.start:rows.stop + 1, cols.start:cols.stop + 1]
        lon, lat = to_degrees(corners)
        places = from_degrees(crs, lon.ravel(), lat.ravel()).reshape(2, *lon.shape)
        if crs.is_geographic:
            places[0] = unwrap(places[0], 360)
        cell, part = _middles_in_cells(grid.row_axis, rows)
        places = places[:, cell] * (1 - part[:, None]) + places[:, cell + 1] * part[:, None]
        cell, part = _middles_in_cells(grid.col_axis, cols)
        return places[..., cell] * (1 - part) + places[..., cell + 1] * part

    def _has_data(self, number: int, x: NDArray, y: NDArray) -> NDArray[np.bool_]:
        """Whether a raster's squares around places in its own coordinates have data, [h, w]."""
        raster = self.rasters[number]
        col, row = _pixels(raster, x, y)
        inside = (0 <= col) & (col < raster.width) & (0 <= row) & (row < raster.height)
        if not inside.any():
            return inside
        row, col = row[inside].astype(int), col[inside].astype(int)
        # A raster much finer than the places would need a huge read: its squares are enlarged.
        extent = max(np.ptp(row), np.ptp(col)) // self.step
        step = self.step * (1 + int(extent) // (MAX_LOOKUP * WINDOW_SIDE))
        top, left = row.min() // step * step, col.min() // step * step
        bottom, right = row.max() // step * step + step, col.max() // step * step + step
        window = Window(left, top, min(right, raster.width) - left,
                        min(bottom, raster.height) - top)
        known = self._codes_and_classes(number, window, step)[1] != NO_DATA
        inside[inside] = known[(row - top) // step, (col - left) // step]
        return inside


def _pixels(raster: Raster, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """Convert places in a raster's own coordinates to columns and rows, with fractions."""
    if raster.crs.is_geographic:  # its degrees may range from 0 to 360
        ends = np.array([0, raster.width])
        west = apply_affine(raster.transform, ends, np.array([[0], [raster.height]]))[0].min()
        x = west + (x - west) % 360
    return apply_affine(~raster.transform, x, y)


def _middles(edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """The pixel in the middle of each square."""
    return ((edges[:-1] + edges[1:]) / 2).astype(np.int64)


def _first_to_last(found: NDArray) -> slice:
    """The slice from the first to the last True."""
    numbers = np.flatnonzero(found)
    return slice(numbers[0], numbers[-1] + 1)


def _squares(axis: Axis, cells: slice) -> slice:
    """The squares of some cells."""
    return slice(axis.cell_edges[cells.start], axis.cell_edges[cells.stop])


def _middles_in_cells(axis: Axis, cells: slice) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The cell of each square's middle, counted from the first of some, and how far in it is [h].

    The second is a fraction of the cell, from 0 to 1.
    """
    starts = axis.cell_edges[cells.start:cells.stop + 1]
    cell = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    begin, end = axis.edges[starts[:-1]][cell], axis.edges[starts[1:]][cell]
    middle = ((axis.low + axis.high) / 2)[_squares(axis, cells)]
    return cell, (middle - begin) / (end - begin)


# -- legends and headers -------------------------------------------------------------------------


def _legend(legend: str | Mapping[Any, str]) -> dict[int, str]:
    """Check a legend, code to name; the codes may be texts of whole numbers."""
    if isinstance(legend, str):
        if legend not in LEGENDS:
            raise UserError(f'landcover.legend is {legend!r}; it must be '
                            f'{" or ".join(map(repr, LEGENDS))}, or a dictionary of code: name.')
        return LEGENDS[legend]
    try:
        names = {int(code): str(name) for code, name in legend.items()}
    except (ValueError, AttributeError):
        names = {}
    if not any(names.values()) or min(names) < MIN_CODE or max(names) > MAX_CODE:
        raise UserError('landcover.legend must be a dictionary of class code: name with whole '
                        'numbers as codes, e.g. {1: "water"}, in the config itself (--cfg-options '
                        f'cannot give a dictionary), got {legend!r}.')
    return names


def _read_header(path: str) -> Raster:
    try:
        with opened(path) as file:
            if file.crs is None or file.transform.is_identity:
                raise UserError(f'{path} has no georeference (coordinate system and position); '
                                'give it one, e.g. with gdal_edit.py -a_srs -a_ullr.')
            if not (file.crs.is_geographic or file.crs.is_projected):
                raise UserError(f'{path} has a coordinate system that is neither geographic nor '
                                f'projected ({file.crs.to_string()}); warp it to EPSG:4326.')
            if file.count != 1 or file.dtypes[0] not in DATA_TYPES:
                raise UserError(f'{path} is not a land-cover map: it has {file.count} bands of '
                                f'{file.dtypes[0]}, not one of class codes in 8 or 16 bits.')
            west, south, east, north = transform_bounds(file.crs, DEGREES, *file.bounds)
            if not np.isfinite((west, south, east, north)).all():
                raise UserError(beyond_the_globe(path))
            if _has_pole(file):
                raise UserError(f'{path} contains a pole, around which longitudes are undefined; '
                                'cut it to what you need, or warp it to EPSG:4326.')
            if west > east:  # it crosses the antimeridian
                east += 360
            # What programs note beside a file, such as statistics, is not the map.
            files = tuple(name for name in file.files if not name.endswith('.aux.xml'))
            return Raster(path, file.crs, file.transform, file.height, file.width,
                          (west, south, east, north), files)
    except (RasterioError, CPLE_BaseError) as error:
        raise UserError(f'{path} cannot be read as a raster: {_in_one_line(error)}.') from None


def _has_pole(file: Any) -> bool:
    """Whether a pole is one place of a raster, and not its border as in degrees."""
    for lat in (-90.0, 90.0):
        x, y = from_degrees(file.crs, np.array([0.0, 90.0]), np.full(2, lat))
        col, row = apply_affine(~file.transform, x, y)
        if np.ptp(col) < 1 and np.ptp(row) < 1 and 0 <= col[0] <= file.width \
                and 0 <= row[0] <= file.height:
            return True
    return False


def _in_one_line(error: Exception) -> str:
    """The text of an error; rasterio's own often says only that GDAL has raised its cause."""
    return ' '.join(str(error.__cause__ or error).split()).rstrip('.')
