"""The pre-training data sets: every image is read once; then a list or shards for training.

There is no official layout to check: an image is any file with the suffix of one, at any depth, in
a folder, in archives, or in anything else that training reads. What is found lies beside the data
set, in ``<name>.check``:

* ``verification.txt``: the numbers, and what differs from the published ones;
* ``unreadable.txt``: the images that cannot be read, which the list or the shards leave out;
* ``duplicates.txt``: files with the same bytes as an earlier one, which stay;
* ``looks-….bin``: what was seen of each image so far. If the command is stopped, the next one
  continues there; if files were added or removed, it begins anew.
"""

import hashlib
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from pera_mm.datasets.listing import ImageList, open_source
from pera_mm.datasets.litter import is_litter
from pera_mm.datasets.reading import SUFFIXES, UnreadableImage, decode_safely
from pera_mm.datasets.shard_index import BLOCK
from pera_mm.datasets.shard_writer import Member, Part, write_shards
from pera_mm.errors import UserError, printable
from pera_mm.files import Claim, sign_folder, write_whole
from pera_mm.prepare.archives import FOREIGN, PIECE, TAR, ZIP, BadFile, list_source
from pera_mm.prepare.jobs import Progress, in_threads, quiet
from pera_mm.prepare.recipe import VERDICT
from pera_mm.prepare.verify import WORKERS, Report

LOOK = np.dtype([('width', '<u4'), ('height', '<u4'), ('bytes', '<u4'), ('digest', '<u8')])
THREADS = max(WORKERS, os.cpu_count() or 1)
BATCH = 1000  # images; a kill costs at most the looks at these
SHARD_IMAGES = 1000
SHARD_BLOCKS = 2  # of a tar, per image, besides its bytes: the header, and the last one's filling
SHOWN_SIZES = 5
SIGNATURE = '.shards.json'  # of which images the shards are


class Published(NamedTuple):
    """What is published of a pre-training data set."""

    images: int  # Table 1 of the paper
    side: int | None  # px, of every image; None: they differ
    subset: str  # how the lists of its subsets begin


SETS = {'rsrsd-5m': Published(4_686_059, 512, 'rsrsd'),
        'tov-rs': Published(1_088_941, 600, 'tov-rs'),
        'million-aid': Published(1_000_848, None, 'million-aid')}


def list_of(root: Path) -> Path:
    """Return the list of the images that lie in a folder, which a config calls index_file."""
    return root.with_name(f'{root.name}.txt')


def list_of_subset(published: Published, root: Path, count: int) -> Path:
    """Return the list of ``count`` images, beside the data set: ``tov-rs-100k.txt``."""
    thousands, rest = divmod(count, 1000)
    number = f'{count}' if rest or not thousands else f'{thousands}k'
    return root.with_name(f'{published.subset}-{number}.txt')


def folder_of_check(root: Path) -> Path:
    """Return the folder of what the check found."""
    return root.with_name(f'{root.name}.check')


class Images(Protocol):
    """The images of a source, by number."""

    def __len__(self) -> int:
        """Count the images."""

    def name(self, index: int) -> str:
        """Name an image, for messages."""

    def read(self, index: int) -> bytes:
        """Read the bytes of an image file, or raise UnreadableImage."""


class ArchivedImages:
    """The images of a folder with archives, or of one archive, which are read in place.

    Raises:
        ValueError: as :func:`~pera_mm.prepare.archives.list_source`, or if there is no image.
    """

    def __init__(self, source: Path) -> None:
        entries, unopened = list_source(source)
        suffixes = tuple(suffix.decode() for suffix in SUFFIXES)
        self.entries = [entry for entry in entries if entry.path.lower().endswith(suffixes)]
        if not self.entries or unopened:
            found = f'{len(self.entries)} images, and' if self.entries else 'no image, but'
            rest = f'{", ".join(unopened[:3])}{" …" if len(unopened) > 3 else ""}' or 'other files'
            raise UserError(f'{source} holds {found} {rest}: unpack what is an archive (only .zip '
                            'and .tar are read, not those within another) and move it away, or '
                            'give the folder of the images.')

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        """Return the path of an image in the source."""
        return self.entries[index].path

    def read(self, index: int) -> bytes:
        """Read the bytes of an image file, or raise UnreadableImage."""
        try:
            return self.entries[index].read()
        except BadFile as error:
            raise UnreadableImage(str(error)) from error


def prepare_images(published: Published, source: Path, root: Path, partial_set: bool = False,
                   progress: Progress = quiet) -> Report:
    """Check every image of a pre-training data set, and write the list or the shards of the rest.

    Args:
        published: What is published of the data set.
        source: Archives, a folder of images, or anything else that training reads.
        root: Where a config expects the data set. If it is the source itself, the images stay
            where they are, and ``<root>.txt`` lists those that can be read (tar shards need no
            list). Otherwise they are packed there, as tar shards.
        partial_set: Accept fewer images than published.
        progress: Shows the progress of the long loops.

    Returns:
        The numbers and the differences; also written to ``<root>.check/verification.txt``.

    Raises:
        ValueError: if the source cannot be used, no image can be read, or ``root`` holds something
            else.
    """
    in_place = source.resolve() == root.resolve()
    if not in_place:
        _check_apart(source.resolve(), root)
    images = _open(source, in_place)
    folder = folder_of_check(root)
    with Claim(folder, 'give another DST'):
        with warnings.catch_warnings():  # in all threads
            warnings.filterwarnings('ignore', 'Dataset has no geotransform')
            looks = _look_at_all(images, folder, progress)
            reasons = _look_again(images, looks, progress)
        report = Report(root, partial_set, progress)
        _describe(report, published, images, looks, reasons, folder)
        write_whole(folder / VERDICT, report.text().encode(errors='backslashreplace'))
        readable = np.flatnonzero(looks['width'])
        if not len(readable):
            raise UserError(f'none of the {len(images):,} images of {source} can be read: '
                            f'{folder / "unreadable.txt"} has the reasons.')
        if not in_place:
            _pack(images, looks, readable, root, progress)
        elif isinstance(images, ImageList):
            start = len(os.path.join(images.root, b''))
            lines = (images[index][start:] + b'\n' for index in readable.tolist())
            write_whole(list_of(root), b''.join(lines))
    return report


def _check_apart(source: Path, root: Path) -> None:
    """Check that shards in ``root`` change nothing else.

    Raises:
        UserError: if ``root`` lies in the source, or a list says that it holds loose images.
    """
    if source in root.resolve().parents:
        raise UserError(f'{root} lies in the source {source}, which is never changed: choose '
                        'another folder, or give the source twice to list its images in place.')
    if list_of(root).exists():
        raise UserError(f'{list_of(root)} lists images in {root}, where tar shards shall be '
                        'written: remove it, or give another folder.')


def _open(source: Path, in_place: bool) -> Images:
    """Open the images of the source."""
    archive = source.name if source.is_file() and _is_archive(source.name) else next(
        _archives(source, in_place), None)
    if archive is None:
        return open_source(str(source))
    if in_place:
        raise UserError(f'{source} holds the archive {archive}: move it away if it is unpacked, or '
                        'give another DST, where the images become tar shards.')
    return ArchivedImages(source)


def _archives(folder: Path, in_place: bool) -> Iterator[str]:
    """Yield the archives below a folder; in place, tars in the folder itself are shards."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_litter(os.fsencode(name))]
        for name in names:
            is_shard = in_place and Path(parent) == folder and name.lower().endswith(TAR)
            if _is_archive(name) and not is_shard and not is_litter(os.fsencode(name)):
                yield os.path.relpath(os.path.join(parent, name), folder)


def _is_archive(name: str) -> bool:
    return name.lower().endswith((ZIP, TAR, *FOREIGN)) or PIECE.fullmatch(name) is not None


# The looks ---------------------------------------------------------------------------------------


def _look(images: Images, index: int) -> tuple[tuple[int, int, int, int], str]:
    """Read and decode an image → LOOK, and the reason where it cannot be read (its width is 0)."""
    try:
        data = images.read(index)
        height, width, _ = decode_safely(data).shape
    except UnreadableImage as error:
        return (0, 0, 0, 0), str(error)
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return (width, height, len(data), int.from_bytes(digest, 'little')), ''


def _look_at_all(images: Images, folder: Path, progress: Progress) -> np.ndarray:
    """Look at every image that has not been looked at; return LOOK ``[images]``."""
    digest = hashlib.sha256()
    for index in range(len(images)):
        digest.update(os.fsencode(images.name(index)) + b'\n')
    path = folder / f'looks-{digest.hexdigest()[:16]}.bin'
    for old in set(folder.glob('looks-*.bin')) - {path}:
        old.unlink()
    with open(path, 'ab') as file:
        done = min(file.tell() // LOOK.itemsize, len(images))
        file.truncate(done * LOOK.itemsize)  # a kill may leave a part of one
        if done < len(images):
            for _ in progress(_look_on(images, done, file), 'reading', len(images) - done):
                pass
    return np.fromfile(path, LOOK)


def _look_on(images: Images, done: int, file: BinaryIO) -> Iterator[None]:
    """Look at the images from ``done`` on, and append the looks to the file, batch by batch."""
    for start in range(done, len(images), BATCH):
        batch = range(start, min(start + BATCH, len(images)))
        looks = []
        for look, _ in in_threads(partial(_look, images), list(batch), THREADS):
            looks.append(look)
            yield
        file.write(np.array(looks, LOOK).tobytes())
        file.flush()


def _look_again(images: Images, looks: np.ndarray, progress: Progress) -> dict[int, str]:
    """Look again at what could not be read, as a network may fail once; return index → reason."""
    unread = np.flatnonzero(looks['width'] == 0).tolist()
    if not unread:
        return {}
    again = in_threads(partial(_look, images), unread, THREADS)
    reasons = {}
    for (look, reason), index in zip(progress(again, 'reading again', len(unread)), unread):
        looks[index] = look
        if reason:
            reasons[index] = reason
    return reasons


def _describe(report: Report, published: Published, images: Images, looks: np.ndarray,
              reasons: dict[int, str], folder: Path) -> None:
    """Compare with what is published, and write the lists of unreadable files and duplicates."""
    report.count('images', len(images), published.images)
    report.note('unreadable, left out', f'{len(reasons):,}')
    _write_lines(folder / 'unreadable.txt', (
        f'{images.name(index)}: {reason}' for index, reason in reasons.items()))
    readable = np.flatnonzero(looks['width'])
    sizes = Counter(zip(looks['width'][readable].tolist(), looks['height'][readable].tolist()))
    for (width, height), number in sizes.most_common(SHOWN_SIZES):
        report.note(f'of {width} x {height} px', f'{number:,}')
    if len(sizes) > SHOWN_SIZES:
        shown = sum(number for _, number in sizes.most_common(SHOWN_SIZES))
        report.note(f'of {len(sizes) - SHOWN_SIZES:,} other sizes', f'{len(readable) - shown:,}')
    if side := published.side:
        odd = (looks['width'] != side) | (looks['height'] != side)
        report.blame(f'images are not {side} x {side} pixels', [
            f'{images.name(index)} ({looks["width"][index]} x {looks["height"][index]})'
            for index in readable[odd[readable]].tolist()], 'They are used, too.')
    twins = _duplicates(looks, readable)
    report.note('with the bytes of an earlier one', f'{len(twins):,}')
    _write_lines(folder / 'duplicates.txt', (
        f'{images.name(second)}: as {images.name(first)}' for first, second in twins))
    report.note('size of the files', f'{looks["bytes"].sum(dtype=np.int64) / 1e9:,.2f} GB')


def _duplicates(looks: np.ndarray, readable: np.ndarray) -> list[tuple[int, int]]:
    """Return (first, later one) of files with equal bytes, by a hash of 64 bits.

    Among five million different files, the chance that any two share a hash is 7e-7.
    """
    _, first, group = np.unique(looks['digest'][readable], return_index=True, return_inverse=True)
    firsts = readable[first[group]]
    later = firsts != readable
    return list(zip(firsts[later].tolist(), readable[later].tolist()))


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    write_whole(path, b''.join(printable(line).encode() + b'\n' for line in lines))


# The shards --------------------------------------------------------------------------------------


def _pack(images: Images, looks: np.ndarray, chosen: np.ndarray, root: Path,
          progress: Progress) -> None:
    """Write the chosen images as tar shards.

    Raises:
        UserError: if ``root`` holds something else, or the disk has too little room.
    """
    kept = looks[chosen]
    recipe = dict(images=len(kept), sha256=hashlib.sha256(kept.tobytes()).hexdigest())
    root.mkdir(parents=True, exist_ok=True)
    sign_folder(root, SIGNATURE, recipe, 'move it away or choose another folder')
    for part in root.glob('.*.tar.part'):  # left by a kill
        part.unlink()
    needed = int((-(-kept['bytes'].astype(np.int64) // BLOCK) + SHARD_BLOCKS).sum()) * BLOCK
    needed -= sum(file.stat().st_size for file in root.glob('*.tar'))
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(f'the shards need {needed / 1e9:.1f} GB more in {root}, where '
                        f'{free / 1e9:.1f} GB are free: make room, or link that folder to a larger '
                        'disk.')
    starts = range(0, len(chosen), SHARD_IMAGES)
    batches = (chosen[start:start + SHARD_IMAGES].tolist() for start in starts)
    write_shards(root, (Part(len(batch), partial(_members, images, batch))
                        for batch in progress(batches, 'packing', len(starts))))


def _members(images: Images, batch: list[int]) -> Iterator[tuple[Member]]:
    """Yield every image under its position in the source: names of any length, all different."""
    for index in batch:
        name = images.name(index)
        try:
            suffix = Path(name).suffix.lower()
            suffix = suffix if suffix.encode() in SUFFIXES else '.jpg'  # an LMDB has no names
            yield ((f'{index:09}{suffix}', images.read(index)), )
        except UnreadableImage as error:
            raise UserError(f'{name} could be read before and cannot be read now ({error}): repeat '
                            'the command once the source is whole again.') from error
