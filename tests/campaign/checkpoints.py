"""Hostile and damaged checkpoints, for :func:`pera_mm.weights.loading.load_checkpoint`.

Its promise: plain data with the right values, or a ValueError or FileNotFoundError of one line;
nothing of the file is run, and a small file takes little memory.
"""

import io
import json
import random
import runpy
import shutil
import struct
import sys
import tarfile
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mmengine.optim.scheduler.param_scheduler as schedulers
import numpy as np
import pickles
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner
from pickles import Code, checkpoint, code, found, program, tensor
from report import (
    HELD,
    MEMORY,
    MIB,
    RAN_CODE,
    REFUSED,
    WRONG_VALUES,
    WROTE_OUTSIDE,
    Limits,
    Result,
    in_children,
)
from torch import Tensor, nn

from pera_mm.errors import MissingFileError, UserError
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.models.backbones.pretrained import PretrainedBackbone
from pera_mm.weights import loading
from pera_mm.weights.loading import load_checkpoint

REPOSITORY = Path(__file__).parents[2]
LIMITS = Limits(seconds=10, memory=512 * MIB)
BATCH = 40
WEIGHT = struct.pack('<4f', 1, 2, 3, 4)
RECORDS = {'data/0': WEIGHT, 'data/long': struct.pack('<4q', 0, 10**9, -5, 1)}
CUTS, FLIPS = 64, 300
ADMITTED = (
    HistoryBuffer,
    schedulers.OneCycleParamScheduler,
    ConfigDict,
    torch.Size,
    Tensor,
    nn.Parameter,
    np.ndarray,
    np.dtype,
)
METHODS = {id(vars(HistoryBuffer)[name]) for name in ('min', 'max', 'mean', 'current')}
METHODS |= {
    id(getattr(schedulers.OneCycleParamScheduler, name))
    for name in ('_annealing_cos', '_annealing_linear')
}


class Case(NamedTuple):
    """One file."""

    kind: str
    name: str
    write: Callable[[Path], None]
    right: Any = None  # what it holds, where that must come back
    must_refuse: bool = False  # where any value would be a wrong one
    reader: Callable[[Path], Any] = load_checkpoint


# -- files ---------------------------------------------------------------------------------------


def zipped(pickled: bytes, records: Mapping[str, bytes] = RECORDS) -> bytes:
    """torch's zip format, with the standard library."""
    files = {
        'data.pkl': pickled,
        '.format_version': b'1',
        'byteorder': b'little',
        **records,
        'version': b'3\n',
    }
    return archived({f'archive/{name}': data for name, data in files.items()}.items())


def archived(files: Any, compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', compression) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return stream.getvalue()


def legacy(pickled: bytes, numel: int = 4, keys: Any = ('0',)) -> bytes:
    """torch's format before 1.6."""
    head = [
        0x1950A86A20F9469CFC6C,
        1001,
        dict(protocol_version=1001, little_endian=True, type_sizes=dict(short=2, int=4, long=4)),
    ]
    start = b''.join(map(program, head))
    return start + pickled + program(list(keys)) + struct.pack('<q', numel) + WEIGHT


def legacy_storages(pickled: bytes) -> bytes:
    """Persistent ids of the older format have a sixth part: what a storage is a view of."""
    return pickled.replace(code(4) + b'tQ', code(4) + b'NtQ')


def saved(value: Any, is_zip: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=is_zip)
    return stream.getvalue()


def bytes_of(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


# -- pickles -------------------------------------------------------------------------------------


def pickle_cases(marker: str) -> Iterator[Case]:
    """Every payload in both formats."""
    kinds = [
        ('foreign object', pickles.foreign(marker)),
        ('array of objects', pickles.arrays(marker)),
        ('callable handed out', pickles.callables(marker)),
        ('state of classes and objects', pickles.states(marker)),
        ('tensor beyond its storage', pickles.tensors()),
        ('pickle bomb', pickles.bombs()),
    ]
    for kind, payloads in kinds:
        for name, payload in payloads:
            pickled = checkpoint(payload)
            beyond = kind == 'tensor beyond its storage' and is_beyond(name)
            yield Case(kind, f'zip: {name}', bytes_of(zipped(pickled)), must_refuse=beyond)
            yield Case(
                kind,
                f'legacy: {name}',
                bytes_of(legacy(legacy_storages(pickled))),
                must_refuse=beyond,
            )
    for name, pickled in pickles.whole():
        yield Case('odd pickle', f'zip: {name}', bytes_of(zipped(pickled)))
        yield Case('odd pickle', f'legacy: {name}', bytes_of(legacy(pickled)))
        yield Case('odd pickle', f'plain: {name}', bytes_of(pickled))


def is_beyond(name: str) -> bool:
    """Whether torch would have to invent numbers for the tensor of this name."""
    return any(
        word in name
        for word in (
            'too many',
            'offset 1',
            'offset -1',
            '10**12 elements',
            '2**28',
            'beyond the storage',
        )
    )


# -- archives ------------------------------------------------------------------------------------


def zip_cases() -> Iterator[Case]:
    """torch's zip format, damaged or forged below the pickle."""
    good = checkpoint(code(None))
    files = {
        'data.pkl': good,
        '.format_version': b'1',
        'byteorder': b'little',
        **RECORDS,
        'version': b'3\n',
    }
    names = {f'archive/{name}': data for name, data in files.items()}

    def case(name: str, data: bytes, **options: Any) -> Case:
        return Case('zip level', name, bytes_of(data), **options)

    yield Case('zip level', 'data.pkl: 1 GiB in 1 MB of deflate', write_bomb('archive/data.pkl'))
    yield Case('zip level', 'version: 1 GiB in 1 MB of deflate', write_bomb('archive/version'))
    yield Case('zip level', 'byteorder: 1 GiB in 1 MB', write_bomb('archive/byteorder'))
    yield Case('zip level', 'a tensor: 1 GiB in 1 MB', write_bomb('archive/data/0'))
    for name, kind in (
        ('deflate', zipfile.ZIP_DEFLATED),
        ('bzip2', zipfile.ZIP_BZIP2),
        ('lzma', zipfile.ZIP_LZMA),
    ):
        yield case(f'all records compressed, {name}', archived(names.items(), kind))
    for record in files:
        without = {key: data for key, data in names.items() if key != f'archive/{record}'}
        yield case(f'without {record}', archived(without.items()))
        yield case(f'{record} is empty', archived((names | {f'archive/{record}': b''}).items()))
        other = files[record][:-1] + b'\xff' * 30
        yield case(f'two {record}', archived([*names.items(), (f'archive/{record}', other)]))
        yield case(
            f'two {record}, the other first',
            archived([(f'archive/{record}', other), *names.items()]),
        )
        yield case(
            f'{record} in other case',
            archived([*names.items(), (f'archive/{record.upper()}', other)]),
        )
        for field, where in (('compressed', 20), ('uncompressed', 24), ('offset', 42)):
            for value in (0, 1, 2**31, 2**32 - 1):
                yield case(f'{record}: {field} {value}', patched(names, record, where, value))
        yield case(f'{record}: method 8, not compressed', patched(names, record, 10, 8, '<H'))
        yield case(f'{record}: method 99', patched(names, record, 10, 99, '<H'))
        yield case(f'{record}: encrypted', patched(names, record, 8, 1, '<H'))
        yield case(f'{record}: wrong CRC', patched(names, record, 16, 1))
        yield case(f'{record}: attributes of a link', patched(names, record, 38, 0xA1FF0000))
    for prefix in ('', '../', '/', '../../../../tmp/', 'a/b/c', 'archive\0', 'C:\\', '\xff', 'é'):
        renamed = {f'{prefix}/{name}' if prefix else name: data for name, data in files.items()}
        yield case(f'prefix {prefix!r}', archived(renamed.items()))
    yield case('another first folder', archived([('zzz/data.pkl', good), *names.items()]))
    yield case(
        'two folders',
        archived([*names.items(), *((f'b/{name}', data) for name, data in files.items())]),
    )
    yield case('a name of 60,000 letters', archived([*names.items(), ('a' * 60_000, b'')]))
    yield case(
        '100,000 records',
        archived([*names.items(), *((f'archive/data/x{i}', b'') for i in range(100_000))]),
    )
    for order in (b'', b'big', b'middle', b'\xff\xfe', b'l' * 10**6, b'little\n'):
        yield case(
            f'byteorder {order[:9]!r}', archived((names | {'archive/byteorder': order}).items())
        )
    for version in (b'', b'0\n', b'99999999999999999999\n', b'-1\n', b'x\n', b'3' * 10**6):
        yield case(
            f'version {version[:9]!r}', archived((names | {'archive/version': version}).items())
        )
    for word in (b'', b'2', b'-1', b'x', b'1' * 10**6, b'\xff'):
        for record in ('.format_version', '.storage_alignment'):
            yield case(
                f'{record} {word[:9]!r}', archived((names | {f'archive/{record}': word}).items())
            )
    alignment = names | {'archive/.data/serialization_id': b'\xff' * 100}
    yield case('serialization_id not text', archived(alignment.items()))
    for name, size in (
        ('none', 0),
        ('a byte less', 15),
        ('a byte more', 17),
        ('3', 3),
        ('1 MB', 2**20),
    ):
        yield case(
            f'16 bytes of a tensor: {name}',
            zipped(good, RECORDS | {'data/0': (WEIGHT * 2**16)[:size]}),
            must_refuse=size < 16,
        )
    whole = archived(names.items())
    end = whole.rindex(b'PK\5\6')
    for name, where, value, form in (
        ('records 0', 8, 0, '<H'),
        ('records 65535', 10, 65535, '<H'),
        ('records 1', 8, 1, '<H'),
        ('directory size 0', 12, 0, '<I'),
        ('directory size 2**32-1', 12, 2**32 - 1, '<I'),
        ('directory at 0', 16, 0, '<I'),
        ('directory at 2**32-1', 16, 2**32 - 1, '<I'),
        ('directory at itself', 16, end, '<I'),
        ('disk 1', 4, 1, '<H'),
        ('comment of 65535', 20, 65535, '<H'),
    ):
        data = bytearray(whole)
        struct.pack_into(form, data, end + where, value)
        yield case(f'end record: {name}', bytes(data))
    for total in (2**63, 2**64 - 1, 2**32, 8):
        big_end = struct.pack('<4sQHHIIQQQQ', b'PK\6\6', 44, 45, 45, 0, 0, total, total, total, end)
        locator = struct.pack('<4sIQI', b'PK\6\7', 0, end, 1)
        tail = bytearray(whole[end:])
        struct.pack_into('<HHII', tail, 8, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1)
        yield case(f'zip64: {total:,} records', whole[:end] + big_end + locator + bytes(tail))
    yield case(
        'zip64 locator to nowhere',
        whole[:end] + struct.pack('<4sIQI', b'PK\6\7', 0, 2**63, 1) + whole[end:],
    )
    yield case('rubbish before it', b'PK' + bytes(1000) + whole)
    yield case('rubbish after it', whole + bytes(1000))
    yield case('a comment of 60,000 bytes', whole[:-2] + struct.pack('<H', 60_000) + b'x' * 60_000)
    yield case('200 records over the same 16 MiB', overlapping(200, 2**24))
    yield Case('zip level', 'a directory of 64 GB in 1 TB of zeros', write_directory(2**36))
    yield case('only PK', b'PK')
    yield case('PK and zeros', b'PK\3\4' + bytes(10_000))
    yield case('an empty archive', archived([]))
    yield case('an archive of text', archived([('readme.txt', b'x')]))


def write_bomb(record: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        names = {f'archive/{name}': data for name, data in RECORDS.items()}
        names |= {'archive/version': b'3\n', 'archive/data.pkl': checkpoint(code(None))}
        zeros = bytes(2**24)
        with zipfile.ZipFile(path, 'w') as archive:
            for name, data in names.items():
                if name != record:
                    archive.writestr(name, data)
            info = zipfile.ZipInfo(record)
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, 'w', force_zip64=True) as file:
                file.write(names.get(record, b'')[:-1])
                for _ in range(64):
                    file.write(zeros)

    return write


def overlapping(count: int, size: int) -> bytes:
    """Storages that lie in the same bytes: the records of all point to those of the first."""
    tensors = [
        tensor((size // 4,), (1,), of=pickles.storage(key=str(i), numel=size // 4))
        for i in range(count)
    ]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w') as archive:
        archive.writestr('archive/data.pkl', program(tensors))
        for i in range(count):
            archive.writestr(f'archive/data/{i}', bytes(0 if i else size))
        first = archive.getinfo('archive/data/0')
        for info in archive.filelist[2:]:
            info.CRC, info.header_offset = first.CRC, first.header_offset
            info.file_size = info.compress_size = size
    return stream.getvalue()


def write_directory(size: int) -> Callable[[Path], None]:
    """A file without blocks on the disk whose index would be most of it."""

    def write(path: Path) -> None:
        where = 16 * size
        end = struct.pack('<4sQHHIIQQQQ', b'PK\6\6', 44, 45, 45, 0, 0, 9, 9, size, where - size)
        end += struct.pack('<4sIQI', b'PK\6\7', 0, where, 1)
        end += struct.pack('<4sHHHHIIH', b'PK\5\6', 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
        with path.open('wb') as file:
            file.write(b'PK\3\4')
            file.truncate(where)
            file.seek(where)
            file.write(end)

    return write


def patched(
    names: Mapping[str, bytes], record: str, where: int, value: int, form: str = '<I'
) -> bytes:
    """An archive with a field of a record's entry in the central directory overwritten."""
    data = bytearray(archived(names.items()))
    start = data.rindex(b'PK\1\2', 0, data.rindex(f'archive/{record}'.encode()))
    struct.pack_into(form, data, start + where, value)
    return bytes(data)


# -- other files ---------------------------------------------------------------------------------


def legacy_cases() -> Iterator[Case]:
    """The older format, wrong around its pickle; and the tar before it."""
    good = legacy_storages(checkpoint(code(None)))

    def case(name: str, data: bytes, **options: Any) -> Case:
        return Case('legacy format', name, bytes_of(data), **options)

    for numel in (0, 3, 5, 2**31, 2**40, 2**62, -1):
        yield case(f'{numel} numbers', legacy(good, numel), must_refuse=numel != 4)
    for keys in ((), ('0', '0'), ('1',), ('x' * 10**6,), (0,), (['0'],), ('0', '1')):
        yield case(f'keys {str(keys)[:20]}', legacy(good, keys=keys))
    magic = program(0x1950A86A20F9469CFC6C)
    yield case('only the magic number', magic)
    yield case('another magic number', program(7) + legacy(good)[len(magic) :])
    yield case(
        'magic number of 2 MB', b'\x80\x02\x8b' + struct.pack('<i', 2**21) + bytes(2**21) + b'.'
    )
    yield case('protocol 1002', legacy(good).replace(program(1001), program(1002)))
    yield case(
        'a view beyond the storage',
        legacy(
            checkpoint(
                tensor(
                    (4,),
                    (1,),
                    of=Code(
                        code(
                            ('storage', found('torch.FloatStorage'), '0', 'cpu', 4, ('v', 2, 10**6))
                        )
                        + b'Q'
                    ),
                )
            )
        ),
    )
    yield case(
        'a view of another kind',
        legacy(
            checkpoint(
                Code(code(('storage', found('torch.FloatStorage'), '0', 'cpu', 4, 'view')) + b'Q')
            )
        ),
    )
    yield case(
        'a module',
        legacy(
            checkpoint(
                Code(code(('module', found(pickles.ORDERED), 'source.py', 'import os')) + b'Q')
            )
        ),
    )
    for name, kind in (
        ('file', tarfile.REGTYPE),
        ('link', tarfile.SYMTYPE),
        ('folder', tarfile.DIRTYPE),
    ):
        yield case(f'tar: storages is a {name}', tar(kind))


def tar(kind: bytes) -> bytes:
    """torch's first format, under a first name that looks like a pickle."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w', encoding='latin1') as archive:
        for name, data in (
            ('\x80\x02', b''),
            ('sys_info', program({})),
            ('pickle', program({})),
            ('storages', program(0)),
            ('tensors', program(0)),
        ):
            info = tarfile.TarInfo(name)
            if name == 'storages' and kind != tarfile.REGTYPE:
                info.type, info.linkname = kind, '/etc/passwd'
                archive.addfile(info)
                continue
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def safetensors_cases() -> Iterator[Case]:
    """Safetensors: a length, a JSON header, the bytes."""

    def case(
        name: str, header: Any, body: bytes = WEIGHT, length: int | None = None, **options: Any
    ) -> Case:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        data = struct.pack('<Q', len(text) if length is None else length) + text + body
        return Case('safetensors', name, bytes_of(data), **options)

    def entry(start: int = 0, end: int = 16, shape: Any = (4,), dtype: str = 'F32') -> dict:
        return dict(dtype=dtype, shape=list(shape), data_offsets=[start, end])

    good = entry()
    yield case('good', dict(w=good), right=dict(w=torch.tensor([1.0, 2, 3, 4])))
    for length in (0, 1, 2**20, 10**8, 2**40, 2**63, 2**64 - 1):
        yield case(f'header of {length:,} bytes', dict(w=good), length=length)
    spaces = json.dumps(dict(w=good)).encode() + b' ' * 90_000_000
    yield case('header of 90 MB of spaces', spaces)
    yield case('100,000 deep JSON', b'{"w":' * 100_000 + b'1' + b'}' * 100_000)
    yield case('100,000 deep lists', b'{"w":' + b'[' * 100_000 + b']' * 100_000 + b'}')
    yield case(
        '30,000 tensors of no bytes', {str(i): entry(0, 0, (0,)) for i in range(30_000)}, b''
    )
    for name, odd in (
        ('end beyond', entry(0, 32, (8,))),
        ('start beyond', entry(10**6, 10**6 + 16)),
        ('end before start', entry(16, 0)),
        ('start -1', entry(-1, 15)),
        ('end 2**64', entry(0, 2**64)),
        ('too many elements', entry(0, 16, (5,))),
        ('too few elements', entry(0, 16, (3,))),
        ('shape over 2**64', entry(0, 0, (2**33, 2**33))),
        ('shape -1', entry(0, 16, (-1, -4))),
        ('2**62 x 0', entry(0, 0, (2**62, 0))),
        ('no shape', entry(0, 16, ())),
        ('dtype X', entry(dtype='X')),
        ('dtype BOOL', entry(0, 16, (16,), 'BOOL')),
        ('dtype F64', entry(0, 16, (4,), 'F64')),
        ('dtype F8_E4M3', entry(0, 16, (16,), 'F8_E4M3')),
        ('dtype C64', entry(0, 16, (2,), 'C64')),
        ('dtype F4', entry(0, 16, (32,), 'F4')),
        ('F6_E2M3', entry(0, 12, (16,), 'F6_E2M3')),
    ):
        yield case(name, dict(w=odd))
    yield case('overlap', dict(a=good, b=good), must_refuse=True)
    yield case('overlap by half', dict(a=good, b=entry(8, 16, (2,))), must_refuse=True)
    yield case('a hole', dict(a=entry(0, 4, (1,)), b=entry(8, 16, (2,))), must_refuse=True)
    yield case('a tensor twice', b'{"w":%b,"w":%b}' % ((json.dumps(good).encode(),) * 2))
    yield case('bytes left over', dict(w=good), WEIGHT * 2, must_refuse=True)
    yield case('bytes missing', dict(w=good), WEIGHT[:9], must_refuse=True)
    yield case('metadata of numbers', dict(__metadata__=dict(a=1), w=good))
    yield case('metadata of 1 MB', dict(__metadata__=dict(a='x' * 2**20), w=good))
    yield case('not JSON', b'{w: 1}')
    yield case('not UTF-8', b'{"\xff": 1}')
    yield case('a list', b'[1]')
    yield case('an odd name', {'../../x\x1b[2J\n': good})
    yield case('no entry', {}, b'')


def file_cases() -> Iterator[Case]:
    """What else is taken for a checkpoint."""

    def case(name: str, data: bytes) -> Case:
        return Case('another kind of file', name, bytes_of(data))

    yield Case('another kind of file', 'none', lambda path: None)
    yield Case('another kind of file', 'a folder', lambda path: path.mkdir())
    yield Case('another kind of file', 'a dangling link', lambda path: path.symlink_to('nowhere'))
    yield Case('another kind of file', 'a link to itself', lambda path: path.symlink_to(path))
    yield Case('another kind of file', '1 TB of zeros', write_sparse(b''))
    yield Case('another kind of file', '1 TB after a pickle', write_sparse(b'\x80\x02'))
    yield Case('another kind of file', '1 TB after PK', write_sparse(b'PK\3\4'))
    yield Case(
        'another kind of file',
        '256 MiB after a brace',
        write_sparse(struct.pack('<Q', 2**27) + b'{', 2**28),
    )
    yield case('empty', b'')
    for size in (1, 2, 7, 8, 9, 10):
        yield case(f'{size} zeros', bytes(size))
    yield case('a web page', b'<!DOCTYPE html><html><body>quota exceeded</body></html>')
    yield case(
        'an LFS pointer', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'
    )
    yield case('gzip', b'\x1f\x8b\x08' + bytes(100))
    yield case('HDF5', b'\x89HDF\r\n\x1a\n' + bytes(1000))
    yield case('NumPy', b'\x93NUMPY\x01\x00v\x00' + bytes(200))
    stream = io.BytesIO()
    np.savez(stream, a=np.array([{}], object), b=np.arange(3))
    yield case('NumPy npz of objects', stream.getvalue())
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.zeros(1, 1)), stream)
    yield case('TorchScript', stream.getvalue())
    stream = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(1, 1), (torch.zeros(1, 1),)), stream)
    yield case('torch.export', stream.getvalue())
    yield case('seeded noise', random.Random(0).randbytes(10_000))


def write_sparse(start: bytes, size: int = 2**40) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open('wb') as file:
            file.write(start)
            file.truncate(size)

    return write


# -- real checkpoints ----------------------------------------------------------------------------


class Toy(BaseModel):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))

    def forward(self, inputs: Tensor, mode: str = 'loss') -> dict[str, Tensor]:
        return dict(loss=self.layers(torch.stack(list(inputs))).square().mean())


def train(folder: Path) -> tuple[str, str]:
    """A real run of MMEngine, which writes a checkpoint after every epoch."""
    Runner(
        Toy(),
        str(folder),
        train_dataloader=dict(
            dataset=[dict(inputs=torch.tensor([i / 8, 1.0])) for i in range(8)],
            batch_size=2,
            sampler=dict(type='DefaultSampler'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, end=4, by_epoch=False),
            dict(type='CosineAnnealingLR', T_max=4),
            dict(type='MultiStepLR', milestones=[1]),
            dict(type='OneCycleLR', eta_max=0.1, total_steps=16, by_epoch=False),
        ],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='EMAHook')],
        cfg=Config(dict(model=dict(type='Toy'))),
        experiment_name='campaign',
        log_level='ERROR',
    ).train()
    return HELD, ''


def sample() -> dict[str, Any]:
    """Everything that checkpoints hold."""
    return dict(
        weight=torch.arange(6.0).view(2, 3),
        half=torch.ones(2).bfloat16(),
        view=torch.arange(12).view(3, 4).t(),
        parameter=nn.Parameter(torch.ones(2)),
        sparse=torch.eye(3).to_sparse(),
        empty=torch.zeros(0, 4),
        scalar=torch.tensor(2.5),
        expanded=torch.ones(1).expand(5),
        bool=torch.tensor([True, False]),
        complex=torch.ones(2, dtype=torch.complex64),
        shape=torch.Size([2, 3]),
        dtype=torch.float16,
        device=torch.device('cpu'),
        lr=np.float64(1e-3),
        count=np.int32(4),
        flag=np.bool_(True),
        array=np.arange(6).reshape(2, 3),
        fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        none=np.zeros((0, 3)),
        bytes=b'\xff\x00',
        text='é\ud800',
        history=HistoryBuffer([1.0, 3.0], [1, 1]),
        cfg=ConfigDict(model=dict(type='PerA', crops=[2, 8])),
        seen={'a', 'b'},
        milestones=Counter({4: 1}),
        ordered=OrderedDict(a=1),
        big=2**70,
        nothing=None,
        pair=(1, [2.0, 'x']),
        infinite=float('inf'),
    )


def real_cases(file: Path) -> Iterator[Case]:
    """Checkpoints that must come back with the right values, or are damaged."""
    right = torch.load(file, weights_only=False)
    for is_zip in (True, False):
        form = 'zip' if is_zip else 'legacy'
        yield Case(
            'real checkpoint',
            f"MMEngine's, {form}",
            bytes_of(file.read_bytes() if is_zip else saved(right, False)),
            right=right,
        )
        for name, value in sample().items():
            yield Case(
                'real checkpoint',
                f'{name}, {form}',
                bytes_of(saved(dict(a=value), is_zip)),
                right=dict(a=value),
            )
        plain = dict(
            state_dict=dict(weight=torch.tensor([1.0, 2, 3, 4])), meta=dict(epoch=1), x=None
        )
        assembled = (
            zipped(checkpoint(code(None)))
            if is_zip
            else legacy(legacy_storages(checkpoint(code(None))))
        )
        yield Case('real checkpoint', f'assembled, {form}', bytes_of(assembled), right=plain)


def odd_cases() -> Iterator[Case]:
    """Plain data that is not what a model is loaded from."""
    vit = {'cls_token': torch.ones(1, 1, 8), 'pos_embed': torch.ones(1, 5, 8)}
    for name, value in (
        ('keys that are numbers', {1: torch.ones(1)}),
        ('keys of all kinds', {None: 1, 'a': 2, 3: 4}),
        ('keys that are bytes', {b'cls_token': torch.ones(1)}),
        ('keys that are tuples', {(1,): 2}),
        ('text for weights', dict(vit, cls_token='x')),
        ('a list for weights', dict(vit, pos_embed=[])),
        ('a tensor for the state dict', torch.ones(3)),
        ('nothing', None),
        ('text', 'x'),
        ('a list', [1, 2]),
        ('an empty dict', {}),
        ('state_dict is a list', dict(state_dict=[1])),
        ('state_dict of state_dict', dict(state_dict=dict(state_dict=vit))),
        ('model is a number', dict(model=5)),
        ('a scalar for cls_token', dict(vit, cls_token=torch.tensor(1.0))),
        ('no width', dict(vit, cls_token=torch.ones(1, 1, 0))),
        ('whole numbers', {key: item.long() for key, item in vit.items()}),
        ('sparse weights', {key: item[0].to_sparse() for key, item in vit.items()}),
        ('meta weights', {key: item[..., :0] for key, item in vit.items()}),
        ('10**6 layers', vit | {f'layers.{10**i}.ln1.weight': torch.ones(8) for i in range(60)}),
        ('layer of 5,000 digits', vit | {f'layers.{"9" * 5000}.ln1.weight': torch.ones(8)}),
        ('a key with an escape sequence', vit | {'layers.0.\x1b[2J\nfine': torch.ones(8)}),
        ('a key of 1 MB', vit | {'x' * 2**20: torch.ones(8)}),
        ('complex weights', {key: item.to(torch.complex64) for key, item in vit.items()}),
        ('NaN weights', {key: item * float('nan') for key, item in vit.items()}),
        ('a position embedding of 1 MB', dict(vit, pos_embed=torch.ones(1, 1, 1))),
    ):
        yield Case('odd contents', name, bytes_of(saved(value)))


def damaged_cases(file: Path, seed: int) -> Iterator[Case]:
    """Cut at CUTS points, with FLIPS seeded bits flipped."""
    rng = random.Random(seed)
    right = torch.load(file, weights_only=False)
    for form, data in (('zip', file.read_bytes()), ('legacy', saved(right, False))):
        for i in range(CUTS // 2):
            cut = len(data) * i // (CUTS // 2) + rng.randrange(32)
            yield Case('cut', f'{form}: at byte {cut}', bytes_of(data[:cut]), must_refuse=True)
        for i in range(FLIPS // 2):
            flipped = bytearray(data)
            bits = [rng.randrange(8 * len(data)) for _ in range(1 + i % 3)]
            for bit in bits:
                flipped[bit // 8] ^= 1 << bit % 8
            yield Case('bits flipped', f'{form}: {bits}', bytes_of(bytes(flipped)))


# -- other readers -------------------------------------------------------------------------------


def with_convert(path: Path) -> Any:
    """tools/weights/convert.py, as the command line calls it."""
    sys.argv = ['convert.py', str(path), str(path.parent / 'out.pth'), '--to', 'pera_mm']
    try:
        runpy.run_path(str(REPOSITORY / 'tools/weights/convert.py'), run_name='__main__')
    except SystemExit as end:
        if isinstance(end.code, str):
            raise UserError(end.code) from None
    finally:
        (path.parent / 'out.pth').unlink(missing_ok=True)
    return {}


def with_pretrained(path: Path) -> Any:
    """A backbone of a downstream task."""
    vit = PerAViT(
        arch=dict(embed_dims=8, num_layers=1, num_heads=1, feedforward_channels=8),
        img_size=16,
        patch_size=8,
    )
    PretrainedBackbone(path)(vit)
    return {}


def with_mmap(path: Path) -> Any:
    """Tensors that stay in the file."""
    return load_checkpoint(path, mmap=True)


def without_location(path: Path) -> Any:
    """Tensors go where the file says."""
    return load_checkpoint(path, map_location=None)


def with_mmengine(path: Path) -> Any:
    """MMEngine's load_from and resume."""
    return CheckpointLoader.load_checkpoint(str(path), map_location='cpu', logger='silent')


def other_readers(cases: list[Case]) -> Iterator[Case]:
    """Some of each kind of case by each other way to read a file."""
    readers = {
        'convert.py': with_convert,
        'PretrainedBackbone': with_pretrained,
        'MMEngine': with_mmengine,
        'mmap': with_mmap,
        'map_location=None': without_location,
    }
    for kind in dict.fromkeys(case.kind for case in cases):
        some = [case for case in cases if case.kind == kind and case.right is None]
        several = some[:: max(len(some) // 6, 1)]
        locations = [case for case in some if 'location' in case.name]
        for name, reader in readers.items():
            for case in locations or several if name == 'map_location=None' else several:
                yield case._replace(kind=f'by {name}', name=f'{kind}: {case.name}', reader=reader)


# -- judgment -----------------------------------------------------------------------------------


class Judge:
    """Load a file in a child process and return the outcome."""

    def __init__(self, folder: Path, marker: Path) -> None:
        self.folder, self.marker = folder, marker
        self.before = _attributes()

    def __call__(self, item: tuple[Case, Path]) -> tuple[str, str]:
        """Outcome and detail."""
        case, path = item
        there = set(self.folder.rglob('*'))
        outcome, detail = self._load(case, path)
        if self.marker.exists():
            return RAN_CODE, detail
        if others := set(self.folder.rglob('*')) - there:
            return WROTE_OUTSIDE, ', '.join(map(str, others))
        if changed := _changes(self.before):
            return 'changed a class', changed
        return outcome, detail

    def _load(self, case: Case, path: Path) -> tuple[str, str]:
        try:
            value = case.reader(path)
        except (ValueError, FileNotFoundError) as error:
            return self._refused(case, path, error)
        except MemoryError:
            raise
        except Exception as error:
            return f'undocumented {type(error).__name__}', str(error)[:300]
        try:
            problem = wrong_in(value)
        except Exception as error:
            problem = 'not data', f'{type(error).__name__}: {error}'
        if problem:
            return problem
        if case.must_refuse:
            return WRONG_VALUES, 'loaded, though numbers are missing'
        if case.right is not None and not same(value, case.right):
            return WRONG_VALUES, 'not what was saved'
        return HELD, ''

    def _refused(self, case: Case, path: Path, error: Exception) -> tuple[str, str]:
        text = str(error)
        if type(error) not in (UserError, MissingFileError):
            return f'undocumented {type(error).__name__}', text
        if case.right is not None:
            return 'refused a good file', text
        if "can't allocate" in text or 'MemoryError' in text:
            return MEMORY, text
        if len(text) > 2000 or not text.isprintable():
            return 'not one clean line', repr(text)
        return (REFUSED, text) if path.name in text else ('does not name the file', text)


def _attributes() -> dict[str, dict[str, int]]:
    """What the classes and functions of a checkpoint consist of."""
    objects: list[Any] = [
        HistoryBuffer,
        schedulers.OneCycleParamScheduler,
        ConfigDict,
        OrderedDict,
        Counter,
        torch.Size,
        Tensor,
        nn.Parameter,
        torch.UntypedStorage,
        torch.serialization._get_layout,
        loading,
    ]
    objects += [
        getattr(torch._utils, name) for name in dir(torch._utils) if name.startswith('_rebuild')
    ]
    found = {
        repr(item): {name: id(value) for name, value in vars(item).items()} for item in objects
    }
    found['statistics'] = {name: id(m) for name, m in HistoryBuffer._statistics_methods.items()}
    found['safe globals'] = {str(item): 0 for item in torch.serialization.get_safe_globals()}
    return found


IGNORED = {'__abstractmethods__', '_abc_impl', '__doc__', '__slotnames__'}


def _changes(before: dict[str, dict[str, int]]) -> str:
    for name, after in _attributes().items():
        # A history that is made enters its own four methods.
        if name == 'statistics':
            if set(after.values()) - METHODS:
                return name
            continue
        if changed := {key for key, _ in after.items() ^ before[name].items()} - IGNORED:
            return f'{name}: {sorted(changed)}'
    return ''


PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    bytearray,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.UntypedStorage,
    torch.storage.TypedStorage,
)


def wrong_in(value: Any) -> tuple[str, str] | None:
    """The first thing in a loaded value that is not data, or not whole."""
    stack, seen = [value], set()
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            if problem := wrong_tensor(item):
                return problem
            stack += [vars(item)] if vars(item) else []
        elif isinstance(item, (np.ndarray, np.generic)):
            if has_objects(item.dtype):
                return 'array of objects', str(item.dtype)
            item.tobytes()
        elif isinstance(item, np.dtype):
            if has_objects(item):
                return 'array of objects', f'dtype {item}'
        elif isinstance(item, PLAIN):
            if type(item) not in PLAIN:
                return 'not data', repr(type(item))
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack += list(item)
        elif type(item) in (dict, OrderedDict, Counter, ConfigDict):
            stack += [*item.keys(), *dict.values(item), *getattr(item, '__dict__', {}).values()]
        elif type(item) in (HistoryBuffer, schedulers.OneCycleParamScheduler):
            stack.append(vars(item))
        elif id(item) not in METHODS:
            # A class or a function that is merely mentioned runs nothing, and yet is not data.
            return 'not data', repr(item)[:200]
    return None


def wrong_tensor(item: Tensor) -> tuple[str, str] | None:
    if item.is_nested or item.layout != torch.strided:
        if item.numel() < 10**6:
            item.to_dense() if item.layout != torch.strided else item.unbind()
        return None
    if item.device.type == 'meta':
        return None
    reach = sum((size - 1) * stride for size, stride in zip(item.shape, item.stride()))
    end = (item.storage_offset() + reach + 1) * item.element_size()
    if item.numel() and not 0 < end <= item.untyped_storage().nbytes():
        return 'tensor beyond its storage', f'{tuple(item.shape)} ends at byte {end}'
    if item.numel() < 10**7 and not item.is_quantized:
        item.clone()
    return None


def has_objects(dtype: np.dtype) -> bool:
    if dtype.subdtype:
        return has_objects(dtype.subdtype[0])
    fields = (dtype.fields or {}).values()
    metadata = (dtype.metadata or {}).values()
    return (
        dtype.kind == 'O'
        or dtype.hasobject
        or any(has_objects(field[0]) for field in fields)
        or any(isinstance(item, np.dtype) and has_objects(item) for item in metadata)
    )


def same(one: Any, other: Any) -> bool:
    """Whether two loaded values are the same, to the bit and the type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        if one.layout != torch.strided:
            one, other = one.to_dense(), other.to_dense()
        return (
            one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
        )
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and (one == other).all().item()
    if isinstance(one, Mapping):
        other = {key: value for key, value in other.items() if id(value) not in METHODS}
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, HistoryBuffer):
        return same(one.data, other.data) and one.max_length == other.max_length
    return bool(one == other)


def cases(folder: Path, seed: int) -> Iterator[Result]:
    """All results of this part."""
    torch.set_num_threads(1)  # forked children have no other threads
    real, files, marker = folder / 'real', folder / 'files', folder / 'marker'
    [(_, outcome, detail)] = in_children(train, [real], Limits(120, 4096 * MIB))
    yield Result('real run', 'train', outcome, detail)
    if outcome != HELD:
        return
    weights = real / 'epoch_1.pth'
    every = [
        *real_cases(weights),
        *pickle_cases(str(marker)),
        *zip_cases(),
        *legacy_cases(),
        *safetensors_cases(),
        *file_cases(),
        *odd_cases(),
        *damaged_cases(weights, seed),
    ]
    judge = Judge(folder, marker)
    every += other_readers(every)
    for start in range(0, len(every), BATCH):
        items = [
            (case, files / str(i) / 'weights.pth')
            for i, case in enumerate(every[start : start + BATCH])
        ]
        for case, path in items:
            path.parent.mkdir(parents=True)
            case.write(path)
        for (case, _), outcome, detail in in_children(judge, items, LIMITS, BATCH):
            if marker.exists():  # also if the child crashed afterwards
                outcome = RAN_CODE
                marker.unlink()
            yield Result(case.kind, case.name, outcome, detail)
        shutil.rmtree(files)
