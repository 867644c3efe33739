"""The bands of rasters without named bands, and alpha that is none, alike in both readers."""

import io
import logging
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import rasterio
from mmengine.logging import MMLogger
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from pera_mm.datasets.notices import Notice
from pera_mm.datasets.raster_bands import choose_bands, opacity_of
from pera_mm.datasets.reading import decode_image, read_image
from pera_mm.datasets.scene import Scene
from pera_mm.datasets.scene_pixels import Reading

CASE = Path(__file__).parents[3] / 'shared/cases/nir_as_alpha/naip_recut.tif'
SIDE = 32
ALPHA, BLUE, GREEN, RED = (ColorInterp.alpha, ColorInterp.blue, ColorInterp.green, ColorInterp.red)
OTHER = ColorInterp.undefined


@pytest.fixture(autouse=True)
def notice(monkeypatch):
    monkeypatch.setattr('pera_mm.datasets.raster_bands.IS_A_BAND', Notice())
    monkeypatch.setattr(MMLogger, '_instance_dict', {})  # a run of another test


def noise(count: int, dtype=np.uint8, low: int = 1, high: int = 255) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (count, SIDE, SIDE)).astype(dtype)


def write(path: Path, pixels: np.ndarray, tags=None, origin=(500_000, 5_200_000),
          **options) -> str:
    with rasterio.open(path, 'w', driver='GTiff', count=len(pixels), height=pixels.shape[1],
                       width=pixels.shape[2], dtype=pixels.dtype, crs='EPSG:32632',
                       transform=from_origin(*origin, 1, 1), **options) as file:
        file.write(pixels)
        if tags is not None:
            file.colorinterp = tags
    return str(path)


def scene(path: str, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    with Scene(path, reading) as opened:
        return opened.read(0, 0, SIDE)


def both(path: str, bands=None, scale='auto') -> np.ndarray:
    """The pixels ``[3, H, W]`` of training, after a check that prediction has the same."""
    image = read_image(path, bands, scale).transpose(2, 0, 1)
    pixels, valid = scene(path, Reading(bands, scale=scale))
    np.testing.assert_array_equal(image, pixels)
    assert valid.all()
    return image


# -- near infrared that GDAL tags as alpha -------------------------------------------------------


@pytest.mark.parametrize('bands', [None, (1, 2, 3)])
def test_near_infrared_is_not_alpha(tmp_path, bands):
    pixels = noise(4)
    path = write(tmp_path / 'a.tif', pixels)
    with rasterio.open(path) as file:
        assert file.colorinterp == (RED, GREEN, BLUE, ALPHA)  # GDAL's default
    np.testing.assert_array_equal(both(path, bands), pixels[:3])
    np.testing.assert_array_equal(both(path, (4, 1, 2)), pixels[[3, 0, 1]])


def test_of_16_bits_too(tmp_path):
    """Its opacity of 4000 of 65535 would be black."""
    pixels = noise(4, np.uint16, 1, 4000)
    path = write(tmp_path / 'a.tif', pixels, photometric='RGB', alpha='YES')
    expected = np.clip(pixels[:3] * (255 / 4000) + .5, 0, 255).astype(np.uint8)
    assert np.abs(both(path, scale=(0, 4000)).astype(int) - expected).max() <= 1
    stretched = both(path)
    assert stretched.min() == 0 and stretched.max() == 255 and 100 < stretched.mean() < 155


def test_the_real_piece_keeps_its_own_values():
    if not CASE.exists():
        pytest.skip(f'{CASE} is absent: the shared cases lie beside the repository')
    with rasterio.open(CASE) as file:
        own = file.read()
    for bands in (None, (1, 2, 3), (4, 1, 2)):
        numbers = np.array(bands or (1, 2, 3)) - 1
        np.testing.assert_array_equal(read_image(str(CASE), bands).transpose(2, 0, 1),
                                      own[numbers])


def test_a_model_of_four_channels_takes_it(tmp_path):
    pixels = noise(4)
    path = write(tmp_path / 'a.tif', pixels)
    values, valid = scene(path, Reading(None, 4))
    np.testing.assert_array_equal(values, pixels)
    assert valid.all()


def test_near_infrared_that_is_mostly_0_is_a_band(tmp_path):
    """Its other values are no opacity."""
    pixels = noise(4)
    pixels[3, :, :24] = 0
    np.testing.assert_array_equal(both(write(tmp_path / 'a.tif', pixels)), pixels[:3])


def test_it_is_said_once_with_the_file(tmp_path, caplog):
    path = write(tmp_path / 'a.tif', noise(4))
    with caplog.at_level(logging.WARNING, 'pera_mm'):
        for _ in range(2):
            both(path)
        read_image(write(tmp_path / 'b.tif', noise(4)))
    said = [record.getMessage() for record in caplog.records]
    assert said == [f'Band 4 of {path} is tagged as transparency and holds other values, so it is '
                    'read as a band such as near infrared, here and in all files like this one.']


def test_a_notice_is_said_once_by_all_forked_workers(tmp_path):
    notice, log = Notice(), tmp_path / 'log'

    def work():
        handler = logging.FileHandler(log)
        logging.getLogger('pera_mm').addHandler(handler)
        notice.say('found')

    for _ in range(3):
        worker = multiprocessing.get_context('fork').Process(target=work)
        worker.start()
        worker.join()
    assert log.read_text() == 'found\n'


# -- alpha that is one ---------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_true_alpha_lies_over_black(tmp_path, dtype):
    highest = np.iinfo(dtype).max
    pixels = noise(4, dtype)
    pixels[3] = highest
    pixels[3, :, :16], pixels[3, :, 16:20] = 0, highest // 5  # a soft edge
    path = write(tmp_path / 'a.tif', pixels, photometric='RGB', alpha='YES')
    image = read_image(path, scale=(0, 255)).transpose(2, 0, 1)
    assert not image[:, :, :16].any()
    np.testing.assert_array_equal(image[:, :, 20:], pixels[:3, :, 20:])
    soft = pixels[:3, :, 16:20] / 5
    assert np.abs(image[:, :, 16:20] - soft).max() <= 1
    values, valid = scene(path, Reading(None, scale=(0, 255)))
    assert not valid[:, :16].any() and valid[:, 16:].all()
    np.testing.assert_array_equal(values[:, :, 16:], pixels[:3, :, 16:])
    named = read_image(path, (1, 2, 3), (0, 255)).transpose(2, 0, 1)
    np.testing.assert_array_equal(named, pixels[:3])  # named bands are those bands


def test_alpha_of_a_png_is_alpha_whatever_it_holds(tmp_path):
    pixels = noise(4)
    with rasterio.open(tmp_path / 'a.png', 'w', driver='PNG', count=4, height=SIDE, width=SIDE,
                       dtype='uint8') as file:
        file.write(pixels)
    with rasterio.open(tmp_path / 'a.png') as file:
        assert opacity_of(file, 'a.png') == 4
    expected = (pixels[:3].astype(int) * pixels[3] + 127) // 255
    np.testing.assert_array_equal(read_image(str(tmp_path / 'a.png')).transpose(2, 0, 1), expected)


def test_gray_with_alpha_is_gray(tmp_path):
    pixels = noise(2)
    pixels[1] = 255
    path = write(tmp_path / 'a.tif', pixels, alpha='YES')
    np.testing.assert_array_equal(both(path), pixels[[0, 0, 0]])


def test_alpha_that_cannot_be_read_is_no_error_of_its_own(tmp_path):
    """The reading of the pixels says it."""
    path = Path(write(tmp_path / 'a.tif', noise(4), compress='deflate'))
    path.write_bytes(path.read_bytes()[:-500])
    with rasterio.open(path) as file:
        assert opacity_of(file, 'a.tif') == 4


# -- tags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('tags, seen', [
    ((BLUE, GREEN, RED), [2, 1, 0]), ((BLUE, GREEN, RED, OTHER), [2, 1, 0]),
    ((OTHER, BLUE, GREEN, RED, OTHER), [3, 2, 1]), ((RED, GREEN, BLUE, OTHER), [0, 1, 2]),
    ((OTHER, OTHER, OTHER, RED), [0, 1, 2]), ((OTHER, BLUE, RED), [0, 1, 2]),
    ((BLUE, GREEN, RED, ALPHA), [2, 1, 0])])
def test_without_a_choice_the_tags_of_colors_count(tmp_path, tags, seen):
    pixels = noise(len(tags))
    path = write(tmp_path / 'a.tif', pixels, tags, photometric='MINISBLACK')
    np.testing.assert_array_equal(both(path), pixels[seen])
    np.testing.assert_array_equal(both(path, (1, 2, 3)), pixels[:3])


def test_four_channels_take_the_first_bands(tmp_path):
    path = write(tmp_path / 'a.tif', noise(5), (BLUE, GREEN, RED, OTHER, OTHER),
                 photometric='MINISBLACK')
    with rasterio.open(path) as file:
        assert choose_bands(file, None, 4) == (1, 2, 3, 4)
        assert choose_bands(file, None, 6) == (1, )


# -- two dates -----------------------------------------------------------------------------------


def test_near_infrared_of_an_older_date_is_no_weight_and_ends_where_the_date_ends(tmp_path):
    pixels = noise(4)
    pixels[:3] = np.arange(SIDE) * 8
    newer = write(tmp_path / 'new.tif', noise(3), (RED, GREEN, BLUE))
    older = write(tmp_path / 'old.tif', pixels, origin=(500_004.5, 5_200_000))
    with Scene(newer, Reading(None), before=older) as opened:
        values, valid = opened.read(0, 0, SIDE)
    middle = (pixels[:3, :, :-1].astype(float) + pixels[:3, :, 1:]) / 2
    assert np.abs(values[:3, :, 5:] - middle[:, :, :SIDE - 5]).max() <= 1
    assert valid[:, 5:].all() and not valid[:, :4].any()


def test_a_picture_needs_no_raster_bands():
    """Pillow's own alpha, as before."""
    rgba = noise(4).transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(rgba).save(stream, 'PNG')
    expected = (rgba[..., :3].astype(int) * rgba[..., 3:] + 127) // 255
    np.testing.assert_array_equal(decode_image(stream.getvalue()), expected)
