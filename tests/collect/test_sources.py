import math

import numpy as np
import pytest

from pera_mm.collect.fetch.mercator import ground_resolution, to_pixels
from pera_mm.collect.fetch.tiles import Tile, TileSource

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
    with pytest.raises(ValueError, match='a character that is not printable ASCII') as caught:
        source.key()
    assert 'cret' not in str(caught.value)


@pytest.mark.parametrize('settings, message', [
    (dict(url='file:///{z}/{x}/{y}'), 'must start with http:// or https:// and a host'),
    (dict(url='http://h/{z}/{x}/{y}/{style}'), r'has the field \{style\}; known are \{z\}'),
    (dict(url='http://h/{z}/{x}'), 'must have the fields of one protocol'),
    (dict(url='http://h/{z}/{x}/{y}/{quadkey}'), 'must have the fields of one protocol'),
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
    np.testing.assert_allclose(squares.gsd, gsd)  # the result is as requested
    native = ground_resolution(lat, squares.zoom)
    assert (native <= gsd * (1 + 1e-9)).all() and (2 * native > gsd).all()
    np.testing.assert_allclose(squares.side * native, 512 * gsd)  # meters
    x, y = to_pixels(lon, lat, squares.zoom)
    np.testing.assert_allclose((squares.left + squares.side / 2, squares.top + squares.side / 2),
                               (x, y))
    # The tiles cover the square and what the filter sees of its neighborhood, and no more.
    reach = 1.5 * squares.side / 512
    assert (squares.west * 256 <= squares.left - reach).all()
    assert ((squares.west + 1) * 256 > squares.left - reach).all()
    assert ((squares.south + 1) * 256 >= squares.top + squares.side + reach).all()
    assert (squares.south * 256 < squares.top + squares.side + reach).all()


def test_a_source_that_is_too_coarse_gives_its_own_pixels():
    squares = tile_source(zooms=(0, 15)).squares([7.3], [45.0], [0.3], 512)
    native = ground_resolution(45, 15)
    square = squares.at(0)
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
    square = tile_source().squares([180.0], [10.0], [10.0], 512).at(0)
    tiles = square.tiles()
    assert {tile.column for tile in tiles} > {0, 2 ** square.zoom - 1}
    assert all(0 <= tile.column < 2 ** square.zoom for tile in tiles)
    assert tiles == tile_source().squares([-180.0], [10.0], [10.0], 512).at(0).tiles()


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
    square = source.squares(*([value] for value in place), [gsd], 512).at(0)
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
