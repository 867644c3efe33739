"""Tiles that providers send where they have no imagery: known by example, or suspected.

A tile is compared as the server sends it: in an assembled image its text and pattern are shifted
and scaled, and look like nothing known.
"""

from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pera_mm.collect.common.tables import log
from pera_mm.datasets.reading import JPEG, SUFFIXES, UnreadableImage, read_image
from pera_mm.errors import UserError
from pera_mm.files import write_whole

NEAR = 2.0  # of 255 levels, on average: compressed again, or with another number printed in it
REPEATS = 20  # of the same bytes, from which on a tile is suspected
REMEMBERED = 10_000  # tiles
MAX_COPIES = 100  # of suspected tiles; a server may repeat any number of them


def load_examples(folder: str | None, tile_size: int) -> dict[str, NDArray[np.uint8]]:
    """The pictures in a folder, uint8 ``[tile_size, tile_size, 3]``, by name.

    Raises:
        ValueError: if there is no folder, no picture in it, one cannot be read, or has other sides.
    """
    if folder is None:
        return {}
    if not isinstance(folder, str) or not Path(folder).is_dir():
        raise UserError(f'placeholders={folder!r} of the source is no folder; put tiles that say '
                        '"no imagery" into one, as the server sends them, or leave it out.')
    paths = [path for path in sorted(Path(folder).iterdir())
             if path.suffix.lower().encode() in SUFFIXES and not path.name.startswith('.')]
    if not paths:
        raise UserError(f'there is no picture in placeholders={folder!r} of the source; put tiles '
                        'that say "no imagery" there, or leave it out.')
    examples = {}
    for path in paths:
        try:
            examples[path.name] = read_image(str(path))
        except UnreadableImage as error:
            raise UserError(f'the placeholder {path} cannot be read: {error}; replace or delete '
                            'it.') from None
        if examples[path.name].shape[:2] != (tile_size, tile_size):
            raise UserError(f'the placeholder {path} has not the {tile_size} x {tile_size} px of '
                            'a tile: save it as the server sends it.')
    return examples


def example_like(pixels: NDArray[np.uint8], examples: dict[str, NDArray[np.uint8]]) -> str | None:
    """The name of the example that a tile looks like; None for a tile of its own."""
    for name, example in examples.items():
        if cv2.absdiff(pixels, example).mean() <= NEAR:
            return name
    return None


class Suspects:
    """Tells, once each, of tiles that came again and again, and keeps a copy to look at.

    Args:
        folder: For the copies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: OrderedDict[bytes, int] = OrderedDict()
        self.copies = 0

    def see(self, tile: bytes) -> None:
        """Count a tile, as it was sent, among the last ones."""
        digest = blake2b(tile, digest_size=8).digest()
        self.seen[digest] = self.seen.pop(digest, 0) + 1
        if len(self.seen) > REMEMBERED:
            self.seen.popitem(last=False)
        if self.seen[digest] == REPEATS and self.copies < MAX_COPIES:
            self.copies += 1
            copy = self.folder / f'{digest.hex()}{".jpg" if tile.startswith(JPEG) else ".png"}'
            write_whole(copy, tile)
            log.warning('fetch: the same tile has come %d times, see %s: if it says that there is '
                        'no imagery, put it into a folder and name that in source.placeholders',
                        REPEATS, copy)
