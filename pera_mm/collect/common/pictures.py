"""A folder of example pictures, as the settings ``placeholders`` name one."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pera_mm.datasets.reading import SUFFIXES, UnreadableImage, read_image
from pera_mm.errors import UserError


def read_pictures(folder: str | os.PathLike | None,
                  setting: str) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    """Read the pictures in a folder, sorted by name. Other files and hidden files are skipped.

    Args:
        folder: The folder; its subfolders are not searched. None: no picture.
        setting: The setting of the config that names the folder, for messages.

    Yields:
        The path of each picture and its pixels, uint8 RGB ``[H, W, 3]``.

    Raises:
        UserError: if this is not a folder, contains no picture, or a picture cannot be read.
    """
    if folder is None:
        return
    if not isinstance(folder, (str, os.PathLike)) or not Path(folder).is_dir():
        raise UserError(f'{setting}={folder!r} is not a folder; put pictures that say "no imagery" '
                        'into one, or leave the setting out.')
    paths = [path for path in sorted(Path(folder).iterdir())
             if path.suffix.lower().encode() in SUFFIXES and not path.name.startswith('.')]
    if not paths:
        raise UserError(f'there is no picture in {setting}={folder!r}; put pictures that say "no '
                        'imagery" there, or leave the setting out.')
    for path in paths:
        try:
            pixels = read_image(str(path))
        except UnreadableImage as error:
            raise UserError(f'the placeholder {path} cannot be read: {error}; replace or delete '
                            'it.') from None
        yield path, pixels
