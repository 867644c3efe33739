"""Web Mercator (EPSG:3857), the projection of map tiles: pixels, tiles and meters on the ground.

The world is a square picture of ``tile_size * 2^zoom`` pixels a side; x grows to the east from
180° W, y to the south from 85.05° N. The projection treats the Earth as a sphere and is conformal
on it. Therefore a single factor, the cosine of the latitude, converts its meters to meters on the
ground. Those on the ellipsoid differ by up to 0.7 %.

All functions except those on quadkeys take numbers or arrays, which must broadcast.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

EARTH_RADIUS = 6378137.0  # m
HALF_WORLD = np.pi * EARTH_RADIUS  # m: the projection's x and y range from minus to plus this
ROUNDING = 1e-9  # of a zoom
MAX_LATITUDE = float(np.degrees(np.arctan(np.sinh(np.pi))))  # 85.0511 degrees: y = HALF_WORLD


def ground_resolution(lat: ArrayLike, zoom: ArrayLike, tile_size: int = 256) -> NDArray:
    """Compute the meters on the ground that one pixel covers at a latitude."""
    world = tile_size * np.exp2(zoom)  # pixels
    return np.cos(np.radians(lat)) * 2 * HALF_WORLD / world


def zoom_for(gsd: ArrayLike, lat: ArrayLike, tile_size: int = 256) -> NDArray:
    """Find the coarsest zoom whose pixels are at least as fine as ``gsd`` meters on the ground.

    Returns:
        int64; negative where even the whole world does not fill a tile.
    """
    exact = np.log2(ground_resolution(lat, 0, tile_size) / np.asarray(gsd))
    return np.ceil(exact - ROUNDING).astype(np.int64)  # a zoom's own resolution gives that zoom


def to_meters(lon: ArrayLike, lat: ArrayLike) -> tuple[NDArray, NDArray]:
    """Convert degrees to EPSG:3857's x and y in meters; latitudes are clipped to ±85.05°."""
    lat = np.radians(np.clip(lat, -MAX_LATITUDE, MAX_LATITUDE))
    return EARTH_RADIUS * np.radians(lon), EARTH_RADIUS * np.arctanh(np.sin(lat))


def to_lonlat(x: ArrayLike, y: ArrayLike) -> tuple[NDArray, NDArray]:
    """Convert EPSG:3857's x and y in meters to degrees."""
    lon = np.degrees(np.asarray(x) / EARTH_RADIUS)
    return lon, np.degrees(np.arctan(np.sinh(np.asarray(y) / EARTH_RADIUS)))


def to_pixels(lon: ArrayLike, lat: ArrayLike, zoom: ArrayLike,
              tile_size: int = 256) -> tuple[NDArray, NDArray]:
    """Convert degrees to pixels from the upper left corner of a zoom's picture of the world."""
    x, y = to_meters(lon, lat)
    world = tile_size * np.exp2(zoom)
    return (0.5 + x / (2 * HALF_WORLD)) * world, (0.5 - y / (2 * HALF_WORLD)) * world


def flip_row(row: ArrayLike, zoom: ArrayLike) -> NDArray:
    """Convert a tile's row between counts from the south (TMS) and from the north (XYZ)."""
    return 2 ** np.asarray(zoom) - 1 - np.asarray(row)


def to_quadkey(zoom: int, column: int, row: int) -> str:
    """Compute Bing's name of a tile: a digit per zoom, 1 for the east plus 2 for the south."""
    return ''.join(str((column >> bit & 1) + 2 * (row >> bit & 1))
                   for bit in reversed(range(zoom)))


def from_quadkey(quadkey: str) -> tuple[int, int, int]:
    """Return zoom, column and row of the tile with this name."""
    column = row = 0
    for digit in quadkey:
        column = 2 * column + (int(digit) & 1)
        row = 2 * row + (int(digit) >> 1)
    return len(quadkey), column, row
