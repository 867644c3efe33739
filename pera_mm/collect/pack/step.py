"""The kept images as one data set, its check by hash, and random subsets by list.

A packed data set is a folder of:

* the images in the order of ``kept.csv``: ``000000.tar`` … (WebDataset: ``ID.jpg`` and, with its
  row of the manifest, ``ID.json``), or ``data.mdb`` (LMDB; keys are positions from 0 on), or
  ``000/ID.jpg`` … (hard links to the tiles where the file system can: who edits the one edits the
  other; read in the order of the names);
* ``manifest.csv``: the columns of ``tiles.csv``; ``file`` is the image's name inside this folder;
* ``index.npy`` for tar shards: where each image lies (:mod:`pera_mm.datasets.packed`).

The same kept.csv and settings give the same bytes, however often packing was interrupted.
"""

import errno
import hashlib
import json
import mmap
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import pandas as pd

from pera_mm.collect.common.tables import TILE, log, progress_bar, read_table, write_table
from pera_mm.datasets.packed import LmdbImages, TarShards, position_key
from pera_mm.datasets.reading import JPEG, SUFFIXES, UnreadableImage
from pera_mm.datasets.shard_index import BLOCK, INDEX, PLACE, SHARD, scan_shard, write_index
from pera_mm.datasets.unlabeled import ImageList, open_source
from pera_mm.errors import UserError
from pera_mm.files import write_whole
from pera_mm.seeds import hash_seed

FORMS = ('webdataset', 'folder', 'lmdb')
MANIFEST = 'manifest.csv'
CLAIM = '.pack.json'  # what is packed here, so that nothing else is packed over it
COPIES = '.subset.json'  # the same for the copies of a subset
# WebDataset's key ends at the first dot; a member's name in a ustar header has 100 bytes.
PLAIN_ID = re.compile(r'[A-Za-z0-9_-]{1,90}')
ZOOM = re.compile(r'(\d+(\.0)?)?')
ENDINGS = tuple(suffix.decode() for suffix in SUFFIXES)
NUMBERS: dict[str, Callable[[str], float]] = dict(
    lon=float, lat=float, gsd=float, zoom=lambda text: int(float(text)))


class Tile(NamedTuple):
    """An image to pack: its row of kept.csv, and the file as it lies in the work folder."""

    row: dict[str, str]
    path: Path

    @property
    def name(self) -> str:
        """``ID.jpg``."""
        return self.row['id'] + self.path.suffix

    def read(self) -> bytes:
        """Its bytes; a ValueError if they are not those that were fetched."""
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.row['sha256']:
            raise UserError(f'{self.path} is not the image that was fetched (its sha256 differs '
                            'from kept.csv): put that one back, or take its row out of kept.csv '
                            'and delete the folder packed.')
        return data


# Packing ----------------------------------------------------------------------------------------


def pack(folder: Path, *, form: str = 'webdataset',
         images_per_shard: int = 1000) -> dict[str, Any]:
    """Pack the images of ``kept.csv`` into ``packed/``.

    Every image is compared with its hash on the way. What is finished (a shard, a file, a
    transaction of LMDB) is whole and is not done again by the next start.

    Args:
        folder: The work folder.
        form: 'webdataset', 'folder' or 'lmdb'.
        images_per_shard: Images in a tar shard, a sub-folder or a transaction of LMDB.

    Returns:
        The form, the numbers of images and shards, and the bytes of the images.

    Raises:
        ValueError: if a setting is wrong, ``packed/`` was begun with others, a file is missing or
            altered, an id is no file name, or the disk has too little room.
    """
    if form not in FORMS:
        raise UserError(f'form is {form!r}; choose one of {", ".join(FORMS)}.')
    if not isinstance(images_per_shard, int) or images_per_shard < 1:
        raise UserError(f'images_per_shard is {images_per_shard!r}, but must be a whole number of '
                        'at least 1.')
    kept, packed = _read_kept(folder), folder / 'packed'
    digest = hashlib.sha256((folder / 'kept.csv').read_bytes()).hexdigest()
    claim = Claim(packed / CLAIM, dict(form=form, images_per_shard=images_per_shard,
                                       kept_sha256=digest))
    claim.check('was packed from another kept.csv or with other settings: delete or move it to '
                'pack anew')
    sizes = _file_sizes(folder, kept['file'])
    shards = -(-len(kept) // images_per_shard)
    summary = dict(form=form, images=len(kept), shards=shards, bytes=int(sizes.sum()))
    if form == 'lmdb':
        del summary['shards']
    if (packed / MANIFEST).exists():
        log.info('%s is packed already', packed)
        return summary
    packed.mkdir(exist_ok=True)
    _check_room(packed, form, sizes)
    claim.make()
    for part in packed.glob('.*.part'):  # of a kill
        part.unlink()
    with progress_bar('pack', len(kept)) as advance:
        parts = _parts(folder, kept, images_per_shard, advance)
        if form == 'webdataset':
            names = _pack_shards(packed, parts)
        elif form == 'folder':
            names = _pack_folder(packed, parts, digits=max(3, len(str(shards - 1))))
        else:
            names = _pack_lmdb(packed, parts, _lmdb_room(sizes))
    write_table(packed / MANIFEST, kept.assign(file=names))
    return summary


def _read_kept(folder: Path) -> pd.DataFrame:
    """The rows of kept.csv, all as the texts they are, so that the manifest has the same."""
    path = folder / 'kept.csv'
    read_table(path, TILE, 'the filter step')
    kept = pd.read_csv(path, dtype=str, keep_default_na=False, usecols=list(TILE))[list(TILE)]
    if len(kept) == 0:
        raise UserError(f'{path} keeps no image; dropped.csv says why.')
    for line, (identity, zoom, file) in enumerate(zip(kept['id'], kept['zoom'], kept['file']), 2):
        if not PLAIN_ID.fullmatch(identity):
            raise UserError(f'{path}, line {line}: the id {identity!r} cannot become a file name; '
                            'it must be at most 90 letters, digits, - and _.')
        if not ZOOM.fullmatch(zoom):
            raise UserError(f'{path}, line {line}: zoom is {zoom!r}, which is no whole number.')
        if not file.lower().endswith(ENDINGS):
            raise UserError(f'{path}, line {line}: the file {file!r} has no suffix of an image '
                            f'({" ".join(ENDINGS)}), and would not be found again.')
    return kept


class Claim:
    """A file that says what its folder holds, so that nothing else is written into it.

    Args:
        file: In the folder.
        content: What it says.
    """

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        self.file, self.text = file, json.dumps(content)

    def check(self, what_if_other: str) -> None:
        """Raise a ValueError if the folder holds something else; what a kill left is nothing."""
        folder = self.file.parent
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        held = {name for name in names if not name.endswith('.part')}
        if held <= {self.file.name}:
            return
        if self.file.name not in held:
            raise UserError(f'{folder} holds files that were not written by this step: move them '
                            'away.')
        if self.file.read_text() != self.text:
            raise UserError(f'{folder} {what_if_other}.')

    def make(self) -> None:
        """Say it."""
        write_whole(self.file, self.text.encode())


def _file_sizes(folder: Path, files: pd.Series) -> np.ndarray:
    """Bytes of each image, int64."""
    try:
        return np.array([os.path.getsize(os.path.join(folder, file)) for file in files], np.int64)
    except FileNotFoundError as error:
        raise UserError(f'{error.filename} is missing, but kept.csv names it: put it back, or run '
                        'fetch and filter again.') from None


def _check_room(packed: Path, form: str, sizes: np.ndarray) -> None:
    """Raise a ValueError if the disk cannot hold what is still to be written."""
    if form == 'folder':  # links; where the file system has none, a full disk stops the copying
        return
    total = _lmdb_room(sizes) if form == 'lmdb' else int((-(-sizes // BLOCK) + 4).sum()) * BLOCK
    needed = total - sum(file.stat().st_size for file in packed.iterdir())
    free = shutil.disk_usage(packed).free
    if needed > free:
        raise UserError(f'packing needs {needed / 1e9:.1f} GB more in {packed}, where '
                        f'{free / 1e9:.1f} GB are free: make room, or link that folder to a '
                        'larger disk.')


def _parts(folder: Path, kept: pd.DataFrame, size: int,
           advance: Callable[[int], None]) -> Iterator[list[Tile]]:
    """The images of one shard after the other; moves the progress bar when a next one is asked."""
    for start in range(0, len(kept), size):
        rows = kept.iloc[start:start + size].to_dict('records')
        yield [Tile(row, folder / row['file']) for row in rows]
        advance(len(rows))


def _pack_shards(packed: Path, parts: Iterator[list[Tile]]) -> list[str]:
    """Write the tars that are not there yet, then the index; the images' names in ``packed``."""
    names, shards, places = [], [], []
    for number, part in enumerate(parts):
        shard = packed / f'{number:06}.tar'
        found, damage = scan_shard(shard, number) if shard.exists() else (np.empty(0, PLACE), '')
        if damage or len(found) < len(part):  # a power failure may cut a shard that was there
            found = _write_shard(shard, number, part)
        places.append(found)
        shards.append((shard.name.encode(), shard.stat().st_size))
        names += [f'{shard.name}/{tile.name}' for tile in part]
    write_index(packed / INDEX, np.array(shards, SHARD), places)
    return names


def _write_shard(shard: Path, number: int, tiles: list[Tile]) -> np.ndarray:
    """Write a tar, whole or not at all; returns the places of its images, PLACE."""
    places = []
    part = shard.with_name(f'.{shard.name}.part')
    with open(part, 'wb') as file:
        with tarfile.open(fileobj=file, mode='w', format=tarfile.USTAR_FORMAT) as tar:
            for tile in tiles:
                data = tile.read()
                row = tile.row | dict(file=f'{shard.name}/{tile.name}')
                places.append((tar.offset + BLOCK, number, len(data)))
                _add_member(tar, tile.name, data)
                _add_member(tar, f'{tile.row["id"]}.json', json.dumps(typed(row)).encode())
        file.flush()
        os.fsync(file.fileno())  # so many images are not to hang on one power failure
    os.replace(part, shard)
    return np.array(places, PLACE)


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # with nobody's id and no time: the same bytes everywhere
    member.size = len(data)
    tar.addfile(member, BytesIO(data))


def typed(row: dict[str, str]) -> dict[str, Any]:
    """A row of a table with numbers as numbers, and None where a number is empty."""
    return {name: text if name not in NUMBERS else NUMBERS[name](text) if text else None
            for name, text in row.items()}


def _pack_folder(packed: Path, parts: Iterator[list[Tile]], digits: int) -> list[str]:
    """Link or copy the files that are not there yet; their names in ``packed``."""
    names = []
    for number, part in enumerate(parts):
        below = packed / f'{number:0{digits}}'
        below.mkdir(exist_ok=True)
        for tile in part:
            names.append(f'{below.name}/{tile.name}')
            if not _is_there(tile, below / tile.name):
                _link_or_copy(tile, below / tile.name)
    return names


def _is_there(tile: Tile, target: Path) -> bool:
    """A power failure may have emptied it."""
    return target.exists() and target.stat().st_size == tile.path.stat().st_size


def _link_or_copy(tile: Tile, target: Path) -> None:
    data = tile.read()
    target.unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(tile.path), target)
    except OSError:  # another disk, or a file system without hard links
        write_whole(target, data)


def _pack_lmdb(packed: Path, parts: Iterator[list[Tile]], room: int) -> list[str]:
    """Add the images that are not there yet, a transaction for each part; returns the keys."""
    keys: list[str] = []
    try:
        for part in parts:
            start = len(keys)
            keys += [position_key(start + i).decode() for i in range(len(part))]
            # Opened anew: unused bytes of its pages would tell which part came before which.
            with lmdb.open(str(packed), map_size=room) as environment:
                if environment.stat()['entries'] < len(keys):
                    with environment.begin(write=True) as transaction:
                        for key, tile in zip(keys[start:], part):
                            transaction.put(key.encode(), tile.read(), append=True)
    except lmdb.Error as error:
        # LMDB calls what a full disk cut short an input/output error.
        missing = sum(os.path.getsize(tile.path) for tile in part)
        is_full = isinstance(error, lmdb.DiskError) or shutil.disk_usage(packed).free < missing
        raise OSError(errno.ENOSPC if is_full else errno.EIO, str(error), str(packed)) from error
    (packed / 'lock.mdb').unlink(missing_ok=True)
    return keys


def _lmdb_room(sizes: np.ndarray) -> int:
    """Bytes an LMDB of these images has at most.

    An image takes whole pages, 16 bytes of the first are a header; its entry in the tree fewer
    than 100 bytes, and pages that a transaction replaces are used again by the one after the next.
    """
    pages = -(-(sizes + 16) // mmap.PAGESIZE)
    return int(pages.sum()) * mmap.PAGESIZE + 100 * len(sizes) + (16 << 20)


# Checking ---------------------------------------------------------------------------------------


def verify(path: Path) -> dict[str, Any]:
    """Compare every image of a packed data set with the hash in its manifest.

    Args:
        path: The folder of ``manifest.csv``.

    Returns:
        Whether all is well (``ok``), how many images the manifest has, how many are sound,
        missing (or cut short), altered, and extra (there, but not in the manifest), and
        ``problems``: the file and problem of each that is not sound.

    Raises:
        ValueError: if there is no manifest, or no image at all.
    """
    manifest = read_table(path / MANIFEST, ('file', 'sha256'), 'the pack step')
    left = dict(zip(manifest['file'], manifest['sha256']))
    images = open_source(str(path))
    problems = []
    with progress_bar('verify', len(images)) as advance:
        for index in range(len(images)):
            advance(1)
            try:
                digest = hashlib.sha256(images.read(index)).hexdigest()
            except UnreadableImage:
                continue  # and so missing
            file = images.name(index)[len(str(path)) + 1:]
            expected = left.pop(file, None)
            if digest != expected:
                problems.append(dict(file=file, problem='altered' if expected else 'extra'))
    problems += [dict(file=file, problem='missing') for file in left]
    counts = {kind: sum(row['problem'] == kind for row in problems)
              for kind in ('missing', 'altered', 'extra')}
    sound = len(manifest) - counts['missing'] - counts['altered']
    return dict(ok=not problems, images=len(manifest), sound=sound, **counts, problems=problems)


# Subsets ----------------------------------------------------------------------------------------


def subset(source: str, out: Path, count: int, seed: int) -> dict[str, Any]:
    """Write a text list of ``count`` random images, as Table 8's 100,000 of TOV-RS and RSRSD-5m.

    The same images in the same order, seed and count give the same list, on every machine; with
    the same seed, a smaller subset is part of a larger one. A list cannot name images in tar
    shards or an LMDB: they are copied out, into a folder named as the list without its suffix,
    each by its position in the source.

    Args:
        source: What :class:`~pera_mm.datasets.unlabeled.UnlabeledImages` reads.
        out: The list; paths below its folder are written relative to it.
        count: Images to draw, each at most once.
        seed: Key of the draw.

    Returns:
        What was drawn from what, with which seed.

    Raises:
        ValueError: if there are fewer images, the folder for copies holds something else, or a
            packed image cannot be read.
    """
    images = open_source(source)
    if not 1 <= count <= len(images):
        raise UserError(f'count is {count}, but must lie between 1 and {len(images)}, the number '
                        f'of images in {source}.')
    drawn = dict(images=count, source=os.path.abspath(source), images_of_source=len(images),
                 seed=seed)
    order = np.random.default_rng(hash_seed(seed)).permutation(len(images))
    chosen = np.sort(order[:count]).tolist()
    if isinstance(images, ImageList):
        paths = [images[index] for index in chosen]
    else:
        folder = _folder_of_copies(source, out)
        claim = Claim(folder / COPIES, drawn)
        claim.check('holds another subset: delete it, or give the list another name')
        claim.make()
        paths = [os.fsencode(path) for path in _copied_out(images, chosen, folder)]
    root = os.path.join(os.fsencode(out.parent.absolute()), b'')
    absolute = [os.path.abspath(path) for path in paths]
    lines = [path[len(root):] if path.startswith(root) else path for path in absolute]
    write_whole(out, b''.join(line + b'\n' for line in lines))
    return dict(list=str(out), **drawn)


def _folder_of_copies(source: str, out: Path) -> Path:
    folder = out.with_suffix('')
    if folder == out:
        raise UserError(f'the list {out} needs a suffix, e.g. {out}.txt: the images are copied '
                        'into the folder of that name without it.')
    if folder.resolve().is_relative_to(Path(source).resolve()):
        raise UserError(f'the images of {source} would be copied into {folder}, which lies in '
                        'the data set itself: give the list another name or place.')
    return folder


def _copied_out(images: TarShards | LmdbImages, chosen: list[int], folder: Path) -> Iterator[Path]:
    with progress_bar('copy', len(chosen)) as advance:
        for position, index in enumerate(chosen):
            try:
                data = images.read(index)
            except UnreadableImage as error:
                raise UserError(f'{images.name(index)} cannot be read: {error}.') from None
            suffix = '.jpg' if data.startswith(JPEG) else Path(images.name(index)).suffix or '.png'
            path = folder / f'{position // 1000:03}' / f'{index:09}{suffix}'
            if not path.exists() or path.read_bytes() != data:
                write_whole(path, data)
            yield path
            advance(1)
