"""ISPRS Potsdam: 38 orthophotos of 6000 x 6000 px at 5 cm, with labels as colors."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pera_mm.datasets.masks import read_mask
from pera_mm.datasets.reading import UnreadableImage
from pera_mm.prepare.archives import BadFile, Entry, Source, pick
from pera_mm.prepare.jobs import Job
from pera_mm.prepare.recipe import Plan, Recipe
from pera_mm.prepare.tiles import cut, png, read_rgb, tile_corners, tile_name
from pera_mm.prepare.verify import Report, check_images, check_masks, check_pairs, files

TRAIN = ('2_10', '2_11', '2_12', '3_10', '3_11', '3_12', '4_10', '4_11', '4_12', '5_10', '5_11',
         '5_12', '6_10', '6_11', '6_12', '6_7', '6_8', '6_9', '7_10', '7_11', '7_12', '7_7', '7_8',
         '7_9')  # fmt: skip
TEST = ('2_13', '2_14', '3_13', '3_14', '4_13', '4_14', '4_15', '5_13', '5_14', '5_15', '6_13',
        '6_14', '6_15', '7_13')  # fmt: skip
CLASSES = {0: 'no class (border)', 1: 'impervious', 2: 'building', 3: 'low vegetation', 4: 'tree',
           5: 'car', 6: 'clutter'}  # fmt: skip
UNKNOWN = 255
# The label of a color with channels of 0 or 255; index: 4 for red + 2 for green + 1 for blue.
LABELS = np.array([0, 2, 4, 3, 6, UNKNOWN, 5, 1], np.uint8)
TOLERANCE = 16  # gray levels per channel: some releases were resampled or compressed
MAX_BORDER = 0.01  # share of pixels; full labels have no border, noBoundary labels have one

_Reader = Callable[[bytes], NDArray[np.uint8]]


def labels_of(colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert colors to labels 0…6; a color may differ from its class's by ``TOLERANCE``.

    Args:
        colors: RGB ``[H, W, 3]``.

    Returns:
        uint8 ``[H, W]``, indices of CLASSES.

    Raises:
        BadFile: if any other color occurs; the text names the most common ones.
    """
    bright = colors > 127
    labels = LABELS[bright @ np.array([4, 2, 1], np.uint8)]
    distance = np.where(bright, 255 - colors, colors).max(axis=2)
    unknown = (distance > TOLERANCE) | (labels == UNKNOWN)
    if unknown.any():
        red, green, blue = colors[unknown].T.astype(np.int32)
        codes = red << 16 | green << 8 | blue
        found, counts = np.unique(codes, return_counts=True)
        common = [f'({found[index] >> 16}, {found[index] >> 8 & 255}, {found[index] & 255}) '
                  f'{counts[index]:,} times' for index in np.argsort(-counts)[:3]]
        raise BadFile(
            f'has colors of no class in {unknown.mean():.2%} of its pixels: {", ".join(common)}'
            f'{" …" if len(found) > 3 else ""}. Some releases of 5_Labels_all.zip hold a label '
            'drawn over its image: then put 5_Labels_for_participants.zip beside it, whose '
            'labels are taken first')
    return labels


@dataclass(frozen=True)
class Potsdam(Recipe):
    """The layout ``root/{img_dir,ann_dir}/train`` in tiles and ``…/val`` whole, all PNG.

    The noBoundary labels, if present, become ``ann_dir/val_eroded``, where the borders are 0.

    Args:
        size: Side of an image in pixels.
        tile: Side of a training tile in pixels.
    """

    size: int = 6000
    tile: int = 512
    workers = 1  # an image takes 108 MB of memory, and several times that while it is cut

    def plan(self, source: Source, root: Path) -> Plan:
        """Cut or copy every image and its labels."""
        images = pick(source.entries, _file('_RGB'), _identity)
        restored = [entry for entry in source.entries if 'participants' in entry.path]
        others = [entry for entry in source.entries if 'participants' not in entry.path]
        labels = pick(others, _file('_label'), _identity)
        labels |= pick(restored, _file('_label'), _identity)
        # Only of the test images: the label of 4_12 differs between two official archives.
        eroded = pick(source.entries, _file('_label_noBoundary', TEST), _identity)
        jobs = []
        for identity, entry in images.items():
            jobs.append(self._job(entry, root / 'img_dir', identity, read_rgb))
        for identity, entry in labels.items():
            jobs.append(self._job(entry, root / 'ann_dir', identity, _read_labels))
        for identity, entry in eroded.items():
            output = root / 'ann_dir' / 'val_eroded' / f'top_potsdam_{identity}.png'
            make = partial(self._make, entry, _read_labels, whole=True)
            jobs.append(Job(entry.path, [output], make))
        wanted = {'2_Ortho_RGB.zip (top_potsdam_*_RGB.tif)': images,
                  '5_Labels_all.zip (top_potsdam_*_label.tif)': labels}
        return Plan(jobs, [archive for archive, found in wanted.items() if not found])

    def _job(self, entry: Entry, folder: Path, identity: str, read: _Reader) -> Job:
        stem, whole = f'top_potsdam_{identity}', identity in TEST
        if whole:
            outputs = [folder / 'val' / f'{stem}.png']
        else:
            outputs = [folder / 'train' / tile_name(stem, corner)
                       for corner in tile_corners(self.size, self.tile)]
        return Job(entry.path, outputs, partial(self._make, entry, read, whole=whole))

    def _make(self, entry: Entry, read: _Reader, whole: bool) -> Iterator[bytes]:
        pixels = read(entry.read())
        if pixels.shape[:2] != (self.size, self.size):
            height, width = pixels.shape[:2]
            raise BadFile(f'is {width} x {height} pixels, not {self.size} x {self.size}')
        if whole:
            yield png(pixels)
        else:
            yield from cut(pixels, self.tile)

    def finish(self, source: Source, report: Report) -> None:
        """Check numbers, pairs, sizes and labels."""
        root, tiles = report.root, len(tile_corners(self.size, self.tile))
        strange = pick(source.entries, r'(?:^|/)top_potsdam_(\d+_\d+)_RGB\.tif$', lambda m: m[1])
        report.blame('images in neither official split were left out',
                     sorted(strange.keys() - {*TRAIN, *TEST}), 'Move them out of the source.')
        parts = [('train', self.tile, len(TRAIN) * tiles), ('val', self.size, len(TEST))]
        for part, size, published in parts:
            images, masks = root / 'img_dir' / part, root / 'ann_dir' / part
            report.count(f'{part} images ({size} px)', len(files(images)), published)
            check_pairs(report, [images, masks])
            check_images(report, f'{part} images', files(images), size)
            border = self._check_masks(report, masks, size)
            if border > MAX_BORDER:
                report.blame('full labels have black borders', [
                    f'{report.name(masks)} ({border:.2%})'],
                    'These are noBoundary labels under the name of full ones: remove this folder, '
                    'download 5_Labels_all.zip and repeat the command.')
        eroded = root / 'ann_dir' / 'val_eroded'
        if eroded.is_dir():
            report.count('eroded val labels', len(files(eroded)), len(TEST))
            border = self._check_masks(report, eroded, self.size)
            if not border:
                report.blame('eroded labels have no border', [report.name(eroded)],
                             'These are full labels: remove this folder, download '
                             '5_Labels_all_noBoundary.zip and repeat the command.')
        else:
            report.note('eroded val labels', 'no 5_Labels_all_noBoundary.zip')

    def _check_masks(self, report: Report, masks: Path, size: int) -> float:
        """Check a folder of masks; returns the share of pixels without a class."""
        counts = check_masks(report, masks, size, CLASSES)
        return float(counts[0] / max(counts.sum(), 1))


def _file(ending: str, numbers: Sequence[str] = TRAIN + TEST) -> str:
    return rf'(?:^|/)top_potsdam_({"|".join(numbers)}){ending}\.tif$'


def _identity(match: re.Match[str]) -> str:
    return match[1]


def _read_labels(data: bytes) -> NDArray[np.uint8]:
    try:
        colors = read_mask(data, 'RGB').values
    except UnreadableImage as error:
        raise BadFile(f'cannot be read ({error})') from error
    return labels_of(colors)
