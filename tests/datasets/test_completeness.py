"""Cut files, and files whose end is zeros, of every format; and what is legal though odd."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from pera_mm.datasets.completeness import PNG, check_whole, jpeg_2000_overhead
from pera_mm.datasets.reading import decode_image

SHARED = Path(__file__).parents[3] / 'shared' / 'data'
CUTS = 256
warnings.filterwarnings('ignore', category=rasterio.errors.NotGeoreferencedWarning)


def encode(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def by_gdal(bands, **profile):
    count, height, width = bands.shape
    with rasterio.MemoryFile() as file:
        with file.open(count=count, height=height, width=width, dtype=bands.dtype,
                       **profile) as raster:
            raster.write(bands)
        return bytes(file.getbuffer())


def drawn(side=96):
    """Waves, a red field and noise: uint8 [side, side, 3]."""
    y, x = np.mgrid[:side, :side]
    waves = [90 + 60 * np.sin(x / 17) + 30 * np.cos(y / 9), 100 + 50 * np.sin((x + y) / 23),
             70 + 40 * np.cos(x * y / 900)]
    pixels = np.stack(waves, axis=2)
    pixels[side // 3:side // 2, side // 4:side // 2] = (200, 30, 40)
    noise = np.random.default_rng(0).normal(0, 6, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def interlaced_png(pixels):
    """Adam7 by hand: neither Pillow nor GDAL writes it."""
    rows = b''
    for left, top, across, down in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4),
                                    (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
        rows += b''.join(b'\0' + row.tobytes() for row in pixels[top::down, left::across])
    head = struct.pack('>IIBBBBB', *pixels.shape[1::-1], 8, 2, 0, 0, 1)
    return PNG + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def chunk(kind, body):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


RGB = drawn()
PICTURE = Image.fromarray(RGB)
BANDS = RGB.transpose(2, 0, 1).copy()
DEEP = BANDS.astype(np.uint16) * 250 + 7
TRANSPARENT = PICTURE.copy()
TRANSPARENT.putalpha(Image.linear_gradient('L').resize(PICTURE.size))
STRIP = dict(driver='GTiff', blockysize=96, interleave='pixel')

FILES = {
    'png': lambda: encode(PICTURE, 'PNG'),
    'png gray': lambda: encode(PICTURE.convert('L'), 'PNG'),
    'png palette': lambda: encode(PICTURE.quantize(64), 'PNG'),
    'png alpha': lambda: encode(TRANSPARENT, 'PNG'),
    'png interlaced': lambda: interlaced_png(RGB),
    'png 16 bit gray': lambda: encode(Image.fromarray(DEEP[0]), 'PNG'),
    'png 16 bit rgb': lambda: by_gdal(DEEP, driver='PNG'),
    'jpeg': lambda: encode(PICTURE, 'JPEG'),
    'jpeg progressive': lambda: encode(PICTURE, 'JPEG', progressive=True),
    'jp2': lambda: encode(PICTURE, 'JPEG2000'),
    'jp2 tiles': lambda: encode(PICTURE, 'JPEG2000', tile_size=(32, 32)),
    'jp2 lossy': lambda: encode(PICTURE, 'JPEG2000', irreversible=True, quality_mode='rates',
                                quality_layers=[20]),
    'jp2 16 bit': lambda: by_gdal(DEEP, driver='JP2OpenJPEG'),
    'j2k': lambda: encode(PICTURE, 'JPEG2000', no_jp2=True),
    'webp': lambda: encode(PICTURE, 'WEBP', quality=90),
    'webp lossless': lambda: encode(PICTURE, 'WEBP', lossless=True),
    'webp alpha': lambda: encode(TRANSPARENT, 'WEBP', quality=90),
    'webp exif': lambda: encode(PICTURE, 'WEBP', exif=b'Exif\0\0II*\0\x08\0\0\0\0\0'),
    'webp animated': lambda: encode(PICTURE, 'WEBP', save_all=True,
                                    append_images=[PICTURE.rotate(90)]),
    'gif': lambda: encode(PICTURE, 'GIF'),
    **{f'tiff {name}': lambda name=name: by_gdal(BANDS, compress=name, **STRIP)
       for name in ('deflate', 'lzw', 'packbits', 'zstd', 'lzma', 'webp', 'jpeg')},
    'tiff deflate apart': lambda: by_gdal(BANDS, driver='GTiff', compress='deflate',
                                          interleave='band', blockysize=96),
    'tiff deflate big': lambda: by_gdal(BANDS, driver='GTiff', compress='deflate', bigtiff='YES',
                                        tiled=True, blockxsize=64, blockysize=64),
}


@pytest.mark.parametrize('name', FILES)
def test_no_damaged_file_gives_wrong_pixels(name):
    whole = FILES[name]()
    right = decode_image(whole)
    passed = []
    end = len(whole) - (80 if 'webp' in name else 0)  # see the module's docstring
    for cut in np.linspace(0, end, CUTS, endpoint=False).astype(int):
        for damaged in (whole[:cut], whole[:cut] + bytes(len(whole) - cut)):
            try:
                pixels = decode_image(damaged)
            except Exception:  # refused, by whatever
                continue
            if not np.array_equal(pixels, right):
                passed.append((int(cut), len(damaged)))
    assert not passed, f'{len(passed)} of {len(whole)} bytes: {passed[:5]}'


def jp2_boxes(data):
    position = 0
    while position < len(data):
        length, kind = struct.unpack_from('>I4s', data, position)
        length = length or len(data) - position
        yield kind, data[position + 8:position + length]
        position += length


def with_boxes(data, head):
    """A JP2 whose last box, the codestream, has another head."""
    boxes = list(jp2_boxes(data))
    assert boxes[-1][0] == b'jp2c'
    start = b''.join(struct.pack('>I4s', 8 + len(body), kind) + body for kind, body in boxes[:-1])
    return start + head(len(boxes[-1][1])) + boxes[-1][1]


def with_thumbnail(data):
    """A JPEG in whose head lies another one, whole or cut."""
    small = encode(PICTURE.resize((16, 16)), 'JPEG')
    segment = b'Exif\0\0' + small[:-2]
    return data[:2] + b'\xff\xe1' + struct.pack('>H', len(segment) + 2) + segment + data[2:]


def legal():
    png, jpeg, webp = (FILES[name]() for name in ('png', 'jpeg', 'webp'))
    after = bytes(range(256)) * 3 + b'\xff\xda\0\0' + bytes(99)
    for name in ('png', 'jpeg', 'webp', 'jp2', 'j2k'):
        yield f'{name} and bytes behind', FILES[name]() + bytes(100)
    yield 'png and anything behind', png + after
    yield 'jpeg and anything behind', jpeg + after
    yield 'jpeg with fill bytes', jpeg[:-2] + b'\xff\xff\xff\xd9'
    yield 'jpeg with a thumbnail', with_thumbnail(jpeg)
    yield 'webp and anything behind', webp + after
    yield 'png with other chunks', (png[:33] + chunk(b'pHYs', bytes(9)) + chunk(b'prVt', b'') +
                                    png[33:-12] + b'\0\0\0\2teSthi....' + png[-12:])
    more = b'ABCD\3\0\0\0xyz\0'
    length = int.from_bytes(webp[4:8], 'little') + len(more)
    yield 'webp with another chunk', webp[:4] + length.to_bytes(4, 'little') + webp[8:] + more
    jp2 = FILES['jp2']()
    yield 'jp2 to the end', with_boxes(jp2, lambda size: struct.pack('>I4s', 0, b'jp2c'))
    yield 'jp2 with a long length', with_boxes(
        jp2, lambda size: struct.pack('>I4sQ', 1, b'jp2c', 16 + size))
    yield 'jp2 with a box behind', jp2 + struct.pack('>I4s', 12, b'free') + b'abcd'
    start = jp2.index(b'\xff\x90')
    yield 'jp2 whose last tile goes to the end', jp2[:start + 6] + bytes(4) + jp2[start + 10:]


@pytest.mark.parametrize('name, data', [pytest.param(*pair, id=pair[0]) for pair in legal()])
def test_what_is_legal_is_read(name, data):
    expected = decode_image(FILES[name.split()[0]]())
    np.testing.assert_array_equal(decode_image(data), expected)


def test_a_tile_of_unknown_length_must_have_an_end():
    jp2 = FILES['jp2']()
    start = jp2.index(b'\xff\x90')
    endless = jp2[:start + 6] + bytes(4) + jp2[start + 10:]
    for cut in range(start + 20, len(jp2) - 1, 97):
        with pytest.raises(ValueError, match='JPEG 2000 is truncated'):
            check_whole(endless[:cut] + bytes(len(jp2) - cut))


def flat_pictures():
    """What ends in zeros by right: flat, or flat from some row on."""
    noise = np.random.default_rng(1).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    for color in (0, 255, (90, 120, 70)):
        for rows in (0, 10, 60, 140):
            pixels = noise.copy()
            pixels[rows:] = color
            yield Image.fromarray(pixels)


@pytest.mark.parametrize('options', [
    dict(quality=0, method=0), dict(quality=40), dict(quality=80), dict(quality=100),
    dict(lossless=True, method=0, quality=0), dict(lossless=True), dict(save_all=True),
])
def test_webp_that_ends_in_zeros_by_right_is_read(options):
    zeros = 0
    for picture in flat_pictures():
        for image in (picture, Image.merge('RGBA', [*picture.split(), picture.getchannel(0)])):
            data = encode(image, 'WEBP', **options)
            zeros += not any(data[-8:])
            check_whole(data)
            check_whole(encode(image, 'WEBP', append_images=[image.rotate(90)],
                               **options | dict(save_all=True)))
    assert zeros > 0 or options in (dict(lossless=True), dict(save_all=True))


def test_a_jpeg_of_many_scans_is_refused():
    """Each scan costs a pass over all pixels and two bytes of the file."""
    jpeg = FILES['jpeg progressive']()
    last = jpeg.rindex(b'\xff\xda')
    assert decode_image(jpeg[:-2] + 20 * jpeg[last:-2] + jpeg[-2:]) is not None
    with pytest.raises(ValueError, match='more than 100 scans'):
        decode_image(jpeg[:-2] + 120 * jpeg[last:-2] + jpeg[-2:])


def codestream(side, tile, components, coding):
    """The heads of a JPEG 2000 without its pixels."""
    size = struct.pack('>H8IH', 0, side, side, 0, 0, tile, tile, 0, 0, components)
    parts = {0x51: size + bytes((7, 1, 1)) * components, 0x52: bytes(coding), 0x5C: b'\x40' * 8}
    head = b''.join(b'\xff' + bytes([code]) + struct.pack('>H', len(body) + 2) + body
                    for code, body in parts.items())
    return b'\xff\x4f' + head + b'\xff\x90' + struct.pack('>HHIBB', 10, 0, 14, 0, 1) + (
        b'\xff\x93\xff\xd9')


@pytest.mark.parametrize('side, tile, components, coding', [
    (255, 1, 16384, (0, 0, 0, 1, 0, 5, 4, 4, 0, 1)),  # tiles x components
    (13_000, 13_000, 3, (1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0x11, 0x11)),  # precincts of 2 x 2 pixels
    (13_000, 13_000, 3, (0, 0, 0, 1, 0, 5, 0, 0, 0, 1)),  # code blocks of 4 x 4 pixels
    (4000, 4000, 3, (1, 0, 255, 255, 0, 1, 0, 0, 0, 1, 0x44, 0x44)),  # layers
])
def test_a_head_that_asks_for_much_is_refused_before_it_is_opened(side, tile, components, coding):
    data = codestream(side, tile, components, coding)
    assert jpeg_2000_overhead(data) > 4 << 30
    with pytest.raises(ValueError, match='GiB of memory, the limit is 4.00 GiB'):
        decode_image(data)


def test_usual_jpeg_2000_asks_for_little():
    assert jpeg_2000_overhead(FILES['jp2']()) < 300_000
    scene = codestream(10_980, 1024, 3, (0, 0, 0, 1, 0, 5, 4, 4, 0, 1))  # as of Sentinel-2
    assert jpeg_2000_overhead(scene) < 10_000_000


def test_no_shared_image_is_refused():
    if not SHARED.is_dir():
        pytest.skip(f'{SHARED} is absent: the shared data lies beside the repository')
    paths = [path for path in SHARED.rglob('*') if path.suffix in ('.jpg', '.tif', '.png')]
    assert len(paths) > 1000
    for path in paths:
        check_whole(path.read_bytes())
