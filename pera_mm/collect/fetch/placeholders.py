"""Tiles that providers send where they have no imagery: known by example, or suspected.

A tile is compared as the server sends it. In an assembled image its text and pattern are shifted
and scaled, so that they match no example.
"""

from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pera_mm.collect.common.pictures import read_pictures
from pera_mm.collect.common.tables import log
from pera_mm.datasets.reading import JPEG
from pera_mm.errors import UserError
from pera_mm.files import write_whole

MAX_DIFFERENCE = 2.0  # mean of 255 levels: compressed again, or with another number in its text
REPEATS = 20  # of the same bytes make a tile suspect
MAX_REMEMBERED = 10_000  # tiles
MAX_COPIES = 100  # of suspects: a server may repeat any number of tiles


def load_examples(folder: str | None, tile_size: int) -> dict[str, NDArray[np.uint8]]:
    """Read the images of a folder.

    Args:
        folder: Of the examples; None: there are none.
        tile_size: Pixels of a tile's side.

    Returns:
        uint8 ``[tile_size, tile_size, 3]`` by file name.

    Raises:
        UserError: if the folder does not exist or has no image, or an image cannot be read or has
            another size.
    """
    examples = {}
    for path, pixels in read_pictures(folder, 'fetch.source.placeholders'):
        if pixels.shape[:2] != (tile_size, tile_size):
            raise UserError(f'the placeholder {path} does not have the {tile_size} x '
                            f'{tile_size} px of a tile; save it as the server sends it.')
        examples[path.name] = pixels
    return examples


def matching_example(pixels: NDArray[np.uint8],
                     examples: dict[str, NDArray[np.uint8]]) -> str | None:
    """Return the name of the example that a tile looks like; None if there is none.

    Args:
        pixels: uint8 ``[tile_size, tile_size, 3]``.
        examples: As :func:`load_examples` returns them.
    """
    for name, example in examples.items():
        if cv2.absdiff(pixels, example).mean() <= MAX_DIFFERENCE:
            return name
    return None


class Suspects:
    """A detector of repeated tiles: it warns once of each and keeps a copy to look at.

    Args:
        folder: For the copies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: OrderedDict[bytes, int] = OrderedDict()
        self.copies = 0

    def count(self, tile: bytes) -> None:
        """Count a tile, as it was sent, among the recent ones."""
        digest = blake2b(tile, digest_size=8).digest()
        self.seen[digest] = self.seen.pop(digest, 0) + 1
        if len(self.seen) > MAX_REMEMBERED:
            self.seen.popitem(last=False)
        if self.seen[digest] == REPEATS and self.copies < MAX_COPIES:
            self.copies += 1
            copy = self.folder / f'{digest.hex()}{".jpg" if tile.startswith(JPEG) else ".png"}'
            write_whole(copy, tile)
            log.warning('fetch: the same tile has come %d times, see %s: if it says that there is '
                        'no imagery, put it into a folder and name that in source.placeholders',
                        REPEATS, copy)
