"""Lists of images: of a folder, a text list, tar shards or an LMDB; made once, read by number."""

import codecs
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from pera_mm.datasets.litter import is_litter
from pera_mm.datasets.packed import LMDB_FILE, LmdbImages, TarShards
from pera_mm.datasets.reading import SUFFIXES, read_file
from pera_mm.datasets.shard_index import find_shards
from pera_mm.datasets.text_lists import UTF_16, meanings
from pera_mm.errors import UserError
from pera_mm.files import WORK_FOLDER_MARKER

MAX_LINE_BYTES = 4096 + 2  # Linux's PATH_MAX and a line end
CHUNK_BYTES = 1 << 24  # of a text list, searched for line ends at a time
PROBED_BYTES = 4096  # at the beginning of a text list, where a binary file has zeros
PROBED_PATHS = 8


def find_images(folder: bytes, suffixes: tuple[bytes, ...] = SUFFIXES) -> Iterator[bytes]:
    """Find the images below ``folder``, by their suffix in any case.

    Links are followed. A folder that several links lead to is read once, so loops end.
    Hidden files and folders are left out, and what else
    :func:`~pera_mm.datasets.litter.is_litter` names. Broken links are listed, so that their reader
    counts them.

    Yields:
        Paths relative to ``folder``, in bytewise order.

    Raises:
        ValueError: if a name contains a line break, which a list cannot hold.
    """
    return _walk(folder, b'', suffixes, set())


def _walk(folder: bytes, below: bytes, suffixes: tuple[bytes, ...],
          seen: set[tuple[int, int]]) -> Iterator[bytes]:
    status = os.stat(os.path.join(folder, below))
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    names = []
    with os.scandir(os.path.join(folder, below)) as entries:
        for entry in entries:
            if is_litter(entry.name):
                continue
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                names.append(entry.name + b'/')  # with the slash, names sort as whole paths do
            elif _is_image(entry, suffixes):
                names.append(entry.name)
    for name in sorted(names):
        if b'\n' in name:
            raise UserError(f'the name {os.fsdecode(os.path.join(folder, below + name))!r} '
                            'contains a line break: rename it.')
        if name.endswith(b'/'):
            yield from _walk(folder, below + name, suffixes, seen)
        else:
            yield below + name


def _is_image(entry: os.DirEntry, suffixes: tuple[bytes, ...]) -> bool:
    if not entry.name.lower().endswith(suffixes):
        return False
    if entry.is_symlink():  # os.path says False where DirEntry raises: a link to itself
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def write_list(folder: bytes, file: Path) -> None:
    """Write the images below ``folder`` to a text list, atomically.

    Several processes may write the same list at once: each writes a file of its own and moves
    it into place.

    Raises:
        ValueError: if there is no image, or a name contains a line break.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    own = file.with_name(f'{file.name}.{uuid.uuid4().hex}.tmp')
    try:
        with open(own, 'xb') as stream:
            stream.writelines(path + b'\n' for path in find_images(folder))
        if own.stat().st_size == 0:
            raise UserError(_no_images(folder))
        os.replace(own, file)
    finally:
        own.unlink(missing_ok=True)


def _no_images(folder: bytes) -> str:
    names = ' '.join(suffix.decode() for suffix in SUFFIXES)
    for place, _, files in os.walk(folder):
        tars = [name for name in files if b'.tar' in name.lower() or name.endswith(b'.tgz')]
        if tars:  # those that are read lie in the folder itself
            return (f'the folder {os.fsdecode(folder)!r} has no image, but '
                    f'{os.fsdecode(os.path.join(place, tars[0]))!r}: give the folder of the shards '
                    'itself, where each is an uncompressed .tar.')
    return (f'the folder {os.fsdecode(folder)!r} has no image at any depth: check the path. Images '
            f'end in {names} (any case); hidden files are left out.')


class ImageList:
    """The paths of one source: a text list, mapped or in memory, and the starts of its lines.

    A Python list of 5 million paths would take 600 MB, and reference counting would copy it into
    every worker. All processes of a machine share a mapped list, and it pickles as its name.

    Args:
        path: A folder of any depth, or a text list.
        data_root: The folder that the lines of a text list are relative to; None: the list's.
        index_file: For a folder: the text list that is written once and used from then on.

    Raises:
        ValueError: if there is no image, or none of the listed files exists.
    """

    def __init__(self, path: str, data_root: str | None = None,
                 index_file: str | None = None) -> None:
        self.file: Path | None = None
        if os.path.isdir(path):
            self.root = os.fsencode(path)
            self._open_folder(index_file)
        elif os.path.isfile(path):
            if index_file is not None:
                raise UserError(f'{path!r} is a list already: leave out '
                                f'index_file={index_file!r}, which is for folders.')
            self.root = os.fsencode(data_root or os.path.dirname(path))
            self._map(Path(path))
        else:
            what = 'is a pattern' if set(str(path)) & set('*?[{') else 'does not exist'
            raise UserError(f'the image source {str(path)!r} {what} (looked for in '
                            f'{os.getcwd()}): give a folder of images, a text list of paths, a '
                            'folder of tar shards or an LMDB.')
        if self.file is not None:
            self._check()

    def _open_folder(self, index_file: str | None) -> None:
        if index_file is None:
            lines = bytearray()
            for name in find_images(self.root):
                lines += name + b'\n'
            if not lines:
                raise UserError(_no_images(self.root))
            self.text = np.frombuffer(lines, np.uint8)
            self.starts = _line_starts(self.text)
            return
        file = Path(index_file)
        if not file.exists():
            print_log(f'listing the images below {os.fsdecode(self.root)} in {file}',
                      logger='current')
            write_list(self.root, file)
        self._map(file)

    def _map(self, file: Path) -> None:
        """Map the list and find its lines."""
        self.file = file
        is_empty = file.stat().st_size == 0  # an empty file cannot be mapped
        self.text = np.asarray(np.zeros(0, np.uint8) if is_empty else np.memmap(file, mode='r'))
        if not self.text[:PROBED_BYTES].all():
            if self.text[:2].tobytes() in UTF_16:
                raise UserError(f'{str(file)!r} is a list in UTF-16, as some programs of Windows '
                                'write it: save it as UTF-8 (iconv -f UTF-16 -t UTF-8 OLD > NEW).')
            raise UserError(f'{str(file)!r} is not a text list: it has zero bytes: give a folder '
                            'of images, a list of paths, uncompressed .tar shards or the folder '
                            'of an LMDB.')
        if self.text[:3].tobytes() == codecs.BOM_UTF8:
            self.text = self.text[3:]
        self.starts = _line_starts(self.text)
        if len(self) == 0:
            raise UserError(f'the list {str(file)!r} names no image: write one path per line, or '
                            'delete it if it is an index file.')

    def _check(self) -> None:
        """Raise a ValueError if none of eight listed files exists: the root must be wrong."""
        probes = [self[int(i)] for i in np.linspace(0, len(self) - 1, PROBED_PATHS)]
        if not any(os.path.lexists(path) for path in probes):
            line = probes[0][len(os.path.join(self.root, b'')):]
            for meant in map(os.fsencode, meanings(os.fsdecode(line))):
                if os.path.isfile(os.path.join(self.root, meant)):
                    raise UserError(f'the list {str(self.file)!r} has the line '
                                    f'{os.fsdecode(line)!r}, which is not a file, while '
                                    f'{os.fsdecode(meant)!r} is: write one path per line, with '
                                    'slashes, and no quotes, labels or blanks around it.')
            raise UserError(f'the list {str(self.file)!r} names {os.fsdecode(probes[0])!r}. '
                            'Neither this file nor seven others of the list exist: set data_root '
                            'to the folder its lines are relative to, or delete the list if it is '
                            'the index_file of another folder.')

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> bytes:
        start = int(self.starts[index])
        line = self.text[start:start + MAX_LINE_BYTES].tobytes().split(b'\n', 1)[0]
        return os.path.join(self.root, line.rstrip(b'\r'))

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return os.fsdecode(self[index])

    def read(self, index: int) -> bytes:
        """Read the bytes of an image file.

        Raises:
            UnreadableImage: if the file is missing or cannot be read.
        """
        return read_file(self[index])

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.file is not None:
            del state['text'], state['starts']
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.file is not None:
            self._map(self.file)


def _line_starts(text: np.ndarray) -> np.ndarray:
    """Find the offsets of the lines that are not blank, uint32 (int64 from 4 GiB on)."""
    dtype = np.uint32 if len(text) < 2**32 else np.int64
    starts = [np.zeros(1, dtype)]
    for begin in range(0, len(text), CHUNK_BYTES):  # in chunks: no mask as large as the text
        breaks = np.flatnonzero(text[begin:begin + CHUNK_BYTES] == ord('\n'))
        starts.append((breaks + begin + 1).astype(dtype))
    lines = np.concatenate(starts)
    lines = lines[lines < len(text)]
    return lines[(text[lines] != ord('\n')) & (text[lines] != ord('\r'))]


Source = ImageList | TarShards | LmdbImages


def open_source(path: str, data_root: str | None = None, index_file: str | None = None) -> Source:
    """Open the folder, text list, tar shards or LMDB at ``path``.

    All have ``len()``, ``name(i) -> str`` (for messages and lists) and ``read(i) -> bytes``,
    which raises :class:`~pera_mm.datasets.reading.UnreadableImage`. All are small to pickle,
    except the list of a folder without ``index_file``.

    Args:
        path: As of :class:`~pera_mm.datasets.unlabeled.UnlabeledImages`.
        data_root: The folder that the lines of a text list are relative to; None: the list's.
        index_file: The list of a folder, or the index of tar shards; None: see there.

    Raises:
        ValueError: if the path does not exist, has no image, has both shards and other images, or
            is the work folder of ``tools/data/rsrsd.py``.
    """
    path = os.fspath(path)
    if os.path.isfile(os.path.join(path, LMDB_FILE)):
        return LmdbImages(path)
    if os.path.exists(os.path.join(path, WORK_FOLDER_MARKER)):
        raise UserError(f'{path!r} is a work folder of tools/data/rsrsd.py and has dropped images, '
                        f'too: give {os.path.join(path, "packed")!r}.')
    is_listed = index_file is not None and _is_text(index_file)  # no need to look into the folder
    if not is_listed and find_shards(path):
        if os.path.isdir(path) and next(find_images(os.fsencode(path)), None) is not None:
            raise UserError(f'{path!r} holds .tar files and other images: move one of the two '
                            'kinds to a folder of its own.')
        return TarShards(path, index_file)
    return ImageList(path, data_root, index_file)


def _is_text(file: str) -> bool:
    if not os.path.isfile(file):
        return False
    with open(file, 'rb') as stream:
        return not stream.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX
