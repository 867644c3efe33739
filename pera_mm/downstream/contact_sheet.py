"""A sheet of small pictures with their labels drawn on them, to see whether labels and images fit.

Classes have the colors of :mod:`pera_mm.evaluation.drawing`, which people with any color vision
tell apart, and their number, so that there may be more classes than colors.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from pera_mm.datasets.masks import UNLABELLED
from pera_mm.errors import printable
from pera_mm.evaluation.drawing import COLORS

SIDE = 256  # pixels of a picture
COLUMNS, LEGEND_COLUMNS = 6, 6
GAP, LINE, LETTERS = 8, 16, 12  # pixels
COVER = 0.4  # of a class's color over the image
STRIPE = 8  # pixels between the stripes of what is not labelled
BLACK, WHITE, GRAY = (0, 0, 0), (255, 255, 255), (90, 90, 90)
NAMED = 3  # classes in a caption
FEW_BOXES = 12  # all have their number; in a picture with more boxes only the large ones
MIDDLE = 128  # of a color's three values


class Picture(NamedTuple):
    """A sample of the sheet, made small.

    Attributes:
        dates: uint8 RGB ``[h, w, 3]`` each: one image, or two of a pair.
        caption: Its name, and in words what it shows.
        mask: uint8 ``[h, w]`` of class ids, 255 where not labelled; None: there is none.
        boxes: Left, upper, right and lower edge in pixels, and the class.
    """

    dates: list[NDArray[np.uint8]]
    caption: tuple[str, str]
    mask: NDArray[np.uint8] | None = None
    boxes: Sequence[tuple[Sequence[float], int]] = ()


def make_small(image: Any, is_bgr: bool, sample: dict, mask: NDArray[np.uint8] | None,
               classes: Sequence[str]) -> Picture:
    """Scale a sample for the sheet.

    Args:
        image: uint8 ``[H, W, 3]``, ``[H, W, 6]`` of two dates, or a list of two.
        is_bgr: The order of its colors.
        sample: Its ``img_path``, ``gt_label`` and ``instances`` count, where it has them.
        mask: uint8 ``[H, W]`` of class ids, or None.
        classes: Their names.
    """
    dates = list(image) if isinstance(image, list) else np.split(
        image, range(3, image.shape[2], 3), axis=2)
    if is_bgr:
        dates = [date[..., ::-1] for date in dates]
    height, width = dates[0].shape[:2]
    scale = SIDE / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    boxes = [([edge * scale for edge in box['bbox']], box['bbox_label'])
             for box in sample.get('instances', ())]
    path = sample['img_path']
    return Picture(
        [cv2.resize(np.ascontiguousarray(date), size, interpolation=way) for date in dates],
        (Path(path if isinstance(path, str) else path[0]).name, _content(sample, mask, classes)),
        None if mask is None else cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), boxes)


def _content(sample: dict, mask: NDArray[np.uint8] | None, classes: Sequence[str]) -> str:
    """Say in words what a sample shows: its class, the boxes or the shares of classes."""
    if mask is not None:
        counts = np.bincount(mask.reshape(-1), minlength=UNLABELLED + 1)
        labels = np.argsort(-counts[:UNLABELLED], kind='stable')[:NAMED]
        shares = [f'{_name(classes, label)} {100 * counts[label] / mask.size:.2g} %'
                  for label in labels if counts[label]]
        return ', '.join(shares) or 'nothing is labelled'
    if 'gt_label' in sample:
        return ', '.join(_name(classes, label) for label in np.atleast_1d(sample['gt_label']))
    if 'instances' not in sample:
        return ''
    found = np.array([box['bbox_label'] for box in sample['instances']], int)
    return ', '.join(f'{(found == label).sum()} {_name(classes, label)}'
                     for label in np.unique(found)) or 'no box'


def _name(classes: Sequence[str], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else f'class {label}'


def draw_sheet(splits: Mapping[str, Sequence[Picture]], classes: Sequence[str]) -> Image.Image:
    """Draw the pictures of each split in rows below its name, and a legend below all.

    Args:
        splits: Name to pictures; one of a pair takes two places.
        classes: Their names, by their ids; empty: no legend.
    """
    lines: list[str | list[Picture]] = []
    for name, pictures in splits.items():
        per_row = COLUMNS // max((len(picture.dates) for picture in pictures), default=1)
        lines += [name] + [list(pictures[start:start + per_row])
                           for start in range(0, len(pictures), per_row)]
    is_rest_shown = any(picture.mask is not None and (picture.mask == UNLABELLED).any()
                        for found in splits.values() for picture in found)
    legend = [f'{index} {name}' for index, name in enumerate(classes)]
    legend += ['not labelled'] if is_rest_shown else []
    row = SIDE + 2 * LINE + GAP
    height = sum(LINE + GAP if isinstance(line, str) else row for line in lines) + GAP
    legend_rows = -(-len(legend) // LEGEND_COLUMNS)
    sheet = Image.new('RGB', (COLUMNS * (SIDE + GAP) + GAP,
                              height + legend_rows * (LINE + GAP // 2) + GAP), 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LETTERS)
    top = GAP
    for line in lines:
        if isinstance(line, str):
            draw.text((GAP, top), line, 'black', ImageFont.load_default(LETTERS + 2))
            top += LINE + GAP
            continue
        left = GAP
        for picture in line:
            for date in picture.dates:
                sheet.paste(Image.fromarray(drawn(picture, date)), (left, top))
                left += SIDE + GAP
            start = left - len(picture.dates) * (SIDE + GAP)
            for number, text in enumerate(picture.caption):
                draw.text((start, top + SIDE + 1 + number * LINE),
                          _shortened(text, font, left - start - GAP), 'black', font)
        top += row
    for number, text in enumerate(legend):
        _draw_key(draw, font, text, number, height, is_striped=number == len(classes))
    return sheet


def _draw_key(draw: ImageDraw.ImageDraw, font: Any, text: str, number: int, top: int,
              is_striped: bool) -> None:
    """Draw an entry of the legend."""
    width = (COLUMNS * (SIDE + GAP) - GAP) // LEGEND_COLUMNS
    x = GAP + number % LEGEND_COLUMNS * width
    y = top + number // LEGEND_COLUMNS * (LINE + GAP // 2)
    side = LETTERS + 2
    draw.rectangle((x, y, x + side, y + side), GRAY if is_striped else color_of(number), 'black')
    if is_striped:
        draw.line((x, y + side, x + side, y), 'white', 2)
    draw.text((x + side + 6, y), _shortened(text, font, width - side - 10), 'black', font)


def color_of(label: int) -> tuple[int, ...]:
    """Return the color of a class, RGB in 0..255; they repeat after seven."""
    return ImageColor.getrgb(COLORS[label % len(COLORS)])


def drawn(picture: Picture, date: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw the labels of a sample on one of its dates; of a pair only what changed, as outlines.

    Returns:
        uint8 ``[h, w, 3]``.
    """
    image = date.copy()
    if picture.mask is not None:
        is_pair = len(picture.dates) > 1
        for label in np.unique(picture.mask).tolist():
            where = (picture.mask == label).astype(np.uint8)
            if label == UNLABELLED:
                _draw_stripes(image, where)
            elif not (is_pair and label == 0):
                _draw_region(image, where, label, cover=0 if is_pair else COVER)
    for (left, upper, right, lower), label in picture.boxes:
        corners = (round(left) - 1, round(upper) - 1), (round(right), round(lower))
        cv2.rectangle(image, *corners, _halo(label), 3)
        cv2.rectangle(image, *corners, color_of(label), 1)
        if len(picture.boxes) <= FEW_BOXES or min(right - left, lower - upper) >= 2 * LETTERS:
            _draw_number(image, label, corners[0][0] + 4, corners[0][1] - 5)
    return image


def _draw_region(image: NDArray[np.uint8], where: NDArray[np.uint8], label: int,
                 cover: float) -> None:
    color, is_inside = color_of(label), where > 0
    image[is_inside] = ((1 - cover) * image[is_inside] + cover * np.array(color)).round()
    contours, _ = cv2.findContours(where, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not cover:
        cv2.drawContours(image, contours, -1, _halo(label), 3)
    cv2.drawContours(image, contours, -1, color, 1)
    depth = cv2.distanceTransform(np.pad(where, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)  # the middle of its widest part
    _draw_number(image, label, int(x), int(y))


def _halo(label: int) -> tuple[int, ...]:
    """Return the color beside a line of a class: white if the line is dark, else black."""
    return WHITE if sum(color_of(label)) < 3 * MIDDLE else BLACK


def _draw_stripes(image: NDArray[np.uint8], where: NDArray[np.uint8]) -> None:
    rows, columns = np.indices(where.shape)
    is_line = (rows + columns) % STRIPE < 2
    image[where > 0] = image[where > 0] // 2
    image[(where > 0) & is_line] = WHITE


def _draw_number(image: NDArray[np.uint8], number: int, x: int, y: int) -> None:
    """Write a number with its middle at a place, within the image."""
    text, font = str(number), cv2.FONT_HERSHEY_SIMPLEX
    (width, height), _ = cv2.getTextSize(text, font, 0.35, 1)
    x = min(max(x - width // 2, 1), image.shape[1] - width - 1)
    y = min(max(y + height // 2, height + 2), image.shape[0] - 2)
    cv2.rectangle(image, (x - 1, y - height - 1), (x + width, y + 1), BLACK, -1)
    cv2.putText(image, text, (x, y), font, 0.35, WHITE, 1, cv2.LINE_AA)


def _shortened(text: str, font: Any, width: int) -> str:
    """Keep the beginning of a text that is too long."""
    text = printable(text)
    while font.getlength(text) > width:
        text = f'{text[:-2].rstrip("…")}…'
    return text
