"""Folders of drawn scenes in the layouts of real data sets."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pera_mm.datasets.voc import annotation_xml
from pera_mm.errors import UserError
from pera_mm.files import sign_folder, write_whole
from pera_mm.scenes.drawing import MIN_SIZE, check_number, draw_date, draw_scene, find_objects
from pera_mm.scenes.plans.land_uses import LAND_USES

# The kinds of folders, and the splits to which their scenes are assigned in turn.
_SPLITS = {
    'unlabeled': ('train',),
    'classification': ('train',),
    'segmentation': ('train', 'train', 'train', 'train', 'val'),
    'change': ('train', 'train', 'train', 'val', 'test'),
    'detection': ('train', 'train', 'val', 'test'),
}
KINDS = tuple(_SPLITS)

_CHANGE_USES = ('dense_residential', 'industrial', 'sparse_residential', 'storage_tanks')
_SIGNATURE = 'scenes.json'
_DIOR_BOXES = 'Annotations/Horizontal Bounding Boxes'
_JPEG_QUALITY = 95
_DRAWING = 2  # raise it when the pictures change: older folders are then not continued


class _Place(NamedTuple):
    """A scene of a folder."""

    number: int  # from 1
    land_use: str
    seed: int
    split: str


def _places(kind: str, count: int, seed: int) -> list[_Place]:
    """Lay out the scenes of a folder; a longer folder begins with the shorter one."""
    uses = _CHANGE_USES if kind == 'change' else LAND_USES
    places = []
    for index in range(count):
        turn, use = divmod(index, len(uses))
        split = _SPLITS[kind][(turn + use) % len(_SPLITS[kind])]
        # The kind is part of the seed, so that a probe never contains a pre-training scene.
        words = np.random.SeedSequence([seed, zlib.crc32(kind.encode()), index])
        own = int(words.generate_state(1, np.uint64)[0] >> np.uint64(1))
        places.append(_Place(index + 1, uses[use], own, split))
    return places


def _paths(kind: str, place: _Place) -> list[str]:
    """Name the files of one scene below the folder, labels before images."""
    number, split = place.number, place.split
    if kind == 'unlabeled':
        return [f'scene_{number:06d}.jpg']
    if kind == 'classification':
        folder = place.land_use.title().replace('_', '')
        return [f'{folder}/{folder.lower()}_{(number - 1) // len(LAND_USES) + 1:04d}.jpg']
    if kind == 'segmentation':
        return [f'{part}/{split}/scene_{number:05d}.png' for part in ('ann_dir', 'img_dir')]
    if kind == 'change':
        return [f'{split}/{part}/{split}_{number}.png' for part in ('label', 'A', 'B')]
    images = 'JPEGImages-test' if split == 'test' else 'JPEGImages-trainval'
    return [f'{_DIOR_BOXES}/{number:05d}.xml', f'{images}/{number:05d}.jpg']


def _contents(kind: str, place: _Place, size: int) -> list[bytes]:
    """Draw the contents of the files of ``_paths``, in their order."""
    if kind == 'change':
        scene = draw_scene(place.land_use, place.seed, size)
        return [_encode(part, '.png') for part in (scene.change, scene.image, scene.second_image)]
    canvas, image = draw_date(place.land_use, place.seed, size, date=0)
    if kind == 'segmentation':
        return [_encode(canvas.cover, '.png'), _encode(image, '.png')]
    picture = _encode(image, '.jpg')
    if kind == 'detection':
        xml = annotation_xml(f'{place.number:05d}.jpg', size, size, *find_objects(canvas),
                             database='drawn scenes')
        return [xml, picture]
    return [picture]


def _encode(image: NDArray[np.uint8], suffix: str) -> bytes:
    pixels = image[..., ::-1] if image.ndim == 3 else image
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if suffix == '.jpg' else []
    written, data = cv2.imencode(suffix, pixels, options)
    assert written
    return data.tobytes()


def write_scenes(
    root: str | Path,
    kind: str,
    count: int,
    size: int = 256,
    seed: int = 0,
    track: Callable[[Sequence], Iterable] = iter,
) -> int:
    """Fill a folder with scenes in the layout of a real data set, or continue such a folder.

    ========================  =================================================================
    kind                      layout
    ========================  =================================================================
    ``unlabeled``             ``scene_000001.jpg`` …
    ``classification``        as AID: ``Airport/airport_0001.jpg`` …
    ``segmentation``          as MMSeg's Potsdam and LoveDA: ``img_dir/{train,val}`` and
                              ``ann_dir/{train,val}``, PNG; labels index LAND_COVER
    ``change``                as LEVIR-CD: ``{train,val,test}/{A,B,label}``, PNG; labels 0, 255
    ``detection``             as DIOR: ``JPEGImages-trainval``, ``JPEGImages-test``,
                              ``Annotations/Horizontal Bounding Boxes``, ``ImageSets/Main``
    ========================  =================================================================

    Args:
        root: A new or empty folder, or one that this function began with the same arguments
            (``count`` may be larger). Existing files are kept.
        kind: One of KINDS.
        count: Scenes in the finished folder, over all land uses and splits.
        size: Side of a picture in pixels.
        seed: Folders of another seed or kind share no scene.
        track: Wraps the sequence of scenes, for a progress bar.

    Returns:
        The number of scenes drawn by this call; the others existed.

    Raises:
        ValueError: Unknown kind, a number out of range, or a folder with other contents.
    """
    if kind not in KINDS:
        raise UserError(f'unknown kind {kind!r}: choose one of {", ".join(KINDS)}')
    check_number('count', count, len(_SPLITS[kind]))
    check_number('size', size, MIN_SIZE)
    check_number('seed', seed, 0)
    root = Path(root)
    sign_folder(root, _SIGNATURE,
                {'kind': kind, 'size': size, 'seed': seed, 'drawing': _DRAWING},
                'choose another folder')
    places, drawn = _places(kind, count, seed), 0
    for place in track(places):
        paths = [root / path for path in _paths(kind, place)]
        if all(path.exists() for path in paths):
            continue
        for path, data in zip(paths, _contents(kind, place, size)):
            write_whole(path, data)
        drawn += 1
    if kind == 'detection':
        for split in sorted(set(_SPLITS[kind])):
            names = [f'{place.number:05d}\n' for place in places if place.split == split]
            write_whole(root / 'ImageSets' / 'Main' / f'{split}.txt', ''.join(names).encode())
    return drawn
