"""Two kinds of packed images: tar shards, which are read from front to back, and LMDB.

Tar shards are WebDataset's: uncompressed ``.tar`` files of images. Their metadata (``.json``,
``.txt``, ``.cls``) is not read here. Every member with the suffix of an image counts as an image,
also a mask. :mod:`pera_mm.datasets.shard_index` finds them.
"""

import os
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pera_mm.datasets.reading import MAX_FILE_BYTES, UnreadableImage, reason_of
from pera_mm.datasets.shard_index import (
    BLOCK,
    INDEX,
    Index,
    find_shards,
    name_in,
    open_index,
    read_index,
    size_in,
)
from pera_mm.errors import RunError, UserError, check_open_files

OPEN_SHARDS = 256  # file handles per process; a buffer of 10,000 images spans 12 shards of 1,000
LMDB_FILE = 'data.mdb'
KEY_DIGITS = 9


class TarShards:
    """The images of tar shards, in the order of the shards' names, then of the tars.

    A damaged or shortened shard is not fatal: its images that cannot be read count as unreadable.
    If a shard is damaged before its index is made, the images after the damage cannot be found.
    They are left out, with a line in the log.

    Args:
        path: A folder of ``.tar`` files, or one of them.
        index_file: The file of the index if it cannot be written beside the shards (as
            ``index.npy``, or as ``NAME.tar.index.npy`` for a single shard). An index of other
            shards is replaced.

    Raises:
        ValueError: if there is no shard, or no shard has an image.
    """

    def __init__(self, path: str, index_file: str | None = None) -> None:
        path = os.fspath(path)
        names = find_shards(path)
        if not names:
            raise UserError(f'{path!r} has no .tar shard: check the path.')
        self.folder = path if os.path.isdir(path) else os.path.dirname(path)
        beside = Path(path, INDEX) if os.path.isdir(path) else Path(f'{path}.{INDEX}')
        files = [beside] if index_file is None else [beside, Path(index_file)]
        self._use(open_index(self.folder, names, files))

    def _use(self, index: Index) -> None:
        self.index = index
        self.shards, self.places = index.shards, index.places
        self.open = lru_cache(OPEN_SHARDS)(_open_unbuffered)

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        """Name an image: ``folder/000003.tar/0000123.jpg``, or its first byte if it has no name."""
        offset, shard, _ = self.places[index].item()
        path = self._path(shard)
        try:
            file = self.open(path)  # held: another thread may take it out of the cache
            header = os.pread(file.fileno(), BLOCK, offset - BLOCK)
        except OSError:
            header = b''
        return f'{path}/{os.fsdecode(name_in(header)) or f"byte {offset}"}'

    def read(self, index: int) -> bytes:
        """Read the bytes of an image file.

        Raises:
            UnreadableImage: if the shard is missing, cut short, or not the one indexed.
            RunError: if the process may open no more files.
        """
        offset, shard, size = self.places[index].item()
        if size > MAX_FILE_BYTES:
            raise UnreadableImage('ValueError: the file is larger than 1 GiB: cut it into tiles')
        try:
            file = self.open(self._path(shard))  # held: as above
            data = os.pread(file.fileno(), BLOCK + size, offset - BLOCK)
        except OSError as error:
            check_open_files(error)
            raise UnreadableImage(reason_of(error)) from error
        if len(data) < BLOCK + size:
            raise UnreadableImage(f'the shard ends before byte {offset + size}')
        if size_in(data) != size:
            raise UnreadableImage('the shard has no image of this size here; if it was replaced, '
                                  f'delete {self.index.file}')
        return data[BLOCK:]

    def order(self, generator: torch.Generator, shuffle_buffer: int) -> torch.Tensor:
        """Shuffle all images such that one shard is read after another.

        The shards are permuted. Then every image moves by less than ``shuffle_buffer`` places, so
        that at any time only the few shards within that distance are read. If all images fit into
        the buffer, they are permuted freely.

        Args:
            generator: The source of randomness.
            shuffle_buffer: A number of images; with 1, images keep their order within a shard.

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
        moved_by = starts - (counts.cumsum(0) - counts)  # from a place in the sequence to an index
        places = torch.arange(number)
        sequence = torch.repeat_interleave(moved_by, counts).add_(places)
        keys = torch.rand(number, generator=generator, dtype=torch.float64)
        return sequence[torch.argsort(keys.mul_(shuffle_buffer).add_(places))]

    def _path(self, shard: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self.shards['name'][shard]))

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers map the index again.
        return dict(folder=self.folder, index=self.index.file or self.index)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, index = state['folder'], state['index']
        if isinstance(index, Path):
            found = read_index(index)
            if found is None:
                raise RunError(f'{index}, the index of tar shards, disappeared while it was used.')
            index = found
        self._use(index)


def _open_unbuffered(path: str) -> Any:
    return open(path, 'rb', buffering=0)


def position_key(position: int) -> bytes:
    """Return the key in an LMDB of the image at a position, counted from 0."""
    return b'%0*d' % (KEY_DIGITS, position)


class LmdbImages:
    """The images of an LMDB that ``tools/data/rsrsd.py pack`` wrote: keys are positions.

    Args:
        path: The folder of ``data.mdb``. It is read without a lock.

    Raises:
        ValueError: if lmdb is not installed, or the file is broken, empty or of another program.
    """

    def __init__(self, path: str) -> None:
        self.path = os.fspath(path)
        self._open()
        environment = self.environment.get()
        needed = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
        if os.path.getsize(os.path.join(self.path, LMDB_FILE)) < needed:  # else: a bus error
            raise UserError(f'{self.path}/{LMDB_FILE} ends early: copy it again.')
        with environment.begin() as transaction:
            cursor = transaction.cursor()
            last = bytes(cursor.key()) if cursor.last() else b''
        if len(last) != KEY_DIGITS or not last.isdigit():
            raise UserError(f'{self.path}/{LMDB_FILE} holds no images under the keys '
                            f'{position_key(0).decode()!r}, 1, 2 …: give an LMDB written by '
                            'tools/data/rsrsd.py pack.')
        self.count = int(last) + 1

    def _open(self) -> None:
        self.environment = Environment.shared(self.path)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """Name an image: ``folder/000000123``, the folder of the LMDB and the key."""
        return f'{self.path}/{position_key(index).decode()}'

    def read(self, index: int) -> bytes:
        """Read the bytes of an image file.

        Raises:
            UnreadableImage: if the LMDB is broken or lacks the image.
        """
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
    """An LMDB, opened for reading at most once per process, as LMDB demands."""

    opened: 'weakref.WeakValueDictionary[str, Environment]' = weakref.WeakValueDictionary()

    def __init__(self, path: str) -> None:
        self.path = path
        self.process = 0
        self.lmdb: Any = None

    @classmethod
    def shared(cls, path: str) -> 'Environment':
        """Return the environment of a folder, one for the whole process."""
        path = os.path.realpath(path)
        found = cls.opened.get(path)
        if found is None:
            found = cls.opened[path] = cls(path)
        return found

    def get(self) -> Any:
        """Return the LMDB opened by this process; a forked process may not use its parent's."""
        if self.process != os.getpid():
            try:
                import lmdb
            except ImportError:
                raise UserError(f'{self.path} is an LMDB: install the package lmdb to read '
                                'it.') from None
            if self.lmdb is not None:
                self.lmdb.close()
            try:
                # With readahead, against the advice of LMDB's manual: an image has many pages.
                # From a cold cache 6,900 images/s are read with it and 600 without.
                self.lmdb = lmdb.open(self.path, readonly=True, lock=False)
            except lmdb.Error as error:
                raise UserError(f'{self.path}/{LMDB_FILE} is not a readable LMDB: '
                                f'{error}.') from None
            self.process = os.getpid()
        return self.lmdb
