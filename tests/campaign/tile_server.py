"""``rsrsd.py fetch`` against a hostile tile server on 127.0.0.1.

Every mode is tried twice: for three of sixteen tiles, and for all. Promised: an end in bounded
time and memory; exit code 0, or 1 with one sentence; every image whose tiles came well is there,
byte for byte, and no other; nothing is written outside the work folder; no redirect and no
reference in a file is followed; the key is in no file and no message; tables hold no formulas.
"""

import gzip
import random
import re
import socket
import socketserver
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import children
import numpy as np
import pandas as pd
from children import ROOT, Ended, Script
from PIL import Image, PngImagePlugin
from report import HELD, MIB, REFUSED, WRONG_VALUES, WROTE_OUTSIDE, Result
from servers import encode, picture, place_of

from pera_mm.collect.fetch.mercator import ground_resolution

assert children  # it puts tests/collect on the path

KEY = 'K3y-of-the-user'
SECONDS, MEMORY_LIMIT = 60, 1536 * MIB
ZOOM, COLUMN, ROW = 10, 500, 300
SIDE = 4  # 4 x 4 tiles
HOSTILE = ((0, 2), (2, 1), (3, 3))  # of them, where only some are
DATE = 'X-Imagery-Date'
NEVER, RIGHT, ANY = 'never', 'right', 'any'
RESET = None  # instead of bytes: the connection is reset


class Request(NamedTuple):
    """What a mode knows."""

    tile: bytes  # the right PNG
    before: int  # how often this tile was asked for
    canary: str  # address of another server, which nobody may ask
    local: Path  # a PNG of 256 px on this machine, which nobody may read
    path: str


Answer = Callable[[Request], Iterator[bytes | float | None]]  # bytes to send, seconds to wait


class Mode(NamedTuple):
    """A way to do harm."""

    kind: str
    name: str
    answer: Answer
    comes: str  # NEVER, RIGHT (the tile, in the end) or ANY (a valid picture of its own)
    must_stop: bool = False


# Answers ------------------------------------------------------------------------------------------


def http(body: bytes = b'', status: str = '200 OK', *headers: str, length: int | None = None,
         kind: str = 'image/png') -> bytes:
    size = len(body) if length is None else length
    lines = [f'HTTP/1.1 {status}', f'Content-Type: {kind}', f'Content-Length: {size}', *headers]
    return '\r\n'.join(lines).encode('latin-1', 'replace') + b'\r\n\r\n' + body


def sends(*parts: bytes | float | None) -> Answer:
    return lambda request: iter(parts)


def with_status(status: str, *headers: str, body: bytes = b'') -> Answer:
    return sends(http(body, status, *headers))


def first_with_status(status: str, *headers: str) -> Answer:
    """This answer once, then the tile."""
    def answer(request: Request) -> Iterator[bytes]:
        yield http(request.tile) if request.before else http(b'', status, *headers)
    return answer


def with_tile(*headers: str, change: Callable[[bytes], bytes] = lambda tile: tile) -> Answer:
    return lambda request: iter([http(change(request.tile), '200 OK', *headers)])


def with_body(make: Callable[[], bytes], *headers: str) -> Answer:
    return lambda request: iter([http(make(), '200 OK', *headers)])


def redirect(where: str, status: str = '302 Found') -> Answer:
    def answer(request: Request) -> Iterator[bytes]:
        target = where.format(canary=request.canary, local=request.local, path=request.path)
        yield http(b'', status, f'Location: {target}')
    return answer


def document(text: str) -> Answer:
    """A text in which {canary} and {local} stand for what must not be read."""
    def answer(request: Request) -> Iterator[bytes]:
        body = text.replace('{canary}', request.canary).replace('{local}', str(request.local))
        yield http(body.encode())
    return answer


def forever(part: bytes, head: bytes = b'', wait: float = 0.0) -> Answer:
    def answer(request: Request) -> Iterator[bytes | float]:
        yield head
        while True:
            yield part
            yield wait
    return answer


def drip(request: Request) -> Iterator[bytes | float]:
    for byte in http(request.tile):
        yield bytes([byte])
        yield 0.2


def smuggled(request: Request) -> Iterator[bytes | float]:
    """The tile, followed by an answer to a request that was not made yet."""
    yield http(request.tile) + http(encode(255 - picture(0, 0, 0), 'PNG'))
    yield 0.3


def short(request: Request) -> Iterator[bytes]:
    yield http(request.tile[:len(request.tile) // 2], length=len(request.tile))


def reset_in_the_middle(request: Request) -> Iterator[bytes | float | None]:
    yield http(request.tile[:3000], length=len(request.tile))
    yield 0.1
    yield RESET


def chunked(*chunks: bytes) -> bytes:
    return b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n' + b''.join(chunks)


def raw(head: bytes) -> Answer:
    """A head of its own, then the tile."""
    return lambda request: iter([
        head.replace(b'LENGTH', str(len(request.tile)).encode()) + request.tile])


# Files --------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, color: int, data: bytes, *more: bytes) -> bytes:
    head = struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + b''.join(more) + chunk(b'IDAT', data)
            + chunk(b'IEND', b''))


@lru_cache
def zeros(megabytes: int, gzipped: bool = False) -> bytes:
    """Megabytes of zeros, packed a thousand times smaller."""
    packer = zlib.compressobj(9, wbits=31 if gzipped else 15)
    return b''.join([*(packer.compress(bytes(MIB)) for _ in range(megabytes)), packer.flush()])


def inserted(tile: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks after its header."""
    return tile[:33] + b''.join(chunks) + tile[33:]


def huge_png() -> bytes:
    return png(20_000, 20_000, 1, 0, zeros(48))


@lru_cache
def raster(width: int, height: int, dtype: str, count: int = 1, **options: Any) -> bytes:
    """A TIFF without a single written block: kilobytes, whatever its size."""
    from rasterio.io import MemoryFile
    with MemoryFile() as file:
        with file.open(driver='GTiff', width=width, height=height, count=count, dtype=dtype,
                       tiled=True, compress='deflate', sparse_ok=True, **options):
            pass
        return bytes(file.getbuffer())


@lru_cache
def tiff_of_many_bands(bands: int = 16_000) -> bytes:
    """256 px, one strip of 1 GB in 1 MB: every pixel has one sample per band."""
    packer = zlib.compressobj(9)
    strip = b''.join([*(packer.compress(bytes(256 * bands)) for _ in range(256)), packer.flush()])
    entries = [(256, 3, 1, 256), (257, 3, 1, 256), (258, 3, bands, 0), (259, 3, 1, 8),
               (262, 3, 1, 1), (273, 4, 1, 0), (277, 3, 1, bands), (278, 3, 1, 256),
               (279, 4, 1, len(strip)), (284, 3, 1, 1), (338, 3, bands - 1, 0)]
    start = 8 + 2 + 12 * len(entries) + 4
    bits, extra = start, start + 2 * bands
    where = {258: bits, 338: extra, 273: extra + 2 * (bands - 1)}
    table = b''.join(struct.pack('<HHII', tag, kind, count, where.get(tag, value))
                     for tag, kind, count, value in entries)
    return (b'II*\0' + struct.pack('<IH', 8, len(entries)) + table + bytes(4)
            + struct.pack('<H', 8) * bands + bytes(2 * (bands - 1)) + strip)


@lru_cache
def huge_jp2(width: int = 30_000) -> bytes:
    """A small JPEG 2000 whose headers say that it is huge."""
    from rasterio.io import MemoryFile
    with MemoryFile(ext='.jp2') as file:
        with file.open(driver='JP2OpenJPEG', width=256, height=256, count=3, dtype='uint8') as new:
            new.write(picture(0, 0, 0).transpose(2, 0, 1))
        data = bytearray(file.getbuffer())
    box, siz = data.index(b'ihdr') + 4, data.index(b'\xff\x51') + 6
    for place in (box, siz, siz + 16):  # also the size of its only tile
        data[place:place + 8] = struct.pack('>II', width, width)
    return bytes(data)


def huge_gif() -> bytes:
    stream = BytesIO()
    Image.new('P', (256, 256)).save(stream, 'GIF')
    return stream.getvalue()[:6] + struct.pack('<HH', 65_535, 65_535) + stream.getvalue()[10:]


def huge_bmp() -> bytes:
    head = struct.pack('<IiiHHIIiiII', 40, 30_000, 30_000, 1, 8, 1, 8, 0, 0, 256, 0)
    return b'BM' + struct.pack('<IHHI', 54 + 1024 + 8, 0, 0, 54 + 1024) + head + bytes(1032)


def gray16() -> bytes:
    deep = picture(0, 0, 0)[..., 0].astype(np.uint16) * 257
    stream = BytesIO()
    Image.fromarray(deep).save(stream, 'PNG')
    return stream.getvalue()


def exif_bomb(tile: bytes) -> bytes:
    return inserted(tile, chunk(b'eXIf', b'MM\0*\0\0\0\x08' + b'\xff' * 1_000_000))


def icc_bomb(tile: bytes) -> bytes:
    return inserted(tile, chunk(b'iCCP', b'x\0\0' + zeros(1024)))


def text_bomb(tile: bytes) -> bytes:
    return inserted(tile, *[chunk(b'zTXt', b'note\0\0' + zeros(64))] * 16)


def key_as_text(tile: bytes) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text('Comment', KEY)
    stream = BytesIO()
    Image.open(BytesIO(tile)).save(stream, 'PNG', pnginfo=info)
    return stream.getvalue()


def ends_in_zeros(tile: bytes) -> bytes:
    return tile[:len(tile) * 6 // 10] + bytes(len(tile) - len(tile) * 6 // 10)


def as_jpeg_cut(tile: bytes) -> bytes:
    jpeg = encode(np.asarray(Image.open(BytesIO(tile))))
    return jpeg[:len(jpeg) // 2]


VRT = """<VRTDataset rasterXSize="256" rasterYSize="256"><VRTRasterBand dataType="Byte" band="1">
<SimpleSource><SourceFilename relativeToVRT="0">{FILE}</SourceFilename><SourceBand>1</SourceBand>
</SimpleSource></VRTRasterBand></VRTDataset>"""
SVG = ('<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
       'width="256" height="256"><image xlink:href="{FILE}" width="256" height="256"/></svg>')
XXE = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "{FILE}">]><a>&b;</a>'
LAUGHS = ('<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b0 "ha">' + ''.join(
    f'<!ENTITY b{n} "{f"&b{n - 1};" * 10}">' for n in range(1, 12)) + ']><a>&b11;</a>')
WMS = ('<GDAL_WMS><Service name="TMS"><ServerUrl>{canary}/{z}</ServerUrl></Service><DataWindow>'
       '<SizeX>256</SizeX><SizeY>256</SizeY></DataWindow></GDAL_WMS>')
PDS = """PDS_VERSION_ID = PDS3
RECORD_TYPE = FIXED_LENGTH
RECORD_BYTES = 256
^IMAGE = "{local}"
OBJECT = IMAGE
 LINES = 256
 LINE_SAMPLES = 256
 SAMPLE_TYPE = UNSIGNED_INTEGER
 SAMPLE_BITS = 8
END_OBJECT = IMAGE
END
"""
OZI = 'OziExplorer Map Data File Version 2.2\nmap\n{local}\n1 ,Map Code,\nWGS 84,,0,0,WGS 84\n'
EPS = """%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 256 256
%%EndComments
(written.txt) (w) file closefile
({local}) (r) file closefile
showpage
%%EOF
"""
HOSTILE_DATES = {
    'a formula': "=cmd|'/c calc'!A1",
    'a formula after a plus': "+1+cmd|' /C calc'!A0",
    'a formula after an at': "@SUM(1+1)*cmd|' /C calc'!A0",
    'a formula after a tab': '\t=1+1',
    '3,000 characters': '2' * 3000,
    'quotes and commas': '2020","=1+1","',
    'control characters': '2020\x1b[2J\x07\x0b',
    'not ASCII': '2020\xff\xe9\x85',
    'the key': KEY,
}


def group(kind: str, *rows: tuple[str, Answer, str]) -> list[Mode]:
    return [Mode(kind, *row) for row in rows]


def modes() -> list[Mode]:
    found = [
        Mode('status', status, with_status(status, body=f'no {KEY}'.encode()), NEVER)
        for status in ('204 No Content', '400 Bad Request', '401 Unauthorized', '403 Forbidden',
                       '404 Not Found', '410 Gone', '418 Teapot', '500 Oops', '503 Busy',
                       '599 Odd', '999 Odder')]
    found += [
        Mode('Retry-After', f'{status}, {text!r}',
             first_with_status(status, f'Retry-After: {text}'), RIGHT, text in LONG)
        for status in ('429 Too Many', '503 Busy', '404 Not Found')
        for text in ('1', '0.5', 'soon', '-5', 'nan', 'Thu, 01 Jan 1970 00:00:00 GMT',
                     'Mon, 32 Foo 2026 99:99:99 GMT', '\xff\xfe', *LONG)
        if status[:3] == '429' or text in ('1', '-5', LONG[0])]
    found += [
        Mode('redirect', name, redirect(where, status), NEVER) for name, where, status in (
            ('to another host', '{canary}/x.png', '302 Found'),
            ('to another host, 301', '{canary}/x.png', '301 Moved Permanently'),
            ('to another host, 303', '{canary}/x.png', '303 See Other'),
            ('to another host, 307', '{canary}/x.png', '307 Temporary Redirect'),
            ('to another host, 308', '{canary}/x.png', '308 Permanent Redirect'),
            ('to a local file', 'file://{local}', '302 Found'),
            ('to itself', '{path}', '302 Found'),
            ('to nothing', '', '302 Found'))]
    found.append(Mode('redirect', 'Refresh', lambda request: iter([http(
        b'', '200 OK', f'Refresh: 0; url={request.canary}/x.png')]), NEVER))
    found += group(
        'broken answer',
        ('cut short', short, NEVER),
        ('length of 0', lambda request: iter([http(request.tile, length=0)]), NEVER),
        ('length below 0', lambda request: iter([http(request.tile, length=-5)]), NEVER),
        ('length too great', lambda request: iter([http(request.tile, length=1 << 62), 3.0]),
         NEVER),
        ('length is a word', raw(b'HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n'), NEVER),
        ('two lengths', raw(b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: LENGTH'
                            b'\r\n\r\n'), NEVER),
        ('length and chunks', raw(b'HTTP/1.1 200 OK\r\nContent-Length: LENGTH\r\n'
                                  b'Transfer-Encoding: chunked\r\n\r\n'), NEVER),
        ('endless', forever(bytes(1 << 16), http(length=1 << 40)), NEVER),
        ('endless chunks', forever(b'10000\r\n' + bytes(1 << 16) + b'\r\n', chunked()), NEVER),
        ('a chunk of 2^64', sends(chunked(b'ffffffffffffffff\r\n', bytes(100)), 3.0), NEVER),
        ('a chunk that lies', sends(chunked(b'zz\r\nabc\r\n')), NEVER),
        ('a slow drip', drip, NEVER),
        ('a slow drip of headers', forever(b'X-A: b\r\n', b'HTTP/1.1 200 OK\r\n', 0.1), NEVER),
        ('endless 100 Continue', forever(b'HTTP/1.1 100 Continue\r\n\r\n', wait=0.001), NEVER),
        ('other protocol', sends(b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n', 3.0),
         NEVER),
        ('no answer', sends(5.0), NEVER),
        ('closed', sends(), NEVER),
        ('reset', sends(RESET), NEVER),
        ('reset in the middle', reset_in_the_middle, NEVER),
        ('HTTP/0.9', lambda request: iter([request.tile]), NEVER),
        ('garbage', sends(random.Random(0).randbytes(5000)), NEVER),
        ('a garbled status', raw(b'HTTP/1.1 two hundred\r\nContent-Length: LENGTH\r\n\r\n'), NEVER),
        ('a status below 0', raw(b'HTTP/1.1 -20 OK\r\nContent-Length: LENGTH\r\n\r\n'), NEVER),
        ('HTTP/7', raw(b'HTTP/7.3 200 OK\r\nContent-Length: LENGTH\r\n\r\n'), RIGHT),
        ('a status line of 1 MB', sends(b'HTTP/1.1 200 ' + b'x' * MIB + b'\r\n\r\n'), NEVER),
        ('headers of 100 KB', with_tile('X-Long: ' + 'x' * 100_000), RIGHT),
        ('5,000 headers', with_tile(*[f'X-{n}: y' for n in range(5000)]), RIGHT),
        ('endless headers', forever(b'X-A: ' + b'b' * 4096 + b'\r\n', b'HTTP/1.1 200 OK\r\n'),
         NEVER),
        ('a header without a colon', with_tile('nonsense'), RIGHT),
        ('a header with a NUL', with_tile('X-A: \0'), RIGHT),
        ('a folded header', with_tile('X-A: b\r\n c'), RIGHT),
        ('doubled headers', with_tile('Content-Type: text/html', 'Content-Encoding: identity',
                                      'Content-Encoding: identity'), RIGHT),
        ('keeps alive, closes', with_tile('Connection: keep-alive'), RIGHT),
        ('a second answer after the tile', smuggled, RIGHT))
    found += group(
        'encoding',
        ('gzip bomb', with_body(partial(zeros, 1024, True), 'Content-Encoding: gzip'), NEVER),
        ('deflate bomb', with_body(partial(zeros, 1024), 'Content-Encoding: deflate'), NEVER),
        ('gzip in gzip', with_body(lambda: gzip.compress(zeros(1024, True)),
                                   'Content-Encoding: gzip, gzip'), NEVER),
        ('200 times gzip', with_body(lambda: bytes(100),
                                     'Content-Encoding: ' + 'gzip, ' * 199 + 'gzip'), NEVER),
        ('gzip, truly', with_tile('Content-Encoding: gzip', change=gzip.compress), RIGHT),
        ('gzip, a lie', with_tile('Content-Encoding: gzip'), NEVER),
        ('gzip, cut', with_tile('Content-Encoding: gzip',
                                change=lambda tile: gzip.compress(tile)[:-3000]), NEVER),
        ('br, a lie', with_tile('Content-Encoding: br'), RIGHT),
        ('an unknown one', with_tile('Content-Encoding: rot13'), RIGHT))
    found += [Mode('not a tile', name, answer, NEVER) for name, answer in (
        ('HTML', with_body(lambda: f'<html>{KEY}</html>'.encode())),
        ('JSON', with_body(lambda: f'{{"error": "{KEY}"}}'.encode())),
        ('XML of entities', document(LAUGHS)),
        ('empty', with_body(bytes)),
        ('a type that is the key', lambda request: iter([
            http(b'{}', kind=f'{KEY}/{KEY}')])),
        ('257 px', with_body(lambda: encode(picture(0, 0, 0, 257), 'PNG'))),
        ('1 px', with_body(lambda: encode(picture(0, 0, 0, 1), 'PNG'))),
        ('16 bits', with_body(gray16)),
        ('PNG that ends in zeros', with_tile(change=ends_in_zeros)),
        ('PNG cut', with_tile(change=lambda tile: tile[:-9000])),
        ('half a JPEG', with_tile(change=as_jpeg_cut)),
        ('a byte of PNG changed', with_tile(
            change=lambda tile: tile[:9000] + bytes([tile[9000] ^ 1]) + tile[9001:])))]
    found += group(
        'bomb',
        ('PNG, 20,000 px', with_body(huge_png), NEVER),
        ('PNG, 10^9 px wide', with_body(lambda: png(10**9, 10**9, 8, 2, zeros(1))), NEVER),
        ('PNG, 256 px, 1 GB of data', with_body(lambda: png(256, 256, 8, 2, zeros(1024))), ANY),
        ('TIFF, float64, 20,000 px', with_body(partial(raster, 20_000, 20_000, 'float64')), NEVER),
        ('TIFF, float64, 13,000 px, 3 bands', with_body(
            partial(raster, 13_000, 13_000, 'float64', 3)), NEVER),
        ('TIFF, 256 px, 16,000 bands', with_body(tiff_of_many_bands), NEVER),
        ('TIFF, 256 px, 30,000 bands, sparse', with_body(
            partial(raster, 256, 256, 'uint8', 30_000, interleave='pixel')), ANY),
        ('JPEG 2000, 30,000 px', with_body(huge_jp2), NEVER),
        ('JPEG 2000, 13,000 px', with_body(partial(huge_jp2, 13_000)), NEVER),
        ('GIF, 65,535 px', with_body(huge_gif), NEVER),
        ('BMP, 30,000 px', with_body(huge_bmp), NEVER),
        ('ICC profile of 1 GB', with_tile(change=icc_bomb), RIGHT),
        ('text of 1 GB', with_tile(change=text_bomb), RIGHT),
        ('EXIF of 1 MB', with_tile(change=exif_bomb), RIGHT))
    found += [Mode('reference', f'{name} to {what}', document(form.replace('{FILE}', file)), NEVER)
              for name, form in (('VRT', VRT), ('SVG', SVG), ('XML entity', XXE),
                                 ('VRT after a BOM', '\ufeff' + VRT),
                                 ('VRT after a NUL', '\0' + VRT))
              for what, file in (('a file', '{local}'), ('a server', '/vsicurl/{canary}/x.png'))]
    found += [Mode('reference', name, document(form), NEVER) for name, form in (
        ('GDAL WMS', WMS), ('PDS label', PDS), ('OziExplorer map', OZI), ('EPS', EPS))]
    found += [Mode('header', f'date: {name}', with_tile(f'{DATE}: {text}'), RIGHT)
              for name, text in HOSTILE_DATES.items()]
    found += group(
        'header',
        ('date with a line break', with_tile(f'{DATE}: 2020\r\n =1+1'), RIGHT),
        ('1,000 dates', with_tile(*[f'{DATE}: =1+1'] * 1000), RIGHT),
        ('cookies', with_tile(*[f'Set-Cookie: a{n}={"b" * 4000}; Domain=.1' for n in range(20)]),
         RIGHT),
        ('the key in the reason', with_status(f'403 {KEY}'), NEVER),
        ('the key in a broken status line', sends(f'{KEY} {KEY} {KEY}\r\n\r\n'.encode()), NEVER),
        ('the key in a broken header', raw(f'HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n'.encode()), NEVER),
        ('the key in the picture', with_tile(change=key_as_text), RIGHT))
    return found


LONG = ('99999999999999999999', '9' * 400, 'Fri, 31 Dec 9999 23:59:59 GMT')


# The servers --------------------------------------------------------------------------------------


class Local(socketserver.ThreadingTCPServer):
    """A server of this machine, as a context."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(('127.0.0.1', 0), handler)
        self.over = threading.Event()
        self.fault: BaseException | None = None  # of this file, not of the client
        self.url = f'http://127.0.0.1:{self.server_address[1]}'

    def __enter__(self) -> Any:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Keep silent about a client that has gone."""
        if not isinstance(error := sys.exc_info()[1], OSError):
            self.fault = error


class Server(Local):
    """Answers tiles of ``hostile`` by the mode, the others well.

    Args:
        mode: None: all well.
        hostile: Whether a tile's column and row in the square of tiles is.
        canary, local: As in :class:`Request`.
    """

    def __init__(self, mode: Mode | None, hostile: Callable[[tuple[int, int]], bool],
                 canary: str, local: Path) -> None:
        super().__init__(Handler)
        self.mode, self.hostile, self.canary, self.local = mode, hostile, canary, local
        self.before: dict[tuple[int, int], int] = {}

    def answer(self, path: str) -> Iterator[bytes | float | None]:
        """What is sent for a path."""
        _, column, row = place_of(path.partition('.png')[0])
        place = (column - COLUMN, row - ROW)
        before = self.before.get(place, 0)
        self.before[place] = before + 1
        request = Request(right_tile(column, row), before, self.canary, self.local, path)
        if self.mode is None or not self.hostile(place):
            return iter([http(request.tile, '200 OK', f'{DATE}: 2020-05-01')])
        return self.mode.answer(request)


class Handler(socketserver.StreamRequestHandler):
    server: Server
    timeout = 20

    def handle(self) -> None:
        while (line := self.rfile.readline()) and not self.server.over.is_set():
            while self.rfile.readline().strip():
                pass
            is_good = True
            for part in self.server.answer(line.split()[1].decode()):
                if part is RESET:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                               struct.pack('ii', 1, 0))
                    return
                if isinstance(part, bytes):
                    self.wfile.write(part)
                    is_good = b'\r\nX-Imagery-Date: 2020-05-01\r\n' in part[:200]
                elif self.server.over.wait(part):
                    return
            if not is_good:  # what is well is kept alive
                return


class Canary(Local):
    """Nobody may ask it; it would give a picture."""

    def __init__(self) -> None:
        super().__init__(CanaryHandler)
        self.asked = 0


class CanaryHandler(socketserver.StreamRequestHandler):
    server: Canary

    def handle(self) -> None:
        self.server.asked += 1
        self.wfile.write(http(encode(picture(1, 7, 7), 'PNG')))


@lru_cache
def right_tile(column: int, row: int) -> bytes:
    noise = np.random.default_rng([column, row]).integers(0, 12, (256, 256, 3), dtype=np.uint8)
    return encode(picture(ZOOM, column, row) + noise, 'PNG')


# Cases --------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """A point and the tiles its image is made from."""

    id: str
    lon: float
    lat: float
    tiles: tuple[tuple[int, int], ...]


def places() -> list[Place]:
    """A point in the middle of each tile, and two where four tiles meet."""
    found = [_place(f'p{column}{row}', column + 0.5, row + 0.5, ((column, row),))
             for column in range(SIDE) for row in range(SIDE)]
    for column, row in ((1, 1), (2, 3)):
        tiles = tuple((column - a, row - b) for a in (1, 0) for b in (1, 0))
        found.append(_place(f'c{column}{row}', column, row, tiles))
    return found


def _place(name: str, column: float, row: float, tiles: tuple[tuple[int, int], ...]) -> Place:
    share = (ROW + row) / 2**ZOOM
    lat = float(np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * share)))))
    return Place(name, 360 * (COLUMN + column) / 2**ZOOM - 180, lat, tiles)


class Case(NamedTuple):
    """What a run of ``fetch`` left."""

    ended: Ended
    work: Path
    strays: list[str]  # files outside of the work folder
    asked: int  # by the canary


def fetch(folder: Path, mode: Mode | None, hostile: Callable[[tuple[int, int]], bool]) -> Case:
    """The tool, in folders of its own, against a server of its own."""
    work = folder / 'work'
    for name in ('work', 'home', 'tmp', 'here'):
        (folder / name).mkdir(parents=True)
    points = [(place.id, place.lon, place.lat,
               0.99 * float(ground_resolution(np.array(place.lat), ZOOM, 256)))
              for place in places()]
    pd.DataFrame(points, columns=['id', 'lon', 'lat', 'gsd']).to_csv(work / 'points.csv',
                                                                    index=False)
    local = folder / 'local.png'
    local.write_bytes(encode(picture(2, 9, 9), 'PNG'))
    environment = dict(HOME=str(folder / 'home'), TMPDIR=str(folder / 'tmp'), MY_TILE_KEY=KEY,
                       XDG_CACHE_HOME=str(folder / 'home'))
    with Canary() as canary, Server(mode, hostile, canary.url, local) as server:
        (folder / 'hostile.py').write_text(f"""
_base_ = '{ROOT}/configs/collect/planet.py'
fetch = dict(
    source=dict(url='{server.url}/{{z}}/{{x}}/{{y}}.png?key={{key}}', key_env='MY_TILE_KEY',
                zooms=({ZOOM}, {ZOOM}), date_header='{DATE}', rate=1000.),
    size=64, format='png', concurrency=4, retries=2, timeout=1., backoff=0.05)
""")
        script = Script('data/rsrsd.py', [
            'fetch', str(folder / 'hostile.py'), '--work-dir', str(work), '--accept-terms',
            'drawn planet'], folder / 'here', environment)
        ended = script.wait(SECONDS, MEMORY_LIMIT)
        if server.fault:
            raise server.fault
    known = {local, folder / 'hostile.py', folder / 'here/said.txt'}
    strays = [str(path) for path in folder.rglob('*')
              if path.is_file() and path not in known and not path.is_relative_to(work)]
    return Case(ended, work, strays, canary.asked)


def judge(case: Case, mode: Mode, hostile: Callable[[tuple[int, int]], bool],
          right: dict[str, bytes]) -> tuple[str, str]:
    """An outcome and what there is to say."""
    ended = case.ended
    detail = f'{ended.seconds:.1f} s, {ended.memory / MIB:,.0f} MiB; exit {ended.code}: ' \
             f'{ended.last_line()[:200]}'
    if fault := ended.fault():
        return fault, detail
    if case.asked:
        return 'followed', f'{case.asked} requests to the other server; {detail}'
    if case.strays:
        return WROTE_OUTSIDE, f'{case.strays[:3]}; {detail}'
    if leaks := [path.name for path in case.work.rglob('*')
                 if path.is_file() and KEY.encode() in path.read_bytes()] or (
                     ['the terminal'] if KEY in ended.said else []):
        return 'showed the key', f'in {leaks[:4]}; {detail}'
    found = {path.stem: path.read_bytes() for path in (case.work / 'tiles').rglob('*.png')}
    touched = {place.id for place in places() if any(map(hostile, place.tiles))}
    wrong = [name for name in found if name in touched and mode.comes == NEVER or (
        found[name] != right[name] and (name not in touched or mode.comes != ANY))]
    if wrong:
        return WRONG_VALUES, f'images {wrong[:5]} are not the right ones; {detail}'
    lost = set(right) - touched - set(found)
    if ended.code == 0:
        return (WRONG_VALUES, f'{sorted(lost)} are missing; {detail}') if lost else \
            _judge_tables(case.work, set(found), detail)
    sentence = ended.last_line()
    if ended.code != 1 or not sentence.startswith('rsrsd: '):
        return 'no sentence', detail
    if lost and not mode.must_stop and len(touched) < len(right):
        return 'stopped too early', detail
    return REFUSED, detail


def _judge_tables(work: Path, found: set[str], detail: str) -> tuple[str, str]:
    tables = {name: pd.read_csv(work / f'{name}.csv', dtype=str, keep_default_na=False)
              for name in ('tiles', 'missing')}
    listed = [set(table['id']) for table in tables.values()]
    if listed[0] != found or listed[1] != {place.id for place in places()} - found:
        return WRONG_VALUES, f'the tables do not list the files that exist; {detail}'
    for name, column in (('tiles', 'date'), ('missing', 'reason')):
        for cell in tables[name][column]:
            if len(cell) > 200 or not cell.isprintable() or re.match(r'\s*[=+@-]', cell):
                return 'hostile cell', f'{name}.csv, {column}: {cell[:60]!r}; {detail}'
    if not all(tables['missing']['reason']):
        return 'no reason', detail
    return HELD, detail


def some(place: tuple[int, int]) -> bool:
    return place in HOSTILE


def every(place: tuple[int, int]) -> bool:
    return True


def cases(folder: Path, seed: int, quick: bool = False) -> Iterator[Result]:
    """Every mode for some tiles and for all; a tenth of the modes if ``quick``."""
    reference = fetch(folder / 'right', None, every)
    right = {path.stem: path.read_bytes()
             for path in (reference.work / 'tiles').rglob('*.png')}
    assert len(right) == len(places()), reference.ended
    chosen = modes()
    if quick:
        chosen = random.Random(seed).sample(chosen, len(chosen) // 10)
    for mode in chosen:  # bombs are made before any clock starts
        mode.answer(Request(right_tile(COLUMN, ROW), 0, '', folder, '/'))

    def one(number: int, mode: Mode) -> list[Result]:
        results = []
        for hostile in (some, every):
            case = fetch(folder / f'{number:03d}-{hostile.__name__}', mode, hostile)
            outcome, detail = judge(case, mode, hostile, right)
            results.append(Result(mode.kind, f'{mode.name}, {hostile.__name__} tiles', outcome,
                                  detail))
        return results

    with ThreadPoolExecutor(3) as threads:  # most of the time is waiting
        for results in threads.map(one, range(len(chosen)), chosen):
            yield from results

