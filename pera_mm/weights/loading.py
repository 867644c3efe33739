"""Reading of checkpoints that runs nothing from them.

torch.load refuses MMEngine's checkpoints since torch 2.6, because they hold its HistoryBuffer,
NumPy scalars and a pickled ``getattr``. With ``weights_only=False`` it runs whatever a file asks
for. Here a pickle is read as data (:mod:`pera_mm.weights.pickles`), and only objects that such
checkpoints hold are built from it (:mod:`pera_mm.weights.objects`). Others are refused by name.
"""

import hashlib
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import urlparse
from urllib.request import urlopen
from uuid import uuid4
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import torch
from mmengine.dist import barrier
from mmengine.runner import CheckpointLoader
from rich.console import Console
from rich.progress import wrap_file
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pera_mm.errors import MissingFileError, UserError, printable
from pera_mm.weights.objects import STORAGE_TYPES, Storages, build, is_admitted
from pera_mm.weights.pickles import Misfit, Refused, Stored, read_pickle
from pera_mm.weights.sources import how_to_make

MMAP_FROM = 2**30  # bytes; eight ranks share one copy of a mapped file in memory
MAX_REASON = 200  # characters
ALIGNMENT = 16  # bytes; torch.save aligns to 64
LOCAL_HEADER = struct.Struct('<4s22xHH')  # of a zip's record: signature, lengths of name and extra
LEGACY_MAGIC = 0x1950a86a20f9469cfc6c  # the first pickle of torch's format before 1.6
LEGACY_PROTOCOL = 1001
TIMEOUT = 60  # seconds without a byte of a download
PIECE = 2**20  # bytes of a download at a time

MapLocation: TypeAlias = str | torch.device | Callable | None
MoveStorage = Callable[[torch.UntypedStorage, str], torch.UntypedStorage]


def file_of(path: str | Path) -> Path:
    """Return the file of weights that a path means.

    A file is itself. Of the work folder of a run it is the last checkpoint, of a folder of timm or
    Hugging Face the weights in it.

    Raises:
        FileNotFoundError: If a folder has none of these.
        ValueError: If the last checkpoint is sharded.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    pointer = path / 'last_checkpoint'
    if pointer.is_file():
        file = path / Path(pointer.read_text().strip()).name  # the folder may have moved
        if file.is_dir():
            raise UserError(f'{file} is sharded (FSDP or DeepSpeed): give a checkpoint in one '
                            'file.')
        return file
    for name in ('model.safetensors', 'pytorch_model.bin'):
        if (path / name).is_file():
            return path / name
    raise MissingFileError(f'{path} has neither last_checkpoint, as the work folder of a run, '
                           'nor model.safetensors, as an exported model: give a checkpoint.')


def check_exists(path: Path) -> None:
    """Check that there is a file of weights.

    Raises:
        FileNotFoundError: If not, with a remedy.
    """
    if not path.is_file():
        remedy = how_to_make(path) or 'check the path'
        raise MissingFileError(f'There is no checkpoint {path}: {remedy}.')


def load_checkpoint(
    path: str | Path, map_location: MapLocation = 'cpu', mmap: bool | None = None
) -> Any:
    """Read a ``torch.save`` or safetensors file; nothing from it is run.

    The result is data: tensors, arrays and scalars of plain numbers, texts, containers,
    MMEngine's HistoryBuffer and ConfigDict. Functions and all other objects are refused, except
    those that the user has admitted. Methods that MMEngine writes into its dicts are left out.

    Args:
        path: A local file: safetensors, or torch's zip format or the older one.
        map_location: As in ``torch.load``.
        mmap: Map the tensors into memory instead of reading them (zip format only). By default
            for files of 1 GiB and more.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a whole checkpoint, or asks for a Python object that no
            checkpoint of MMEngine or of the PerA authors holds.
    """
    path = Path(path).expanduser()
    check_exists(path)
    if _is_safetensors(path):
        return _load_safetensors(path, map_location)
    place = torch.serialization._get_restore_location(map_location)
    if isinstance(map_location, str | torch.device):
        place(torch.UntypedStorage(0), 'cpu')  # torch's own error if the device is not here
    if mmap is None:
        mmap = path.stat().st_size >= MMAP_FROM
    with _refusals(path), path.open('rb') as file:
        start = file.read(2)
        file.seek(0)
        if start == b'PK':
            tree, storages = _read_zip(file, place, mmap)
        elif start.startswith(pickle.PROTO):
            tree, storages = _read_legacy(file, place)
        else:
            raise Misfit('neither a zip nor a pickle file')
        return _build(tree, storages)


def _build(tree: Any, storages: Storages) -> Any:
    try:
        return build(tree, storages)
    except (Refused, Misfit, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch and NumPy raise anything on absurd numbers
        raise Misfit(f'{type(error).__name__}: {error}') from None


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn the refusal of a hostile file, or of a damaged one, into a UserError."""
    try:
        yield
    except Refused as error:
        raise UserError(
            f'{path} asks for the Python object {_shorten(error)}, which is not part of a plain '
            'checkpoint, so the file is refused and nothing of it was run: get the weights from a '
            'source you trust, or, if you trust this one, admit the object first with '
            'torch.serialization.add_safe_globals([...]).'
        ) from None
    except Misfit as error:
        raise _unreadable(path, _shorten(error)) from None


def _shorten(error: Exception) -> str:
    """Make a reason, which may quote the file, fit for a message."""
    return printable(str(error))[:MAX_REASON]


def _unreadable(path: Path, reason: str, kind: str = 'torch checkpoint') -> UserError:
    size = path.stat().st_size
    return UserError(
        f'{path} ({size:,} bytes) is not a whole {kind} '
        f'({reason.splitlines()[0] if reason else "it ends too early"}): it was cut off while '
        'being written or copied, or is something else: compare its size with the original and '
        'copy it again, or take an earlier checkpoint.'
    )


# -- torch's zip format ---------------------------------------------------------------------


def _read_zip(file: BinaryIO, place: MoveStorage, mmap: bool) -> tuple[Any, Storages]:
    records = _records(file)
    mains = [name for name in records if name.endswith('/data.pkl')]
    if len(mains) != 1:
        raise Misfit(f'a zip file with {len(mains)} records data.pkl')
    folder = mains[0].removesuffix('data.pkl')
    if f'{folder}constants.pkl' in records:
        raise UserError(f'{file.name} is a TorchScript program, not a checkpoint: save the state '
                        'dict of the model with torch.save and load that.')
    _check_records(records.values(), _file_size(file))
    if f'{folder}byteorder' in records and _read_short(file, records[f'{folder}byteorder']) != (
            sys.byteorder.encode()):
        raise Misfit('written on a machine with another order of bytes')
    start, size = _span(file, records[mains[0]])
    file.seek(start)
    tree, found = _read_tree(file, size)
    storages, mapped = {}, None
    if mmap:
        mapped = torch.UntypedStorage.from_file(os.fspath(file.name), False, _file_size(file))
    for stored in found.values():
        if (record := records.get(f'{folder}data/{stored.key}')) is None:
            raise Misfit(f'the numbers of tensor {stored.key} are missing')
        start, size = _span(file, record)
        _check_size(stored, size)
        if mapped is not None and start % ALIGNMENT == 0 and size:
            storage = mapped[start:start + size]
        else:
            storage = _read_storage(file, start, size)
        storages[stored.key] = place(storage, stored.location)
    return tree, storages


def _read_tree(file: BinaryIO, size: int) -> tuple[Any, dict[str, Stored]]:
    """Read a pickle of at most ``size`` bytes, and the tensors it asks for, by key."""
    tree, found = read_pickle(file, is_admitted, size)
    for stored in found.values():
        if stored.type_name not in STORAGE_TYPES:
            raise Refused(f'{stored.type_name} as a storage')
    return tree, found


def _records(file: BinaryIO) -> dict[str, ZipInfo]:
    """List the records of a zip file by name; two of one name are refused."""
    try:
        infos = ZipFile(file).infolist()
    except (BadZipFile, ValueError, struct.error, NotImplementedError, OverflowError, MemoryError,
            OSError) as error:
        raise Misfit(str(error)) from None
    records = {info.filename: info for info in infos}
    if len(records) < len(infos):
        raise Misfit('a zip file with two records of one name')
    return records


def _check_records(records: Iterable[ZipInfo], size: int) -> None:
    """Raise Misfit if records are compressed or overlap.

    torch never writes such files. In them, kilobytes can stand for gigabytes.
    """
    total = 0
    for record in records:
        total += record.file_size
        if record.compress_type != ZIP_STORED or record.compress_size != record.file_size:
            raise Misfit(f'its record {record.filename!r} is compressed')
    if total > size:
        raise Misfit('its records are larger than the file')


def _file_size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _span(file: BinaryIO, record: ZipInfo) -> tuple[int, int]:
    """Find the first byte of a record, and the number of its bytes.

    Raises:
        Misfit: If they are not all in the file.
    """
    file.seek(max(record.header_offset, 0))  # the index may say anything
    head = file.read(LOCAL_HEADER.size)
    if record.header_offset < 0 or len(head) < LOCAL_HEADER.size or not head.startswith(b'PK\3\4'):
        raise Misfit(f'its record {record.filename!r} is not where the index says')
    _, name, extra = LOCAL_HEADER.unpack(head)
    start = record.header_offset + LOCAL_HEADER.size + name + extra
    if start + record.file_size > _file_size(file):
        raise Misfit(f'its record {record.filename!r} ends too early')
    return start, record.file_size


def _read_short(file: BinaryIO, record: ZipInfo) -> bytes:
    start, size = _span(file, record)
    file.seek(start)
    return file.read(min(size, 16))


def _check_size(stored: Stored, size: int) -> None:
    if stored.number * STORAGE_TYPES[stored.type_name].itemsize != size:
        raise Misfit(f'tensor {stored.key} has {stored.number} numbers, its record {size} bytes')


def _read_storage(file: BinaryIO, start: int, size: int) -> torch.UntypedStorage:
    numbers = np.empty(size, np.uint8)
    file.seek(start)
    if file.readinto(numbers) != size:  # type: ignore[attr-defined]
        raise Misfit('it ends too early')
    return torch.from_numpy(numbers).untyped_storage()


# -- torch's format before 1.6 --------------------------------------------------------------


def _read_legacy(file: BinaryIO, place: MoveStorage) -> tuple[Any, Storages]:
    """Read five pickles (magic number, version, system, object, keys), then the numbers."""
    for number in (LEGACY_MAGIC, LEGACY_PROTOCOL):
        if _read_tree(file, _bytes_left(file))[0] != number:
            raise Misfit('a pickle that torch.save did not write')
    system, _ = _read_tree(file, _bytes_left(file))
    if not isinstance(system, dict) or system.get('little_endian') != (sys.byteorder == 'little'):
        raise Misfit('written on a machine with another order of bytes')
    tree, found = _read_tree(file, _bytes_left(file))
    keys, _ = _read_tree(file, _bytes_left(file))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or (
            sorted(keys) != sorted(found)):
        raise Misfit('its list of tensors does not fit')
    storages = {}
    for key in keys:
        count = int.from_bytes(file.read(8), 'little', signed=True)
        size = count * STORAGE_TYPES[found[key].type_name].itemsize
        _check_size(found[key], size)
        if size > _bytes_left(file):
            raise Misfit('it ends too early')
        storages[key] = place(_read_storage(file, file.tell(), size), found[key].location)
    return tree, storages


def _bytes_left(file: BinaryIO) -> int:
    return _file_size(file) - file.tell()


# -- safetensors ----------------------------------------------------------------------------


def _is_safetensors(path: Path) -> bool:
    """Whether the file starts with a number of eight bytes and the brace of a JSON object."""
    with path.open('rb') as file:
        return file.read(9)[8:] == b'{'


def _load_safetensors(path: Path, map_location: MapLocation) -> dict[str, Tensor]:
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise _unreadable(path, str(error), 'safetensors file') from None
    if isinstance(map_location, str | torch.device):
        return {key: value.to(map_location) for key, value in state.items()}
    return state


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of a safetensors file; those of another file are empty.

    Raises:
        ValueError: If the file is a safetensors file, but not a whole one.
    """
    path = Path(path).expanduser()
    if not _is_safetensors(path):
        return {}
    try:
        with safe_open(path, 'pt') as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise _unreadable(path, str(error), 'safetensors file') from None


# -- MMEngine's loaders ---------------------------------------------------------------------


def load_from_local(filename: str, map_location: MapLocation = None) -> Any:
    """Load a local file, or that of a folder, for MMEngine by :func:`load_checkpoint`."""
    return load_checkpoint(file_of(filename), map_location)


def load_from_http(filename: str, map_location: MapLocation = None) -> Any:
    """Download a file once per machine, into torch.hub's cache, and load it as a local one.

    Raises:
        ValueError: If it cannot be downloaded, and as :func:`load_checkpoint`.
    """
    path = _cached(filename)
    if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not path.exists():
        try:
            _download(filename, path)
        except (OSError, HTTPException, ValueError) as error:  # urllib's errors are OSErrors
            raise UserError(f'{filename} could not be downloaded: {error}. Download it by other '
                            'means and give the path of the file.') from None
    barrier()
    return load_checkpoint(path, map_location)


def _cached(url: str) -> Path:
    """Name the place of a download; two URLs that end alike have two places."""
    name = Path(urlparse(url).path)
    mark = hashlib.sha256(url.encode()).hexdigest()[:8]
    return Path(torch.hub.get_dir(), 'checkpoints', f'{name.stem}-{mark}{name.suffix}')


def _download(url: str, path: Path) -> None:
    """Download a file; it has its name only when it is whole.

    Raises:
        OSError, HTTPException, ValueError: If it cannot be downloaded.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{uuid4().hex}.part')  # other machines may share it
    try:
        with urlopen(url, timeout=TIMEOUT) as answer, part.open('wb') as file:
            size = int(answer.headers.get('Content-Length', 0))
            quiet = not size or not sys.stderr.isatty()
            with wrap_file(answer, size, description=f'downloading {path.name}', disable=quiet,
                           console=Console(stderr=True)) as source:
                shutil.copyfileobj(source, file, PIECE)
        if size and part.stat().st_size != size:
            raise OSError(f'the connection ended after {part.stat().st_size:,} of {size:,} bytes')
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def activate() -> None:
    """Let MMEngine's runners and initializers load files and URLs with these two functions."""
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http, force=True)
