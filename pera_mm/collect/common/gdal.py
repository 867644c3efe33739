"""Open rasters: local files by paths and patterns, or remote files that GDAL reads in pieces."""

import glob
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import rasterio

from pera_mm.errors import UserError

MAX_OPEN = 8  # rasters per thread: the one in use, and its neighbors
MAX_RETRIES = 5
RETRY_DELAY = 1  # s
CONNECT_TIMEOUT = 20  # s
TIMEOUT = 120  # s; of a whole request

T = TypeVar('T')
R = TypeVar('R')


def find_rasters(paths: str | Path | Sequence[str | Path], setting: str) -> list[str]:
    """List files, patterns and addresses in their order, each once; a pattern's files are sorted.

    Args:
        paths: One or several.
        setting: The setting of the config that names them, for messages.

    Raises:
        UserError: if there are none, or a pattern matches no file.
    """
    if not isinstance(paths, str | Path | Sequence):
        raise UserError(f'{setting} must be a path or a list of paths, got {paths!r}.')
    found: dict[str, None] = {}
    for path in map(str, [paths] if isinstance(paths, str | Path) else paths):
        matches = [path] if is_remote(path) else sorted(
            glob.glob(os.path.expanduser(path), recursive=True))
        if not matches:
            raise UserError(f'no raster matches {path!r} (looked for in {os.getcwd()}); correct '
                            f'{setting}.')
        found.update(dict.fromkeys(matches))
    if not found:
        raise UserError(f'{setting} is empty; name at least one raster.')
    return list(found)


def is_remote(path: str) -> bool:
    """Whether a path is an address for GDAL and not a local file."""
    return '://' in path or path.startswith(('/vsi', 'EEDAI:'))


def _options(path: str) -> dict[str, Any]:
    """Choose GDAL's options: requests for a remote raster are retried, its folder is not listed."""
    if not is_remote(path):
        return {}
    return dict(GDAL_DISABLE_READDIR_ON_OPEN='EMPTY_DIR', GDAL_HTTP_MAX_RETRY=MAX_RETRIES,
                GDAL_HTTP_RETRY_DELAY=RETRY_DELAY, GDAL_HTTP_CONNECTTIMEOUT=CONNECT_TIMEOUT,
                GDAL_HTTP_TIMEOUT=TIMEOUT)


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """Open a raster and close it at the end."""
    with rasterio.Env(**_options(path)), rasterio.open(path) as file:
        yield file


class OpenRasters:
    """A cache of open rasters, separate for each thread.

    GDAL keeps the decoded blocks of an open file for the next window, and does not request the
    header of a remote file again.
    """

    def __init__(self) -> None:
        self._own = threading.local()
        self._all: set[Any] = set()

    @contextmanager
    def opened(self, path: str) -> Iterator[Any]:
        """Open a raster; it stays open until others take its place, or :meth:`close`."""
        files: dict[str, Any] = self._own.__dict__.setdefault('files', {})  # in order of last use
        with rasterio.Env(**_options(path)):
            file = files.pop(path, None)
            if file is None or file.closed:
                file = rasterio.open(path)
                self._all.add(file)
            files[path] = file
            if len(files) > MAX_OPEN:
                self._close(files.pop(next(iter(files))))
            try:
                yield file
            except BaseException:  # the raster may be in any state
                self._close(files.pop(path))
                raise

    def _close(self, file: Any) -> None:
        file.close()
        self._all.discard(file)

    def close(self) -> None:
        """Close all rasters; no thread may be reading."""
        while self._all:
            self._all.pop().close()


def in_threads(work: Callable[[T], R], items: Iterable[T], threads: int,
               stop: Callable[[], None] = lambda: None) -> list[R]:
    """Apply ``work`` to each item, in several threads; the first error ends all of them.

    Args:
        work: The function of one item.
        items: Its arguments.
        threads: The number of threads.
        stop: Called on an error, so that running calls can end early.

    Returns:
        The results, in the order of the items.
    """
    def in_env(item: T) -> R:
        with rasterio.Env():  # without it, rasterio sets GDAL and PROJ up anew for every call
            return work(item)

    pool = ThreadPoolExecutor(threads)
    futures = [pool.submit(in_env, item) for item in items]
    try:
        for future in as_completed(futures):
            future.result()
    except BaseException:
        stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]
