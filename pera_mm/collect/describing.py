"""What a data set holds: its row of Table 1, the statistics of its pixels, and a look at it."""

import io
import math
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from pera_mm.collect.processes import check_workers, in_processes
from pera_mm.collect.tables import TILE, log, progress_bar, read_table
from pera_mm.datasets.reading import Scale, UnreadableImage, check_rule, decode_safely
from pera_mm.datasets.sampler import hash_seed
from pera_mm.datasets.unlabeled import Source, open_source
from pera_mm.datasets.writing import write_whole

CONTACT_SHEET = 'contact_sheet.png'
COLUMNS, ROWS = 8, 6
PICTURE, LABEL, GAP = 160, 16, 6  # px
NAMED = 10  # so many unreadable images are listed
VALUES = np.arange(256)


class Look(NamedTuple):
    """What is added up about one image; the sums are exact."""

    width: int
    height: int
    sums: tuple[int, ...]  # of the pixels, R G B
    squares: tuple[int, ...]  # of their squares


def describe(source: str, folder: Path | None = None, count: int | None = None, seed: int = 0,
             data_root: str | None = None, index_file: str | None = None,
             bands: Sequence[int] | None = None, scale: Scale = 'auto',
             workers: int = 2) -> dict[str, Any]:
    """Describe any data set that UnlabeledImages reads: Table 1, mean and std, classes.

    Resolutions, classes and continents come from the manifest.csv in the folder of the images, or
    from the tiles.csv there or one folder up. Without such a table they stay unknown.

    Args:
        source: A folder of images, a text list, tar shards or an LMDB.
        folder: Where the contact sheet is written; None: none is made.
        count: So many images, drawn by ``seed``, are read for the statistics and the sizes; None:
            all of them.
        seed: Which images are read, and which the contact sheet shows.
        data_root, index_file: Of the source, as for UnlabeledImages.
        bands, scale: How rasters become 8-bit RGB, see :mod:`pera_mm.datasets.reading`.
        workers: Number of processes.

    Returns:
        Counts, the lines to paste into a config, and tables.

    Raises:
        ValueError: if a setting is wrong, or no image is there or readable.
    """
    check_workers(workers)
    if count is not None and count < 1:
        raise ValueError(f'count is the number of images to read, 1 or more; got {count}.')
    bands = None if bands is None else tuple(bands)
    check_rule(bands, scale)
    images = open_source(source, data_root, index_file)
    chosen = choose(len(images), count, seed)
    table = _rows_of(images, source)
    looks, unreadable = _look_at(images, chosen, bands, scale, workers)
    summary = dict(
        images=len(images), unreadable=len(unreadable), **_pixels(looks),
        **_tables(source, images, table, looks))
    summary['looked at'] = len(chosen)
    if unreadable:
        summary['unreadable images'] = [dict(image=images.name(index), reason=reason)
                                        for index, reason in unreadable[:NAMED]]
    if folder is not None:
        shown = chosen[choose(len(chosen), COLUMNS * ROWS, seed + 1)]
        sheet = contact_sheet(images, shown, table, bands, scale)
        folder.mkdir(parents=True, exist_ok=True)
        _write_png(folder / CONTACT_SHEET, sheet)
        summary['contact sheet'] = str(folder / CONTACT_SHEET)
    return summary


def choose(number: int, count: int | None, seed: int) -> np.ndarray:
    """``count`` of the indices below ``number`` (all of them if None or fewer), rising, int64."""
    if count is None or count >= number:
        return np.arange(number)
    generator = np.random.default_rng(hash_seed(seed, number, count))
    return np.sort(generator.choice(number, count, replace=False))


# Pixels ------------------------------------------------------------------------------------------


def _look_at(images: Source, chosen: np.ndarray, bands: tuple[int, ...] | None, scale: Scale,
             workers: int) -> tuple[list[Look], list[tuple[int, str]]]:
    """The readable images, and (index, reason) of the others."""
    looks: list[Look] = []
    unreadable: list[tuple[int, str]] = []
    results = in_processes(partial(_look, images, bands, scale), chosen.tolist(), workers)
    with progress_bar('stats', len(chosen)) as advance:
        for index, result in zip(chosen.tolist(), results):
            if isinstance(result, Look):
                looks.append(result)
            else:
                unreadable.append((index, result))
                log.info('unreadable: %s: %s', images.name(index), result)
            advance(1)
    if not looks:
        index, reason = unreadable[0]
        raise ValueError(f'not one of {len(chosen)} images could be read, the first '
                         f'{images.name(index)!r}: {reason}; check the data.')
    return looks, unreadable


def _look(images: Source, bands: tuple[int, ...] | None, scale: Scale, index: int) -> Look | str:
    try:
        pixels = decode_safely(images.read(index), bands, scale)
    except UnreadableImage as error:
        return str(error)
    return look(pixels)


def look(pixels: np.ndarray) -> Look:
    """Size and sums of uint8 RGB ``[H, W, 3]``."""
    height, width = pixels.shape[:2]
    counts = [np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(3)]
    return Look(width, height, tuple(int(count @ VALUES) for count in counts),
                tuple(int(count @ VALUES**2) for count in counts))


def mean_and_std(looks: Sequence[Look]) -> tuple[list[float], list[float]]:
    """Of the pixels of all images together, per channel, in 0-255 units; larger images weigh more.

    Exact: integers until the last division, so in any order of the images the same.
    """
    pixels = sum(look.width * look.height for look in looks)
    sums = [sum(look.sums[channel] for look in looks) for channel in range(3)]
    squares = [sum(look.squares[channel] for look in looks) for channel in range(3)]
    variances = [(pixels * square - total**2) / pixels**2 for total, square in zip(sums, squares)]
    return [total / pixels for total in sums], [math.sqrt(value) for value in variances]


def _pixels(looks: Sequence[Look]) -> dict[str, Any]:
    mean, std = mean_and_std(looks)
    statistics = ', '.join(f'{name}=[{", ".join(f"{value:.4f}" for value in values)}]'
                           for name, values in (('mean', mean), ('std', std)))
    channels = [dict(channel=name, mean=m, std=s, mean_of_1=m / 255, std_of_1=s / 255)
                for name, m, s in zip(('red', 'green', 'blue'), mean, std)]
    return dict(config=f'model = dict(data_preprocessor=dict({statistics}))', channels=channels)


# Tables ------------------------------------------------------------------------------------------


def _rows_of(images: Source, source: str) -> pd.DataFrame | None:
    """The rows of the manifest that belong to these images, indexed by the image's name."""
    folder = Path(source) if os.path.isdir(source) else Path(source).parent
    for path in (folder / 'manifest.csv', folder / 'tiles.csv', folder.parent / 'tiles.csv'):
        if path.is_file():
            break
    else:
        return None
    table = read_table(path, TILE, 'the step fetch or pack')
    table.index = pd.Index([os.path.normpath(path.parent / file) for file in table['file']])
    names = {os.path.normpath(images.name(index)) for index in range(len(images))}
    rows = table[table.index.isin(names)]
    if len(rows) < len(images):
        log.warning('%s has no row for %d of %d images: resolutions, classes and continents are '
                    'of the others', path, len(images) - len(rows), len(images))
    return rows if len(rows) else None


def _tables(source: str, images: Source, table: pd.DataFrame | None,
            looks: Sequence[Look]) -> dict[str, Any]:
    sizes = Counter((look.width, look.height) for look in looks)
    row = {'Dataset': source, 'Num. of Images': len(images), 'Spatial resolution': '-',
           'Source': '-', 'Image Sizes': _size_range(list(sizes))}
    tables: dict[str, Any] = {'Table 1': [row]}
    if len(sizes) > 1:
        tables['sizes'] = [dict(size=f'{width} x {height}', images=number)
                           for (width, height), number in sizes.most_common(NAMED)]
    if table is not None:
        row['Spatial resolution'] = _range(table['gsd'].min(), table['gsd'].max())
        row['Source'] = ', '.join(sorted(set(table['source']) - {''})) or '-'
        tables['classes'] = _histogram(table, 'class')
        tables['continents'] = _histogram(table, 'continent')
    return tables


def _size_range(sizes: list[tuple[int, int]]) -> str:
    """As Table 1 has it, ``256/512``; many sizes as a range."""
    sides = sorted({side for size in sizes for side in size})
    if all(width == height for width, height in sizes) and len(sizes) <= 3:
        return '/'.join(map(str, sides))
    return _range(sides[0], sides[-1])


def _range(low: float, high: float) -> str:
    return f'{low:g}' if low == high else f'{low:g} to {high:g}'


def _histogram(table: pd.DataFrame, column: str) -> list[dict[str, Any]]:
    return [{column: str(value) or '-', 'images': int(number),
             'share': f'{number / len(table):.2%}'}
            for value, number in table[column].value_counts().items()]


# Contact sheet -----------------------------------------------------------------------------------


def contact_sheet(images: Source, shown: np.ndarray, table: pd.DataFrame | None = None,
                  bands: tuple[int, ...] | None = None, scale: Scale = 'auto') -> Image.Image:
    """Small pictures in rows, each with its name and its class and resolution, or its folder.

    Args:
        images: The data set.
        shown: Indices of the images, ``[N]``.
        table: Rows of the manifest, indexed by the image's name.
        bands, scale: See :mod:`pera_mm.datasets.reading`.
    """
    width, height = PICTURE + GAP, PICTURE + 2 * LABEL + GAP
    size = (COLUMNS * width + GAP, math.ceil(len(shown) / COLUMNS) * height + GAP)
    sheet = Image.new('RGB', size, 'white')
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for place, index in enumerate(shown.tolist()):
        left, top = GAP + place % COLUMNS * width, GAP + place // COLUMNS * height
        name = os.path.normpath(images.name(index))
        lines = [Path(name).stem, Path(name).parent.name]
        if table is not None and name in table.index:
            row = table.loc[name]
            lines[1] = f'{row["class"]} {row["gsd"]:.2g} m'.strip()
        try:
            picture = Image.fromarray(decode_safely(images.read(index), bands, scale))
            picture.thumbnail((PICTURE, PICTURE))
        except UnreadableImage:
            picture = Image.new('RGB', (PICTURE, PICTURE), 'lightgray')
            lines[1] = 'unreadable'
        sheet.paste(picture, (left, top))
        for number, line in enumerate(lines):
            draw.text((left, top + PICTURE + number * LABEL), _shortened(line, font), 'black', font)
    return sheet


def _shortened(text: str, font: Any) -> str:
    """The end of a text that is too long: names differ there."""
    if font.getlength(text) <= PICTURE:
        return text
    while font.getlength(f'…{text}') > PICTURE:
        text = text[1:]
    return f'…{text}'


def _write_png(path: Path, picture: Image.Image) -> None:
    data = io.BytesIO()
    picture.save(data, 'PNG')
    write_whole(path, data.getvalue())
