"""Boxes in Pascal VOC's XML: one reader and one writer.

In these files pixels count from 1 and both ends belong to the object. Elsewhere in this package a
box is given by its edges, from the image's upper left corner: the edges of ``xmin, ymin, xmax,
ymax`` are ``xmin - 1, ymin - 1, xmax, ymax``, so flips and resizing need no correction by a pixel.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from pera_mm.errors import UserError

SIDES = ('xmin', 'ymin', 'xmax', 'ymax')
CHANNELS = 3  # of every image, in the files that are written here


class VOCObject(NamedTuple):
    """An object as the file has it: stripped texts, None where the file lacks one.

    Attributes:
        name: the class.
        corners: the texts of SIDES.
        difficult: '0' or '1'.
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
        num_dropped: the number of boxes that were empty, inverted or outside of the image.
    """

    width: int
    height: int
    boxes: NDArray[np.float32]
    names: tuple[str, ...]
    difficult: tuple[bool, ...]
    num_dropped: int


def read_texts(path: str | os.PathLike) -> VOCTexts:
    """Read the texts of a VOC file without a check of them.

    Raises:
        ValueError: if the file is not XML; the text is the parser's reason.
        OSError: if it cannot be opened.
    """
    try:
        top = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # Lookup: of the encoding
        raise UserError(str(error)) from error
    return VOCTexts(
        (_text(top, 'size/width'), _text(top, 'size/height')),
        [VOCObject(_text(item, 'name'), tuple(_text(item, f'bndbox/{side}') for side in SIDES),
                   _text(item, 'difficult')) for item in top.findall('object')])


def _text(parent: ElementTree.Element, path: str) -> str | None:
    text = parent.findtext(path)
    return None if text is None else text.strip()


def read_annotation(path: str | os.PathLike) -> VOCAnnotation:
    """Read a VOC file; every text that training needs must be there.

    The part of a box that lies outside of the image is cut off. A box with ``xmax <= xmin`` or
    ``ymax <= ymin``, or with nothing in the image, is dropped.

    Raises:
        ValueError: if the file is not such XML; the text is the reason.
        OSError: if it cannot be opened.
    """
    try:
        texts = read_texts(path)
    except UserError as error:
        raise UserError(f'it is not XML ({error})') from error
    width, height = (int(_needed(text, 'annotation', f'size/{side}'))
                     for text, side in zip(texts.size, ('width', 'height')))
    corners = np.array([[float(_needed(text, 'object', f'bndbox/{side}'))
                         for text, side in zip(item.corners, SIDES)]
                        for item in texts.objects]).reshape(-1, 4)
    names = [_needed(item.name, 'object', 'name') for item in texts.objects]
    difficult = [int(item.difficult or 0) > 0 for item in texts.objects]
    boxes = np.clip(corners - (1, 1, 0, 0), 0, (width, height, width, height))
    kept = np.flatnonzero((corners[:, 2:] > corners[:, :2]).all(1)
                          & (boxes[:, 2:] > boxes[:, :2]).all(1))
    return VOCAnnotation(width, height, boxes[kept].astype(np.float32),
                         tuple(names[i] for i in kept), tuple(difficult[i] for i in kept),
                         len(names) - len(kept))


def _needed(text: str | None, parent: str, path: str) -> str:
    if text is None:
        raise UserError(f'<{parent}> lacks <{path}>')
    return text


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
