"""LoveDA: urban and rural tiles of 1024 x 1024 px at 30 cm, with masks except for the test set."""

from dataclasses import dataclass
from pathlib import Path

from pera_mm.prepare.archives import Source, pick
from pera_mm.prepare.jobs import copy
from pera_mm.prepare.recipe import Plan, Recipe
from pera_mm.prepare.verify import Report, check_images, check_masks, check_pairs, files

PUBLISHED = dict(train=2522, val=1669, test=1796)  # images (Wang et al. 2021)
CLASSES = {0: 'no data', 1: 'background', 2: 'building', 3: 'road', 4: 'water', 5: 'barren',
           6: 'forest', 7: 'agriculture'}  # fmt: skip
FOLDERS = dict(images_png='img_dir', masks_png='ann_dir')
# Train/Urban/images_png/1.png; Train may be the name of the archive.
PATTERN = (r'(?:^|/)(train|val|test)(?:\.\w+)*/(?:urban|rural)/(images_png|masks_png)/'
           r'(\d+\.png)$')


@dataclass(frozen=True)
class LoveDA(Recipe):
    """The layout ``root/{img_dir,ann_dir}/{train,val}`` and ``root/img_dir/test``, all PNG.

    Urban and rural images share a folder: their numbers differ, and two files of one name are
    refused.
    """

    size: int = 1024

    def plan(self, source: Source, root: Path) -> Plan:
        """Copy every image and mask."""
        chosen = pick(source.entries, PATTERN, lambda match: '/'.join(
            (FOLDERS[match[2].lower()], match[1].lower(), match[3])))
        found = {name.split('/')[1] for name in chosen}
        return Plan([copy(entry, root / name) for name, entry in chosen.items()],
                    [f'{split.title()}.zip ({split.title()}/Urban/images_png/*.png …)'
                     for split in PUBLISHED if split not in found])

    def finish(self, source: Source, report: Report) -> None:
        """Check numbers, pairs, sizes and labels."""
        for split, published in PUBLISHED.items():
            images, masks = report.root / 'img_dir' / split, report.root / 'ann_dir' / split
            report.count(f'{split} images', len(files(images)), published)
            check_images(report, f'{split} images', files(images), self.size)
            if split != 'test':
                check_pairs(report, [images, masks])
                check_masks(report, masks, self.size, CLASSES)
