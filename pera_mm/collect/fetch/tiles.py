"""Tile servers as a source of images: addresses of tiles, and squares made from tiles."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from pera_mm.collect.common.settings import is_number, is_whole
from pera_mm.collect.fetch.dates import one_line
from pera_mm.collect.fetch.mercator import (
    flip_row,
    ground_resolution,
    to_pixels,
    to_quadkey,
    zoom_for,
)
from pera_mm.collect.fetch.sources import POLAR, check_texts
from pera_mm.datasets.reading import Scale
from pera_mm.errors import UserError

MAX_ZOOM = 28  # columns and rows of tiles are packed into 28 bits
MAX_SHRINKING = 8.0  # pixels of the tiles per pixel of the image; above, it needs hundreds of tiles
KERNEL_RADIUS = 2  # of Pillow's bicubic filter, in pixels of the result

# The fields of a URL template, and the sets of which it must have exactly one.
FIELDS = ('z', 'x', 'y', '-y', 'quadkey', 'TileMatrix', 'TileRow', 'TileCol', 's', 'key')
PROTOCOLS = {
    'XYZ': {'z', 'x', 'y'},
    'TMS': {'z', 'x', '-y'},
    'Bing': {'quadkey'},
    'WMTS': {'TileMatrix', 'TileRow', 'TileCol'},
}


class Tile(NamedTuple):
    """The address of a tile; rows count from the north."""

    zoom: int
    column: int
    row: int

    def __str__(self) -> str:
        return f'{self.zoom}/{self.column}/{self.row}'


class Square(NamedTuple):
    """A square on the pixels of a zoom, or an array of squares: then every field is ``[n]``.

    Attributes:
        zoom: The zoom of the tiles.
        gsd: m on the ground per pixel of the result.
        left, top: The upper left corner in pixels of the zoom's picture of the world; it may lie
            west of the picture's edge.
        side: Pixels of the picture that a side covers.
        west, north, east, south: First and last column and row of the tiles that it is made from.
            A column outside the world stands for the one that is a whole turn away.
        reason: Why the source does not have the square; '' where it does.
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

    def at(self, index: int) -> 'Square':
        """Select one square of an array."""
        return Square(*(column.item(index) for column in self))

    def tiles(self) -> list[Tile]:
        """List the tiles of a single square in rows from the north-west."""
        columns = [column % 2 ** self.zoom for column in range(self.west, self.east + 1)]
        return [Tile(self.zoom, column, row)
                for row in range(self.north, self.south + 1) for column in columns]


@dataclass(frozen=True)
class TileSource:
    """A server of map tiles; its URL template decides the protocol.

    Args:
        name: The source's name in the tables.
        url: http(s) address with the fields of one protocol: ``{z} {x} {y}`` (XYZ),
            ``{z} {x} {-y}`` (TMS: rows from the south), ``{quadkey}`` (Bing),
            ``{TileMatrix} {TileRow} {TileCol}`` (WMTS on the Web Mercator matrix set, whose
            identifiers are zooms, perhaps behind a prefix; RESTful or with ?SERVICE=WMTS&...).
            Also allowed: ``{s}``, one of ``subdomains``, and ``{key}``.
        terms: The terms of use, as text or address: shown before the first request.
        attribution: Whom to credit for the images.
        zooms: First and last zoom of the server.
        tile_size: Pixels of a tile's side.
        rate: Requests per second and host.
        key_env: Environment variable with the key, for ``{key}`` in ``url`` or ``headers``.
        subdomains: For ``{s}``, e.g. ('a', 'b', 'c').
        headers: Sent with every request, e.g. a User-Agent that names you.
        date: The date of the imagery, for the tables.
        date_header: Response header with the date of the imagery, instead of ``date``. A value that
            cannot be a date is left out: a date has letters, digits, spaces and ``,:/.+-`` in
            ASCII, at most 64, and begins with a letter or a digit.
        no_tile: HTTP statuses which say that the tile does not exist and will not. Some stores
            use 403.
        scale: (low, high), the values that become 0 and 255 in pixels that are not 8-bit, as in
            :mod:`pera_mm.datasets.reading`; None: all are 8-bit.
        placeholders: A folder of tiles that say "no imagery", as the server sends them. Tiles that
            look like one of them count as missing.

    Raises:
        UserError: if an argument is missing or wrong.
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
        fields = set(re.findall(r'\{(.*?)\}', self.url))
        if unknown := sorted(fields.difference(FIELDS)):
            raise UserError(f'url of the source {self.name!r} has the field {{{unknown[0]}}}; '
                            f'known are {", ".join(f"{{{name}}}" for name in FIELDS)}.')
        if fields - {'s', 'key'} not in PROTOCOLS.values():
            raise UserError(
                f'url of the source {self.name!r} must have the fields of one protocol: '
                '{z} {x} {y} (XYZ), {z} {x} {-y} (TMS), {quadkey} (Bing) or {TileMatrix} {TileRow} '
                f'{{TileCol}} (WMTS), got {self.url!r}.')
        if ('s' in fields) != bool(self.subdomains):
            raise UserError(f'The source {self.name!r} needs both {{s}} in its url and '
                            'subdomains, or neither.')
        needs_key = 'key' in fields or any('{key}' in text for text in self.headers.values())
        if needs_key != bool(self.key_env):
            raise UserError(f'The source {self.name!r} needs both {{key}} in its url or headers '
                            'and key_env, the environment variable with the key, or neither.')

    def key(self) -> str:
        """Read the key from the environment.

        Returns:
            '' for a source without a key.

        Raises:
            UserError: if the environment has no key, or one that is not printable ASCII.
        """
        if self.key_env is None:
            return ''
        if not (key := os.environ.get(self.key_env, '').strip()):
            raise UserError(f'The source {self.name!r} needs a key: put it into the environment '
                            f'variable {self.key_env}.')
        if not (key.isascii() and key.isprintable()):
            raise UserError(f'The environment variable {self.key_env} contains a character that is '
                            'not printable ASCII; copy the key again.')
        return key

    def address(self, tile: Tile, key: str) -> str:
        """Return the URL of a tile."""
        return self._fill_in(tile, quote(key, safe=''))

    def host(self, tile: Tile) -> str:
        """Return the host and port of a tile for messages, without key, user and password."""
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
        return re.sub(r'\{(.*?)\}', lambda found: str(values[found[1]]), self.url)

    def squares(self, lon: ArrayLike, lat: ArrayLike, gsd: ArrayLike, size: int) -> Square:
        """Choose the zoom and the tiles of images.

        Args:
            lon, lat: The centers in degrees ``[n]``.
            gsd: m on the ground per pixel ``[n]``.
            size: Pixels of an image's side.

        Returns:
            The squares, as arrays ``[n]``.
        """
        lon, lat, gsd = (np.asarray(column, float) for column in (lon, lat, gsd))
        zoom = np.clip(zoom_for(gsd, lat, self.tile_size), *self.zooms)
        native = ground_resolution(lat, zoom, self.tile_size)
        shrinking = np.maximum(gsd / native, 1.0)  # 1: even the finest zoom is coarser than gsd
        side = size * shrinking
        x, y = to_pixels(lon, lat, zoom, self.tile_size)
        left, top = x - side / 2, y - side / 2
        # Without shrinking, pixels are copied: the center moves by up to half a pixel.
        is_copied = shrinking == 1
        left, top = np.where(is_copied, np.rint(left), left), np.where(is_copied, np.rint(top), top)

        # The filter of an outer pixel, centered half a pixel inside, reaches beyond the square.
        reach = np.where(is_copied, 0, (KERNEL_RADIUS - 0.5) * shrinking)
        last = np.exp2(zoom) - 1  # column and row
        west, north = (np.floor((edge - reach) / self.tile_size) for edge in (left, top))
        east, south = (np.ceil((edge + side + reach) / self.tile_size) - 1 for edge in (left, top))

        polar = (top < 0) | (top + side > (last + 1) * self.tile_size)
        too_fine = f'needs over {MAX_SHRINKING:.0f} x {MAX_SHRINKING:.0f} times its pixels: the ' \
                   f'coarsest zoom, {self.zooms[0]}, is too fine'
        reasons = np.array(['', POLAR, too_fine], object)
        reason = reasons[np.where(polar, 1, np.where(shrinking > MAX_SHRINKING, 2, 0))]
        return Square(zoom, native * shrinking, left, top, side, west.astype(int),
                      np.maximum(north, 0).astype(int), east.astype(int),
                      np.minimum(south, last).astype(int), reason)

    def assemble(self, square: Square, tiles: Sequence[NDArray[np.uint8]],
                 size: int) -> Image.Image:
        """Join the tiles of a square and cut the square out, with antialiasing.

        Args:
            square: A single square.
            tiles: The pixels of ``square.tiles()``, in that order, each
                ``[tile_size, tile_size, 3]``.
            size: Pixels of the result's side.

        Returns:
            An RGB image of ``size`` x ``size`` pixels.
        """
        columns = square.east - square.west + 1
        rows = [np.concatenate(tiles[start:start + columns], axis=1)
                for start in range(0, len(tiles), columns)]
        left = square.left - square.west * self.tile_size
        top = square.top - square.north * self.tile_size
        return Image.fromarray(np.concatenate(rows)).resize(
            (size, size), Image.Resampling.BICUBIC,
            box=(left, top, left + square.side, top + square.side))


def count_shared_tiles(squares: Square) -> dict[Tile, int]:
    """Count the squares that need a tile, for the tiles that several squares need.

    Args:
        squares: Arrays ``[n]``; squares with a reason need no tiles.
    """
    shared: dict[Tile, int] = {}
    for zoom in np.unique(squares.zoom):
        here = (squares.zoom == zoom) & (squares.reason == '')
        if not here.any():
            continue
        west, north, east, south = (
            column[here] for column in (squares.west, squares.north, squares.east, squares.south))
        keys = []
        for across in range((east - west).max() + 1):
            for down in range((south - north).max() + 1):
                inside = (west + across <= east) & (north + down <= south)
                column = (west[inside] + across) % 2 ** int(zoom)
                keys.append(column << MAX_ZOOM | north[inside] + down)
        unique, counts = np.unique(np.concatenate(keys), return_counts=True)
        several = counts > 1
        for packed, count in zip(unique[several].tolist(), counts[several].tolist()):
            shared[Tile(int(zoom), packed >> MAX_ZOOM, packed & 2 ** MAX_ZOOM - 1)] = count
    return shared


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
