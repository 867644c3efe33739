import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from pera_mm.datasets.reading import (
    PICTURES,
    RASTER_DRIVERS,
    UnreadableImage,
    check_rule,
    decode_image,
    read_image,
    reason_of,
    rule_of,
    size_of,
    to_uint8,
)
from pera_mm.errors import UserError

SHARED = Path(__file__).parents[3] / 'shared' / 'data'
warnings.filterwarnings('ignore', category=rasterio.errors.NotGeoreferencedWarning)


def real(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f'{path} is absent: the shared data lies beside the repository')
    return path


def encode(image, fmt, **options):
    stream = io.BytesIO()
    image.save(stream, fmt, **options)
    return stream.getvalue()


def tiff(bands, nodata=None, **profile):
    """A GeoTIFF of ``bands`` [n, H, W]."""
    count, height, width = bands.shape
    with rasterio.MemoryFile() as file:
        with file.open(driver='GTiff', count=count, height=height, width=width,
                       dtype=bands.dtype, nodata=nodata, **profile) as raster:
            raster.write(bands)
        return bytes(file.getbuffer())


@pytest.fixture
def photo():
    """A smooth picture, so that JPEG and WebP keep it: uint8 [48, 64, 3]."""
    y, x = np.mgrid[:48, :64]
    return np.stack([y * 5, x * 3, (x + y) * 2], axis=2).astype(np.uint8)


@pytest.mark.parametrize('fmt, options, tolerance', [
    ('PNG', {}, 0), ('BMP', {}, 0), ('TIFF', {}, 0), ('TIFF', {'compression': 'tiff_lzw'}, 0),
    ('JPEG2000', {}, 0), ('WEBP', {'lossless': True}, 0), ('JPEG', {'quality': 98}, 8),
])
def test_rgb_of_every_format(photo, fmt, options, tolerance):
    decoded = decode_image(encode(Image.fromarray(photo), fmt, **options))
    assert decoded.dtype == np.uint8 and decoded.flags.c_contiguous and decoded.flags.writeable
    assert decoded.shape == photo.shape
    assert np.abs(decoded.astype(int) - photo).max() <= tolerance


@pytest.mark.parametrize('fmt', ['PNG', 'TIFF'])
def test_gray_is_repeated_and_alpha_lies_on_black(photo, fmt):
    gray = photo[..., 0]
    expected = np.repeat(gray[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(gray), fmt)), expected)

    alpha = np.zeros_like(gray)
    alpha[:, 32:] = 255
    alpha[:, :16] = 128
    with_alpha = Image.merge('LA', [Image.fromarray(gray), Image.fromarray(alpha)])
    expected = np.rint(expected * (alpha[..., None] / 255))
    np.testing.assert_array_equal(decode_image(encode(with_alpha, fmt)), expected)

    rgba = Image.fromarray(np.dstack([photo, alpha]))
    expected = np.rint(photo * (alpha[..., None] / 255))
    np.testing.assert_array_equal(decode_image(encode(rgba, fmt)), expected)


@pytest.mark.parametrize('fmt', ['PNG', 'TIFF', 'BMP'])
def test_palette_and_one_bit(photo, fmt):
    palette = Image.fromarray(photo).quantize(16)
    np.testing.assert_array_equal(decode_image(encode(palette, fmt)),
                                  np.array(palette.convert('RGB')))
    bits = Image.fromarray(photo[..., 0] > 100)
    np.testing.assert_array_equal(decode_image(encode(bits, fmt))[..., 1],
                                  np.where(photo[..., 0] > 100, 255, 0))


def test_transparent_palette_entry_becomes_black(photo):
    palette = Image.fromarray(photo).quantize(16)
    decoded = decode_image(encode(palette, 'PNG', transparency=3))
    expected = np.array(palette.convert('RGB'))
    expected[np.array(palette) == 3] = 0
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize('fmt', ['JPEG', 'TIFF'])
def test_cmyk(photo, fmt):
    cmyk = Image.fromarray(photo).convert('CMYK')
    decoded = decode_image(encode(cmyk, fmt, **({'quality': 98} if fmt == 'JPEG' else {})))
    assert np.abs(decoded.astype(int) - photo).max() <= 8


def test_one_bit_and_inverted_gray_geotiff():
    bits = np.array([[[0, 1, 1, 0]]], np.uint8)
    np.testing.assert_array_equal(decode_image(tiff(bits, nbits=1))[0, :, 0], [0, 255, 255, 0])
    inverted = tiff(np.array([[[0, 200]]], np.uint8), photometric='MINISWHITE')
    np.testing.assert_array_equal(decode_image(inverted)[0, :, 2], [255, 55])


def test_sixteen_bit_png_is_stretched_not_cut():
    """Pillow would keep the high byte: all 3 of this image's."""
    gray = np.linspace(800, 1000, 64 * 64).reshape(64, 64).astype(np.uint16)
    decoded = decode_image(encode(Image.fromarray(gray), 'PNG'))
    assert decoded.shape == (64, 64, 3)
    assert decoded.min() == 0 and decoded.max() == 255
    assert 125 <= decoded[32, 0, 0] <= 129


def test_auto_scale_by_hand():
    """0..100 in each band: the 2nd and the 98th percentile are 2 and 98."""
    ramp = np.arange(101, dtype=np.float32).reshape(1, 101)
    bands = np.stack([ramp, ramp * 1000 - 7, ramp * 0 + 5])
    decoded = decode_image(tiff(bands))
    expected = np.rint(np.clip((ramp[0] - 2) / 96, 0, 1) * 255)
    np.testing.assert_allclose(decoded[0, :, 0], expected, atol=1)
    np.testing.assert_array_equal(decoded[0, :, 1], decoded[0, :, 0])  # per band
    np.testing.assert_array_equal(decoded[0, :, 2], 0)  # a constant band


def test_fixed_scale_and_bands():
    bands = np.stack([np.full((2, 2), v, np.int16) for v in (-50, 0, 1500, 3000, 9000)])
    decoded = decode_image(tiff(bands), bands=(5, 3, 1), scale=(0, 3000))
    np.testing.assert_array_equal(decoded[0, 0], [255, 128, 0])
    gray = decode_image(tiff(bands), bands=(3,), scale=(0, 3000))
    np.testing.assert_array_equal(gray[0, 0], [128, 128, 128])
    assert decode_image(tiff(bands), scale=(-50, 1500))[0, 0].tolist() == [0, 8, 255]


def test_eight_bit_is_never_rescaled(photo):
    decoded = decode_image(encode(Image.fromarray(photo), 'TIFF'), scale=(0, 10))
    np.testing.assert_array_equal(decoded, photo)


def test_two_bands_are_gray():
    bands = np.stack([np.full((4, 4), 7, np.uint8), np.full((4, 4), 9, np.uint8)])
    np.testing.assert_array_equal(decode_image(tiff(bands))[0, 0], [7, 7, 7])


def test_nodata_and_nan_are_black_and_do_not_count():
    ramp = np.tile(np.arange(101, dtype=np.float32), (10, 1))
    holed = ramp.copy()
    holed[0] = -9999
    holed[1] = np.nan
    decoded = decode_image(tiff(holed[None], nodata=-9999))
    np.testing.assert_array_equal(decoded[:2], 0)
    np.testing.assert_array_equal(decoded[2:], decode_image(tiff(ramp[None]))[2:])
    eight = tiff(np.array([[[255, 20]]], np.uint8), nodata=255)
    np.testing.assert_array_equal(decode_image(eight)[0, :, 0], [0, 20])
    one_band_is_zero = tiff(np.array([[[0]], [[5]], [[6]]], np.uint8), nodata=0)
    np.testing.assert_array_equal(decode_image(one_band_is_zero)[0, 0], [0, 5, 6])


def test_percentiles_come_from_valid_pixels():
    pixels = np.array([[[10., 20., 1e9]]])
    valid = np.array([[True, True, False]])
    assert to_uint8(pixels, valid, 'auto').tolist() == [[[0, 255, 0]]]


def test_exif_orientation_is_ignored(photo):
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees
    assert decode_image(encode(Image.fromarray(photo), 'JPEG', exif=exif)).shape == photo.shape


def test_real_rasters():
    landsat = read_image(real('zion/landsat8_b2345.tif'), bands=(3, 2, 1))
    assert landsat.shape == (700, 1128, 3)
    with rasterio.open(real('zion/landsat8_b2345.tif')) as raster:
        outside = (raster.read((1, 2, 3)) == 65535).all(axis=0)
        red = raster.read(3)
    assert (landsat[outside] == 0).all()
    low, high = np.percentile(red[~outside], (2, 98))
    middle = (low + high) / 2
    near = (np.abs(red - middle) < (high - low) / 1000) & ~outside
    assert near.any() and np.abs(landsat[near][:, 0].astype(int) - 127).max() <= 4

    rgb = read_image(real('geo/RGB.byte.tif'))
    with rasterio.open(real('geo/RGB.byte.tif')) as raster:
        np.testing.assert_array_equal(rgb, raster.read().transpose(1, 2, 0))
    naip = read_image(real('geo/naip_20100629.tif'), bands=(4, 1, 2))  # color infrared
    with rasterio.open(real('geo/naip_20100629.tif')) as raster:
        np.testing.assert_array_equal(naip, raster.read((4, 1, 2)).transpose(1, 2, 0))


def test_real_gray():
    path = min(real('ucmerced_gray').rglob('*.tif'))
    decoded = read_image(path)
    np.testing.assert_array_equal(decoded, np.array(Image.open(path).convert('RGB')))


@pytest.mark.parametrize('fmt', ['JPEG', 'PNG', 'TIFF', 'WEBP', 'JPEG2000'])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.9])
def test_truncated_is_unreadable(tmp_path, fmt, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = encode(Image.fromarray(noise), fmt)
    (tmp_path / 'image').write_bytes(whole)
    assert read_image(tmp_path / 'image').shape == (64, 64, 3)
    (tmp_path / 'image').write_bytes(whole[:int(len(whole) * share)])
    with pytest.raises(UnreadableImage, match=r'\w'):
        read_image(tmp_path / 'image')


def test_jpeg_whose_second_half_is_zeros():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = encode(Image.fromarray(noise), 'JPEG')
    half = len(whole) // 2
    with pytest.raises(ValueError, match='no end marker'):
        decode_image(whole[:half] + bytes(half))
    assert decode_image(whole + bytes(100)).shape == noise.shape  # padding after the end is fine


def test_what_is_unreadable_and_why(tmp_path, monkeypatch):
    def reason(data=None, **options):
        if data is not None:
            (tmp_path / 'x.jpg').write_bytes(data)
        with pytest.raises(UnreadableImage) as error:
            read_image(tmp_path / 'x.jpg', **options)
        assert '\n' not in str(error.value)
        return str(error.value)

    assert reason().startswith('FileNotFoundError')
    assert reason(b'') == 'ValueError: the file is empty'
    assert 'cannot identify image file' in reason(b'this is a text\n')
    assert 'the PNG is truncated' in reason(b'\x89PNG\r\n\x1a\n')
    holes = np.full((1, 4, 4), 9, np.uint8)
    assert 'no pixel is valid' in reason(tiff(holes, nodata=9))
    assert 'band 4 is requested, and the file has 1' in reason(tiff(holes), bands=(4, 3, 2))
    assert 'complex pixels' in reason(tiff(holes.astype(np.complex64)))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 7)
    assert 'DecompressionBombError' in reason(encode(Image.new('RGB', (4, 4)), 'PNG'))
    assert '4 x 4 pixels are too many' in reason(tiff(holes))
    (tmp_path / 'x.jpg').unlink()
    (tmp_path / 'x.jpg').mkdir()
    assert reason().startswith('IsADirectoryError')


@pytest.mark.parametrize('bands, scale, words', [
    ((0, 1, 2), 'auto', '1-based'), ((1, 2), 'auto', 'one .gray. or three'),
    (None, 'minmax', "scale must be 'auto' or"), (None, (5, 5), 'low < high'),
    (4, 'auto', r'e.g. \(3, 2, 1\) or \(4, \), got 4\.$'), ('rgb', 'auto', "got 'rgb'"),
    (('1', '2', '3'), 'auto', r"got \('1', '2', '3'\)"), ((1.5, 2, 3), 'auto', 'got .1.5, 2, 3'),
    ((1., 2., 3.), 'auto', 'got .1.0'), ((True, 2, 3), 'auto', 'got .True'),
    ((), 'auto', r'got \(\)'),
    ({1: 2}, 'auto', 'got {1: 2}'), (None, 3000, 'got 3000'), (None, None, 'got None'),
    (None, ('a', 'b'), r"got \('a', 'b'\)"), (None, (0, float('nan')), 'got .0, nan'),
    (None, (0, float('inf')), 'got .0, inf'), (None, (0, ), r'got \(0,\)'),
    (None, ((0, 1), (0, 2)), r'got \(\(0, 1\)'),
])
def test_wrong_rules(bands, scale, words):
    for check in (check_rule, rule_of):
        with pytest.raises(UserError, match=words):
            check(bands, scale)


def test_lists_of_a_config_are_a_rule():
    assert rule_of([3, 2, 1], [0, 3000.5]) == ((3, 2, 1), (0, 3000.5))
    assert rule_of(None, 'auto') == (None, 'auto')
    rule = rule_of((np.int64(4), ), (np.float32(-1), np.int16(2)))
    assert rule == ((4, ), (-1, 2))


# -- hostile files -------------------------------------------------------------------------------

READ = """
import json, os, resource, sys
import rasterio.io
from pera_mm.datasets.reading import UnreadableImage, read_image

def outcome(path):
    try:
        return str(read_image(path).shape)
    except UnreadableImage as error:
        return str(error)

for line in sys.stdin:
    if os.fork():
        os.wait()
        continue
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = [outcome(path) for path in json.loads(line)]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(json.dumps([said, grown]), flush=True)
    os._exit(0)
"""


@pytest.fixture(scope='module')
def read_in_child():
    """Reads files in a new process: what comes of each, and the MiB by which the process grew."""
    with subprocess.Popen([sys.executable, '-W', 'ignore', '-c', READ], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        def read(*paths):
            server.stdin.write(json.dumps([*map(str, paths)]) + '\n')
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield read


def write_sparse(path, width, height, count=1, dtype='float64', **profile):
    """A TIFF with a head and no block; GDAL reads zeros."""
    with rasterio.open(path, 'w', driver='GTiff', width=width, height=height, count=count,
                       dtype=dtype, compress='deflate', sparse_ok=True, **profile):
        return path


def tiles_of(side):
    return dict(tiled=True, blockxsize=side, blockysize=side)


def test_tiny_files_take_little_memory(tmp_path, read_in_child):
    bombs = {
        '20000 x 20000 pixels are too many': (20_000, 20_000, tiles_of(1024)),
        'takes about 6.36 GiB of memory, the limit is 4.00 GiB': (13_000, 13_000, tiles_of(1024)),
        'takes about 9.77 GiB of memory, the limit is 4.00 GiB': (
            256, 256, dict(tiles_of(256), count=20_000, interleave='pixel')),
    }
    paths = [write_sparse(tmp_path / f'{index}.tif', width, height, **options)
             for index, (width, height, options) in enumerate(bombs.values())]
    assert all(path.stat().st_size < 300_000 for path in paths)
    said, grown = read_in_child(*paths)
    for words, reason in zip(bombs, said):
        assert words in reason and 'cut the file into tiles' in reason
    assert grown < 100


def test_a_block_that_is_larger_than_its_image_counts(tmp_path):
    """Only GDAL's own check of the header stands before: nothing is decoded."""
    path = write_sparse(tmp_path / 'block.tif', 64, 64, count=2, interleave='pixel',
                        tiled=True, blockxsize=1024, blockysize=1024)
    data = path.read_bytes()
    assert decode_image(data).shape == (64, 64, 3)
    with pytest.raises(ValueError, match='takes about 0.02 GiB of memory, the limit is 0.01 GiB'):
        decode_image(data, max_memory=10 << 20)


@pytest.mark.parametrize('options, dtype', [
    (dict(nodata=0), np.float64), (dict(alpha='YES'), np.uint8),
])
def test_reading_takes_no_more_than_estimated(tmp_path, read_in_child, options, dtype):
    side, bands = 1536, 4 if 'alpha' in options else 3
    pixels = np.random.default_rng(0).integers(0, 256, (bands, side, side)).astype(dtype)
    if bands == 4:
        pixels[3] = np.where(pixels[3] > 9, 255, 0)
    (tmp_path / 'whole.tif').write_bytes(tiff(pixels, photometric='RGB', **options))
    said, grown = read_in_child(tmp_path / 'whole.tif')
    assert said == [f'({side}, {side}, 3)']
    size = np.dtype(dtype).itemsize
    estimated = side**2 * (bands * size + 4 * size + 16) + os.path.getsize(tmp_path / 'whole.tif')
    assert grown < estimated / 2**20 + 20


def test_transparent_pictures_take_no_more_than_pillow_allows(tmp_path, read_in_child):
    gray = Image.linear_gradient('L').resize((3000, 3000))
    gray.convert('P').save(tmp_path / 'p.png', transparency=3)
    Image.merge('RGBA', [gray] * 4).save(tmp_path / 'rgba.png')
    said, grown = read_in_child(tmp_path / 'p.png', tmp_path / 'rgba.png')
    assert said == ['(3000, 3000, 3)'] * 2
    assert grown < 16 * 3000**2 / 2**20


def test_compositing_in_parts_is_the_same():
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (700, 1701, 4), dtype=np.uint8)
    expected = (rgba[..., :3].astype(int) * rgba[..., 3:] + 127) // 255
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(rgba), 'PNG')), expected)


def test_the_size_is_read_without_the_pixels(photo):
    for fmt in ('PNG', 'TIFF', 'JPEG2000', 'WEBP', 'GIF', 'BMP', 'JPEG'):
        assert size_of(encode(Image.fromarray(photo), fmt)) == (64, 48)
    assert size_of(tiff(np.zeros((1, 5, 7), np.float64))) == (7, 5)  # Pillow cannot


def test_formats_that_run_programs_or_name_files_are_not_opened(tmp_path):
    (tmp_path / 'secret.png').write_bytes(encode(Image.new('L', (4, 4), 77), 'PNG'))
    vrt = (f'<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1">'
           f'<SimpleSource><SourceFilename>{tmp_path}/secret.png</SourceFilename></SimpleSource>'
           '</VRTRasterBand></VRTDataset>')
    eps = '%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n'
    for text in (vrt, eps, '\xff\x4f\xff\x51' + vrt):
        (tmp_path / 'image.tif').write_bytes(text.encode('latin-1'))
        with pytest.raises(UnreadableImage):
            read_image(tmp_path / 'image.tif')
    assert 'EPS' not in PICTURES and 'VRT' not in RASTER_DRIVERS


def test_devices_and_pipes_are_not_read(tmp_path):
    os.mkfifo(tmp_path / 'pipe.jpg')
    (tmp_path / 'zero.jpg').symlink_to('/dev/zero')
    for name in ('pipe.jpg', 'zero.jpg'):
        with pytest.raises(UnreadableImage, match='not a regular file'):
            read_image(tmp_path / name)


def test_a_reason_is_a_short_printable_line():
    reason = reason_of(ValueError('\x1b[2J\x07 odd\nchunk ' + 'x' * 9999))
    assert reason.startswith('ValueError: ?[2J? odd chunk xxx') and len(reason) == 500
    assert reason.isprintable()
