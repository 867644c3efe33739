import numpy as np
import pytest
import rasterio
from rasterio import Affine

from pera_mm.collect.fetch.mercator import ground_resolution, to_meters
from pera_mm.collect.fetch.rasters import RasterSource
from pera_mm.collect.fetch.sources import NotAvailable

TEXTS = dict(name='survey', terms='free for research', attribution='the survey')


def write(path, pixels, crs, transform, **profile):
    """A GeoTIFF of pixels [bands, H, W]."""
    with rasterio.open(path, 'w', driver='GTiff', count=len(pixels), height=pixels.shape[1],
                       width=pixels.shape[2], dtype=pixels.dtype, crs=crs, transform=transform,
                       **profile) as raster:
        raster.write(pixels)
    return str(path)


def gradient(size=400):
    y, x = np.mgrid[:size, :size]
    return np.stack([x * 255 / size, y * 255 / size, 255 - x * 255 / size]).astype(np.uint8)


def raster_source(paths, **settings):
    return RasterSource(paths=paths, **TEXTS | settings)


@pytest.fixture
def utm(tmp_path):
    """A gradient of 4 km at 10 m in UTM zone 32, with its center at 9° E, 48° N."""
    (x,), (y,) = rasterio.warp.transform('EPSG:4326', 'EPSG:32632', [9.0], [48.0])
    return write(tmp_path / 'utm.tif', gradient(), 'EPSG:32632',
                 Affine(10, 0, x - 2000, 0, -10, y + 2000))


def test_a_raster_is_read_at_the_place_and_the_scale(utm):
    source = raster_source(utm)
    image, gsd = source.render(9.0, 48.0, 10.0, 200)  # the middle half
    assert gsd == pytest.approx(10, rel=0.005) and image.shape == (200, 200, 3)
    # UTM on the ellipsoid and Mercator on the sphere differ by up to 0.5 %: 1 pixel at the edge.
    expected = (np.arange(200) + 0.5 + 100) * 255 / 400
    assert np.abs(image[100, :, 0] - expected).max() < 1.5
    assert np.abs(image[:, 100, 1] - expected).max() < 1.5
    half, gsd = source.render(9.0, 48.0, 20.0, 200)  # all of it
    assert gsd == 20.0
    assert np.abs(half[100, 5:-5, 0] - (np.arange(200) + 0.5)[5:-5] * 255 / 200).max() < 2


def test_a_raster_that_is_too_coarse_decides(utm):
    image, gsd = raster_source(utm).render(9.0, 48.0, 0.5, 100)
    assert gsd == pytest.approx(10, rel=0.005)
    assert np.ptp(image[50, :, 0]) == pytest.approx(100 / 400 * 255, abs=3)


def test_the_raster_that_has_the_pixel_in_the_middle_decides(tmp_path, utm):
    (x,), (y,) = rasterio.warp.transform('EPSG:4326', 'EPSG:32632', [9.0], [48.0])
    fine = np.zeros((3, 800, 800), np.uint8)
    fine[:, :, :300] = 99
    top = write(tmp_path / 'fine.tif', fine, 'EPSG:32632',
                Affine(0.5, 0, x - 200, 0, -0.5, y + 200), nodata=0)
    source = raster_source([top, utm])
    image, gsd = source.render(9.0, 48.0, 0.5, 200)  # the fine one has nothing here
    assert gsd == pytest.approx(10, rel=0.005)
    np.testing.assert_array_equal(image, source.render(9.0, 48.0, gsd, 200)[0])
    (lon,), (lat,) = rasterio.warp.transform('EPSG:32632', 'EPSG:4326', [x - 150], [y])
    assert source.render(lon, lat, 0.5, 100)[1] == pytest.approx(0.5, rel=0.005)
    # Nearly all is fine, only the middle is not: what is looked at is there.
    ring = np.full((3, 800, 800), 99, np.uint8)
    ring[:, 380:420, 380:420] = 0
    around = write(tmp_path / 'ring.tif', ring, 'EPSG:32632',
                   Affine(0.5, 0, x - 200, 0, -0.5, y + 200), nodata=0)
    image, gsd = raster_source([around, utm]).render(9.0, 48.0, 0.5, 200)
    assert gsd == pytest.approx(10, rel=0.005)
    # Nothing in the middle, a little of the fine one at the side: it is all there is.
    (lon,), (lat,) = rasterio.warp.transform('EPSG:32632', 'EPSG:4326', [x - 40], [y])
    image, gsd = raster_source(top).render(lon, lat, 0.5, 100)
    assert gsd == pytest.approx(0.5, rel=0.005) and not image[50, 50].any() and image.any()


def test_longitudes_from_0_to_360(tmp_path):
    pixels = np.stack([np.tile(np.arange(360) // 2, (180, 1))] * 3).astype(np.uint8)
    east = raster_source(write(tmp_path / 'east.tif', pixels, 'EPSG:4326',
                               Affine(1, 0, 0, 0, -1, 90)))
    usual = raster_source(write(tmp_path / 'usual.tif', np.roll(pixels, 180, axis=2), 'EPSG:4326',
                                Affine(1, 0, -180, 0, -1, 90)))
    for lon in (-90, 90, -150, 150):
        np.testing.assert_array_equal(east.render(lon, 10, 60_000, 20)[0],
                                      usual.render(lon, 10, 60_000, 20)[0])
    for lon in (-180, 0, 180):
        assert (east.render(lon, 10, 60_000, 20)[0][..., 0] > 0).mean() > 0.95


def test_a_raster_on_the_tiles_own_pixels_comes_back_unchanged(tmp_path):
    resolution = float(ground_resolution(0, 14))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 256, 256), np.uint8)
    x, y = (float(value) for value in to_meters(0, 0))
    path = write(tmp_path / 'a.tif', pixels, 'EPSG:3857',
                 Affine(resolution, 0, x - 128 * resolution, 0, -resolution, y + 128 * resolution))
    image, gsd = raster_source(path).render(0, 0, resolution, 128)
    assert gsd == pytest.approx(resolution)
    np.testing.assert_array_equal(image, pixels[:, 64:192, 64:192].transpose(1, 2, 0))


def test_bands_tagged_blue_green_and_red_are_put_in_order(utm):
    straight, _ = raster_source(utm).render(9.0, 48.0, 10.0, 100)
    with rasterio.open(utm, 'r+') as raster:
        raster.colorinterp = [rasterio.enums.ColorInterp[color]
                              for color in ('blue', 'green', 'red')]
    turned, _ = raster_source(utm).render(9.0, 48.0, 10.0, 100)
    np.testing.assert_array_equal(turned, straight[..., ::-1])


def test_the_first_valid_pixel_wins_in_any_projections(tmp_path, utm):
    # The first raster: geographic, its western half without data; below it the gradient.
    pixels = np.full((3, 100, 100), 77, np.uint8)
    pixels[:, :, :50] = 0
    top = write(tmp_path / 'top.tif', pixels, 'EPSG:4326',
                Affine(2e-4, 0, 8.99, 0, -2e-4, 48.01), nodata=0)
    image, _ = raster_source([top, utm]).render(9.0, 48.0, 20.0, 200)
    assert (image[100, 105:125] == 77).all()  # east of the middle, the first one
    alone, _ = raster_source([utm]).render(9.0, 48.0, 20.0, 200)
    np.testing.assert_array_equal(image[:, :90], alone[:, :90])
    below, _ = raster_source([utm, top]).render(9.0, 48.0, 20.0, 200)
    np.testing.assert_array_equal(below[20:180, 20:180], alone[20:180, 20:180])


def test_what_no_raster_has_is_black_or_refused(utm):
    source = raster_source(utm)
    image, _ = source.render(9.0, 48.0, 60.0, 200)
    assert not image[:20].any() and image[100].any()
    with pytest.raises(NotAvailable, match='outside of the rasters'):
        source.render(10.0, 48.0, 10.0, 200)
    with pytest.raises(NotAvailable, match='Web Mercator ends'):
        source.render(9.0, 85.05, 10.0, 200)


def test_rasters_on_both_sides_of_the_antimeridian(tmp_path):
    west = write(tmp_path / 'west.tif', np.full((1, 50, 50), 50, np.uint8), 'EPSG:4326',
                 Affine(0.01, 0, 179.5, 0, -0.01, 0.25))
    east = write(tmp_path / 'east.tif', np.full((1, 50, 50), 200, np.uint8), 'EPSG:4326',
                 Affine(0.01, 0, -180.0, 0, -0.01, 0.25))
    for lon in (180.0, -180.0):
        image, _ = raster_source([west, east]).render(lon, 0.0, 1200.0, 20)
        assert (image[:, :9] == 50).all() and (image[:, 11:] == 200).all()
    zone_1 = write(tmp_path / 'utm1.tif', np.full((1, 400, 400), 90, np.uint8), 'EPSG:32701',
                   Affine(100, 0, 150_000, 0, -100, 9_020_000))  # from 179.8 E to 177 W
    source = raster_source(zone_1)
    (lon,), (lat,) = rasterio.warp.transform('EPSG:32701', 'EPSG:4326', [166_000], [9_000_000])
    assert lon > 179.9 or lon < -179.9
    image, _ = source.render(lon, lat, 100.0, 100)
    assert (image == 90).all()


def test_bands_and_scale(tmp_path):
    pixels = np.stack([np.full((50, 50), value, np.uint16) for value in (1000, 2000, 3000, 4000)])
    path = write(tmp_path / 'deep.tif', pixels, 'EPSG:3857', Affine(10, 0, 0, 0, -10, 500))
    for bands, expected in (((4, 2, 1), [255, 128, 64]), ([3], [191, 191, 191])):
        source = raster_source(path, bands=bands, scale=(0, 4000))
        image, _ = source.render(0.00225, 0.00225, 10, 20)
        assert image[10, 10].tolist() == expected


def test_real_orthophotos(shared_data):
    path = shared_data / 'geo' / 'naip_20200831.tif'
    with rasterio.open(path) as raster:
        x, y = raster.xy(raster.height // 2, raster.width // 2)
        (lon,), (lat,) = rasterio.warp.transform(raster.crs, 'EPSG:4326', [x], [y])
        pixels = raster.read((1, 2, 3))
    image, gsd = raster_source(str(path)).render(lon, lat, 2.0, 128)
    assert gsd >= 2 * 0.99 and image.std() > 10
    assert np.abs(image.mean((0, 1)) - pixels.mean((1, 2))).max() < 40


@pytest.mark.parametrize('make, message', [
    (lambda folder: [], 'name at least one raster'),
    (lambda folder: str(folder / '*.tif'), r'no raster matches .*\*\.tif'),
    (lambda folder: write(folder / 'a.tif', gradient(8), None, Affine(1, 0, 0, 0, -1, 8)),
     r'a\.tif has no georeference; give it one'),
    (lambda folder: [write(folder / 'a.tif', gradient(8), 'EPSG:3857', Affine(1, 0, 0, 0, -1, 8)),
                     write(folder / 'b.tif', gradient(8).astype(np.uint16), 'EPSG:3857',
                           Affine(1, 0, 0, 0, -1, 8))],
     r'same type of pixels: .*a\.tif has uint8, .*b\.tif uint16'),
])
@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_wrong_rasters_are_one_sentence(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        raster_source(make(tmp_path))


def test_more_wrong_rasters(tmp_path, utm):
    with pytest.raises(ValueError, match=r'utm\.tif has 3 bands; bands asks for 4'):
        raster_source(utm, bands=(4,))
    with pytest.raises(ValueError, match='1-based band numbers'):
        raster_source(utm, bands=(1, 2))
    (tmp_path / 'text.tif').write_text('no raster')
    with pytest.raises(ValueError, match=r'text\.tif cannot be read as a raster'):
        raster_source(str(tmp_path / 'text.tif'))
    path = tmp_path / 'palette.tif'
    with rasterio.open(path, 'w', driver='GTiff', count=1, height=8, width=8, dtype='uint8',
                       crs='EPSG:3857', transform=Affine(1, 0, 0, 0, -1, 8)) as raster:
        raster.write(np.zeros((1, 8, 8), np.uint8))
        raster.write_colormap(1, {0: (1, 2, 3, 255)})
    with pytest.raises(ValueError, match=r'has a palette; expand it first'):
        raster_source(str(path))


def test_blocks_that_are_too_large_to_decode_are_refused(tmp_path):
    path = tmp_path / 'strip.tif'
    with rasterio.open(path, 'w', driver='GTiff', count=3, height=12_000, width=12_000,
                       dtype='float32', crs='EPSG:3857', transform=Affine(1, 0, 0, 0, -1, 8),
                       blockysize=12_000, interleave='pixel', compress='deflate', sparse_ok=True):
        pass
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r'blocks of 12000 x 12000 pixels \(1\.6 GiB\).*TILED=YES'):
        raster_source(str(path))
