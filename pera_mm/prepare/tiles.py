"""Tiles of one size that cover an image; the last ones are shifted back."""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from pera_mm.datasets.reading import decode_image
from pera_mm.errors import UserError
from pera_mm.prepare.archives import BadFile


def tile_starts(length: int, tile: int) -> list[int]:
    """List the starts along one side: every ``tile`` pixels, the last at ``length - tile``.

    For 6000 px in tiles of 512: 0, 512 … 5120, 5488; the last two of the twelve tiles overlap by
    144 px.

    Raises:
        ValueError: if the image is smaller than a tile.
    """
    if length < tile:
        raise UserError(f'an image of {length} px is smaller than a tile of {tile} px')
    return [min(start, length - tile) for start in range(0, length, tile)]


def tile_corners(size: int, tile: int) -> list[tuple[int, int]]:
    """List (x, y) of every tile of a square image, row by row, in pixels."""
    starts = tile_starts(size, tile)
    return [(x, y) for y in starts for x in starts]


def tile_name(stem: str, corner: tuple[int, int]) -> str:
    """Name the file of a tile: ``<image>_<x>_<y>.png``, the upper left corner in pixels."""
    return f'{stem}_{corner[0]:04d}_{corner[1]:04d}.png'


def read_rgb(data: bytes) -> NDArray[np.uint8]:
    """Decode an image file as RGB ``[H, W, 3]``.

    Raises:
        BadFile: if it cannot be read.
    """
    try:
        return decode_image(data)
    except Exception as error:  # decoders raise anything on broken bytes
        raise BadFile(f'cannot be read ({error})') from error


def cut(pixels: NDArray[np.uint8], tile: int) -> Iterator[bytes]:
    """Cut a square image into PNG files, in the order of :func:`tile_corners`.

    Args:
        pixels: RGB ``[S, S, 3]`` or labels ``[S, S]``.
        tile: Side of a tile in pixels.
    """
    for x, y in tile_corners(len(pixels), tile):
        yield png(pixels[y:y + tile, x:x + tile])


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode RGB ``[H, W, 3]`` or labels ``[H, W]`` as a PNG file."""
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode('.png', pixels)[1].tobytes()
