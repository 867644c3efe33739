"""Millions of images without labels: found once, read safely, drawn by key."""

import codecs
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.logging import print_log
from torch.utils.data import Dataset, get_worker_info

from pera_mm.datasets.packed import LMDB_FILE, LmdbImages, TarShards
from pera_mm.datasets.reading import (
    SUFFIXES,
    Scale,
    UnreadableImage,
    check_rule,
    decode_safely,
    read_file,
)
from pera_mm.datasets.sampler import Draw
from pera_mm.datasets.shard_index import find_shards
from pera_mm.errors import RunError, UserError
from pera_mm.registry import DATASETS

MAX_REDRAWS = 100
MOST = 1e9  # weight of a source
LONGEST_LINE = 4096 + 2  # Linux's PATH_MAX and a line end
CHUNK = 1 << 24
FIRST = 4096  # bytes of a text list that are looked at
WORK_FOLDER = ('kept.csv', 'packed')  # of tools/data/rsrsd.py


def find_images(folder: bytes) -> Iterator[bytes]:
    """Paths of the images below ``folder``, relative to it, in bytewise order.

    Links are followed; a folder that several links lead to is read once, which also ends
    loops. Hidden files and folders (macOS writes ``._`` files) are left out. A broken link
    is listed: whoever reads it counts it.

    Raises:
        ValueError: if a name contains a line break, which a list cannot hold.
    """
    return _walk(folder, b'', set())


def _walk(folder: bytes, below: bytes, seen: set[tuple[int, int]]) -> Iterator[bytes]:
    status = os.stat(os.path.join(folder, below))
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    names = []
    with os.scandir(os.path.join(folder, below)) as entries:
        for entry in entries:
            if entry.name.startswith(b'.'):
                continue
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                names.append(entry.name + b'/')  # with the slash, names sort as whole paths do
            elif _is_image(entry):
                names.append(entry.name)
    for name in sorted(names):
        if b'\n' in name:
            raise UserError(f'the name {os.fsdecode(os.path.join(folder, below + name))!r} '
                            'contains a line break; rename it.')
        if name.endswith(b'/'):
            yield from _walk(folder, below + name, seen)
        else:
            yield below + name


def _is_image(entry: os.DirEntry) -> bool:
    if not entry.name.lower().endswith(SUFFIXES):
        return False
    if entry.is_symlink():  # os.path says False where DirEntry raises: a link to itself
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def write_list(folder: bytes, file: Path) -> None:
    """Write the images below ``folder`` to a text list, atomically.

    Several processes may write the same list at once: each writes a file of its own and moves
    it into place.
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
            return (f'no image lies below the folder {os.fsdecode(folder)!r}, but '
                    f'{os.fsdecode(os.path.join(place, tars[0]))!r}: give the folder of the shards '
                    'itself, each of them an uncompressed .tar.')
    return (f'no image lies below the folder {os.fsdecode(folder)!r} (looked for {names}, any '
            'case, links followed, hidden files left out); check the path.')


class ImageList:
    """The paths of one source: a text list in memory, or mapped into it, and where lines begin.

    Never a Python list: with 5 million paths that would be 600 MB, copied into every worker by
    reference counting. A mapped list is shared by all processes of a machine and pickles as its
    name.

    Args:
        path: A folder of any depth, or a text list.
        data_root: What the lines of a text list are relative to; None: the list's folder.
        index_file: For a folder: the text list to write once and to use from then on.

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
                raise UserError(f'{path!r} is a list already; index_file={index_file!r} is for '
                                'folders, leave it out.')
            self.root = os.fsencode(data_root or os.path.dirname(path))
            self._map(Path(path))
        else:
            what = 'is a pattern' if set(str(path)) & set('*?[{') else 'does not exist'
            raise UserError(f'the image source {str(path)!r} {what} (looked for in '
                            f'{os.getcwd()}); give a folder of images, a text list of paths, a '
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
        if not self.text[:FIRST].all():
            raise UserError(f'{str(file)!r} is no text list: it has zero bytes; give a folder of '
                            'images, a list of paths, uncompressed .tar shards or the folder of '
                            'an LMDB.')
        if self.text[:3].tobytes() == codecs.BOM_UTF8:
            self.text = self.text[3:]
        self.starts = _line_starts(self.text)
        if len(self) == 0:
            raise UserError(f'the list {str(file)!r} names no image; write one path per line, or '
                            'delete it if it is an index file.')

    def _check(self) -> None:
        """Raise a ValueError if not one of eight listed files exists: the root must be wrong."""
        probes = [self[int(i)] for i in np.linspace(0, len(self) - 1, 8)]
        if not any(os.path.lexists(path) for path in probes):
            raise UserError(f'the list {str(self.file)!r} names {os.fsdecode(probes[0])!r}, and '
                            'neither that nor seven other of its files exist; set data_root to '
                            'the folder its lines are relative to, or delete the list if it is '
                            'the index_file of another folder.')

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> bytes:
        start = int(self.starts[index])
        line = self.text[start:start + LONGEST_LINE].tobytes().split(b'\n', 1)[0]
        return os.path.join(self.root, line.rstrip(b'\r'))

    def name(self, index: int) -> str:
        """The path of an image."""
        return os.fsdecode(self[index])

    def read(self, index: int) -> bytes:
        """The bytes of an image file; raises UnreadableImage if they cannot be had."""
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
    """Where the lines of a text that are not blank begin, uint32 (int64 from 4 GiB on)."""
    dtype = np.uint32 if len(text) < 2**32 else np.int64
    starts = [np.zeros(1, dtype)]
    for begin in range(0, len(text), CHUNK):  # in chunks: no mask as large as the text
        breaks = np.flatnonzero(text[begin:begin + CHUNK] == ord('\n'))
        starts.append((breaks + begin + 1).astype(dtype))
    lines = np.concatenate(starts)
    lines = lines[lines < len(text)]
    return lines[(text[lines] != ord('\n')) & (text[lines] != ord('\r'))]


Source = ImageList | TarShards | LmdbImages


def open_source(path: str, data_root: str | None = None, index_file: str | None = None) -> Source:
    """The images of a folder, a text list, tar shards or an LMDB, by what lies at ``path``.

    All have ``len()``, ``name(i) -> str`` (for messages and lists) and ``read(i) -> bytes``,
    which raises :class:`~pera_mm.datasets.reading.UnreadableImage`; all are small to pickle but
    the list of a folder without ``index_file``.

    Raises:
        ValueError: if nothing lies there, or no image, or shards and other images.
    """
    path = os.fspath(path)
    if os.path.isfile(os.path.join(path, LMDB_FILE)):
        return LmdbImages(path)
    if all(os.path.exists(os.path.join(path, name)) for name in WORK_FOLDER):
        raise UserError(f'{path!r} is a work folder of tools/data/rsrsd.py, with images that were '
                        f'dropped: give {os.path.join(path, "packed")!r}.')
    is_listed = index_file is not None and _is_text(index_file)  # no need to look into the folder
    if not is_listed and find_shards(path):
        if os.path.isdir(path) and next(find_images(os.fsencode(path)), None) is not None:
            raise UserError(f'{path!r} holds .tar files and other images: give the ones or the '
                            'others a folder of their own.')
        return TarShards(path, index_file)
    return ImageList(path, data_root, index_file)


def _is_text(file: str) -> bool:
    if not os.path.isfile(file):
        return False
    with open(file, 'rb') as stream:
        return not stream.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX


@DATASETS.register_module()
class UnlabeledImages(Dataset):
    """Images without labels from folders, lists, tar shards and LMDBs, always 8-bit RGB.

    A file that cannot be read is skipped and another one of the same source drawn, by the
    sample's own generator. The pipeline gets, and may change:

    * ``img``: uint8 RGB ``[H, W, 3]``; ``img_path``: str; ``sample_idx``: int
    * ``rng``: ``numpy.random.Generator``, the only source of randomness of a sample
    * ``skipped``: list of (path, reason), the unreadable files met on the way

    Five million images: give tar shards, an LMDB, a text list, or a folder with ``index_file``.
    Measured by ``tools/benchmarks/packed.py``.

    Args:
        source: The path of one of these, or a list of ``dict(path=..., weight=...)`` of them:

            * a folder of any depth; its images (any case of suffix) in bytewise order, so that
              every node has the same order;
            * a text list, one path per line, in its own order. Write no other list over it
              while a training reads it; move a new one into its place;
            * a folder of ``.tar`` shards as WebDataset's, or a single one;
            * a folder with the LMDB of ``tools/data/rsrsd.py pack``.

            A dict may also hold ``data_root``, ``index_file``, ``bands``, ``scale`` and
            ``shuffle_buffer`` for its source. Weights are shares of an epoch, see
            :meth:`epoch_order`; without any, an epoch has every image once.
        pipeline: Transforms of MMEngine's registry, e.g. ``dict(type='pera_mm.AlignedCrops')``.
        data_root: What the lines of a text list are relative to. Default: the list's folder.
        index_file: A text list of a folder's images, written when missing and used from then on
            (delete it after adding images). It may be given as a source, too. For tar shards:
            their index, where it cannot lie beside them. An LMDB needs none.
        bands, scale: How rasters become 8-bit RGB, see :mod:`pera_mm.datasets.reading`.
        shuffle_buffer: In how many images those of tar shards are shuffled, see
            :meth:`epoch_order`; 1: none. Everything else is permuted as a whole.

    Raises:
        ValueError: if a source is missing or empty, or a setting is wrong.
    """

    metainfo: dict[str, Any] = {}  # MMEngine's training loop asks for it

    def __init__(self, source: str | Sequence[dict], pipeline: Sequence[dict],
                 data_root: str | None = None, index_file: str | None = None,
                 bands: Sequence[int] | None = None, scale: Scale = 'auto',
                 shuffle_buffer: int = 10_000) -> None:
        entries = [dict(path=source)] if isinstance(source, (str, os.PathLike)) else source
        _check_entries(entries)
        if len(entries) > 1 and index_file is not None:
            raise UserError('each source of a mixture needs an index_file of its own; write it '
                            'into its dict, beside path and weight.')
        common = dict(data_root=data_root, index_file=index_file, bands=bands, scale=scale,
                      shuffle_buffer=shuffle_buffer, weight=None)
        settings = [{**common, **entry} for entry in entries]
        self.rules = [_reading_rule(entry) for entry in settings]
        self.buffers = [_checked_buffer(entry['shuffle_buffer']) for entry in settings]
        self.sources = [open_source(entry['path'], entry['data_root'], entry['index_file'])
                        for entry in settings]
        sizes = [len(images) for images in self.sources]
        self.ends = np.cumsum(sizes)
        self.counts = _shares([entry['weight'] for entry in settings], sizes)
        self.pipeline = Compose(pipeline)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        """Read one image and run the pipeline.

        Args:
            draw: The image and the seed of the sample; for a plain index the seed comes from
                NumPy's global generator.

        Raises:
            RuntimeError: if 100 images drawn one after another are unreadable.
        """
        if isinstance(draw, Draw):
            index, seed = draw
        else:
            index, seed = int(draw), int(np.random.randint(2**63 - 1, dtype=np.int64))
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} images')
        if get_worker_info() is not None:
            cv2.setNumThreads(0)  # one core per worker; spawned workers inherit no setting
        return self.pipeline(self._read(index, np.random.default_rng(seed)))

    def _read(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        number = int(np.searchsorted(self.ends, index, side='right'))
        images = self.sources[number]
        first = int(self.ends[number]) - len(images)
        skipped: list[tuple[str, str]] = []
        while len(skipped) < MAX_REDRAWS:
            try:
                pixels = decode_safely(images.read(index - first), *self.rules[number])
            except UnreadableImage as error:
                skipped.append((images.name(index - first), str(error)))
                index = first + int(rng.integers(len(images)))
                continue
            return dict(img=pixels, img_path=images.name(index - first), sample_idx=index, rng=rng,
                        skipped=skipped)
        path, reason = skipped[-1]
        raise RunError(f'{MAX_REDRAWS} images drawn one after another could not be read, the '
                           f'last was {path!r} ({reason}); check the data.')

    def epoch_order(self, generator: torch.Generator) -> torch.Tensor:
        """The indices of one epoch, int64 ``[len(self)]``, shuffled.

        Without weights: every image once. With weights w_i, source i of a mixture of N images
        has exactly ``N * w_i / sum(w)`` of the draws, rounded down, and the draws left over go
        one each to the largest remainders. Its images are ordered as often as that needs: each
        one is drawn k or k + 1 times.

        A folder, a text list and an LMDB are permuted; tar shards are shuffled such that reading
        goes through them, see :meth:`~pera_mm.datasets.packed.TarShards.order`. Sources are
        interleaved at random, each in its own order.
        """
        parts = [self._draws(number, generator) for number in range(len(self.sources))]
        if len(parts) == 1:
            return parts[0]
        whose = torch.repeat_interleave(torch.tensor(self.counts))  # [N], the source's number
        whose = whose[torch.randperm(len(whose), generator=generator)]
        order = torch.empty_like(whose)
        for number, part in enumerate(parts):
            order[whose == number] = part
        return order

    def _draws(self, number: int, generator: torch.Generator) -> torch.Tensor:
        """The draws of an epoch from one source, int64 ``[self.counts[number]]``."""
        images, count = self.sources[number], self.counts[number]
        rounds = [torch.empty(0, dtype=torch.int64)]
        for _ in range(-(-count // len(images))):
            if isinstance(images, TarShards):
                rounds.append(images.order(generator, self.buffers[number]))
            else:
                rounds.append(torch.randperm(len(images), generator=generator))
        return torch.cat(rounds)[:count] + (int(self.ends[number]) - len(images))


def _reading_rule(entry: dict[str, Any]) -> tuple[tuple[int, ...] | None, Scale]:
    bands = None if entry['bands'] is None else tuple(entry['bands'])
    check_rule(bands, entry['scale'])
    return bands, entry['scale']


def _checked_buffer(images: int) -> int:
    if not isinstance(images, int) or images < 1:
        raise UserError(f'shuffle_buffer is {images!r}, but must be a whole number of images, at '
                        'least 1.')
    return images


def _check_entries(entries: Any) -> None:
    known = {'path', 'weight', 'data_root', 'index_file', 'bands', 'scale', 'shuffle_buffer'}
    listed = entries if isinstance(entries, Sequence) else [None]
    wrong = [entry for entry in listed if not isinstance(entry, Mapping) or set(entry) - known
             or not isinstance(entry.get('path'), (str, os.PathLike))]
    if wrong:
        raise UserError('source must be a path or a list of dict(path=..., weight=...) with keys '
                        f'among {", ".join(sorted(known))}; got {wrong[0] or entries!r}.')
    if not entries:
        raise UserError('source is an empty list; give a folder, a text list, tar shards, an '
                        'LMDB, or a list of dict(path=..., weight=...).')


def _shares(weights: list[float | None], sizes: list[int]) -> list[int]:
    """How many draws of an epoch each source has; they sum to the number of images."""
    if all(weight is None for weight in weights):
        return sizes
    given = [weight for weight in weights
             if isinstance(weight, (int, float)) and 0 < weight <= MOST]
    if len(given) < len(weights):
        raise UserError(f'give every source of a mixture a weight above 0 and up to {MOST:g}, or '
                        f'none of them; got {weights}.')
    exact = [sum(sizes) * weight / sum(given) for weight in given]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[:sum(sizes) - sum(counts)]:
        counts[i] += 1
    return counts
