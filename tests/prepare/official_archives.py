"""Artificial archives in the layouts of the official ones: flat colors, few files."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = np.array([(0, 0, 0), (255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0),
                    (255, 255, 0), (255, 0, 0)], np.uint8)  # of Potsdam, by label


def encoded(pixels, kind):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def picture(size, kind='JPEG', seed=0):
    """A gray image with a few colored blocks, quick to write and to compress."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    side = -(-size // 4)
    return encoded(blocks.repeat(side, 0).repeat(side, 1)[:size, :size], kind)


def mask(size, labels, seed=0):
    """A PNG in which each of ``labels`` occurs."""
    return encoded(label_map(size, labels, seed), 'PNG')


def label_map(size, labels, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.choice(np.array(labels, np.uint8), (size, size))
    pixels.flat[:len(labels)] = labels
    return pixels


def pack(path, members):
    """Write a zip: member name → bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def unpack(folder, members):
    """Write the same members as files of a folder."""
    for name, data in members.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def snapshot(folder):
    """Every file with its bytes and its time of modification."""
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in sorted(folder.rglob('*')) if path.is_file()}


def tree(folder):
    return sorted(path.relative_to(folder).as_posix()
                  for path in folder.rglob('*') if path.is_file())


def scenes(names, size, kind):
    return {f'Images/{name}': picture(size, kind, seed) for seed, name in enumerate(names)}


def potsdam(size, numbers, eroded=True):
    """archive → members."""
    images, labels, borders = {}, {}, {}
    for seed, number in enumerate(numbers):
        stem = f'top_potsdam_{number}'
        images[f'2_Ortho_RGB/{stem}_RGB.tif'] = picture(size, 'TIFF', seed)
        labels[f'{stem}_label.tif'] = encoded(
            COLORS[label_map(size, [1, 2, 3, 4, 5, 6], seed)], 'TIFF')
        borders[f'{stem}_label_noBoundary.tif'] = encoded(
            COLORS[label_map(size, [0, 1, 2, 3, 4, 5, 6], seed)], 'TIFF')
    archives = {'2_Ortho_RGB.zip': images, '5_Labels_all.zip': labels}
    return archives | ({'5_Labels_all_noBoundary.zip': borders} if eroded else {})


def loveda(size, train=(0, 1), val=(2522, 2523), test=(4191,)):
    archives = {}
    for split, numbers in (('Train', train), ('Val', val), ('Test', test)):
        members = {}
        for index, number in enumerate(numbers):
            area = f'{split}/{("Urban", "Rural")[index % 2]}'
            members[f'{area}/images_png/{number}.png'] = picture(size, 'PNG', number)
            if split != 'Test':
                members[f'{area}/masks_png/{number}.png'] = mask(size, range(8), number)
        archives[f'{split}.zip'] = members
    return archives


def levircd(size, train=2, val=1, test=1):
    archives = {}
    for split, count in (('train', train), ('val', val), ('test', test)):
        members = {}
        for number in range(1, count + 1):
            members[f'A/{split}_{number}.png'] = picture(size, 'PNG', number)
            members[f'B/{split}_{number}.png'] = picture(size, 'PNG', number + 1000)
            members[f'label/{split}_{number}.png'] = mask(size, [0, 255], number)
        archives[f'{split}.zip'] = members
    return archives


def xml(number, size, boxes):
    things = ''.join(
        f'<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>'
        f'<ymax>{d}</ymax></bndbox></object>' for name, a, b, c, d in boxes)
    return (f'<annotation><filename>{number}.jpg</filename><size><width>{size}</width>'
            f'<height>{size}</height><depth>3</depth></size>{things}</annotation>').encode()


def dior(size, train=('00001',), val=('00002',), test=('11726', '11727')):
    boxes = [('ship', 1, 1, size // 2, size // 2), ('Expressway-toll-station', 0, 0, size, size)]
    annotations = {}
    for number in (*train, *val, *test):
        annotations[f'Annotations/Horizontal Bounding Boxes/{number}.xml'] = xml(
            number, size, boxes)
        annotations[f'Annotations/Oriented Bounding Boxes/{number}.xml'] = b'<annotation/>'
    return {
        'JPEGImages-trainval.zip': {f'JPEGImages-trainval/{number}.jpg': picture(size)
                                    for number in (*train, *val)},
        'JPEGImages-test.zip': {f'JPEGImages-test/{number}.jpg': picture(size)
                                for number in test},
        'Annotations.zip': annotations,
        'Main.zip': {f'Main/{name}.txt': '\n'.join(numbers).encode() for name, numbers in
                     (('train', train), ('val', val), ('test', test))}}


def pack_all(folder, archives):
    for name, members in archives.items():
        pack(folder / name, members)
    return folder
