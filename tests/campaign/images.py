"""Damaged and hostile image files, for :func:`pera_mm.datasets.reading.read_image`.

Its promise: UnreadableImage, or the pixels; of a file that was cut or ends in zeros never other
pixels than those of the whole one, where its format shows that; up to 4 GiB of memory.
"""

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from report import HELD, MIB, RAN_CODE, REFUSED, WRONG_VALUES, Limits, Result, in_children

from pera_mm.datasets.reading import UnreadableImage, read_image
from pera_mm.scenes.drawing import draw_scene

LIMITS = Limits(seconds=10, memory=4096 * MIB)
BATCH = 100
SIZE = 96
CUTS, FLIPS, SWAPS, HEADS = 30, 40, 15, 40  # of every base image
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
BLIND = {'bmp', 'bmp palette', 'tiff', 'tiff tiled', 'tiff float32', 'tiff uint16'}  # no check sum


class Case(NamedTuple):
    """One file."""

    kind: str
    name: str
    data: bytes
    right: bytes | None = None  # file whose pixels it must give, if any


# -- whole images --------------------------------------------------------------------------------


def with_pillow(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def with_gdal(pixels: np.ndarray, driver: str, **options: Any) -> bytes:
    """``[bands, H, W]`` by GDAL."""
    count, height, width = pixels.shape
    with MemoryFile() as file:
        with file.open(
            driver=driver, width=width, height=height, count=count, dtype=pixels.dtype, **options
        ) as raster:
            raster.write(pixels)
        return bytes(file.getbuffer())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    depth: int,
    color: int,
    rows: bytes,
    interlaced: bool = False,
    extra: bytes = b'',
    is_packed: bool = False,
) -> bytes:
    head = struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, interlaced)
    packed = rows if is_packed else zlib.compress(rows, 6)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', head)
        + extra
        + chunk(b'IDAT', packed)
        + chunk(b'IEND', b'')
    )


def interlaced_png(pixels: np.ndarray) -> bytes:
    """Adam7: seven pictures, one after another."""
    passes = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    rows = b''.join(
        b'\0' + row.tobytes()
        for top, left, down, right in passes
        for row in pixels[top::down, left::right]
    )
    return png(pixels.shape[1], pixels.shape[0], 8, 2, rows, True)


def whole_images() -> dict[str, bytes]:
    """One file of every form that read_image takes."""
    pixels = draw_scene('port', 3, SIZE).image  # [H, W, 3]
    picture = Image.fromarray(pixels)
    bands = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    deep = (bands.astype(np.uint16) * 257) ^ 5
    alpha = picture.copy()
    alpha.putalpha(Image.fromarray(np.tile(np.arange(SIZE, dtype=np.uint8) * 2, (SIZE, 1))))
    jpeg: dict[str, Any] = dict(form='JPEG', quality=90)
    return {
        'jpeg': with_pillow(picture, **jpeg),
        'jpeg progressive': with_pillow(picture, progressive=True, **jpeg),
        'jpeg gray': with_pillow(picture.convert('L'), **jpeg),
        'jpeg cmyk': with_pillow(picture.convert('CMYK'), **jpeg),
        'png': with_pillow(picture, 'PNG'),
        'png palette': with_pillow(picture.quantize(64), 'PNG'),
        'png alpha': with_pillow(alpha, 'PNG'),
        'png interlaced': interlaced_png(pixels),
        'png 16-bit': with_gdal(deep, 'PNG'),
        'webp': with_pillow(picture, 'WEBP', quality=90),
        'webp lossless': with_pillow(picture, 'WEBP', lossless=True),
        'webp alpha': with_pillow(alpha, 'WEBP', quality=90),
        'jpeg 2000': with_pillow(picture, 'JPEG2000'),
        'jpeg 2000 lossy': with_pillow(
            picture, 'JPEG2000', quality_mode='rates', quality_layers=[20], irreversible=True
        ),
        'jpeg 2000 stream': with_pillow(picture, 'JPEG2000', no_jp2=True),
        'jpeg 2000 uint16': with_gdal(deep, 'JP2OpenJPEG', quality=100, reversible=True),
        'tiff': with_gdal(bands, 'GTiff'),
        'tiff deflate': with_gdal(bands, 'GTiff', compress='deflate'),
        'tiff deflate predictor': with_gdal(bands, 'GTiff', compress='deflate', predictor=2),
        'tiff lzw': with_gdal(bands, 'GTiff', compress='lzw'),
        'tiff jpeg': with_gdal(
            bands, 'GTiff', compress='jpeg', photometric='ycbcr', interleave='pixel'
        ),
        'tiff packbits': with_gdal(bands, 'GTiff', compress='packbits'),
        'tiff tiled': with_gdal(bands, 'GTiff', tiled=True, blockxsize=32, blockysize=32),
        'tiff tiled deflate': with_gdal(
            bands, 'GTiff', tiled=True, blockxsize=32, blockysize=32, compress='deflate'
        ),
        'tiff big': with_gdal(bands, 'GTiff', bigtiff='yes', compress='deflate'),
        'tiff uint16': with_gdal(deep, 'GTiff'),
        'tiff uint16 deflate': with_gdal(deep, 'GTiff', compress='deflate', predictor=2),
        'tiff float32': with_gdal(bands.astype(np.float32) / 7, 'GTiff'),
        'tiff float32 lzw': with_gdal(
            bands.astype(np.float32) / 7, 'GTiff', compress='lzw', predictor=3
        ),
        'gif': with_pillow(picture.quantize(64), 'GIF'),
        'bmp': with_pillow(picture, 'BMP'),
        'bmp palette': with_pillow(picture.quantize(64), 'BMP'),
    }


# -- damage --------------------------------------------------------------------------------------


def damaged(form: str, whole: bytes, seed: int) -> Iterator[Case]:
    """Every kind of damage to a file."""
    rng = random.Random(f'{seed} {form}')
    size = len(whole)
    places = [size * i // CUTS for i in range(CUTS)] + [size - i for i in (1, 2, 4, 9, 16, 64)]
    for place in places:
        yield Case('cut', f'{form}: at {place} of {size}', whole[:place], whole)
        # The last eight bytes of a WebP are the decoder's own.
        is_known = form not in BLIND and not (form.startswith('webp') and size - place <= 8)
        zeros = whole[:place] + bytes(size - place)
        yield Case(
            'zeros to the end',
            f'{form}: from {place} of {size}',
            zeros,
            whole if is_known else None,
        )
    for _ in range(FLIPS):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3, 20))):
            data[rng.randrange(size)] ^= 1 << rng.randrange(8)
        yield Case('bits flipped', f'{form}: {rng.random()}', bytes(data))
    for _ in range(SWAPS):
        length = rng.choice((16, 64, 512))
        one, other = sorted(rng.randrange(max(size - length, 1)) for _ in range(2))
        data = bytearray(whole)
        data[one : one + length], data[other : other + length] = (
            whole[other : other + length],
            whole[one : one + length],
        )
        yield Case('blocks swapped', f'{form}: {one}, {other}', bytes(data[:size]))
    for _ in range(HEADS):
        near_end = form.startswith('tiff') and rng.random() < 0.5  # there GDAL may put its tags
        place = size - rng.randrange(1, 220) if near_end else rng.randrange(min(220, size))
        data = bytearray(whole)
        width = rng.choice((1, 2, 4))
        value = rng.choice(EXTREMES) & (256**width - 1)
        data[place : place + width] = value.to_bytes(width, rng.choice(('big', 'little')))
        yield Case('extremes in the head', f'{form}: {value} at {place}', bytes(data[:size]))


def zeros_deflated(gib: float) -> bytes:
    """Zeros without end in a few bytes: one deflated block again and again."""
    packer = zlib.compressobj(9)
    start = packer.compress(b'') + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * int(gib * 1024) + packer.flush()


def bombs(marker: str) -> Iterator[Case]:
    """Small files that ask for much, or for something other than pixels."""

    def case(name: str, data: bytes) -> Case:
        return Case('bomb', name, data)

    zeros = zeros_deflated(0.5)
    for side in (13_000, 60_000, 2**31 - 1):
        for depth, color in ((8, 2), (16, 2), (16, 6), (1, 0), (8, 3)):
            yield case(
                f'PNG of {side:,} x {side:,}, {depth} bits, color {color}',
                png(
                    side,
                    side,
                    depth,
                    color,
                    zeros,
                    extra=chunk(b'PLTE', bytes(768)),
                    is_packed=True,
                ),
            )
    yield case('PNG of 2**31-1 x 1', png(2**31 - 1, 1, 8, 2, zeros, is_packed=True))
    yield case('PNG of 1 x 100,000,000', png(1, 100_000_000, 8, 0, zeros, is_packed=True))
    yield case('PNG with rows without end', png(8, 8, 8, 2, zeros, is_packed=True))
    for kind in (b'zTXt', b'iCCP', b'iTXt'):
        text = b'a\0' + (b'\1\0\0\0' if kind == b'iTXt' else b'\0') + zeros
        yield case(
            f'PNG with 512 MiB of {kind.decode()}',
            png(8, 8, 8, 2, bytes(25 * 8), extra=chunk(kind, text)),
        )
    yield case(
        'PNG with 100,000 chunks',
        png(8, 8, 8, 2, bytes(25 * 8), extra=chunk(b'tEXt', b'a\0b') * 100_000),
    )
    yield case(
        'APNG of 2**31 frames',
        png(8, 8, 8, 2, bytes(25 * 8), extra=chunk(b'acTL', struct.pack('>II', 2**31 - 1, 0))),
    )
    jpeg = with_pillow(Image.new('RGB', (64, 64)), 'JPEG', progressive=True)
    big = bytearray(jpeg)
    place = jpeg.index(b'\xff\xc2')
    big[place + 5 : place + 9] = struct.pack('>HH', 65500, 65500)
    yield case('JPEG of 65,500 x 65,500', bytes(big))
    big[place + 5 : place + 9] = struct.pack('>HH', 13_000, 13_000)
    yield case('JPEG of 13,000 x 13,000', bytes(big))
    scan = jpeg.rindex(b'\xff\xda')
    yield case(
        'JPEG of 13,000 x 13,000 with 5,000 scans',
        bytes(big[:scan]) + bytes(big[scan:-2]) * 5000 + b'\xff\xd9',
    )
    yield case('JPEG with 100,000 scans', jpeg[:scan] + jpeg[scan:-2] * 100_000 + b'\xff\xd9')
    yield case('JPEG with 300,000 comments', jpeg[:2] + b'\xff\xfe\0\3x' * 300_000 + jpeg[2:])
    exif = b'Exif\0\0MM\0*\0\0\0\x08\xff\xff' + b'\x01\x12\0\3\0\0\0\1\0\1\0\0' * 5000
    yield case(
        'JPEG with an endless EXIF',
        jpeg[:2] + b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif + jpeg[2:],
    )
    gif = b'GIF89a' + struct.pack('<HHBBB', 65535, 65535, 0, 0, 0)
    frame = b',' + struct.pack('<HHHHB', 0, 0, 65535, 65535, 0) + b'\2\2\x4c\1\0'
    yield case('GIF of 65,535 x 65,535', gif + frame + b';')
    small = b'GIF89a' + struct.pack('<HHBBB', 8, 8, 0x80, 0, 0) + bytes(6)
    tiny = b',' + struct.pack('<HHHHB', 0, 0, 8, 8, 0) + b'\2\2\x4c\1\0'
    yield case('GIF of 200,000 frames', small + tiny * 200_000 + b';')
    yield case('GIF of 1,000,000 comments', small + b'!\xfe\1x\0' * 1_000_000 + tiny + b';')
    for width, height, bits in (
        (2**31 - 1, 2**31 - 1, 24),
        (13_000, 13_000, 1),
        (1, -(2**31), 24),
        (10**6, 10**6, 0),
        (13_000, 13_000, 32),
    ):
        for compression in (0, 1, 3):
            head = struct.pack(
                '<2sIHHIIiiHHIIiiII',
                b'BM',
                200,
                0,
                0,
                54,
                40,
                width,
                height,
                1,
                bits,
                compression,
                0,
                0,
                0,
                0,
                0,
            )
            yield case(f'BMP of {width} x {height}, {bits} bits, {compression}', head + bytes(200))
    webp = with_pillow(Image.new('RGB', (16383, 8000)), 'WEBP', lossless=True)
    yield case('WebP of 16,383 x 8,000', webp)
    yield from tiff_bombs()
    for size in (2**31 - 1, 60_000, 13_000):
        data = bytearray(with_pillow(Image.new('RGB', (64, 64)), 'JPEG2000', no_jp2=True))
        place = data.index(b'\xff\x51') + 6
        struct.pack_into('>II', data, place, size, size)
        yield case(f'JPEG 2000 of {size:,} in tiles of 64', bytes(data))
        struct.pack_into('>II', data, place + 16, size, size)
        yield case(f'JPEG 2000 of {size:,} in one tile', bytes(data))
        struct.pack_into('>II', data, place + 16, 1, 1)
        yield case(f'JPEG 2000 of {size:,} in tiles of 1', bytes(data))
        struct.pack_into('>H', data, place + 32, 16384)
        yield case(f'JPEG 2000 of {size:,} with 16,384 components', bytes(data))
    yield from other_formats(marker)


def tiff(
    tags: dict[int, tuple[int, Any]],
    tail: bytes = b'',
    count: int | None = None,
    following: int = 0,
) -> bytes:
    """A little-endian TIFF of one directory; a tag is its type and value, or values."""
    codes = {1: 'B', 3: 'H', 4: 'I'}
    end = 8 + 2 + 12 * len(tags) + 4
    entries, extra = b'', b''
    for tag, (kind, value) in sorted(tags.items()):
        values = value if isinstance(value, (list, tuple)) else [value]
        data = struct.pack(f'<{len(values)}{codes[kind]}', *values)
        if len(data) > 4:
            data, extra = struct.pack('<I', end + len(extra)), extra + data
        entries += struct.pack('<HHI', tag, kind, len(values)) + data.ljust(4, b'\0')
    head = struct.pack('<2sHIH', b'II', 42, 8, len(tags) if count is None else count)
    return head + entries + struct.pack('<I', following) + extra + tail


def tiff_bombs() -> Iterator[Case]:
    def case(name: str, data: bytes) -> Case:
        return Case('bomb', name, data)

    def tags(width: int, height: int, **more: Any) -> dict[int, tuple[int, Any]]:
        found = dict(
            bits=8, compression=1, samples=1, rows=height, form=1, offset=1000, length=1000
        )
        found.update(more)
        samples = found['samples']
        return {
            256: (4, width),
            257: (4, height),
            258: (3, [found['bits']] * min(samples, 4)),
            259: (3, found['compression']),
            262: (3, 1),
            273: (4, found['offset']),
            277: (3, samples),
            278: (4, found['rows']),
            279: (4, found['length']),
            339: (3, [found['form']] * min(samples, 4)),
        }

    for side in (13_000, 60_000, 2**31 - 1):
        for bits, form in ((8, 1), (16, 1), (64, 3), (128, 6), (1, 1)):
            yield case(
                f'TIFF of {side:,} x {side:,}, {bits} bits, format {form}',
                tiff(tags(side, side, bits=bits, form=form), bytes(2000)),
            )
            yield case(
                f'TIFF of {side:,}, {bits} bits, format {form}, deflate',
                tiff(
                    tags(side, side, bits=bits, form=form, compression=8, offset=400, length=10**6),
                    bytes(300) + zeros_deflated(0.01),
                ),
            )
    for samples in (255, 4096, 65535):
        yield case(f'TIFF of {samples} bands', tiff(tags(2000, 2000, samples=samples), bytes(2000)))
    for rows in (0, 1, 2**31, 2**32 - 1):
        yield case(
            f'TIFF of {rows} rows in a strip', tiff(tags(5000, 5000, rows=rows), bytes(2000))
        )
    for tile in (16, 17, 2**20, 2**31, 2**32 - 1):
        found = tags(1000, 1000)
        found |= {322: (4, tile), 323: (4, tile), 324: (4, 1000), 325: (4, 1000)}
        yield case(f'TIFF in tiles of {tile:,}', tiff(found, bytes(2000)))
    yield case('TIFF whose directory follows itself', tiff(tags(8, 8), bytes(2000), following=8))
    yield case('TIFF with 65,535 tags', tiff(tags(8, 8), bytes(10**6), count=65535))
    yield case('TIFF with its bytes at 2**32-1', tiff(tags(8, 8, offset=2**32 - 1), bytes(2000)))
    for kind in (1, 5, 7, 32773, 34712, 34887, 34925, 50000, 50001, 50002, 65000):
        yield case(
            f'TIFF, compression {kind}, of zeros', tiff(tags(64, 64, compression=kind), bytes(3000))
        )
    chain = b''.join(struct.pack('<HI', 0, 2000 + 6 * (i + 1)) for i in range(200_000))
    yield case(
        'TIFF with 200,000 directories',
        tiff(tags(8, 8), bytes(2000), following=2000).ljust(2000, b'\0')[:2000] + chain,
    )
    with rasterio.Env(), MemoryFile() as file:
        with file.open(
            driver='GTiff',
            width=20_000,
            height=13_000,
            count=3,
            dtype='float64',
            sparse_ok=True,
            tiled=True,
            compress='deflate',
        ):
            pass
        yield case('TIFF of 20,000 x 13,000 x 3 float64, sparse', bytes(file.getbuffer()))
    with MemoryFile() as file:
        with file.open(
            driver='GTiff', width=10_000, height=8_000, count=3, dtype='complex128', sparse_ok=True
        ):
            pass
        yield case('TIFF of 10,000 x 8,000 x 3 complex128, sparse', bytes(file.getbuffer()))


def other_formats(marker: str) -> Iterator[Case]:
    """What Pillow and GDAL would also open, and what of it runs programs or opens other files."""

    def case(name: str, data: bytes) -> Case:
        return Case('another format', name, data)

    postscript = f'(%pipe%touch {marker}) (w) file closefile\nshowpage\n'.encode()
    yield case('EPS', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n' + postscript)
    yield case(
        'EPS with a binary head',
        b'\xc5\xd0\xd3\xc6'
        + struct.pack('<7I', 32, 200, 0, 0, 0, 0, 0)
        + b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n'
        + postscript,
    )
    vrt = (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1">'
        '<SimpleSource><SourceFilename>{}</SourceFilename></SimpleSource></VRTRasterBand>'
        '</VRTDataset>'
    )
    for target in ('/etc/passwd', '/vsicurl/http://127.0.0.1:9/x.tif', '/vsistdin/', '/dev/zero'):
        yield case(f'VRT of {target}', vrt.format(target).encode())
    yield case(
        'VRT with Python',
        vrt.format('x')
        .replace(
            '<SimpleSource>', '<PixelFunctionLanguage>Python</PixelFunctionLanguage><SimpleSource>'
        )
        .encode(),
    )
    yield case(
        'WMS',
        b'<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:9/</ServerUrl></Service>'
        b'</GDAL_WMS>',
    )
    yield case('SVG', b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    yield case('PDF', b'%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>')
    yield case('a web page', b'<!DOCTYPE html><html>404</html>')
    yield case('one byte', b'\xff')
    yield case('empty', b'')
    picture = Image.new('RGB', (16, 16), 'red')
    for form in (
        'PPM',
        'TGA',
        'PCX',
        'SGI',
        'ICO',
        'DDS',
        'IM',
        'MSP',
        'PDF',
        'XBM',
        'ICNS',
        'AVIF',
    ):
        is_bilevel = form in ('MSP', 'XBM')
        try:
            data = with_pillow(picture.convert('1') if is_bilevel else picture, form)
        except (KeyError, OSError, ValueError):  # this Pillow does not write it
            continue
        yield case(form, data)
    for start in (
        b'\x89PNG\r\n\x1a\n',
        b'\xff\xd8\xff',
        b'II*\0',
        b'MM\0+',
        b'GIF89a',
        b'BM',
        b'RIFF\xff\xff\xff\xffWEBP',
        b'\0\0\0\x0cjP  ',
        b'\xff\x4f\xff\x51',
    ):
        for seed in range(4):
            yield case(f'noise after {start[:8]!r}', start + random.Random(seed).randbytes(4000))
        yield case(f'only {start[:8]!r}', start)
        yield case(f'zeros after {start[:8]!r}', start + bytes(4000))
        yield case(f'0xff after {start[:8]!r}', start + b'\xff' * 4000)


# -- judgment -----------------------------------------------------------------------------------


class Judge:
    """Read a file in a child process and return the outcome."""

    def __init__(self, path: Path, marker: Path) -> None:
        self.path, self.marker = path, marker
        self.known: dict[int, np.ndarray] = {}

    def __call__(self, case: Case) -> tuple[str, str]:
        """Outcome and detail."""
        self.path.write_bytes(case.data)
        outcome, detail = self._read(case)
        return (RAN_CODE, detail) if self.marker.exists() else (outcome, detail)

    def _read(self, case: Case) -> tuple[str, str]:
        try:
            pixels = read_image(str(self.path))
        except UnreadableImage as error:
            text = str(error)
            return (
                (REFUSED, text)
                if text.isprintable() and len(text) < 1000
                else ('not one clean line', repr(text))
            )
        except MemoryError:
            raise
        except Exception as error:
            return f'undocumented {type(error).__name__}', str(error)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            return WRONG_VALUES, f'{pixels.dtype} {pixels.shape}'
        if case.right is not None and not np.array_equal(pixels, self._right(case.right)):
            return WRONG_VALUES, 'other pixels, and no error'
        return HELD, f'{pixels.shape}'

    def _right(self, whole: bytes) -> np.ndarray:
        if id(whole) not in self.known:
            self.path.write_bytes(whole)
            self.known[id(whole)] = read_image(str(self.path))
        return self.known[id(whole)]


def every_case(seed: int, marker: Path) -> Iterator[Case]:
    whole = whole_images()
    for form, data in whole.items():
        yield Case('whole', form, data, data)
    for form, data in whole.items():
        yield from damaged(form, data, seed)
    yield from bombs(str(marker))


def cases(folder: Path, seed: int) -> Iterator[Result]:
    """All results of this part."""
    marker = folder / 'marker'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        every = list(every_case(seed, marker))
    judge: Callable[[Case], tuple[str, str]] = Judge(folder / 'image', marker)
    for case, outcome, detail in in_children(judge, every, LIMITS, BATCH):
        if marker.exists():
            outcome = RAN_CODE
            marker.unlink()
        if case.kind == 'whole' and outcome == REFUSED:
            outcome = 'refused a good file'
        yield Result(case.kind, case.name, outcome, detail)
