"""DIOR: 23,463 images of 800 x 800 px, boxes of 20 classes as Pascal VOC XML."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pera_mm.datasets.voc import read_texts
from pera_mm.errors import UserError
from pera_mm.files import write_whole
from pera_mm.prepare.archives import BadFile, Source, pick
from pera_mm.prepare.jobs import copy, in_threads
from pera_mm.prepare.recipe import Plan, Recipe
from pera_mm.prepare.verify import WORKERS, Report, check_images, files

PUBLISHED = dict(trainval=11_725, test=11_738)  # images (Li et al. 2020)
# The paper counts 192,472 boxes; the distributed files hold 192,518.
BOXES = (192_472, 192_518)
CLASSES = (  # DIOR's spelling, capitals included
    'airplane', 'airport', 'baseballfield', 'basketballcourt', 'bridge', 'chimney', 'dam',
    'Expressway-Service-area', 'Expressway-toll-station', 'golffield', 'groundtrackfield',
    'harbor', 'overpass', 'ship', 'stadium', 'storagetank', 'tenniscourt', 'trainstation',
    'vehicle', 'windmill')  # fmt: skip
XML = 'Annotations/Horizontal Bounding Boxes'
LISTS = 'ImageSets/Main'
# The last folder may be the name of the archive.
IMAGE_FILES = r'(?:^|/)JPEGImages-(trainval|test)(?:\.\w+)*/([^/]+\.jpg)$'
XML_FILES = r'(?:^|/)horizontal[ _-]bounding[ _-]boxes(?:\.\w+)*/([^/]+\.xml)$'
LIST_FILES = r'(?:^|/)Main(?:\.\w+)*/(train|val|test)\.txt$'


@dataclass
class Annotation:
    """The classes and faults of one XML file."""

    classes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def read_xml(path: Path, size: int) -> Annotation:
    """Read a VOC file and list the faults that would stop or mislead a detector.

    Args:
        path: The file.
        size: Side of its image in pixels; boxes lie within 0…size.
    """
    found = Annotation()
    try:
        texts = read_texts(path)
        width, height = ('?' if text is None else text.removesuffix('.0')
                         for text in texts.size)
        if not width == height == str(size):
            found.faults.append(f'says {width} x {height} pixels')
        for thing in texts.objects:
            found.classes[thing.name or ''] += 1
            left, top, right, bottom = (float('nan' if text is None else text)
                                        for text in thing.corners)
            box = f'{left:g} {top:g} {right:g} {bottom:g}'
            if not (left < right and top < bottom):
                found.faults.append(f'empty box {box}')
            elif min(left, top) < 0 or max(right, bottom) > size:
                found.faults.append(f'box {box} leaves the image')
    except (ValueError, OSError) as error:
        found.faults.append(f'cannot be read: {error}')
    return found


@dataclass(frozen=True)
class Dior(Recipe):
    """The official layout: two folders of images, one of XML files, the lists in ImageSets/Main.

    The lists name only images with an XML file; ``trainval.txt`` joins train and val.

    Args:
        size: Side of an image in pixels.
    """

    size: int = 800

    def plan(self, source: Source, root: Path) -> Plan:
        """Copy every image and XML file."""
        images = pick(source.entries, IMAGE_FILES,
                      lambda match: f'JPEGImages-{match[1].lower()}/{match[2]}')
        boxes = pick(source.entries, XML_FILES, lambda match: f'{XML}/{match[1]}')
        missing = [f'JPEGImages-{part}.zip (*.jpg)' for part in PUBLISHED
                   if not any(name.startswith(f'JPEGImages-{part}/') for name in images)]
        if not boxes:
            missing.append('Annotations.zip (Horizontal Bounding Boxes/*.xml)')
        absent = {'train', 'val', 'test'} - self._lists(source).keys()
        missing += [f'ImageSets (Main/{name}.txt)' for name in sorted(absent)]
        return Plan([copy(entry, root / name) for name, entry in (images | boxes).items()], missing)

    def finish(self, source: Source, report: Report) -> None:
        """Write the lists; check numbers, pairs, sizes and boxes."""
        root, lists = report.root, self._lists(source)
        lists['trainval'] = sorted(lists.get('train', []) + lists.get('val', []))
        xml = {path.stem for path in files(root / XML, '.xml')}
        for name, listed in lists.items():
            folder = root / f'JPEGImages-{"test" if name == "test" else "trainval"}'
            there = {path.stem for path in files(folder, '.jpg')} & xml
            write_whole(root / LISTS / f'{name}.txt', ''.join(
                f'{stem}\n' for stem in listed if stem in there).encode())
            if not report.partial:
                report.blame(
                    f'names in {name}.txt have no image or XML file and were left out',
                    [stem for stem in listed if stem not in there])
        images = {part: files(root / f'JPEGImages-{part}', '.jpg') for part in PUBLISHED}
        for part, paths in images.items():
            report.count(f'{part} images', len(paths), PUBLISHED[part])
            stems = {path.stem for path in paths}
            report.blame(f'{part} images have no XML', sorted(stems - xml))
            report.blame(f'{part} images are in no list', sorted(stems - {*lists.get(part, [])}))
            check_images(report, f'{part} images', paths, self.size)
        stems = {path.stem for paths in images.values() for path in paths}
        report.blame('XML files have no image', sorted(xml - stems))
        self._check_boxes(report)

    def _check_boxes(self, report: Report) -> None:
        paths = files(report.root / XML, '.xml')
        looks = in_threads(lambda path: read_xml(path, self.size), paths, WORKERS)
        seen = list(zip(paths, list(report.progress(looks, 'checking boxes', len(paths)))))
        report.blame('XML files have faults', [
            f'{report.name(path)} ({"; ".join(found.faults[:3])})'
            for path, found in seen if found.faults], 'Correct or remove them.')
        total = sum((found.classes for _, found in seen), Counter())
        report.blame('classes are unknown', [
            f'{name or "(no name)"} ({count} boxes)' for name, count in total.items()
            if name not in CLASSES], f'Known are {", ".join(CLASSES)}.')
        boxes = total.total()
        paper, distributed = BOXES
        report.count('boxes', boxes, paper, distributed,
                     says=f'{paper:,} in the paper, {distributed:,} in the files')
        report.note('images without a box', f'{sum(not found.classes for _, found in seen):,}')
        if boxes:
            report.shares['boxes'] = {name: total[name] / boxes for name in CLASSES}

    def _lists(self, source: Source) -> dict[str, list[str]]:
        """Read the official lists: name → stems of images."""
        found = pick(source.entries, LIST_FILES, lambda match: match[1].lower())
        try:
            return {name: entry.read().decode('utf-8-sig').split() for name, entry in found.items()}
        except (BadFile, UnicodeDecodeError) as error:
            raise UserError(f'A list in ImageSets/Main {error}.') from error
