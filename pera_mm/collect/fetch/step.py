"""Fetch an image at every point, from tile servers or local rasters; nothing is asked for twice.

What happens to a request that brings no tile:

* HTTP 404, 410, 204, or what ``no_tile`` says, and tiles like the ``placeholders``: there is no
  tile, and there will be none. The image is *refused*, and so it is where a square leaves the
  projection or the rasters. Later starts do not ask again. What a server says counts so once the
  folder has an image: before, the url may be wrong.
* Timeouts, broken connections, HTTP 408, 429 and 5xx, images cut short or not decodable, and HTML
  or JSON instead of an image (quota and login pages come so): asked again, ``retries`` times, after
  waits that double, with jitter. Then the image *failed*; the next start tries it again.
* Retry-After, and 429 and 503 without it, hold back all requests to that host.
* Any other answer (401, 403, redirects), pixels that are not 8-bit without ``scale``, and what is
  too large for a tile: failed at once, for this start.

When as many answers in a row bring no tile as all requests under way may together have tries, or
the first hundred images are all refused by status, the source is down, asked wrongly, or wants
nothing of us: the step stops with a sentence. What arrived is kept.

Tiles are on disk (``arriving/``) from their arrival until the last image that needs them is
whole and in the journal (``fetch.jsonl``). So a kill costs the requests under way and no others.
"""

import asyncio
import hashlib
import io
import itertools
import json
import logging
import os
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import httpx2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pera_mm.collect.common.settings import is_number, is_whole
from pera_mm.collect.common.tables import TILE, Journal, log, progress_bar, read_table, write_table
from pera_mm.collect.fetch.placeholders import Suspects, example_like, load_examples
from pera_mm.collect.fetch.tiles import (
    MAX_ZOOM,
    RasterSource,
    Refused,
    Square,
    Tile,
    TileSource,
    date_of,
    harmless,
    join_dates,
)
from pera_mm.datasets.reading import NoScale, decode_image, reason_of, size_of
from pera_mm.errors import UserError
from pera_mm.files import write_whole

SOURCES = {'tiles': TileSource, 'rasters': RasterSource}
DECIDING = ('name', 'zooms', 'tile_size', 'bands', 'scale')  # of a source, about pixels
BUSY = (429, 503)
FIRST = 100  # images that may be refused by status before the first one comes
MAX_BACKOFF = 60.0  # s
MAX_PAUSE = 3600.0  # s: asked to wait for longer, the step ends
IMAGES_PER_FOLDER = 10_000
MAX_OVERHEAD = 1_000_000  # bytes of a tile besides twice its pixels with alpha
TILE_MEMORY, PIXEL_MEMORY = 64 << 20, 128  # bytes to decode a tile: besides, and for each pixel
BYTES_PER_PIXEL = {'jpg': 0.2, 'png': 1.2}  # of land imagery, low; JPEG at quality 95
SAFE_ID = re.compile(r'[\w-][\w.-]*', re.ASCII)  # it becomes a file's name


class Failed(Exception):
    """A tile that could not be had this time; the text is the reason."""

    def __init__(self, reason: str, may_retry: bool = True, pause: float | None = None,
                 status: int | None = None) -> None:
        super().__init__(reason)
        self.may_retry = may_retry
        self.pause = pause  # s for which the host wants to be left alone; 0: it does not say
        self.status = status  # of HTTP


class Answer(NamedTuple):
    """What a server sent."""

    status: int
    headers: httpx2.Headers
    body: bytes


class Arrived(NamedTuple):
    """A tile's pixels ``[tile_size, tile_size, 3]`` and the date of its imagery."""

    pixels: NDArray[np.uint8]
    date: str


class Picture(NamedTuple):
    """An image as it is to be stored, and what was got."""

    image: Image.Image
    gsd: float
    zoom: int | None
    date: str


def fetch(folder: Path, *, source: dict[str, Any], size: int = 512,
          format: Literal['jpg', 'png'] = 'jpg', quality: int = 95, concurrency: int = 16,
          retries: int = 5, timeout: float = 30.0, backoff: float = 1.0,
          accept_terms: str = '') -> dict[str, Any]:
    """Fetch the images of points.csv into tiles/, with tiles.csv and missing.csv.

    Args:
        folder: The work folder.
        source: ``type='tiles'`` and the arguments of :class:`TileSource`, or ``type='rasters'``
            and those of :class:`RasterSource`.
        size: Pixels of an image's side.
        format: Of the images.
        quality: Of JPEG, 1 to 100.
        concurrency: Requests under way at once; also the number of images worked on.
        retries: Further tries for a tile that did not arrive.
        timeout: Seconds that an answer may take altogether.
        backoff: Seconds before the first retry; doubled for each further one.
        accept_terms: The source's name: that its terms are read and accepted.

    Returns:
        How many images there are, were fetched now and are missing, and the reasons.

    Raises:
        ValueError: if a setting or a point makes no sense, the terms are not accepted, the key is
            missing, the folder was begun with other settings, the disk is too small, or the
            source is down.
        OSError: if a file cannot be written; what arrived before is kept.
    """
    _check_settings(size, format, quality, concurrency, retries, timeout, backoff)
    origin = build_source(source)
    _check_terms(origin, accept_terms)
    key = origin.key() if isinstance(origin, TileSource) else ''
    points = _read_points(folder / 'points.csv')
    settings = dict(type=source['type'], size=size, format=format, quality=quality)
    settings |= {name: getattr(origin, name) for name in DECIDING if hasattr(origin, name)}
    with Journal(folder / 'fetch.jsonl') as journal:
        results = Results(folder, points, journal, format, quality)
        results.begin(_as_json(settings), _as_json(source.get('url', source.get('paths'))))
        todo = results.open_points()
        _check_space(folder, len(todo), size, format)
        log.info('fetch: %d of %d images are there or refused; source %s (%s)',
                 len(points) - len(todo), len(points), origin.name, origin.attribution)
        with progress_bar('fetch', len(points), len(points) - len(todo)) as results.advance:
            if isinstance(origin, TileSource):
                manners = Manners(concurrency, retries, timeout, backoff)
                download = Download(folder / 'arriving', origin, key, size, manners)
                asyncio.run(download.run(results, todo))
            else:
                asyncio.run(_render_all(origin, results, todo, size))
    if not results.failed:
        shutil.rmtree(folder / 'arriving', ignore_errors=True)
    _write_tables(folder, points, results, origin)
    return _summary(results, len(todo), origin)


# -- settings ------------------------------------------------------------------------------------


def _check_settings(size: int, format: str, quality: int, concurrency: int, retries: int,
                    timeout: float, backoff: float) -> None:
    if format not in list(BYTES_PER_PIXEL):
        raise UserError(f"format must be 'jpg' or 'png', got {format!r}.")
    if not (is_whole(quality) and 1 <= quality <= 100):
        raise UserError(f'quality must be a whole number of 1 to 100, got {quality!r}.')
    for name, value, least in (('size', size, 1), ('concurrency', concurrency, 1),
                               ('retries', retries, 0)):
        if not (is_whole(value) and value >= least):
            raise UserError(f'{name} must be a whole number of at least {least}, got {value!r}.')
    if not (is_number(timeout) and timeout > 0 and is_number(backoff) and backoff >= 0):
        raise UserError('timeout must be positive and backoff not negative, in seconds, '
                        f'got {timeout!r} and {backoff!r}.')


def build_source(source: dict[str, Any]) -> TileSource | RasterSource:
    """The source that a config describes.

    Raises:
        ValueError: if its type is unknown, or an argument is unknown, missing or makes no sense.
    """
    settings = dict(source) if isinstance(source, Mapping) else {}
    kind = settings.pop('type', None)
    if kind not in list(SOURCES):
        raise UserError(f"type of the source must be 'tiles' or 'rasters', got {kind!r}.")
    try:
        return SOURCES[kind](**settings)
    except TypeError as error:  # __init__() got an unexpected keyword argument 'colour'
        raise UserError(f'The source of type {kind!r} cannot be built: '
                        f'{str(error).partition("() ")[2] or error}.') from None


def _check_terms(source: TileSource | RasterSource, accepted: str) -> None:
    if accepted != source.name:
        terms, credit = source.terms.rstrip('.'), source.attribution.rstrip('.')
        raise UserError(f'The source {source.name!r} may be used on these terms: {terms}. Credit: '
                        f'{credit}. If you accept them, say so with its name: --accept-terms '
                        f'{source.name!r}.')


def _read_points(path: Path) -> pd.DataFrame:
    points = read_table(path, ('id', 'lon', 'lat', 'gsd'), 'the step sample, or by hand')
    for name, least, most in (('lon', -180, 180), ('lat', -90, 90), ('gsd', 1e-3, 1e5)):
        if not (good := points[name].between(least, most)).all():
            row = int(good.argmin())
            raise UserError(f'{path}, line {row + 2}: {name} is {points[name][row]:g}, '
                            f'not between {least:g} and {most:g}.')
    if not (good := points['id'].map(lambda name: bool(SAFE_ID.fullmatch(name)))).all():
        row = int(good.argmin())
        raise UserError(f'{path}, line {row + 2}: the id {points["id"][row]!r} cannot name a '
                        'file; use letters, digits, _ and -.')
    for name in ('class', 'continent'):
        if name not in points:
            points[name] = ''
    return points


def _check_space(folder: Path, images: int, size: int, format: str) -> None:
    needed = images * size * size * BYTES_PER_PIXEL[format]
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f'{images} images need about {needed / 1e9:.1f} GB, and the disk of '
                        f'{folder} has {free / 1e9:.1f} GB left; make room or take fewer points.')


# -- what is known from earlier starts -----------------------------------------------------------


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


class Results:
    """What became of every point: in memory as columns, 60 bytes a point; on disk as a journal.

    The journal has rows of three kinds: how the folder was begun, or goes on; an image's; and why
    there is none. An image counts where its point is still the same, its file exists, and no later
    row has written that file.

    Args:
        folder: The work folder.
        points: Its points.csv.
        journal: Rows of earlier starts; new ones are added.
        format, quality: Of the images.

    Attributes:
        has_images: Whether the folder has any, perhaps of other points.
        advance: Called with 1 for every point that is dealt with.
    """

    def __init__(self, folder: Path, points: pd.DataFrame, journal: Journal, format: str,
                 quality: int) -> None:
        self.folder, self.journal, self.format = folder, journal, format
        self.options = {'quality': quality} if format == 'jpg' else {}
        self.ids = points['id'].tolist()
        self.lon, self.lat, self.asked = (points[name].to_numpy(float)
                                          for name in ('lon', 'lat', 'gsd'))
        count = len(points)
        self.group = np.full(count, -1, np.int32)  # the image is in tiles/GROUP; -1: there is none
        self.gsd = np.zeros(count)
        self.zoom = np.full(count, -1, np.int8)  # -1: none
        self.date = [''] * count
        self.sha256 = np.zeros((count, 32), np.uint8)
        self.reason = [''] * count  # why there is no image
        self.refused: list[int] = []  # positions, of earlier starts
        self.unsure: list[int] = []  # refused by status before there was any image
        self.failed: set[int] = set()  # positions whose reason holds for this start only
        self.has_images = False
        self.settings: dict[str, Any] = {}
        self.where: Any = None
        self.advance: Callable[[int], None] = lambda items: None
        self._take_in()

    # Earlier starts: everything in one pass, there may be gigabytes.

    def _take_in(self) -> None:
        if size := self.journal.path.stat().st_size:
            log.info('fetch: reading the journal (%.1f MB)', size / 1e6)
        positions = {name: position for position, name in enumerate(self.ids)}
        for row in self.journal:
            if 'settings' in row:
                self.settings, self.where = row['settings'], row.get('where')
                self._forget_refusals()
                continue
            self.has_images |= 'sha256' in row
            position = positions.get(row.get('id', ''))
            if position is None:
                continue
            is_same = row['point'] == self.point(position)
            if 'reason' in row:
                if is_same:
                    self.reason[position] = sys.intern(row['reason'])
                    self.refused.append(position)
            elif is_same and 'sha256' in row:
                self._fill(position, row)
            elif self.group[position] == row['group']:
                self.group[position] = -1  # another image has taken its file
        self._look_for_files()

    def _look_for_files(self) -> None:
        """Forget the images without a file; a list per folder, where a look at each takes long."""
        for group in np.unique(self.group[self.group >= 0]).tolist():
            try:
                files = set(os.listdir(self.folder / _group_folder(group)))
            except FileNotFoundError:
                files = set()
            for position in np.flatnonzero(self.group == group).tolist():
                if f'{self.ids[position]}.{self.format}' not in files:
                    self.group[position] = -1

    def _fill(self, position: int, row: dict[str, Any]) -> None:
        self.group[position] = row['group']
        self.gsd[position] = row['gsd']
        self.zoom[position] = -1 if row['zoom'] is None else row['zoom']
        self.date[position] = sys.intern(harmless(row['date']))
        self.sha256[position] = np.frombuffer(bytes.fromhex(row['sha256']), np.uint8)
        self.reason[position] = ''

    def _forget_refusals(self) -> None:
        while self.refused:
            self.reason[self.refused.pop()] = ''

    def begin(self, settings: dict[str, Any], where: Any) -> None:
        """Begin the folder, or go on.

        Args:
            settings: What decides about pixels. It must be the same again, unless no image has come
                yet.
            where: Where images are asked for. At a new place what was refused is asked for again,
                and no image is made from tiles of two places.

        Raises:
            ValueError: if the folder has images by other settings.
        """
        begun = self.settings
        if begun not in ({}, settings) and self.has_images:
            differs = next(name for name in begun | settings
                           if begun.get(name) != settings.get(name))
            raise UserError(f'{self.folder} was begun with {differs}={begun.get(differs)!r}, and '
                            f'the config says {settings.get(differs)!r}; take another work '
                            f'folder, or delete {self.journal.path} to begin anew.')
        if (begun, self.where) != (settings, where):
            shutil.rmtree(self.folder / 'arriving', ignore_errors=True)  # another source's
            self.journal.add(dict(settings=settings, where=where))
            self._forget_refusals()

    def point(self, position: int) -> list[float]:
        """Longitude, latitude and the resolution asked for."""
        return [self.lon.item(position), self.lat.item(position), self.asked.item(position)]

    def file(self, position: int, group: int) -> str:
        """The image's file, from the work folder on."""
        return f'{_group_folder(group)}/{self.ids[position]}.{self.format}'

    def open_points(self) -> list[int]:
        """The positions that have no image and are not refused."""
        refused = np.array([reason != '' for reason in self.reason], bool)
        return np.flatnonzero((self.group < 0) & ~refused).tolist()

    # What becomes of the others now.

    def refuse(self, position: int, reason: str) -> None:
        """There is no such image, and there will be none."""
        self.reason[position] = reason
        self._record(position, reason=reason)
        self.advance(1)

    def refuse_by_status(self, position: int, reason: str) -> None:
        """The server says so; before the first image this may only mean that the url is wrong.

        Raises:
            ValueError: if there are many of them and no image.
        """
        if self.has_images:
            return self.refuse(position, reason)
        self.fail(position, reason)
        self.unsure.append(position)
        if len(self.unsure) == FIRST:
            raise UserError(f'The source has refused the first {FIRST} images, the last time: '
                            f'{reason}; look at url, zooms and key, or take points where it has '
                            'imagery.')

    def fail(self, position: int, reason: str) -> None:
        """The image could not be had this time."""
        self.reason[position] = reason
        self.failed.add(position)
        self.advance(1)

    async def store(self, position: int, make: Callable[[], Picture]) -> None:
        """Make an image, write its file, then its row in the journal."""
        group = position // IMAGES_PER_FOLDER
        if (self.folder / self.file(position, group)).exists():
            self._record(position, group=group)  # whatever it was, it is going to be replaced
        row = await asyncio.to_thread(self._write, position, group, make)
        self._record(position, **row)
        self._fill(position, row)
        if not self.has_images:
            self.has_images = True
            for refused in self.unsure:  # the source answers: they hold
                self._record(refused, reason=self.reason[refused])
                self.failed.discard(refused)
        self.advance(1)

    def _write(self, position: int, group: int, make: Callable[[], Picture]) -> dict[str, Any]:
        picture = make()
        stream = io.BytesIO()
        picture.image.save(stream, {'jpg': 'JPEG', 'png': 'PNG'}[self.format], **self.options)
        data = stream.getvalue()
        write_whole(self.folder / self.file(position, group), data)
        return dict(group=group, gsd=round(picture.gsd, 3), zoom=picture.zoom, date=picture.date,
                    sha256=hashlib.sha256(data).hexdigest())

    def _record(self, position: int, **columns: Any) -> None:
        self.journal.add(dict(id=self.ids[position], point=self.point(position), **columns))


def _group_folder(group: int) -> str:
    return f'tiles/{group:03d}'


def _write_tables(folder: Path, points: pd.DataFrame, results: Results,
                  source: TileSource | RasterSource) -> None:
    """tiles.csv and missing.csv, in the order of the points."""
    images = results.group >= 0
    positions = np.flatnonzero(images).tolist()
    table = points[images].assign(
        gsd=results.gsd[images],
        zoom=pd.Series(results.zoom[images], dtype='Int64').mask(results.zoom[images] < 0).array,
        source=source.name,
        date=[results.date[position] for position in positions],
        file=[results.file(position, results.group[position]) for position in positions],
        sha256=[results.sha256[position].tobytes().hex() for position in positions])
    write_table(folder / 'tiles.csv', table[list(TILE)])
    reasons = [reason for reason, is_there in zip(results.reason, images) if not is_there]
    write_table(folder / 'missing.csv',
                points[~images][['id', 'lon', 'lat']].assign(reason=reasons))


def _summary(results: Results, tried: int, source: TileSource | RasterSource) -> dict[str, Any]:
    reasons = (reason.partition(', tile ')[0] for reason in results.reason)
    kinds = Counter(sorted(filter(None, reasons)))
    return {
        'points': len(results.ids),
        'images': int((results.group >= 0).sum()),
        'missing': kinds.total(),
        'missing, tried again by the next start': len(results.failed),
        'tried now': tried,
        'source': source.name,
        'credit': source.attribution,
        'reasons': [dict(reason=reason, images=count) for reason, count in kinds.most_common()],
    }


# -- local rasters -------------------------------------------------------------------------------


async def _in_parallel(number: int, todo: Sequence[int],
                       do: Callable[[int], Awaitable[None]]) -> None:
    """Do something with every position, a number of them at a time; the first error ends it."""
    positions = iter(todo)

    async def worker() -> None:
        for position in positions:
            await do(position)

    workers = [asyncio.create_task(worker()) for _ in range(number)]
    try:
        await asyncio.gather(*workers)
    finally:
        await _cancel(workers)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def _one_thread_per_core() -> Iterator[None]:
    """For what to_thread() does here: decoding, resampling, encoding, outside Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        yield


async def _render_all(source: RasterSource, results: Results, todo: Sequence[int],
                      size: int) -> None:
    async def render(position: int) -> None:
        def make() -> Picture:
            lon, lat, asked = results.point(position)
            pixels, gsd = source.render(lon, lat, asked, size)
            return Picture(Image.fromarray(pixels), gsd, None, source.date)

        try:
            await results.store(position, make)
        except Refused as refusal:
            results.refuse(position, str(refusal))

    with _one_thread_per_core():
        await _in_parallel(2 * (os.cpu_count() or 1), todo, render)


# -- tile servers --------------------------------------------------------------------------------


class Manners(NamedTuple):
    """How servers are asked; the fields are arguments of :func:`fetch`."""

    concurrency: int
    retries: int
    timeout: float
    backoff: float


class Host:
    """One host: when the next request may go there, and how it has answered of late."""

    def __init__(self, name: str, rate: float) -> None:
        self.name = name
        self.interval = 1 / rate  # s
        self.free_at = 0.0  # of time.monotonic()
        self.queue = asyncio.Lock()
        self.failures = 0  # in a row

    async def turn(self) -> None:
        """Wait until this request may go; first come, first served."""
        async with self.queue:
            # On the grid of the rate, so that late wake-ups do not add up; a new one after a rest.
            self.free_at = max(self.free_at, time.monotonic())
            while (wait := self.free_at - time.monotonic()) > 0:  # a pause may lengthen it
                await asyncio.sleep(wait)
            self.free_at += self.interval

    def pause(self, seconds: float) -> None:
        """Leave the host alone for so long."""
        until = time.monotonic() + seconds
        if until > self.free_at + 1:
            log.warning('fetch: %s is left alone for %.0f s, as it asks', self.name, seconds)
        self.free_at = max(self.free_at, until)


class Download:
    """Tiles from servers to images.

    Args:
        arriving: Folder for the tiles of images that are not whole yet.
        source: Where from.
        key: What stands for ``{key}``.
        size: Pixels of an image's side.
        manners: How servers are asked.
    """

    def __init__(self, arriving: Path, source: TileSource, key: str, size: int,
                 manners: Manners) -> None:
        self.arriving, self.source, self.key, self.size = arriving, source, key, size
        self.manners = manners
        self.hosts: dict[str, Host] = {}
        self.under_way: dict[Tile, asyncio.Task[Arrived]] = {}
        self.requests = self.bytes = 0
        self.examples = load_examples(source.placeholders, source.tile_size)
        self.suspects = Suspects(arriving.with_name('suspects'))
        self.most_bytes = MAX_OVERHEAD + 8 * source.tile_size ** 2
        self.max_memory = TILE_MEMORY + PIXEL_MEMORY * source.tile_size ** 2
        self.has_odd_dates = False

    async def run(self, results: Results, todo: Sequence[int]) -> None:
        """Get the images of these positions."""
        start = time.monotonic()
        if not results.has_images:
            todo = _spread_first(todo, FIRST)  # those that tell whether there is anything
        self.squares = self.source.squares(results.lon[todo], results.lat[todo],
                                           results.asked[todo], self.size)
        self.needed = _count_tiles(self.squares)
        headers = {name: text.replace('{key}', self.key)
                   for name, text in self.source.headers.items()}
        limits = httpx2.Limits(max_connections=self.manners.concurrency,
                               max_keepalive_connections=self.manners.concurrency)
        self.slots = asyncio.Semaphore(self.manners.concurrency)

        async def one(index: int) -> None:
            await self._image(results, todo[index], self.squares.one(index))

        with _silent_client(), _one_thread_per_core():
            async with httpx2.AsyncClient(headers=headers, limits=limits, timeout=None) as client:
                self.client = client
                try:
                    await _in_parallel(self.manners.concurrency, range(len(todo)), one)
                finally:
                    await _cancel(list(self.under_way.values()))
        seconds = time.monotonic() - start
        log.info('fetch: %d requests, %.1f MB, %.1f s: %.1f requests/s', self.requests,
                 self.bytes / 1e6, seconds, self.requests / max(seconds, 1e-9))

    async def _image(self, results: Results, position: int, square: Square) -> None:
        if square.reason:
            return results.refuse(position, square.reason)
        places = square.tiles()
        # Where there is no imagery, one request tells; the others go together.
        tiles = await self._tiles(places[:1])
        if isinstance(tiles[0], Arrived):
            tiles += await self._tiles(places[1:])
        for tile in tiles:
            if isinstance(tile, BaseException) and not isinstance(tile, (Refused, Failed)):
                raise tile  # a full disk, a source that is down
        # One reason per image, the same whichever tile was faster.
        for kind, tell in ((Refused, results.refuse_by_status), (Failed, results.fail)):
            for place, tile in zip(places, tiles):
                if isinstance(tile, kind):
                    tell(position, f'{tile}, tile {place}')
                    return None if position in results.failed else self._release(places)
        pixels, dates = zip(*(tile for tile in tiles if isinstance(tile, Arrived)))

        def make() -> Picture:
            image = self.source.assemble(square, pixels, self.size)
            return Picture(image, square.gsd, square.zoom, join_dates(dates))

        await results.store(position, make)
        self._release(places)

    async def _tiles(self, tiles: Sequence[Tile]) -> list[Arrived | BaseException]:
        return await asyncio.gather(*map(self._tile, tiles), return_exceptions=True)

    async def _tile(self, tile: Tile) -> Arrived:
        """A tile from the disk or the server; two images that want it at once share the request."""
        if tile not in self.under_way:
            self.under_way[tile] = asyncio.create_task(self._get(tile))
            self.under_way[tile].add_done_callback(lambda _: self.under_way.pop(tile))
        return await self.under_way[tile]

    async def _get(self, tile: Tile) -> Arrived:
        if self._path(tile).exists():
            try:
                return await asyncio.to_thread(self._read, tile)
            except Failed:  # a loss of power leaves empty files
                self._path(tile).unlink(missing_ok=True)
        address = self.source.address(tile, self.key)
        name = self.source.host(tile)
        if name not in self.hosts:
            self.hosts[name] = Host(name, self.source.rate)
        host = self.hosts[name]
        for attempt in itertools.count():
            try:
                async with self.slots:
                    await host.turn()
                    answer = await self._request(address)
                    # Within the slot: so a kill loses no more tiles than there are slots.
                    arrived = await asyncio.to_thread(self._keep, tile, answer)
            except Refused:
                host.failures = 0
                raise
            except Failed as failure:
                wait = min(self.manners.backoff * 2.0 ** min(attempt, 30), MAX_BACKOFF)
                wait *= random.uniform(0.5, 1.5)
                self._count_failure(host, failure)
                if failure.pause is not None:
                    host.pause(failure.pause or wait)
                if not failure.may_retry or attempt == self.manners.retries:
                    raise
                await asyncio.sleep(wait)
            else:
                host.failures = 0
                self.suspects.see(answer.body)
                return arrived
        raise AssertionError  # counting does not end

    def _count_failure(self, host: Host, failure: Failed) -> None:
        host.failures += 1
        if (failure.pause or 0) > MAX_PAUSE:
            raise UserError(f'{host.name} asks to be left alone for '
                            f'{(failure.pause or 0) / 3600:.1f} hours ({failure}); start again '
                            'then. Everything that arrived is kept.')
        if host.failures >= self.manners.concurrency * (self.manners.retries + 1):
            way_out = 'look at url, key and rate, or start again later'
            if failure.status is not None and not failure.may_retry:
                way_out += (f'; if {failure} means that there is no tile here, say so: no_tile='
                            f'{(*self.source.no_tile, failure.status)}')
            raise UserError(f'{host.name} has given no tile {host.failures} times in a row, the '
                            f'last time: {failure}. Everything that arrived is kept; {way_out}.')

    async def _request(self, address: str) -> Answer:
        self.requests += 1
        try:
            answer = await asyncio.wait_for(self._receive(address), self.manners.timeout)
        except asyncio.TimeoutError:
            raise Failed('no answer in time') from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Failed(f'no answer: {_kind_of(error)}') from None
        self.bytes += len(answer.body)
        _check_status(answer, self.source.no_tile)
        if len(answer.body) > self.most_bytes:
            raise Failed('larger than any tile of this size', may_retry=False)
        return answer

    async def _receive(self, address: str) -> Answer:
        """An answer, unpacked; of one that is too large to be a tile only the beginning."""
        body = bytearray()
        async with self.client.stream('GET', address) as answer:
            async with aclosing(answer.aiter_bytes()) as parts:
                async for part in parts:
                    body += part
                    if len(body) > self.most_bytes:
                        break
        return Answer(answer.status_code, answer.headers, bytes(body))

    # Files in the folder: the date, a line feed, and what the server sent.

    def _path(self, tile: Tile) -> Path:
        return self.arriving / '-'.join(map(str, tile))

    def _keep(self, tile: Tile, answer: Answer) -> Arrived:
        date = self.source.date
        if self.source.date_header:
            date = self._date_of(self._header(answer, self.source.date_header))
        pixels = self._decode(answer.body, self._header(answer, 'Content-Type'))
        write_whole(self._path(tile), date.encode() + b'\n' + answer.body)
        return Arrived(pixels, date)

    def _read(self, tile: Tile) -> Arrived:
        date, _, data = self._path(tile).read_bytes().partition(b'\n')
        known = date_of(date.decode(errors='replace')) if self.source.date_header else None
        return Arrived(self._decode(data), self.source.date if known is None else known)

    def _header(self, answer: Answer, name: str) -> str:
        return self._without_key(answer.headers.get(name, ''))

    def _without_key(self, text: str) -> str:
        """What a server sent; it may repeat the key, which must not reach a file or a message."""
        for key in {self.key, quote(self.key, safe='')} - {''}:
            text = text.replace(key, '***')
        return text

    def _date_of(self, sent: str) -> str:
        date = date_of(sent)
        if sent.strip() and not date and not self.has_odd_dates:
            self.has_odd_dates = True
            log.warning('fetch: %s of the source %r holds what is not a date, %.70r: left out; '
                        'correct date_header, or say date', self.source.date_header,
                        self.source.name, sent)
        return date

    def _decode(self, data: bytes, content_type: str = '') -> NDArray[np.uint8]:
        if data.lstrip()[:1] == b'<':
            raise Failed('HTML or XML instead of an image')
        try:
            self._check_size(*size_of(data, self.max_memory))  # a small file may hold a huge one
            pixels = decode_image(data, scale=self.source.scale, max_memory=self.max_memory)
        except (MemoryError, ImportError, Failed):
            raise
        except NoScale as error:
            raise Failed(str(error), may_retry=False) from None
        except Exception as error:  # decoders raise anything on broken bytes
            kind = re.match(r'\w[\w.+-]{0,40}/[\w.+-]{1,40}', content_type, re.ASCII)
            if isinstance(error, UnidentifiedImageError) and kind and kind[0][:6] != 'image/':
                raise Failed(f'{kind[0]} instead of an image') from None
            reason = self._without_key(reason_of(error.__cause__ or error))
            raise Failed(f'broken image: {reason}') from None
        self._check_size(pixels.shape[1], pixels.shape[0])
        if name := example_like(pixels, self.examples):
            raise Refused(f'placeholder {name}')
        return pixels

    def _check_size(self, width: int, height: int) -> None:
        side = self.source.tile_size
        if (width, height) != (side, side):
            raise Failed(f'the tile has {width} x {height} px, and tile_size is {side}')

    def _release(self, tiles: Sequence[Tile]) -> None:
        """Delete the tiles that no other image needs."""
        for tile in set(tiles):
            left = self.needed.pop(tile, 1) - 1
            if left:
                self.needed[tile] = left
            else:
                self._path(tile).unlink(missing_ok=True)


def _kind_of(error: BaseException) -> str:
    """The class of an error, and of its first cause.

    No more: the texts may hold the address or a header, and with them the key.
    """
    cause = error
    while deeper := cause.__cause__ or cause.__context__:
        cause = deeper
    kinds = [type(each).__name__ for each in (error, cause)]
    return kinds[0] if kinds[0] == kinds[1] else f'{kinds[0]} ({kinds[1]})'


def _check_status(answer: Answer, no_tile: Sequence[int]) -> None:
    status = answer.status
    if status == 200:
        return
    pause = _retry_after(answer.headers)
    if status in no_tile and pause is None:  # who is to come again later is not refused for good
        raise Refused(f'HTTP {status}')
    if pause is None and status in BUSY:
        pause = 0.0  # it does not say how long: as long as this request waits
    may_retry = status in (408, 429) or status >= 500
    raise Failed(f'HTTP {status}', may_retry, pause, status)


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Seconds from a number or a date; None where there is none that can be read."""
    text = headers.get('Retry-After', '').strip()
    if re.fullmatch(r'\d+(\.\d*)?', text, re.ASCII):
        return float(text)
    try:
        until = parsedate_to_datetime(text)
        # By the server's clock where it tells: ours may differ.
        now = parsedate_to_datetime(headers['Date']) if 'Date' in headers else datetime.now(
            timezone.utc)
        return max((until - now).total_seconds(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None


def _spread_first(todo: Sequence[int], number: int) -> list[int]:
    """Some positions from everywhere in the table, then the others."""
    first = dict.fromkeys(todo[index] for index in
                          np.linspace(0, len(todo) - 1, min(number, len(todo))).round().astype(int))
    return [*first, *(position for position in todo if position not in first)]


def _count_tiles(squares: Square) -> dict[Tile, int]:
    """How many squares need a tile, of the tiles that several need."""
    shared: dict[Tile, int] = {}
    for zoom in np.unique(squares.zoom):
        here = (squares.zoom == zoom) & (squares.reason == '')
        if not here.any():
            continue
        west, north, east, south = (column[here] for column in squares[5:9])
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


@contextmanager
def _silent_client() -> Iterator[None]:
    """The HTTP client logs every address, and with it the key."""
    loggers = [logging.getLogger(name) for name in ('httpx2', 'httpcore2')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
