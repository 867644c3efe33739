"""The pixels of a mask as its file stores them: class ids, gray values or colors."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pera_mm.datasets.reading import PICTURES, UnreadableImage, reason_of

MASKS = (*PICTURES, 'TIFF', 'PPM')  # not all of Pillow's: for EPS it runs a program


class Mask(NamedTuple):
    """A decoded mask.

    Attributes:
        values: ``[H, W]``, or ``[H, W, channels]`` of a color picture.
        mode: Pillow's name of the pixels' type, such as 'L' (8-bit gray) or 'RGB'.
    """

    values: NDArray
    mode: str


def read_mask(source: str | Path | bytes, mode: str | None = None) -> Mask:
    """Decode a mask with Pillow.

    Args:
        source: The path, or the bytes of the file.
        mode: Pillow's mode to convert the pixels to. Bilevel pixels become 0 and 255 in 'L'.
            None: the pixels stay as they are stored; those of a palette are its indices.

    Raises:
        UnreadableImage: if it cannot be decoded.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file, formats=MASKS) as image:
            pixels = image if mode is None else image.convert(mode)
            return Mask(np.asarray(pixels), pixels.mode)
    except (MemoryError, ImportError):  # not the file's fault
        raise
    except Exception as error:  # decoders raise anything on broken bytes
        raise UnreadableImage(reason_of(error)) from error
