"""The minimum distance between points: first come, first served."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

EARTH_RADIUS = 6_371_008.8  # m, mean
MIN_BATCH = 4096  # places
NEIGHBORS = 8  # near pairs per place of a batch, about


def far_enough(drawn: NDArray, points: NDArray, distance: float) -> NDArray[np.bool_]:
    """Choose the places that keep a distance from all points and from all places chosen earlier.

    Args:
        drawn: Places with the fields lon and lat, degrees [n]; earlier ones take precedence.
        points: Points with the same fields, all of which stay [m].
        distance: Meters along the sphere.

    Returns:
        bool [n].
    """
    if distance == 0 or not len(drawn):
        return np.ones(len(drawn), bool)
    # Straight through the unit sphere; an angle above pi would give a shorter chord again.
    chord = 2 * np.sin(min(distance / EARTH_RADIUS, np.pi) / 2)
    places, kept = on_sphere(drawn['lon'], drawn['lat']), on_sphere(points['lon'], points['lat'])
    keep = np.zeros(len(drawn), bool)
    size, start = _batch_size(places, chord), 0
    while start < len(places):
        # A batch grows with what is kept, so that the tree of these is built only a few times.
        batch = places[start:start + max(size, 2 * len(kept))]
        new = _far_from(kept, batch, chord)
        new = new[_far_from_earlier(batch[new], chord)]
        keep[start + new] = True
        kept = np.concatenate([kept, batch[new]])
        start += len(batch)
    return keep


def _batch_size(places: NDArray, chord: float) -> int:
    """Compute how many places [n, 3] to compare with each other at once.

    The near pairs of all places could fill the memory. The places come in random order: if the
    first MIN_BATCH have ``pairs`` near pairs, a batch of b places has about
    ``pairs * (b / MIN_BATCH)**2``. These are NEIGHBORS per place for
    ``b = NEIGHBORS * MIN_BATCH**2 / pairs``.
    """
    tree = cKDTree(places[:MIN_BATCH])
    pairs = (tree.count_neighbors(tree, chord) - tree.n) // 2  # it counts (i, i), (i, j) and (j, i)
    pairs += 4  # without a pair, a batch has 34 million places
    return max(MIN_BATCH, int(NEIGHBORS * MIN_BATCH**2 // pairs))


def _far_from(kept: NDArray, places: NDArray, chord: float) -> NDArray[np.int64]:
    """Find the places [n, 3] at least ``chord`` from all kept ones [m, 3]; return indices."""
    if not len(kept):
        return np.arange(len(places))
    nearest, _ = cKDTree(kept).query(places, distance_upper_bound=chord)  # inf: none is as near
    return np.flatnonzero(nearest >= chord)


def _far_from_earlier(places: NDArray, chord: float) -> NDArray[np.bool_]:
    """Whether each place [n, 3] is at least ``chord`` from all earlier ones that stay, [n]."""
    keep = np.ones(len(places), bool)
    pairs = np.sort(cKDTree(places).query_pairs(chord, output_type='ndarray'), axis=1)
    while len(pairs):
        # A place without an earlier neighbor stays, and its later neighbors drop out. Each pass
        # settles at least the first place that is left, mostly a large part of all.
        has_earlier_neighbor = np.zeros(len(places), bool)
        has_earlier_neighbor[pairs[:, 1]] = True
        keep[pairs[~has_earlier_neighbor[pairs[:, 0]], 1]] = False
        pairs = pairs[keep[pairs].all(axis=1)]
    return keep


def on_sphere(lon: NDArray, lat: NDArray) -> NDArray[np.float64]:
    """Convert degrees [n] to points of the unit sphere [n, 3]."""
    lon, lat = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
