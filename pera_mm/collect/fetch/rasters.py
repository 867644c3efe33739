"""A mosaic of local or remote rasters as a source of images."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform, transform_bounds

from pera_mm.collect.common.gdal import find_rasters, opened
from pera_mm.collect.fetch.dates import one_line
from pera_mm.collect.fetch.mercator import EARTH_RADIUS, HALF_WORLD, to_meters
from pera_mm.collect.fetch.sources import POLAR, NotAvailable, check_texts
from pera_mm.datasets.raster_bands import choose_bands
from pera_mm.datasets.reading import Scale, block_bytes, rule_of, to_uint8
from pera_mm.errors import UserError

MAX_BLOCK_BYTES = 1 << 30  # a window needs whole blocks, in every thread
LAST_LONGITUDE = 180.0  # degrees


class MosaicRaster(NamedTuple):
    """The properties of a raster that are known before its pixels are read."""

    path: str
    gsd: float  # m on the ground per pixel at the center
    boxes: list[tuple[float, float, float, float]]  # EPSG:3857 meters; two across the antimeridian
    dtype: str
    turn: float = 0.0  # degrees, added to its longitudes


class RasterSource:
    """A mosaic of rasters in any projections, local or remote COGs; the first valid pixel wins.

    Args:
        name: The source's name in the tables.
        paths: Files, glob patterns, or what GDAL opens (``/vsicurl/https://...``, an address).
            Earlier paths take precedence; the files of a pattern are ordered by name.
        terms, attribution: As in :class:`~pera_mm.collect.fetch.tiles.TileSource`.
        bands: One or three 1-based numbers; None: those tagged red, green and blue, else the first
            three, or the first.
        scale: How pixels are converted to 8 bits, as in :mod:`pera_mm.datasets.reading`: 'auto'
            stretches every image by itself, (low, high) stretches all alike.
        date: The date of the imagery, for the tables.

    Raises:
        UserError: if an argument is missing or wrong, a pattern matches no file, or a raster cannot
            be read, has no georeference, lacks a band, has a palette, differs from the first one
            in its type of pixels, or has internal tiles or strips above 1 GiB.
    """

    def __init__(self, name: str, paths: str | Sequence[str], terms: str, attribution: str,
                 bands: Sequence[int] | None = None, scale: Scale = 'auto',
                 date: str = '') -> None:
        self.name, self.terms, self.attribution = name, terms, attribution
        self.date = one_line(date)
        check_texts(self)
        self.bands, self.scale = rule_of(bands, scale)
        self.rasters = [raster for path in find_rasters(paths, 'paths of the source')
                        for raster in self._inspect(path)]
        first = self.rasters[0]
        for raster in self.rasters:
            if raster.dtype != first.dtype:
                raise UserError(f'The rasters of one source must have the same type of pixels: '
                                f'{first.path} has {first.dtype}, {raster.path} {raster.dtype}.')
        self.boxes = np.array([box for raster in self.rasters for box in raster.boxes])
        self.owners = np.repeat(np.arange(len(self.rasters)),
                                [len(raster.boxes) for raster in self.rasters])

    def _inspect(self, path: str) -> list[MosaicRaster]:
        """Describe a raster; twice if it crosses 180 degrees of longitude, where GDAL cuts it."""
        try:
            with opened(path) as raster:
                if raster.crs is None:
                    raise UserError(f'{path} has no georeference; give it one (gdal_translate '
                                    '-a_srs EPSG:... -a_ullr west north east south).')
                if self.bands and max(self.bands) > raster.count:
                    raise UserError(f'{path} has {raster.count} bands; bands asks for '
                                    f'{max(self.bands)}.')
                block = block_bytes(raster, len(self.bands or (1, 2, 3)))
                if block > MAX_BLOCK_BYTES:
                    height, width = raster.block_shapes[0]
                    raise UserError(f'{path} is stored in blocks of {width} x {height} pixels '
                                    f'({block / 2**30:.1f} GiB), each of which must be decoded '
                                    'whole; tile it (gdal_translate -co TILED=YES).')
                if raster.colorinterp[0] == ColorInterp.palette:
                    raise UserError(f'{path} has a palette; expand it first (gdal_translate '
                                    '-expand rgb).')
                found = MosaicRaster(path, _ground_resolution_of(raster), _boxes_of(raster),
                                     raster.dtypes[0])
                crosses = raster.crs.is_geographic and raster.bounds.right > LAST_LONGITUDE
                return [found, found._replace(turn=-360.0)] if crosses else [found]
        except rasterio.errors.RasterioError as error:
            raise UserError(f'{path} cannot be read as a raster: {error}') from None

    def render(self, lon: float, lat: float, gsd: float,
               size: int) -> tuple[NDArray[np.uint8], float]:
        """Render an image around a place.

        Pixels that no raster has are black. The raster that has the pixel in the middle, or else
        most of the pixels, decides on the resolution if it is coarser than ``gsd``.

        Args:
            lon, lat: The center in degrees.
            gsd: m on the ground per pixel.
            size: Pixels of a side.

        Returns:
            uint8 ``[size, size, 3]`` and its resolution in m on the ground per pixel.

        Raises:
            NotAvailable: if no raster has a pixel there, or the image reaches beyond ±85.05°.
        """
        x, y = (float(meters) for meters in to_meters(lon, lat))
        stretch = 1 / math.cos(math.radians(lat))  # m of the projection per m on the ground
        touching = self._touching(x, y, gsd * stretch * size / 2)
        gsd = max(gsd, min((self.rasters[index].gsd for index in touching), default=gsd))
        while True:  # gsd grows: at most once per resolution of the rasters
            half = gsd * stretch * size / 2
            if abs(y) + half > HALF_WORLD:
                raise NotAvailable(POLAR)
            pixels, owners = self._mosaic(x - half, y + half, gsd * stretch, size)
            if (owners < 0).all():
                raise NotAvailable('lies outside of the rasters')
            decisive = owners[size // 2, size // 2]
            if decisive < 0:
                decisive = np.bincount(owners[owners >= 0]).argmax()
            if self.rasters[decisive].gsd <= gsd:
                return self._as_image(pixels, owners >= 0), gsd
            gsd = self.rasters[decisive].gsd

    def read(self, left: float, top: float, resolution: float,
             size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read a square of the Web Mercator plane.

        Args:
            left, top: The upper left corner in m of EPSG:3857.
            resolution: m of EPSG:3857 per pixel.
            size: Pixels of a side.

        Returns:
            uint8 ``[size, size, 3]``, black where no raster has a pixel, and a mask
            ``[size, size]`` of the pixels that a raster has.
        """
        pixels, owners = self._mosaic(left, top, resolution, size)
        return self._as_image(pixels, owners >= 0), owners >= 0

    def _mosaic(self, left: float, top: float, resolution: float,
                size: int) -> tuple[NDArray, NDArray[np.int32]]:
        """Read pixels ``[bands, size, size]`` and the index of the raster of each, -1 for none."""
        place = dict(crs='EPSG:3857', transform=Affine(resolution, 0, left, 0, -resolution, top),
                     width=size, height=size, resampling=Resampling.cubic)
        owners = np.full((size, size), -1, np.int32)
        pixels = None
        half = resolution * size / 2
        for index in self._touching(left + half, top - half, half):
            found, is_there = self._warp(self.rasters[index], place)
            new = is_there & (owners < 0)
            pixels = np.zeros_like(found) if pixels is None else pixels
            pixels[:, new] = found[:, new]
            owners[new] = index
            if (owners >= 0).all():
                break
        return np.zeros((1, size, size), np.uint8) if pixels is None else pixels, owners

    def _warp(self, known: MosaicRaster,
              place: dict[str, Any]) -> tuple[NDArray, NDArray[np.bool_]]:
        with opened(known.path) as raster:
            has_alpha = ColorInterp.alpha in raster.colorinterp
            opacity = raster.colorinterp.index(ColorInterp.alpha) + 1 if has_alpha else None
            bands = self.bands or choose_bands(raster, opacity)
            if known.turn:
                at = raster.transform
                place = place | dict(
                    src_transform=Affine(at.a, at.b, at.c + known.turn, at.d, at.e, at.f))
            with WarpedVRT(raster, add_alpha=not has_alpha, **place) as square:
                found = square.read(bands)
                alpha = square.colorinterp.index(ColorInterp.alpha) + 1
                return found, (square.read(alpha) > 0) & np.isfinite(found).all(axis=0)

    def _as_image(self, pixels: NDArray, valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        if not valid.any():
            return np.zeros((*valid.shape, 3), np.uint8)
        rgb = to_uint8(pixels, valid, self.scale)
        return np.ascontiguousarray(np.broadcast_to(rgb, (3, *valid.shape)).transpose(1, 2, 0))

    def _touching(self, x: float, y: float, half: float) -> list[int]:
        """List the rasters that a square touches, also across the antimeridian, by index."""
        left, bottom, right, top = self.boxes.T
        touching = np.zeros(len(self.boxes), bool)
        for turn in (-2 * HALF_WORLD, 0, 2 * HALF_WORLD):
            touching |= ((left <= x + turn + half) & (right >= x + turn - half)
                         & (bottom <= y + half) & (top >= y - half))
        return sorted(set(self.owners[touching].tolist()))


def _ground_resolution_of(raster: rasterio.DatasetReader) -> float:
    """Compute the meters on the ground per pixel at the center: the root of a pixel's area."""
    column, row = raster.width / 2, raster.height / 2
    # One pixel to the east and one to the south; larger steps would leave small rasters.
    x, y = raster.xy([row, row, row + 1], [column, column + 1, column], offset='ul')
    lon, lat = np.radians(transform(raster.crs, 'EPSG:4326', x, y))
    east = (lon[1:] - lon[0]) * np.cos(lat[0]) * EARTH_RADIUS
    north = (lat[1:] - lat[0]) * EARTH_RADIUS
    return float(np.sqrt(abs(east[0] * north[1] - east[1] * north[0])))


def _boxes_of(raster: rasterio.DatasetReader) -> list[tuple[float, float, float, float]]:
    """Compute left, bottom, right and top in m of EPSG:3857; two boxes at the antimeridian."""
    west, south, east, north = transform_bounds(raster.crs, 'EPSG:4326', *raster.bounds)
    pairs = [(west, east)] if west <= east else [(west, LAST_LONGITUDE), (-LAST_LONGITUDE, east)]
    boxes = []
    for first, last in pairs:
        (left, right), (bottom, top) = to_meters([first, last], [south, north])
        boxes.append((left, bottom, right, top))
    return boxes
