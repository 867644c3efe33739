"""Reading of any image file as 8-bit RGB, by one rule.

* JPEG, PNG, BMP, WebP, GIF (Pillow): gray is repeated, palette and CMYK are converted by Pillow.
  ``bands`` has no effect on them.
* TIFF, JPEG 2000 and 16-bit PNG (GDAL): ``bands`` are taken in the order given, 1-based. The
  default is the bands tagged red, green and blue, else the first three, or the first one repeated
  where the file has fewer than three (:mod:`pera_mm.datasets.raster_bands`). Palette, CMYK and
  YCbCr files become RGB.
* 8-bit pixels stay as they are. All other types are mapped linearly to 0..255 and clipped:
  ``scale='auto'`` stretches every band of every image from its 2nd to its 98th percentile over
  the valid pixels (the default of QGIS); ``scale=(low, high)`` is the same for all images.
* Pixels without a value are black: alpha is composited on black, and nodata, masked and NaN pixels
  become 0. Named bands stay free of alpha. A band tagged alpha that holds other values than
  opacity, as near infrared does with GDAL's defaults, is a band like the others.
* The EXIF orientation is ignored, as in the reference.
* Files are read whole, up to Pillow's limit of ``2 * PIL.Image.MAX_IMAGE_PIXELS`` (179 million
  pixels, its protection against decompression bombs) and up to 4 GiB of memory for decoding,
  computed from the head. That is enough for 179 million pixels of 8-bit RGB, 134 million of three
  16-bit bands or 52 million of three float64 bands. Cut larger rasters into tiles.
* Damaged files are refused, also where a decoder would fill the missing pixels
  (:mod:`pera_mm.datasets.completeness`).

Pillow is used and not OpenCV, since many OpenCV builds fill files that end early with gray, while
Pillow reports them. On one core Pillow takes 1.4 ms for a 512 x 512 JPEG of 129 KB, OpenCV and
torchvision 1.3 ms. Other files of 512 x 512 pixels and 8 bits: TIFF 0.9 ms, with deflate 2.9 ms,
PNG 6.9 ms, JPEG 2000 68 ms; a 16-bit TIFF 5.3 ms.
"""

import io
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from PIL import Image

from pera_mm.datasets.completeness import (
    JPEG_2000,
    PNG,
    TIFF,
    check_whole,
    jpeg_2000_overhead,
)
from pera_mm.datasets.raster_bands import choose_bands, has_mask, opacity_of
from pera_mm.errors import UserError, check_open_files

Scale = Literal['auto'] | tuple[float, float]

SUFFIXES = (b'.tif', b'.tiff', b'.png', b'.jpg', b'.jpeg', b'.jp2', b'.bmp', b'.webp', b'.gif')
PICTURES = ('JPEG', 'PNG', 'BMP', 'WEBP', 'GIF')  # not all of Pillow's: for EPS it runs a program
# Not all of GDAL's, either: some of its formats name other files and addresses.
RASTER_DRIVERS = ('GTiff', 'PNG', 'JP2OpenJPEG', 'JP2KAK', 'JP2ECW', 'JP2MrSID', 'JP2Lura')
PNG_BIT_DEPTH = slice(24, 25)  # of the header
MAX_FILE_BYTES = 1 << 30  # files are read whole, by every worker
MAX_MEMORY_BYTES = 4 << 30  # for decoding one file: 24 for each pixel that Pillow allows
MAX_REASON = 500  # characters; a decoder may quote the file
WORKING_BYTES = 16  # per pixel: masks, a band in float32, and the result
ROWS_PIXELS = 1 << 20  # composited at a time
JPEG = b'\xff\xd8\xff'
PERCENTILES = (2, 98)
PERCENTILE_PIXELS = 50_000  # enough for a percentile; sorting all pixels would double the time


class UnreadableImage(Exception):
    """An error about an image file that cannot be decoded; the text is the reason in one line."""


class NoScale(ValueError):
    """An error about pixels that are not 8-bit, where no scale is given."""


def check_rule(bands: tuple[int, ...] | None, scale: Scale) -> None:
    """Check the bands and the scale of a config.

    Raises:
        ValueError: if ``bands`` is not one or three 1-based numbers, or ``scale`` is neither
            'auto' nor two rising numbers.
    """
    if bands is not None and not _are_bands(bands):
        raise UserError('bands must be one (gray) or three 1-based band numbers, e.g. (3, 2, 1) or '
                        f'(4, ), got {bands!r}.')
    if not (isinstance(scale, str) and scale == 'auto') and not _is_range(scale):
        raise UserError("scale must be 'auto' or (low, high) with low < high in the unit of the "
                        f'pixels, e.g. (0, 3000), got {scale!r}.')


def _are_bands(bands: Any) -> bool:
    return isinstance(bands, tuple) and len(bands) in (1, 3) and all(
        isinstance(band, int | np.integer) and band >= 1 and not isinstance(band, bool)
        for band in bands)


def _is_range(scale: Any) -> bool:
    return isinstance(scale, tuple) and len(scale) == 2 and all(
        isinstance(value, int | float | np.number) and math.isfinite(value)
        for value in scale) and scale[0] < scale[1]


def rule_of(bands: Sequence[int] | None, scale: 'Scale | Sequence[float]',
            ) -> tuple[tuple[int, ...] | None, Scale]:
    """Make the bands and the scale of a config, where they may be lists, a checked rule.

    Raises:
        ValueError: as :func:`check_rule`.
    """
    chosen, rule = (tuple(value) if isinstance(value, list) else value for value in (bands, scale))
    check_rule(chosen, rule)  # type: ignore[arg-type]  # that is checked here
    return chosen, rule  # type: ignore[return-value]


def read_image(path: str | bytes, bands: tuple[int, ...] | None = None,
               scale: Scale = 'auto') -> np.ndarray:
    """Read an image file as 8-bit RGB; the module's docstring states the rule.

    Args:
        path: The file.
        bands: One or three 1-based band numbers for TIFF and JPEG 2000; None: those of the module's
            rule.
        scale: 'auto' or (low, high) for pixels that are not 8-bit.

    Returns:
        uint8 ``[H, W, 3]``, contiguous.

    Raises:
        UnreadableImage: if the file is missing, empty, truncated, broken, too large or not an
            image, lacks a band, or has no valid pixel.
    """
    return decode_safely(read_file(path), bands, scale, os.fsdecode(path))


def read_file(path: str | bytes) -> bytes:
    """Read the bytes of an image file.

    Raises:
        UnreadableImage: if it is missing, not a regular file, or larger than 1 GiB.
    """
    with as_unreadable(), open(path, 'rb', opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):  # a device need not end
            raise ValueError('not a regular file')
        if status.st_size > MAX_FILE_BYTES:
            raise ValueError('the file is larger than 1 GiB: cut it into tiles')
        return file.read()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for a writer


def decode_safely(data: bytes, bands: tuple[int, ...] | None = None, scale: Scale = 'auto',
                  place: str = 'an image') -> np.ndarray:
    """Decode the bytes of a file as :func:`read_image` does, with the same errors.

    ``place`` is its name in a warning.
    """
    with as_unreadable():
        return decode_image(data, bands, scale, place=place)


@contextmanager
def as_unreadable() -> Iterator[None]:
    """Turn a decoder's errors into UnreadableImage, but not those that are not the file's fault."""
    try:
        yield
    except (MemoryError, ImportError):  # not the image's fault
        raise
    except Exception as error:  # decoders raise anything on broken bytes
        cause = error.__cause__ or error  # GDAL hides its reason in the cause
        check_open_files(cause)
        raise UnreadableImage(reason_of(cause)) from error


def reason_of(error: BaseException) -> str:
    """Describe a decoder's error in one line, without the address of a buffer in memory."""
    # Pillow says 'cannot identify image file <_io.BytesIO object at 0x7f...>'.
    text = re.sub(' <_io.BytesIO[^>]*>', '', f'{type(error).__name__}: {error}')
    line = ' '.join(text.split())[:MAX_REASON]
    return ''.join(letter if letter.isprintable() else '?' for letter in line)  # of the file


def decode_image(data: bytes, bands: tuple[int, ...] | None = None, scale: Scale | None = 'auto',
                 max_memory: int = MAX_MEMORY_BYTES, place: str = 'an image') -> np.ndarray:
    """Decode the bytes of a file as :func:`read_image` does; the decoder's errors pass.

    Args:
        data: The bytes of the file.
        bands: As of :func:`read_image`.
        scale: As of :func:`read_image`; None: the pixels must be 8-bit.
        max_memory: The most bytes that decoding a TIFF, a JPEG 2000 or a 16-bit PNG may take.
        place: Its name in a warning.

    Raises:
        NoScale: with ``scale=None``, if the pixels are not 8-bit.
        Exception: of any class, if the file is broken.
    """
    if not data:
        raise ValueError('the file is empty')
    if _is_raster(data):
        return _decode_raster(data, bands, scale, max_memory, place)
    return _decode_picture(data)


def size_of(data: bytes, max_memory: int = MAX_MEMORY_BYTES) -> tuple[int, int]:
    """Read width and height from the head of a file, without decoding pixels.

    The decoder's errors pass; ``max_memory`` is as of :func:`decode_image`.
    """
    if _is_raster(data):
        with opened(data, max_memory) as raster:
            return raster.width, raster.height
    with Image.open(io.BytesIO(data), formats=PICTURES) as image:
        return image.size


def _is_raster(data: bytes) -> bool:
    is_deep_png = data.startswith(PNG) and data[PNG_BIT_DEPTH] == b'\x10'  # Pillow cuts it to 8
    return is_deep_png or data.startswith(TIFF + JPEG_2000)


def _decode_picture(data: bytes) -> np.ndarray:
    check_whole(data)  # first: Pillow may not even identify a truncated file
    with Image.open(io.BytesIO(data), formats=PICTURES) as image:
        if not image.has_transparency_data:
            return np.array(image if image.mode == 'RGB' else image.convert('RGB'))
        rgb = np.empty((image.height, image.width, 3), np.uint8)
        rows = max(ROWS_PIXELS // image.width, 1)
        for top in range(0, image.height, rows):  # the whole image would take 26 bytes per pixel
            bottom = min(top + rows, image.height)
            rgba = np.asarray(image.crop((0, top, image.width, bottom)).convert('RGBA'))
            rgb[top:bottom] = _over_black(rgba[..., :3], rgba[..., 3])
        return rgb


@contextmanager
def opened(data: bytes, max_memory: int = MAX_MEMORY_BYTES) -> Iterator[Any]:
    """Open a raster from memory, after a check of the memory that GDAL needs to open it.

    Raises:
        ValueError: if it needs more than ``max_memory`` bytes.
    """
    # Imported late: a worker that meets only JPEG needs no GDAL. From memory: GDAL would list
    # the whole folder of every file for side-cars.
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    if data.startswith(JPEG_2000):
        _check_memory(jpeg_2000_overhead(data), max_memory)
    with warnings.catch_warnings(), MemoryFile(data) as file:
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with file.open(driver=list(RASTER_DRIVERS)) as raster:
            yield raster


def _check_memory(needed: int, most: int) -> None:
    if needed > most:
        raise ValueError(f'decoding it takes about {needed / 2**30:.2f} GiB of memory, the limit '
                         f'is {most / 2**30:.2f} GiB; cut the file into tiles')


def block_bytes(raster: Any, bands: int) -> int:
    """Compute the bytes of one internal block (tile or strip) of an open raster in GDAL.

    Args:
        raster: An open raster of rasterio.
        bands: The number of bands that are read. GDAL decodes all bands where they are stored
            pixel by pixel.
    """
    height, width = raster.block_shapes[0]
    is_apart = raster.interleaving is not None and raster.interleaving.name == 'band'
    return height * width * (bands if is_apart else raster.count) * _pixel_bytes(raster)


def _pixel_bytes(raster: Any) -> int:
    dtype = raster.dtypes[0]
    return 8 if dtype.startswith('complex_int') else np.dtype(dtype).itemsize


def _memory_for(raster: Any, bands: int) -> int:
    """Compute the most bytes that reading a whole raster takes, from its head."""
    height, width = raster.block_shapes[0]
    blocks = -(-raster.height // height) * -(-raster.width // width)
    per_pixel = (bands + 1) * _pixel_bytes(raster) + WORKING_BYTES
    return blocks * block_bytes(raster, bands) + raster.height * raster.width * per_pixel


def check_size(raster: Any, bands: int, max_memory: int = MAX_MEMORY_BYTES) -> None:
    """Check that a raster can be read whole.

    Raises:
        ValueError: if it has too many pixels, or reading so many bands needs more than
            ``max_memory`` bytes.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and raster.width * raster.height > 2 * limit:
        raise ValueError(f'{raster.width} x {raster.height} pixels are too many to read '
                         'whole; cut the file into tiles')
    _check_memory(_memory_for(raster, bands), max_memory)


def _decode_raster(data: bytes, bands: tuple[int, ...] | None, scale: Scale | None,
                   max_memory: int, place: str) -> np.ndarray:
    from rasterio.enums import ColorInterp

    check_whole(data)
    with opened(data, max_memory) as raster:
        check_size(raster, len(bands or (1, 2, 3)[:raster.count]), max_memory)
        is_palette = raster.colorinterp[0] == ColorInterp.palette
        opacity = None
        if bands is None or is_palette:
            opacity = opacity_of(raster, place)
            bands = choose_bands(raster, opacity)
        if max(bands) > raster.count:
            raise ValueError(f'band {max(bands)} is requested, and the file has {raster.count}')
        pixels = raster.read(bands)  # [bands, H, W]
        alpha = None
        if has_mask(raster, bands, opacity is not None):
            alpha = raster.read_masks(bands).max(axis=0)  # 0 invalid, 255 valid; or alpha
        if is_palette:
            colors = raster.colormap(1)
            table = np.zeros((max(colors) + 1, 4), np.uint8)
            table[list(colors)] = list(colors.values())
            rgba = table[pixels[0]]
            opacity = rgba[..., 3] if alpha is None else np.minimum(rgba[..., 3], alpha)
            return _over_black(rgba[..., :3], opacity)
        tags = raster.tags(1, ns='IMAGE_STRUCTURE') | raster.tags(ns='IMAGE_STRUCTURE')
    if pixels.dtype == np.uint8:
        bits = int(tags.get('NBITS', 8))
        if bits < 8:
            pixels = pixels * np.uint8(255 // (2**bits - 1))
        if tags.get('MINISWHITE') == 'YES':
            pixels = 255 - pixels
    valid = np.isfinite(pixels).all(axis=0) if pixels.dtype.kind == 'f' else None
    if alpha is not None:
        valid = alpha > 0 if valid is None else (alpha > 0) & valid
    if valid is not None and not valid.any():
        raise ValueError('no pixel is valid: all are nodata, transparent or NaN')
    rgb = _as_rgb(to_uint8(pixels, valid, scale))
    return rgb if alpha is None else _over_black(rgb, alpha)


def to_uint8(pixels: np.ndarray, valid: np.ndarray | None, scale: Scale | None) -> np.ndarray:
    """Map pixels linearly to 0..255; 8-bit pixels stay as they are.

    Args:
        pixels: real ``[C, H, W]``; channels last would take three times as long.
        valid: bool ``[H, W]``; percentiles are taken where it is true, and the result is 0
            elsewhere. None: true everywhere.
        scale: 'auto' (per channel, 2nd to 98th percentile; a constant channel becomes 0),
            (low, high), or None: there are only 8-bit pixels.

    Returns:
        uint8 ``[C, H, W]``.

    Raises:
        NoScale: without a scale, if the pixels are not 8-bit.
        ValueError: if they are complex.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if scale is None:
        raise NoScale(f'the pixels are {pixels.dtype}, not 8-bit; say what becomes 0 and 255: '
                      'scale=(low, high)')
    if pixels.dtype.kind == 'c':
        raise ValueError('complex pixels have no 8-bit form; convert them to amplitudes')
    if valid is not None and valid.all():
        valid = None
    result = np.empty(pixels.shape, np.uint8)
    for channel, out in zip(pixels, result):  # one by one: less memory
        _stretch(channel, valid, scale, out)
    return result


def _stretch(channel: np.ndarray, valid: np.ndarray | None, scale: Scale,
             out: np.ndarray) -> None:
    """Map a channel ``[H, W]`` into ``out``, uint8, as :func:`to_uint8` describes."""
    if scale == 'auto':
        known = channel.reshape(-1) if valid is None else channel[valid]
        sample = known[::max(len(known) // PERCENTILE_PIXELS, 1)]
        low, high = np.percentile(sample, PERCENTILES).astype(np.float32)
    else:
        low, high = np.asarray(scale, np.float32)
    stretched = channel.astype(np.float32)
    stretched -= low
    stretched *= 255 / np.where(high > low, high - low, np.float32(np.inf))
    if valid is not None:
        stretched[~valid] = 0  # before the cast: NaN has no integer
    np.clip(stretched, 0, 255, out=stretched)
    stretched += 0.5
    out[:] = stretched  # cut to whole numbers


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Reorder ``[1 or 3, H, W]`` to contiguous ``[H, W, 3]``."""
    rgb = np.empty((*pixels.shape[1:], 3), pixels.dtype)
    for channel in range(3):
        rgb[..., channel] = pixels[channel % len(pixels)]
    return rgb


def _over_black(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite uint8 ``[H, W, 3]`` with opacity uint8 ``[H, W]`` on black."""
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    result = np.empty(rgb.shape, np.uint8)
    rows = max(ROWS_PIXELS // rgb.shape[1], 1)
    for top in range(0, len(rgb), rows):
        part = np.s_[top:top + rows]
        product = rgb[part].astype(np.uint16) * alpha[part][..., None]
        result[part] = (product + 127) // 255
    return result
