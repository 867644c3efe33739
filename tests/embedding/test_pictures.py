"""What the model sees of images and scenes, and where it lies."""

from concurrent.futures import ThreadPoolExecutor
from datetime import date

import cv2
import numpy as np
import pytest
import rasterio
from small_world import CRS, PATCH, PLACE, SIZE, noise, write_scene

from pera_mm.datasets.reading import UnreadableImage
from pera_mm.datasets.scene import Scene
from pera_mm.datasets.scene_pixels import Date, Reading
from pera_mm.embedding.pictures import Pictures, Scenes, open_pictures


def scenes(*paths, bands=None, scale='auto') -> Scenes:
    return Scenes([str(path) for path in paths], SIZE, PATCH, bands, scale)


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (64, 96), (33, 31), (1, 1), (79, 50),
                                               (48, 63), (200, 17)])
def test_windows_show_every_pixel_where_it_is_and_no_patch_counts_twice(tmp_path, height, width):
    image = noise(height, width)
    reader = scenes(write_scene(tmp_path / 'a.tif', image))
    seen = np.zeros((3, height + SIZE, width + SIZE), np.uint8)
    counted = np.zeros((-(-height // PATCH), -(-width // PATCH)), int)
    for index in range(len(reader)):
        picture = reader.read(index)
        left, top, right, bottom = picture.box
        assert (left % PATCH, top % PATCH, right - left, bottom - top) == (0, 0, SIZE, SIZE)
        assert (bottom < height + PATCH or top == 0) and (right < width + PATCH or left == 0)
        seen[:, top:bottom, left:right] = picture.pixels.transpose(2, 0, 1)
        for row, column in zip(*np.nonzero(picture.keep)):
            counted[top // PATCH + row, left // PATCH + column] += 1
    assert np.array_equal(seen[:, :height, :width], image)
    assert not seen[:, height:].any() and not seen[:, :, width:].any()
    assert (counted == 1).all()


def test_windows_go_row_by_row_through_one_scene_after_another(tmp_path):
    paths = [write_scene(tmp_path / 'a.tif', noise(70, 40)), write_scene(tmp_path / 'b.tif',
                                                                         noise(32, 64))]
    reader = scenes(*paths)
    found = [reader.read(index) for index in range(len(reader))]
    assert [(picture.path[-5], *picture.box[:2]) for picture in found] == [
        ('a', 0, 0), ('a', 16, 0), ('a', 0, 32), ('a', 16, 32), ('a', 0, 48), ('a', 16, 48),
        ('b', 0, 0), ('b', 32, 0)]
    assert reader.name(3) == f'{paths[0]} (row 32, column 16)'


def test_windows_without_a_valid_pixel_are_none_and_patches_without_one_do_not_count(tmp_path):
    image = noise(64, 64)
    image[:, :32, :32] = image[:, 32:48, 32:] = 0
    reader = scenes(write_scene(tmp_path / 'a.tif', image, nodata=0))
    assert reader.read(0) is None
    assert reader.read(1).keep.all()
    assert reader.read(3).keep.tolist() == [[False, False], [True, True]]
    assert scenes(write_scene(tmp_path / 'b.tif', image)).read(0) is not None


def test_pixels_of_16_bits_get_one_scale_for_the_whole_scene(tmp_path):
    image = np.arange(3 * 64 * 64).reshape(3, 64, 64).astype(np.uint16)
    path = write_scene(tmp_path / 'a.tif', image)
    fixed = scenes(path, scale=(0, 12_287))
    whole = np.round(image / 12_287 * 255)
    for index in range(4):
        picture = fixed.read(index)
        left, top, right, bottom = picture.box
        difference = picture.pixels.transpose(2, 0, 1) - whole[:, top:bottom, left:right]
        assert abs(difference).max() <= 1
    spread = scenes(path)
    dark, light = spread.read(0).pixels[..., 0], spread.read(3).pixels[..., 0]
    assert dark.min() == 0 and light.max() == 255 and dark.max() < light.min() + 10


def test_one_band_is_gray_and_bands_are_taken_in_their_order(tmp_path):
    image = np.concatenate([noise(32, 32), noise(32, 32, 1)[:1]])
    path = write_scene(tmp_path / 'a.tif', image)
    assert np.array_equal(scenes(path, bands=(4, 1, 3)).read(0).pixels, image[[3, 0, 2]].transpose(
        1, 2, 0))
    assert np.array_equal(scenes(path, bands=(2, )).read(0).pixels, np.stack([image[1]] * 3, -1))


def test_nan_is_no_value(tmp_path):
    image = noise(32, 32).astype(np.float32)
    image[1, 5, 6] = np.nan
    pixels = scenes(write_scene(tmp_path / 'a.tif', image)).read(0).pixels
    assert not pixels[5, 6].any()


def test_percentiles_are_those_of_the_whole_scene(tmp_path):
    image = np.random.default_rng(0).integers(0, 5000, (3, 32, 32 * 70)).astype(np.uint16)
    image[:, :, 64:] *= 2
    path = write_scene(tmp_path / 'a.tif', image)
    with Scene(str(path), Reading()) as whole:
        limits = np.array(whole.limits())
        np.testing.assert_allclose(limits, np.percentile(image, (2, 98), axis=(1, 2)).T, rtol=.1)
        reader = scenes(path)
        for index in (0, 1, 69):
            expected = whole.read(0, index * SIZE, SIZE)[0]
            np.testing.assert_array_equal(reader.read(index).pixels, expected.transpose(1, 2, 0))


def test_threads_share_the_percentiles_of_a_scene(tmp_path, monkeypatch):
    samples = []
    sample = Date.sample
    monkeypatch.setattr(Date, 'sample', lambda date: samples.append(date.place) or sample(date))
    paths = [write_scene(tmp_path / f'{name}.tif', noise(64, 64).astype(np.uint16))
             for name in 'abcdef']
    reader = scenes(*paths)
    with ThreadPoolExecutor(3) as threads:
        seen = list(threads.map(reader.read, [*range(len(reader)), *range(len(reader))]))
    assert len(seen) == 48 and all(picture is not None for picture in seen)
    assert sorted(samples) == [str(path) for path in paths]


def test_palettes_become_rgb_and_transparent_pixels_are_black(tmp_path):
    numbers = noise(32, 48)[:1] % 3
    with rasterio.open(tmp_path / 'palette.tif', 'w', driver='GTiff', count=1, height=32, width=48,
                       dtype='uint8') as raster:
        colors = {0: (9, 8, 7, 255), 1: (255, 0, 0, 255), 2: (0, 40, 50, 255)}
        raster.write_colormap(1, colors)
        raster.write(numbers)
    table = np.array([color[:3] for color in colors.values()])
    assert np.array_equal(scenes(tmp_path / 'palette.tif').read(0).pixels,
                          table[numbers[0, :, :32]])
    image = np.concatenate([noise(32, 32), np.full((1, 32, 32), 255, np.uint8)])
    image[3, :20] = 0
    picture = scenes(write_scene(tmp_path / 'clear.tif', image, photometric='rgb', alpha='yes')
                     ).read(0)
    assert not picture.pixels[:20].any() and picture.keep.tolist() == [[False] * 2, [True] * 2]
    assert np.array_equal(picture.pixels[20:], image[:3, 20:].transpose(1, 2, 0))


def test_scenes_that_cannot_be_read_are_named_with_a_reason(tmp_path):
    good = write_scene(tmp_path / 'good.tif', noise(32, 32))
    write_scene(tmp_path / 'complex.tif', noise(32, 32).astype(np.complex64))
    (tmp_path / 'broken.tif').write_bytes(b'II*\0')
    reader = scenes(good, tmp_path / 'complex.tif', tmp_path / 'broken.tif', good)
    assert [path.rpartition('/')[2] for path in reader.paths] == ['good.tif', 'good.tif']
    reasons = {path.rpartition('/')[2]: reason for path, reason in reader.unreadable}
    assert reasons['complex.tif'].startswith('has complex pixels, which no model takes: convert')
    assert reasons['broken.tif'].startswith('cannot be opened as a raster (')
    reader = scenes(good, write_scene(tmp_path / 'b.tif', noise(32, 32)), bands=(4, ))
    assert reader.unreadable[0][1].startswith('has 3 bands, and the model takes the bands 4: ')


def test_a_damaged_window_is_unreadable_and_the_others_are_not(tmp_path):
    path = write_scene(tmp_path / 'a.tif', noise(64, 64), tiled=True, blockxsize=32, blockysize=32,
                       compress='deflate', interleave='pixel')
    with rasterio.open(path) as raster:
        start = int(raster.get_tag_item('BLOCK_OFFSET_1_0', 'TIFF', bidx=1))
    with open(path, 'r+b') as file:
        file.seek(start)
        file.write(bytes(2000))
    reader = scenes(path)
    with pytest.raises(UnreadableImage):
        reader.read(1)
    assert all(reader.read(index) is not None for index in (0, 2, 3))


def test_without_percentiles_a_damaged_scene_needs_a_scale(tmp_path):
    path = write_scene(tmp_path / 'a.tif', noise(64, 64).astype(np.uint16), tiled=True,
                       blockxsize=32, blockysize=32, compress='deflate', interleave='pixel')
    with rasterio.open(path) as raster:
        start = int(raster.get_tag_item('BLOCK_OFFSET_1_0', 'TIFF', bidx=1))
    with open(path, 'r+b') as file:
        file.seek(start)
        file.write(bytes(2000))
    reader = scenes(path)
    for index in range(4):
        with pytest.raises(UnreadableImage, match=r'^cannot be read \(.*--scale LOW HIGH\) is unk'):
            reader.read(index)
    reader = scenes(path, scale=(0, 255))
    with pytest.raises(UnreadableImage, match='^cannot be read at rows 0 to 32, columns 32 to 64'):
        reader.read(1)
    assert all(reader.read(index) is not None for index in (0, 2, 3))


def test_an_empty_window_needs_no_percentiles(tmp_path):
    image = noise(32, 64).astype(np.uint16)
    image[:, :, :32] = 0
    assert scenes(write_scene(tmp_path / 'a.tif', image, nodata=0)).read(0) is None
    assert scenes(write_scene(tmp_path / 'b.tif', image * 0, nodata=0)).read(1) is None


def test_images_of_a_folder_are_resized_and_know_where_they_lie(tmp_path):
    image = noise(80, 40)
    write_scene(tmp_path / 'tiles/a_20200229.tif', image)
    write_scene(tmp_path / 'tiles/b_20210229.tif', image, placed=False)  # no such day
    cv2.imwrite(str(tmp_path / 'tiles/c-2019-12-31.png'), image.transpose(1, 2, 0)[..., ::-1])
    reader = open_pictures(tmp_path / 'tiles', SIZE, PATCH)
    assert isinstance(reader, Pictures)
    placed, bare, png = (reader.read(index) for index in range(3))
    assert placed.box == (0, 0, 40, 80) and placed.frame.transform == PLACE
    assert placed.frame.crs == CRS and bare.frame.crs is png.frame.crs is None
    assert [picture.frame.date for picture in (placed, bare, png)] == [
        date(2020, 2, 29), None, date(2019, 12, 31)]
    expected = cv2.resize(image.transpose(1, 2, 0), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    assert np.array_equal(png.pixels, expected) and np.array_equal(placed.pixels, expected)


@pytest.mark.parametrize(('name', 'taken', 'made', 'expected'), [
    ('a', '2018-05-06T10:00:00Z', '2021:01:01 00:00:00', date(2018, 5, 6)),
    ('a_20170809', None, '2021:01:01 00:00:00', date(2017, 8, 9)),
    ('a', None, '2021:01:01 00:00:00', date(2021, 1, 1)),
    ('a_1234567890', None, None, None)])
def test_the_date_is_when_the_image_was_taken(tmp_path, name, taken, made, expected):
    path = write_scene(tmp_path / f'{name}.tif', noise(32, 32))
    with rasterio.open(path, 'r+') as raster:
        if taken:
            raster.update_tags(ns='IMAGERY', ACQUISITIONDATETIME=taken)
        if made:
            raster.update_tags(TIFFTAG_DATETIME=made)
    assert scenes(path).read(0).frame.date == expected


def test_a_scene_is_cut_and_a_folder_of_scenes_when_asked(tmp_path):
    path = write_scene(tmp_path / 'scenes/a.tif', noise(64, 64))
    assert len(open_pictures(path, SIZE, PATCH)) == 4
    assert len(open_pictures(tmp_path / 'scenes', SIZE, PATCH, windows=True)) == 4
    assert len(open_pictures(tmp_path / 'scenes', SIZE, PATCH)) == 1


def test_mistakes_are_one_sentence(tmp_path):
    path = write_scene(tmp_path / 'scenes/a.tif', noise(64, 64))
    with pytest.raises(ValueError, match='size 40 is not a multiple of the patch size 16 .* 48'):
        open_pictures(path, 40, PATCH)
    with pytest.raises(ValueError, match='none of the 1 scenes can be opened; the first is .*band'):
        open_pictures(path, SIZE, PATCH, bands=(5, ))
    with pytest.raises(ValueError, match='bands must be one'):
        open_pictures(path, SIZE, PATCH, bands=(1, 2))
