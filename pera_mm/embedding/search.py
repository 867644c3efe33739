"""Exact search in a table of vectors by their cosine, block by block.

Shapes: N rows of the table, D numbers of a vector. Memory does not grow with N, but for a few bytes
per row.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pera_mm.embedding.table import LON_LAT, Vectors, geo_package
from pera_mm.errors import MissingFileError, UserError

BLOCK = 16_384  # rows that are compared with one query
PAIR_BLOCK = 2048  # rows that are compared with as many others
REFERENCES = 20_000  # rows among which an outlier has no neighbors
NEIGHBORS = 10

Progress = Callable[[int], None]


class Found(NamedTuple):
    """Rows of a table, each with a cosine in [-1, 1]."""

    ids: np.ndarray  # int64 [n]
    scores: np.ndarray  # float32 [n]


class Duplicates(NamedTuple):
    """Rows that repeat another row, which is not itself among them."""

    ids: np.ndarray  # int64 [n], rising
    originals: np.ndarray  # int64 [n], the earlier row that each is most like
    scores: np.ndarray  # float32 [n], their cosine


def nearest(vectors: Vectors, query: Tensor, count: int, without: Sequence[int] = (),
            progress: Progress = lambda rows: None) -> Found:
    """Find the rows that are most like a query, the best first; of equal ones the first rows.

    Args:
        vectors: the table.
        query: ``[D]``, of any length but 0.
        count: how many to find; there may be fewer.
        without: ids that are left out.
        progress: is called with the number of rows that are done.
    """
    query = query.float() / query.float().norm()
    left_out = torch.tensor(sorted(without), dtype=torch.int64)
    scores, ids = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for start, block in vectors.blocks(BLOCK):
        cosines = block @ query
        here = left_out[(left_out >= start) & (left_out < start + len(block))]
        cosines[here - start] = -torch.inf
        scores = torch.cat([scores, cosines])
        ids = torch.cat([ids, torch.arange(start, start + len(block))])
        best = scores.argsort(descending=True, stable=True)[:count]
        scores, ids = scores[best], ids[best]
        progress(len(block))
    kept = scores > -torch.inf
    return Found(ids[kept].numpy(), scores[kept].numpy())


def duplicates(vectors: Vectors, threshold: float,
               progress: Progress = lambda rows: None) -> Duplicates:
    """Find the rows to leave out, so that no two of the others reach a cosine of ``threshold``.

    In the order of the table, a row is kept unless it reaches the threshold with a row that is
    kept. Every pair of rows is compared: N * N * D operations.

    Args:
        vectors: the table.
        threshold: in (-1, 1].
        progress: is called with the number of rows that are done.
    """
    kept = torch.ones(len(vectors), dtype=torch.bool)
    ids, originals, scores = [], [], []
    for start, block in vectors.blocks(PAIR_BLOCK):
        best, whose = torch.full((len(block), ), -torch.inf), torch.zeros(len(block)).long()
        for before, earlier in vectors.blocks(PAIR_BLOCK, stop=start):
            others = torch.where(kept[before:before + len(earlier)])[0]
            if len(others):
                _update(best, whose, block @ earlier[others].t(), others + before)
        within = block @ block.t()
        fresh = _first_of_their_kind(within, best < threshold, threshold)
        others = torch.where(fresh)[0]
        if len(others):
            not_before = torch.arange(len(block)).unsqueeze(1) <= others  # [n, others]
            _update(best, whose, within[:, others].masked_fill_(not_before, -torch.inf),
                    others + start)
        dropped = torch.where(~fresh)[0]
        kept[start:start + len(block)] = fresh
        ids.append(dropped + start)
        originals.append(whose[dropped])
        scores.append(best[dropped])
        progress(len(block))
    return Duplicates(*(torch.cat(parts).numpy() for parts in (ids, originals, scores)))


def _update(best: Tensor, whose: Tensor, cosines: Tensor, ids: Tensor) -> None:
    """Note in place the best of new cosines ``[n, m]`` with the rows ``ids`` ``[m]``."""
    found, place = cosines.max(dim=1)
    better = found > best
    best[better], whose[better] = found[better], ids[place[better]]


def _first_of_their_kind(cosines: Tensor, fresh: Tensor, threshold: float) -> Tensor:
    """Keep each row that reaches the threshold with no row kept before it: bool ``[n]``."""
    alike, fresh = (cosines >= threshold).numpy(), fresh.numpy().copy()
    for row in range(len(fresh)):
        if fresh[row]:
            fresh[row + 1:] &= ~alike[row, row + 1:]
    return torch.from_numpy(fresh)


def outliers(vectors: Vectors, count: int, progress: Progress = lambda rows: None) -> Found:
    """Find the rows that are least like any others, the strangest first.

    The score of a row is its mean cosine with its ten nearest neighbors among 20,000 other rows,
    which are spread evenly over the table (all, if there are no more).

    Args:
        vectors: the table.
        count: how many to find.
        progress: is called with the number of rows that are done.

    Raises:
        ValueError: if the table has fewer than two rows.
    """
    if len(vectors) < 2:
        raise UserError(f'{vectors.path} has {len(vectors)} row(s), but outliers need others.')
    chosen = np.unique(np.linspace(0, len(vectors) - 1, REFERENCES).round().astype(np.int64))
    references = torch.cat([block[torch.from_numpy(
        chosen[(chosen >= start) & (chosen < start + len(block))] - start)]
        for start, block in vectors.blocks(BLOCK)])
    places = torch.from_numpy(chosen)
    neighbors = min(NEIGHBORS, len(references) - 1)
    scores = []
    for start, block in vectors.blocks(PAIR_BLOCK):
        cosines = block @ references.t()  # [n, references]
        itself = torch.where((places >= start) & (places < start + len(block)))[0]
        cosines[places[itself] - start, itself] = -torch.inf
        scores.append(cosines.topk(neighbors, dim=1).values.mean(dim=1))
        progress(len(block))
    every = torch.cat(scores)
    ids = every.argsort(stable=True)[:count]
    return Found(ids.numpy(), every[ids].numpy())


def within_polygons(vectors: Vectors, file: Path) -> tuple[np.ndarray, Tensor]:
    """Find the rows whose places touch the polygons of a file.

    Args:
        vectors: a table with places.
        file: GeoPackage, GeoJSON, GeoParquet or whatever geopandas reads, in any CRS.

    Returns:
        Their ids, and the mean of their vectors, each of length 1: ``[D]``.

    Raises:
        ValueError: if the table has no places, the file cannot be read or has no CRS, or no row
            touches the polygons.
    """
    shapely = geo_package('shapely')
    if not vectors.has_places:
        raise UserError(f'{vectors.path} has no places, so polygons say nothing about its rows: '
                        'give an image or the id of a row.')
    area = _area_of(file)
    ids, total = [], torch.zeros(vectors.width)
    for start, places, block in vectors.places(BLOCK):
        inside = np.flatnonzero(shapely.intersects(area, shapely.from_wkb(places)))
        ids.append(inside + start)
        total += block[torch.from_numpy(inside)].sum(dim=0)
    found = np.concatenate(ids)
    if not len(found):
        raise UserError(f'no row of {vectors.path} touches the polygons of {file}: is it of the '
                        'same region?')
    return found, total / len(found)


def _area_of(file: Path) -> object:
    geopandas, shapely = geo_package('geopandas'), geo_package('shapely')
    geo_package('pyogrio')
    if not file.is_file():
        raise MissingFileError(f'There is no file {file}: give the id of a row, an image or a file '
                               'of polygons.')
    try:
        read = geopandas.read_parquet if file.suffix == '.parquet' else geopandas.read_file
        polygons = read(file)
    except Exception as error:  # GDAL and Arrow raise anything
        raise UserError(f'{file} cannot be read as polygons ({str(error).splitlines()[0]}): give '
                        'GeoPackage, GeoJSON or another vector file.') from None
    if polygons.crs is None:
        raise UserError(f'{file} has no CRS, so nobody knows where its polygons lie: assign one.')
    area = shapely.make_valid(polygons.to_crs(LON_LAT).union_all())
    shapely.prepare(area)
    return area
