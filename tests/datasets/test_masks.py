"""Masks of every pixel type, from a path and from bytes; their classes; files that are broken."""

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
from mmengine.logging import MMLogger
from PIL import Image

from pera_mm.datasets.masks import read_above, read_changes, read_class_ids, read_mask
from pera_mm.datasets.notices import Notice
from pera_mm.datasets.reading import UnreadableImage
from pera_mm.errors import UserError

IDS = np.array([[0, 1, 5], [255, 2, 1]])


@pytest.mark.parametrize(('dtype', 'mode'), [(np.uint8, 'L'), (np.uint16, 'I;16')])
def test_class_ids_are_read_as_they_are_stored(tmp_path, dtype, mode):
    path = tmp_path / 'mask.png'
    Image.fromarray(IDS.astype(dtype)).save(path)
    for source in (path, str(path), path.read_bytes()):
        mask = read_mask(source)
        np.testing.assert_array_equal(mask.values, IDS)
        assert (mask.values.dtype, mask.mode) == (dtype, mode)


def test_a_palette_gives_its_indices_and_becomes_colors_on_request():
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert('P')
    image.putpalette([0, 0, 0, 9, 200, 30])
    data = encode(image)
    assert read_mask(data).mode == 'P' and read_mask(data).values.tolist() == [[0, 1]]
    colors = read_mask(data, 'RGB')
    assert colors.mode == 'RGB' and colors.values.tolist() == [[[0, 0, 0], [9, 200, 30]]]


def test_bilevel_pixels_become_0_and_255_in_gray():
    data = encode(Image.fromarray(np.array([[True, False]])))
    assert read_mask(data).values.dtype == bool
    assert read_mask(data, 'L').values.tolist() == [[255, 0]]


@pytest.mark.parametrize('size', [0, 20, 60])
def test_a_broken_file_is_unreadable(tmp_path, size):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    path = tmp_path / 'mask.png'
    path.write_bytes(encode(Image.fromarray(noise))[:size])
    for source in (path, path.read_bytes()):
        with pytest.raises(UnreadableImage, match=r'^\w+: .') as error:
            read_mask(source)
        assert '\n' not in str(error.value) and 'BytesIO' not in str(error.value)


def test_a_missing_file_is_unreadable(tmp_path):
    with pytest.raises(UnreadableImage, match='FileNotFoundError'):
        read_mask(tmp_path / 'mask.png')


def test_a_mask_of_too_many_pixels_is_unreadable(monkeypatch):
    data = encode(Image.fromarray(IDS.astype(np.uint8)))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 2)  # Pillow refuses twice as many
    with pytest.raises(UnreadableImage, match='DecompressionBombError'):
        read_mask(data)


def encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, 'PNG')
    return file.getvalue()


def test_a_program_is_not_a_mask(tmp_path):
    """Pillow would hand it to Ghostscript, whatever the file is called."""
    (tmp_path / 'mask.png').write_bytes(
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n')
    with pytest.raises(UnreadableImage, match='cannot identify image file'):
        read_mask(tmp_path / 'mask.png')


# -- TIFF, with the type it has ------------------------------------------------------------------

CASE = Path(__file__).parents[3] / 'shared/cases/mask_negative_nodata/int16_-32768.tif'
TYPES = ['int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'int64', 'uint64', 'float32',
         'float64']
NODATA = [('int16', -32768), ('int32', -9999), ('int32', 70_000), ('int8', -1), ('uint8', 254),
          ('uint16', 65535), ('uint32', 4294967295), ('int64', -2**40), ('float32', -9999),
          ('float64', -3.4e38), ('float32', float('nan')), ('float64', .5)]


def write_tiff(path: Path, values: np.ndarray, nodata: float | None = None, **options) -> Path:
    """A GeoTIFF of ``[H, W]``."""
    with rasterio.open(path, 'w', driver='GTiff', count=1, height=values.shape[0],
                       width=values.shape[1], dtype=values.dtype, nodata=nodata,
                       **options) as file:
        file.write(values[None])
    return path


def holed(dtype: str, value: float) -> np.ndarray:
    """Ids 0, 1 and 1 of ``[1, 6]``, then three pixels of a value."""
    ids = np.array([[0, 1, 1, 0, 0, 0]], dtype)
    ids[0, 3:] = np.array(value, dtype)
    return ids


@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('options', [{}, dict(compress='deflate', predictor=2), dict(nodata=7)])
def test_ids_of_every_type_are_the_same(tmp_path, dtype, options):
    if 'predictor' in options and dtype[0] == 'f':
        options = options | dict(predictor=3)
    path = write_tiff(tmp_path / 'x.tif', IDS.astype(dtype) if dtype != 'int8' else np.where(
        IDS == 255, 1, IDS).astype(dtype), **options)
    mask = read_mask(path)
    assert mask.values.dtype == dtype
    found = read_class_ids(path, 6)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, mask.values)


@pytest.mark.parametrize(('dtype', 'value'), NODATA)
def test_declared_nodata_has_no_label_and_any_other_value_is_named(tmp_path, dtype, value):
    values = holed(dtype, value)
    path = write_tiff(tmp_path / 'x.tif', values, nodata=value)
    assert read_class_ids(path, 2).tolist() == [[0, 1, 1, 255, 255, 255]]
    write_tiff(path, values)
    with pytest.raises(UserError) as error:
        read_class_ids(path, 2)
    named = f'{float(values[0, 3]):.15g}' if dtype[0] == 'f' else str(int(value))
    assert str(error.value) == (
        f'{path} has the label {named}; allowed are the classes 0 to 1, and 255 for not labelled, '
        'so 3 of its 6 pixels have no class: declare the value of pixels without a label as '
        'nodata of a GeoTIFF or write 255 there, else correct the mask, or name its class in '
        'metainfo.classes.')


def test_the_real_case_has_no_class_from_its_nodata():
    if not CASE.exists():
        pytest.skip(f'{CASE} is absent: the shared cases lie beside the repository')
    with rasterio.open(CASE) as file:
        stored = file.read(1)
    expected = np.where(stored == -32768, 255, stored)
    np.testing.assert_array_equal(read_class_ids(CASE, 2), expected)


def test_many_wrong_values_are_named_up_to_five(tmp_path):
    values = np.array([[-300, 0, 1, 7, 300, 400, 401, 402]], np.int16)
    path = write_tiff(tmp_path / 'x.tif', values)
    with pytest.raises(UserError, match=r'has the label -300, 7, 300, 400, 401, ...; allowed are 0 '
                                        r'for not labelled, the classes 1 to 2, .*so 6 of its 8 '):
        read_class_ids(path, 2, zero_is_unlabelled=True)


def test_zero_is_unlabelled_where_the_data_set_says_so(tmp_path):
    path = write_tiff(tmp_path / 'x.tif', np.array([[0, 1, 2, 255, -1]], np.int32), nodata=-1)
    assert read_class_ids(path, 2, zero_is_unlabelled=True).tolist() == [[255, 0, 1, 255, 255]]


def test_an_internal_mask_has_no_label(tmp_path):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write_tiff(tmp_path / 'x.tif', np.array([[0, 1, 9]], np.uint8))
        with rasterio.open(path, 'r+') as file:
            file.write_mask(np.array([[255, 255, 0]], np.uint8))
    assert read_class_ids(path, 2).tolist() == [[0, 1, 255]]
    path = write_tiff(tmp_path / 'y.tif', np.array([[0, 255, 9]], np.uint8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, 'r+') as file:
        file.write_mask(np.array([[255, 255, 0]], np.uint8))
    assert read_changes(path).tolist() == [[0, 1, 255]]


def test_nodata_that_is_a_class_is_ignored_and_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr('pera_mm.datasets.masks.NODATA_IS_A_CLASS', Notice())
    monkeypatch.setattr(MMLogger, '_instance_dict', {})  # a run of another test
    path = write_tiff(tmp_path / 'x.tif', np.array([[0, 1]], np.uint8), nodata=0)
    with caplog.at_level(logging.WARNING, 'pera_mm'):
        assert [read_class_ids(path, 2).tolist() for _ in range(2)] == [[[255, 1]]] * 2
        read_class_ids(path, 2, zero_is_unlabelled=True)
    assert [record.getMessage() for record in caplog.records] == [
        f'{path} declares its value 0 as nodata, so its pixels have no label, here and in all '
        'files like this one; if they are of class 0, remove that with gdal_edit.py -unsetnodata.']


@pytest.mark.parametrize(('pixels', 'mode'), [
    (np.zeros((3, 1, 4), np.uint8), 'RGB'), (np.zeros((2, 1, 4), np.uint16), '2 bands'),
    (np.zeros((1, 1, 4), np.complex64), 'complex64')])
def test_what_is_no_mask_is_refused_by_all(tmp_path, pixels, mode):
    path = tmp_path / 'x.tif'
    with rasterio.open(path, 'w', driver='GTiff', count=len(pixels), height=1, width=4,
                       dtype=pixels.dtype) as file:
        file.write(pixels)
    readers = [lambda: read_class_ids(path, 2), lambda: read_above(path, 127)]
    if mode != 'RGB':  # gray values in three channels are fine
        readers.append(lambda: read_changes(path))
    message = rf'x.tif is a color picture \(mode {mode}\), not a mask'
    for read in readers:
        with pytest.raises(UserError, match=message):
            read()


def test_a_tiff_is_checked_as_images_are(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / 'x.tif', np.zeros((64, 64), np.int32), compress='deflate')
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(UnreadableImage, match='TIFF'):
        read_mask(path)
    path.write_bytes(whole)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with pytest.raises(UnreadableImage, match='64 x 64 pixels are too many to read whole'):
        read_mask(path)


# -- forms of two values -------------------------------------------------------------------------

SET = np.array([[0, 1, 1, 0, 1, 0, 0, 1]], bool)


def save_two_values(folder: Path, form: str) -> Path:
    """A mask of two values: black where SET is False, white where it is True."""
    image, options, suffix = Image.fromarray(SET), {}, 'png'
    if form == 'palette':
        image = Image.fromarray(SET.astype(np.uint8))
        image.putpalette([0, 0, 0, 255, 255, 255])
    elif form == 'palette tiff':
        image, suffix = Image.fromarray(SET.astype(np.uint8)), 'tif'
        image.putpalette([0, 0, 0, 255, 255, 255])
    elif form == 'bmp':
        suffix = 'bmp'
    elif form in ('group4', 'tiff_lzw', 'raw'):
        options, suffix = dict(compression=form), 'tif'
    elif form in ('nbits', 'white is 0'):
        values = SET if form == 'nbits' else ~SET
        return write_tiff(folder / 'x.tif', values.astype(np.uint8), nbits=1,
                          photometric='MINISBLACK' if form == 'nbits' else 'MINISWHITE')
    image.save(folder / f'x.{suffix}', **options)
    return folder / f'x.{suffix}'


@pytest.mark.parametrize('form', ['one bit', 'palette', 'palette tiff', 'bmp', 'group4',
                                  'tiff_lzw', 'raw', 'nbits', 'white is 0'])
def test_two_values_are_the_same_mask_in_every_form(tmp_path, form):
    path, expected = save_two_values(tmp_path, form), SET.astype(np.uint8)
    np.testing.assert_array_equal(read_class_ids(path, 2), expected)
    np.testing.assert_array_equal(read_changes(path), expected)
    for threshold in (0, 1, 127, 254):
        np.testing.assert_array_equal(read_above(path, threshold), expected)


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'int16', 'int32', 'uint32', 'float32'])
def test_gray_of_every_type_has_a_threshold(tmp_path, dtype):
    path = write_tiff(tmp_path / 'x.tif', np.array([[0, 126, 127, 128, 255]], dtype))
    assert read_above(path, 127).tolist() == [[0, 0, 0, 1, 1]]


def test_white_of_16_bits_is_above_a_threshold(tmp_path):
    path = tmp_path / 'x.png'
    Image.fromarray(SET.astype(np.uint16) * 65535).save(path)
    np.testing.assert_array_equal(read_above(path, 127), SET)


@pytest.mark.parametrize(('values', 'highest'), [
    (np.array([[0, 1]], np.uint8), '1'), (np.array([[1, 1]], np.uint16), '1'),
    (np.array([[0, 1]], np.float32), '1'), (np.array([[0, .5]], np.float64), '0.5')])
def test_values_up_to_1_are_never_above_127(tmp_path, values, highest):
    path = write_tiff(tmp_path / 'x.tif', values)
    with pytest.raises(UserError) as error:
        read_above(path, 127)
    assert str(error.value) == (
        f'{path} holds values up to {highest} only, none of which is above threshold=127: leave '
        'threshold out if these are the ids of the classes, or set threshold=0.')
    assert read_above(path, 0).tolist() == (values > 0).astype(int).tolist()


@pytest.mark.parametrize('values', [[0, 0], [0, 2], [90, 127]])
def test_dark_gray_and_black_are_below_a_threshold(tmp_path, values):
    path = write_tiff(tmp_path / 'x.tif', np.array([values], np.uint8))
    assert read_above(path, 127).tolist() == [[0, 0]]


def test_black_of_a_jpeg_may_be_1(tmp_path):
    Image.fromarray(np.ones((16, 16), np.uint8)).save(tmp_path / 'x.jpg', quality=100)
    assert read_mask(tmp_path / 'x.jpg').values.max() == 1
    assert not read_above(tmp_path / 'x.jpg', 127).any()


@pytest.mark.parametrize('nodata', [0, 255])
def test_a_gray_value_that_is_declared_nodata_counts(tmp_path, nodata):
    """As gdal_rasterize -burn 255 -a_nodata 0 writes it."""
    path = write_tiff(tmp_path / 'x.tif', SET * np.uint8(255), nodata=nodata)
    np.testing.assert_array_equal(read_above(path, 127), SET)
    np.testing.assert_array_equal(read_changes(path), SET)


@pytest.mark.parametrize(('dtype', 'value'), [
    ('int16', -32768), ('int32', -9999), ('int16', 256), ('uint16', 65535), ('float32', -9999),
    ('float32', float('nan'))])
def test_change_ignores_declared_nodata_and_refuses_any_other_value(tmp_path, dtype, value):
    values = np.array([[0, 255, 255, value, value]]).astype(dtype)
    path = write_tiff(tmp_path / 'x.tif', values, nodata=value)
    assert read_changes(path).tolist() == [[0, 1, 1, 255, 255]]
    assert read_above(path, 127).tolist() == [[0, 1, 1, 255, 255]]
    write_tiff(path, values)
    with pytest.raises(UserError) as error:
        read_changes(path)
    assert str(error.value) == (
        f'the mask {path} has pixels of value {value}; only 0 (unchanged) and 255 (changed) are '
        'allowed, and 2 of its 5 pixels hold others: declare the value of pixels without a label '
        'as nodata of a GeoTIFF, or convert the masks.')
    if not value > 0:
        with pytest.raises(UserError, match=rf'has the gray value {value} in 2 of its 5 pixels: '):
            read_above(path, 127)


@pytest.mark.parametrize(('values', 'named'), [([0, 1], '1'), ([0, 254, 128, 255], '128, 254')])
def test_change_refuses_other_gray(tmp_path, values, named):
    path = tmp_path / 'x.png'
    Image.fromarray(np.array([values], np.uint8)).save(path)
    with pytest.raises(UserError) as error:
        read_changes(path)
    assert str(error.value) == (
        f'the mask {path} has pixels of value {named}; only 0 (unchanged) and 255 (changed) are '
        'allowed: convert the masks.')


def test_change_in_gray_colors_is_change(tmp_path):
    gray = np.repeat(SET[..., None] * np.uint8(255), 3, axis=2)
    for suffix in ('png', 'tif'):
        Image.fromarray(gray).save(tmp_path / f'x.{suffix}')
        np.testing.assert_array_equal(read_changes(tmp_path / f'x.{suffix}'), SET)
