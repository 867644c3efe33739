import math

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from pera_mm.collect.fetch.mercator import ground_resolution, to_metres, to_pixels
from pera_mm.collect.fetch.tiles import (
    RasterSource,
    Refused,
    Tile,
    TileSource,
    date_of,
    harmless,
    join_dates,
)

TEXTS = dict(name='survey', terms='free for research', attribution='the survey')
XYZ = 'http://127.0.0.1/{z}/{x}/{y}.png'


def tile_source(url=XYZ, zooms=(0, 20), **settings):
    return TileSource(url=url, zooms=zooms, **TEXTS | settings)


# -- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize('url, expected', [
    (XYZ, 'http://127.0.0.1/3/3/5.png'),
    ('https://h/tms/{z}/{x}/{-y}.jpg', 'https://h/tms/3/3/2.jpg'),
    ('https://h/tiles/a{quadkey}.jpeg?g=1', 'https://h/tiles/a213.jpeg?g=1'),
    ('https://h/wmts/layer/style/grid/EPSG:3857:{TileMatrix}/{TileRow}/{TileCol}.png',
     'https://h/wmts/layer/style/grid/EPSG:3857:3/5/3.png'),
    ('https://h/wmts?SERVICE=WMTS&REQUEST=GetTile&TILEMATRIX={TileMatrix}&TILEROW={TileRow}'
     '&TILECOL={TileCol}',
     'https://h/wmts?SERVICE=WMTS&REQUEST=GetTile&TILEMATRIX=3&TILEROW=5&TILECOL=3'),
])
def test_every_protocol_by_its_template(url, expected):
    assert tile_source(url).address(Tile(3, 3, 5), '') == expected


def test_subdomains_take_turns_by_place():
    source = tile_source('https://{s}.h/{z}/{x}/{y}', subdomains=('a', 'b', 'c'))
    assert source.address(Tile(3, 3, 5), '') == 'https://c.h/3/3/5'
    assert {source.address(Tile(3, 3, row), '')[8] for row in range(3)} == set('abc')


def test_a_key_comes_from_the_environment(monkeypatch):
    source = tile_source(XYZ + '?key={key}', key_env='PERA_TEST_KEY')
    monkeypatch.delenv('PERA_TEST_KEY', raising=False)
    with pytest.raises(ValueError, match=r"'survey' needs a key: put it .* variable PERA_TEST_KEY"):
        source.key()
    monkeypatch.setenv('PERA_TEST_KEY', 'a/b=\n')
    assert source.key() == 'a/b='
    assert source.address(Tile(3, 3, 5), source.key()).endswith('5.png?key=a%2Fb%3D')
    monkeypatch.setenv('PERA_TEST_KEY', 'sécret')
    with pytest.raises(ValueError, match='a character that no key has') as caught:
        source.key()
    assert 'cret' not in str(caught.value)


@pytest.mark.parametrize('settings, message', [
    (dict(url='file:///{z}/{x}/{y}'), 'must start with http:// or https:// and a host'),
    (dict(url='http://h/{z}/{x}/{y}/{style}'), r'has the place \{style\}; known are \{z\}'),
    (dict(url='http://h/{z}/{x}'), 'must have the places of one protocol'),
    (dict(url='http://h/{z}/{x}/{y}/{quadkey}'), 'must have the places of one protocol'),
    (dict(url='http://{s}.h/{z}/{x}/{y}'), r'needs both \{s\} in its url and subdomains'),
    (dict(subdomains=('a',)), r'needs both \{s\}'),
    (dict(url=XYZ + '?key={key}'), r'needs both \{key\} in its url or headers and key_env'),
    (dict(key_env='KEY'), r'needs both \{key\}'),
    (dict(zooms=(5, 3)), r'zooms .* got \(5, 3\)'),
    (dict(zooms=(3,)), r'must be \(first, last\)'),
    (dict(zooms=(0, 40)), r'0 <= first <= last <= 28'),
    (dict(zooms=(0.0, 19.0)), r'whole numbers with 0 <= first .* got \(0\.0, 19\.0\)'),
    (dict(zooms=5), r'zooms of the source .* got 5'),
    (dict(rate=0), 'rate of the source .* must be a positive number, got 0'),
    (dict(rate='1'), "rate of the source .* must be a positive number, got '1'"),
    (dict(tile_size='256'), "tile_size of the source .* whole number of pixels, got '256'"),
    (dict(tile_size=256.0), r'tile_size of the source .* got 256\.0'),
    (dict(url=5), 'must start with http:// or https:// and a host, .* got 5'),
    (dict(url='http://h:99999/{z}/{x}/{y}'), 'a port up to 65535, got'),
    (dict(url='http://h:abc/{z}/{x}/{y}'), 'a port up to 65535, got'),
    (dict(url='http://h h/{z}/{x}/{y}'), 'must start with http'),
    (dict(headers=None), 'headers of the source .* must be names with texts in ASCII'),
    (dict(headers={'a': 5}), 'headers of the source'),
    (dict(headers={'a': 'x\ny'}), 'headers of the source'),
    (dict(date_header=5), 'date_header of the source .* must be a name, or None, got 5'),
    (dict(key_env=5), 'key_env of the source .* must be a name, or None, got 5'),
    (dict(subdomains=None), 'subdomains of the source .* must be texts, e.g. .* got None'),
    (dict(no_tile=404), r'no_tile of the source .* HTTP statuses other than 200, .* got 404'),
    (dict(no_tile=(200,)), 'no_tile of the source'),
    (dict(scale='auto'), r"scale of the source .* stretched one by one do not .* got 'auto'"),
    (dict(scale=(5, 3)), r'scale of the source .* with low < high, .* got \(5, 3\)'),
    (dict(terms=''), "needs terms, a text that is not empty, got ''"),
    (dict(attribution=' '), 'needs attribution'),
])
def test_a_wrong_setting_is_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        tile_source(**settings)


# -- zoom and tiles ------------------------------------------------------------------------------


def test_the_zoom_is_at_least_as_fine_and_all_pixels_are_there():
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, 500), rng.uniform(-80, 80, 500)
    gsd = np.exp(rng.uniform(np.log(0.3), np.log(10), 500))
    squares = tile_source().squares(lon, lat, gsd, 512)
    assert (squares.reason == '').all()
    np.testing.assert_allclose(squares.gsd, gsd)  # what was asked for is got
    native = ground_resolution(lat, squares.zoom)
    assert (native <= gsd * (1 + 1e-9)).all() and (2 * native > gsd).all()
    np.testing.assert_allclose(squares.side * native, 512 * gsd)  # metres
    x, y = to_pixels(lon, lat, squares.zoom)
    np.testing.assert_allclose((squares.left + squares.side / 2, squares.top + squares.side / 2),
                               (x, y))
    # The tiles cover the square and what the filter sees of its neighbourhood, and no more.
    reach = 1.5 * squares.side / 512
    assert (squares.west * 256 <= squares.left - reach).all()
    assert ((squares.west + 1) * 256 > squares.left - reach).all()
    assert ((squares.south + 1) * 256 >= squares.top + squares.side + reach).all()
    assert (squares.south * 256 < squares.top + squares.side + reach).all()


def test_a_source_that_is_too_coarse_gives_its_own_pixels():
    squares = tile_source(zooms=(0, 15)).squares([7.3], [45.0], [0.3], 512)
    native = ground_resolution(45, 15)
    square = squares.one(0)
    assert square.zoom == 15 and square.gsd == pytest.approx(native)
    assert (square.side, square.left % 1, square.top % 1) == (512, 0, 0)
    tiles = [np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
             for _ in square.tiles()]
    image = np.asarray(tile_source(zooms=(0, 15)).assemble(square, tiles, 512))
    columns = square.east - square.west + 1
    mosaic = np.block([[[tile] for tile in tiles[row:row + columns]]
                       for row in range(0, len(tiles), columns)])
    left, top = int(square.left) - square.west * 256, int(square.top) - square.north * 256
    np.testing.assert_array_equal(image, mosaic[top:top + 512, left:left + 512])


def test_tiles_of_512_pixels_are_one_zoom_deeper():
    here = ([7.3], [45.0], [2.0], 512)
    assert tile_source(tile_size=512).squares(*here).zoom == tile_source().squares(*here).zoom - 1


def test_the_antimeridian_is_crossed():
    square = tile_source().squares([180.0], [10.0], [10.0], 512).one(0)
    tiles = square.tiles()
    assert {tile.column for tile in tiles} > {0, 2 ** square.zoom - 1}
    assert all(0 <= tile.column < 2 ** square.zoom for tile in tiles)
    assert tiles == tile_source().squares([-180.0], [10.0], [10.0], 512).one(0).tiles()


def test_what_cannot_be_had_has_a_reason():
    squares = tile_source(zooms=(15, 20)).squares([0, 0, 0, 0], [85.06, 85.05, -84.9, 0],
                                                  [10, 10, 1, 100], 512)
    assert 'Web Mercator ends' in squares.reason[0] and squares.reason[1] == squares.reason[0]
    assert squares.reason[2] == ''
    assert squares.reason[3].startswith('needs over 8 x 8 times its pixels: the coarsest zoom, 15')


@pytest.mark.parametrize('gsd', [1.3, 2.7, 9.9])
@pytest.mark.parametrize('place', [(12.34, 56.78), (179.9999, -40.0), (-70.1, 0.0)])
def test_resampling_is_exact(gsd, place):
    # A slow wave over the ground, sampled at the tiles' pixels, must come out as the same wave
    # sampled at the image's pixels: no shift, no scale error, no seam.
    source = tile_source()
    square = source.squares(*([value] for value in place), [gsd], 512).one(0)
    world = 256 * 2 ** square.zoom

    def wave(x, y):
        phase = 2 * math.pi * (square.side / 3)**-1
        return np.stack([127.5 + 120 * np.sin(x * phase), 127.5 + 120 * np.cos(y * phase),
                         127.5 + 120 * np.sin((x - y) * phase)], axis=2)

    def tile(at):
        column = at.column + (2 ** square.zoom if at.column < square.west % 2 ** square.zoom else 0)
        x = column * 256 + np.arange(256) + 0.5
        y = at.row * 256 + np.arange(256)[:, None] + 0.5
        return wave(*np.broadcast_arrays(x, y)).round().astype(np.uint8)

    image = np.asarray(source.assemble(square, [tile(at) for at in square.tiles()], 512), float)
    step = square.side / 512
    x = (square.left % world) + (np.arange(512) + 0.5) * step
    y = square.top + (np.arange(512)[:, None] + 0.5) * step
    expected = wave(*np.broadcast_arrays(x, y))
    assert np.abs(image - expected).max() < 1.6  # two roundings, and the filter's own 0.1 %
    # A shift by a quarter of a pixel would be seen.
    moved = wave(*np.broadcast_arrays(x + step / 4, y))
    assert np.abs(image - moved).mean() > 1.5 * np.abs(image - expected).mean()


# -- rasters -------------------------------------------------------------------------------------


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
    """A gradient of 4 km at 10 m in UTM zone 32, with its centre at 9° E, 48° N."""
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
    x, y = (float(value) for value in to_metres(0, 0))
    path = write(tmp_path / 'a.tif', pixels, 'EPSG:3857',
                 Affine(resolution, 0, x - 128 * resolution, 0, -resolution, y + 128 * resolution))
    image, gsd = raster_source(path).render(0, 0, resolution, 128)
    assert gsd == pytest.approx(resolution)
    np.testing.assert_array_equal(image, pixels[:, 64:192, 64:192].transpose(1, 2, 0))


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
    with pytest.raises(Refused, match='outside of the rasters'):
        source.render(10.0, 48.0, 10.0, 200)
    with pytest.raises(Refused, match='Web Mercator ends'):
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


def test_blocks_that_are_too_large_to_decode_are_told(tmp_path):
    path = tmp_path / 'strip.tif'
    with rasterio.open(path, 'w', driver='GTiff', count=3, height=12_000, width=12_000,
                       dtype='float32', crs='EPSG:3857', transform=Affine(1, 0, 0, 0, -1, 8),
                       blockysize=12_000, interleave='pixel', compress='deflate', sparse_ok=True):
        pass
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r'blocks of 12000 x 12000 pixels \(1\.6 GiB\).*TILED=YES'):
        raster_source(str(path))


@pytest.mark.parametrize('date', ['2020', '2020-05-17', '5/17/2020-6/2/2020',
                                  'Sun, 17 May 2020 10:00:00 GMT', '2020-05-17T10:00:00.5+02:00'])
def test_what_servers_send_as_dates(date):
    assert date_of(f' {date} ') == date and harmless(date) == date
    assert join_dates([date, '', date]) == date


@pytest.mark.parametrize('text', ['', '=1', '-', '+1', '@a', '2020\n=1', 'a' * 65, 'ü', 'a|b'])
def test_what_is_not_a_date(text):
    assert date_of(text) == ''


def test_old_dates():
    assert harmless('spring 2021 – Nord (é)') == 'spring 2021 – Nord (é)'  # a user's own
    for value in ('=1', '-1', '@x', '2020\t=1', '9' * 257, None, 5, ['=1']):
        assert harmless(value) == ''
    assert len(join_dates([f'{index:064d}' for index in range(99)])) == 3 * 64 + 2
