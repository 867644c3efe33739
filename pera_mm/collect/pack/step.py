"""Pack the kept images as one data set.

A packed data set is a folder of:

* the images in the order of ``kept.csv``: ``000000.tar`` … (WebDataset: ``ID.jpg`` and, with its
  row of the manifest, ``ID.json``), or ``data.mdb`` (LMDB; the keys are positions from 0), or
  ``000/ID.jpg`` … (hard links to the tiles where the file system has them: an edit of one changes
  the other; read in the order of the names);
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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import pandas as pd

from pera_mm.collect.common.settings import is_whole
from pera_mm.collect.common.tables import TILE, log, progress_bar, read_table, write_table
from pera_mm.datasets.packed import position_key
from pera_mm.datasets.reading import SUFFIXES
from pera_mm.datasets.shard_index import BLOCK
from pera_mm.datasets.shard_writer import Member, Part, write_shards
from pera_mm.errors import UserError
from pera_mm.files import check_signature, sign_folder, write_whole

FORMS = ('webdataset', 'folder', 'lmdb')
MANIFEST = 'manifest.csv'
SIGNATURE = '.pack.json'  # what is packed here, so that nothing else is packed over it
# A key of WebDataset ends at the first dot; a member's name in a ustar header has 100 bytes.
PLAIN_ID = re.compile(r'[A-Za-z0-9_-]{1,90}')
ZOOM = re.compile(r'(\d+(\.0)?)?')
LMDB_HEADER = 16  # bytes; of the first page of an image
LMDB_ENTRY = 100  # bytes; of an image in the tree, at most
LMDB_SPARE = 16 << 20  # bytes; for the tree's other pages and those that a transaction replaces
BLOCKS_BESIDE = 4  # of a tar, per image: its header, and its JSON with another header
ENDINGS = tuple(suffix.decode() for suffix in SUFFIXES)
NUMBERS: dict[str, Callable[[str], float]] = dict(
    lon=float, lat=float, gsd=float, zoom=lambda text: int(float(text)))


class KeptTile(NamedTuple):
    """An image to pack: its row of kept.csv, and the file as it lies in the work folder."""

    row: dict[str, str]
    path: Path

    @property
    def name(self) -> str:
        """The name of the file: ``ID.jpg``."""
        return self.row['id'] + self.path.suffix

    def read(self) -> bytes:
        """Read the bytes of the image.

        Raises:
            UserError: if they are not the bytes that were fetched.
        """
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.row['sha256']:
            raise UserError(f'{self.path} is not the image that was fetched (its sha256 differs '
                            'from kept.csv): put the fetched image back, or take its row out of '
                            'kept.csv and delete the folder packed.')
        return data


def pack(folder: Path, *, form: str = 'webdataset',
         images_per_shard: int = 1000) -> dict[str, Any]:
    """Pack the images of ``kept.csv`` into ``packed/``.

    Every image is compared with its hash before it is packed. What is finished (a shard, a file, a
    transaction of LMDB) is whole, and the next start does not repeat it.

    Args:
        folder: The work folder.
        form: 'webdataset', 'folder' or 'lmdb'.
        images_per_shard: Images in a tar shard, a sub-folder or a transaction of LMDB.

    Returns:
        The form, the numbers of images and shards, and the bytes of the images.

    Raises:
        UserError: if a setting is wrong, ``packed/`` was begun with other settings, a file is
            missing or altered, an id cannot be a file name, or the disk has too little room.
    """
    if form not in FORMS:
        raise UserError(f'form is {form!r}; choose one of {", ".join(FORMS)}.')
    if not is_whole(images_per_shard) or images_per_shard < 1:
        raise UserError(f'images_per_shard is {images_per_shard!r}, but must be a whole number of '
                        'at least 1.')
    kept, packed = _read_kept(folder), folder / 'packed'
    digest = hashlib.sha256((folder / 'kept.csv').read_bytes()).hexdigest()
    signature = (SIGNATURE, dict(form=form, images_per_shard=images_per_shard, kept_sha256=digest),
                 'delete or move it to pack anew')
    check_signature(packed, *signature)
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
    sign_folder(packed, *signature)
    for part in packed.glob('.*.part'):  # left by a kill
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
    """Read the rows of kept.csv, all as text, so that the manifest has the same text."""
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
            raise UserError(f'{path}, line {line}: zoom is {zoom!r}, which is not a whole '
                            'number.')
        if not file.lower().endswith(ENDINGS):
            raise UserError(f'{path}, line {line}: the file {file!r} has no suffix of an image '
                            f'({" ".join(ENDINGS)}), so readers would skip it.')
    return kept


def _file_sizes(folder: Path, files: pd.Series) -> np.ndarray:
    """Look up the bytes of each image, int64."""
    try:
        return np.array([os.path.getsize(os.path.join(folder, file)) for file in files], np.int64)
    except FileNotFoundError as error:
        raise UserError(f'{error.filename} is missing, but kept.csv names it: put it back, or run '
                        'fetch and filter again.') from None


def _check_room(packed: Path, form: str, sizes: np.ndarray) -> None:
    """Check that the disk can hold what is still to be written."""
    if form == 'folder':  # links; where the file system has none, a full disk stops the copying
        return
    total = _lmdb_room(sizes) if form == 'lmdb' else int(
        (-(-sizes // BLOCK) + BLOCKS_BESIDE).sum()) * BLOCK
    needed = total - sum(file.stat().st_size for file in packed.iterdir())
    free = shutil.disk_usage(packed).free
    if needed > free:
        raise UserError(f'packing needs {needed / 1e9:.1f} GB more in {packed}, where '
                        f'{free / 1e9:.1f} GB are free: make room, or link that folder to a '
                        'larger disk.')


def _parts(folder: Path, kept: pd.DataFrame, size: int,
           advance: Callable[[int], None]) -> Iterator[list[KeptTile]]:
    """Yield the images of each shard; the progress bar moves when the next shard is requested."""
    for start in range(0, len(kept), size):
        rows = kept.iloc[start:start + size].to_dict('records')
        yield [KeptTile(row, folder / row['file']) for row in rows]
        advance(len(rows))


def _pack_shards(packed: Path, parts: Iterator[list[KeptTile]]) -> list[str]:
    """Write the missing tars and the index; return the images' names in ``packed``."""
    names: list[str] = []

    def shards() -> Iterator[Part]:
        for number, tiles in enumerate(parts):
            placed = [f'{number:06}.tar/{tile.name}' for tile in tiles]
            yield Part(len(tiles), partial(_members, tiles, placed))
            names.extend(placed)

    write_shards(packed, shards())
    return names


def _members(tiles: list[KeptTile], names: list[str]) -> Iterator[tuple[Member, Member]]:
    """Yield every image and, with its row of the manifest, its JSON."""
    for tile, name in zip(tiles, names):
        row = json.dumps(typed(tile.row | dict(file=name)))
        yield (tile.name, tile.read()), (f'{tile.row["id"]}.json', row.encode())


def typed(row: dict[str, str]) -> dict[str, Any]:
    """Convert the numbers in a row of a table; an empty number becomes None."""
    return {name: text if name not in NUMBERS else NUMBERS[name](text) if text else None
            for name, text in row.items()}


def _pack_folder(packed: Path, parts: Iterator[list[KeptTile]], digits: int) -> list[str]:
    """Link or copy the missing files; return their names in ``packed``."""
    names = []
    for number, part in enumerate(parts):
        below = packed / f'{number:0{digits}}'
        below.mkdir(exist_ok=True)
        for tile in part:
            names.append(f'{below.name}/{tile.name}')
            if not _is_there(tile, below / tile.name):
                _link_or_copy(tile, below / tile.name)
    return names


def _is_there(tile: KeptTile, target: Path) -> bool:
    """Whether the target is there, with all bytes: a power failure may have emptied it."""
    return target.exists() and target.stat().st_size == tile.path.stat().st_size


def _link_or_copy(tile: KeptTile, target: Path) -> None:
    data = tile.read()
    target.unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(tile.path), target)
    except OSError:  # another disk, or a file system without hard links
        write_whole(target, data)


def _pack_lmdb(packed: Path, parts: Iterator[list[KeptTile]], room: int) -> list[str]:
    """Add the missing images, a transaction for each part; return the keys."""
    keys: list[str] = []
    try:
        for part in parts:
            start = len(keys)
            keys += [position_key(start + i).decode() for i in range(len(part))]
            # Opened anew: else unused bytes of its pages depend on what was packed in this run.
            with lmdb.open(str(packed), map_size=room) as environment:
                if environment.stat()['entries'] < len(keys):
                    with environment.begin(write=True) as transaction:
                        for key, tile in zip(keys[start:], part):
                            transaction.put(key.encode(), tile.read(), append=True)
    except lmdb.Error as error:
        # LMDB reports a write that a full disk cut short as an input/output error.
        missing = sum(os.path.getsize(tile.path) for tile in part)
        is_full = isinstance(error, lmdb.DiskError) or shutil.disk_usage(packed).free < missing
        raise OSError(errno.ENOSPC if is_full else errno.EIO, str(error), str(packed)) from error
    (packed / 'lock.mdb').unlink(missing_ok=True)
    return keys


def _lmdb_room(sizes: np.ndarray) -> int:
    """The size of an LMDB of these images, bytes, at most.

    An image takes whole pages, and its entry in the tree takes fewer than 100 bytes. Pages that a
    transaction replaces are used again by the next but one.
    """
    pages = -(-(sizes + LMDB_HEADER) // mmap.PAGESIZE)
    return int(pages.sum()) * mmap.PAGESIZE + LMDB_ENTRY * len(sizes) + LMDB_SPARE
