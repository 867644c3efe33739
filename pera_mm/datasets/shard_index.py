"""An index of the images in tar shards: made once, a file of 16 bytes per image.

All processes of a machine share that file, and one ``pread`` reads any image. Therefore an epoch is
a pure function of its seed, and it can be split over ranks and workers or resumed at any position.

The index is two NumPy arrays: the shards (name, bytes), then the places of the images. The places
in a shard are valid while the shard keeps its size or loses its end. A shard that is new, has grown
or was replaced by a smaller one is scanned again, without the others. A damaged shard is scanned
at every start, since it may have been repaired. (``tar --append`` may add images in the zeros at
the end, which does not change the size: delete the index then.)

Not tarfile: scanning takes three times as long (measured), as it makes an object of every member.
"""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.logging import print_log

from pera_mm.datasets.litter import is_litter
from pera_mm.datasets.reading import SUFFIXES
from pera_mm.errors import UserError

SHARD = np.dtype([('name', 'S255'), ('size', '<u8')])
PLACE = np.dtype([('offset', '<u8'), ('shard', '<u4'), ('size', '<u4')])  # of an image's bytes
INDEX = 'index.npy'
DAMAGED = 2**64 - 1  # a size in an index; no file has it, so the shard is scanned at every start
MISSING = -1  # a size on disk; no index has it, so a missing shard does not fit its index
LOG_INTERVAL = 500  # shards between two lines in the log
BLOCK = 512  # bytes of a member's header; members are filled up to a multiple
MAX_TEXT_BYTES = 1 << 20  # of a long name or of a PAX header
MAX_DIGITS = 19  # of a number of bytes
CHUNK_BYTES = 1 << 20  # read at a time after the end mark
NAME, SIZE, SUM, TYPE = slice(0, 100), slice(124, 136), slice(148, 156), slice(156, 157)
MAGIC, PREFIX = slice(257, 263), slice(345, 500)
# POSIX: '0', '\0' and '7' are files; a link, folder or device ('1'-'6') has no bytes; 'x' (PAX) and
# 'L' (GNU) hold the name, or the size, of the next member.
FILES, WITHOUT_BYTES = (b'0', b'\0', b'7'), (b'1', b'2', b'3', b'4', b'5', b'6')


class Index(NamedTuple):
    """The shards of a folder and the places of their images.

    Attributes:
        file: The file of the index; None: it is only in memory.
        shards: SHARD ``[shards]``, in bytewise order of the names.
        places: PLACE ``[images]``, in the order of the shards, then as they lie.
    """

    file: Path | None
    shards: np.ndarray
    places: np.ndarray

    def places_of(self, number: int) -> np.ndarray:
        """Select the places in one shard."""
        begin, end = np.searchsorted(self.places['shard'], [number, number + 1])
        return self.places[begin:end]


def find_shards(path: str) -> list[str]:
    """Find the ``.tar`` files in a folder, or the one at ``path``: names in bytewise order."""
    if not os.path.isdir(path):
        is_shard = path.lower().endswith('.tar') and os.path.isfile(path)
        return [os.path.basename(path)] if is_shard else []
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries
                 if entry.name.lower().endswith('.tar') and not is_litter(os.fsencode(entry.name))]
    return sorted(names, key=os.fsencode)


def open_index(folder: str, names: list[str], files: list[Path]) -> Index:
    """Read the index of shards; make or update it where it does not fit them.

    Args:
        folder: The folder of the shards.
        names: Their names, in bytewise order.
        files: Possible files of the index. The first that fits is read. If none fits, the first
            that can be written is written.

    Raises:
        ValueError: if no shard has an image.
    """
    sizes = [_size(Path(folder, name)) for name in names]
    for file in files:
        if (found := read_index(file)) and found.shards.tolist() == _rows(names, sizes):
            return found
    with _one_at_a_time(folder):  # the others then find the index of the first
        known = next(filter(None, map(read_index, files)), None)
        made = _scan_unknown(folder, names, sizes, known)
        if not len(made.places):
            raise UserError(f'the tar shards of {folder!r} have no image: give the images in them '
                            'the suffix of an image, and do not compress the shards.')
        if known and np.array_equal(known.shards, made.shards) and np.array_equal(
                known.places, made.places):
            return known
        return _store(made, files)


def _size(shard: Path) -> int:
    try:
        return shard.stat().st_size
    except OSError:  # the scan reports the reason
        return MISSING


def _rows(names: list[str], sizes: list[int]) -> list[tuple[bytes, int]]:
    return list(zip(map(os.fsencode, names), sizes))


@contextlib.contextmanager
def _one_at_a_time(folder: str) -> Iterator[None]:
    """Let one process work at a time, unless the file system has no locks.

    Not filelock: it needs a file of its own, and the folder may be read-only.
    """
    descriptor = os.open(folder or '.', os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _scan_unknown(folder: str, names: list[str], sizes: list[int], known: Index | None) -> Index:
    """Scan the shards that ``known`` does not describe."""
    numbers = {name: number for number, (name, _) in enumerate(known.shards.tolist())} \
        if known else {}
    places, scanned = [], 0
    for number, (name, size) in enumerate(_rows(names, sizes)):
        path = Path(folder, os.fsdecode(name))
        old = numbers.get(name)
        if known and old is not None and _is_valid(path, size, known.shards['size'][old].item(),
                                                   known.places_of(old)):
            found = known.places_of(old).copy()
            found['shard'] = number
            sizes[number] = max(size, known.shards['size'][old].item())  # of the whole shard
        else:
            if scanned % LOG_INTERVAL == 0:
                print_log(f'finding the images in the tar shards of {folder or "."}, once: shard '
                          f'{number + 1} of {len(names)}', logger='current')
            scanned += 1
            found, damage = scan_shard(path, number)
            if damage:
                sizes[number] = DAMAGED
                print_log(f'{path} is damaged ({damage}): the {len(found)} images before the '
                          'damage are used, the others are not.', logger='current', level=30)
        places.append(found)
    return Index(None, np.array(_rows(names, sizes), SHARD), np.concatenate(places))


def _is_valid(shard: Path, size: int, indexed: int, places: np.ndarray) -> bool:
    """Whether the indexed places of a shard's images still hold.

    Args:
        shard: The file.
        size: Its bytes now, or MISSING (-1: smaller than any size).
        indexed: Its bytes when it was scanned, or DAMAGED.
        places: PLACE of its images.
    """
    if indexed == DAMAGED or size >= indexed:
        return size == indexed
    # A smaller shard has lost its end, or is another file.
    left = places[places['offset'] <= max(size, 0)]
    with contextlib.suppress(OSError), open(shard, 'rb') as file:
        return all(size_in(os.pread(file.fileno(), BLOCK, offset - BLOCK)) == number
                   for offset, _, number in (*left[:1].tolist(), *left[-1:].tolist()))
    return True  # it cannot be read now: its images count as unreadable


def _store(made: Index, files: list[Path]) -> Index:
    """Write the index to the first file that can be written; else it stays in memory."""
    for file in files:
        try:
            write_index(file, made.shards, [made.places])
            return read_index(file) or made
        except OSError as error:
            reason = error.strerror
    print_log(f'the index of the tar shards cannot be written to {str(files[-1])!r} ({reason}), so '
              'every process scans the shards at every start: set index_file to a file that can '
              'be written.', logger='current', level=30)
    return made


def write_index(file: Path, shards: np.ndarray, places: Iterable[np.ndarray]) -> None:
    """Write an index, whole or not at all; several processes may write the same one at once.

    Args:
        file: The file of the index.
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


def read_index(file: Path) -> Index | None:
    """Read an index and map its places; None where the file is missing or not an index."""
    with contextlib.suppress(OSError, ValueError, EOFError), open(file, 'rb') as stream:
        shards = np.load(stream, allow_pickle=False)
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if (shards.dtype, dtype) == (SHARD, PLACE):
            places = np.memmap(file, dtype, 'r', stream.tell(), shape)
            return Index(file, shards, np.asarray(places))
    return None


# -- tar -----------------------------------------------------------------------------------------


class Damage(Exception):
    """An error about a tar that cannot be read beyond some point; the text is the reason."""


def scan_shard(path: Path, number: int) -> tuple[np.ndarray, str]:
    """Scan a shard, header by header; the bytes of images are not read.

    It scans 36,000 images per second.

    Args:
        path: The tar, uncompressed: ustar, GNU or PAX.
        number: The number of the shard, for PLACE.

    Returns:
        PLACE ``[images]`` in their order in the tar, and the damage after them ('' for none). The
        last image may be incomplete.
    """
    found, damage = [], ''
    try:
        with open(path, 'rb', buffering=0) as file:
            for name, offset, size in _files(file.fileno()):
                if _is_image(name):
                    found.append((offset, number, min(size, 2**32 - 1)))  # unreadable from 1 GiB on
    except Damage as error:
        damage = str(error)
    except OSError as error:
        damage = error.strerror or str(error)
    return np.array(found, PLACE), damage


def _files(tar: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, first byte and number of bytes of every regular file in a tar."""
    end, at = os.fstat(tar).st_size, 0
    overrides: dict[bytes, bytes] = {}  # attributes of the next member
    while True:
        header = os.pread(tar, BLOCK, at)
        kind = header[TYPE]
        if len(header) < BLOCK:
            raise Damage(f'it ends at byte {at + len(header)} without an end mark')
        if not any(header):
            return _check_rest(tar, at)
        if not _is_header(header) or kind == b'S':
            raise Damage(f'no header, or that of a sparse file, at byte {at}')
        size = size_in(header) or 0
        at += BLOCK
        if kind in (b'x', b'L'):
            if size > MAX_TEXT_BYTES:
                raise Damage(f'a name or a PAX header of {size} bytes at byte {at}')
            data = os.pread(tar, size, at)
            overrides |= _pax(data) if kind == b'x' else {b'path': data.rstrip(b'\0')}
        elif kind not in (b'g', b'K'):  # g: for all members; K: a long target of a link
            size = _bytes_of(overrides[b'size']) if b'size' in overrides else size
            if kind in FILES and not any(key.startswith(b'GNU.sparse') for key in overrides):
                yield overrides.get(b'path', name_in(header)), at, size
            overrides = {}
        if kind not in WITHOUT_BYTES:
            at += -(-size // BLOCK) * BLOCK
        if at > end:
            raise Damage(f'it ends at byte {end}, and a member at byte {at}')


def _check_rest(tar: int, at: int) -> None:
    """Check that only zeros follow the end mark: it may be a hole, or a second tar may follow."""
    while rest := os.pread(tar, CHUNK_BYTES, at):
        if any(rest):
            raise Damage(f'an end mark at byte {at}, or a hole, and more bytes after it')
        at += len(rest)


def _pax(data: bytes) -> dict[bytes, bytes]:
    """Parse records of '<bytes of the record> <key>=<value>' and a line feed."""
    found = {}
    while digits := data.partition(b' ')[0].strip(b'\0'):
        if not len(digits) < _bytes_of(digits) <= len(data):
            raise Damage('a broken PAX header')
        key, _, value = data[len(digits) + 1:int(digits) - 1].partition(b'=')
        found[key] = value
        data = data[int(digits):]
    return found


def _bytes_of(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > MAX_DIGITS:
        raise Damage('a broken PAX header')
    return int(digits)


def _is_header(block: bytes) -> bool:
    digits = block[SUM].strip(b'\0 ')
    return (block[MAGIC][:5] in (b'ustar', bytes(5)) and size_in(block) is not None
            and _octal(digits) == sum(block) - sum(block[SUM]) + len(block[SUM]) * ord(' '))


def size_in(header: bytes) -> int | None:
    """Read a member's number of bytes from its header; None where the field is not a number."""
    field = header[SIZE]
    return int.from_bytes(field[1:], 'big') if field[:1] == b'\x80' else _octal(
        field.strip(b'\0 '))  # in binary beyond 8 GiB


def _octal(digits: bytes) -> int | None:
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b'89') else None


def name_in(header: bytes) -> bytes:
    """Read the name in a member's header; of a long name, the header has only the beginning."""
    name = header[NAME].split(b'\0')[0]
    prefix = header[PREFIX].split(b'\0')[0] if header[MAGIC] == b'ustar\0' else b''
    return prefix + b'/' + name if prefix else name


def _is_image(name: bytes) -> bool:
    parts = [part for part in name.split(b'/') if part not in (b'', b'.')]
    return name.lower().endswith(SUFFIXES) and not any(map(is_litter, parts))
