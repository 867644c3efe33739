"""Opening rasters: by paths and patterns here, or at addresses that GDAL reads piece by piece."""

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

KEPT_OPEN = 8  # rasters per thread: one that is worked on, and its neighbours

T = TypeVar('T')
R = TypeVar('R')


def find_rasters(paths: str | Path | Sequence[str | Path], setting: str) -> list[str]:
    """Files, patterns and addresses as a list in their order, each once; a pattern's files sorted.

    Args:
        paths: One or several.
        setting: Of the config that names them, for messages.

    Raises:
        ValueError: if there are none, or a pattern matches no file.
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
    """Whether a path is an address for GDAL and not a file here."""
    return '://' in path or path.startswith(('/vsi', 'EEDAI:'))


def _options(path: str) -> dict[str, Any]:
    """Of GDAL: a remote raster is tried again, and its neighbours are not listed."""
    return dict(GDAL_DISABLE_READDIR_ON_OPEN='EMPTY_DIR', GDAL_HTTP_MAX_RETRY=5,
                GDAL_HTTP_RETRY_DELAY=1, GDAL_HTTP_CONNECTTIMEOUT=20,
                GDAL_HTTP_TIMEOUT=120) if is_remote(path) else {}


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """An open raster, closed again at the end."""
    with rasterio.Env(**_options(path)), rasterio.open(path) as file:
        yield file


class OpenRasters:
    """Rasters that stay open from one read to the next, each thread's own.

    What GDAL has decoded of an open file is there for the next window, and a remote one is not
    asked for its head again.
    """

    def __init__(self) -> None:
        self._own = threading.local()
        self._all: set[Any] = set()

    @contextmanager
    def opened(self, path: str) -> Iterator[Any]:
        """A raster, open until others took its place or :meth:`close`."""
        files: dict[str, Any] = self._own.__dict__.setdefault('files', {})  # the last used last
        with rasterio.Env(**_options(path)):
            file = files.pop(path, None)
            if file is None or file.closed:
                file = rasterio.open(path)
                self._all.add(file)
            files[path] = file
            if len(files) > KEPT_OPEN:
                self._close(files.pop(next(iter(files))))
            try:
                yield file
            except BaseException:  # whatever state it is in
                self._close(files.pop(path))
                raise

    def _close(self, file: Any) -> None:
        file.close()
        self._all.discard(file)

    def close(self) -> None:
        """Close them all; no thread may be reading."""
        while self._all:
            self._all.pop().close()


def in_threads(work: Callable[[T], R], items: Iterable[T], threads: int,
               stop: Callable[[], None] = lambda: None) -> list[R]:
    """What ``work`` makes of each item, in their order; the first error of any ends them all.

    Args:
        work: Called in several threads.
        items: Its arguments.
        threads: So many at once.
        stop: Called on an error, so that those under way can end early.
    """
    def in_env(item: T) -> R:
        with rasterio.Env():  # rasterio would set GDAL and PROJ up anew for every call
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
