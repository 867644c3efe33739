"""Step 1: random points over the continents, balanced by land cover (paper §3.1, Figure 3).

A *stratum* is one class of land cover on one continent. The *census* measures the area of every
stratum in every window of the map; quotas say how many points each stratum gets. Points are then
drawn uniformly per km² of their stratum: a window by its share of the stratum's area, a square of
the map by its own, a place within it. Points nearer than ``min_distance`` to an earlier one are
left out and drawn again.

The map is worked on in *parts*, up to 64 windows of one raster. The census of each part and the
places drawn in it are written at once (``census/``, ``draws/``), so that a stopped step continues
where it was, even within a raster that holds the whole globe. Everything random depends on the
seed and on the order of the rasters' paths alone, not on threads or on stops.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pera_mm.collect.common.gdal import is_remote
from pera_mm.collect.common.settings import is_number, is_whole
from pera_mm.collect.common.tables import log
from pera_mm.collect.sample.continents import CONTINENTS
from pera_mm.collect.sample.figure import draw_map
from pera_mm.collect.sample.landcover import LandCover, Raster
from pera_mm.collect.sample.points import BARREN_ROUNDS, MAX_ROUNDS, draw, points_table
from pera_mm.collect.sample.strata import Strata, census, strata_quotas
from pera_mm.errors import UserError
from pera_mm.files import write_whole

SUM_TOLERANCE = 1e-6  # of the shares


def sample(folder: Path, seed: int, *, landcover: Mapping[str, Any], total: int,
           shares: Mapping[str, float], continents: Mapping[str, float] | None,
           min_distance: float, gsd: Sequence[float], counts: Mapping[str, int] | None = None,
           workers: int = 4) -> dict[str, Any]:
    """Draw ``points.csv`` and its map ``points.png``.

    Args:
        folder: The work folder.
        seed: The same seed, settings and map give the same files.
        landcover: The arguments of :class:`~pera_mm.collect.sample.landcover.LandCover`.
        total: Points that ``shares`` divide.
        shares: Class to share of ``total``; they sum to 1.
        continents: Continent to weight: one with 2 gets twice the points of one with 1. Those not
            named get none. Where a class does not occur or has no room on a continent, the others
            get its points. None: the whole map counts, on a continent or not.
        min_distance: Between any two points, meters on the sphere.
        gsd: Lowest and highest ground sampling distance, meters per pixel; every point gets one,
            uniform in its logarithm: as many from 0.3 to 1 as from 3 to 10.
        counts: Class to points besides ``total``.
        workers: Parts of the map read at once.

    Returns:
        points, asked: numbers; table: asked, got and the area in km² by class and continent.

    Raises:
        UserError: if a setting is wrong, a class or continent does not occur on the map, or
            ``points.csv`` exists and is not of these settings.
    """
    _check(seed, landcover, total, shares, counts or {}, continents, min_distance, gsd, workers)
    with closing(LandCover(**landcover)) as land:
        for name in (*shares, *(counts or {})):
            if name not in land.classes:
                raise UserError(f'the class {name!r} is not in the legend of the land cover; it '
                                f'has {", ".join(land.classes)}.')
        ground = [[[raster.path, _file_states(raster)] for raster in land.rasters],
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
    table = points_table(strata, points, seed, gsd)
    summary = _summary(strata, areas, quotas, points, is_full)
    text = table.to_csv(index=False, lineterminator='\n').encode()
    write_whole(folder / 'points.png', draw_map(table))
    note = dict(sha256=hashlib.sha256(text).hexdigest(), summary=summary)
    write_whole(draws / 'done.json', json.dumps(note).encode())
    write_whole(folder / 'points.csv', text)  # the last: with it the step is finished
    for part in draws.glob('*.npy'):
        part.unlink()
    return summary


# -- settings ------------------------------------------------------------------------------------


def _check(seed: int, landcover: Mapping[str, Any], total: int, shares: Mapping[str, float],
           counts: Mapping[str, int], continents: Mapping[str, float] | None,
           min_distance: float, gsd: Sequence[float], workers: int) -> None:
    _check_number('seed', seed, 'a whole number', is_whole)
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
    if total and abs(sum(shares.values()) - 1) > SUM_TOLERANCE:
        raise UserError(f'the shares sum to {sum(shares.values()):g}, not to 1: '
                        f'{", ".join(f"{name} {share:g}" for name, share in shares.items())}.')
    for name, count in counts.items():
        _check_number(f'counts[{name!r}]', count, 'a number of points', _is_count)
    if not total and not any(counts.values()):
        raise UserError('no point is asked for: total and counts are 0.')
    if continents is not None:
        _check_continents(continents)
    _check_number('min_distance', min_distance, '0 or more meters', lambda it: it >= 0)
    if not isinstance(gsd, Sequence) or len(gsd) != 2 or not all(map(is_number, gsd)) \
            or not 0 < gsd[0] <= gsd[1]:
        raise UserError('gsd must be the lowest and the highest meters per pixel, e.g. '
                        f'(0.3, 10), got {gsd!r}.')
    _check_number('workers', workers, 'a whole number from 1',
                  lambda it: is_whole(it) and it >= 1)


def _check_continents(continents: Mapping[str, float]) -> None:
    _check_names('continents', continents, "{'asia': 2, 'africa': 1}, or None for the whole map")
    if not continents:
        raise UserError('continents is empty; name some with their weights, or None for the '
                        'whole map.')
    for name, weight in continents.items():
        if name not in CONTINENTS:
            raise UserError(f'the continent {name!r} is unknown; the names are '
                            f'{", ".join(CONTINENTS)}.')
        _check_number(f'continents[{name!r}]', weight,
                      'above 0 (leave a continent out to get no points there)', lambda it: it > 0)


def _check_number(setting: str, value: Any, what: str, is_valid: Callable[[Any], bool]) -> None:
    """Refuse a value that is not a finite number, or not a valid one."""
    if not is_number(value) or not is_valid(value):
        raise UserError(f'{setting} must be {what}, got {value!r}.')


def _is_count(value: float) -> bool:
    """Whether a finite number counts something; 5e6 does."""
    return value >= 0 and value == int(value)


def _check_names(setting: str, value: Any, example: str) -> None:
    if not isinstance(value, Mapping):
        raise UserError(f'{setting} must be a dictionary, e.g. {example}, got {value!r}.')


# -- earlier runs --------------------------------------------------------------------------------


def _file_states(raster: Raster) -> list[tuple[str, int, int]]:
    """List path, size and time of each local file of a raster: they show that one was replaced."""
    local = [name for name in raster.files if not is_remote(name) and os.path.exists(name)]
    states = map(os.stat, local)
    return [(name, state.st_size, state.st_mtime_ns) for name, state in zip(local, states)]


def _digest(settings: Any) -> str:
    text = json.dumps(settings, default=dict)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _finished_before(folder: Path, draws: Path) -> dict[str, Any]:
    """The summary of a step that had ended; a ``points.csv`` of other origin is not replaced."""
    done, file = draws / 'done.json', folder / 'points.csv'
    if done.exists():
        note = json.loads(done.read_text())
        if hashlib.sha256(file.read_bytes()).hexdigest() == note['sha256']:
            log.info('%s exists already, with these settings', file)
            return note['summary']
    raise UserError(f'{file} exists and was not drawn with these settings and this map; later '
                    'steps know its points by their ids, so take another work folder, or remove '
                    'this one.')


# -- summary -------------------------------------------------------------------------------------


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
                        f'the last {BARREN_ROUNDS} rounds found no room for more on its '
                        f'{km2:g} km²' if is_full[number]
                        else f'the {MAX_ROUNDS} rounds of drawing ended')
    return dict(points=len(points), asked=int(quotas.sum()), table=table)
