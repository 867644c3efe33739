"""Polygons of a class map: exactly those of the whole map, though only some rows are in memory.

A polygon is a component: pixels of one class that are connected by their edges. The map is read
in strips of rows. Each strip gives runs (neighboring pixels of one class in a row), which are
joined to components, and corners (the points at which an outline turns). A component that reaches
the last row of the strip stays open, and keeps only its corners. When it closes, its corners are
linked to rings: along each line of the pixel grid, the corners of one component are in turn the
first and the second end of an edge. All of this is done in whole numbers, so the strips leave no
trace.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window
from rich.console import Console
from rich.progress import track
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from pera_mm.errors import UserError
from pera_mm.mapping.vector_files import geod_of, require_geo, write_features

NOTHING = 255  # the class of a pixel without one
STRIP_PIXELS = 2**20  # that are labeled at a time
BLOCK_PIXELS = 2**27  # the largest row of a file's blocks that is held
PIECE_CORNERS = 2**18  # of the polygons that are made at a time; a larger polygon comes alone
# An edge is straight in the map's CRS and a geodesic in the area; cut to this length, both agree.
MAX_EDGE = 10_000.  # m
EARTH_RADIUS = 6_371_000.  # m, for the edges of a map in degrees

# A corner is a number: row << 32 | column << 3 | its bits. Sorted, it comes row by row.
ROW, COLUMN = 32, 3
RIGHT = 4  # its horizontal edge extends to the right
DOWN = 2  # its vertical edge extends downwards
LEAVES = 1  # the outline, with the component on its right hand, leaves it by the horizontal edge


class Components(NamedTuple):
    """Closed components in the order of their last row, then of their first pixel."""

    classes: NDArray[np.uint8]  # [n]
    pixels: NDArray[np.int64]  # [n]
    scores: NDArray[np.int64]  # [n], sums over the pixels
    corners: NDArray[np.int64]  # [m], sorted within each component
    counts: NDArray[np.int64]  # [n], corners of each


def vectorize(class_map: Path, output: Path, classes: Sequence[str], min_area: float = 0,
              simplify: float = 0, scores: Path | None = None) -> int:
    """Write the polygons of a class map, with class, name, area and mean score.

    The polygons and their order depend on the map alone, not on the strips that are read. Pixels
    that touch at a corner only are not connected.

    A strip takes 0.2 GB, and up to 0.4 GB where each pixel is a polygon. A row of the file's
    blocks adds a byte per pixel, or four with scores, and GDAL's cache of blocks 5 % of the
    machine's memory by default. An open component adds 8 bytes per corner, and 200 bytes per
    corner while it is written. So the memory does not grow with the height of the map, unless one
    component does.

    Args:
        class_map: uint8 with one band; 255 is nothing. Any width.
        output: ``.gpkg``, ``.fgb``, ``.parquet`` (GeoParquet), or ``.geojson``, which is always
            in EPSG:4326 (RFC 7946). An existing file is replaced.
        classes: the names of the classes 0, 1, ...
        min_area: the smallest polygon that is written, in m2; in pixels without a CRS.
        simplify: tolerance of Douglas-Peucker in units of the CRS. Each polygon is simplified
            alone and stays valid (a polygon that would not stays as it is), so neighbors may gap
            or overlap. The area is that of the pixels.
        scores: uint8 of the map's size, 0 to 255 for 0 to 1, with one band, or with one for each
            class, of which the band of the pixel's class counts. The mean over the polygon's
            pixels becomes ``score``.

    Returns:
        The number of polygons.

    Raises:
        UserError: if a raster cannot be read or does not fit, a class has no name, a number is out
            of its range, the output has another suffix, or a package is missing.
    """
    require_geo('writing vectors')
    check_limits(min_area, simplify)
    with _opened(class_map) as file:
        _check_map(file)
        geod = geod_of(file.crs)
        area = 'area_px' if geod is None else 'area_m2'
        columns = {'class': 'int32', 'name': 'string', area: 'double'}
        if scores is not None:
            columns['score'] = 'float'
        names = np.array(classes, dtype=object)

        def pieces() -> Iterator[dict[str, Any]]:
            for found in _components(file, len(classes), scores):
                shapes = _polygons(found, file.transform)
                areas = found.pixels if geod is None else _areas(shapes, file.crs, geod)
                keep = ~(areas < min_area)  # an area outside the domain of the CRS is unknown
                kind = found.classes[keep]
                yield {'geometry': _simplified(shapes[keep], simplify), 'class': kind,
                       'name': names[kind], area: areas[keep],
                       'score': (found.scores / found.pixels / 255)[keep]}

        return write_features(output, columns, pieces(), file.crs)


def check_limits(min_area: float, simplify: float) -> None:
    """Check the numbers of :func:`vectorize`.

    Raises:
        UserError: if one is not finite, or below 0.
    """
    for name, value in (('smallest area', min_area), ('tolerance', simplify)):
        if not 0 <= value < math.inf:
            raise UserError(f'The {name} of polygons is at least 0, not {value:g}.')


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a raster, which may have no georeference."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        try:
            file = rasterio.open(path)
        except RasterioError as error:
            raise UserError(f'{path} cannot be read as a raster ({error}).') from None
        with file:
            yield file


def _read(file: Any, band: int, window: Window) -> NDArray[np.uint8]:
    try:
        return file.read(band, window=window)
    except RasterioError as error:
        raise UserError(f'{file.name} cannot be read in the rows from {window.row_off} '
                        f'({error}): it may be damaged, so write it again.') from None


def _components(file: Any, classes: int, scores: Path | None) -> Iterator[Components]:
    """Yield the components of a map, in pieces of about ``PIECE_CORNERS`` corners."""
    outlines = _Outlines(file.width)
    rows = max(1, STRIP_PIXELS // file.width)
    with nullcontext() if scores is None else _opened(scores) as score_file:
        if score_file is not None:
            _check_scores(score_file, file, classes)
        for window in _windows(file, rows):
            band = _read(file, 1, window)  # [rows, width]
            _check_classes(band, classes, file.name)
            values = None if score_file is None else _chosen(score_file, window, band)
            for start in range(0, len(band), rows):
                some = slice(start, start + rows)
                yield from outlines.add(band[some], None if values is None else values[some])
        yield from outlines.add(np.full((1, file.width), NOTHING, np.uint8), None)


def _windows(file: Any, rows: int) -> Iterator[Window]:
    """Cut a map into whole rows of its blocks, or into ``rows`` if those are too large to hold."""
    tall = file.block_shapes[0][0]
    rows = tall * max(1, rows // tall) if tall * file.width <= BLOCK_PIXELS else rows
    console = Console(stderr=True)
    for start in track(range(0, file.height, rows), 'polygons', console=console,
                       disable=not console.is_terminal):
        yield Window(0, start, file.width, min(rows, file.height - start))


def _check_map(file: Any) -> None:
    if file.count != 1 or file.dtypes[0] != 'uint8':
        raise UserError(f'{file.name} has {file.count} band(s) of {file.dtypes[0]}: give a class '
                        'map, which has one of uint8.')


def _check_scores(scores: Any, file: Any, classes: int) -> None:
    if scores.shape != file.shape or scores.count not in (1, classes) or (
            set(scores.dtypes) != {'uint8'}):
        raise UserError(
            f'{scores.name} has {scores.count} band(s) of {scores.dtypes[0]} in {scores.width} x '
            f'{scores.height} pixels: give the scores of {file.name}, 1 or {classes} of uint8 in '
            f'{file.width} x {file.height}.')


def _check_classes(band: NDArray[np.uint8], classes: int, name: str) -> None:
    largest = band.max(initial=0, where=band != NOTHING)
    if largest >= classes:
        raise UserError(f'{name} has the class {largest}, and only the classes 0 to {classes - 1} '
                        'have a name: name them all.')


def _chosen(file: Any, window: Window, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Read the score of each pixel's class: ``[rows, width]``."""
    if file.count == 1:
        return _read(file, 1, window)
    scores = np.zeros_like(classes)
    for kind in range(file.count):
        scores = np.where(classes == kind, _read(file, kind + 1, window), scores)
    return scores


class _Outlines:
    """The components of a map that comes in strips of rows, and the corners of their outlines.

    Args:
        width: of the map in pixels.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._top = 0  # the row of the map that comes next
        self._row = np.full(width, NOTHING, np.uint8)  # the one above it
        self._open = np.empty(0, np.intp)  # the open component of each run in that row
        # Of each open component: its pixels, the sum of their scores, the first one; its corners.
        self._totals = np.empty((3, 0), np.int64)
        self._parts: list[list[NDArray[np.int64]]] = []

    def add(self, strip: NDArray[np.uint8],
            scores: NDArray[np.uint8] | None) -> Iterator[Components]:
        """Yield the components that end above the last row of a strip.

        Args:
            strip: classes ``[rows, width]``.
            scores: of the pixels, ``[rows, width]``.
        """
        if not self._parts and (strip == NOTHING).all():
            self._top += len(strip)
            return
        runs = _Runs.of(np.vstack([self._row, strip]))
        count, label = self._join(runs)
        owner = label[:len(runs.starts)]  # the component of each run
        totals, last = self._add_up(runs, label, count, scores)
        classes = np.empty(count, np.uint8)
        classes[owner] = runs.classes

        # What has a run in the last row stays open, and gets its place among the open ones.
        lowest = (runs.rows == len(strip)) & (runs.classes != NOTHING)
        remaining, self._open = np.unique(owner[lowest], return_inverse=True)
        place = np.full(count, -1)
        place[remaining] = np.arange(len(remaining))
        owners, corners = self._hold_back(*_corners(runs, owner, self._top),
                                          label[len(owner):], place)
        self._totals = totals[:, remaining]
        self._row = strip[-1].copy()
        self._top += len(strip)

        closed = np.flatnonzero((classes != NOTHING) & (place < 0))
        closed = closed[np.lexsort((totals[2, closed], last[closed]))]
        rank = np.empty(count, np.intp)
        rank[closed] = np.arange(len(closed))
        yield from _pieces(classes[closed], totals[:, closed], rank[owners], corners)

    def _join(self, runs: '_Runs') -> tuple[int, NDArray[np.int32]]:
        """Number the components of runs and, behind them, of what was open."""
        block = runs.block
        # Two runs of one class that touch do so first where one of them starts.
        meet = (block[1:] == block[:-1]) & (block[1:] != NOTHING) & (
            runs.begins[1:] | runs.begins[:-1])
        above = np.flatnonzero(meet)
        carried = np.flatnonzero((runs.rows == 0) & (runs.classes != NOTHING))
        ends = (np.concatenate([runs.of_pixel.ravel()[above], carried]),
                np.concatenate([runs.of_pixel.ravel()[above + block.shape[1]],
                                len(runs.starts) + self._open]))
        nodes = len(runs.starts) + len(self._parts)
        graph = coo_array((np.ones(len(ends[0]), bool), ends), (nodes, nodes))
        return connected_components(graph, directed=False)

    def _add_up(self, runs: '_Runs', label: NDArray[np.int32], count: int,
                scores: NDArray[np.uint8] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return pixels, scores and first pixel ``[3, count]``, and the last row ``[count]``."""
        new = runs.rows > 0
        pixels = np.diff(runs.starts, append=runs.block.size) * new
        sums = np.zeros(len(new), np.int64)
        if scores is not None:
            framed = np.pad(scores, ((1, 0), (1, 1))).ravel()
            sums = np.add.reduceat(framed, runs.starts, dtype=np.int64)
        first = (self._top + runs.rows - 1) * self._width + runs.starts % runs.block.shape[1] - 1
        totals = np.zeros((3, count), np.int64)
        totals[2] = np.iinfo(np.int64).max
        for total, add, values, before in zip(totals, (np.add, np.add, np.minimum),
                                              (pixels, sums, first), self._totals):
            add.at(total, label, np.concatenate([values, before]))
        last = np.zeros(count, np.int64)
        np.maximum.at(last, label[:len(new)], runs.rows)
        return totals, last

    def _hold_back(self, owners: NDArray[np.int32], corners: NDArray[np.int64],
                   components: NDArray[np.int32], place: NDArray[np.intp]
                   ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Keep the corners of open components, and return those of closed ones with their owners.

        Args:
            owners: the component of each new corner.
            corners: the new corners.
            components: the component of each that was open.
            place: of each component among the open ones; -1: closed.
        """
        closed = place[owners] < 0
        found_owners, found = [owners[closed]], [corners[closed]]
        parts: list[list[NDArray[np.int64]]] = [[] for _ in range(place.max(initial=-1) + 1)]
        for component, old in zip(components.tolist(), self._parts):
            if place[component] < 0:
                found += old
                found_owners += [np.full(len(part), component, np.int32) for part in old]
            else:
                larger, smaller = sorted((parts[place[component]], old), key=len, reverse=True)
                larger.extend(smaller)
                parts[place[component]] = larger
        places, kept = place[owners[~closed]], corners[~closed]
        order = np.argsort(places, kind='stable')
        which, begins = np.unique(places[order], return_index=True)
        for number, part in zip(which, np.split(kept[order], begins[1:])):
            parts[number].append(part.copy())
        self._parts = parts
        return np.concatenate(found_owners), np.concatenate(found)


class _Runs(NamedTuple):
    """Runs of one class in a block of rows, with one pixel of nothing at both ends of each row."""

    block: NDArray[np.uint8]  # [rows, width + 2]
    begins: NDArray[np.bool_]  # [rows, width + 2], whether a run begins at a pixel
    of_pixel: NDArray[np.int32]  # [rows, width + 2], the run of each pixel
    starts: NDArray[np.intp]  # [n], pixels of the block; a run of nothing may pass a row's end
    rows: NDArray[np.intp]  # [n]
    classes: NDArray[np.uint8]  # [n]

    @classmethod
    def of(cls, rows: NDArray[np.uint8]) -> '_Runs':
        """Find the runs in rows of classes, ``[rows, width]``."""
        block = np.pad(rows, ((0, 0), (1, 1)), constant_values=NOTHING)
        begins = np.ones(block.size, bool)
        np.not_equal(block.ravel()[1:], block.ravel()[:-1], out=begins[1:])
        starts = np.flatnonzero(begins)
        of_pixel = np.cumsum(begins, dtype=np.int32) - 1
        return cls(block, begins.reshape(block.shape), of_pixel.reshape(block.shape), starts,
                   starts // block.shape[1], block.ravel()[starts])


def _corners(runs: _Runs, owner: NDArray[np.int32],
             top: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Find the corners of outlines between the rows of a block.

    Args:
        runs: of the block.
        owner: the component of each run.
        top: the map's row below the first row of the block.

    Returns:
        The component of each corner, and the corner, row by row.
    """
    block, width = runs.block, runs.block.shape[1]
    across = block[:, 1:] == block[:, :-1]  # a pixel and its right neighbor
    along = block[1:] == block[:-1]  # a pixel and the one below
    # A point of the grid has four pixels around: a b above, c d below.
    turns = (across[1:] != across[:-1]) | (along[:, 1:] != along[:, :-1]) | ~(
        across[1:] | along[:, 1:])
    row, column = np.nonzero(turns)
    ab, cd = across[row, column], across[row + 1, column]
    ac, bd = along[row, column], along[row, column + 1]
    a = row * width + column
    component = np.where(runs.classes != NOTHING, owner, -1)
    of_a, of_b, of_c, of_d = (component[runs.of_pixel.ravel()[a + offset]]
                              for offset in (0, 1, width, width + 1))
    # A pixel that differs from both neighbors has a corner here. If the three others are one, so
    # do they: the same corner from outside, which their outline takes in the other direction.
    owners, bits = [], []
    for inside, opposite, differs, others, sides, leaves in (
            (of_a, of_d, ~(ab | ac), cd & bd, 0, LEAVES),
            (of_c, of_b, ~(cd | ac), ab & bd, DOWN, 0),
            (of_b, of_c, ~(ab | bd), cd & ac, RIGHT, 0),
            (of_d, of_a, ~(cd | bd), ab & ac, RIGHT | DOWN, LEAVES)):
        owners += [np.where(differs, inside, -1), np.where(differs & others, opposite, -1)]
        bits += [sides | leaves, sides | LEAVES - leaves]
    around = np.stack(owners, axis=1)  # [points, 8]
    point, which = np.nonzero(around >= 0)
    corners = (top + row[point]) << ROW | column[point] << COLUMN | np.array(bits)[which]
    return around[point, which], corners


def _pieces(classes: NDArray[np.uint8], totals: NDArray[np.int64], owners: NDArray[np.intp],
            corners: NDArray[np.int64]) -> Iterator[Components]:
    """Sort the corners of components, and cut the components into pieces."""
    counts = np.bincount(owners, minlength=len(classes))
    corners = corners[np.lexsort((corners, owners))]
    ends = np.cumsum(counts)
    begins = [0, *(np.flatnonzero(np.diff(ends // PIECE_CORNERS)) + 1).tolist(), len(classes)]
    for begin, end in pairwise(begins):
        if begin < end:
            some = slice(begin, end)
            yield Components(classes[some], totals[0, some], totals[1, some],
                             corners[ends[begin] - counts[begin]:ends[end - 1]], counts[some])


def _polygons(found: Components, transform: Any) -> NDArray:
    """Link the corners of components to polygons in the coordinates of the map, ``[n]``."""
    import shapely

    corners, owner = found.corners, np.repeat(np.arange(len(found.counts)), found.counts)
    row, column = corners >> ROW, corners >> COLUMN & 2**(ROW - COLUMN) - 1
    down, leaves = corners & DOWN, corners & LEAVES
    # A component that meets itself at a point has two corners there. They trade their vertical
    # edges, so that the outline splits into two rings: one that crosses itself would be invalid.
    twice = np.flatnonzero((np.diff(corners >> COLUMN) == 0) & (np.diff(owner) == 0))
    down[twice], down[twice + 1] = down[twice + 1], down[twice]
    # Corners 2k and 2k + 1 are the ends of a horizontal edge; sorted by columns, of a vertical one.
    vertical = np.lexsort((down, row, column, owner)).reshape(-1, 2)
    other_end = np.empty(len(corners), np.intp)
    other_end[vertical] = vertical[:, ::-1]
    begin = np.arange(0, len(corners), 2) + 1 - leaves[::2]
    edges, sizes = _cycles(other_end[begin ^ 1] // 2)
    points = np.stack([begin[edges], begin[edges] ^ 1], axis=1).ravel()
    ends = np.cumsum(2 * sizes)
    begins = points[ends - 2 * sizes]
    points = np.insert(points, ends, begins)  # a ring ends where it begins
    x, y = column[points], row[points]
    a, b, c, d, e, f = transform[:6]
    return shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, np.stack([a * x + b * y + c, d * x + e * y + f], axis=1),
        (np.append(0, np.cumsum(2 * sizes + 1)),
         np.searchsorted(owner[begins], np.arange(len(found.counts) + 1))))


def _cycles(follow: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Order the numbers of a permutation along its cycles, which come by their first number.

    Args:
        follow: the number after each, ``[n]``.

    Returns:
        The numbers, ``[n]``, and the sizes of the cycles.
    """
    numbers = np.arange(len(follow))
    graph = csr_array((np.ones(len(follow), bool), follow, np.append(numbers, len(follow))))
    count, cycle = connected_components(graph, directed=False)
    first = np.empty(count, np.intp)
    first[cycle[::-1]] = numbers[::-1]
    cycles = np.argsort(first)
    # One path through all: the last number of a cycle leads to the first one of the next.
    before = np.empty(len(follow), np.intp)
    before[follow] = numbers
    chained = follow.copy()
    chained[before[first[cycles]]] = np.roll(first[cycles], -1)
    path = csr_array((graph.data, chained, graph.indptr))
    return (breadth_first_order(path, 0, return_predecessors=False),
            np.bincount(cycle, minlength=count)[cycles])


def _areas(shapes: NDArray, crs: Any, geod: Any) -> NDArray[np.float64]:
    """Measure polygons on the ellipsoid in m2, ``[n]``."""
    import shapely
    from pyproj import CRS, Transformer

    system = CRS.from_user_input(crs)
    edge = MAX_EDGE / system.axis_info[0].unit_conversion_factor  # to meters or radians
    if system.is_geographic:
        edge /= EARTH_RADIUS
    _, points, (rings, polygons) = shapely.to_ragged_array(shapes)
    steps = np.abs(np.diff(points, axis=0)).max(axis=1)
    steps[rings[1:-1] - 1] = 0  # from one ring to the next
    if steps.max() > edge:
        _, points, (rings, polygons) = shapely.to_ragged_array(shapely.segmentize(shapes, edge))
    to_degrees = Transformer.from_crs(system, system.geodetic_crs, always_xy=True)
    lon, lat = to_degrees.transform(*points.T)
    # Holes run against their exterior, so their areas have the other sign.
    areas = [geod.polygon_area_perimeter(lon[begin:end], lat[begin:end])[0]
             for begin, end in pairwise(rings.tolist())]
    return np.abs(np.add.reduceat(areas, polygons[:-1]))


def _simplified(shapes: NDArray, tolerance: float) -> NDArray:
    import shapely

    if not tolerance:
        return shapes
    simple = shapely.simplify(shapes, tolerance)
    return np.where(shapely.is_valid(simple) & ~shapely.is_empty(simple), simple, shapes)
