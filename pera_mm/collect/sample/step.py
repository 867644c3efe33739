"""Step 1: random points over the continents, balanced by land cover (paper §3.1, Figure 3).

A *stratum* is one class of land cover on one continent. The *census* measures the area of every
stratum in every window of the map; quotas say how many points each stratum gets. Points are then
drawn uniformly per km² of their stratum: a window by its share of the stratum's area, a square of
the map by its own, a place within it. Points nearer than ``min_distance`` to an earlier one are
left out and drawn again.

The map is worked on in *parts*, up to 64 windows of one raster. The census of a part and what was
drawn in it are written as they come to be (``census/``, ``draws/``), so that a stopped step goes on
where it was, also in the middle of a raster that holds the whole globe. Everything random depends
on the seed and on the order of the rasters' paths alone, not on threads or on stops.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from numbers import Integral, Real
from pathlib import Path
from threading import Event, Lock
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rasterio.windows import Window
from scipy.spatial import cKDTree

from pera_mm.collect.common.gdal import in_threads, is_remote
from pera_mm.collect.common.tables import log, progress_bar
from pera_mm.collect.sample.continents import CONTINENTS, continent_of, polygons
from pera_mm.collect.sample.landcover import Grid, LandCover, Raster
from pera_mm.errors import UserError
from pera_mm.files import write_whole
from pera_mm.seeds import hash_seed

EARTH = 6_371_008.8  # m, mean radius
PART = 64  # windows measured, or drawn from, at once: what a kill may cost
ROUNDS = 20  # of drawing again what lay too near to another point
BARREN = 3  # so many rounds in a row without a new point: the stratum has no room for more
MOST_DRAWN = 10  # places for one missing point, however few were far enough in the last round
BATCH = 4096  # places compared with each other at once, at least
DRAWN = np.dtype([('key', 'u8'), ('lon', 'f8'), ('lat', 'f8'), ('stratum', 'i2')])
ORDER, GSD, WINDOWS, PLACES = range(4)  # what a seed is for
COLOURS = {'urban': '#d7301f', 'farmland': '#e6ab02', 'wetland': '#1b9e77', 'forest': '#1a6b2a',
           'water': '#2171b5', 'desert': '#c49a6c', 'ice': '#8fd3ee', 'grassland': '#9ccc3c',
           'cloud': '#9e9e9e', 'shrubland': '#a6761d', 'moss': '#7570b3'}
OTHER_COLOUR = '#444444'  # of a class in a user's own legend
MOST_ON_MAP = 50_000  # points: more cover each other
LABEL = 18.0, 7.0  # degrees from its middle that a continent's name covers


def sample(folder: Path, seed: int, *, landcover: Mapping[str, Any], total: int,
           shares: Mapping[str, float], continents: Mapping[str, float] | None,
           min_distance: float, gsd: Sequence[float], counts: Mapping[str, int] | None = None,
           workers: int = 4) -> dict[str, Any]:
    """Draw ``points.csv`` and its map ``points.png``.

    Args:
        folder: The work folder.
        seed: Same seed, settings and map, same files.
        landcover: The arguments of :class:`~pera_mm.collect.sample.landcover.LandCover`.
        total: Points that ``shares`` divide.
        shares: Class to share of ``total``; they sum to 1.
        continents: Continent to weight: with 2 it gets twice the points of one with 1. Those not
            named get none. What a class cannot get on a continent where it does not occur or has
            no room, the others get. None: the whole map counts, on a continent or not.
        min_distance: Between any two points, metres on the sphere.
        gsd: Lowest and highest ground sampling distance, metres per pixel; every point gets one,
            uniform in its logarithm: as many from 0.3 to 1 as from 3 to 10.
        counts: Class to points besides ``total``.
        workers: Parts of the map read at once.

    Returns:
        points, asked: numbers; table: asked, got and the area in km² by class and continent.

    Raises:
        ValueError: if a setting is wrong, a class or continent does not occur on the map, or
            ``points.csv`` is there and not of these settings.
    """
    _check(seed, landcover, total, shares, counts or {}, continents, min_distance, gsd, workers)
    with closing(LandCover(**landcover)) as land:
        for name in (*shares, *(counts or {})):
            if name not in land.classes:
                raise UserError(f'the class {name!r} is not in the legend of the land cover; it '
                                f'has {", ".join(land.classes)}.')
        ground = [[[raster.path, _state(raster)] for raster in land.rasters],
                  landcover.get('legend', 'esri'), land.step, land.overviews,
                  continents and list(continents)]
        settings = [ground, seed, total, shares, counts, continents, min_distance, gsd]
        draws = folder / 'draws' / _digest(settings)
        if (folder / 'points.csv').exists():
            return _finished_before(folder, draws)

        strata = Strata(land, continents)
        areas = census(strata, folder / 'census' / _digest(ground), workers)
        quotas = strata_quotas(strata, areas, total, shares, counts or {})
        log.info('%d points are asked for on %.6g km²', quotas.sum(), areas.sum())
        points, is_full = draw(strata, areas, quotas, seed, min_distance, draws, workers)
    points = points[_generator(seed, ORDER).permutation(len(points))]
    table = _points_table(strata, points, seed, gsd)
    summary = _summary(strata, areas, quotas, points, is_full)
    text = table.to_csv(index=False, lineterminator='\n').encode()
    write_whole(folder / 'points.png', draw_map(table))
    note = dict(sha256=hashlib.sha256(text).hexdigest(), summary=summary)
    write_whole(draws / 'done.json', json.dumps(note).encode())
    write_whole(folder / 'points.csv', text)  # the last: with it the step is finished
    for part in draws.glob('*.npy'):
        part.unlink()
    return summary


def _check(seed: int, landcover: Mapping[str, Any], total: int, shares: Mapping[str, float],
           counts: Mapping[str, int], continents: Mapping[str, float] | None,
           min_distance: float, gsd: Sequence[float], workers: int) -> None:
    _check_number('seed', seed, 'a whole number', lambda it: isinstance(it, Integral))
    _check_names('landcover', landcover, "dict(paths='landcover/*.tif', legend='esri')")
    _check_names('shares', shares, 'dict(urban=0.6, forest=0.4)')
    _check_names('counts', counts, 'dict(ice=1000), or None')
    unknown = sorted(set(landcover) - {'paths', 'legend', 'step', 'overviews'})
    if unknown or 'paths' not in landcover:
        raise UserError('landcover needs paths and may have legend, step and overviews, '
                        f'got {", ".join(landcover) or "nothing"}.')
    _check_number('total', total, 'a number of points', _is_count)
    for name, share in shares.items():
        _check_number(f'shares[{name!r}]', share, 'from 0 to 1', lambda it: 0 <= it <= 1)
    if total and abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f'the shares sum to {sum(shares.values()):g}, not to 1: '
                        f'{", ".join(f"{name} {share:g}" for name, share in shares.items())}.')
    for name, count in counts.items():
        _check_number(f'counts[{name!r}]', count, 'a number of points', _is_count)
    if not total and not any(counts.values()):
        raise UserError('no point is asked for: total and counts are 0.')
    if continents is not None:
        _check_continents(continents)
    _check_number('min_distance', min_distance, '0 or more metres', lambda it: it >= 0)
    if not isinstance(gsd, Sequence) or len(gsd) != 2 \
            or not all(isinstance(value, Real) for value in gsd) \
            or not 0 < gsd[0] <= gsd[1] < math.inf:
        raise UserError('gsd must be the lowest and the highest metres per pixel, e.g. '
                        f'(0.3, 10), got {gsd!r}.')
    _check_number('workers', workers, 'a whole number from 1',
                  lambda it: isinstance(it, Integral) and int(it) >= 1)


def _check_continents(continents: Mapping[str, float]) -> None:
    _check_names('continents', continents, "{'asia': 2, 'africa': 1}, or None for the whole map")
    if not continents:
        raise UserError('continents is empty; name some with their weights, or None for the '
                        'whole map.')
    for name, weight in continents.items():
        if name not in CONTINENTS:
            raise UserError(f'the continent {name!r} is unknown; there are '
                            f'{", ".join(CONTINENTS)}.')
        _check_number(f'continents[{name!r}]', weight,
                      'above 0 (leave a continent out to get no points there)', lambda it: it > 0)


def _check_number(setting: str, value: Any, what: str, is_it: Callable[[Any], bool]) -> None:
    """Refuse what is no finite number, or not ``what`` it must be."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) \
            or not is_it(value):
        raise UserError(f'{setting} must be {what}, got {value!r}.')


def _is_count(value: float) -> bool:
    return value >= 0 and value == int(value)


def _check_names(setting: str, value: Any, example: str) -> None:
    if not isinstance(value, Mapping):
        raise UserError(f'{setting} must be a dictionary, e.g. {example}, got {value!r}.')


def _state(raster: Raster) -> list[tuple[str, int, int]]:
    """What shows that local files were replaced."""
    local = [name for name in raster.files if not is_remote(name) and os.path.exists(name)]
    states = map(os.stat, local)
    return [(name, state.st_size, state.st_mtime_ns) for name, state in zip(local, states)]


def _digest(settings: Any) -> str:
    text = json.dumps(settings, default=dict)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _finished_before(folder: Path, draws: Path) -> dict[str, Any]:
    """The summary of a step that had ended; a ``points.csv`` of other origin is never lost."""
    done, file = draws / 'done.json', folder / 'points.csv'
    if done.exists():
        note = json.loads(done.read_text())
        if hashlib.sha256(file.read_bytes()).hexdigest() == note['sha256']:
            log.info('%s is there already, with these settings', file)
            return note['summary']
    raise UserError(f'{file} is there and was not drawn with these settings and this map; later '
                    'steps know its points by their ids, so take another work folder, or remove '
                    'this one.')


def _generator(*keys: int) -> np.random.Generator:
    return np.random.default_rng(hash_seed(*keys))


# -- strata --------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Windows of one raster that follow each other."""

    raster: int  # its number
    windows: range  # their numbers

    @property
    def file(self) -> str:
        """A file's name for it."""
        return f'{self.raster:05d}-{self.windows.start:07d}.npy'


class Strata:
    """Every class on every continent, numbered, and where on the map each lies.

    Args:
        land: The map.
        continents: Names out of ``CONTINENTS``, and weights; None: the whole map is one.

    Attributes:
        continents: Their names, '' for the whole map.
        weights: Of the continents.
        names: (class, continent) of each stratum.
        parts: All windows of the map, in the order of the rasters.
        stopped: Set it to make :meth:`census` and :meth:`draw` in other threads end.
    """

    def __init__(self, land: LandCover, continents: Mapping[str, float] | None) -> None:
        self.land, self.continents = land, tuple(continents or ('',))
        self.weights = np.array(list(continents.values()) if continents else [1.0])
        self.names = [(name, continent) for continent in self.continents for name in land.classes]
        self.parts = [
            Part(raster, range(first, min(first + PART, count)))
            for raster, count in enumerate(map(land.count_windows, range(len(land.rasters))))
            for first in range(0, count, PART)]
        self.stopped = Event()
        self._number = np.full(len(CONTINENTS) + 1, -1, np.int8)  # the last for none: [-1]
        for number, name in enumerate(self.continents):
            if name:
                self._number[CONTINENTS.index(name)] = number

    def windows(self, part: Part) -> Iterator[tuple[int, Window]]:
        """The numbered windows of a part, until stopped."""
        for number, window in zip(part.windows, self.land.windows(*part)):
            if self.stopped.is_set():
                raise KeyboardInterrupt
            yield number, window

    def of(self, raster: int, window: Window) -> tuple[Grid, NDArray[np.int16]] | None:
        """Where a window's squares lie and their strata, [H, W], -1 for none.

        None where the window holds no stratum at all; then it was not even read.
        """
        grid = self.land.grid(raster, window)
        if self.continents == ('',):
            continent = np.zeros(grid.corners[1:, 1:].shape[:2], np.int8)
        else:
            continent = self._number[continent_of(*grid.centres())]
        if (continent < 0).all():
            return None
        spread = grid.spread(continent.astype(np.int16))
        spread[~self.land.first(raster, grid)] = -1
        if (spread < 0).all():
            return None
        classes = self.land.read(raster, window)
        strata = spread * np.int16(len(self.land.classes)) + classes
        strata[(spread < 0) | (classes < 0)] = -1
        return grid, strata

    def census(self, part: Part, advance: Callable[[int], None]) -> NDArray[np.float64]:
        """Area of every stratum in every window of a part, km² [windows, strata]."""
        areas: list[NDArray] = []
        for _, window in self.windows(part):
            found = self.of(part.raster, window)
            if found is None:
                areas.append(np.zeros(len(self.names)))
            else:
                grid, strata = found
                # Shifted by one: bincount takes no -1.
                areas.append(np.bincount(strata.ravel() + 1, grid.areas().ravel(),
                                         len(self.names) + 1)[1:])
            advance(1)
        return np.array(areas)

    def draw(self, part: Part, counts: NDArray[np.int64], *keys: int) -> NDArray:
        """Random places in a part, uniform per km² of each stratum in each window.

        Args:
            part: Where.
            counts: Places by window and stratum [windows, strata].
            keys: Of the randomness, besides raster and window.

        Returns:
            ``DRAWN`` [counts.sum()]; the keys are random numbers to order places by.
        """
        drawn = [np.empty(0, DRAWN)]
        for (number, window), count in zip(self.windows(part), counts):
            if count.any():
                random = _generator(*keys, part.raster, number)
                drawn.append(self._places(part.raster, window, count, random))
        return np.concatenate(drawn)

    def _places(self, raster: int, window: Window, counts: NDArray,
                random: np.random.Generator) -> NDArray:
        """``counts`` [strata] random places of one window."""
        found = self.of(raster, window)
        for stratum in np.flatnonzero(counts):
            if found is None or not (found[1] == stratum).any():
                raise UserError(
                    f'{self.land.rasters[raster].path} has changed since its census: '
                    f'{" in ".join(filter(None, self.names[stratum]))} is no longer where it was; '
                    'remove census and draws in the work folder.')
        assert found is not None
        grid, strata = found
        areas = grid.areas().ravel()
        picked: list[NDArray] = []
        for stratum in np.flatnonzero(counts):
            squares = np.flatnonzero(strata == stratum)
            until = np.cumsum(areas[squares])
            at = np.searchsorted(until, random.random(counts[stratum]) * until[-1], side='right')
            picked.append(squares[np.minimum(at, len(squares) - 1)])
        row, col = np.divmod(np.concatenate(picked), strata.shape[1])
        lon, lat = self.land.places(raster, grid, row, col, random)
        places = np.empty(len(lon), DRAWN)
        places['key'] = random.integers(1 << 63, size=len(lon))
        places['lon'], places['lat'] = lon, lat
        places['stratum'] = strata[row, col]
        return places


def _for_every_part(strata: Strata, work: Callable[[Part], NDArray], workers: int) -> NDArray:
    """What ``work`` makes of each part, in their order, one below the other."""
    return np.concatenate(in_threads(work, strata.parts, workers, strata.stopped.set))


def _once(path: Path, make: Callable[[], NDArray]) -> NDArray:
    """An array that is made once; a later start reads it from ``path``."""
    if not path.exists():
        file = io.BytesIO()
        np.save(file, make(), allow_pickle=False)
        write_whole(path, file.getvalue())
    return np.load(path, allow_pickle=False)


# -- quotas --------------------------------------------------------------------------------------


def census(strata: Strata, folder: Path, workers: int = 1) -> NDArray[np.float64]:
    """Area of every stratum in every window of the map, km² [windows, strata].

    Args:
        strata: What to measure.
        folder: A file per part is kept here; those that are there are taken as they are.
        workers: Parts read at once.
    """
    done = [part for part in strata.parts if (folder / part.file).exists()]
    totals = [sum(len(part.windows) for part in parts) for parts in (strata.parts, done)]
    with progress_bar('land cover', *totals) as advance:
        advance = _logging_tenths(advance, *totals)

        def measure(part: Part) -> NDArray:
            return _once(folder / part.file, lambda: strata.census(part, advance))

        return _for_every_part(strata, measure, workers)


def _logging_tenths(advance: Callable[[int], None], total: int,
                    done: int) -> Callable[[int], None]:
    """``advance``, which also logs every tenth of a large census; a bar leaves nothing in a log."""
    lock = Lock()

    def advance_and_log(windows: int) -> None:
        nonlocal done
        advance(windows)
        with lock:
            before, done = done, done + windows
            if total > PART and 10 * before // total < 10 * done // total:
                log.info('land cover: %d of %d windows', done, total)

    return advance_and_log


def split(total: int, weights: Sequence[float]) -> NDArray[np.int64]:
    """Whole numbers that sum to ``total``, in proportion to the weights (largest remainder)."""
    exact = np.asarray(weights, float) * (total / np.sum(weights))
    parts = np.floor(exact).astype(np.int64)
    most_lacking = np.argsort(parts - exact, kind='stable')
    parts[most_lacking[:total - parts.sum()]] += 1
    return parts


def strata_quotas(strata: Strata, areas: NDArray[np.float64], total: int,
                  shares: Mapping[str, float], counts: Mapping[str, int]) -> NDArray[np.int64]:
    """Points of each stratum [strata].

    Raises:
        ValueError: if the map has no land on one of the continents, or a class on none of them.
    """
    occurs = areas.sum(axis=0).reshape(len(strata.continents), -1) > 0  # [continents, classes]
    for name, found in zip(strata.continents, occurs.any(axis=1)):
        if not found:
            raise UserError(f'the land cover has nothing{name and f" in {name}"}: add its rasters '
                            'to landcover.paths' + (name and ', or leave it out of continents.'
                                                     or '.'))
    quotas = np.zeros(occurs.shape, np.int64)
    asked = dict(zip(shares, split(int(total), list(shares.values())))) if total else {}
    for name in dict.fromkeys((*asked, *counts)):
        number = strata.land.classes.index(name)
        points = int(asked.get(name, 0) + counts.get(name, 0))
        here = occurs[:, number]
        if points and not here.any():
            raise UserError(f'the class {name!r} does not occur on the land cover'
                            f'{strata.continents[0] and " of these continents"}, but '
                            f'{points} points of it are asked for.')
        if points:
            quotas[here, number] += split(points, strata.weights[here])
    return quotas.ravel()


# -- points --------------------------------------------------------------------------------------


def draw(strata: Strata, areas: NDArray[np.float64], quotas: NDArray[np.int64], seed: int,
         min_distance: float, folder: Path, workers: int = 1
         ) -> tuple[NDArray, NDArray[np.bool_]]:
    """Random points by their quotas, no two nearer than ``min_distance``.

    What a stratum has no room for, the class gets on the other continents.

    Args:
        strata: What to draw from.
        areas: Its census, km² [windows, strata].
        quotas: Points of each stratum [strata].
        seed: Key of the randomness.
        min_distance: Metres on the sphere.
        folder: What each part gave in each round is kept here.
        workers: Parts read at once.

    Returns:
        ``DRAWN``, fewer than asked for where there was no room; and in which strata there was none,
        bool [strata].
    """
    points, missing = np.empty(0, DRAWN), quotas.copy()
    accepted = np.ones(len(quotas))  # share of a stratum's last places that were far enough
    barren = np.zeros(len(quotas), int)  # rounds in a row that gave a stratum nothing
    with progress_bar('points', int(quotas.sum())) as advance:
        for number in range(ROUNDS):
            missing = _passed_on(strata, areas, missing, barren >= BARREN)
            if not missing.any():
                break
            counts = _places_for(missing, accepted, max(int(quotas.sum()), 100_000))
            drawn = _draw_round(strata, _windows_of(counts, areas, seed, number),
                                (seed, PLACES, number), folder, workers)
            new = drawn[far_enough(drawn, points, min_distance)]
            found = np.bincount(new['stratum'], minlength=len(quotas))
            log.info('round %d: %d points missing, %d places drawn, %d of them far enough from '
                     'all others', number + 1, missing.sum(), len(drawn), len(new))
            was_drawn = counts > 0
            accepted[was_drawn] = found[was_drawn] / counts[was_drawn]
            barren = np.where(was_drawn, np.where(found > 0, 0, barren + 1), barren)
            new = new[_ranks(new['stratum']) < missing[new['stratum']]]
            points = np.concatenate([points, new])
            missing = missing - np.bincount(new['stratum'], minlength=len(quotas))
            advance(len(new))
    return points, barren >= BARREN


def _passed_on(strata: Strata, areas: NDArray[np.float64], missing: NDArray[np.int64],
               is_full: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The missing points [strata], those of full strata asked of the class's others, if any."""
    shape = len(strata.continents), -1
    table, full = missing.reshape(shape).copy(), is_full.reshape(shape)
    has_room = (areas.sum(axis=0).reshape(shape) > 0) & ~full
    for number in np.flatnonzero((table * full).any(axis=0)):
        here, lacking = has_room[:, number], int(table[full[:, number], number].sum())
        table[full[:, number], number] = 0
        if here.any():
            table[here, number] += split(lacking, strata.weights[here])
            log.info('%s: %d points for which a continent has no room are asked of the others',
                     strata.land.classes[number], lacking)
    return table.ravel()


def _places_for(missing: NDArray[np.int64], accepted: NDArray[np.float64],
                most: int) -> NDArray[np.int64]:
    """How many places to draw for the missing points [strata], in all about ``most`` at most."""
    margin = 3 * np.sqrt(missing) * (accepted < 1)  # so that chance leaves the last one out rarely
    counts = np.ceil((missing + margin) / np.maximum(accepted, 1 / MOST_DRAWN)).astype(np.int64)
    return np.maximum(missing, (counts * min(1, most / counts.sum())).astype(np.int64))


def _draw_round(strata: Strata, counts: NDArray[np.int64], keys: tuple[int, ...], folder: Path,
                workers: int) -> NDArray:
    """``DRAWN`` places by window and stratum [windows, strata], in random order."""
    starts = np.cumsum([len(part.windows) for part in strata.parts])[:-1]
    of_part = dict(zip(strata.parts, np.split(counts, starts)))

    def places(part: Part) -> NDArray:
        if not of_part[part].any():
            return np.empty(0, DRAWN)
        return _once(folder / f'{keys[-1]:02d}-{part.file}',
                     lambda: strata.draw(part, of_part[part], *keys))

    drawn = _for_every_part(strata, places, workers)
    return drawn[np.argsort(drawn['key'], kind='stable')]


def _ranks(values: NDArray) -> NDArray[np.int64]:
    """How many equal values stand before each [n]."""
    order = np.argsort(values, kind='stable')
    _, first, inverse = np.unique(values[order], return_index=True, return_inverse=True)
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values)) - first[inverse]
    return ranks


def _windows_of(places: NDArray[np.int64], areas: NDArray[np.float64], seed: int,
                number: int) -> NDArray[np.int64]:
    """How many of the places [strata] each window gets, by area [windows, strata]."""
    counts = np.zeros(areas.shape, np.int64)
    for stratum in np.flatnonzero(places):
        chance = areas[:, stratum] / areas[:, stratum].sum()
        random = _generator(seed, WINDOWS, number, int(stratum))
        counts[:, stratum] = random.multinomial(places[stratum], chance)
    return counts


def far_enough(drawn: NDArray, points: NDArray, distance: float) -> NDArray[np.bool_]:
    """Which of ``drawn`` are as far as ``distance`` (m) from all ``points`` and earlier ones kept.

    Args:
        drawn: With fields lon and lat, first come, first served [n].
        points: The same, all kept [m].
        distance: Metres along the sphere.

    Returns:
        bool [n].
    """
    if distance == 0 or not len(drawn):
        return np.ones(len(drawn), bool)
    chord = 2 * np.sin(min(distance / EARTH, np.pi) / 2)
    places, kept = on_sphere(drawn['lon'], drawn['lat']), on_sphere(points['lon'], points['lat'])
    keep = np.zeros(len(drawn), bool)
    # In batches: where places crowd, nearly all fall by those kept before; the pairs of all would
    # be too many. A batch has about eight pairs a place, as the first ones have it.
    some = cKDTree(places[:BATCH])
    pairs = (some.count_neighbors(some, chord) - some.n) // 2
    size, start = max(BATCH, 8 * BATCH**2 // (pairs + 4)), 0
    while start < len(places):
        batch = places[start:start + max(size, 2 * len(kept))]
        new = _far_from(kept, batch, chord)
        new = new[_far_from_earlier(batch[new], chord)]
        keep[start + new] = True
        kept = np.concatenate([kept, batch[new]])
        start += len(batch)
    return keep


def _far_from(kept: NDArray, places: NDArray, chord: float) -> NDArray[np.int64]:
    """Which places [n, 3] are as far as ``chord`` from all that are kept [m, 3]."""
    if not len(kept):
        return np.arange(len(places))
    nearest, _ = cKDTree(kept).query(places, distance_upper_bound=chord)
    return np.flatnonzero(nearest >= chord)


def _far_from_earlier(places: NDArray, chord: float) -> NDArray[np.bool_]:
    """Which places [n, 3] are as far as ``chord`` from all earlier ones that are."""
    keep = np.ones(len(places), bool)
    pairs = np.sort(cKDTree(places).query_pairs(chord, output_type='ndarray'), axis=1)
    while len(pairs):
        # A place that no earlier one disputes stays; with it, its later neighbours go.
        disputed = np.zeros(len(places), bool)
        disputed[pairs[:, 1]] = True
        keep[pairs[~disputed[pairs[:, 0]], 1]] = False
        pairs = pairs[keep[pairs].all(axis=1)]
    return keep


def on_sphere(lon: NDArray, lat: NDArray) -> NDArray[np.float64]:
    """Degrees [n] to points of the unit sphere [n, 3]."""
    lon, lat = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


# -- what is written -----------------------------------------------------------------------------


def _points_table(strata: Strata, points: NDArray, seed: int,
                  gsd: Sequence[float]) -> pd.DataFrame:
    names = np.array(strata.names, dtype=object)[points['stratum']].reshape(-1, 2)
    low, high = np.log(gsd)
    resolution = np.exp(_generator(seed, GSD).uniform(low, high, len(points)))
    digits = max(7, len(str(len(points) - 1)))
    return pd.DataFrame({
        'id': [f'{number:0{digits}d}' for number in range(len(points))],
        'lon': points['lon'], 'lat': points['lat'], 'class': names[:, 0],
        'continent': names[:, 1], 'gsd': resolution.round(3)})


def _summary(strata: Strata, areas: NDArray[np.float64], quotas: NDArray[np.int64],
             points: NDArray, is_full: NDArray[np.bool_]) -> dict[str, Any]:
    got = np.bincount(points['stratum'], minlength=len(quotas))
    table = []
    for number in np.flatnonzero(quotas):
        name, continent = strata.names[number]
        km2 = float(f'{areas[:, number].sum():.6g}')
        table.append({'class': name, 'continent': continent, 'asked': int(quotas[number]),
                      'got': int(got[number]), 'km2': km2})
        if got[number] < quotas[number]:
            log.warning('%s%s: %d of %d points at min_distance; %s', name,
                        continent and f' in {continent}', got[number], quotas[number],
                        f'the last {BARREN} rounds found no room for more on its {km2:g} km²'
                        if is_full[number] else f'the {ROUNDS} rounds of drawing ended')
    return dict(points=len(points), asked=int(quotas.sum()), table=table)


def draw_map(points: pd.DataFrame) -> bytes:
    """Figure 3: the points on the continents, coloured by class, as PNG.

    Args:
        points: Columns of ``tables.POINT``, in random order: of many, the first are drawn.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    figure = Figure(figsize=(14, 6.4))
    axes = figure.add_axes((0.05, 0.08, 0.94, 0.9))
    for name, land in polygons().items():
        for part in land.geoms:
            axes.fill(*part.exterior.xy, facecolor='#f3f1ec', edgecolor='#8a8a8a', linewidth=0.5)
        count = int((points['continent'] == name).sum())
        if count:
            axes.annotate(f'{name.title()}\n{count:,}', label_place(name, points), ha='center',
                          va='center', fontsize=11, fontweight='bold', zorder=3,
                          path_effects=[withStroke(linewidth=3, foreground='white')])
    shown = points.iloc[:MOST_ON_MAP]
    size = 40 if len(shown) < 2000 else 2
    # All classes in one, in the table's random order, so that none covers the others.
    colours = [COLOURS.get(name, OTHER_COLOUR) for name in shown['class']]
    axes.scatter(shown['lon'], shown['lat'], size, colours, linewidths=0, alpha=0.7, zorder=2)
    for name, count in points['class'].value_counts().items():
        axes.scatter([], [], size, COLOURS.get(str(name), OTHER_COLOUR), linewidths=0, alpha=0.7,
                     label=f'{name}  {count:,}')
    axes.legend(loc='lower left', title=f'{len(points):,} points', framealpha=0.9,
                markerscale=6 / size**0.5)
    _set_extent(axes, points)
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=110)
    return file.getvalue()


def label_place(continent: str, points: pd.DataFrame) -> tuple[float, float]:
    """Where on the map a continent's name hides fewest points: in its middle, or near it."""
    land = max(polygons()[continent].geoms, key=lambda part: part.area)
    middle = land.representative_point()
    shifts = np.mgrid[-3:4, -3:4].reshape(2, -1).T * (20.0, 9.0)
    shifts = shifts[np.argsort(np.hypot(*shifts.T), kind='stable')]
    places = np.clip([middle.x, middle.y] + shifts, (-160, -50), (160, 78))
    shown = points.iloc[:MOST_ON_MAP]
    hidden = [((np.abs(shown['lon'] - lon) < LABEL[0]) & (np.abs(shown['lat'] - lat) < LABEL[1])
               ).sum() for lon, lat in places]
    return tuple(places[np.argmin(hidden)])


def _set_extent(axes: Any, points: pd.DataFrame) -> None:
    """The six continents, or the points' own region where that is small."""
    west, east = points['lon'].min(), points['lon'].max()
    south, north = points['lat'].min(), points['lat'].max()
    margin = 0.1 * max(east - west, north - south) + 0.01
    if margin > 6:
        west, east, south, north, margin = -180, 180, -58, 84, 0
    axes.set_xlim(west - margin, east + margin)
    axes.set_ylim(south - margin, north + margin)
    axes.set_aspect(1 / np.cos(np.radians((south + north) / 2)))
    axes.set_xlabel('longitude, degrees')
    axes.set_ylabel('latitude, degrees')
