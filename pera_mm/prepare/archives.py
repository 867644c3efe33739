"""The files of a downloaded data set, whether they lie in zips, in tars or in folders.

Archives are read in place: a member is never written under the name that the archive gives it.
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
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from pera_mm.datasets.litter import is_litter
from pera_mm.errors import UserError, printable

ZIP, TAR = '.zip', '.tar'
# The standard library cannot read rar and 7z. It reads a compressed tar from the beginning again
# for every member that is not the next one.
FOREIGN = ('.rar', '.7z', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz')
# A piece of an archive that was split: x.z01, x.zip.001, x.tar.gzaa, x.tar.part1. Those of a rar
# need no word of their own: unrar joins them.
PIECE = re.compile(r'(?P<stem>.+?)(\.z\d\d|(?P<kind>\.(zip|7z|tgz|tar|tar\.(gz|bz2|xz)))'
                   r'[.-]?(part)?(?P<number>\d+|a[a-z]))', re.IGNORECASE)
COPY = re.compile(  # marks of file managers, before the suffix: 'a (copy).jpg', 'a - Copy (2).jpg'
    r'( \((another copy|copy( \d+)?|\d+(st|nd|rd|th) copy)\)| - copy( \(\d+\))?| copy( \d+)?)'
    r'(?=\.\w+$)', re.IGNORECASE)
MAX_BYTES = 1 << 30  # of one file, as files are read whole
# Raised by the standard library for a broken archive or member. RuntimeError: a password is
# needed; UnicodeDecodeError: a broken name.
_BROKEN = (OSError, EOFError, RuntimeError, NotImplementedError, UnicodeDecodeError,
           zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)  # fmt: skip

# Raised by zipfile and tarfile for invalid names and sizes.
_MISREAD = (IndexError, ValueError, OverflowError, MemoryError)

LONGEST_NAME = 240  # bytes; most file systems allow 255, and unfinished files have longer ones
SHOWN = 80  # characters of a name in a message


class BadFile(Exception):
    """An unusable file; the text gives the reason and continues a sentence after its name."""


class Entry(NamedTuple):
    """A file of the source."""

    path: str  # in the source, with /; of a member after its archive: a/Train.zip/Urban/1.png
    size: int  # bytes, unpacked
    load: Callable[[], bytes]

    def read(self) -> bytes:
        """Read the bytes of the file.

        Raises:
            BadFile: if the file cannot be read or its checksum is wrong.
        """
        if self.size > MAX_BYTES:
            raise BadFile('is larger than 1 GiB')
        try:
            return self.load()
        except _BROKEN as error:
            raise BadFile(f'cannot be read ({error or type(error).__name__})') from error


class Source(NamedTuple):
    """The listing of a download."""

    entries: list[Entry]
    unopened: list[str]  # archives that have to be unpacked by hand


def list_source(source: Path) -> Source:
    """List every file of a folder and its archives, or of one archive.

    Raises:
        ValueError: if the source is missing, or an archive is split, is broken or holds links or
            members that point outside. Nothing has been written then.
    """
    if source.is_file():
        files = [(source.name, source)]
    elif source.is_dir():
        files = [(path.relative_to(source).as_posix(), path) for path in _walk(source)]
    else:
        raise UserError(f'{source} is neither a folder nor an archive: give the place of the '
                        'download.')
    plain: list[Entry] = []
    packed: list[Entry] = []
    unopened, problems = [], []
    pieces = [path for _, path in files if PIECE.fullmatch(path.name)]
    if pieces:
        raise UserError(_join_first(pieces))
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
                            'archive: use the official file instead.')
        for member, size, load, _ in members:
            if _is_litter(member):
                continue
            if member.lower().endswith((ZIP, TAR, *FOREIGN)):
                unopened.append(f'{name}/{member}')
            else:
                packed.append(Entry(f'{name}/{member}', size, load))
    if problems:
        raise UserError('\n'.join(problems))
    return Source(plain + packed, unopened)  # unpacked files come first: they are faster


def _join_first(pieces: list[Path]) -> str:
    first = min(pieces)
    match = PIECE.fullmatch(first.name)
    assert match is not None
    if match['kind'] is None:
        join = f'zip -s 0 {match["stem"]}.zip --out whole.zip'
    else:
        common, whole = first.name[:match.start('number')], match['stem'] + match['kind']
        join = f'cat {common}{"?" if common == whole else ""}* > {whole}'
    return (f'{first} is one of {len(pieces)} pieces of an archive that was split: join them (in '
            f'their folder: {join}), then move the pieces out of the source and repeat the '
            'command.')


def pick(entries: list[Entry], pattern: str,
         target: Callable[[re.Match[str]], str]) -> dict[str, Entry]:
    """Choose the files whose path matches, and name each for the prepared folder.

    A file that occurs twice (an archive beside its unpacked folder, or a copy that a file manager
    made) is taken once.

    Args:
        entries: Files of the source.
        pattern: Searched for in the whole path, regardless of case.
        target: The match → path below the prepared folder; its suffix becomes lower case.

    Returns:
        target path → file, in the order of the source.

    Raises:
        ValueError: if two files of different content would get the same name, or a copy differs.
    """
    chosen: dict[str, Entry] = {}
    matcher = re.compile(pattern, re.IGNORECASE)
    for entry in _without_copies(entries):
        match = matcher.search(entry.path)
        if not match:
            continue
        stem, suffix = os.path.splitext(target(match))
        name = stem + suffix.lower()
        _check_name(name)
        other = chosen.setdefault(name, entry)
        if other is not entry and not _same(other, entry):
            raise UserError(f'{other.path} and {entry.path} differ, but both would become {name}: '
                            'move one of them out of the source.')
    return chosen


def _without_copies(entries: list[Entry]) -> list[Entry]:
    """Leave out copies such as ``a (copy).jpg`` of a file that is there, too.

    Raises:
        ValueError: if such a copy differs from its file: only the user knows which is right.
    """
    marked = {entry.path: COPY.sub('', entry.path) for entry in entries if COPY.search(entry.path)}
    if not marked:
        return entries
    originals = {entry.path: entry for entry in entries}
    kept = []
    for entry in entries:
        original = originals.get(marked.get(entry.path, ''))
        if original is None:
            kept.append(entry)
        elif not _same(original, entry):
            raise UserError(f'{entry.path} has the name of a copy of {original.path}, but differs '
                            'from it: remove the wrong one of the two.')
    return kept


def _check_name(name: str) -> None:
    """Raise UserError unless files and lists can have this name."""
    try:
        too_long = any(len(part.encode()) > LONGEST_NAME for part in name.split('/'))
        if not too_long and '\0' not in name:
            return
        fault = 'is too long' if too_long else 'holds a zero byte'
    except UnicodeEncodeError:
        fault = 'is not UTF-8'
    raise UserError(f'the name {printable(name[:SHOWN])!r} {fault}: rename the file in the '
                    'source, or get the official one.')


def _same(one: Entry, other: Entry) -> bool:
    try:
        return one.size == other.size and one.read() == other.read()
    except BadFile:
        return False


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, sorted; follow links to folders, each folder once."""
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
    """Tell whether a file, or a folder above it, is hidden or was left by a program."""
    return any(part != '.' and is_litter(os.fsencode(part)) for part in name.split('/'))


def _points_away(name: str) -> bool:
    windows = PureWindowsPath(name)  # takes / and \ for separators
    return bool(windows.anchor) or '..' in windows.parts


_Member = tuple[str, int, Callable[[], bytes], bool]  # name, bytes, load, is a link


def _zip_members(path: Path) -> Iterator[_Member]:
    archive = zipfile.ZipFile(path)  # stays open: members are read later
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
