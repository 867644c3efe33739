"""Masks: the values that a file holds, and the classes that they stand for.

* TIFF is read by GDAL, with the type it has (1 to 64 bits, whole numbers or floats); all others by
  Pillow. Of a palette the values are its indices; 1-bit pixels are False and True.
* Pixels that the file declares to have no value (nodata, an internal mask) have no label.
* Class ids (:func:`read_class_ids`) are whole numbers; 255 is no label.
* Gray masks are those of a threshold (:func:`read_above`) and of change (:func:`read_changes`).
  1-bit pixels are 0 and 255 there, and of a palette the gray of its colors counts. A declared
  nodata of 0 to 255 is a gray value: many tools declare 0 where they burn 255.
* Every other value is an error with the file, the value and the number of its pixels, before it
  is cast to a byte, where -32768 and 256 would become 0.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pera_mm.datasets.completeness import JPEG, TIFF, check_whole
from pera_mm.datasets.notices import Notice
from pera_mm.datasets.reading import (
    PICTURES,
    as_unreadable,
    check_size,
    opened,
    read_file,
)
from pera_mm.errors import UserError

MASKS = (*PICTURES, 'TIFF', 'PPM')  # not all of Pillow's: for EPS it runs a program
UNLABELLED = 255  # in a mask of class ids
UNCHANGED, CHANGED = 0, 255  # in the file of a mask of change
NAMED = 5  # wrong values in an error
TO_DECLARE = 'declare the value of pixels without a label as nodata of a GeoTIFF'
MODES = {'bool': '1', 'uint8': 'L', 'uint16': 'I;16', 'int32': 'I', 'float32': 'F'}  # Pillow's
COLOR_MODES = {3: 'RGB', 4: 'RGBA'}
NODATA_IS_A_CLASS = Notice()


class Mask(NamedTuple):
    """A decoded mask.

    Attributes:
        values: ``[H, W]``, or ``[H, W, channels]`` of a color picture.
        mode: Pillow's name of the pixels' type, such as 'L' (8-bit gray) or 'RGB'; NumPy's where
            Pillow has none.
        unknown: ``[H, W]``, the pixels that the file declares to have no value; None: it declares
            none.
        nodata: the value that stands for them, if one does.
    """

    values: NDArray
    mode: str
    unknown: NDArray[np.bool_] | None = None
    nodata: float | None = None


def read_mask(source: str | Path | bytes, mode: str | None = None) -> Mask:
    """Decode a mask.

    Args:
        source: The path, or the bytes of the file.
        mode: Pillow's mode to convert the pixels to. Bilevel pixels become 0 and 255 in 'L'.
            None: the pixels stay as they are stored; those of a palette are its indices.

    Raises:
        UnreadableImage: if it cannot be decoded.
    """
    data = source if isinstance(source, bytes) else read_file(str(source))
    with as_unreadable():
        if mode is None and data.startswith(TIFF):
            return _read_tiff(data)
        with Image.open(io.BytesIO(data), formats=MASKS) as image:
            pixels = image if mode is None else image.convert(mode)
            return Mask(np.asarray(pixels), pixels.mode)


def _read_tiff(data: bytes) -> Mask:
    from rasterio.enums import ColorInterp, MaskFlags  # late: few masks need GDAL

    check_whole(data)
    with opened(data) as raster:
        check_size(raster, raster.count)
        if raster.count > 1:
            mode = COLOR_MODES.get(raster.count, f'{raster.count} bands')
            return Mask(raster.read().transpose(1, 2, 0), mode)
        values, nodata = raster.read(1), raster.nodata
        has_mask = MaskFlags.all_valid not in raster.mask_flag_enums[0]
        unknown = raster.read_masks(1) == 0 if has_mask else None
        tags = raster.tags(1, ns='IMAGE_STRUCTURE') | raster.tags(ns='IMAGE_STRUCTURE')
        is_palette = raster.colorinterp[0] == ColorInterp.palette
    if tags.get('NBITS') == '1':
        values, is_palette = values.astype(bool), False  # GDAL paints all of them
    if tags.get('MINISWHITE') == 'YES' and values.dtype in (bool, np.uint8):
        values = ~values  # True and 255 are white, as Pillow reads it
    mode = 'P' if is_palette else MODES.get(str(values.dtype), str(values.dtype))
    return Mask(values, mode, unknown, nodata)


def read_class_ids(path: str | Path, number: int,
                   zero_is_unlabelled: bool = False) -> NDArray[np.uint8]:
    """Read a mask of class ids.

    Args:
        path: The file.
        number: C, of classes.
        zero_is_unlabelled: The file's 0 has no label, and its 1, 2 ... are the classes 0, 1 ...

    Returns:
        uint8 ``[H, W]``: 0 to C - 1, and 255 where there is no label.

    Raises:
        UnreadableImage: if it cannot be decoded.
        ValueError: if it is a color picture, or has a value that is not a class.
    """
    mask = read_mask(path)
    _check_is_gray(mask, path)
    first = int(zero_is_unlabelled)
    last = number - 1 + first
    values, unknown = mask.values, mask.unknown
    wrong = (values > last) & (values != UNLABELLED)
    if values.dtype.kind in 'if':
        wrong |= values < 0
    if values.dtype.kind == 'f':
        wrong |= values != np.floor(values)  # true of NaN, too
    wrong = _known(wrong, unknown)
    if wrong.any():
        zero = '0 for not labelled, ' if first else ''
        raise UserError(
            f'{path} has the label {_named(values, wrong)}; allowed are {zero}the classes {first} '
            f'to {last}, and {UNLABELLED} for not labelled, so {_share(wrong)} have no class: '
            f'{TO_DECLARE} or write {UNLABELLED} there, else correct the mask, or name its class '
            'in metainfo.classes.')
    ids = _as_bytes(values, unknown)
    if mask.nodata is not None and first <= mask.nodata <= last:
        NODATA_IS_A_CLASS.say(
            f'{path} declares its value {mask.nodata:g} as nodata, so its pixels have no label, '
            f'here and in all files like this one; if they are of class {mask.nodata:g}, remove '
            'that with gdal_edit.py -unsetnodata.')
    return np.where(ids == UNLABELLED, ids, ids - np.uint8(1)) if first else ids


def read_above(path: str | Path, threshold: float) -> NDArray[np.uint8]:
    """Read a gray mask, whose pixels above a threshold are of the second class.

    Args:
        path: The file.
        threshold: A gray value, from 0 to 254.

    Returns:
        uint8 ``[H, W]``: 0 and 1, and 255 where there is no label.

    Raises:
        UnreadableImage: if it cannot be decoded.
        ValueError: if it is a color picture, holds negative values or NaN, or only values up to 1,
            which is the mask of class ids that the threshold cannot tell apart.
    """
    data = read_file(str(path))
    mask = read_mask(data)
    _check_is_gray(mask, path)
    values, unknown = _as_gray(mask, data)
    if values.dtype.kind in 'if' and (wrong := _known(~(values >= 0), unknown)).any():
        raise UserError(
            f'{path} has the gray value {_named(values, wrong)} in {_share(wrong)}: {TO_DECLARE}, '
            'or correct the mask.')
    is_above = _known(values > threshold, unknown)
    if not is_above.any() and not data.startswith(JPEG):  # in a JPEG, black may be 1
        highest = float(values[_known(values > 0, unknown)].max(initial=0))
        if 0 < highest <= 1:
            raise UserError(f'{path} holds values up to {highest:g} only, none of which is above '
                            f'threshold={threshold:g}: leave threshold out if these are the ids '
                            'of the classes, or set threshold=0.')
    return _as_bytes(is_above, unknown)


def read_changes(path: str | Path) -> NDArray[np.uint8]:
    """Read a mask of change, which holds 0 (unchanged) and 255 (changed).

    A 1 is refused, since some toolboxes take it for 'changed' and others for 'unchanged'.

    Returns:
        uint8 ``[H, W]``: 0 unchanged, 1 changed, 255 where there is no label.

    Raises:
        UnreadableImage: if it cannot be decoded.
        ValueError: if it holds other values, which the error names.
    """
    data = read_file(str(path))
    mask = read_mask(data)
    if mask.values.dtype != np.uint8:  # a color picture may hold gray
        _check_is_gray(mask, path)
    values, unknown = _as_gray(mask, data)
    wrong = _known((values != UNCHANGED) & (values != CHANGED), unknown)
    if wrong.any():
        is_gray = ((values[wrong] >= 0) & (values[wrong] <= 255)).all()
        mend = '' if is_gray else f', and {_share(wrong)} hold others: {TO_DECLARE}, or'
        raise UserError(
            f'the mask {path} has pixels of value {_named(values, wrong)}; only {UNCHANGED} '
            f'(unchanged) and {CHANGED} (changed) are allowed{mend or ":"} convert the masks.')
    return _as_bytes(values == CHANGED, unknown)


def _check_is_gray(mask: Mask, path: str | Path) -> None:
    if mask.values.ndim != 2 or mask.values.dtype.kind == 'c':
        raise UserError(f'{path} is a color picture (mode {mask.mode}), not a mask of class ids: '
                        'convert it, for Potsdam with tools/data/prepare.py.')


def _as_gray(mask: Mask, data: bytes) -> tuple[NDArray, NDArray[np.bool_] | None]:
    """Return the gray values ``[H, W]`` of a decoded file, and which of them are unknown."""
    is_gray_value = mask.nodata is not None and 0 <= mask.nodata <= 255
    unknown = None if is_gray_value else mask.unknown
    if mask.mode == '1':
        return mask.values * np.uint8(255), unknown
    if mask.mode == 'P' or mask.values.ndim != 2:
        return read_mask(data, 'L').values, unknown
    return mask.values, unknown


def _known(which: NDArray[np.bool_], unknown: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Return which of these pixels the file does not declare to have no value."""
    return which if unknown is None else which & ~unknown


def _as_bytes(values: NDArray, unknown: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    """Cast checked values to uint8, with 255 for the unknown ones, which fit no byte."""
    if unknown is None:
        return values.astype(np.uint8)
    return np.where(unknown, np.uint8(UNLABELLED), np.where(unknown, 0, values).astype(np.uint8))


def _named(values: NDArray, wrong: NDArray[np.bool_]) -> str:
    found: list[float] = np.unique(values[wrong]).tolist()
    names = [f'{value:.15g}' if isinstance(value, float) else str(value) for value in found[:NAMED]]
    return ', '.join([*names, '...'] if len(found) > NAMED else names)


def _share(wrong: NDArray[np.bool_]) -> str:
    return f'{wrong.sum():,} of its {wrong.size:,} pixels'
