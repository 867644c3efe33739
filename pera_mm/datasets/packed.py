"""Packed images: tar shards, which are read from front to back, and LMDB.

Tar shards are WebDataset's: uncompressed ``.tar`` files of images and, unread here, what is known
about each (``.json``, ``.txt``, ``.cls``). Where every image lies is found once and kept in an
index of 16 bytes an image, which all processes of a machine share: any image is one ``pread``,
so that an epoch is a pure function of its seed, can be split over ranks and workers at any
position, and goes on exactly where it stopped.

The index is one file: the shards (name, bytes) as a NumPy array, then the places of the images.
"""

import contextlib
import os
import tarfile
import uuid
import weakref
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log

from pera_mm.datasets.reading import MAX_FILE_BYTES, SUFFIXES, UnreadableImage, reason_of

SHARD = np.dtype([('name', 'S255'), ('size', '<u8')])
PLACE = np.dtype([('offset', '<u8'), ('shard', '<u4'), ('size', '<u4')])  # of an image's bytes
INDEX = 'index.npy'
BLOCK = 512  # a member's header; its bytes follow
NAME, SIZE, MAGIC, PREFIX = slice(0, 100), slice(124, 136), slice(257, 263), slice(345, 500)
OPEN_SHARDS = 64  # file handles a process keeps: more shards than a shuffle buffer spans
LMDB_FILE = 'data.mdb'
KEY_DIGITS = 9


def find_shards(path: str) -> list[str]:
    """Names of the ``.tar`` files in a folder, or of the one at ``path``, in bytewise order."""
    if not os.path.isdir(path):
        is_shard = path.endswith('.tar') and os.path.isfile(path)
        return [os.path.basename(path)] if is_shard else []
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries
                 if entry.name.endswith('.tar') and not entry.name.startswith('.')]
    return sorted(names, key=os.fsencode)


class TarShards:
    """The images of tar shards, in the order of the shards' names, then as they lie.

    A shard that is damaged or cut short is never fatal: what cannot be read of it counts as
    unreadable images. What cannot even be found (its index is made when it is damaged already)
    is left out, with a line in the log.

    Args:
        path: A folder of ``.tar`` files, or one of them.
        index_file: Where the index is kept if it cannot be written beside the shards
            (``index.npy``, or ``NAME.tar.index.npy`` for a single one). An index of other shards
            is replaced; one is kept while no shard came, went or grew.

    Raises:
        ValueError: if there is no shard or no image in any, or the index cannot be written.
    """

    def __init__(self, path: str, index_file: str | None = None) -> None:
        path = os.fspath(path)
        names = find_shards(path)
        if not names:
            raise ValueError(f'{path!r} holds no .tar shard; check the path.')
        self.folder = path if os.path.isdir(path) else os.path.dirname(path)
        shards = np.array([(os.fsencode(name), os.path.getsize(os.path.join(self.folder, name)))
                           for name in names], SHARD)
        beside = Path(path, INDEX) if os.path.isdir(path) else Path(f'{path}.{INDEX}')
        files = [beside] if index_file is None else [beside, Path(index_file)]
        fitting = [file for file in files if _fits(file, shards)]
        self._map(fitting[0] if fitting else self._write(files, names, shards))

    def _write(self, files: list[Path], names: list[str], shards: np.ndarray) -> Path:
        """Find the images and write the index to the first of the files that can be written."""
        print_log(f'finding the images in {len(names)} tar shard(s) of {self.folder or "."}, once',
                  logger='current')
        places = [scan_shard(Path(self.folder, name), number) for number, name in enumerate(names)]
        if not any(map(len, places)):
            raise ValueError(f'no image lies in the tar shards of {self.folder!r}; their members '
                             'must have the suffix of an image, and the tars no compression.')
        for file in files:
            try:
                write_index(file, shards, places)
                return file
            except OSError as error:
                reason = error.strerror
        raise ValueError(f'the index of the tar shards cannot be written to {str(files[-1])!r} '
                         f'({reason}): set index_file to a place that can be written.')

    def _map(self, file: Path) -> None:
        self.file = file
        self.shards, self.places = _read_index(file)
        self.open = lru_cache(OPEN_SHARDS)(_open_unbuffered)

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        """``folder/000003.tar/0000123.jpg``; its place in the shard, if that cannot be read."""
        offset, shard, _ = self.places[index].item()
        path = self._path(shard)
        try:
            header = os.pread(self.open(path).fileno(), BLOCK, offset - BLOCK)
        except OSError:
            header = b''
        return f'{path}/{_name_of(header) or f"byte {offset}"}'

    def read(self, index: int) -> bytes:
        """The bytes of an image file.

        Raises:
            UnreadableImage: if the shard is missing, cut short, or not the one indexed.
        """
        offset, shard, size = self.places[index].item()
        if size > MAX_FILE_BYTES:
            raise UnreadableImage('ValueError: the file is larger than 1 GiB: cut it into tiles')
        try:
            descriptor = self.open(self._path(shard)).fileno()
            data = os.pread(descriptor, BLOCK + size, offset - BLOCK)
        except OSError as error:
            raise UnreadableImage(reason_of(error)) from error
        if len(data) < BLOCK + size:
            raise UnreadableImage(f'the shard ends before byte {offset + size}')
        if _size_of(data) != size:
            raise UnreadableImage('the shard has no image of this size here; if it was replaced, '
                                  f'delete {self.file}')
        return data[BLOCK:]

    def order(self, generator: torch.Generator, shuffle_buffer: int) -> torch.Tensor:
        """All images, shuffled such that reading goes through one shard after another.

        Shards are permuted; then every image moves by less than ``shuffle_buffer`` places from
        where its shard has it, so that at any time only the shards of so many images are read.
        As many images as fit into the buffer are permuted freely.

        Returns:
            int64 ``[len(self)]``.
        """
        number = len(self)
        if number <= shuffle_buffer:
            return torch.randperm(number, generator=generator)
        ends = np.searchsorted(self.places['shard'], np.arange(len(self.shards)), side='right')
        counts = torch.from_numpy(np.diff(ends, prepend=0))
        shards = torch.randperm(len(counts), generator=generator)
        counts, starts = counts[shards], (torch.from_numpy(ends) - counts)[shards]
        moved_by = starts - (counts.cumsum(0) - counts)  # from its place here to its index
        places = torch.arange(number)
        sequence = torch.repeat_interleave(moved_by, counts).add_(places)
        keys = torch.rand(number, generator=generator, dtype=torch.float64)
        return sequence[torch.argsort(keys.mul_(shuffle_buffer).add_(places))]

    def _path(self, shard: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self.shards['name'][shard]))

    def __getstate__(self) -> dict[str, Any]:
        return dict(folder=self.folder, file=self.file)  # spawned workers map the index again

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder = state['folder']
        self._map(state['file'])


def _open_unbuffered(path: str) -> Any:
    return open(path, 'rb', buffering=0)


def _size_of(header: bytes) -> int | None:
    digits = header[SIZE].strip(b'\0 ')
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b'89') else None


def _name_of(header: bytes) -> str:
    name = header[NAME].split(b'\0')[0]
    prefix = header[PREFIX].split(b'\0')[0] if header[MAGIC] == b'ustar\0' else b''
    return os.fsdecode(prefix + b'/' + name if prefix else name)


def scan_shard(path: Path, number: int) -> np.ndarray:
    """The places of a shard's images as they lie; a damage ends it, with a line in the log.

    Returns:
        PLACE ``[images]``; the bytes of the last may be incomplete.
    """
    found, damage = [], None
    try:
        with tarfile.open(path, 'r:') as tar:
            for member in tar:
                if _is_image(member):
                    size = min(member.size, 2**32 - 1)  # unreadable from 1 GiB on
                    found.append((member.offset_data, number, size))
            end = tar.offset
        with open(path, 'rb') as file:
            file.seek(end)
            if any(file.read(BLOCK)):  # tarfile ends at a broken header as at the end's zeros
                damage = f'no header at byte {end}'
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        damage = str(error)
    if damage:
        print_log(f'{path} is damaged ({damage}): what lies behind is left out, {len(found)} '
                  'images lie before.', logger='current', level=30)
    return np.array(found, PLACE)


def _is_image(member: tarfile.TarInfo) -> bool:
    name = os.path.basename(member.name)
    return (member.isreg() and not member.issparse() and not name.startswith('.')
            and os.fsencode(name).lower().endswith(SUFFIXES))


def write_index(file: Path, shards: np.ndarray, places: Iterable[np.ndarray]) -> None:
    """Write an index, whole or not at all; several processes may write the same one at once.

    Args:
        shards: SHARD ``[shards]``, in bytewise order of the names.
        places: PLACE of the images of each shard.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    own = file.with_name(f'.{file.name}.{uuid.uuid4().hex}.part')
    try:
        with open(own, 'xb') as stream:
            np.save(stream, shards)
            np.save(stream, np.concatenate(list(places)))
        os.replace(own, file)
    finally:
        own.unlink(missing_ok=True)


def _read_index(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The shards, and the mapped places."""
    with open(file, 'rb') as stream:
        shards = np.load(stream, allow_pickle=False)
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if (shards.dtype, dtype) != (SHARD, PLACE):
            raise ValueError(f'{file} is no index of tar shards')
        return shards, np.asarray(np.memmap(file, dtype, 'r', stream.tell(), shape))


def _fits(file: Path, shards: np.ndarray) -> bool:
    """Whether there is an index of these shards; one that lost its end has the same places."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        indexed, _ = _read_index(file)
        return (np.array_equal(indexed['name'], shards['name'])
                and bool((indexed['size'] >= shards['size']).all()))
    return False


def position_key(position: int) -> bytes:
    """The key in an LMDB of the image at a position, counted from 0."""
    return b'%0*d' % (KEY_DIGITS, position)


class LmdbImages:
    """The images of an LMDB that ``tools/data/rsrsd.py pack`` wrote: keys are positions.

    Args:
        path: The folder of ``data.mdb``. It is only read and never locked.

    Raises:
        ValueError: if lmdb is not installed, or the file is broken, empty or by someone else.
    """

    def __init__(self, path: str) -> None:
        self.path = os.fspath(path)
        self._open()
        environment = self.environment.get()
        needed = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
        if os.path.getsize(os.path.join(self.path, LMDB_FILE)) < needed:  # else: a bus error
            raise ValueError(f'{self.path}/{LMDB_FILE} ends early: copy it again.')
        with environment.begin() as transaction:
            cursor = transaction.cursor()
            last = bytes(cursor.key()) if cursor.last() else b''
        if len(last) != KEY_DIGITS or not last.isdigit():
            raise ValueError(f'{self.path}/{LMDB_FILE} holds no images under the keys '
                             f'{position_key(0).decode()!r}, 1, 2 …: give an LMDB written by '
                             'tools/data/rsrsd.py pack.')
        self.count = int(last) + 1

    def _open(self) -> None:
        self.environment = Environment.of(self.path)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """``folder/000000123``, the folder of the LMDB and the key."""
        return f'{self.path}/{position_key(index).decode()}'

    def read(self, index: int) -> bytes:
        """The bytes of an image file; raises UnreadableImage if they cannot be had."""
        import lmdb
        try:
            with self.environment.get().begin() as transaction:
                data = transaction.get(position_key(index))
        except lmdb.Error as error:
            raise UnreadableImage(reason_of(error)) from error
        if data is None:
            raise UnreadableImage(f'KeyError: the LMDB has no key {position_key(index).decode()}')
        return data

    def __getstate__(self) -> dict[str, Any]:
        return dict(path=self.path, count=self.count)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


class Environment:
    """An LMDB opened for reading, at most once in a process, as LMDB demands."""

    opened: 'weakref.WeakValueDictionary[str, Environment]' = weakref.WeakValueDictionary()

    def __init__(self, path: str) -> None:
        self.path = path
        self.process = 0
        self.lmdb: Any = None

    @classmethod
    def of(cls, path: str) -> 'Environment':
        """The one of this folder."""
        path = os.path.realpath(path)
        found = cls.opened.get(path)
        if found is None:
            found = cls.opened[path] = cls(path)
        return found

    def get(self) -> Any:
        """The opened LMDB of this process: a forked one may not use its parent's."""
        if self.process != os.getpid():
            try:
                import lmdb
            except ImportError:
                raise ValueError(f'{self.path} is an LMDB: install the package lmdb to read '
                                 'it.') from None
            if self.lmdb is not None:
                self.lmdb.close()
            try:
                # With readahead, which LMDB's manual advises against: an image is many pages,
                # 6,900 images/s against 600 from a cold cache.
                self.lmdb = lmdb.open(self.path, readonly=True, lock=False)
            except lmdb.Error as error:
                raise ValueError(f'{self.path}/{LMDB_FILE} is no LMDB that can be read: '
                                 f'{error}.') from None
            self.process = os.getpid()
        return self.lmdb
