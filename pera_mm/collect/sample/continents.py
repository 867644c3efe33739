"""The continent of a place: six continents, from Natural Earth (public domain).

``continents.geojson`` is made by tools/data/make_continents.py and states its source, its license
and its choices: Russia is cut at 60° E into Europe and Asia, French Guiana belongs to South
America, Antarctica and the islands of the open ocean are left out.

At 1:110m, coasts are accurate to some ten kilometers and small islands are missing (Malta,
Singapore, the Canaries): places there lie on no continent.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

CONTINENTS = ('africa', 'asia', 'europe', 'north america', 'oceania', 'south america')
FILE = Path(__file__).with_name('continents.geojson')


@cache
def polygons() -> dict[str, BaseGeometry]:
    """Read the land of each continent, in the order of ``CONTINENTS``.

    Returns:
        Name to (multi)polygon in degrees, prepared for queries.
    """
    features = json.loads(FILE.read_text())['features']
    lands = {item['properties']['name']: shape(item['geometry']) for item in features}
    shapely.prepare(list(lands.values()))
    return {name: lands[name] for name in CONTINENTS}


def continent_of(lon: ArrayLike, lat: ArrayLike) -> NDArray[np.int8]:
    """Find the continent of each place.

    Args:
        lon: Degrees, of a shape that broadcasts with that of lat.
        lat: Degrees.

    Returns:
        int8 in their common shape: indices into ``CONTINENTS``, -1 for none.
    """
    lon, lat = np.broadcast_arrays(np.asarray(lon, float), np.asarray(lat, float))
    index = np.full(lon.shape, -1, np.int8)
    for number, land in enumerate(polygons().values()):
        index[shapely.contains_xy(land, lon, lat)] = number
    return index
