"""AID and UC Merced: one folder of images per class, and the committed splits."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pera_mm.prepare.archives import Source, pick
from pera_mm.prepare.jobs import copy
from pera_mm.prepare.recipe import Plan, Recipe
from pera_mm.prepare.splits import class_of, read_list, write_splits
from pera_mm.prepare.verify import Report, check_images, files

# Images per class as published (Xia et al. 2017, Table 2); 10,000 in all.
AID = dict(
    Airport=360, BareLand=310, BaseballField=220, Beach=400, Bridge=360, Center=260, Church=240,
    Commercial=350, DenseResidential=410, Desert=300, Farmland=370, Forest=250, Industrial=390,
    Meadow=280, MediumResidential=290, Mountain=340, Park=350, Parking=390, Playground=370,
    Pond=420, Port=380, RailwayStation=260, Resort=290, River=410, School=300,
    SparseResidential=300, Square=330, Stadium=290, StorageTanks=360, Viaduct=420)  # fmt: skip
UCM = dict.fromkeys((
    'agricultural', 'airplane', 'baseballdiamond', 'beach', 'buildings', 'chaparral',
    'denseresidential', 'forest', 'freeway', 'golfcourse', 'harbor', 'intersection',
    'mediumresidential', 'mobilehomepark', 'overpass', 'parkinglot', 'river', 'runway',
    'sparseresidential', 'storagetanks', 'tenniscourt'), 100)  # fmt: skip


def published_names(dataset: str) -> list[str]:
    """List ``class/file`` of every image in the official release of ``'aid'`` or ``'ucm'``."""
    if dataset == 'aid':
        return [f'{label}/{label.lower()}_{number}.jpg'
                for label, count in AID.items() for number in range(1, count + 1)]
    return [f'{label}/{label}{number:02d}.tif'
            for label, count in UCM.items() for number in range(count)]


@dataclass(frozen=True)
class SceneClasses(Recipe):
    """The layout ``root/<class>/<image>`` and ``root/splits/<split>_{train,test}.txt``.

    Args:
        archive: Name of the official archive, for sentences.
        counts: Class → number of images.
        suffix: Suffix of the image files.
        size: Side of the images in pixels.
        slack: Accepted difference of a side in pixels.
        splits: Name of a split → the committed list of its training images.
    """

    archive: str
    counts: dict[str, int]
    suffix: str
    size: int
    slack: int = 0
    splits: dict[str, str] = field(default_factory=dict)

    def plan(self, source: Source, root: Path) -> Plan:
        """Copy every image from the folders named after a class."""
        labels = {label.lower(): label for label in self.counts}
        pattern = rf'(?:^|/)({"|".join(self.counts)})/([^/]+{re.escape(self.suffix)})$'
        images = pick(source.entries, pattern,
                      lambda match: f'{labels[match[1].lower()]}/{match[2]}')
        jobs = [copy(entry, root / name) for name, entry in images.items()]
        return Plan(jobs, [] if jobs else [f'{self.archive} (folders {", ".join(self.counts)})'])

    def finish(self, source: Source, report: Report) -> None:
        """Check numbers and images; split the images by the committed lists."""
        paths = [path for label in self.counts for path in files(report.root / label, self.suffix)]
        names = list(map(report.name, paths))
        found = Counter(map(class_of, names))
        report.count('classes', len(found), len(self.counts))
        report.count('images', len(names), sum(self.counts.values()))
        too_few = () if report.partial else self.counts
        report.blame('classes have another number of images than published', [
            f'{label} ({found[label]}, published {count})' for label, count in self.counts.items()
            if found[label] > count or (found[label] < count and label in too_few)])
        for split, published in self.splits.items():
            self._write_split(split, read_list(published), names, report)
        check_images(report, 'images', paths, self.size, self.slack)

    def _write_split(self, split: str, train: list[str], names: list[str],
                     report: Report) -> None:
        missing = sorted(set(train) - set(names))
        if missing and not report.partial:
            report.blame(
                f'names of the list {split} are not in this release', missing,
                f'The split {split} was not written; if only names differ, make one for this '
                f'release: python tools/data/make_splits.py {report.root} '
                f'{report.root}/splits/{split} --share 0.{split[2:]}')
            return
        write_splits(report.root / 'splits' / split, names, train, self.counts)
        report.count(f'training images of {split}', len(train) - len(missing), len(train))


aid = SceneClasses('AID.zip', AID, '.jpg', 600, splits=dict(tr20='aid_tr20', tr50='aid_tr50'))
ucm = SceneClasses('UCMerced_LandUse.zip', UCM, '.tif', 256, slack=16,
                   splits=dict(tr50='ucm_tr50', tr80='ucm_tr80'))
