"""Where images come from: tile servers and local rasters. None is preset; the user names them.

Both kinds give one square image of ``size`` pixels around a place, north up, on the Web Mercator
plane, scaled by the cosine of the latitude so that a pixel covers ``gsd`` metres on the ground.
Where a source is coarser than that, its own resolution is given, and said to be what was got.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np
import rasterio
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from rasterio import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform, transform_bounds

from pera_mm.collect.common.gdal import find_rasters, opened
from pera_mm.collect.common.settings import is_number, is_whole
from pera_mm.collect.fetch.mercator import (
    EARTH_RADIUS,
    HALF_WORLD,
    MAX_LATITUDE,
    flip_row,
    ground_resolution,
    to_metres,
    to_pixels,
    to_quadkey,
    zoom_for,
)
from pera_mm.datasets.reading import Scale, block_bytes, check_rule, to_uint8
from pera_mm.errors import UserError

POLAR = f'reaches beyond {MAX_LATITUDE:.2f} degrees of latitude, where Web Mercator ends'
DATE = re.compile(r'[A-Za-z0-9][A-Za-z0-9 ,:/.+-]{0,63}')  # of a server
MAX_DATES = 256  # characters of an image's dates
MAX_BLOCK_BYTES = 1 << 30  # of a raster: a window needs whole blocks, in every thread
MAX_ZOOM = 28  # columns and rows of tiles are packed into 28 bits
MAX_SHRINKING = 8.0  # beyond it one image needs hundreds of tiles
KERNEL_RADIUS = 2  # of Pillow's bicubic filter, in pixels of the result

# What a URL template can hold, and the sets of which it must hold one.
PLACES = ('z', 'x', 'y', '-y', 'quadkey', 'TileMatrix', 'TileRow', 'TileCol', 's', 'key')
PROTOCOLS = {
    'XYZ': {'z', 'x', 'y'},
    'TMS': {'z', 'x', '-y'},
    'Bing': {'quadkey'},
    'WMTS': {'TileMatrix', 'TileRow', 'TileCol'},
}


class Refused(Exception):
    """What a source does not have and will not have; the text is the reason."""


class Tile(NamedTuple):
    """A tile's place; rows count from the north."""

    zoom: int
    column: int
    row: int

    def __str__(self) -> str:
        return f'{self.zoom}/{self.column}/{self.row}'


class Square(NamedTuple):
    """Squares on the pixels of a zoom: one, or arrays of them.

    Attributes:
        zoom: Whose picture of the world is meant.
        gsd: m on the ground per pixel of the result.
        left, top: The upper left corner in the picture; it may lie west of the picture's edge.
        side: Pixels of the picture that a side covers.
        west, north, east, south: First and last column and row of the tiles it is made from.
            A column may lie outside the world: it goes round.
        reason: Why it cannot be had; '' where it can.
    """

    zoom: Any
    gsd: Any
    left: Any
    top: Any
    side: Any
    west: Any
    north: Any
    east: Any
    south: Any
    reason: Any

    def one(self, index: int) -> 'Square':
        """One of many."""
        return Square(*(column.item(index) for column in self))

    def tiles(self) -> list[Tile]:
        """The tiles in rows from the north-west; for a single square."""
        columns = [column % 2 ** self.zoom for column in range(self.west, self.east + 1)]
        return [Tile(self.zoom, column, row)
                for row in range(self.north, self.south + 1) for column in columns]


@dataclass(frozen=True)
class TileSource:
    """A server of map tiles; the template of its addresses says which protocol it speaks.

    Args:
        name: As it stands in the tables.
        url: http(s) address with the places of one protocol: ``{z} {x} {y}`` (XYZ),
            ``{z} {x} {-y}`` (TMS: rows from the south), ``{quadkey}`` (Bing),
            ``{TileMatrix} {TileRow} {TileCol}`` (WMTS on the Web Mercator matrix set, whose
            identifiers are zooms, perhaps behind a prefix; RESTful or with ?SERVICE=WMTS&...).
            Besides: ``{s}``, one of ``subdomains``, and ``{key}``.
        terms: What its use is bound to, in words or by address: shown before the first request.
        attribution: Whom the images are to be credited to.
        zooms: First and last zoom that are served.
        tile_size: Pixels of a tile's side.
        rate: Requests per second and host.
        key_env: Environment variable that holds the key, for ``{key}`` in ``url`` or ``headers``.
        subdomains: For ``{s}``, e.g. ('a', 'b', 'c').
        headers: Sent with every request, e.g. a User-Agent that names you.
        date: The imagery's date, for the tables.
        date_header: Header of the answers that tells the imagery's date, instead of ``date``. What
            cannot be a date is left out: only letters, digits, spaces and ``,:/.+-`` in ASCII are,
            at most 64, the first a letter or a digit.
        no_tile: HTTP statuses that say: here is no tile, and there will be none. Some stores say
            403.
        scale: (low, high), what becomes 0 and 255 of pixels that are not 8-bit, as in
            :mod:`pera_mm.datasets.reading`; None: all are 8-bit.
        placeholders: A folder of tiles that say "no imagery", as the server sends them: tiles that
            look so are none.

    Raises:
        ValueError: if something is missing or makes no sense, with what to do.
    """

    name: str
    url: str
    terms: str
    attribution: str
    zooms: tuple[int, int]
    tile_size: int = 256
    rate: float = 10.0
    key_env: str | None = None
    subdomains: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    date: str = ''
    date_header: str | None = None
    no_tile: Sequence[int] = (204, 404, 410)
    scale: Scale | None = None
    placeholders: str | None = None

    def __post_init__(self) -> None:
        check_texts(self)
        self._check_types()
        self._check_url()
        object.__setattr__(self, 'date', one_line(self.date))

    def _check_types(self) -> None:
        def check(name: str, is_good: bool, what: str) -> None:
            if not is_good:
                raise UserError(f'{name} of the source {self.name!r} must be {what}, got '
                                f'{getattr(self, name)!r}.')

        zooms = _as_list(self.zooms)
        check('zooms', len(zooms) == 2 and all(map(is_whole, zooms)) and sorted(zooms) == zooms
              and zooms[0] >= 0 and zooms[1] <= MAX_ZOOM,
              f'(first, last) in whole numbers with 0 <= first <= last <= {MAX_ZOOM}')
        check('tile_size', is_whole(self.tile_size) and self.tile_size > 0,
              'a positive whole number of pixels')
        check('rate', is_number(self.rate) and self.rate > 0, 'a positive number')
        for name in ('key_env', 'date_header'):
            value = getattr(self, name)
            check(name, value is None or _is_token(value), 'a name, or None')
        check('subdomains', isinstance(self.subdomains, str)
              or all(isinstance(name, str) for name in _as_list(self.subdomains, [None])),
              "texts, e.g. ('a', 'b', 'c')")
        check('headers', isinstance(self.headers, Mapping)
              and all(_is_token(name) and _is_header(text) for name, text in self.headers.items()),
              "names with texts in ASCII, e.g. {'User-Agent': 'me@example.org'}")
        check('no_tile', all(is_whole(status) and 200 < status < 600
                             for status in _as_list(self.no_tile, [None])),
              'HTTP statuses other than 200, e.g. (204, 404, 410)')
        scale = _as_list(self.scale)
        check('scale', self.scale is None or len(scale) == 2 and all(map(is_number, scale))
              and scale[0] < scale[1], '(low, high) with low < high, or None: tiles that are '
              'stretched one by one do not fit together')

    def _check_url(self) -> None:
        if not _has_host(self.url):
            raise UserError(f'url of the source {self.name!r} must start with http:// or '
                            'https:// and a host, perhaps with a port up to 65535, got '
                            f'{self.url!r}.')
        places = set(re.findall(r'\{(.*?)\}', self.url))
        if unknown := sorted(places.difference(PLACES)):
            raise UserError(f'url of the source {self.name!r} has the place {{{unknown[0]}}}; '
                            f'known are {", ".join(f"{{{name}}}" for name in PLACES)}.')
        if places - {'s', 'key'} not in PROTOCOLS.values():
            raise UserError(
                f'url of the source {self.name!r} must have the places of one protocol: '
                '{z} {x} {y} (XYZ), {z} {x} {-y} (TMS), {quadkey} (Bing) or {TileMatrix} {TileRow} '
                f'{{TileCol}} (WMTS), got {self.url!r}.')
        if ('s' in places) != bool(self.subdomains):
            raise UserError(f'The source {self.name!r} needs both {{s}} in its url and '
                            'subdomains, or neither.')
        needs_key = 'key' in places or any('{key}' in text for text in self.headers.values())
        if needs_key != bool(self.key_env):
            raise UserError(f'The source {self.name!r} needs both {{key}} in its url or headers '
                            'and key_env, the environment variable with the key, or neither.')

    def key(self) -> str:
        """The key out of the environment; '' for a source without.

        Raises:
            ValueError: if the environment has none.
        """
        if self.key_env is None:
            return ''
        if not (key := os.environ.get(self.key_env, '').strip()):
            raise UserError(f'The source {self.name!r} needs a key: put it into the environment '
                            f'variable {self.key_env}.')
        if not (key.isascii() and key.isprintable()):
            raise UserError(f'The environment variable {self.key_env} holds a character that no '
                            'key has.')
        return key

    def address(self, tile: Tile, key: str) -> str:
        """Where a tile is asked for."""
        return self._fill_in(tile, quote(key, safe=''))

    def host(self, tile: Tile) -> str:
        """The host, and port, that has a tile, to be told: without a key, user or password."""
        return urlsplit(self._fill_in(tile, '***')).netloc.rpartition('@')[2]

    def _fill_in(self, tile: Tile, key: str) -> str:
        zoom, column, row = tile
        values = {
            'z': zoom, 'x': column, 'y': row, '-y': flip_row(row, zoom),
            'quadkey': to_quadkey(*tile),
            'TileMatrix': zoom, 'TileRow': row, 'TileCol': column,
            's': self.subdomains[(column + row) % len(self.subdomains)] if self.subdomains else '',
            'key': key,
        }
        return re.sub(r'\{(.*?)\}', lambda place: str(values[place[1]]), self.url)

    def squares(self, lon: ArrayLike, lat: ArrayLike, gsd: ArrayLike, size: int) -> Square:
        """Choose the zoom and the tiles of images.

        Args:
            lon, lat: Centres in degrees ``[n]``.
            gsd: m on the ground per pixel ``[n]``.
            size: Pixels of an image's side.

        Returns:
            Arrays ``[n]``.
        """
        lon, lat, gsd = (np.asarray(column, float) for column in (lon, lat, gsd))
        zoom = np.clip(zoom_for(gsd, lat, self.tile_size), *self.zooms)
        native = ground_resolution(lat, zoom, self.tile_size)
        shrinking = np.maximum(gsd / native, 1.0)  # 1: only the finest zoom is coarser than gsd
        side = size * shrinking
        x, y = to_pixels(lon, lat, zoom, self.tile_size)
        left, top = x - side / 2, y - side / 2
        # Pixels that need not shrink are taken as they are: the centre moves by up to half a pixel.
        whole = shrinking == 1
        left, top = np.where(whole, np.rint(left), left), np.where(whole, np.rint(top), top)

        # The filter of an outer pixel, centred half a pixel inside, looks beyond the square.
        reach = np.where(whole, 0, (KERNEL_RADIUS - 0.5) * shrinking)
        last = np.exp2(zoom) - 1  # column and row
        west, north = (np.floor((edge - reach) / self.tile_size) for edge in (left, top))
        east, south = (np.ceil((edge + side + reach) / self.tile_size) - 1 for edge in (left, top))

        polar = (top < 0) | (top + side > (last + 1) * self.tile_size)
        many = f'needs over {MAX_SHRINKING:.0f} x {MAX_SHRINKING:.0f} times its pixels: the ' \
               f'coarsest zoom, {self.zooms[0]}, is too fine'
        reasons = np.array(['', POLAR, many], object)
        reason = reasons[np.where(polar, 1, np.where(shrinking > MAX_SHRINKING, 2, 0))]
        return Square(zoom, native * shrinking, left, top, side, west.astype(int),
                      np.maximum(north, 0).astype(int), east.astype(int),
                      np.minimum(south, last).astype(int), reason)

    def assemble(self, square: Square, tiles: Sequence[NDArray[np.uint8]],
                 size: int) -> Image.Image:
        """Put the tiles of a square together and cut it out, antialiased.

        Args:
            square: A single one.
            tiles: Those of ``square.tiles()``, in that order, each ``[tile_size, tile_size, 3]``.
            size: Pixels of the result's side.
        """
        columns = square.east - square.west + 1
        rows = [np.concatenate(tiles[start:start + columns], axis=1)
                for start in range(0, len(tiles), columns)]
        left = square.left - square.west * self.tile_size
        top = square.top - square.north * self.tile_size
        return Image.fromarray(np.concatenate(rows)).resize(
            (size, size), Image.Resampling.BICUBIC,
            box=(left, top, left + square.side, top + square.side))


class Raster(NamedTuple):
    """What is known of a raster before it is read."""

    path: str
    gsd: float  # m on the ground that a pixel covers at the centre
    boxes: list[tuple[float, float, float, float]]  # EPSG:3857 metres; two across the antimeridian
    dtype: str
    turn: float = 0.0  # added to its longitudes


class RasterSource:
    """A mosaic of rasters in any projections, local or remote COGs; the first valid pixel wins.

    Args:
        name: As it stands in the tables.
        paths: Files, glob patterns, or what GDAL opens (``/vsicurl/https://...``, an address);
            the order of the list, and within a pattern that of the names, is that of precedence.
        terms, attribution: As of :class:`TileSource`.
        bands: One or three 1-based numbers; None: the first three, or the first.
        scale: How pixels that are not 8-bit become so, as in :mod:`pera_mm.datasets.reading`:
            'auto' stretches every image by itself, (low, high) all alike.
        date: The imagery's date, for the tables.

    Raises:
        ValueError: if something is missing or makes no sense, a pattern finds no file, or a raster
            cannot be read, has no georeference, lacks a band, has a palette, other pixels than the
            first one, or internal tiles or strips above 1 GiB.
    """

    def __init__(self, name: str, paths: str | Sequence[str], terms: str, attribution: str,
                 bands: Sequence[int] | None = None, scale: Scale = 'auto',
                 date: str = '') -> None:
        self.name, self.terms, self.attribution = name, terms, attribution
        self.date = one_line(date)
        check_texts(self)
        self.bands = None if bands is None else tuple(bands)
        self.scale = scale
        check_rule(self.bands, scale)
        self.rasters = [raster for path in find_rasters(paths, 'paths of the source')
                        for raster in self._look_at(path)]
        first = self.rasters[0]
        for raster in self.rasters:
            if raster.dtype != first.dtype:
                raise UserError(f'The rasters of one source must have the same type of pixels: '
                                f'{first.path} has {first.dtype}, {raster.path} {raster.dtype}.')
        self.boxes = np.array([box for raster in self.rasters for box in raster.boxes])
        self.owners = np.repeat(np.arange(len(self.rasters)),
                                [len(raster.boxes) for raster in self.rasters])

    def _look_at(self, path: str) -> list[Raster]:
        """The raster; twice if its longitudes go on beyond 180, where GDAL would end it."""
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
                found = Raster(path, _ground_resolution_of(raster), _boxes_of(raster),
                               raster.dtypes[0])
                goes_on = raster.crs.is_geographic and raster.bounds.right > 180
                return [found, found._replace(turn=-360.0)] if goes_on else [found]
        except rasterio.errors.RasterioError as error:
            raise UserError(f'{path} cannot be read as a raster: {error}') from None

    def render(self, lon: float, lat: float, gsd: float,
               size: int) -> tuple[NDArray[np.uint8], float]:
        """An image around a place, and its m on the ground per pixel.

        Pixels that no raster has are black. Where the raster that has the pixel in the middle (or,
        if none has it, most of the others) is coarser than ``gsd``, it decides on the resolution.

        Returns:
            uint8 ``[size, size, 3]`` and the resolution got.

        Raises:
            Refused: if no raster has a pixel there, or the image would reach beyond ±85.05°.
        """
        x, y = (float(metres) for metres in to_metres(lon, lat))
        stretch = 1 / math.cos(math.radians(lat))  # m of the projection per m on the ground
        at_hand = self._touching(x, y, gsd * stretch * size / 2)
        gsd = max(gsd, min((self.rasters[index].gsd for index in at_hand), default=gsd))
        while True:  # at most once per resolution
            half = gsd * stretch * size / 2
            if abs(y) + half > HALF_WORLD:
                raise Refused(POLAR)
            pixels, owners = self._mosaic(x - half, y + half, gsd * stretch, size)
            if (owners < 0).all():
                raise Refused('lies outside of the rasters')
            decisive = owners[size // 2, size // 2]
            if decisive < 0:
                decisive = np.bincount(owners[owners >= 0]).argmax()
            if self.rasters[decisive].gsd <= gsd:
                return self._as_image(pixels, owners >= 0), gsd
            gsd = self.rasters[decisive].gsd

    def read(self, left: float, top: float, resolution: float,
             size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """A square of the Web Mercator plane.

        Args:
            left, top: Its upper left corner in m of EPSG:3857.
            resolution: m of EPSG:3857 per pixel.
            size: Pixels of a side.

        Returns:
            uint8 ``[size, size, 3]``, black where no raster has a pixel; and where one has.
        """
        pixels, owners = self._mosaic(left, top, resolution, size)
        return self._as_image(pixels, owners >= 0), owners >= 0

    def _mosaic(self, left: float, top: float, resolution: float,
                size: int) -> tuple[NDArray, NDArray[np.int32]]:
        """Pixels ``[bands, size, size]`` and the number of the raster that each is from, or -1."""
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

    def _warp(self, known: Raster, place: dict[str, Any]) -> tuple[NDArray, NDArray[np.bool_]]:
        with opened(known.path) as raster:
            bands = self.bands or ((1, 2, 3) if raster.count >= 3 else (1,))
            has_alpha = ColorInterp.alpha in raster.colorinterp
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
        """The rasters, in their order, that a square touches, also across the antimeridian."""
        left, bottom, right, top = self.boxes.T
        touching = np.zeros(len(self.boxes), bool)
        for turn in (-2 * HALF_WORLD, 0, 2 * HALF_WORLD):
            touching |= ((left <= x + turn + half) & (right >= x + turn - half)
                         & (bottom <= y + half) & (top >= y - half))
        return sorted(set(self.owners[touching].tolist()))


def check_texts(source: Any) -> None:
    """Check that a source says its name, terms and attribution.

    Raises:
        ValueError: if one is missing.
    """
    for name in ('name', 'terms', 'attribution'):
        text = getattr(source, name)
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'The source needs {name}, a text that is not empty, got {text!r}.')


def date_of(text: str) -> str:
    """The date that a server sent; '' where it sent something else.

    Servers send any form (``2020-05-17``, ``Sun, 17 May 2020 10:00:00 GMT``, Bing
    ``5/17/2020-6/2/2020``), so the characters decide. A table may be opened by a program that takes
    ``=`` for the beginning of a formula.
    """
    date = text.strip()
    return date if DATE.fullmatch(date) else ''


def join_dates(dates: Iterable[str]) -> str:
    """The dates of an image's tiles, each once and sorted, of which 256 characters have room."""
    joined = ''
    for date in sorted(set(filter(None, dates))):
        if len(joined) + 1 + len(date) > MAX_DATES and joined:
            break
        joined = f'{joined} {date}'.strip()
    return joined


def harmless(dates: Any) -> str:
    """An image's dates out of a journal, which may be older than the rule for a server's dates."""
    is_good = (isinstance(dates, str) and len(dates) <= MAX_DATES and dates.isprintable()
               and not dates.startswith(('=', '+', '-', '@')))
    return dates if is_good else ''


def one_line(value: Any) -> str:
    """A date as a text: YAML and Python take 2021 for a number."""
    return ' '.join(str(value).split())


def _as_list(value: Any, otherwise: Sequence[Any] = ()) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else list(otherwise)


def _is_token(text: Any) -> bool:
    return isinstance(text, str) and bool(re.fullmatch(r'[\w-]+', text, re.ASCII))


def _is_header(text: Any) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable()


def _has_host(url: Any) -> bool:
    try:
        parts = urlsplit(url)
        return (parts.scheme in ('http', 'https') and bool(parts.hostname)
                and not re.search(r'\s', parts.netloc) and parts.port != 0)  # may raise
    except (ValueError, TypeError, AttributeError):
        return False


def _ground_resolution_of(raster: rasterio.DatasetReader) -> float:
    """Metres on the ground of a raster's pixel at its centre: the root of the pixel's area."""
    column, row = raster.width / 2, raster.height / 2
    # A step of one pixel to the east and one to the south; larger steps would leave small rasters.
    x, y = raster.xy([row, row, row + 1], [column, column + 1, column], offset='ul')
    lon, lat = np.radians(transform(raster.crs, 'EPSG:4326', x, y))
    east = (lon[1:] - lon[0]) * np.cos(lat[0]) * EARTH_RADIUS
    north = (lat[1:] - lat[0]) * EARTH_RADIUS
    return float(np.sqrt(abs(east[0] * north[1] - east[1] * north[0])))


def _boxes_of(raster: rasterio.DatasetReader) -> list[tuple[float, float, float, float]]:
    """Left, bottom, right, top in EPSG:3857."""
    west, south, east, north = transform_bounds(raster.crs, 'EPSG:4326', *raster.bounds)
    pairs = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    boxes = []
    for first, last in pairs:
        (left, right), (bottom, top) = to_metres([first, last], [south, north])
        boxes.append((left, bottom, right, top))
    return boxes
