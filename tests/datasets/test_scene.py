"""Scenes of every kind, read in windows: pixels, valid pixels, grids, polygons, and sentences."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from ranges import Ranges, serve
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.warp import transform as transform_points

from pera_mm.datasets.scene import Scene, list_scenes
from pera_mm.datasets.scene_grids import SETTINGS
from pera_mm.datasets.scene_pixels import Reading
from pera_mm.errors import UserError

UTM = 'EPSG:32632'
ORIGIN = 500_000, 5_200_000
RGB = Reading()
GRAY = Reading(bands=(1,), channels=1)


def write(path: Path, pixels: np.ndarray, gsd: float | None = 1., crs=UTM, origin=ORIGIN,
          **options) -> str:
    """A GeoTIFF of ``[C, H, W]``."""
    if gsd is not None:
        options |= dict(crs=crs, transform=from_origin(*origin, gsd, gsd))
    with rasterio.open(path, 'w', driver='GTiff', count=len(pixels), height=pixels.shape[1],
                       width=pixels.shape[2], dtype=pixels.dtype, **options) as file:
        file.write(pixels)
    return str(path)


def noise(*shape: int, low: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(low, 256, shape, dtype=np.uint8)


def read(place: str, reading: Reading = RGB, size: int = 16, at: tuple[int, int] = (0, 0),
         **options) -> tuple[np.ndarray, np.ndarray]:
    with Scene(place, reading, **options) as scene:
        return scene.read(*at, size)


# -- pixels --------------------------------------------------------------------------------------


def test_a_window_is_the_scene_there(tmp_path):
    pixels = noise(3, 40, 50)
    values, wanted = read(write(tmp_path / 'a.tif', pixels), at=(7, 20))
    np.testing.assert_array_equal(values, pixels[:, 7:23, 20:36])
    assert wanted.all() and values.dtype == np.uint8


@pytest.mark.parametrize('height, width', [(1, 1), (3, 20), (15, 16), (17, 5)])
def test_beyond_its_end_the_scene_is_mirrored_and_not_wanted(tmp_path, height, width):
    pixels = noise(3, height, width)
    values, wanted = read(write(tmp_path / 'a.tif', pixels))
    part = pixels[:, :16, :16]
    margins = [(0, 0), (0, 16 - part.shape[1]), (0, 16 - part.shape[2])]
    np.testing.assert_array_equal(values, np.pad(part, margins, mode='symmetric'))
    assert wanted[:height, :width].all() and wanted.sum() == part[0].size


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
def test_a_plain_picture_has_no_crs(tmp_path, suffix):
    pixels = noise(20, 30, 3)
    Image.fromarray(pixels).save(tmp_path / f'a.{suffix}', quality=100)
    with Scene(str(tmp_path / f'a.{suffix}'), RGB) as scene:
        assert (scene.height, scene.width, scene.crs) == (20, 30, None)
        assert scene.pixel_area() is None
        values, _ = scene.read(2, 3, 16)
    if suffix == 'png':
        np.testing.assert_array_equal(values, pixels[2:18, 3:19].transpose(2, 0, 1))


def test_bands_are_chosen_repeated_and_turned_around(tmp_path):
    pixels = noise(4, 16, 16)
    place = write(tmp_path / 'a.tif', pixels)
    np.testing.assert_array_equal(read(place, Reading(bands=(4, 1, 2)))[0], pixels[[3, 0, 1]])
    np.testing.assert_array_equal(read(place, Reading(bands=(2,)))[0], pixels[[1, 1, 1]])
    np.testing.assert_array_equal(read(place, Reading(is_bgr=True))[0], pixels[[2, 1, 0]])


def test_a_palette_becomes_rgb(tmp_path):
    place = write(tmp_path / 'a.tif', np.full((1, 16, 16), 7, np.uint8), photometric='palette')
    with rasterio.open(place, 'r+') as file:
        file.write_colormap(1, {7: (10, 20, 30, 255)})
    np.testing.assert_array_equal(read(place)[0][:, 3, 3], [10, 20, 30])


def test_a_scale_maps_deep_pixels(tmp_path):
    pixels = np.full((3, 16, 16), 1500, np.uint16)
    place = write(tmp_path / 'a.tif', pixels)
    assert (read(place, Reading(scale=(1000, 2000)))[0] == 128).all()
    raw, _ = read(place, Reading(scale=None))
    assert raw.dtype == np.float32 and (raw == 1500).all()


def test_percentiles_are_those_of_the_whole_scene(tmp_path):
    """A dark window stays dark."""
    pixels = np.zeros((3, 64, 64), np.uint16)
    pixels[:] = np.arange(64)[:, None] * 100
    dark, _ = read(place := write(tmp_path / 'a.tif', pixels))
    bright, _ = read(place, at=(48, 0))
    assert dark.max() < 70 and bright.min() > 180
    low, high = np.percentile(pixels[0], (2, 98))
    expected = np.clip((pixels[:, :16, :16] - low) / (high - low) * 255, 0, 255)
    np.testing.assert_allclose(dark, expected, atol=.51)


def test_a_scale_may_differ_from_band_to_band(tmp_path):
    pixels = np.arange(3 * 256).reshape(3, 16, 16).astype(np.uint16)
    place = write(tmp_path / 'a.tif', pixels)
    limits = ((0, 255), (256, 511), (512, 767))
    values, _ = read(place, Reading(scale=limits))
    np.testing.assert_array_equal(values, pixels % 256)
    with Scene(place, Reading(scale=limits)) as scene:
        assert scene.limits() == limits
    with Scene(place, Reading(scale=(0, 9))) as scene:
        assert scene.limits() == ((0, 9),) * 3
    with Scene(place, Reading(bands=(2,))) as scene:
        assert scene.limits() == (tuple(np.percentile(pixels[1], (2, 98))),)
    with Scene(write(tmp_path / 'b.tif', pixels.astype(np.uint8)), RGB) as scene:
        assert scene.limits() == ()


def test_where_a_sample_of_the_scene_is_empty_only_valid_windows_need_a_scale(tmp_path):
    pixels = np.zeros((1, 2100, 2100), np.uint16)
    pixels[0, 4, 4] = 500
    place = write(tmp_path / 'a.tif', pixels, nodata=0, compress='deflate')
    values, wanted = read(place, GRAY, at=(100, 100))
    assert not wanted.any() and not values.any() and values.dtype == np.uint8
    with pytest.raises(UserError, match='no valid pixel in a sample .* with --scale LOW HIGH'):
        read(place, GRAY)
    assert read(place, Reading((1,), 1, (0, 500)))[0][0, 4, 4] == 255


@pytest.mark.parametrize('bands, alpha, seen', [(4, False, [0, 1, 2]), (3, False, [0, 1, 2]),
                                                (2, False, [0, 0, 0]), (1, False, [0, 0, 0]),
                                                (4, True, [0, 1, 2]), (3, True, [0, 0, 0])])
def test_without_a_choice_the_first_bands_are_read(tmp_path, bands, alpha, seen):
    pixels = noise(bands, 16, 16)
    pixels[-1] |= 255 * alpha
    place = write(tmp_path / 'a.tif', pixels)
    with rasterio.open(place, 'r+') as file:
        file.colorinterp = [ColorInterp.gray] * (bands - 1) + [
            ColorInterp.alpha if alpha else ColorInterp.undefined]
    np.testing.assert_array_equal(read(place, Reading(bands=None))[0], pixels[seen])


# -- valid pixels --------------------------------------------------------------------------------


@pytest.fixture(params=['nodata', 'mask', 'alpha', 'nan'])
def holed(request, tmp_path) -> str:
    """A scene whose left half has no value, in four ways."""
    path, pixels = tmp_path / 'a.tif', noise(3, 16, 16)
    if request.param == 'nodata':
        pixels[:, :, :8] = 0
        return write(path, pixels, nodata=0)
    if request.param == 'nan':
        pixels = pixels.astype(np.float32)
        pixels[:, :, :8] = np.nan
        return write(path, pixels)
    if request.param == 'alpha':
        alpha = np.full((1, 16, 16), 255, np.uint8)
        alpha[:, :, :8] = 0
        return write(path, np.concatenate([pixels, alpha]), photometric='RGB', alpha='YES')
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write(path, pixels)
        with rasterio.open(path, 'r+') as file:
            mask = np.full((16, 16), 255, np.uint8)
            mask[:, :8] = 0
            file.write_mask(mask)
    return str(path)


def test_pixels_without_a_value_are_black_and_not_wanted(holed):
    values, wanted = read(holed)
    assert not wanted[:, :8].any() and wanted[:, 8:].all()
    assert not values[:, :, :8].any() and values[:, :, 8:].any()


def test_they_stay_so_when_the_scene_is_resampled(holed):
    values, wanted = read(holed, gsd=.5, size=32)
    assert not wanted[:, :14].any() and wanted[:, 18:].all()
    assert not values[:, :, :14].any()


def test_they_stay_so_in_an_older_date(holed, tmp_path):
    newer = write(tmp_path / 'new.tif', noise(3, 16, 16))
    values, wanted = read(newer, before=holed)
    assert not wanted[:, :7].any() and wanted[:, 9:].all()
    assert not values[:3, :, :7].any() and values[3:].all()


# -- grids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('gsd, factor', [(2., .5), (.5, 2)])
def test_gsd_changes_size_and_transform(tmp_path, gsd, factor):
    place = write(tmp_path / 'a.tif', np.full((3, 40, 60), 77, np.uint8))
    with Scene(place, RGB, gsd=gsd) as scene:
        assert (scene.height, scene.width) == (40 * factor, 60 * factor)
        assert scene.transform.a == gsd and scene.transform.e == -gsd
        assert (scene.transform.c, scene.transform.f) == ORIGIN
        assert scene.pixel_area() == gsd**2
        values, wanted = scene.read(0, 0, 16)
        assert wanted.all() and (values == 77).all()


def test_gsd_of_a_scene_in_degrees_is_that_of_its_middle(tmp_path):
    place = write(tmp_path / 'a.tif', noise(3, 100, 100), .001, 'EPSG:4326', (10, 60))
    with Scene(place, RGB) as scene:
        assert scene.pixel_area() == pytest.approx(111.32**2 * np.cos(np.radians(59.95)), rel=1e-3)


def test_an_older_date_is_moved_to_the_grid_of_the_newer(tmp_path):
    ground = noise(3, 60, 60)
    newer = write(tmp_path / 'new.tif', ground[:, 10:50, 10:50],
                  origin=(ORIGIN[0] + 10, ORIGIN[1] - 10))
    older = write(tmp_path / 'old.tif', ground[:, 5:40, 20:60],
                  origin=(ORIGIN[0] + 20, ORIGIN[1] - 5))
    with Scene(newer, RGB, before=older) as scene:
        values, wanted = scene.read(0, 0, 40)
        assert scene.overlap == pytest.approx(30 / 40 * 30 / 40, abs=.02)
    assert wanted[:30, 10:].all() and wanted.sum() == 30 * 30
    np.testing.assert_array_equal(values[:3, :30, 10:], values[3:, :30, 10:])


@pytest.mark.parametrize('gsd', [.5, 3.])
def test_colors_of_a_palette_are_not_mixed(tmp_path, gsd):
    colors = {1: (10, 20, 30, 255), 2: (0, 99, 0, 255), 9: (250, 0, 200, 255)}
    numbers = np.random.default_rng(0).choice([1, 9], (1, 30, 30)).astype(np.uint8)
    place = write(tmp_path / 'a.tif', numbers, photometric='palette')
    older = write(tmp_path / 'b.tif', numbers, photometric='palette',
                  origin=(ORIGIN[0] + .4, ORIGIN[1]))
    for path in (place, older):
        with rasterio.open(path, 'r+') as file:
            file.write_colormap(1, colors)
    known = {colors[1][:3], colors[9][:3]}
    for values, wanted in (read(place, gsd=gsd, size=9), read(place, before=older)):
        found = values.reshape(-1, 3, *wanted.shape).transpose(0, 2, 3, 1)[:, wanted]
        assert {tuple(color) for color in found.reshape(-1, 3).tolist()} == known


def test_dates_without_a_grid_must_have_one_size(tmp_path):
    for name, side in (('a', 16), ('b', 16), ('c', 15)):
        Image.fromarray(noise(side, 16, 3)).save(tmp_path / f'{name}.png')
    values, wanted = read(str(tmp_path / 'a.png'), before=str(tmp_path / 'b.png'))
    assert values.shape == (6, 16, 16) and wanted.all()
    with pytest.raises(UserError, match='c.png is 16 x 15 and .*a.png is 16 x 16 pixels: dates'):
        Scene(str(tmp_path / 'a.png'), RGB, before=str(tmp_path / 'c.png'))


# -- polygons ------------------------------------------------------------------------------------


def polygons(path: Path, *boxes: tuple[float, float, float, float], crs: str = UTM) -> Path:
    """A GeoJSON in degrees of boxes in the CRS: left, top, right, bottom."""
    features = []
    for left, top, right, bottom in boxes:
        xs, ys = transform_points(crs, 'EPSG:4326', [left, right, right, left, left],
                                  [top, top, bottom, bottom, top])
        features.append(dict(type='Feature', properties={}, geometry=dict(
            type='Polygon', coordinates=[list(zip(xs, ys))])))
    path.write_text(json.dumps(dict(type='FeatureCollection', features=features)))
    return path


def test_only_pixels_inside_polygons_are_wanted(tmp_path):
    pytest.importorskip('pyogrio')
    x, y = ORIGIN
    aoi = polygons(tmp_path / 'a.geojson', (x + 4.2, y - 3.2, x + 10.2, y - 7.2))
    pixels = noise(3, 40, 40)
    with Scene(write(tmp_path / 'a.tif', pixels), RGB, aoi=aoi) as scene:
        values, wanted = scene.read(0, 0, 16)
        assert wanted[3:7, 4:10].all() and wanted.sum() == 24
        np.testing.assert_array_equal(values, pixels[:, :16, :16])  # the model sees the rest
        assert scene.may_have_pixels(0, 0, 16, 16) and not scene.may_have_pixels(20, 0, 16, 16)
        assert not scene.read(20, 0, 16)[1].any()


def test_polygons_beside_the_scene_are_an_error(tmp_path):
    pytest.importorskip('pyogrio')
    x, y = ORIGIN
    aoi = polygons(tmp_path / 'a.geojson', (x - 20, y, x - 10, y - 10))
    with pytest.raises(UserError, match=r'No polygon of .*a.geojson touches .*a.tif'):
        Scene(write(tmp_path / 'a.tif', noise(3, 20, 20)), RGB, aoi=aoi)


def test_the_package_that_polygons_need_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyogrio', None)
    with pytest.raises(UserError, match=r'^reading polygons .* needs the package pyogrio, which is '
                       'not installed: pip install '):
        Scene(write(tmp_path / 'a.tif', noise(3, 20, 20)), RGB, aoi=tmp_path / 'a.geojson')


# -- sparse scenes -------------------------------------------------------------------------------


def mosaic(path: Path, side: int, source: str, size: int, places: list[tuple[int, int]]) -> str:
    """A VRT of ``side`` pixels with a source of ``size`` pixels at places (row, column)."""
    bands = ''
    for band in (1, 2, 3):
        sources = ''.join(
            f'<SimpleSource><SourceFilename>{source}</SourceFilename><SourceBand>{band}'
            f'</SourceBand><SrcRect xOff="0" yOff="0" xSize="{size}" ySize="{size}"/><DstRect '
            f'xOff="{column}" yOff="{row}" xSize="{size}" ySize="{size}"/></SimpleSource>'
            for row, column in places)
        bands += (f'<VRTRasterBand dataType="Byte" band="{band}"><NoDataValue>0</NoDataValue>'
                  f'{sources}</VRTRasterBand>')
    path.write_text(f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}">{bands}</VRTDataset>')
    return str(path)


def test_a_vrt_is_not_read_where_it_has_no_source(tmp_path):
    pixels = noise(3, 20, 20)
    source = write(tmp_path / 'a.tif', pixels)
    place = mosaic(tmp_path / 'a.vrt', 200_000, source, 20, [(100, 200), (150_000, 199_980)])
    with Scene(place, RGB) as scene:
        assert not scene.may_have_pixels(0, 0, 64, 64)
        assert not scene.may_have_pixels(120, 200, 64, 64)
        assert not scene.may_have_pixels(100, 220, 64, 64)
        assert scene.may_have_pixels(119, 219, 64, 64) and scene.may_have_pixels(37, 137, 64, 64)
        values, wanted = scene.read(150_000, 199_936, 64)
        np.testing.assert_array_equal(values[:, :20, 44:], pixels)
        assert wanted.sum() == 400


def test_without_nodata_the_background_of_a_vrt_is_a_value(tmp_path):
    source = write(tmp_path / 'a.tif', noise(3, 20, 20))
    place = Path(mosaic(tmp_path / 'a.vrt', 100, source, 20, [(0, 0)]))
    place.write_text(place.read_text().replace('<NoDataValue>0</NoDataValue>', ''))
    with Scene(str(place), RGB) as scene:
        assert scene.may_have_pixels(50, 50, 16, 16) and scene.read(50, 50, 16)[1].all()


# -- URLs ----------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path) -> Iterator[tuple[str, np.ndarray]]:
    """The address of a COG of 2 MB, and its pixels."""
    pixels = noise(3, 800, 900)
    rasterio.shutil.copy(write(tmp_path / 'source.tif', pixels), tmp_path / 'cog.tif', driver='COG',
                         BLOCKSIZE=128, COMPRESS='DEFLATE')
    with serve(tmp_path / 'cog.tif') as address:
        yield address, pixels


def test_of_a_served_cog_only_the_window_is_fetched(served):
    address, pixels = served
    values, wanted = read(address, at=(300, 400))
    np.testing.assert_array_equal(values, pixels[:, 300:316, 400:416])
    assert wanted.all() and 0 < sum(Ranges.sent) < len(Ranges.content) / 4


def test_an_address_without_a_file_is_named(served):
    with pytest.raises(UserError, match=r'/b.tif cannot be opened as a raster \('):
        Scene(served[0].replace('a.tif', 'b.tif'), RGB)


def test_a_decoded_tile_is_kept_for_the_next_window(tmp_path):
    """Windows overlap: decoding a tile for each of them took most of the time of a map."""
    path = tmp_path / 'a.tif'
    write(path, noise(3, 64, 64), tiled=True, blockxsize=16, blockysize=16, compress='deflate')
    with rasterio.Env(**SETTINGS), Scene(str(path), RGB) as scene:
        before = scene.read(0, 0, 64)[0]
        path.write_bytes(bytes(path.stat().st_size))
        assert (scene.read(0, 0, 64)[0] == before).all()


# -- sentences -----------------------------------------------------------------------------------


def test_a_damaged_tile_is_named_with_its_place(tmp_path):
    path = tmp_path / 'a.tif'
    write(path, noise(3, 64, 64), tiled=True, blockxsize=32, blockysize=32, compress='deflate')
    data = bytearray(path.read_bytes())
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item('BLOCK_OFFSET_1_1', 'TIFF', bidx=1))
    data[offset:offset + 200] = bytes(200)
    path.write_bytes(data)
    assert read(str(path), size=32)[1].all()
    with pytest.raises(UserError, match=r'a.tif cannot be read at rows 32 to 64, columns 32 to 64 '
                                        r'\(.*: repair or replace the file'):
        read(str(path), size=32, at=(32, 32))


@pytest.mark.parametrize('bands, message', [
    (2, r'a.tif has 2 bands, and the model takes the bands 1, 2, 3: .* --bands'),
    (1, r'a.tif has 1 band, and the model takes the bands 1, 2, 3')])
def test_a_missing_band_is_named(tmp_path, bands, message):
    with pytest.raises(UserError, match=message):
        Scene(write(tmp_path / 'a.tif', noise(bands, 16, 16)), RGB)


def test_alpha_is_not_a_band(tmp_path):
    pixels = noise(3, 16, 16)
    pixels[2] = 255
    place = write(tmp_path / 'a.tif', pixels)
    with rasterio.open(place, 'r+') as file:
        file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.alpha]
    with pytest.raises(UserError, match='has 2 bands'):
        Scene(place, RGB)


@pytest.mark.parametrize('options, message', [
    (dict(gsd=1), r'a.png has no georeference, so the size of its pixels is unknown'),
    (dict(before='b.tif'), r'a.png has no georeference, and the other date has one'),
    (dict(before='nowhere.tif'), r'nowhere.tif cannot be opened as a raster')])
def test_what_a_plain_picture_lacks_is_named(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(noise(16, 16, 3)).save('a.png')
    write(Path('b.tif'), noise(3, 16, 16))
    with pytest.raises(UserError, match=message):
        Scene('a.png', RGB, **options)


def test_dates_of_two_places_are_named(tmp_path):
    older = write(tmp_path / 'old.tif', noise(3, 16, 16), origin=(ORIGIN[0] + 500, ORIGIN[1]))
    with pytest.raises(UserError, match='old.tif and .*new.tif do not overlap'):
        Scene(write(tmp_path / 'new.tif', noise(3, 16, 16)), RGB, before=older)


def test_pixels_far_from_the_training_data_are_named(tmp_path):
    place = write(tmp_path / 'a.tif', noise(3, 16, 16), gsd=5)
    reading = Reading(gsd=.5)
    with pytest.raises(UserError, match=r'pixels of 5 m, .* learned from 0.5 m: resample with '
                                        r'--gsd 0.5, or say --gsd 5'):
        Scene(place, reading)
    with Scene(place, reading, gsd=5) as scene:
        assert scene.width == 16


def test_complex_pixels_are_refused(tmp_path):
    place = write(tmp_path / 'a.tif', np.ones((3, 16, 16), np.complex64))
    with pytest.raises(UserError, match='complex pixels'):
        read(place)


# -- lists ---------------------------------------------------------------------------------------


def test_folders_and_lists_become_scenes(tmp_path):
    for name in ('b.tif', 'a.png', 'c.vrt', 'notes.md', '.hidden.tif'):
        (tmp_path / name).touch()
    folder = [str(tmp_path / name) for name in ('a.png', 'b.tif', 'c.vrt')]
    assert list_scenes([str(tmp_path)]) == folder
    (tmp_path / 'list.txt').write_text(f'{tmp_path}/c.vrt\n\nhttps://x.org/y.tif\n')
    assert list_scenes([str(tmp_path / 'list.txt'), folder[0]]) == [
        folder[2], 'https://x.org/y.tif', folder[0]]


@pytest.mark.parametrize('place, message', [
    ('nowhere.tif', r'There is no scene \S*nowhere.tif: give'),
    ('empty', 'No raster in the folder')])
def test_places_without_a_scene_are_named(tmp_path, place, message):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=message):
        list_scenes([str(tmp_path / place)])
