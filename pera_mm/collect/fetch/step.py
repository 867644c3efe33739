"""The command ``rsrsd.py fetch``: fetch an image at every point, and request nothing twice.

The outcomes of a request without a tile:

* HTTP 404, 410, 204 or another status of ``no_tile``, and tiles that look like ``placeholders``:
  the tile does not exist. The image is *refused*. So is an image that leaves the projection or the
  rasters. Later starts do not request it. Refusals by a server are final once the folder has an
  image; before, the URL may be wrong.
* Timeouts, broken connections, HTTP 408, 429 and 5xx, truncated or undecodable images, and HTML or
  JSON instead of an image (quota and login pages): the request is repeated ``retries`` times. The
  waits double and have jitter. After the last attempt the image has *failed*; the next start tries
  it again.
* Retry-After, and 429 and 503 without it, hold back all requests to the host.
* Every other status (401, 403, redirects), pixels that are not 8-bit without ``scale``, and a body
  too large for a tile: the image has failed at once, for this start.

The step stops when ``concurrency * (retries + 1)`` consecutive responses contain no tile, or the
first 100 images are refused by status: the source is down, the request is malformed, or access is
denied. What arrived is kept.
"""

import asyncio
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from pera_mm.collect.common.settings import is_number, is_whole
from pera_mm.collect.common.tables import TILE, Journal, log, progress_bar, read_table, write_table
from pera_mm.collect.fetch.download import Download
from pera_mm.collect.fetch.http import RequestPolicy
from pera_mm.collect.fetch.parallel import for_each, one_thread_per_core
from pera_mm.collect.fetch.rasters import RasterSource
from pera_mm.collect.fetch.results import FetchedImage, Results
from pera_mm.collect.fetch.sources import NotAvailable
from pera_mm.collect.fetch.tiles import TileSource
from pera_mm.errors import UserError

SOURCES = {'tiles': TileSource, 'rasters': RasterSource}
PIXEL_SETTINGS = ('name', 'zooms', 'tile_size', 'bands', 'scale')  # of a source
BYTES_PER_PIXEL = {'jpg': 0.2, 'png': 1.2}  # of land imagery, low; JPEG at quality 95
BYTES_PER_GB = 1e9
SAFE_ID = re.compile(r'[\w-][\w.-]*', re.ASCII)  # it becomes the name of a file
POINT_RANGES = (('lon', -180, 180), ('lat', -90, 90), ('gsd', 1e-3, 1e5))  # degrees; m per pixel
IMAGES_PER_CORE = 2  # rendered from rasters at a time: one is read while another is encoded


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
        format: The format of the images.
        quality: The quality of JPEG, 1 to 100.
        concurrency: Requests at a time, and images in work.
        retries: Further attempts for a tile that did not arrive.
        timeout: Seconds for a whole response.
        backoff: Seconds before the first retry; doubled for each further one.
        accept_terms: The source's name: its terms are read and accepted.

    Returns:
        The numbers of images, of images tried now and of missing ones, and the reasons.

    Raises:
        UserError: if a setting or a point is wrong, the terms are not accepted, the key is missing,
            the folder was begun with other settings, the disk is too small, or the source is down.
        OSError: if a file cannot be written; what arrived before is kept.
    """
    _check_settings(size, format, quality, concurrency, retries, timeout, backoff)
    origin = build_source(source)
    _check_terms(origin, accept_terms)
    key = origin.key() if isinstance(origin, TileSource) else ''
    points = _read_points(folder / 'points.csv')
    settings = dict(type=source['type'], size=size, format=format, quality=quality)
    settings |= {name: getattr(origin, name) for name in PIXEL_SETTINGS if hasattr(origin, name)}
    with Journal(folder / 'fetch.jsonl') as journal:
        results = Results(folder, points, journal, format, quality)
        results.begin(_as_json(settings), _as_json(source.get('url', source.get('paths'))))
        todo = results.open_points()
        _check_space(folder, len(todo), size, format)
        log.info('fetch: %d of %d images exist or are refused; source %s (%s)',
                 len(points) - len(todo), len(points), origin.name, origin.attribution)
        with progress_bar('fetch', len(points), len(points) - len(todo)) as results.advance:
            if isinstance(origin, TileSource):
                policy = RequestPolicy(concurrency, retries, timeout, backoff)
                download = Download(folder / 'arriving', origin, key, size, policy)
                asyncio.run(download.run(results, todo))
            else:
                asyncio.run(_render_all(origin, results, todo, size))
    if not results.failed:
        shutil.rmtree(folder / 'arriving', ignore_errors=True)
    _write_tables(folder, points, results, origin)
    return _summary(results, len(todo), origin)


def _as_json(value: Any) -> Any:
    """A value as the journal gives it back: tuples are lists."""
    return json.loads(json.dumps(value, default=str))


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
    """Build the source that a config describes.

    Raises:
        UserError: if its type is unknown, or an argument is unknown, missing or wrong.
    """
    settings = dict(source) if isinstance(source, Mapping) else {}
    kind = settings.pop('type', None)
    if kind not in list(SOURCES):
        raise UserError(f"type of the source must be 'tiles' or 'rasters', got {kind!r}.")
    try:
        return SOURCES[kind](**settings)
    except TypeError as error:  # __init__() got an unexpected keyword argument 'color'
        raise UserError(f'The source of type {kind!r} cannot be built: '
                        f'{str(error).partition("() ")[2] or error}.') from None


def _check_terms(source: TileSource | RasterSource, accepted: str) -> None:
    if accepted != source.name:
        terms, credit = source.terms.rstrip('.'), source.attribution.rstrip('.')
        raise UserError(f'The source {source.name!r} may be used on these terms: {terms}. Credit: '
                        f'{credit}. If you accept them, give its name: --accept-terms '
                        f'{source.name!r}.')


def _read_points(path: Path) -> pd.DataFrame:
    points = read_table(path, ('id', 'lon', 'lat', 'gsd'), 'the step sample, or by hand')
    for name, least, most in POINT_RANGES:
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
        raise UserError(f'{images} images need about {needed / BYTES_PER_GB:.1f} GB, and the disk '
                        f'of {folder} has {free / BYTES_PER_GB:.1f} GB left; make room '
                        'or take fewer points.')


# -- local rasters -------------------------------------------------------------------------------


async def _render_all(source: RasterSource, results: Results, todo: Sequence[int],
                      size: int) -> None:
    async def render(position: int) -> None:
        def make() -> FetchedImage:
            lon, lat, requested_gsd = results.point(position)
            pixels, gsd = source.render(lon, lat, requested_gsd, size)
            return FetchedImage(Image.fromarray(pixels), gsd, None, source.date)

        try:
            await results.store(position, make)
        except NotAvailable as refusal:
            results.refuse(position, str(refusal))

    with one_thread_per_core():
        await for_each(todo, IMAGES_PER_CORE * (os.cpu_count() or 1), render)


# -- tables and summary --------------------------------------------------------------------------


def _write_tables(folder: Path, points: pd.DataFrame, results: Results,
                  source: TileSource | RasterSource) -> None:
    """Write tiles.csv and missing.csv, in the order of the points."""
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
