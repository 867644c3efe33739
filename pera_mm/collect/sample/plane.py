"""The equal-area plane of EPSG:6933, in which areas and places of a map are computed.

It belongs to WGS84, the ellipsoid as it is: an area in the plane is the area on the ground, and a
place drawn uniformly in the plane is drawn uniformly per km².
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what PROJ and GDAL raise; not a RasterioError
from rasterio.warp import transform

from pera_mm.errors import UserError

DEGREES, PLANE = 'EPSG:4326', 'EPSG:6933'
WIDTH = 2 * 17367530.445161372  # m, from -180° to 180°


def apply_affine(affine: Any, col: Any, row: Any) -> tuple[Any, Any]:
    """Convert columns and rows to coordinates, or back with the inverse of a raster's affine."""
    a, b, c, d, e, f = affine[:6]
    return a * col + b * row + c, d * col + e * row + f


def to_plane(crs: Any, x: Any, y: Any) -> NDArray[np.float64]:
    """Convert coordinates in any system [...] to the plane, meters [..., 2].

    Raises:
        UserError: if one lies beyond the globe.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if crs.is_geographic:
        y = y.clip(-90, 90)  # global rasters may reach over the poles by half a pixel
    try:
        plane = np.stack(transform(crs, PLANE, x.ravel(), y.ravel()), axis=-1)
    except CPLE_BaseError:
        plane = np.full((1, 2), np.inf)
    if not np.isfinite(plane).all():
        raise UserError(beyond_the_globe(f'a land-cover raster in {crs}'))
    return plane.reshape(*x.shape, 2)


def to_degrees(plane: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Convert points of the plane [..., 2] to longitudes (-180 to 180) and latitudes [...]."""
    lon, lat = transform(PLANE, DEGREES, plane[..., 0].ravel(), plane[..., 1].ravel())
    lon = (np.array(lon) + 180) % 360 - 180
    return lon.reshape(plane.shape[:-1]), np.array(lat).reshape(plane.shape[:-1])


def from_degrees(crs: Any, lon: NDArray, lat: NDArray) -> NDArray[np.float64]:
    """Convert degrees [n] to x and y of any system [2, n]; not a number where that ends."""
    try:
        return np.array(transform(DEGREES, crs, lon, lat))
    except CPLE_BaseError:  # PROJ gives no result at all if a single place fails: bisect
        if len(lon) == 1:
            return np.full((2, 1), math.nan)
        half = len(lon) // 2
        return np.concatenate([from_degrees(crs, lon[:half], lat[:half]),
                               from_degrees(crs, lon[half:], lat[half:])], axis=1)


def unwrap(x: NDArray[np.float64], period: float) -> NDArray[np.float64]:
    """Undo jumps by a period along the first two axes of x.

    Beyond the antimeridian x then continues, and what crosses it stays in one piece.
    """
    for axis in (0, 1):
        x = np.unwrap(x, period=period, axis=axis)
    return x


def boxes_meet(low: NDArray, high: NDArray, west: NDArray, south: NDArray, east: NDArray,
               north: NDArray) -> NDArray[np.bool_]:
    """Whether boxes from low to high [..., 2] meet others, with x around the globe; meters."""
    start, end = low[..., 0], high[..., 0]
    return ((((west - start) % WIDTH < end - start) | ((start - west) % WIDTH < east - west))
            & (south < high[..., 1]) & (low[..., 1] < north))


def beyond_the_globe(what: str) -> str:
    """The message about a raster with pixels that are nowhere on the globe."""
    return (f'{what} reaches beyond the globe; cut it to where its coordinate system holds, or '
            'warp it to EPSG:4326.')
