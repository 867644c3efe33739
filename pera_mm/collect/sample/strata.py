"""Strata: every class of land cover on every continent, their areas and their quotas of points."""

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event, Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pera_mm.collect.common.gdal import in_threads
from pera_mm.collect.common.tables import log, progress_bar
from pera_mm.collect.sample.continents import CONTINENTS, continent_of
from pera_mm.collect.sample.landcover import Grid, LandCover
from pera_mm.errors import UserError
from pera_mm.files import write_whole
from pera_mm.shares import largest_remainder

PART_WINDOWS = 64  # measured, or drawn from, at once: what a kill may cost
WHOLE_MAP = ('',)  # the continents where none are named


class Part(NamedTuple):
    """A number of consecutive windows of one raster."""

    raster: int  # its number
    windows: range  # their numbers

    @property
    def file(self) -> str:
        """The name of a file about it."""
        return f'{self.raster:05d}-{self.windows.start:07d}.npy'


class Strata:
    """The strata of a map: every class on every continent, numbered, and its places.

    Args:
        land: The map.
        continents: Names out of ``CONTINENTS``, and weights; None: the whole map is one.

    Attributes:
        continents: Their names, '' for the whole map.
        weights: Of the continents.
        names: (class, continent) of each stratum.
        parts: All windows of the map, in the order of the rasters.
        stopped: Set it to end the work on :meth:`windows` in other threads.
    """

    def __init__(self, land: LandCover, continents: Mapping[str, float] | None) -> None:
        self.land, self.continents = land, tuple(continents or WHOLE_MAP)
        self.weights = np.array(list(continents.values()) if continents else [1.0])
        self.names = [(name, continent) for continent in self.continents for name in land.classes]
        self.parts = [
            Part(raster, range(first, min(first + PART_WINDOWS, count)))
            for raster, count in enumerate(map(land.count_windows, range(len(land.rasters))))
            for first in range(0, count, PART_WINDOWS)]
        self.stopped = Event()
        # From numbers of CONTINENTS to numbers here; the last item is for -1, no continent.
        self._own_number = np.full(len(CONTINENTS) + 1, -1, np.int8)
        for number, name in enumerate(self.continents):
            if name:
                self._own_number[CONTINENTS.index(name)] = number

    def windows(self, part: Part) -> Iterator[tuple[int, Window]]:
        """Give the numbered windows of a part.

        Raises:
            KeyboardInterrupt: once ``stopped`` is set.
        """
        for number, window in zip(part.windows, self.land.windows(*part)):
            if self.stopped.is_set():
                raise KeyboardInterrupt
            yield number, window

    def classify(self, raster: int, window: Window) -> tuple[Grid, NDArray[np.int16]] | None:
        """Find where a window's squares lie, and the stratum of each.

        Returns:
            The grid, and int16 [H, W], -1 for squares of no stratum. None if the window certainly
            has none: its pixels are not even read then.
        """
        grid = self.land.grid(raster, window)
        if self.continents == WHOLE_MAP:
            of_cell = np.zeros(grid.corners[1:, 1:].shape[:2], np.int8)
        else:
            of_cell = self._own_number[continent_of(*grid.cell_centers())]
        if (of_cell < 0).all():
            return None
        continents = grid.spread(of_cell.astype(np.int16))
        continents[~self.land.not_covered_earlier(raster, grid)] = -1
        if (continents < 0).all():
            return None
        classes = self.land.read(raster, window)
        strata = continents * np.int16(len(self.land.classes)) + classes
        strata[(continents < 0) | (classes < 0)] = -1
        return grid, strata

    def measure(self, part: Part, advance: Callable[[int], None]) -> NDArray[np.float64]:
        """Measure the area of every stratum in every window of a part.

        Args:
            part: The windows.
            advance: Called with 1 after each window.

        Returns:
            km² [windows, strata].
        """
        areas: list[NDArray] = []
        for _, window in self.windows(part):
            found = self.classify(part.raster, window)
            if found is None:
                areas.append(np.zeros(len(self.names)))
            else:
                grid, strata = found
                # bincount accepts no -1, so all numbers are raised by one.
                areas.append(np.bincount(strata.ravel() + 1, grid.areas().ravel(),
                                         len(self.names) + 1)[1:])
            advance(1)
        return np.array(areas)

    def map_parts(self, work: Callable[[Part], NDArray], workers: int) -> NDArray:
        """Call ``work`` on each part in threads; concatenate what it returns in the parts' order.

        Args:
            work: What to do with a part.
            workers: Parts worked on at once.
        """
        return np.concatenate(in_threads(work, self.parts, workers, self.stopped.set))


def load_or_make(path: Path, make: Callable[[], NDArray]) -> NDArray:
    """Load an array; where its file is missing, make the array and save it first."""
    if not path.exists():
        file = io.BytesIO()
        np.save(file, make(), allow_pickle=False)
        write_whole(path, file.getvalue())
    return np.load(path, allow_pickle=False)


# -- census --------------------------------------------------------------------------------------


def census(strata: Strata, folder: Path, workers: int = 1) -> NDArray[np.float64]:
    """Measure the area of every stratum in every window of the map.

    Args:
        strata: What to measure.
        folder: Keeps a file per part; existing files are used as they are.
        workers: Parts read at once.

    Returns:
        km² [windows, strata].
    """
    done = [part for part in strata.parts if (folder / part.file).exists()]
    totals = [sum(len(part.windows) for part in parts) for parts in (strata.parts, done)]
    with progress_bar('land cover', *totals) as advance:
        advance = _logging_tenths(advance, *totals)

        def measure(part: Part) -> NDArray:
            return load_or_make(folder / part.file, lambda: strata.measure(part, advance))

        return strata.map_parts(measure, workers)


def _logging_tenths(advance: Callable[[int], None], total: int,
                    done: int) -> Callable[[int], None]:
    """Let ``advance`` also log each tenth of a large census: a bar leaves no trace in a log."""
    lock = Lock()

    def advance_and_log(windows: int) -> None:
        nonlocal done
        advance(windows)
        with lock:
            before, done = done, done + windows
            if total > PART_WINDOWS and 10 * before // total < 10 * done // total:
                log.info('land cover: %d of %d windows', done, total)

    return advance_and_log


# -- quotas --------------------------------------------------------------------------------------


def strata_quotas(strata: Strata, areas: NDArray[np.float64], total: int,
                  shares: Mapping[str, float], counts: Mapping[str, int]) -> NDArray[np.int64]:
    """Compute the number of points of each stratum.

    Args:
        strata: What to draw from.
        areas: Its census, km² [windows, strata].
        total: Points that ``shares`` divide.
        shares: Class to share of ``total``.
        counts: Class to points besides ``total``.

    Returns:
        int64 [strata].

    Raises:
        UserError: if the map has no land on one of the continents, or a class on none of them.
    """
    occurs = areas.sum(axis=0).reshape(len(strata.continents), -1) > 0  # [continents, classes]
    for name, found in zip(strata.continents, occurs.any(axis=1)):
        if not found:
            raise UserError(f'the land cover has nothing{name and f" in {name}"}: add its rasters '
                            'to landcover.paths' + (name and ', or leave it out of continents.'
                                                     or '.'))
    quotas = np.zeros(occurs.shape, np.int64)
    by_share = dict(zip(shares, largest_remainder(int(total), list(shares.values())))) if total \
        else {}
    for name in dict.fromkeys((*by_share, *counts)):
        number = strata.land.classes.index(name)
        points = int(by_share.get(name, 0) + counts.get(name, 0))
        here = occurs[:, number]
        if points and not here.any():
            raise UserError(f'the class {name!r} does not occur on the land cover'
                            f'{strata.continents[0] and " of these continents"}, but '
                            f'{points} points of it are asked for.')
        if points:
            quotas[here, number] += largest_remainder(points, strata.weights[here])
    return quotas.ravel()
