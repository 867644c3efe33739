"""Land-cover rasters: true areas and places in any coordinate system, legends, bad files."""

import contextlib
import functools
import http.server
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.warp import transform
from rasterio.windows import Window
from scipy.stats import kstest

from pera_mm.collect.common.gdal import OpenRasters, find_rasters, in_threads
from pera_mm.collect.sample.landcover import LEGENDS, NO_DATA, LandCover

UTM33 = 'EPSG:32633'  # central meridian 15 degrees east
A, F = 6378137.0, 1 / 298.257223563  # WGS84
E = (F * (2 - F))**0.5


def write(path, codes, crs='EPSG:4326', affine=None, **options):
    codes = np.asarray(codes)
    affine = affine or from_origin(10, 50, 0.001, 0.001)
    with rasterio.open(path, 'w', driver='GTiff', height=codes.shape[-2], width=codes.shape[-1],
                       count=1 if codes.ndim == 2 else len(codes), dtype=codes.dtype, crs=crs,
                       transform=affine, **options) as file:
        file.write(codes if codes.ndim == 3 else codes[None])
    return str(path)


def band_area(south, north):
    """Area of the ellipsoid between two latitudes, km²; the textbook's closed form."""
    def q(degrees):
        s = np.sin(np.radians(degrees))
        return s / (1 - (E * s)**2) + np.arctanh(E * s) / E

    return np.pi * (A * (1 - E**2)**0.5)**2 * (q(north) - q(south)) / 1e6


def total_area(land):
    total = 0.0
    for number in range(len(land.rasters)):
        for window in land.windows(number):
            grid = land.grid(number, window)
            valid = land.read(number, window) != NO_DATA
            total += grid.areas()[valid & land.not_covered_earlier(number, grid)].sum()
    return total


# -- areas and places ----------------------------------------------------------------------------


def test_the_globe_has_the_area_of_the_ellipsoid(tmp_path):
    path = write(tmp_path / 'globe.tif', np.ones((180, 360), np.uint8),
                 affine=from_origin(-180, 90, 1, 1))
    land = LandCover(path)
    assert total_area(land) == pytest.approx(510_065_621.7, rel=1e-8)
    grid = land.grid(0, next(land.windows(0)))
    assert grid.pixel_areas()[30] == pytest.approx(band_area(59, 60) / 360, rel=1e-6)


@pytest.mark.parametrize(('west', 'north', 'width', 'height'), [
    (0, 90, 360, 180), (-180.05, 90.05, 360, 180.1)])
def test_a_globe_from_greenwich_or_over_the_poles_is_a_globe_too(tmp_path, west, north,
                                                                 width, height):
    affine = from_origin(west, north, width / 720, height / 360)
    land = LandCover(write(tmp_path / 'a.tif', np.ones((360, 720), np.uint8), affine=affine))
    assert total_area(land) == pytest.approx(510_065_621.7, rel=1e-6)
    lon, lat = land.grid(0, next(land.windows(0))).cell_centers()
    assert lon.min() < -179 and 179 < lon.max() < 180 and np.abs(lat).max() < 90
    write(tmp_path / 'b.tif', np.ones((360, 720), np.uint8), affine=affine)
    # Two copies cover no more.
    assert total_area(LandCover(str(tmp_path / '*.tif'))) == pytest.approx(510_065_621.7, rel=1e-6)


def test_pixels_of_utm_have_their_area_on_the_ground(tmp_path):
    # On the central meridian the scale is 0.9996, 180 km away 1.0004.
    codes = np.ones((300, 300), np.uint8)
    middle = write(tmp_path / 'a.tif', codes, UTM33, from_origin(498_500, 5_300_000, 10, 10))
    assert total_area(LandCover(middle)) == pytest.approx(9 / 0.9996**2, rel=1e-5)
    edge = write(tmp_path / 'b.tif', codes, UTM33, from_origin(678_500, 5_300_000, 10, 10))
    assert total_area(LandCover(edge)) == pytest.approx(9 / 1.0000**2, rel=2e-4)
    assert total_area(LandCover(edge)) < total_area(LandCover(middle))


@pytest.mark.parametrize('crs', ['EPSG:4326', UTM33, 'EPSG:3857', 'ESRI:54009'])
def test_a_pixels_place_is_where_its_raster_says(tmp_path, crs):
    lon, lat = np.array([13.0]), np.array([47.0])
    (x,), (y,) = transform('EPSG:4326', crs, lon, lat)
    size = 0.0001 if crs == 'EPSG:4326' else 10.0
    affine = from_origin(x, y, size, size)
    land = LandCover(write(tmp_path / 'a.tif', np.ones((700, 900), np.uint8), crs, affine))
    window = Window(100, 50, 800, 650)
    rows, cols = (np.random.default_rng(0).integers(size, size=2000) for size in (650, 800))

    def places(land):
        lon, lat = land.random_places(0, land.grid(0, window), rows // land.step, cols // land.step,
                               np.random.default_rng(1))
        x, y = transform('EPSG:4326', crs, lon, lat)
        return np.array(rasterio.transform.rowcol(affine, x, y, op=lambda axis: axis))

    middles = np.minimum(rows // 4 * 4 + 2, 649), cols // 4 * 4 + 2  # the last square is cut
    for step, pixels in ((1, (rows, cols)), (4, middles)):
        within = places(LandCover(land.rasters[0].path, step=step)) - pixels - [[50], [100]]
        assert 0 < within.min() < 0.015 and 0.985 < within.max() < 1
        assert kstest(within.ravel(), 'uniform').pvalue > 0.001
    spread = places(LandCover(land.rasters[0].path, step=5, overviews=True)) - [[50], [100]]
    assert np.array_equal(spread.astype(int) // 5, (rows // 5, cols // 5))
    assert kstest((spread / 5 % 1).ravel(), 'uniform').pvalue > 0.001


def test_a_window_across_the_antimeridian_stays_whole(tmp_path):
    # UTM zone 60 with the 180th meridian in the middle, 20 degrees north.
    (x,), (y,) = transform('EPSG:4326', 'EPSG:32660', [179.9999], [20.0])
    path = write(tmp_path / 'a.tif', np.ones((400, 400), np.uint8), 'EPSG:32660',
                 from_origin(x - 2000, y + 2000, 10, 10))
    land = LandCover(path)
    assert total_area(land) == pytest.approx(16, rel=3e-3)
    lon, lat = land.grid(0, Window(0, 0, 400, 400)).cell_centers()
    assert (lon >= -180).all() and (lon < 180).all()
    assert (lon > 179.9).any() and (lon < -179.9).any() and (np.abs(np.abs(lon) - 180) < 0.03).all()
    assert land.rasters[0].bounds[:3:2] == pytest.approx((179.98, 180.02), abs=2e-3)
    # Zone 1 sees the same ground from the other side, and adds nothing to it.
    (x,), (y,) = transform('EPSG:4326', 'EPSG:32601', [179.9999], [20.0])
    write(tmp_path / 'b.tif', np.ones((380, 380), np.uint8), 'EPSG:32601',
          from_origin(x - 1900, y + 1900, 10, 10))
    assert total_area(LandCover(str(tmp_path / '*.tif'))) == pytest.approx(16, rel=0.01)


def test_windows_cover_every_pixel_once(tmp_path):
    land = LandCover(write(tmp_path / 'a.tif', np.ones((2100, 1500), np.uint8)), step=1)
    seen = np.zeros((2100, 1500), int)
    for window in land.windows(0):
        seen[window.toslices()] += 1
    assert (seen == 1).all()


# -- reading -------------------------------------------------------------------------------------


def test_codes_become_classes(tmp_path):
    land = LandCover(write(tmp_path / 'a.tif', np.array([[0, 1, 2], [7, 11, 10]], np.uint8)))
    read = land.read(0, Window(0, 0, 3, 2))
    names = [[land.classes[index] if index >= 0 else '' for index in row] for row in read]
    assert names == [['', 'water', 'forest'], ['urban', 'grassland', 'cloud']]


def test_codes_may_share_a_name_and_the_rasters_own_no_data_counts(tmp_path):
    codes = np.array([[-5, 300, 301], [302, 300, -5]], np.int16)
    land = LandCover(write(tmp_path / 'a.tif', codes, nodata=-5),
                     legend={'300': 'forest', '301': 'forest', '302': ''})
    assert land.classes == ('forest',)
    assert land.read(0, Window(0, 0, 3, 2)).tolist() == [[-1, 0, 0], [-1, 0, -1]]


def test_worldcover_names_what_esri_names():
    assert set(LEGENDS['esri'].values()) - {'cloud'} < set(LEGENDS['worldcover'].values())


@pytest.mark.parametrize('kind', ['tif', 'cog', 'vrt'])
def test_step_reads_the_middle_of_every_square_and_not_an_overview(tmp_path, kind, monkeypatch):
    codes = np.random.default_rng(0).choice(np.array([1, 11], np.uint8), (603, 530))
    plain = write(tmp_path / 'tif', codes, tiled=True, blockxsize=128, blockysize=128)
    with rasterio.open(plain, 'r+') as file:
        file.build_overviews([2, 4, 8], Resampling.average)
    path = str(tmp_path / kind)
    if kind != 'tif':
        rasterio.shutil.copy(plain, path, driver=kind, **dict(
            overview_resampling='average') if kind == 'cog' else {})
    monkeypatch.setattr('pera_mm.collect.sample.landcover.MAX_READ', 30_000)  # many bands
    whole = LandCover(path).read(0, Window(0, 0, 530, 603))
    for step in (3, 4):
        land = LandCover(path, step=step)
        rows, cols = ([(first + min(first + step, size)) // 2 for first in range(0, size, step)]
                      for size in (603, 530))  # the last is cut
        (window,) = land.windows(0)
        assert np.array_equal(land.read(0, window), whole[rows][:, cols])
        assert total_area(land) == pytest.approx(total_area(LandCover(path)), rel=1e-9)
        with pytest.raises(ValueError, match='comes from the overviews, which must have been made '
                                             'with nearest or mode'):
            LandCover(path, step=step, overviews=True).read(0, window)


def test_overviews_are_read_on_request(tmp_path):
    codes = np.random.default_rng(0).choice(np.array([1, 2], np.uint8), (401, 402))
    path = write(tmp_path / 'a.tif', codes)
    with rasterio.open(path, 'r+') as file:
        file.build_overviews([4], Resampling.mode)
    land = LandCover(path, step=4, overviews=True)
    (window,) = land.windows(0)
    with rasterio.open(path, overview_level=0) as file:
        assert np.array_equal(land.read(0, window) + 1, file.read(1))
    assert total_area(land) == pytest.approx(total_area(LandCover(path)), rel=1e-9)


@pytest.mark.parametrize('inside', [True, False])
def test_a_mask_is_no_data(tmp_path, inside):
    valid = np.random.default_rng(0).random((40, 50)) > 0.5
    path = write(tmp_path / 'a.tif', np.ones((40, 50), np.uint8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(path, 'r+') as file:
        file.write_mask(valid)
    assert (tmp_path / 'a.tif.msk').exists() != inside
    assert np.array_equal(LandCover(path).read(0, Window(0, 0, 50, 40)) >= 0, valid)
    assert np.array_equal(LandCover(path, step=3).read(0, Window(0, 0, 48, 39)) >= 0,
                          valid[1:39:3, 1:48:3])


@pytest.mark.parametrize('crs', [UTM33, 'EPSG:4326'])
@pytest.mark.parametrize('step', [1, 2])
def test_where_rasters_overlap_the_first_counts(tmp_path, crs, step):
    # Two square kilometers, the second's west in the first's east by 200 m.
    codes = np.full((100, 100), 2, np.uint8)
    write(tmp_path / 'a.tif', codes, UTM33, from_origin(500_000, 5_300_000, 10, 10))
    x, y = transform(UTM33, crs, [500_800, 501_800], [5_300_000, 5_299_000])
    write(tmp_path / 'b.tif', codes, crs,
          from_origin(x[0], y[0], np.diff(x)[0] / 100, -np.diff(y)[0] / 100))
    land = LandCover(str(tmp_path / '*.tif'), step=step)
    assert total_area(land) == pytest.approx(1.8, rel=2e-3)
    window = Window(0, 0, 100, 100)
    assert land.not_covered_earlier(0, land.grid(0, window)).all()
    first = land.not_covered_earlier(1, land.grid(1, window))
    assert not first[:, :19 // step].any() and first[:, 21 // step:].all()


def test_a_coarse_map_behind_a_fine_one_counts_around_it(tmp_path):
    write(tmp_path / 'a.tif', np.full((3000, 3000), 2, np.uint8), UTM33,
          from_origin(500_000, 5_300_000, 10, 10))
    write(tmp_path / 'b.tif', np.full((180, 360), 2, np.uint8), affine=from_origin(-180, 90, 1, 1))
    write(tmp_path / 'c.tif', np.full((800, 800), 2, np.uint8), 'EPSG:3035',
          from_origin(4e6, 3e6, 1000, 1000))
    paths = [str(tmp_path / f'{name}.tif') for name in 'ac']
    land = LandCover(paths)
    alone = total_area(LandCover(paths[1]))
    assert total_area(land) == pytest.approx(alone, rel=1e-4)  # the fine one lies within
    assert land.not_covered_earlier(1, land.grid(1, next(land.windows(1)))).sum() == pytest.approx(
        800**2 - 900, abs=40)
    globe = LandCover(str(tmp_path / '*.tif'))
    first = globe.not_covered_earlier(1, globe.grid(1, next(globe.windows(1))))
    assert (~first).sum() == 0  # no middle of a degree lies in 30 km, and none is lost


def test_no_data_of_the_first_raster_leaves_the_place_to_the_second(tmp_path):
    codes = np.full((100, 100), 2, np.uint8)
    codes[:, :50] = 0
    write(tmp_path / 'a.tif', codes)
    write(tmp_path / 'b.tif', np.full((100, 100), 5, np.uint8))
    land = LandCover([str(tmp_path / 'b.tif'), str(tmp_path / 'a.tif')])
    assert [path.path[-5:] for path in land.rasters] == ['a.tif', 'b.tif']
    first = land.not_covered_earlier(1, land.grid(1, Window(0, 0, 100, 100)))
    assert first[:, :50].all() and not first[:, 50:].any()


# -- files ---------------------------------------------------------------------------------------


def test_rasters_stay_open_for_their_thread(tmp_path):
    paths = [write(tmp_path / f'{number}.tif', np.ones((4, 4), np.uint8)) for number in range(10)]
    files = OpenRasters()

    def open_twice(path):
        with files.opened(path) as one, files.opened(path) as other:
            assert one is other
        return one

    opened = [open_twice(path) for path in paths]
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(open_twice, paths[9]).result()
    assert other is not opened[9]
    assert [file.closed for file in opened] == [True] * 2 + [False] * 8
    files.close()
    assert other.closed and all(file.closed for file in opened)
    assert open_twice(paths[0]).read(1).all()  # again
    with pytest.raises(KeyError), files.opened(paths[0]) as file:
        raise KeyError
    assert file.closed
    files.close()


def test_the_first_error_of_any_thread_ends_them_all():
    stop = threading.Event()

    def work(item):
        if item == 1:
            raise ValueError('item 1 fails')
        if item > 1:
            seen.append(item)
        assert stop.wait(60)

    seen = []
    with pytest.raises(ValueError, match='item 1 fails'):
        in_threads(work, range(100), 2, stop.set)
    assert len(seen) < 5
    assert in_threads(lambda item: item**2, range(5), 3) == [0, 1, 4, 9, 16]


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Python's file server, and byte ranges, which cloud-optimized GeoTIFFs live on."""

    def do_GET(self):
        data = open(self.translate_path(self.path), 'rb').read()
        first, _, last = self.headers.get('Range', 'bytes=0-').removeprefix('bytes=').partition('-')
        part = data[int(first):int(last or len(data)) + 1]
        self.send_response(206)
        end = int(first) + len(part) - 1
        self.send_header('Content-Range', f'bytes {first}-{end}/{len(data)}')
        self.send_header('Content-Length', str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(handler):
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_a_remote_raster_reads_as_a_local_one(tmp_path):
    codes = np.random.default_rng(0).choice(np.array([1, 2, 4, 5], np.uint8), (600, 700))
    path = write(tmp_path / 'a.tif', codes, tiled=True, blockxsize=256, blockysize=256)
    with serving(functools.partial(RangeHandler, directory=str(tmp_path))) as address:
        window = Window(300, 100, 200, 200)
        for remote in (f'{address}/a.tif', f'/vsicurl/{address}/a.tif'):
            assert np.array_equal(LandCover(remote).read(0, window),
                                  LandCover(path).read(0, window))
        with pytest.raises(ValueError, match='b.tif cannot be read as a raster'):
            LandCover(f'{address}/b.tif')


class CountingHandler(RangeHandler):
    """How many requests come at once."""

    busy, most = 0, 0

    def do_GET(self):
        CountingHandler.busy += 1
        CountingHandler.most = max(self.most, self.busy)
        time.sleep(0.1)
        super().do_GET()
        CountingHandler.busy -= 1


def test_the_headers_of_many_rasters_are_read_at_once(tmp_path, caplog):
    for number in range(12):
        write(tmp_path / f'{number}.tif', np.ones((4, 4), np.uint8))
    handler = functools.partial(CountingHandler, directory=str(tmp_path))
    with serving(handler) as address, caplog.at_level('INFO', 'pera_mm.collect'):
        paths = [f'{address}/{number}.tif' for number in range(12)]
        land = LandCover(paths[::-1])
    assert CountingHandler.most > 4 and [raster.path for raster in land.rasters] == sorted(paths)
    assert 'reading the headers of 12 land-cover rasters' in caplog.text


class EarthEngineHandler(http.server.BaseHTTPRequestHandler):
    """Earth Engine's REST API as far as GDAL needs it: an image's header, and its pixels."""

    codes = np.random.default_rng(0).choice(np.array([10, 50, 80, 95], np.uint8), (1500, 2000))
    asset = '/v1/projects/earthengine-public/assets/ESA/WorldCover/v200/2021'

    def do_GET(self):
        height, width = self.codes.shape
        grid = dict(crsCode='EPSG:4326', dimensions=dict(width=width, height=height),
                    affineTransform=dict(scaleX=0.001, scaleY=-0.001, translateX=10, translateY=50))
        band = dict(id='Map', dataType=dict(precision='INT', range=dict(max=255)), grid=grid)
        self.answer(self.asset, json.dumps(dict(type='IMAGE', bands=[band])).encode())

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        assert (request['bandIds'], request['fileFormat']) == (['Map'], 'PNG')
        size, place = request['grid']['dimensions'], request['grid']['affineTransform']
        lon = place['translateX'] + (np.arange(size['width']) + 0.5) * place['scaleX']
        lat = place['translateY'] + (np.arange(size['height']) + 0.5) * place['scaleY']
        pixels = self.codes[((50 - lat) / 0.001).astype(int)[:, None],
                            ((lon - 10) / 0.001).astype(int)]
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, 'PNG')
        self.answer(f'{self.asset}:getPixels', stream.getvalue())

    def answer(self, path, data):
        is_known = self.headers['Authorization'] == 'Bearer of-mine'
        self.send_response(404 if self.path != path else 200 if is_known else 401)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_an_asset_of_earth_engine_reads_as_a_local_raster(tmp_path, monkeypatch):
    codes = EarthEngineHandler.codes
    local = LandCover(write(tmp_path / 'a.tif', codes), 'worldcover')
    for name in ('EEDA_BEARER', 'GOOGLE_APPLICATION_CREDENTIALS'):
        monkeypatch.delenv(name, raising=False)
    with serving(EarthEngineHandler) as address:
        monkeypatch.setenv('EEDA_URL', f'{address}/v1/')
        asset = 'EEDAI:ESA/WorldCover/v200/2021'
        with pytest.raises(ValueError, match=f'{asset} cannot be read as a raster: Missing EEDA_B'):
            LandCover(asset, 'worldcover')
        monkeypatch.setenv('EEDA_BEARER', 'not-mine')
        with pytest.raises(ValueError, match='HTTP error code : 401'):
            LandCover(asset, 'worldcover')
        monkeypatch.setenv('EEDA_BEARER', 'of-mine')
        with pytest.raises(ValueError, match='HTTP error code : 404'):
            LandCover('EEDAI:ESA/WorldCover/v300', 'worldcover')
        remote = LandCover(asset, 'worldcover')
        assert remote.rasters[0].bounds == pytest.approx(local.rasters[0].bounds)
        windows = list(remote.windows(0))
        assert windows == list(local.windows(0)) and len(windows) == 4
        for window in windows:
            assert np.array_equal(remote.read(0, window), local.read(0, window))
        # With a step, what is transferred has that step: 500 x 375 px in all.
        coarse = LandCover(asset, 'worldcover', step=4, overviews=True)
        read = coarse.read(0, next(coarse.windows(0)))
        assert read.shape == (375, 500) and (np.bincount(read.ravel() + 1)[1:] > 0).sum() == 4


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_a_raster_without_georeference_is_refused(tmp_path):
    with rasterio.open(tmp_path / 'a.tif', 'w', driver='GTiff', height=4, width=4, count=1,
                       dtype='uint8'):
        pass
    with pytest.raises(ValueError, match='a.tif has no georeference .*gdal_edit'):
        LandCover(str(tmp_path / 'a.tif'))


def test_an_unknown_code_is_named_with_its_place(tmp_path):
    codes = np.ones((40, 50), np.uint8)
    codes[30, 20] = 77
    land = LandCover(write(tmp_path / 'a.tif', codes))
    with pytest.raises(ValueError, match=r'a.tif has the class code 77 in row 30, column 20 '
                                         r'\(10.0205° E, 49.9695° N\).*name it in'):
        land.read(0, Window(0, 0, 50, 40))


@pytest.mark.parametrize(('settings', 'message'), [
    (dict(paths='nowhere/*.tif'), "no raster matches 'nowhere/\\*.tif'"),
    (dict(paths=[]), 'landcover.paths is empty'),
    (dict(legend='nlcd'), "landcover.legend is 'nlcd'; it must be 'esri' or 'worldcover'"),
    (dict(legend={'one': 'water'}), 'must be a dictionary of class code: name'),
    (dict(legend={0: ''}), 'must be a dictionary of class code: name'),
    (dict(legend=[1, 2]), 'must be a dictionary of class code: name'),
    (dict(step=0), 'landcover.step must be a whole number from 1, got 0'),
    (dict(step=True), 'landcover.step must be a whole number from 1, got True'),
    (dict(step='x'), "landcover.step must be a whole number from 1, got 'x'"),
    (dict(step=float('nan')), 'landcover.step must be a whole number from 1, got nan'),
    (dict(overviews='no'), "landcover.overviews must be True or False, got 'no'"),
    (dict(paths=7), 'landcover.paths must be a path or a list of paths, got 7'),
])
def test_bad_settings(tmp_path, settings, message):
    path = write(tmp_path / 'a.tif', np.ones((4, 4), np.uint8))
    with pytest.raises(ValueError, match=message):
        LandCover(**dict(paths=path) | settings)


def test_what_is_not_a_land_cover_map_is_refused(tmp_path):
    path = write(tmp_path / 'f.tif', np.ones((4, 4), np.float32))
    with pytest.raises(ValueError,
                       match='f.tif is not a land-cover map: it has 1 bands of float32'):
        LandCover(path)
    path = write(tmp_path / 'rgb.tif', np.ones((3, 4, 4), np.uint8))
    with pytest.raises(ValueError, match='it has 3 bands of uint8'):
        LandCover(path)
    (tmp_path / 'text.tif').write_text('hello')
    with pytest.raises(ValueError, match='text.tif cannot be read as a raster'):
        LandCover(str(tmp_path / 'text.tif'))


def test_a_raster_beyond_the_globe_is_refused(tmp_path):
    path = write(tmp_path / 'a.tif', np.ones((100, 100), np.uint8), 'ESRI:54009',
                 from_origin(-17.9e6, 8.9e6, 10_000, 10_000))  # a corner of Mollweide's ellipse
    with pytest.raises(ValueError, match='a.tif reaches beyond the globe; cut it'):
        LandCover(path)


@pytest.mark.parametrize(('crs', 'x', 'y'), [
    ('EPSG:3413', -1e6, 1e6), ('EPSG:3413', 0, 0), ('EPSG:3031', -1e6, 1e6)])
def test_a_raster_with_a_pole_is_refused(tmp_path, crs, x, y):
    affine = from_origin(x, y, 10_000, 10_000)
    with pytest.raises(ValueError, match='a.tif contains a pole, around which .* warp it to EPSG'):
        LandCover(write(tmp_path / 'a.tif', np.ones((200, 200), np.uint8), crs, affine))
    affine = from_origin(x, y - 3e6, 10_000, 10_000)  # beside it
    land = LandCover(write(tmp_path / 'b.tif', np.ones((200, 200), np.uint8), crs, affine))
    assert total_area(land) == pytest.approx(4e6, rel=0.15)


@pytest.mark.parametrize('crs', ['EPSG:4978', 'LOCAL_CS["site",UNIT["meter",1]]'])
def test_a_coordinate_system_without_a_map_is_refused(tmp_path, crs):
    path = write(tmp_path / 'a.tif', np.ones((4, 4), np.uint8), crs,
                 from_origin(3000, 5000, 10, 10))
    with pytest.raises(ValueError, match='a.tif has a coordinate system that is neither geographic '
                                         'nor projected'):
        LandCover(path)


def test_a_truncated_raster_is_named(tmp_path):
    codes = np.random.default_rng(0).choice(np.array([1, 2], np.uint8), (800, 800))
    path = write(tmp_path / 'a.tif', codes, compress='deflate', tiled=True, blockxsize=256,
                 blockysize=256)
    data = open(path, 'rb').read()
    open(path, 'wb').write(data[:len(data) // 2])
    with pytest.raises(ValueError, match='a.tif cannot be read: a.tif.*IReadBlock failed.*; what '
                                         'is finished is kept, and the same command continues'):
        LandCover(path).read(0, Window(0, 0, 800, 800))


def test_globs_are_sorted_and_each_file_counts_once(tmp_path):
    for name in 'bca':
        write(tmp_path / f'{name}.tif', np.ones((2, 2), np.uint8))
    found = find_rasters([str(tmp_path / '*.tif'), str(tmp_path / 'a.tif'),
                          '/vsicurl/https://x/y'], 'paths')
    assert found == [*(str(tmp_path / f'{name}.tif') for name in 'abc'), '/vsicurl/https://x/y']
