"""The download of images: from points to tiles, and from tiles to images.

Received tiles are kept in ``arriving/`` until the last image that needs them is in the journal.
Therefore a kill costs only the requests under way.
"""

import asyncio
import itertools
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from pera_mm.collect.common.tables import log
from pera_mm.collect.fetch.dates import join_dates, parse_date
from pera_mm.collect.fetch.http import (
    Failed,
    Host,
    RequestPolicy,
    Response,
    check_status,
    get,
    silent_client,
)
from pera_mm.collect.fetch.parallel import cancel, for_each, one_thread_per_core
from pera_mm.collect.fetch.placeholders import Suspects, load_examples, matching_example
from pera_mm.collect.fetch.results import FIRST_IMAGES, FetchedImage, Results
from pera_mm.collect.fetch.sources import NotAvailable
from pera_mm.collect.fetch.tiles import Square, Tile, TileSource, count_shared_tiles
from pera_mm.datasets.reading import NoScale, decode_image, reason_of, size_of
from pera_mm.errors import UserError
from pera_mm.files import write_whole

MAX_BACKOFF = 60.0  # s
MAX_DOUBLINGS = 30  # of the backoff: 2.0**attempt must stay finite
JITTER = (0.5, 1.5)  # factors of a wait
MAX_PAUSE = 3600.0  # s; for a longer one the step stops
SECONDS_PER_HOUR = 3600
MAX_FILE_OVERHEAD = 1_000_000  # bytes of a tile's file besides its pixels
MAX_FILE_BYTES_PER_PIXEL = 8  # 8-bit RGBA twice
DECODER_BYTES = 64 << 20  # memory to decode a tile, besides its pixels
DECODER_BYTES_PER_PIXEL = 128


class ReceivedTile(NamedTuple):
    """The pixels of a tile, ``[tile_size, tile_size, 3]``, and the date of its imagery."""

    pixels: NDArray[np.uint8]
    date: str


Outcome = ReceivedTile | BaseException  # of the attempts to get a tile


class Download:
    """A download of images from a tile server.

    Args:
        arriving: Folder for the tiles of unfinished images.
        source: The tile server.
        key: Value of ``{key}``.
        size: Pixels of an image's side.
        policy: Limits for the requests.
    """

    def __init__(self, arriving: Path, source: TileSource, key: str, size: int,
                 policy: RequestPolicy) -> None:
        self.arriving, self.source, self.key, self.size = arriving, source, key, size
        self.policy = policy
        self.hosts: dict[str, Host] = {}
        self.under_way: dict[Tile, asyncio.Task[ReceivedTile]] = {}
        self.requests = self.bytes = 0
        self.examples = load_examples(source.placeholders, source.tile_size)
        self.suspects = Suspects(arriving.with_name('suspects'))
        pixels = source.tile_size ** 2
        self.max_bytes = MAX_FILE_OVERHEAD + MAX_FILE_BYTES_PER_PIXEL * pixels
        self.max_memory = DECODER_BYTES + DECODER_BYTES_PER_PIXEL * pixels
        self.has_odd_dates = False

    async def run(self, results: Results, todo: Sequence[int]) -> None:
        """Fetch the images of some points.

        Args:
            results: Receives the images, or why there are none.
            todo: Positions of the points.

        Raises:
            UserError: if the source is down or refuses everything.
            OSError: if a file cannot be written.
        """
        start = time.monotonic()
        if not results.has_images:
            todo = _spread_first(todo, FIRST_IMAGES)  # they show whether the source has anything
        squares = self.source.squares(results.lon[todo], results.lat[todo],
                                      results.requested_gsd[todo], self.size)
        self.needed = count_shared_tiles(squares)  # by images that are not stored yet
        self.slots = asyncio.Semaphore(self.policy.concurrency)
        headers = {name: text.replace('{key}', self.key)
                   for name, text in self.source.headers.items()}

        async def fetch_one(index: int) -> None:
            await self._fetch_image(results, todo[index], squares.at(index))

        with one_thread_per_core():
            async with silent_client(headers, self.policy.concurrency) as self.client:
                try:
                    await for_each(range(len(todo)), self.policy.concurrency, fetch_one)
                finally:
                    await cancel(list(self.under_way.values()))
        seconds = time.monotonic() - start
        log.info('fetch: %d requests, %.1f MB, %.1f s: %.1f requests/s', self.requests,
                 self.bytes / 1e6, seconds, self.requests / max(seconds, 1e-9))

    # -- images --------------------------------------------------------------------------------

    async def _fetch_image(self, results: Results, position: int, square: Square) -> None:
        if square.reason:
            results.refuse(position, square.reason)
            return
        tiles = square.tiles()
        outcomes = await self._get_tiles(tiles)
        if reason := _first_reason(NotAvailable, tiles, outcomes):
            results.refuse_by_status(position, reason)
        elif reason := _first_reason(Failed, tiles, outcomes):
            results.fail(position, reason)
        else:
            await results.store(position, lambda: self._assemble(square, outcomes))
        if position not in results.failed:  # the next start needs the tiles of a failed image
            self._release(tiles)

    async def _get_tiles(self, tiles: Sequence[Tile]) -> list[Outcome]:
        """Get the tiles of an image; if the first one is missing, only that one.

        Returns:
            Received tiles, :class:`NotAvailable` and :class:`Failed`, in the order of ``tiles``.

        Raises:
            Exception: any other error of a tile, such as a full disk or a source that is down.
        """
        # Where there is no imagery, one request shows it. The other tiles go together.
        outcomes = await self._outcomes(tiles[:1])
        if isinstance(outcomes[0], ReceivedTile):
            outcomes += await self._outcomes(tiles[1:])
        for outcome in outcomes:
            if not isinstance(outcome, (ReceivedTile, NotAvailable, Failed)):
                raise outcome
        return outcomes

    async def _outcomes(self, tiles: Sequence[Tile]) -> list[Outcome]:
        return await asyncio.gather(*map(self._get_once, tiles), return_exceptions=True)

    def _assemble(self, square: Square, outcomes: Sequence[Outcome]) -> FetchedImage:
        tiles = [tile for tile in outcomes if isinstance(tile, ReceivedTile)]
        image = self.source.assemble(square, [tile.pixels for tile in tiles], self.size)
        return FetchedImage(image, square.gsd, square.zoom, join_dates(tile.date for tile in tiles))

    def _release(self, tiles: Sequence[Tile]) -> None:
        """Delete the tiles that no other image needs."""
        for tile in set(tiles):
            left = self.needed.pop(tile, 1) - 1
            if left:
                self.needed[tile] = left
            else:
                self._path(tile).unlink(missing_ok=True)

    # -- tiles ---------------------------------------------------------------------------------

    async def _get_once(self, tile: Tile) -> ReceivedTile:
        """Get a tile; images that need it at the same time share the request."""
        if tile not in self.under_way:
            self.under_way[tile] = asyncio.create_task(self._get(tile))
            self.under_way[tile].add_done_callback(lambda _: self.under_way.pop(tile))
        return await self.under_way[tile]

    async def _get(self, tile: Tile) -> ReceivedTile:
        """Get a tile from the disk, or else from the server."""
        if self._path(tile).exists():
            try:
                return await asyncio.to_thread(self._read, tile)
            except Failed:  # a loss of power leaves empty files
                self._path(tile).unlink(missing_ok=True)
        host = self._host_of(tile)
        for attempt in itertools.count():
            try:
                received = await self._request(tile, host)
            except NotAvailable:
                host.failures = 0
                raise
            except Failed as failure:
                self._count_failure(host, failure)
                wait = self._wait_after(attempt)
                if failure.pause is not None:
                    host.pause(failure.pause or wait)
                if not failure.may_retry or attempt == self.policy.retries:
                    raise
                await asyncio.sleep(wait)
            else:
                host.failures = 0
                return received
        raise AssertionError  # counting does not end

    def _host_of(self, tile: Tile) -> Host:
        name = self.source.host(tile)
        if name not in self.hosts:
            self.hosts[name] = Host(name, self.source.rate)
        return self.hosts[name]

    def _wait_after(self, attempt: int) -> float:
        """Return the seconds to wait after an attempt, which count from 0."""
        wait = min(self.policy.backoff * 2.0 ** min(attempt, MAX_DOUBLINGS), MAX_BACKOFF)
        return wait * random.uniform(*JITTER)

    async def _request(self, tile: Tile, host: Host) -> ReceivedTile:
        """Request a tile once and write it to the disk.

        Raises:
            NotAvailable: if the server does not have it.
            Failed: if it did not arrive this time.
        """
        async with self.slots:
            await host.wait_for_slot()
            self.requests += 1
            response = await get(self.client, self.source.address(tile, self.key),
                                 self.policy.timeout, self.max_bytes)
            self.bytes += len(response.body)
            check_status(response, self.source.no_tile)
            if len(response.body) > self.max_bytes:
                raise Failed('larger than any tile of this size', may_retry=False)
            # The slot is held until the tile is on the disk: a kill loses one tile per slot.
            received = await asyncio.to_thread(self._keep, tile, response)
        self.suspects.count(response.body)
        return received

    def _count_failure(self, host: Host, failure: Failed) -> None:
        """Count a response without a tile.

        Raises:
            UserError: if the host asks for a pause of more than an hour, or as many consecutive
                responses had no tile as all requests under way may have attempts.
        """
        host.failures += 1
        pause = failure.pause or 0.0
        if pause > MAX_PAUSE:
            raise UserError(f'{host.name} asks for a pause of {pause / SECONDS_PER_HOUR:.1f} hours '
                            f'({failure}); start again after it. Everything that arrived is kept.')
        if host.failures >= self.policy.concurrency * (self.policy.retries + 1):
            advice = 'look at url, key and rate, or start again later'
            if failure.status is not None and not failure.may_retry:
                advice += (f'; if {failure} means that there is no tile here, add it to no_tile: '
                           f'no_tile={(*self.source.no_tile, failure.status)}')
            raise UserError(f'{host.name} has sent no tile in {host.failures} consecutive '
                            f'responses, the last reason: {failure}. Everything that arrived is '
                            f'kept; {advice}.')

    # -- files of tiles: the date, a line feed, and the body of the response -----------------------

    def _path(self, tile: Tile) -> Path:
        return self.arriving / '-'.join(map(str, tile))

    def _keep(self, tile: Tile, response: Response) -> ReceivedTile:
        date = self.source.date
        if self.source.date_header:
            date = self._parse_date(self._header(response, self.source.date_header))
        pixels = self._decode(response.body, self._header(response, 'Content-Type'))
        write_whole(self._path(tile), date.encode() + b'\n' + response.body)
        return ReceivedTile(pixels, date)

    def _read(self, tile: Tile) -> ReceivedTile:
        kept, _, data = self._path(tile).read_bytes().partition(b'\n')
        date = self.source.date
        if self.source.date_header:
            date = parse_date(kept.decode(errors='replace'))
        return ReceivedTile(self._decode(data), date)

    def _header(self, response: Response, name: str) -> str:
        return self._without_key(response.headers.get(name, ''))

    def _without_key(self, text: str) -> str:
        """Remove the key, which a server may repeat, from what goes to a file or a message."""
        for key in {self.key, quote(self.key, safe='')} - {''}:
            text = text.replace(key, '***')
        return text

    def _parse_date(self, sent: str) -> str:
        date = parse_date(sent)
        if sent.strip() and not date and not self.has_odd_dates:
            self.has_odd_dates = True
            log.warning('fetch: %s of the source %r is not a date, %.70r: left out; correct '
                        'date_header, or set date', self.source.date_header, self.source.name, sent)
        return date

    def _decode(self, data: bytes, content_type: str = '') -> NDArray[np.uint8]:
        """Decode a tile.

        Raises:
            Failed: if the data are not a sound tile of the right size.
            NotAvailable: if the tile looks like a placeholder.
        """
        if data.lstrip()[:1] == b'<':
            raise Failed('HTML or XML instead of an image')
        try:
            self._check_size(*size_of(data, self.max_memory))  # a small file may hold a huge image
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
        if name := matching_example(pixels, self.examples):
            raise NotAvailable(f'placeholder {name}')
        return pixels

    def _check_size(self, width: int, height: int) -> None:
        side = self.source.tile_size
        if (width, height) != (side, side):
            raise Failed(f'the tile has {width} x {height} px, and tile_size is {side}')


def _first_reason(kind: type[Exception], tiles: Sequence[Tile], outcomes: Sequence[Outcome]) -> str:
    """The first error of a kind, so that the reason does not depend on which tile was faster."""
    for tile, outcome in zip(tiles, outcomes):
        if isinstance(outcome, kind):
            return f'{outcome}, tile {tile}'
    return ''


def _spread_first(todo: Sequence[int], number: int) -> list[int]:
    """Move some positions from everywhere in the table to the front."""
    first = dict.fromkeys(todo[index] for index in
                          np.linspace(0, len(todo) - 1, min(number, len(todo))).round().astype(int))
    return [*first, *(position for position in todo if position not in first)]
