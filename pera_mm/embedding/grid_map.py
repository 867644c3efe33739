"""The patch tokens of a scene as a map: a pixel per patch, a band per number of the vector."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pera_mm.embedding.pictures import Picture, Scenes

BLOCK = 128  # side of the map's tiles, pixels; GDAL keeps some tiles of all bands in memory


def windows_by_row(scenes: Scenes) -> list[range]:
    """Return the numbers of the windows in each row of the only scene."""
    frame, = scenes.frames
    columns = len(scenes.starts(frame.width))
    return [range(start, start + columns) for start in range(0, len(scenes), columns)]


def map_size(scenes: Scenes) -> tuple[int, int]:
    """Return the rows and columns of the map: the patches that cover the scene."""
    frame, = scenes.frames
    return -(-frame.height // scenes.patch_size), -(-frame.width // scenes.patch_size)


def make_strip(scenes: Scenes, number: int, width: int,
               seen: Iterable[tuple[Picture, np.ndarray]]) -> np.ndarray:
    """Lay the patches of a row of windows side by side.

    Args:
        scenes: of one scene.
        number: of the row of windows.
        width: D, of the vectors.
        seen: the pictures of the row, each with its patches ``[D, h, w]``.

    Returns:
        float32 ``[D, rows, columns]``: the rows of the map that no earlier strip has, NaN where
        the scene has no valid pixel.
    """
    rows, columns = map_size(scenes)
    side, patch = scenes.size // scenes.patch_size, scenes.patch_size
    first = number * side
    strip = np.full((width, min(side, rows - first), columns), np.nan, np.float32)
    for picture, grid in seen:
        inside = np.nonzero(picture.keep)
        down, right = (int(start) // patch for start in (picture.box[1], picture.box[0]))
        strip[:, inside[0] + down - first, inside[1] + right] = grid[:, inside[0], inside[1]]
    return strip


def write_map(file: Path, work: Path, scenes: Scenes, strips: Iterable[np.ndarray], width: int,
              facts: Mapping[str, Any]) -> int:
    """Write the strips as a cloud-optimized GeoTIFF, float32, NaN for no data.

    Args:
        file: the map.
        work: a file beside it, as large as the map without compression; it is removed.
        scenes: of one scene.
        strips: from :func:`make_strip`, from top to bottom.
        width: D.
        facts: what is written into its tags.

    Returns:
        The number of pixels with a value.
    """
    import rasterio
    from rasterio.shutil import copy
    from rasterio.transform import Affine
    from rasterio.windows import Window

    frame, = scenes.frames
    rows, columns = map_size(scenes)
    placed = {}
    if frame.crs is not None:
        (a, b, c, d, e, f), side = frame.transform[:6], scenes.patch_size
        placed = dict(crs=frame.crs, transform=Affine(a * side, b * side, c, d * side, e * side, f))
    # Its strips are the pieces, so that each block is written once.
    with rasterio.open(work, 'w', driver='GTiff', height=rows, width=columns, count=width,
                       dtype='float32', nodata=np.nan, interleave='band', BIGTIFF='IF_SAFER',
                       blockysize=min(scenes.size // scenes.patch_size, rows), **placed) as raw:
        raw.update_tags(pera_mm=json.dumps(dict(facts)))
        top = valid = 0
        for strip in strips:
            raw.write(strip, window=Window(0, top, columns, strip.shape[1]))
            top += strip.shape[1]
            valid += int(np.isfinite(strip[0]).sum())
    copy(work, file, driver='COG', compress='DEFLATE', predictor='YES', blocksize=BLOCK,
         bigtiff='IF_SAFER', overview_resampling='AVERAGE')
    work.unlink()
    return valid
