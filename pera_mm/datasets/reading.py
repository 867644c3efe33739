"""Any image file to 8-bit RGB, by one stated rule.

* JPEG, PNG, BMP, WebP, GIF (Pillow): gray is repeated, palette and CMYK are converted as Pillow
  does. They are RGB already, so ``bands`` does not concern them.
* TIFF, JPEG 2000 and 16-bit PNG (GDAL): ``bands`` are taken in the order given, 1-based; by
  default the first three, or the first one repeated where the file has fewer than three. Palette,
  CMYK and YCbCr files become RGB.
* 8-bit pixels stay as they are. All other types are mapped linearly to 0..255 and clipped:
  ``scale='auto'`` stretches every band of every image from its 2nd to its 98th percentile over
  the valid pixels (the default of QGIS); ``scale=(low, high)`` is the same for all images.
* What is not there is black: alpha is composited on black, and nodata, masked and NaN pixels
  become 0.
* The EXIF orientation is ignored, as the reference ignores it.
* Files are read whole, up to Pillow's limit of ``2 * PIL.Image.MAX_IMAGE_PIXELS`` (179 million
  pixels, its protection against decompression bombs). Cut larger rasters into tiles.

Pillow and not OpenCV, measured on one core for a 512 x 512 JPEG of 129 KB: 1.4 ms against 1.3 ms
(torchvision: 1.3 ms), and Pillow reports files that end early, which many OpenCV builds fill with
gray. 8-bit 512 x 512 elsewhere: TIFF 0.9 ms, with deflate 2.9 ms, PNG 6.9 ms, JPEG 2000 68 ms;
16-bit TIFF 5.3 ms.
"""

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from PIL import Image

Scale = Literal['auto'] | tuple[float, float]

SUFFIXES = (b'.tif', b'.tiff', b'.png', b'.jpg', b'.jpeg', b'.jp2', b'.bmp', b'.webp', b'.gif')
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
JPEG_2000 = (b'\0\0\0\x0cjP  ', b'\xff\x4f\xff\x51')
PNG = b'\x89PNG\r\n\x1a\n'
PNG_BIT_DEPTH = slice(24, 25)  # of the header
MAX_FILE_BYTES = 1 << 30  # files are read whole, by every worker
JPEG = b'\xff\xd8\xff'
JPEG_SCAN, JPEG_END = b'\xff\xda', b'\xff\xd9'
PERCENTILES = (2, 98)
PERCENTILE_PIXELS = 50_000  # enough for a percentile; sorting all pixels would double the time


class UnreadableImage(Exception):
    """An image file that cannot be decoded; its text is the reason, one line."""


class NoScale(ValueError):
    """Pixels that are not 8-bit, and no scale that makes them so."""


def check_rule(bands: tuple[int, ...] | None, scale: Scale) -> None:
    """Check what a user wrote about bands and scale.

    Raises:
        ValueError: if ``bands`` is not one or three 1-based numbers, or ``scale`` is neither
            'auto' nor two rising numbers.
    """
    if bands is not None and (len(bands) not in (1, 3) or min(bands) < 1):
        raise ValueError(f'bands must be one (gray) or three 1-based band numbers, e.g. (3, 2, 1), '
                         f'got {bands}.')
    if scale != 'auto' and (isinstance(scale, str) or len(scale) != 2 or scale[0] >= scale[1]):
        raise ValueError("scale must be 'auto' or (low, high) with low < high in the unit of the "
                         f'pixels, e.g. (0, 3000), got {scale}.')


def read_image(path: str | bytes, bands: tuple[int, ...] | None = None,
               scale: Scale = 'auto') -> np.ndarray:
    """Read an image file as 8-bit RGB; the module's docstring states the rule.

    Args:
        path: The file.
        bands: One or three 1-based band numbers for TIFF and JPEG 2000; None: the first three,
            or the first.
        scale: 'auto' or (low, high) for pixels that are not 8-bit.

    Returns:
        uint8 ``[H, W, 3]``, contiguous.

    Raises:
        UnreadableImage: if the file is missing, empty, truncated, broken, no image, too large,
            lacks a band, or has no valid pixel.
    """
    return decode_safely(read_file(path), bands, scale)


def read_file(path: str | bytes) -> bytes:
    """The bytes of an image file; raises UnreadableImage if it is missing or above 1 GiB."""
    with _as_unreadable(), open(path, 'rb') as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise ValueError('the file is larger than 1 GiB: cut it into tiles')
        return file.read()


def decode_safely(data: bytes, bands: tuple[int, ...] | None = None,
                  scale: Scale = 'auto') -> np.ndarray:
    """Like :func:`read_image` for a file's bytes."""
    with _as_unreadable():
        return decode_image(data, bands, scale)


@contextmanager
def _as_unreadable() -> Iterator[None]:
    try:
        yield
    except (MemoryError, ImportError):  # not the image's fault
        raise
    except Exception as error:  # decoders raise anything on broken bytes
        cause = error.__cause__ or error  # GDAL hides its reason in the cause
        raise UnreadableImage(reason_of(cause)) from error


def reason_of(error: BaseException) -> str:
    """What a decoder raised, in one line and without the address of a buffer in memory."""
    # Pillow says 'cannot identify image file <_io.BytesIO object at 0x7f...>'.
    text = re.sub(' <_io.BytesIO[^>]*>', '', f'{type(error).__name__}: {error}')
    return ' '.join(text.split())


def decode_image(data: bytes, bands: tuple[int, ...] | None = None,
                 scale: Scale | None = 'auto') -> np.ndarray:
    """Like :func:`read_image` for a file's bytes; raises whatever the decoder raises.

    With ``scale=None`` pixels that are not 8-bit raise NoScale.
    """
    if not data:
        raise ValueError('the file is empty')
    is_deep_png = data.startswith(PNG) and data[PNG_BIT_DEPTH] == b'\x10'  # Pillow cuts it to 8
    if is_deep_png or data.startswith(TIFF + JPEG_2000):
        return _decode_raster(data, bands, scale)
    return _decode_picture(data, scale)


def _decode_picture(data: bytes, scale: Scale | None) -> np.ndarray:
    if data.startswith(JPEG) and data.rfind(JPEG_END) < data.rfind(JPEG_SCAN):
        # Pillow misses a download whose missing half is zeros. 0.05 ms for 129 KB.
        raise ValueError('the JPEG is truncated: it has no end marker')
    with Image.open(io.BytesIO(data)) as image:
        if image.has_transparency_data:
            rgba = np.asarray(image.convert('RGBA'))
            return _over_black(rgba[..., :3], rgba[..., 3])
        if image.mode[0] in 'IF':  # a deep gray of a rare format
            gray = np.asarray(image)[None]
            return _as_rgb(to_uint8(gray, np.isfinite(gray[0]), scale))
        return np.array(image if image.mode == 'RGB' else image.convert('RGB'))


def _decode_raster(data: bytes, bands: tuple[int, ...] | None,
                   scale: Scale | None) -> np.ndarray:
    # Imported late: a worker that meets only JPEG needs no GDAL. From memory: GDAL would list
    # the whole folder of every file for side-cars.
    from rasterio.enums import ColorInterp, MaskFlags
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    with warnings.catch_warnings(), MemoryFile(data) as file:
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with file.open() as raster:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and raster.width * raster.height > 2 * limit:
                raise ValueError(f'{raster.width} x {raster.height} pixels are too many to read '
                                 'whole; cut the file into tiles')
            is_palette = raster.colorinterp[0] == ColorInterp.palette
            if bands is None or is_palette:
                bands = (1, 2, 3) if raster.count >= 3 else (1,)
            if max(bands) > raster.count:
                raise ValueError(f'band {max(bands)} is asked for, the file has {raster.count}')
            pixels = raster.read(bands)  # [bands, H, W]
            alpha = None
            if any(MaskFlags.all_valid not in raster.mask_flag_enums[band - 1] for band in bands):
                alpha = raster.read_masks(bands).max(axis=0)  # 0 invalid, 255 valid; or alpha
            if is_palette:
                colours = raster.colormap(1)
                table = np.zeros((max(colours) + 1, 4), np.uint8)
                table[list(colours)] = list(colours.values())
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
        pixels: real ``[C, H, W]``: by channel, three times as fast as channels last.
        valid: bool ``[H, W]``, where the percentiles are taken and outside which the result is
            0; None: everywhere.
        scale: 'auto' (per channel, 2nd to 98th percentile; a constant channel becomes 0),
            (low, high), or None: there are only 8-bit pixels.

    Returns:
        uint8 ``[C, H, W]``.
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
    if scale == 'auto':
        known = pixels.reshape(len(pixels), -1) if valid is None else pixels[:, valid]
        sample = known[:, ::max(known.shape[1] // PERCENTILE_PIXELS, 1)]
        low, high = np.percentile(sample, PERCENTILES, axis=1).astype(np.float32)[..., None, None]
    else:
        low, high = np.asarray(scale, np.float32)
    stretched = pixels.astype(np.float32)
    stretched -= low
    stretched *= 255 / np.where(high > low, high - low, np.float32(np.inf))
    if valid is not None:
        stretched[:, ~valid] = 0  # before the cast: NaN has no integer
    np.clip(stretched, 0, 255, out=stretched)
    stretched += 0.5
    return stretched.astype(np.uint8)


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    """``[1 or 3, H, W]`` to contiguous ``[H, W, 3]``."""
    rgb = np.empty((*pixels.shape[1:], 3), pixels.dtype)
    for channel in range(3):
        rgb[..., channel] = pixels[channel % len(pixels)]
    return rgb


def _over_black(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite uint8 ``[H, W, 3]`` with opacity uint8 ``[H, W]`` on black."""
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    product = rgb.astype(np.uint16) * alpha[..., None]
    return ((product + 127) // 255).astype(np.uint8)
