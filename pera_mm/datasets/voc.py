"""Boxes in Pascal VOC's XML: one reader and one writer.

In these files pixels count from 1 and both ends belong to the object. Elsewhere in this package a
box is given by its edges, from the image's upper left corner: the edges of ``xmin, ymin, xmax,
ymax`` are ``xmin - 1, ymin - 1, xmax, ymax``, so flips and resizing need no correction by a pixel.
"""

import codecs
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from pera_mm.errors import UserError

SIDES = ('xmin', 'ymin', 'xmax', 'ymax')
CHANNELS = 3  # of every image, in the files that are written here
DECLARATION = re.compile(rb'\s*<\?xml[^>]*\bencoding\s*=\s*["\']([^"\']+)')
CODECS = {'gb2312': 'gb18030', 'gbk': 'gb18030'}  # files hold more than they declare
NOT_XML = (ElementTree.ParseError, LookupError, ValueError)  # Lookup: of the encoding
UNKNOWN_LETTER = '\N{REPLACEMENT CHARACTER}'
DIFFICULT = dict.fromkeys(('', 'false', 'no', 'unspecified'), False) | dict.fromkeys(
    ('true', 'yes'), True)
# Why a box is dropped; the first that holds counts.
NO_SIZE = 'in files that give their image 0 pixels'
NOT_A_NUMBER = 'with nan'
INVERTED = 'with a minimum above its maximum'
EMPTY = 'empty'
OUTSIDE = 'outside of their image'


class VOCObject(NamedTuple):
    """An object as the file has it: stripped texts, None where the file lacks one.

    Attributes:
        name: the class.
        corners: the texts of SIDES.
        difficult: such as '0', '1', 'False'.
    """

    name: str | None
    corners: tuple[str | None, ...]
    difficult: str | None


class VOCTexts(NamedTuple):
    """A file as it is: stripped texts, None where it lacks one.

    Attributes:
        size: width and height of the image.
        objects: in the order of the file.
    """

    size: tuple[str | None, str | None]
    objects: list[VOCObject]


class VOCAnnotation(NamedTuple):
    """The checked content of a file.

    Attributes:
        width, height: of the image, in pixels.
        boxes: float32 ``[n, 4]`` as left, upper, right, lower edge in pixels from the image's
            corner: an object on the first pixel only is (0, 0, 1, 1).
        names: n class names.
        difficult: n flags; such an object counts neither as found nor as missed.
        dropped: the reason to the number of boxes that were dropped for it.
    """

    width: int
    height: int
    boxes: NDArray[np.float32]
    names: tuple[str, ...]
    difficult: tuple[bool, ...]
    dropped: Counter[str]


def read_texts(path: str | os.PathLike) -> VOCTexts:
    """Read the texts of a VOC file without a check of them.

    Raises:
        ValueError: if the file is not XML; the text is the parser's reason.
        OSError: if it cannot be opened.
    """
    try:
        top = _parse(Path(path).read_bytes())
    except NOT_XML as error:
        raise UserError(str(error)) from error
    return VOCTexts(
        (_text(top, 'size/width'), _text(top, 'size/height')),
        [VOCObject(_text(item, 'name'), tuple(_text(item, f'bndbox/{side}') for side in SIDES),
                   _text(item, 'difficult')) for item in top.findall('object')])


def _parse(data: bytes) -> ElementTree.Element:
    """Parse XML of any encoding, also of one that the parser lacks or that is not declared.

    Letters of an unknown encoding become UNKNOWN_LETTER: most files have them in a path only.
    """
    try:
        return ElementTree.fromstring(data)
    except NOT_XML:
        declared = DECLARATION.match(data)
        name = declared[1].decode('ascii', 'replace').lower() if declared else 'utf-8'
        first = codecs.lookup(CODECS.get(name, name)).name
        for codec, errors in ((first, 'strict'), ('utf-8', 'strict'), ('utf-8', 'replace')):
            with suppress(*NOT_XML):
                return ElementTree.fromstring(data.decode(codec, errors))
        raise


def _text(parent: ElementTree.Element, path: str) -> str | None:
    text = parent.findtext(path)
    return None if text is None else text.strip()


def read_annotation(path: str | os.PathLike) -> VOCAnnotation:
    """Read a VOC file; every text that training needs must be there.

    The part of a box that lies outside of the image is cut off. A box with ``xmax <= xmin`` or
    ``ymax <= ymin``, or with nothing in the image, is dropped.

    Raises:
        ValueError: if the file is not such XML, or its boxes are fractions of the image; the text
            is the reason.
        OSError: if it cannot be opened.
    """
    try:
        texts = read_texts(path)
    except UserError as error:
        raise UserError(f'it is not XML ({error})') from error
    width, height = (_number_of_pixels(_needed(text, 'annotation', f'size/{side}'), f'size/{side}')
                     for text, side in zip(texts.size, ('width', 'height')))
    corners = np.array([[float(_needed(text, 'object', f'bndbox/{side}'))
                         for text, side in zip(item.corners, SIDES)]
                        for item in texts.objects]).reshape(-1, 4)
    _refuse_fractions(corners)
    names = [_known_letters(_needed(item.name, 'object', 'name')) for item in texts.objects]
    difficult = [_is_difficult(item.difficult or '') for item in texts.objects]
    boxes = np.clip(corners - (1, 1, 0, 0), 0, (width, height, width, height))
    kept = np.flatnonzero((corners[:, 2:] > corners[:, :2]).all(1)
                          & (boxes[:, 2:] > boxes[:, :2]).all(1))
    return VOCAnnotation(width, height, boxes[kept].astype(np.float32),
                         tuple(names[i] for i in kept), tuple(difficult[i] for i in kept),
                         _reasons(np.delete(corners, kept, axis=0), width * height == 0))


def _needed(text: str | None, parent: str, path: str) -> str:
    if text is None:
        raise UserError(f'<{parent}> lacks <{path}>')
    return text


def _number_of_pixels(text: str, path: str) -> int:
    """Read a number of pixels, which some programs write as ``160.0``.

    Args:
        text: the number.
        path: its place in the XML, for the error.

    Raises:
        ValueError: if it is not a whole number from 0.
    """
    with suppress(ValueError):
        number = float(text)
        if number >= 0 and number.is_integer():
            return int(number)
    raise UserError(f'<{path}> is {text!r}, not a number of pixels')


def _is_difficult(text: str) -> bool:
    known = DIFFICULT.get(text.lower())
    if known is not None:
        return known
    try:
        return float(text) > 0
    except ValueError:
        raise UserError(f'<difficult> is {text!r}, neither 0 nor 1') from None


def _known_letters(name: str) -> str:
    if UNKNOWN_LETTER in name:
        raise UserError(f'the class {name!r} is not UTF-8, and the file declares no encoding that '
                        'fits: save it as UTF-8')
    return name


def _refuse_fractions(corners: NDArray) -> None:
    """Refuse boxes that all lie within 0...1, not all on whole numbers."""
    known = corners[~np.isnan(corners).any(axis=1)]
    if ((known >= 0) & (known <= 1)).all() and (broken := (known % 1 > 0).any(axis=1)).any():
        box = ' '.join(f'{value:g}' for value in known[broken.argmax()])
        raise UserError(f'its boxes ({box}) look like fractions of the image, as YOLO has them, '
                        'while VOC has pixels: multiply them by width and height')


def _reasons(corners: NDArray, is_without_size: bool) -> Counter[str]:
    """Count why these boxes are dropped."""
    least, most = corners[:, :2], corners[:, 2:]
    why = np.select(
        [np.full(len(corners), is_without_size), np.isnan(corners).any(1), (most < least).any(1),
         (most == least).any(1)], [NO_SIZE, NOT_A_NUMBER, INVERTED, EMPTY], OUTSIDE)
    return Counter(why.tolist())


def annotation_xml(filename: str, width: int, height: int, boxes: NDArray, names: Sequence[str],
                   database: str) -> bytes:
    """Encode the boxes of one image as a VOC file.

    Args:
        filename: of the image.
        width, height: of the image, in pixels.
        boxes: float ``[n, 4]`` as left, upper, right, lower edge in pixels from the image's
            corner; they are rounded outwards to whole pixels.
        names: n class names.
        database: the name of the data set.
    """
    top = ElementTree.Element('annotation')
    _add(top, filename=filename)
    _add(ElementTree.SubElement(top, 'source'), database=database)
    _add(ElementTree.SubElement(top, 'size'), width=width, height=height, depth=CHANNELS)
    _add(top, segmented=0)
    for box, name in zip(boxes, names):
        item = ElementTree.SubElement(top, 'object')
        _add(item, name=name, pose='Unspecified')
        corners = [*(np.floor(box[:2]) + 1), *np.ceil(box[2:])]
        _add(ElementTree.SubElement(item, 'bndbox'), **dict(zip(SIDES, map(int, corners))))
    ElementTree.indent(top, '\t')
    return ElementTree.tostring(top)


def _add(parent: ElementTree.Element, **children: object) -> None:
    for name, value in children.items():
        ElementTree.SubElement(parent, name).text = str(value)
