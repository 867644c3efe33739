"""Hostile archives, for tools/data/prepare.py and for tar shards.

Promised: archives are read in place. Nothing is written outside of the prepared folder; a broken or
hostile archive is a sentence, a broken member is named, and a good one has the right bytes.
"""

import functools
import io
import random
import runpy
import shutil
import stat
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from images import with_gdal, zeros_deflated
from report import HELD, MIB, REFUSED, WRONG_VALUES, WROTE_OUTSIDE, Limits, Result, in_children

from pera_mm.datasets.packed import TarShards
from pera_mm.datasets.reading import UnreadableImage
from pera_mm.prepare.archives import BadFile, list_source
from pera_mm.scenes.drawing import draw_scene

REPOSITORY = Path(__file__).parents[2]
LIMITS = Limits(seconds=20, memory=2304 * MIB)  # a member may have 1 GiB
GOOD = 'UCMerced_LandUse/Images/agricultural/agricultural00.tif'
BATCH = 60
CUTS, FLIPS = 24, 80


@functools.cache
def image() -> bytes:
    return with_gdal(draw_scene('farmland', 1, 256).image.transpose(2, 0, 1), 'GTiff')


class Case(NamedTuple):
    """One archive."""

    kind: str
    name: str
    suffix: str
    data: bytes
    is_summed: bool = True  # whether the good member must come back; a tar has no check sums


# -- zip -----------------------------------------------------------------------------------------


class Member(NamedTuple):
    """The description of a member in a zip, true or not."""

    name: bytes
    packed: bytes
    size: int | None = None  # None: of ``packed``
    method: int = 0
    flags: int = 0
    crc: int | None = None  # None: of ``packed``
    mode: int = stat.S_IFREG | 0o644
    offset: int | None = None  # None: where it lies


def forged_zip(members: list[Member]) -> bytes:
    body, directory = bytearray(), bytearray()
    for member in members:
        size = len(member.packed) if member.size is None else member.size
        crc = zlib.crc32(member.packed) if member.crc is None else member.crc
        common = struct.pack(
            '<HHHHHIIIHH',
            20,
            member.flags,
            member.method,
            0,
            33,
            crc,
            len(member.packed),
            size,
            len(member.name),
            0,
        )
        offset = len(body) if member.offset is None else member.offset
        if member.offset is None:
            body += b'PK\3\4' + common + member.name + member.packed
        directory += (
            b'PK\1\2'
            + struct.pack('<H', 0x314)
            + common
            + struct.pack('<HHHII', 0, 0, 0, member.mode << 16, offset)
            + member.name
        )
    end = struct.pack(
        '<4sHHHHIIH',
        b'PK\5\6',
        0,
        0,
        min(len(members), 65535),
        min(len(members), 65535),
        len(directory),
        len(body),
        0,
    )
    return bytes(body + directory) + end


def bad_names() -> list[str]:
    """Names that lead out of the archive, and names that are only odd."""
    tail = 'agricultural/agricultural01.tif'
    prefixes = [
        '../',
        '../../outside/',
        '/',
        '//',
        '/tmp/',
        'C:/',
        'C:\\',
        'C:',
        '\\',
        '\\\\host\\x\\',
        '..\\',
        'a/../../',
        './',
        'a//b/',
        '~/',
        '$HOME/',
        'CON/',
        'a/./',
        '\u202e',
        'é/',
        '\x1b[2J/',
        'a\nb/',
        ' /',
        '.../',
        '....//',
        '%2e%2e/',
        '\uff0e\uff0e/',
        '-rf /',
        '',
    ]
    names = [prefix + tail for prefix in prefixes]
    odd = [
        'agricultural/../../../outside/agricultural02.tif',
        'agricultural/..',
        '..',
        '.',
        '/',
        'agricultural/agricultural03.tif/',
        'agricultural/agri\0cultural04.tif',
        'agricultural/' + 'a' * 4000 + '.tif',
        'a/' * 5000 + tail,
        'agricultural/.tif',
        'agricultural/CON.tif',
        'agricultural/a:stream.tif',
        'agricultural/a\\b.tif',
        'agricultural/x\ud800.tif',
        'splits/../verification.txt',
        'agricultural/..tif',
        'AGRICULTURAL/AGRICULTURAL00.TIF',
        'agricultural/agricultural00.TIF',
    ]
    return names + odd


def zips(seed: int) -> Iterator[Case]:
    """Zip archives."""

    def case(kind: str, name: str, data: bytes) -> Case:
        return Case(f'zip: {kind}', name, '.zip', data)

    data = image()
    good = Member(GOOD.encode(), data)
    for name in bad_names():
        encoded = name.encode('utf-8', 'surrogatepass')
        yield case('name', repr(name[:60]), forged_zip([good, Member(encoded, data, flags=0x800)]))
    for raw in (b'agricultural/\xff\xfe.tif', b'agricultural/\xc3\x28.tif', b'\xff' * 300, b''):
        for flags in (0, 0x800):
            yield case(
                'name',
                f'{raw[:30]!r}, flags {flags}',
                forged_zip([good, Member(raw, data, flags=flags)]),
            )
    for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK):
        for target in (b'/etc/passwd', b'../../outside', b'agricultural00.tif'):
            yield case(
                'link or device',
                f'{kind:o} {target.decode()}',
                forged_zip(
                    [good, Member(b'agricultural/agricultural01.tif', target, mode=kind | 0o777)]
                ),
            )
    other = b'agricultural/agricultural01.tif'
    for name, members in {
        'a member twice': [good, good],
        'one name, two contents': [good, good._replace(packed=b'x')],
        'names that differ by case': [good, Member(GOOD.upper().encode(), b'x')],
        'a folder and a file of one name': [good, Member(GOOD.encode() + b'/', b'')],
        'a file below a file': [good, Member(GOOD.encode() + b'/x.tif', b'x')],
        'encrypted': [good, Member(other, data, flags=1)],
        'strongly encrypted': [good, Member(other, data, flags=0x41)],
        'patched data': [good, Member(other, data, flags=0x20)],
        'wrong CRC': [good, Member(other, data, crc=1)],
        'size too large': [good, Member(other, data, size=len(data) + 5)],
        'size too small': [good, Member(other, data, size=5)],
        'size 2**32-2': [good, Member(other, data, size=2**32 - 2)],
        'offset past the end': [good, Member(other, data, offset=2**31)],
        'offset in the directory': [good, Member(other, data, offset=len(data) + 300)],
        'an archive in it': [good, Member(b'inner.zip', forged_zip([good]))],
        'an archive in it, hostile': [
            good,
            Member(b'inner.zip', forged_zip([Member(b'../../outside/x.tif', data)])),
        ],
        'empty': [],
        'only a folder': [Member(b'agricultural/', b'')],
    }.items():
        yield case('contents', name, forged_zip(members))
    for method in (1, 6, 8, 9, 10, 12, 14, 20, 93, 95, 97, 98, 99, 65535):
        yield case(
            'compression',
            f'method {method} of noise',
            forged_zip([good, Member(other, random.Random(method).randbytes(3000), 9000, method)]),
        )
    # LZMA's head: version, length and its properties, of which the size of the dictionary.
    lzma_head = struct.pack('<BBHBI', 9, 20, 5, 93, 2**32 - 1)
    yield case(
        'bomb',
        'LZMA with a dictionary of 4 GiB',
        forged_zip([good, Member(other, lzma_head + bytes(3000), 9000, 14)]),
    )
    for gib in (0.5, 1.5, 4.0):
        packed = zeros_deflated(gib)
        packed = packed.removeprefix(packed[:2])[:-4]  # without zlib's own head and check sum
        size = min(int(gib * 2**30), 2**32 - 2)
        yield case(
            'bomb', f'deflate of {gib} GiB', forged_zip([good, Member(other, packed, size, 8)])
        )
        yield case(
            'bomb',
            f'deflate of {gib} GiB that says 10 bytes',
            forged_zip([good, Member(other, packed, 10, 8, crc=zlib.crc32(bytes(10)))]),
        )
    yield case(
        'bomb',
        '20,000 members',
        forged_zip([good, *(Member(b'agricultural/%d.tif' % i, b'') for i in range(20_000))]),
    )
    packed = zeros_deflated(0.1)
    packed = packed.removeprefix(packed[:2])[:-4]
    first = Member(b'agricultural/a.tif', packed, 107_374_182, 8)
    yield case(
        'bomb',
        '2,000 members in the same bytes',
        forged_zip(
            [
                first,
                *(first._replace(name=b'agricultural/%d.tif' % i, offset=0) for i in range(2000)),
            ]
        ),
    )
    yield case(
        'bomb',
        'names of 60,000 letters',
        forged_zip([good, *(Member(b'%05d' % i * 12_000, b'') for i in range(300))]),
    )
    whole = forged_zip([good, Member(other, data)])
    yield from damaged('zip', '.zip', whole, seed)


# -- tar -----------------------------------------------------------------------------------------


def header(
    name: bytes,
    size: bytes | int = 0,
    kind: bytes = b'0',
    link: bytes = b'',
    magic: bytes = b'ustar\x0000',
    prefix: bytes = b'',
) -> bytes:
    """A tar header with a right check sum, whatever it says."""
    field = b'%011o\0' % size if isinstance(size, int) else size.ljust(12, b'\0')
    block = bytearray(512)
    for start, value in (
        (0, name[:100]),
        (100, b'0000644\0'),
        (124, field[:12]),
        (136, b'0' * 11),
        (148, b' ' * 8),
        (156, kind),
        (157, link[:100]),
        (257, magic),
        (345, prefix[:155]),
    ):
        block[start : start + len(value)] = value
    block[148:156] = b'%06o\0 ' % sum(block)
    return bytes(block)


def stored(name: bytes, data: bytes, **fields: Any) -> bytes:
    """A member: header, bytes, filling."""
    fields.setdefault('size', len(data))
    return header(name, **fields) + data + bytes(-len(data) % 512)


def pax(**records: str | bytes) -> bytes:
    """A PAX header for the next member."""
    text = b''
    for key, value in records.items():
        raw = value.encode('utf-8', 'surrogatepass') if isinstance(value, str) else value
        body = b' ' + key.replace('__', '.').encode() + b'=' + raw + b'\n'
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        text += str(length).encode() + body
    return stored(b'PaxHeaders/x', text, kind=b'x')


def tars(seed: int) -> Iterator[Case]:
    """Tar archives, which are also shards."""
    end = bytes(1024)
    data = image()
    good = stored(GOOD.encode(), data)
    other = b'agricultural/agricultural01.tif'

    def case(kind: str, name: str, *parts: bytes) -> Case:
        return Case(f'tar: {kind}', name, '.tar', good + b''.join(parts) + end)

    for name in bad_names():
        raw = name.encode('utf-8', 'surrogatepass')
        yield case('name', f'short {name[:60]!r}', stored(raw, data))
        yield case('name', f'PAX {name[:60]!r}', pax(path=name), stored(other, data))
        yield case(
            'name',
            f'GNU {name[:60]!r}',
            stored(b'././@LongLink', raw + b'\0', kind=b'L'),
            stored(other, data),
        )
    yield case('name', 'not UTF-8', stored(b'agricultural/\xff\xfe.tif', data))
    yield case('name', 'PAX not UTF-8', pax(path=b'agricultural/\xff\xfe.tif'), stored(other, data))
    yield case('name', 'prefix ..', stored(b'x.tif', data, prefix=b'../../outside'))
    yield case('name', 'empty', stored(b'', data))
    for kind in (
        b'1',
        b'2',
        b'3',
        b'4',
        b'5',
        b'6',
        b'7',
        b'8',
        b'D',
        b'M',
        b'N',
        b'S',
        b'V',
        b'X',
        b'g',
        b'K',
        b'A',
        b'\xff',
        b'\0',
    ):
        for link in (b'/etc/passwd', b'../../outside/x', GOOD.encode()):
            yield case(
                'link or device',
                f'{kind!r} to {link[:20].decode()}',
                header(other, kind=kind, link=link),
            )
        yield case(
            'link or device', f'{kind!r} with bytes', stored(other, data, kind=kind, link=b'x')
        )
    yield case(
        'link or device',
        'a link, then a file through it',
        header(b'agricultural', kind=b'2', link=b'../../outside'),
        stored(other, data),
    )
    yield case(
        'link or device',
        'PAX linkpath',
        pax(linkpath='../../outside/x'),
        header(other, kind=b'2', link=b'x'),
    )
    sizes: dict[str, bytes] = {
        'negative in binary': b'\xff' * 12,
        'negative, small': b'\xff' * 11 + b'\x00',
        'huge in binary': b'\x80' + b'\x7f' * 11,
        '2**63 in binary': b'\x80\0\0\0' + struct.pack('>Q', 2**63),
        '2**62 in binary': b'\x80\0\0\0' + struct.pack('>Q', 2**62),
        '8 GiB in binary': b'\x80\0\0\0' + struct.pack('>Q', 2**33),
        'octal 77777777777': b'7' * 11,
        'octal -1': b'-0000000001',
        'letters': b'abc',
        'nine': b'00000000999',
        'empty': b'',
        'spaces': b' ' * 11,
        'plus': b'+1',
    }
    for name, size in sizes.items():
        for kind in (b'0', b'x', b'L', b'g', b'S', b'K', b'1', b'5'):
            yield case('size', f'{name}, type {kind.decode()}', header(other, size, kind), data)
    for value in (
        '-1',
        '-512',
        '-1024',
        '-100000',
        '0',
        '1',
        '99999999999999999999',
        '9' * 5000,
        'x',
        '',
        '1.5',
        '1e3',
        '0x10',
        ' 5',
        '1_000',
        '\u0665',
        str(2**63),
        str(2**40),
        'inf',
        'nan',
    ):
        yield case('size', f'PAX {value[:20]!r}', pax(size=value), stored(other, data))
        for key in ('mtime', 'uid', 'GNU__sparse__realsize', 'GNU__sparse__size'):
            yield case('PAX', f'{key} {value[:20]!r}', pax(**{key: value}), stored(other, data))
    for name, text in {
        'no length': b'path=x\n',
        'length 0': b'0 path=x\n',
        'length too long': b'999 path=x\n',
        'length -5': b'-5 path=x\n',
        'no equals': b'8 pathx\n',
        'no line feed': b'9 path=xy',
        'length of 5,000 digits': b'9' * 5000 + b' path=x\n',
        'zeros': bytes(600),
        'spaces': b' ' * 600,
        'NUL in a name': b'12 path=a\0b\n',
        'records without end': b'6 a=b\n' * 200_000,
        'hdrcharset': b'23 hdrcharset=BINARYxx\n',
        'charset not known': b'19 hdrcharset=evil\n',
    }.items():
        yield case('PAX', name, stored(b'x', text, kind=b'x'), stored(other, data))
        yield case('PAX', f'global, {name}', stored(b'x', text, kind=b'g'), stored(other, data))
    for sparse in ('1,2,3', '0,1099511627776', '-1,5', 'a,b', '0,1,' * 100_000 + '0,1'):
        yield case(
            'sparse',
            f'0.1 map {sparse[:20]}',
            pax(
                GNU__sparse__map=sparse,
                GNU__sparse__size=str(2**29),
                GNU__sparse__major='0',
                GNU__sparse__minor='1',
                GNU__sparse__name='agricultural/s.tif',
            ),
            stored(other, data),
        )
    for real in (2**29, 2**34, 2**62, -1):
        version = dict(GNU__sparse__major='1', GNU__sparse__minor='0', GNU__sparse__name='a/s.tif')
        for blocks in (
            b'0\n',
            b'1\n0\n5\n',
            b'-1\n',
            b'x\n',
            b'99999999\n',
            b'1\n' + b'9' * 400,
            b'9' * 512,
        ):
            yield case(
                'sparse',
                f'1.0 of {real} bytes, {blocks[:9]!r}',
                pax(GNU__sparse__realsize=str(real), **version),
                stored(other, blocks.ljust(512, b'\0')),
            )
    old = bytearray(header(other, 0, b'S', magic=b'ustar  \0'))
    for offset, number, real in ((0, 0, 2**29), (2**32, 2**32, 2**33 - 1), (2**29, 0, 2**29)):
        old[386:410] = b'%011o\0%011o\0' % (offset, number)
        old[482], old[483:495] = 0, b'%011o\0' % real
        old[148:156] = b' ' * 8
        old[148:156] = b'%06o\0 ' % sum(old)
        yield case('sparse', f'old, {offset} {number} {real}', bytes(old))
    old[482] = 1
    old[148:156] = b' ' * 8
    old[148:156] = b'%06o\0 ' % sum(old)
    more = (b'%011o\0%011o\0' % (0, 0) * 21 + b'\1').ljust(512, b'\0')
    yield case('sparse', 'old, 50,000 more headers', bytes(old), more * 50_000)
    yield case(
        'bomb',
        '100,000 names for one member',
        stored(b'././@LongLink', b'x\0', kind=b'L') * 100_000,
        stored(other, data),
    )
    yield case(
        'bomb', '100,000 PAX headers for one member', pax(path='x') * 100_000, stored(other, data)
    )
    yield case(
        'bomb',
        '2,000 global headers',
        stored(b'x', b'6 a=b\n', kind=b'g') * 2000,
        stored(other, data),
    )
    yield case(
        'bomb', '20,000 members', *(stored(b'agricultural/%d.tif' % i, b'') for i in range(20_000))
    )
    yield case(
        'bomb',
        'a name of 50 MB',
        stored(b'././@LongLink', b'a' * 50_000_000, kind=b'L'),
        stored(other, data),
    )
    yield case('contents', 'a member twice', good)
    yield case('contents', 'one name, two contents', stored(GOOD.encode(), b'x'))
    yield case('contents', 'names that differ by case', stored(GOOD.upper().encode(), b'x'))
    yield case('contents', 'an archive in it', stored(b'inner.tar', good + end))
    yield case('contents', 'an end mark, and more after it', end, stored(other, data))
    yield case('contents', 'wrong check sum', b'x' + stored(other, data)[1:])
    for name, content in {
        'empty': b'',
        'zeros': bytes(10_240),
        'one block': bytes(512),
        'one header': good[:512],
        'noise': random.Random(1).randbytes(10_000),
        'a web page': b'<html>' * 900,
        'gzip': zlib.compress(bytes(10**6)),
        'a zip': forged_zip([Member(GOOD.encode(), data)]),
    }.items():
        for suffix in ('.tar', '.zip'):
            yield Case('another kind of file', f'{name} as {suffix}', suffix, content)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w:gz') as archive:
        info = tarfile.TarInfo(GOOD)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    yield Case('another kind of file', 'gzip as .tar', '.tar', stream.getvalue())
    bomb = zlib.compressobj(9, wbits=31)
    packed = bomb.compress(bytes(2**27)) + bomb.flush()
    yield Case('another kind of file', 'gzip of 16 GiB as .tar', '.tar', packed * 128)
    yield from damaged('tar', '.tar', good + stored(other, data) + end, seed)


def damaged(form: str, suffix: str, whole: bytes, seed: int) -> Iterator[Case]:
    rng = random.Random(f'{seed} {form}')
    is_summed = form == 'zip'
    for i in range(CUTS):
        cut = len(whole) * i // CUTS + rng.randrange(100)
        yield Case(f'{form}: damaged', f'cut at {cut}', suffix, whole[:cut])
        yield Case(
            f'{form}: damaged',
            f'zeros from {cut}',
            suffix,
            whole[:cut] + bytes(len(whole) - cut),
            is_summed,
        )
    places = [i for i in range(len(whole)) if not 1000 < i < len(whole) // 2 - 1000]
    for _ in range(FLIPS):
        data = bytearray(whole)
        for place in rng.sample(places[:1000] + places[-3000:], 3):
            data[place] ^= 1 << rng.randrange(8)
        yield Case(
            f'{form}: damaged', f'bits flipped, {rng.random()}', suffix, bytes(data), is_summed
        )


# -- readers -------------------------------------------------------------------------------------

Reader = Callable[[Path, Path], tuple[str, str]]


def with_list(archive: Path, target: Path) -> tuple[str, str]:
    """list_source, and every member read."""
    try:
        source = list_source(archive)
    except ValueError as error:
        return REFUSED, str(error)
    refused = ''
    for entry in source.entries[:3000]:
        try:
            data = entry.read()
        except BadFile as error:
            refused = str(error)
            continue
        if entry.path.endswith(GOOD) and data not in (image(), b'x'):
            return WRONG_VALUES, entry.path
    return (REFUSED, refused) if refused else (HELD, f'{len(source.entries)} members')


def with_prepare(archive: Path, target: Path) -> tuple[str, str]:
    """tools/data/prepare.py, as the command line calls it."""
    sys.argv = ['prepare.py', 'ucm', str(archive), str(target / 'ucm'), '--partial']
    try:
        runpy.run_path(str(REPOSITORY / 'tools/data/prepare.py'), run_name='__main__')
    except SystemExit as end:
        if isinstance(end.code, str):
            return REFUSED, end.code
    written = target / 'ucm/agricultural/agricultural00.tif'
    if written.exists() and written.read_bytes() not in (image(), b'x'):
        return WRONG_VALUES, str(written)
    return HELD, ''


def with_shards(archive: Path, target: Path) -> tuple[str, str]:
    """Tar shards of a training set."""
    try:
        shards = TarShards(str(archive), str(target / 'index.npy'))
    except ValueError as error:
        return REFUSED, str(error)
    refused = ''
    for i in range(min(len(shards), 3000)):
        name = shards.name(i)
        try:
            data = shards.read(i)
        except UnreadableImage as error:
            refused = str(error)
            continue
        if name.endswith(GOOD) and data not in (image(), b'x'):
            return WRONG_VALUES, name
    return (REFUSED, refused) if refused else (HELD, f'{len(shards)} images')


READERS: dict[str, Reader] = {
    'list_source': with_list,
    'prepare.py': with_prepare,
    'shards': with_shards,
}


class Judge:
    """Read an archive in a child process and return the outcome."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, item: tuple[Case, str]) -> tuple[str, str]:
        """Outcome and detail."""
        case, reader = item
        place = self.folder / 'in/deep/er'
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / 'outside').mkdir(parents=True)
        archive, target = place / f'archive{case.suffix}', place / 'target'
        target.mkdir(parents=True)
        archive.write_bytes(case.data)
        before = self._tree()
        try:
            outcome, detail = READERS[reader](archive, target)
        except MemoryError:
            raise
        except Exception as error:
            outcome, detail = f'undocumented {type(error).__name__}', str(error)
        beside = place / f'archive{case.suffix}.index.npy'  # shards keep their index there
        if others := self._tree() - before - {str(beside)}:
            return WROTE_OUTSIDE, ', '.join(others)
        if outcome == REFUSED:
            lines = detail.split('\n')
            if not all(line.isprintable() and len(line) < 2000 for line in lines):
                return 'not clean lines', repr(detail)
        if outcome == WRONG_VALUES and not case.is_summed:
            return HELD, detail
        return outcome, detail

    def _tree(self) -> set[str]:
        """Everything below the folder, except what lies in the target."""
        target = self.folder / 'in/deep/er/target'
        return {str(path) for path in self.folder.rglob('*') if target not in path.parents}


def cases(folder: Path, seed: int) -> Iterator[Result]:
    """All results of this part."""
    image()
    items = [
        (case, reader)
        for case in (*zips(seed), *tars(seed))
        for reader in READERS
        if reader != 'shards' or case.suffix == '.tar'
    ]
    for (case, reader), outcome, detail in in_children(
        Judge(folder / 'case'), items, LIMITS, BATCH
    ):
        yield Result(case.kind, f'{case.name}, by {reader}', outcome, detail)
