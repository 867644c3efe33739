"""LoveDA: urban and rural images of 1024 x 1024 px at 30 cm, with masks except for the test set."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pera_mm.datasets.masks import read_mask
from pera_mm.datasets.reading import UnreadableImage
from pera_mm.prepare.archives import BadFile, Entry, Source, pick
from pera_mm.prepare.jobs import Job, copy
from pera_mm.prepare.recipe import Plan, Recipe
from pera_mm.prepare.tiles import cut, read_rgb, tile_corners, tile_name
from pera_mm.prepare.verify import Report, check_images, check_masks, check_pairs, files

PUBLISHED = dict(train=2522, val=1669, test=1796)  # images (Wang et al. 2021)
CLASSES = {0: 'no data', 1: 'background', 2: 'building', 3: 'road', 4: 'water', 5: 'barren',
           6: 'forest', 7: 'agriculture'}  # fmt: skip
FOLDERS = dict(images_png='img_dir', masks_png='ann_dir')
MODES = ('L', 'P')  # Pillow's, of masks; indices of a palette are labels
# Train/Urban/images_png/1.png; Train may be the name of the archive.
PATTERN = (r'(?:^|/)(train|val|test)(?:\.\w+)*/(?:urban|rural)/(images_png|masks_png)/'
           r'(\d+\.png)$')


@dataclass(frozen=True)
class LoveDA(Recipe):
    """The layout ``root/{img_dir,ann_dir}/{train_512,val}`` and ``root/img_dir/test``, all PNG.

    The training images are cut into tiles, the others stay whole. Urban and rural images share a
    folder: their numbers differ, and two files of one name are refused.

    Args:
        size: Side of an image in pixels.
        tile: Side of a training tile in pixels.
    """

    size: int = 1024
    tile: int = 512

    def plan(self, source: Source, root: Path) -> Plan:
        """Cut or copy every image and mask."""
        chosen = pick(source.entries, PATTERN, lambda match: '/'.join(
            (FOLDERS[match[2].lower()], match[1].lower(), match[3])))
        found = {name.split('/')[1] for name in chosen}
        return Plan([self._job(entry, root, *name.split('/')) for name, entry in chosen.items()],
                    [f'{split.title()}.zip ({split.title()}/Urban/images_png/*.png …)'
                     for split in PUBLISHED if split not in found])

    def finish(self, source: Source, report: Report) -> None:
        """Check numbers, pairs, sizes and labels."""
        tiles = len(tile_corners(self.size, self.tile))
        parts = [(f'train_{self.tile}', self.tile, PUBLISHED['train'] * tiles),
                 ('val', self.size, PUBLISHED['val']), ('test', self.size, PUBLISHED['test'])]
        for part, size, published in parts:
            images, masks = report.root / 'img_dir' / part, report.root / 'ann_dir' / part
            report.count(f'{part} images ({size} px)', len(files(images)), published)
            check_images(report, f'{part} images', files(images), size)
            if part != 'test':
                check_pairs(report, [images, masks])
                check_masks(report, masks, size, CLASSES)

    def _job(self, entry: Entry, root: Path, kind: str, split: str, name: str) -> Job:
        if split != 'train':
            return copy(entry, root / kind / split / name)
        outputs = [root / kind / f'train_{self.tile}' / tile_name(name[:-4], corner)
                   for corner in tile_corners(self.size, self.tile)]
        read = read_rgb if kind == 'img_dir' else _read_labels
        return Job(entry.path, outputs, partial(self._cut, entry, read))

    def _cut(self, entry: Entry, read: Callable[[bytes], NDArray[np.uint8]]) -> Iterator[bytes]:
        pixels = read(entry.read())
        if pixels.shape[:2] != (self.size, self.size):
            raise BadFile(f'is {pixels.shape[1]} x {pixels.shape[0]} pixels, not '
                          f'{self.size} x {self.size}')
        yield from cut(pixels, self.tile)


def _read_labels(data: bytes) -> NDArray[np.uint8]:
    try:
        labels, mode, *_ = read_mask(data)
    except UnreadableImage as error:
        raise BadFile(f'cannot be read ({error})') from error
    if mode not in MODES:
        raise BadFile(f'has pixels of mode {mode}, but a mask has one 8-bit channel of labels')
    return labels
