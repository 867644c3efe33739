"""Draw a random subset of a data set, as a list of images."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pera_mm.collect.common.settings import is_whole
from pera_mm.collect.common.tables import progress_bar
from pera_mm.datasets.listing import ImageList, open_source
from pera_mm.datasets.packed import LmdbImages, TarShards
from pera_mm.datasets.reading import JPEG, UnreadableImage
from pera_mm.errors import UserError
from pera_mm.files import sign_folder, write_whole
from pera_mm.seeds import hash_seed

SIGNATURE = '.subset.json'  # which subset the copies in its folder are
COPIES_PER_FOLDER = 1000


def subset(source: str, out: Path, count: int, seed: int,
           index_file: str | None = None) -> dict[str, Any]:
    """Write a text list of ``count`` random images, as Table 8's 100,000 of TOV-RS and RSRSD-5m.

    The same images in the same order, seed and count give the same list, on every machine. With
    the same seed, a smaller subset is part of a larger one. A list cannot name images in tar
    shards or an LMDB. These images are copied into a folder with the list's name without its
    suffix, each under its position in the source.

    Args:
        source: Any data set that :class:`~pera_mm.datasets.unlabeled.UnlabeledImages` reads.
        out: The path of the list; paths below its folder are written relative to it.
        count: The number of images to draw, each at most once.
        seed: The seed of the draw.
        index_file: The list of the images in a folder, as for UnlabeledImages.

    Returns:
        The list, the source, the numbers of their images, and the seed.

    Raises:
        UserError: if ``out`` is the source itself, ``count`` is not a number of images in it, the
            folder for copies holds something else, or a packed image cannot be read.
    """
    if out.resolve() in (Path(source).resolve(), Path(index_file or source).resolve()):
        raise UserError(f'{out} is the source itself: give the list another name.')
    images = open_source(source, index_file=index_file)
    if not is_whole(count) or not 1 <= count <= len(images):
        raise UserError(f'count is {count!r}, but must lie between 1 and {len(images)}, the number '
                        f'of images in {source}.')
    drawn = dict(images=count, source=os.path.abspath(source), images_of_source=len(images),
                 seed=seed)
    order = np.random.default_rng(hash_seed(seed)).permutation(len(images))
    chosen = np.sort(order[:count]).tolist()
    if isinstance(images, ImageList):
        paths = [images[index] for index in chosen]
    else:
        folder = _folder_of_copies(source, out)
        sign_folder(folder, SIGNATURE, drawn, 'delete it, or give the list another name')
        paths = [os.fsencode(path) for path in _copy_out(images, chosen, folder)]
    root = os.path.join(os.fsencode(out.parent.absolute()), b'')
    absolute = [os.path.abspath(path) for path in paths]
    lines = [path[len(root):] if path.startswith(root) else path for path in absolute]
    write_whole(out, b''.join(line + b'\n' for line in lines))
    return dict(list=str(out), **drawn)


def _folder_of_copies(source: str, out: Path) -> Path:
    folder = out.with_suffix('')
    if folder == out:
        raise UserError(f'the list {out} needs a suffix, e.g. {out}.txt: the images are copied '
                        'into the folder with its name without the suffix.')
    if folder.resolve().is_relative_to(Path(source).resolve()):
        raise UserError(f'the images of {source} would be copied into {folder}, which lies in '
                        'the data set itself: give the list another name or place.')
    return folder


def _copy_out(images: TarShards | LmdbImages, chosen: list[int], folder: Path) -> Iterator[Path]:
    """Copy the chosen images into a folder, in subfolders; yield the path of each copy."""
    with progress_bar('copy', len(chosen)) as advance:
        for position, index in enumerate(chosen):
            try:
                data = images.read(index)
            except UnreadableImage as error:
                raise UserError(f'{images.name(index)} cannot be read: {error}.') from None
            suffix = '.jpg' if data.startswith(JPEG) else Path(images.name(index)).suffix or '.png'
            path = folder / f'{position // COPIES_PER_FOLDER:03}' / f'{index:09}{suffix}'
            if not path.exists() or path.read_bytes() != data:
                write_whole(path, data)
            yield path
            advance(1)
