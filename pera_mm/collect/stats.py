"""Describe a data set: its row of Table 1, the statistics of its pixels, and a contact sheet."""

import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from pera_mm.collect.common.processes import check_workers, in_processes
from pera_mm.collect.common.settings import is_whole
from pera_mm.collect.common.tables import TILE, log, progress_bar, read_table
from pera_mm.datasets.listing import ImageList, Source, open_source
from pera_mm.datasets.reading import Scale, UnreadableImage, decode_safely, rule_of
from pera_mm.errors import UserError
from pera_mm.files import write_whole
from pera_mm.seeds import hash_seed

CONTACT_SHEET = 'contact_sheet.png'
SUMMARY = 'stats.json'
COLUMNS, ROWS = 8, 6  # of the contact sheet
PICTURE, LABEL, GAP = 160, 16, 6  # px
FONT_SIZE = 12  # px
MAX_NAMED = 10  # unreadable images, or sizes, that are listed
MAX_SIZES = 3  # different sizes that are written one by one
MAX_PARENTS = 3  # folders above the first image that are searched for a table
SHOWN = ('class', 'continent', 'gsd', 'source', 'file')  # columns of the manifest
LEVELS = np.arange(256)


class PixelSums(NamedTuple):
    """The size of one image and the exact sums over its pixels."""

    width: int
    height: int
    sums: tuple[int, ...]  # of the pixels, per channel, R G B
    squares: tuple[int, ...]  # of their squares


class Totals:
    """The sums over all images: exact, so they do not depend on the order of the images."""

    def __init__(self) -> None:
        self.sizes: Counter[tuple[int, int]] = Counter()  # width, height
        self.sums, self.squares = [0] * 3, [0] * 3

    def add(self, image: PixelSums) -> None:
        """Count one more image."""
        self.sizes[image.width, image.height] += 1
        for channel in range(3):
            self.sums[channel] += image.sums[channel]
            self.squares[channel] += image.squares[channel]

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Compute the mean and std of all pixels, per channel, in 0-255 units.

        Every pixel has the same weight. All numbers are integers until the last division.
        """
        pixels = sum(width * height * number for (width, height), number in self.sizes.items())
        variances = [(pixels * square - total**2) / pixels**2
                     for total, square in zip(self.sums, self.squares)]
        return [total / pixels for total in self.sums], [math.sqrt(v) for v in variances]


def describe(source: str, folder: Path | None = None, count: int | None = None, seed: int = 0,
             data_root: str | None = None, index_file: str | None = None,
             bands: Sequence[int] | None = None, scale: Scale = 'auto',
             workers: int = 2) -> dict[str, Any]:
    """Describe any data set that UnlabeledImages reads: Table 1, mean and std, classes.

    Resolutions, classes and continents come from the manifest.csv or tiles.csv in the folder of
    the images or above it. Without such a table they stay unknown.

    Args:
        source: A folder of images, a text list, tar shards or an LMDB.
        folder: Where the contact sheet and this summary (stats.json) are written; None: nowhere.
        count: The number of images, drawn by ``seed``, that are read for the statistics and the
            sizes; None: all.
        seed: The seed of the draw of these images, and of those on the contact sheet.
        data_root, index_file: As for UnlabeledImages.
        bands, scale: How rasters become 8-bit RGB, see :mod:`pera_mm.datasets.reading`.
        workers: Number of processes.

    Returns:
        Counts, the lines to paste into a config, and tables.

    Raises:
        UserError: if a setting is wrong, ``folder`` lies in the data set, or no image is there
            or readable.
    """
    check_workers(workers)
    if count is not None and not (is_whole(count) and count >= 1):
        raise UserError(f'count is the number of images to read, 1 or more; got {count!r}.')
    bands, scale = rule_of(bands, scale)
    if folder is not None:
        _check_apart(folder, source)
        folder.mkdir(parents=True, exist_ok=True)  # before hours of reading
    images = open_source(source, data_root, index_file)
    chosen = choose(len(images), count, seed)
    table = _rows_of(images, source)
    totals, unreadable, examples = _sum_images(images, chosen, bands, scale, workers)
    summary = dict(
        images=len(images), unreadable=unreadable, **_pixels(totals),
        **_tables(source, images, table, totals.sizes))
    summary['looked at'] = len(chosen)
    if examples:
        summary['unreadable images'] = examples
    if folder is not None:
        shown = chosen[choose(len(chosen), COLUMNS * ROWS, seed + 1)]
        sheet = contact_sheet(images, shown, table, bands, scale)
        _write_png(folder / CONTACT_SHEET, sheet)
        summary['contact sheet'] = str(folder / CONTACT_SHEET)
        write_whole(folder / SUMMARY, json.dumps(summary, indent=1).encode())
    return summary


def _check_apart(folder: Path, source: str) -> None:
    """Check that the contact sheet does not lie in the data set, where it would be an image."""
    data = Path(source)
    if not data.is_dir() and data.suffix == '.tar':
        data = data.parent
    if data.is_dir() and folder.resolve().is_relative_to(data.resolve()):
        raise UserError(f'the contact sheet would lie in {folder}, in the data set itself: give '
                        'another folder.')


def choose(number: int, count: int | None, seed: int) -> np.ndarray:
    """Draw ``count`` of the indices below ``number``, int64, rising; all if None or fewer."""
    if count is None or count >= number:
        return np.arange(number)
    generator = np.random.default_rng(hash_seed(seed, number, count))
    return np.sort(generator.choice(number, count, replace=False))


# Pixels ------------------------------------------------------------------------------------------


def _sum_images(images: Source, chosen: np.ndarray, bands: tuple[int, ...] | None, scale: Scale,
                workers: int) -> tuple[Totals, int, list[dict[str, str]]]:
    """Add up the readable images; also return the number of the others, and the first of them."""
    totals, unreadable = Totals(), 0
    examples: list[dict[str, str]] = []
    results = in_processes(partial(_sum_image, images, bands, scale), map(int, chosen), workers)
    with progress_bar('stats', len(chosen)) as advance:
        for index, result in zip(chosen, results):
            if isinstance(result, PixelSums):
                totals.add(result)
            else:
                unreadable += 1
                if len(examples) < MAX_NAMED:
                    examples.append(dict(image=images.name(int(index)), reason=result))
            advance(1)
    if unreadable == len(chosen):
        raise UserError(f'not one of {len(chosen)} images could be read, the first '
                        f'{examples[0]["image"]!r}: {examples[0]["reason"]}; check the data.')
    return totals, unreadable, examples


def _sum_image(images: Source, bands: tuple[int, ...] | None, scale: Scale,
               index: int) -> PixelSums | str:
    """Add up one image, or return the reason why it cannot be read."""
    try:
        pixels = decode_safely(images.read(index), bands, scale)
    except UnreadableImage as error:
        return str(error)
    return sum_pixels(pixels)


def sum_pixels(pixels: np.ndarray) -> PixelSums:
    """Add up the pixels of one image, uint8 RGB ``[H, W, 3]``."""
    height, width = pixels.shape[:2]
    counts = [np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(3)]
    return PixelSums(width, height, tuple(int(count @ LEVELS) for count in counts),
                     tuple(int(count @ LEVELS**2) for count in counts))


def _pixels(totals: Totals) -> dict[str, Any]:
    mean, std = totals.mean_and_std()
    statistics = ', '.join(f'{name}=[{", ".join(f"{value:.4f}" for value in values)}]'
                           for name, values in (('mean', mean), ('std', std)))
    channels = [dict(channel=name, mean=m, std=s, mean_of_1=m / 255, std_of_1=s / 255)
                for name, m, s in zip(('red', 'green', 'blue'), mean, std)]
    return dict(config=f'model = dict(data_preprocessor=dict({statistics}))', channels=channels)


# Tables ------------------------------------------------------------------------------------------


def _rows_of(images: Source, source: str) -> pd.DataFrame | None:
    """Read the rows of the manifest that belong to these images, indexed by the image's key."""
    path = _find_table(images, source)
    if path is None:
        return None
    table = read_table(path, TILE, 'the step fetch or pack')[list(SHOWN)]
    keys = _keys(os.path.join(path.parent, file) for file in table.pop('file'))
    table.index = pd.Index(keys)
    if isinstance(images, ImageList) or len(images) != len(table):  # else they were packed together
        names = (images.name(index) for index in range(len(images)))
        table = table[np.isin(keys, _keys(names))]
    if len(table) < len(images):
        log.warning('%s has no row for %d of %d images: resolutions, classes and continents are '
                    'of the others', path, len(images) - len(table), len(images))
    return table if len(table) else None


def _find_table(images: Source, source: str) -> Path | None:
    """Look for a table in the folder of the data set, above it, then above the first image."""
    folder = Path(source) if os.path.isdir(source) else Path(source).parent
    places = [folder, folder.parent, *Path(images.name(0)).parents[:MAX_PARENTS]]
    files = [place / name for place in places for name in ('manifest.csv', 'tiles.csv')]
    return next((file for file in files if file.is_file()), None)


def key_of(name: str) -> int:
    """Hash the name of an image to 64 bits, for this process: 5 million names take 0.6 GB."""
    return hash(os.path.abspath(name))


def _keys(names: Iterable[str]) -> np.ndarray:
    return np.fromiter(map(key_of, names), np.int64)


def _tables(source: str, images: Source, table: pd.DataFrame | None,
            sizes: Counter[tuple[int, int]]) -> dict[str, Any]:
    row = {'Dataset': source, 'Num. of Images': len(images), 'Spatial resolution': '-',
           'Source': '-', 'Image Sizes': _size_range(list(sizes))}
    tables: dict[str, Any] = {'Table 1': [row]}
    if len(sizes) > 1:
        tables['sizes'] = [dict(size=f'{width} x {height}', images=number)
                           for (width, height), number in sizes.most_common(MAX_NAMED)]
    if table is not None:
        row['Spatial resolution'] = _range(table['gsd'].min(), table['gsd'].max())
        row['Source'] = ', '.join(sorted(set(table['source']) - {''})) or '-'
        tables['classes'] = _histogram(table, 'class')
        tables['continents'] = _histogram(table, 'continent')
    return tables


def _size_range(sizes: list[tuple[int, int]]) -> str:
    """Write sizes as Table 1 does, ``256/512``; many sizes become a range."""
    sides = sorted({side for size in sizes for side in size})
    if all(width == height for width, height in sizes) and len(sizes) <= MAX_SIZES:
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
    """Draw small pictures in rows, each with its name and its class and resolution, or its folder.

    Args:
        images: The data set.
        shown: Indices of the images, ``[N]``.
        table: Rows of the manifest, indexed by :func:`key_of` the image's name.
        bands, scale: See :mod:`pera_mm.datasets.reading`.
    """
    width, height = PICTURE + GAP, PICTURE + 2 * LABEL + GAP
    size = (COLUMNS * width + GAP, math.ceil(len(shown) / COLUMNS) * height + GAP)
    sheet = Image.new('RGB', size, 'white')
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    names = [images.name(index) for index in shown.tolist()]
    rows = None if table is None else table[table.index.isin([key_of(name) for name in names])]
    for place, (index, name) in enumerate(zip(shown.tolist(), names)):
        left, top = GAP + place % COLUMNS * width, GAP + place // COLUMNS * height
        lines = [Path(name).stem, Path(name).parent.name]
        if rows is not None and key_of(name) in rows.index:
            row = rows.loc[key_of(name)]
            lines[1] = f'{row["class"]} {row["gsd"]:.2g} m'.strip()
        try:
            picture = _fitted(Image.fromarray(decode_safely(images.read(index), bands, scale)))
        except UnreadableImage:
            picture = Image.new('RGB', (PICTURE, PICTURE), 'lightgray')
            lines[1] = 'unreadable'
        sheet.paste(picture, (left, top))
        for number, line in enumerate(lines):
            draw.text((left, top + picture.height + number * LABEL), _shortened(line, font),
                      'black', font)
    return sheet


def _fitted(picture: Image.Image) -> Image.Image:
    """Scale a picture, up or down, to the largest size that fits into a cell."""
    sides = [max(1, round(side * PICTURE / max(picture.size))) for side in picture.size]
    return picture.resize((sides[0], sides[1]), Image.Resampling.LANCZOS)


def _shortened(text: str, font: Any) -> str:
    """Keep the end of a text that is too long: names differ there."""
    if font.getlength(text) <= PICTURE:
        return text
    while font.getlength(f'…{text}') > PICTURE:
        text = text[1:]
    return f'…{text}'


def _write_png(path: Path, picture: Image.Image) -> None:
    data = io.BytesIO()
    picture.save(data, 'PNG')
    write_whole(path, data.getvalue())
