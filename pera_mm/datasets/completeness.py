"""A check that an image file is whole: decoders may fill missing parts without an error.

A file can end early. It can also have its right length and zeros from some byte on: a download
into a file of the final size, or a loss of power, leaves such a file. The checks by format, with
the time for a file of 512 x 512 pixels on one core:

* PNG (0.3 ms for 525 kB): the chunks up to IEND, and the CRC of those that hold pixels.
* JPEG (0.06 ms for 165 kB): the segments and scans up to the end marker; not more than 100 scans,
  since each costs a pass over all pixels.
* JPEG 2000 (0.02 ms): the boxes up to the codestream, the length of every tile part in it, and
  the end marker. Compressed data cannot look like that marker.
* WebP (0.01 ms): the RIFF length and the chunks. Their bytes have no check sum. If the last image
  chunk ends in zeros, the decoder must need them: where it succeeds without the last eight, they
  are not part of the picture. A flat picture therefore costs a second decoding.
* TIFF (0.05 ms): the end of the block that lies last in the file: deflate ends in a check sum,
  JPEG in its end marker, LZMA in a mark of its own, WebP as above. For LZW, PackBits, ZSTD and
  LERC, GDAL refuses what it cannot decode.
* GIF: Pillow refuses it.

These cannot be detected: zeros in BMP and in TIFF without compression, where they are black
pixels; zeros in the internal mask of a TIFF; and some zeros that replace less than the last 70
bytes of a WebP picture, or the last few of TIFF's LZW and PackBits, which have no check sum.

These are accepted, because they are legal or harmless: bytes after the end, unknown chunks and
boxes, a wrong CRC of a chunk without pixels, a box that extends to the end of the file, boxes with
long lengths, damage in a second picture that is never read.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

PNG = b'\x89PNG\r\n\x1a\n'
JPEG = b'\xff\xd8\xff'
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
JP2 = b'\0\0\0\x0cjP  '
JPEG_2000 = (JP2, b'\xff\x4f\xff\x51')

JPEG_MARKER = re.compile(rb'\xff([\x01-\xcf\xd8-\xfe])')  # no stuffing, restart or fill bytes
JPEG_END, JPEG_SCAN, BARE_JPEG_MARKERS = 0xD9, 0xDA, (0x01, 0xD8)
MAX_SCANS = 100  # encoders write about ten

CODESTREAM, SIZE, CODING, CODING_OF_ONE = 0xFF4F, 0xFF51, 0xFF52, 0xFF53  # of JPEG 2000
TILE_PART, TILE_DATA, CODESTREAM_END = 0xFF90, 0xFF93, 0xFFD9
# What OpenJPEG allocates, in bytes, measured: per code block or precinct of a tile, per tile, and
# per tile and component.
BLOCK_BYTES, TILE_BYTES, COMPONENT_BYTES = 500, 6000, 1200

UNNEEDED = 8  # zero bytes at the end of a WebP bitstream; libwebp fills up with three at most
WEBP_IMAGES = (b'VP8 ', b'VP8L')
COMPRESSION, STRIPS, STRIP_SIZES, TILES, TILE_SIZES = 259, 273, 279, 324, 325  # tags of TIFF
DEFLATE, TIFF_JPEG, TIFF_LZMA, TIFF_WEBP = (8, 32946), 7, 34925, 50001
TIFF_TYPES = {3: 'u2', 4: 'u4', 16: 'u8'}


def check_whole(data: bytes) -> None:
    """Check that an image file is not cut, and does not end in zeros that replace its data.

    Args:
        data: The bytes of the file. Its first bytes give the format; other formats pass.

    Raises:
        ValueError: if it is damaged; the text says what is missing.
    """
    if data.startswith(PNG):
        _check_png(data)
    elif data.startswith(JPEG):
        _check_jpeg(data)
    elif data.startswith(JPEG_2000):
        for _ in _jpeg_2000_markers(data):
            pass
    elif data.startswith(b'RIFF') and data[8:12] == b'WEBP':
        _check_webp(data)
    elif data.startswith(TIFF):
        _check_tiff(data)


def _check_png(data: bytes) -> None:
    view = memoryview(data)
    position = len(PNG)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from('>I4s', data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        is_critical = not kind[0] & 0x20
        if is_critical and zlib.crc32(view[position + 4:end]) != int.from_bytes(
                data[end:end + 4], 'big'):
            raise ValueError(f'the PNG is damaged: a wrong check sum at byte {position}')
        if kind == b'IEND':
            return
        position = end + 4
    raise ValueError('the PNG is truncated: its last chunk is missing')


def _check_jpeg(data: bytes) -> None:
    position, scans = len(JPEG) - 1, 0
    while found := JPEG_MARKER.search(data, position):
        marker, position = found[1][0], found.end()
        if marker == JPEG_END:
            return
        if marker == JPEG_SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise ValueError(f'the JPEG has more than {MAX_SCANS} scans')
        if marker not in BARE_JPEG_MARKERS:
            position += int.from_bytes(data[position:position + 2], 'big')
    raise ValueError('the JPEG is truncated: it has no end marker')


# -- JPEG 2000 -----------------------------------------------------------------------------------


class Marker(NamedTuple):
    """A marker of a codestream and its segment."""

    code: int
    body: bytes


def _codestream_of(data: bytes) -> bytes | memoryview:
    """The first codestream, up to the end of its box."""
    if not data.startswith(JP2):
        return data
    position = 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from('>I4s', data, position)
        head = 8
        if length == 1 and position + 16 <= len(data):
            length, head = *struct.unpack_from('>Q', data, position + 8), 16
        end = position + length if length else len(data)  # 0: to the end of the file
        if end < position + head or end > len(data):
            break
        if kind == b'jp2c':
            return memoryview(data)[position + head:end]
        position = end
    raise ValueError('the JPEG 2000 is truncated: a box is cut')


def _jpeg_2000_markers(data: bytes) -> Iterator[Marker]:
    """The markers of the main header and of the tile parts.

    Raises:
        ValueError: if a marker, a tile part or the end is missing.
    """
    stream = _codestream_of(data)
    cut = ValueError('the JPEG 2000 is truncated: a tile or its end marker is missing')
    position, tile_part, tile_end = 0, 0, 0
    while position + 2 <= len(stream):
        code = int.from_bytes(stream[position:position + 2], 'big')
        position += 2
        if code == CODESTREAM_END:
            return
        if code == CODESTREAM:
            continue
        if code == TILE_DATA:
            if not tile_end:  # the last one, of unknown length
                if bytes(stream[position:]).rfind(CODESTREAM_END.to_bytes(2, 'big')) < 0:
                    raise cut
                return
            if tile_end < position:
                raise cut
            position = tile_end
            continue
        length = int.from_bytes(stream[position:position + 2], 'big')
        if code < CODESTREAM or length < 2 or position + length > len(stream):
            raise cut
        if code == TILE_PART:
            tile_part = position - 2
            size = int.from_bytes(stream[position + 4:position + 8], 'big')
            tile_end = tile_part + size if size else 0
        yield Marker(code, bytes(stream[position + 2:position + length]))
        position += length
    raise cut


def jpeg_2000_overhead(data: bytes) -> int:
    """Compute the bytes that OpenJPEG allocates for tiles, precincts and code blocks.

    They come on top of the pixels. A tiny file can declare any number of them: a code block of
    4 x 4 pixels costs as much as one of 64 x 64, and OpenJPEG prepares all tiles when it opens the
    file.

    Args:
        data: A file that is whole.

    Raises:
        ValueError: if the file is not whole, or has no size.
    """
    layers, most, area = 1, 0, None
    overhead = 0
    for code, body in _jpeg_2000_markers(data):
        if code == SIZE:
            area = _JPEG2000Area.read(body)
            overhead = area.tiles * (TILE_BYTES + COMPONENT_BYTES * area.components)
        elif area and code == CODING:
            layers = max(layers, int.from_bytes(body[2:4], 'big'))
            most = max(most, area.structures(body[5:], bool(body[0] & 1), layers))
        elif area and code == CODING_OF_ONE:
            own = body[1 if area.components < 257 else 2:]
            most = max(most, area.structures(own[1:], bool(own[0] & 1), layers))
    if area is None:
        raise ValueError('the JPEG 2000 has no size')
    return overhead + most


class _JPEG2000Area(NamedTuple):
    """The size of a tile in pixels, and the numbers of tiles and components."""

    width: int
    height: int
    tiles: int
    components: int

    @classmethod
    def read(cls, body: bytes) -> '_JPEG2000Area':
        right, bottom, left, top, width, height, tile_left, tile_top, components = (
            struct.unpack_from('>8IH', body, 2))
        if not width or not height or right <= left or bottom <= top:
            raise ValueError('the JPEG 2000 has no pixels')
        tiles = -(-(right - tile_left) // width) * -(-(bottom - tile_top) // height)
        return cls(min(width, right - left), min(height, bottom - top), tiles, components)

    def structures(self, style: bytes, has_precincts: bool, layers: int) -> int:
        """Compute the bytes for the code blocks and precincts of a tile in this coding style."""
        levels, *block = style[:3]
        sizes = style[5:] if has_precincts else b''
        count = most_precincts = 0
        for level in range(levels + 1):  # from the coarsest
            shrinking = levels - level
            precinct = (15, 15)
            if level < len(sizes):
                precinct = sizes[level] & 15, sizes[level] >> 4
            precincts = blocks = 1
            for side, size, exponent in zip((self.width, self.height), precinct, block):
                side = -(-side >> shrinking)
                precincts *= -(-side >> size)
                # A code block is in one of three subbands of half the size, within a precinct.
                blocks *= -(-side >> min(size, (exponent & 15) + 2 + (level > 0)))
            count += 3 * (blocks + precincts)
            most_precincts = max(most_precincts, precincts)
        included = 2 * layers * (levels + 1) * most_precincts  # a flag per layer
        return self.components * (count * BLOCK_BYTES + included)


# -- WebP ----------------------------------------------------------------------------------------


def _check_webp(data: bytes) -> None:
    end = 8 + int.from_bytes(data[4:8], 'little')
    if end > len(data):
        raise ValueError('the WebP is truncated: it is shorter than it says')
    position, lengths = 12, [4]  # places of the lengths that count the first picture's end
    while position + 8 <= end:
        kind, length = struct.unpack_from('<4sI', data, position)
        body, following = position + 8, position + 8 + length + length % 2
        if not kind.strip(b'\0') or body + length > end:
            raise ValueError(f'the WebP is damaged: a chunk is missing at byte {position}')
        if kind in WEBP_IMAGES:
            if following >= end:  # else the next chunk stands where it must
                _check_webp_tail(data, body + length, [*lengths, position + 4])
            elif not data[following:following + 4].strip(b'\0'):
                raise ValueError(f'the WebP is damaged: a chunk is missing at byte {following}')
            return
        if kind == b'ANMF':
            lengths.append(position + 4)
            following = body + 16  # its first chunk
        position = following
    raise ValueError('the WebP is truncated: it has no picture')


def _check_webp_tail(data: bytes, end: int, lengths: list[int]) -> None:
    """Refuse zeros at the end of a bitstream that the decoder does not need."""
    if any(data[end - UNNEEDED:end]):
        return
    shorter = bytearray(data[:end - UNNEEDED])
    for place in lengths:
        length = int.from_bytes(data[place:place + 4], 'little') - UNNEEDED
        if place == 4:
            length = len(shorter) + len(shorter) % 2 - 8
        shorter[place:place + 4] = length.to_bytes(4, 'little')
    shorter += bytes(len(shorter) % 2)
    try:
        with Image.open(io.BytesIO(shorter)) as image:
            image.load()
    except Exception:  # the zeros were needed
        return
    raise ValueError('the WebP is damaged: it ends in zeros that are not part of the picture')


# -- TIFF ----------------------------------------------------------------------------------------


def _check_tiff(data: bytes) -> None:
    """Check the first picture's last block; GDAL refuses the tags that cannot be read here."""
    try:
        tags = _tags_of(data)
        compression = int(tags[COMPRESSION][0])
        offsets, sizes = ((tags[TILES], tags[TILE_SIZES]) if TILES in tags
                          else (tags[STRIPS], tags[STRIP_SIZES]))
        last = int(offsets.argmax())
        start, size = int(offsets[last]), int(sizes[last])
    except (KeyError, IndexError, ValueError, struct.error):
        return
    block = data[start:start + size]
    if len(block) < size:
        raise ValueError('the TIFF is truncated: its last block is cut')
    if (compression in DEFLATE and size and not any(block[-4:])
            or compression == TIFF_LZMA and size and not block.endswith(b'YZ')):
        raise ValueError('the TIFF is damaged: its last block ends in zeros')
    if compression == TIFF_JPEG and size:
        try:
            _check_jpeg(block)
        except ValueError:
            raise ValueError('the TIFF is damaged: its last block has no end marker') from None
    if compression == TIFF_WEBP and block.startswith(b'RIFF'):
        _check_webp(block)


def _tags_of(data: bytes) -> dict[int, np.ndarray]:
    """The whole numbers of the first directory, by tag."""
    order = '<' if data.startswith(b'II') else '>'
    is_big = 43 in data[2:4]
    word, head = ('Q', 8) if is_big else ('I', 2)  # of offsets; bytes of the number of tags
    width = struct.calcsize(word)
    start, = struct.unpack_from(order + word, data, width)
    count, = struct.unpack_from(order + ('Q' if is_big else 'H'), data, start)
    start += head
    tags = {}
    for place in range(start, start + min(count, 0xFFFF) * (4 + 2 * width), 4 + 2 * width):
        tag, kind, number = struct.unpack_from(order + 'HH' + word, data, place)
        if kind in TIFF_TYPES:
            dtype = np.dtype(order + TIFF_TYPES[kind])
            at = place + 4 + width
            if number * dtype.itemsize > width:
                at, = struct.unpack_from(order + word, data, at)
            tags[tag] = np.frombuffer(data, dtype, number, at)
    return tags
