"""Points: drawn in rounds until the quotas are filled, and written as a table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rasterio.windows import Window

from pera_mm.collect.common.tables import log, progress_bar
from pera_mm.collect.sample.spacing import far_enough
from pera_mm.collect.sample.strata import Part, Strata, load_or_make
from pera_mm.errors import UserError
from pera_mm.seeds import hash_seed
from pera_mm.shares import largest_remainder

MAX_ROUNDS = 20  # of drawing; each replaces what lay too near to another point
BARREN_ROUNDS = 3  # in a row without a new point: the stratum has no room for more
MAX_PLACES_PER_POINT = 10  # drawn in one round, however few were far enough in the last one
MIN_PLACES = 100_000  # that one round may draw in any case
SPARE = 3  # standard deviations of the number of places that are far enough
MIN_DIGITS = 7  # of an id
DRAWN = np.dtype([('key', 'u8'), ('lon', 'f8'), ('lat', 'f8'), ('stratum', 'i2')])
ORDER, GSD, WINDOWS, PLACES = range(4)  # what a seed is for


def draw(strata: Strata, areas: NDArray[np.float64], quotas: NDArray[np.int64], seed: int,
         min_distance: float, folder: Path, workers: int = 1
         ) -> tuple[NDArray, NDArray[np.bool_]]:
    """Draw random points by their quotas, no two nearer than ``min_distance``.

    Where a stratum has no room for its points, they are drawn from the same class on the other
    continents.

    Args:
        strata: What to draw from.
        areas: Its census, km² [windows, strata].
        quotas: Points of each stratum [strata].
        seed: Key of the randomness.
        min_distance: Meters on the sphere.
        folder: Keeps what was drawn in each part and round.
        workers: Parts read at once.

    Returns:
        ``DRAWN`` [n], fewer than the quotas where there is too little room; and whether each
        stratum is full, bool [strata].
    """
    points, missing = np.empty(0, DRAWN), quotas.copy()
    accepted = np.ones(len(quotas))  # share of a stratum's last places that were far enough
    barren = np.zeros(len(quotas), int)  # rounds in a row without a new point of a stratum
    with progress_bar('points', int(quotas.sum())) as advance:
        for number in range(MAX_ROUNDS):
            missing = _reassign(strata, areas, missing, barren >= BARREN_ROUNDS)
            if not missing.any():
                break
            counts = _places_to_draw(missing, accepted, max(int(quotas.sum()), MIN_PLACES))
            drawn = _draw_round(strata, _count_by_window(counts, areas, seed, number),
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
    return points, barren >= BARREN_ROUNDS


def _reassign(strata: Strata, areas: NDArray[np.float64], missing: NDArray[np.int64],
              is_full: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Move the missing points [strata] of full strata to the same class on other continents."""
    shape = len(strata.continents), -1
    table, full = missing.reshape(shape).copy(), is_full.reshape(shape)
    has_room = (areas.sum(axis=0).reshape(shape) > 0) & ~full
    for number in np.flatnonzero((table * full).any(axis=0)):
        here, lacking = has_room[:, number], int(table[full[:, number], number].sum())
        table[full[:, number], number] = 0
        if here.any():
            table[here, number] += largest_remainder(lacking, strata.weights[here])
            log.info('%s: %d points for which a continent has no room move to the others',
                     strata.land.classes[number], lacking)
    return table.ravel()


def _places_to_draw(missing: NDArray[np.int64], accepted: NDArray[np.float64],
                    limit: int) -> NDArray[np.int64]:
    """Compute how many places to draw for the missing points [strata].

    Together they are at most ``limit``, or the missing points where these are more.
    """
    # Without spare places, chance would leave the last points to another round.
    spare = SPARE * np.sqrt(missing) * (accepted < 1)
    share = np.maximum(accepted, 1 / MAX_PLACES_PER_POINT)
    counts = np.ceil((missing + spare) / share).astype(np.int64)
    return np.maximum(missing, (counts * min(1, limit / counts.sum())).astype(np.int64))


def _count_by_window(places: NDArray[np.int64], areas: NDArray[np.float64], seed: int,
                     number: int) -> NDArray[np.int64]:
    """Spread the places [strata] of a round over the windows by area, [windows, strata]."""
    counts = np.zeros(areas.shape, np.int64)
    for stratum in np.flatnonzero(places):
        chance = areas[:, stratum] / areas[:, stratum].sum()
        random = _generator(seed, WINDOWS, number, int(stratum))
        counts[:, stratum] = random.multinomial(places[stratum], chance)
    return counts


def _draw_round(strata: Strata, counts: NDArray[np.int64], keys: tuple[int, ...], folder: Path,
                workers: int) -> NDArray:
    """Draw the places of a round by window and stratum [windows, strata]: ``DRAWN``, shuffled."""
    starts = np.cumsum([len(part.windows) for part in strata.parts])[:-1]
    of_part = dict(zip(strata.parts, np.split(counts, starts)))

    def places(part: Part) -> NDArray:
        if not of_part[part].any():
            return np.empty(0, DRAWN)
        return load_or_make(folder / f'{keys[-1]:02d}-{part.file}',
                            lambda: _draw_part(strata, part, of_part[part], keys))

    drawn = strata.map_parts(places, workers)
    return drawn[np.argsort(drawn['key'], kind='stable')]


def _draw_part(strata: Strata, part: Part, counts: NDArray[np.int64],
               keys: tuple[int, ...]) -> NDArray:
    """Draw random places in a part, uniform per km² of each stratum in each window.

    Args:
        strata: What to draw from.
        part: Where.
        counts: Places by window and stratum [windows, strata].
        keys: Of the randomness, besides raster and window.

    Returns:
        ``DRAWN`` [counts.sum()]; the keys are random numbers to order places by.
    """
    drawn = [np.empty(0, DRAWN)]
    for (number, window), count in zip(strata.windows(part), counts):
        if count.any():
            random = _generator(*keys, part.raster, number)
            drawn.append(_draw_window(strata, part.raster, window, count, random))
    return np.concatenate(drawn)


def _draw_window(strata: Strata, raster: int, window: Window, counts: NDArray,
                 random: np.random.Generator) -> NDArray:
    """Draw ``counts`` [strata] random places in one window."""
    found = strata.classify(raster, window)
    for stratum in np.flatnonzero(counts):
        if found is None or not (found[1] == stratum).any():
            raise UserError(
                f'{strata.land.rasters[raster].path} has changed since its census: '
                f'{" in ".join(filter(None, strata.names[stratum]))} is no longer where it was; '
                'remove census and draws in the work folder.')
    assert found is not None
    grid, of_square = found
    areas = grid.areas().ravel()
    picked: list[NDArray] = []
    for stratum in np.flatnonzero(counts):
        squares = np.flatnonzero(of_square == stratum)
        until = np.cumsum(areas[squares])
        at = np.searchsorted(until, random.random(counts[stratum]) * until[-1], side='right')
        picked.append(squares[np.minimum(at, len(squares) - 1)])
    row, col = np.divmod(np.concatenate(picked), of_square.shape[1])
    lon, lat = strata.land.random_places(raster, grid, row, col, random)
    places = np.empty(len(lon), DRAWN)
    places['key'] = random.integers(1 << 63, size=len(lon))
    places['lon'], places['lat'] = lon, lat
    places['stratum'] = of_square[row, col]
    return places


def _ranks(values: NDArray) -> NDArray[np.int64]:
    """Count the equal values that precede each value [n]."""
    order = np.argsort(values, kind='stable')
    _, first, inverse = np.unique(values[order], return_index=True, return_inverse=True)
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values)) - first[inverse]
    return ranks


def points_table(strata: Strata, points: NDArray, seed: int,
                 gsd: Sequence[float]) -> pd.DataFrame:
    """Make the table of the points, in random order, each with a resolution.

    Args:
        strata: What the points were drawn from.
        points: ``DRAWN`` [n].
        seed: Key of the randomness.
        gsd: Lowest and highest ground sampling distance, meters per pixel.

    Returns:
        Columns of ``tables.POINT``, n rows.
    """
    points = points[_generator(seed, ORDER).permutation(len(points))]
    names = np.array(strata.names, dtype=object)[points['stratum']].reshape(-1, 2)
    low, high = np.log(gsd)
    resolution = np.exp(_generator(seed, GSD).uniform(low, high, len(points)))
    digits = max(MIN_DIGITS, len(str(len(points) - 1)))
    return pd.DataFrame({
        'id': [f'{number:0{digits}d}' for number in range(len(points))],
        'lon': points['lon'], 'lat': points['lat'], 'class': names[:, 0],
        'continent': names[:, 1], 'gsd': resolution.round(3)})


def _generator(*keys: int) -> np.random.Generator:
    return np.random.default_rng(hash_seed(*keys))
