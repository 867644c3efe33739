"""LEVIR-CD: pairs of 1024 x 1024 px at 50 cm, labelled with built and removed buildings."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pera_mm.datasets.masks import read_mask
from pera_mm.datasets.reading import UnreadableImage
from pera_mm.errors import UserError
from pera_mm.prepare.archives import BadFile, Entry, Source, pick
from pera_mm.prepare.jobs import Job, copy
from pera_mm.prepare.recipe import Plan, Recipe
from pera_mm.prepare.tiles import cut, tile_corners, tile_name
from pera_mm.prepare.verify import Report, check_images, check_masks, check_pairs, files

PUBLISHED = dict(train=445, val=64, test=128)  # pairs (Chen and Shi 2020)
CLASSES = {0: 'no change', 255: 'change'}
# A/train_1.png, and A/train_386_0512_0768.png in the release in tiles.
WHOLE = r'(?:^|/)(A|B|label)/((train|val|test)_\d+\.png)$'
CUT = r'(?:^|/)(A|B|label)/((train|val|test)_\d+_\d+_\d+\.png)$'
CUT_SIZE = 256


@dataclass(frozen=True)
class LevirCD(Recipe):
    """The layout ``root/{train,val,test}/{A,B,label}``, and ``root/train_512`` likewise, in tiles.

    The files of the release in tiles of 256 px go to ``root/{train,val,test}`` by the beginning of
    their names.

    Args:
        size: Side of an image in pixels.
        tile: Side of a training tile in pixels.
    """

    size: int = 1024
    tile: int = 512

    def plan(self, source: Source, root: Path) -> Plan:
        """Copy every image and label; cut the training ones into tiles."""
        whole, cut_before = self._find(source, WHOLE), self._find(source, CUT)
        if whole and cut_before:
            raise UserError('The source holds LEVIR-CD both whole and in tiles '
                            f'({next(iter(cut_before.values())).path}): keep one of them.')
        chosen = whole or cut_before
        jobs = []
        for name, entry in chosen.items():
            split, part, file = name.split('/')
            jobs.append(copy(entry, root / name))
            if split == 'train' and whole:
                outputs = [root / f'train_{self.tile}' / part / tile_name(file[:-4], corner)
                           for corner in tile_corners(self.size, self.tile)]
                mode = 'L' if part == 'label' else 'RGB'
                jobs.append(Job(entry.path, outputs, partial(self._cut, entry, mode)))
        found = {name.split('/')[0] for name in chosen}
        return Plan(jobs, [f'{split}.zip (A, B, label/{split}_*.png)' for split in PUBLISHED
                           if split not in found])

    def finish(self, source: Source, report: Report) -> None:
        """Check numbers, pairs, sizes and labels."""
        root = report.root
        if self._find(source, CUT):
            report.note('release', f'in tiles of {CUT_SIZE} px: no test on whole images')
            per_image, size, tiles = len(tile_corners(self.size, CUT_SIZE)), CUT_SIZE, 0
        else:
            per_image, size, tiles = 1, self.size, len(tile_corners(self.size, self.tile))
        parts = [(split, pairs * per_image, size) for split, pairs in PUBLISHED.items()]
        if tiles:
            parts.append((f'train_{self.tile}', PUBLISHED['train'] * tiles, self.tile))
        for split, published, side in parts:
            first, second, label = (root / split / part for part in ('A', 'B', 'label'))
            report.count(f'{split} pairs ({side} px)', len(files(first)), published)
            check_pairs(report, [first, second, label])
            check_images(report, f'{split} images', [*files(first), *files(second)], side)
            check_masks(report, label, side, CLASSES)

    def _find(self, source: Source, pattern: str) -> dict[str, Entry]:
        folders = {'a': 'A', 'b': 'B', 'label': 'label'}
        return pick(source.entries, pattern, lambda match: '/'.join(
            (match[3].lower(), folders[match[1].lower()], match[2])))

    def _cut(self, entry: Entry, mode: str) -> Iterator[bytes]:
        data = entry.read()
        try:
            pixels = read_mask(data, mode).values
        except UnreadableImage as error:
            raise BadFile(f'cannot be read ({error})') from error
        if pixels.shape[:2] != (self.size, self.size):
            raise BadFile(f'is {pixels.shape[1]} x {pixels.shape[0]} pixels, not '
                          f'{self.size} x {self.size}')
        yield from cut(pixels, self.tile)
