"""Opening rasters: by paths and patterns here, or at addresses that GDAL reads piece by piece."""

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio


def find_rasters(paths: str | Path | Sequence[str | Path], setting: str) -> list[str]:
    """Files, patterns and addresses as a list in their order, each once; a pattern's files sorted.

    Args:
        paths: One or several.
        setting: Of the config that names them, for messages.

    Raises:
        ValueError: if there are none, or a pattern matches no file.
    """
    found: dict[str, None] = {}
    for path in map(str, [paths] if isinstance(paths, str | Path) else paths):
        matches = [path] if is_remote(path) else sorted(
            glob.glob(os.path.expanduser(path), recursive=True))
        if not matches:
            raise ValueError(f'no raster matches {path!r} (looked for in {os.getcwd()}); correct '
                             f'{setting}.')
        found.update(dict.fromkeys(matches))
    if not found:
        raise ValueError(f'{setting} is empty; name at least one raster.')
    return list(found)


def is_remote(path: str) -> bool:
    """Whether a path is an address for GDAL and not a file here."""
    return '://' in path or path.startswith(('/vsi', 'EEDAI:'))


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """An open raster; a remote one is tried again, and its neighbours are not listed."""
    remote = dict(GDAL_DISABLE_READDIR_ON_OPEN='EMPTY_DIR', GDAL_HTTP_MAX_RETRY=5,
                  GDAL_HTTP_RETRY_DELAY=1, GDAL_HTTP_CONNECTTIMEOUT=20,
                  GDAL_HTTP_TIMEOUT=120) if is_remote(path) else {}
    with rasterio.Env(**remote), rasterio.open(path) as file:
        yield file
