"""Every file of a downloaded data set, whether it lies in a zip, in a tar or in a folder.

Archives are read in place: no member is ever written under the name that it gives itself.
"""

import lzma
import os
import re
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from pera_mm.errors import UserError

ZIP, TAR = '.zip', '.tar'
# The standard library cannot read rar and 7z, and reads a compressed tar again from its beginning
# for every member that is not the next one.
FOREIGN = ('.rar', '.7z', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz')
MAX_BYTES = 1 << 30  # files are read whole
# What the standard library raises on a broken archive or member; RuntimeError: a password,
# UnicodeDecodeError: a broken name.
_BROKEN = (OSError, EOFError, RuntimeError, NotImplementedError, UnicodeDecodeError,
           zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)  # fmt: skip

# What zipfile and tarfile raise on names and sizes that make no sense.
_MISREAD = (IndexError, ValueError, OverflowError, MemoryError)


class BadFile(Exception):
    """One file cannot be used; the text says why and goes on after the file's name."""


class Entry(NamedTuple):
    """One file of the source."""

    path: str  # in the source, with /; a member goes on after its archive: a/Train.zip/Urban/1.png
    size: int  # bytes, unpacked
    load: Callable[[], bytes]

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            BadFile: if it cannot be read, also when its checksum is wrong.
        """
        if self.size > MAX_BYTES:
            raise BadFile('is larger than 1 GiB')
        try:
            return self.load()
        except _BROKEN as error:
            raise BadFile(f'cannot be read ({error or type(error).__name__})') from error


class Source(NamedTuple):
    """What was downloaded."""

    entries: list[Entry]
    unopened: list[str]  # archives that have to be unpacked by hand


def list_source(source: Path) -> Source:
    """List every file of a folder, looking into its archives; or of one archive.

    Raises:
        ValueError: if there is nothing, or an archive is broken or holds members that point
            outside or are links. Nothing has been written then.
    """
    if source.is_file():
        files = [(source.name, source)]
    elif source.is_dir():
        files = [(path.relative_to(source).as_posix(), path) for path in _walk(source)]
    else:
        raise UserError(f'{source}: no such folder or archive.')
    plain: list[Entry] = []
    packed: list[Entry] = []
    unopened, problems = [], []
    for name, path in files:
        low = name.lower()
        if not low.endswith((ZIP, TAR)):
            if low.endswith(FOREIGN):
                unopened.append(name)
            else:
                plain.append(Entry(name, path.stat().st_size, path.read_bytes))
            continue
        try:
            members = list(_zip_members(path) if low.endswith(ZIP) else _tar_members(path))
        except (*_BROKEN, *_MISREAD) as error:
            problems.append(f'{path} is not a whole {"zip" if low.endswith(ZIP) else "tar"} file '
                            f'({error}): download it again.')
            continue
        hostile = [member for member, *_, is_link in members if is_link or _points_away(member)]
        if hostile:
            problems.append(f'{path} holds {hostile[0]!r}, a link or a path that leads out of the '
                            'archive: it is refused; get the official file.')
        for member, size, load, _ in members:
            if _is_litter(member):
                continue
            if member.lower().endswith((ZIP, TAR, *FOREIGN)):
                unopened.append(f'{name}/{member}')
            else:
                packed.append(Entry(f'{name}/{member}', size, load))
    if problems:
        raise UserError('\n'.join(problems))
    return Source(plain + packed, unopened)  # what is unpacked already is the faster


def pick(entries: list[Entry], pattern: str,
         target: Callable[[re.Match[str]], str]) -> dict[str, Entry]:
    """Choose the files whose path matches, and say what each is called in the prepared folder.

    Args:
        pattern: Searched for in the whole path, regardless of case.
        target: The match → path below the prepared folder; its suffix becomes lower case.

    Returns:
        target path → file, in the order of the source.

    Raises:
        ValueError: if two files of different content would get the same name. The same file
            twice (an archive beside its unpacked folder) is taken once.
    """
    chosen: dict[str, Entry] = {}
    matcher = re.compile(pattern, re.IGNORECASE)
    for entry in entries:
        match = matcher.search(entry.path)
        if not match:
            continue
        stem, suffix = os.path.splitext(target(match))
        name = stem + suffix.lower()
        other = chosen.setdefault(name, entry)
        if other is not entry and not _same(other, entry):
            raise UserError(f'{other.path} and {entry.path} differ, but both are {name}: '
                            'move one of them out of the source.')
    return chosen


def _same(one: Entry, other: Entry) -> bool:
    try:
        return one.size == other.size and one.read() == other.read()
    except BadFile:
        return False


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted; links to folders are followed, each folder once."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if path.is_file() and not _is_litter(path.relative_to(folder).as_posix()):
                yield path


def _is_litter(name: str) -> bool:
    """Whether a file is hidden, or macOS left it there."""
    path = PurePosixPath(name)
    return path.name.startswith('.') or '__MACOSX' in path.parts


def _points_away(name: str) -> bool:
    windows = PureWindowsPath(name)  # takes / and \ for separators
    return bool(windows.anchor) or '..' in windows.parts


_Member = tuple[str, int, Callable[[], bytes], bool]  # name, bytes, load, is a link


def _zip_members(path: Path) -> Iterator[_Member]:
    archive = zipfile.ZipFile(path)  # stays open: it is read for as long as the program runs
    for info in archive.infolist():
        if not info.is_dir():
            is_link = stat.S_ISLNK(info.external_attr >> 16)
            name = info.filename.replace('\\', '/')  # some programs on Windows write \
            yield name, info.file_size, partial(archive.read, info), is_link


def _tar_members(path: Path) -> Iterator[_Member]:
    archive = tarfile.open(path)
    lock = threading.Lock()  # a tar file has one position, many threads read

    def load(info: tarfile.TarInfo) -> bytes:
        with lock:
            file = archive.extractfile(info)
            assert file is not None
            data = file.read()
        if len(data) != info.size:
            raise EOFError('the archive ends early')
        return data

    for info in archive.getmembers():
        if not info.isdir():
            yield info.name, info.size, partial(load, info), not info.isfile()
