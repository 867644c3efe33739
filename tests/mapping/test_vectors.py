"""Polygons of strips against those of the whole map, and against closed forms."""

import json
import resource
import sys
import time
from math import log, radians, sin
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from pyproj import Transformer
from rasterio.features import shapes

from pera_mm.errors import UserError
from pera_mm.mapping import vectors
from pera_mm.mapping.vectors import NOTHING, vectorize

pytestmark = pytest.mark.filterwarnings('ignore:Dataset has no geotransform')
NAMES = ['water', 'road', 'roof', 'tree']
UTM = Affine(10, 0, 500_000, 0, -10, 5_000_000)  # 10 m beside the central meridian
SELF_MEETING = ['00000',
                '01110',
                '0101 ',  # the hole of the 1, its outside and the last 0 meet at corners
                '011 0',
                '00000']


def write_raster(path: Path, *bands: np.ndarray, transform: Affine = UTM,
                 crs: str | None = 'EPSG:32632', tile: int | None = None) -> Path:
    """Write a raster; without a CRS its coordinates are pixels."""
    height, width = bands[0].shape
    options: dict[str, Any] = dict(transform=transform, crs=crs) if crs else {}
    if tile:
        options.update(tiled=True, blockxsize=tile, blockysize=tile)
    with rasterio.open(path, 'w', driver='GTiff', width=width, height=height, count=len(bands),
                       dtype=bands[0].dtype, **options) as file:
        file.write(np.stack(bands))
    return path


def read(path: Path) -> tuple[list[shapely.Polygon], dict[str, list]]:
    if path.suffix == '.parquet':
        table = pq.read_table(path).to_pydict()
        return shapely.from_wkb(table.pop('geometry')).tolist(), table
    meta, _, polygons, columns = pyogrio.raw.read(path)
    return shapely.from_wkb(polygons).tolist(), dict(
        zip(meta['fields'], [column.tolist() for column in columns]))


def random_map(rng: np.random.Generator) -> np.ndarray:
    """Noise, blocks or stripes of 1 to 4 classes, with or without nothing."""
    pixels = rng.integers(0, rng.integers(1, 5), rng.integers(1, 16, 2), dtype=np.uint8)
    pixels = np.kron(pixels, np.ones(rng.integers(1, 4, 2), np.uint8))
    pixels[rng.random(pixels.shape) < rng.choice([0, 0.05, 0.3])] = NOTHING
    return pixels


def whole_map(pixels: np.ndarray) -> list[tuple[int, bytes]]:
    found = shapes(pixels, mask=pixels != NOTHING, connectivity=4)
    return comparable((shapely.geometry.shape(shape), int(value)) for shape, value in found)


def comparable(polygons: Any) -> list[tuple[int, bytes]]:
    return sorted((value, shapely.normalize(polygon).wkb) for polygon, value in polygons)


def plain_map(lines: list[str]) -> np.ndarray:
    return np.array([[NOTHING if value == ' ' else int(value) for value in line]
                     for line in lines], np.uint8)


@pytest.mark.parametrize('seed', range(4))
def test_the_polygons_are_those_of_the_whole_map(seed, tmp_path, monkeypatch):
    rng = np.random.default_rng(seed)
    for _ in range(10):
        pixels = random_map(rng)
        path = write_raster(tmp_path / 'map.tif', pixels, crs=None, tile=rng.choice([None, 16]))
        monkeypatch.setattr(vectors, 'BLOCK_PIXELS', rng.choice([0, 2**27]))
        monkeypatch.setattr(vectors, 'STRIP_PIXELS',
                            pixels.shape[1] * rng.integers(1, len(pixels) + 1))
        monkeypatch.setattr(vectors, 'PIECE_CORNERS', rng.integers(1, 100))
        number = vectorize(path, tmp_path / 'map.parquet', NAMES)
        polygons, columns = read(tmp_path / 'map.parquet')
        assert number == len(polygons) and all(polygon.is_valid for polygon in polygons)
        assert comparable(zip(polygons, columns['class'])) == whole_map(pixels)
        assert [polygon.area for polygon in polygons] == columns['area_px']


def test_the_height_of_a_strip_leaves_no_trace(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pixels, scores = rng.integers(0, 2, (2, 40, 30), dtype=np.uint8)
    write_raster(tmp_path / 'map.tif', pixels)
    write_raster(tmp_path / 'scores.tif', scores)
    files = set()
    for rows in (1, 2, 7, 39, 40):
        monkeypatch.setattr(vectors, 'STRIP_PIXELS', 30 * rows)
        vectorize(tmp_path / 'map.tif', tmp_path / 'map.parquet', NAMES,
                  scores=tmp_path / 'scores.tif')
        polygons, columns = read(tmp_path / 'map.parquet')
        files.add(repr(([polygon.wkb for polygon in polygons], columns)))
    assert len(files) == 1


@pytest.mark.parametrize('rows', [1, 2, 5])
def test_a_polygon_that_meets_itself_at_a_corner_is_valid(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, 'STRIP_PIXELS', 5 * rows)
    path = write_raster(tmp_path / 'map.tif', plain_map(SELF_MEETING), crs=None)
    vectorize(path, tmp_path / 'map.parquet', NAMES)
    polygons, columns = read(tmp_path / 'map.parquet')
    ring = polygons[columns['class'].index(1)]
    assert [len(polygon.interiors) for polygon in polygons if polygon.area == 7] == [1]
    assert ring.is_valid and ring.equals(shapely.union_all([
        shapely.box(x, y, x + 1, y + 1)
        for y, x in np.argwhere(plain_map(SELF_MEETING) == 1)]))


@pytest.mark.parametrize('shape', ['comb', 'snake'])
def test_one_polygon_over_all_strips(shape, tmp_path, monkeypatch):
    """The teeth of the comb are many polygons until the last row joins them."""
    pixels = np.ones((41, 41), np.uint8)
    if shape == 'comb':
        pixels[:, ::2] = pixels[-1] = 0
    else:
        pixels[::2] = pixels[1::4, -1] = pixels[3::4, 0] = 0
    monkeypatch.setattr(vectors, 'STRIP_PIXELS', 41 * 3)
    path = write_raster(tmp_path / 'map.tif', pixels, crs=None)
    vectorize(path, tmp_path / 'map.parquet', NAMES)
    polygons, columns = read(tmp_path / 'map.parquet')
    assert columns['class'].count(0) == 1
    assert comparable(zip(polygons, columns['class'])) == whole_map(pixels)


def test_a_polygon_has_its_class_name_area_and_mean_score(tmp_path):
    pixels = plain_map(['0022', '0 22', '3333'])
    scores = np.array([[255, 0, 51, 51], [255, 9, 51, 52], [0, 0, 0, 255]], np.uint8)
    write_raster(tmp_path / 'map.tif', pixels)
    write_raster(tmp_path / 'scores.tif', scores)
    number = vectorize(tmp_path / 'map.tif', tmp_path / 'map.gpkg', NAMES,
                       scores=tmp_path / 'scores.tif')
    polygons, columns = read(tmp_path / 'map.gpkg')
    assert number == 3 and list(columns) == ['class', 'name', 'area_m2', 'score']
    assert columns['class'] == [0, 2, 3]
    assert columns['name'] == ['water', 'roof', 'tree']
    assert columns['score'] == pytest.approx([2 / 3, 205 / 4 / 255, 1 / 4])
    # At the central meridian, 0.9996 m of the map are 1 m.
    assert columns['area_m2'] == pytest.approx(np.array([300, 400, 400]) / 0.9996**2, rel=1e-6)
    assert polygons[1].equals(shapely.box(500_020, 4_999_980, 500_040, 5_000_000))


def test_of_scores_per_class_the_band_of_the_pixels_class_counts(tmp_path):
    write_raster(tmp_path / 'map.tif', plain_map(['01 ']))
    write_raster(tmp_path / 'scores.tif', np.array([[51, 0, 9]], np.uint8),
                 np.array([[0, 102, 9]], np.uint8))
    vectorize(tmp_path / 'map.tif', tmp_path / 'map.gpkg', ['a', 'b'],
              scores=tmp_path / 'scores.tif')
    assert read(tmp_path / 'map.gpkg')[1]['score'] == pytest.approx([0.2, 0.4])


def test_the_area_is_that_between_the_parallels_of_the_ellipsoid(tmp_path):
    """Snyder 1987, equation 3-12: sides along parallels, which no geodesic is."""
    pixels = np.zeros((1, 1), np.uint8)
    path = write_raster(tmp_path / 'map.tif', pixels, transform=Affine(10, 0, 20, 0, -10, 60),
                        crs='EPSG:4326')
    vectorize(path, tmp_path / 'map.gpkg', NAMES)
    a, e = 6_378_137., 0.08181919084262149

    def below(latitude: float) -> float:
        s = sin(radians(latitude))
        return s / (1 - (e * s)**2) + log((1 + e * s) / (1 - e * s)) / (2 * e)

    expected = radians(10) * a**2 * (1 - e**2) / 2 * (below(60) - below(50))
    assert read(tmp_path / 'map.gpkg')[1]['area_m2'] == [pytest.approx(expected, rel=1e-6)]


def test_small_polygons_are_left_out_in_m2_or_in_pixels(tmp_path):
    pixels = plain_map(['0122', '1122'])
    for crs, areas in (('EPSG:32632', [300, 400]), (None, [3, 4])):
        path = write_raster(tmp_path / 'map.tif', pixels, crs=crs)
        assert vectorize(path, tmp_path / 'map.gpkg', NAMES, min_area=areas[0]) == 2
        columns = read(tmp_path / 'map.gpkg')[1]
        assert columns['area_px' if crs is None else 'area_m2'] == pytest.approx(areas, rel=1e-3)


def test_simplified_polygons_are_valid_and_keep_their_area(tmp_path):
    rng = np.random.default_rng(3)
    path = write_raster(tmp_path / 'map.tif', rng.integers(0, 2, (60, 60), dtype=np.uint8))
    vectorize(path, tmp_path / 'plain.gpkg', NAMES)
    vectorize(path, tmp_path / 'simple.gpkg', NAMES, simplify=15)
    (plain, columns), (simple, of_simple) = (
        read(tmp_path / name) for name in ('plain.gpkg', 'simple.gpkg'))
    assert columns == of_simple and all(polygon.is_valid for polygon in simple)
    assert shapely.get_num_coordinates(simple).sum() < shapely.get_num_coordinates(plain).sum()
    assert max(shapely.hausdorff_distance(plain, simple)) < 2 * 15


@pytest.mark.parametrize('limits', [dict(min_area=np.nan), dict(simplify=-1)])
def test_limits_are_finite_and_not_below_0(limits, tmp_path):
    path = write_raster(tmp_path / 'map.tif', plain_map(['01']))
    with pytest.raises(UserError, match='of polygons is at least 0, not (nan|-1)'):
        vectorize(path, tmp_path / 'map.gpkg', NAMES, **limits)


@pytest.mark.parametrize('suffix', ['.gpkg', '.fgb', '.parquet'])
def test_each_format_has_the_polygons_in_the_maps_crs(suffix, tmp_path):
    turned = Affine(3, 4, 500_000, 4, -3, 5_000_000)
    path = write_raster(tmp_path / 'map.tif', plain_map(['01', '01']), transform=turned)
    output = tmp_path / 'new' / f'map{suffix}'
    assert vectorize(path, output, NAMES) == 2
    polygons, columns = read(output)
    found = dict(zip(columns['name'], polygons))
    assert found['water'].equals(shapely.Polygon([
        (500_000, 5_000_000), (500_003, 5_000_004), (500_011, 4_999_998), (500_008, 4_999_994)]))
    crs = json.loads(pq.read_schema(output).metadata[b'geo'])['columns']['geometry']['crs'][
        'id'] if suffix == '.parquet' else pyogrio.read_info(output)['crs']
    assert crs in ({'authority': 'EPSG', 'code': 32632}, 'EPSG:32632')
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize('suffix', ['.gpkg', '.fgb', '.parquet', '.geojson'])
def test_the_same_map_gives_the_same_bytes_later(suffix, tmp_path):
    path = write_raster(tmp_path / 'map.tif', plain_map(['011', '010', '000']))
    outputs = [tmp_path / day / f'map{suffix}' for day in ('monday', 'tuesday')]
    for output in outputs:
        vectorize(path, output, NAMES)
        time.sleep(.01)  # a GeoPackage would have the milliseconds
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_geojson_is_in_degrees_with_exteriors_to_the_left(tmp_path):
    path = write_raster(tmp_path / 'map.tif', plain_map(['000', '010', '000']))
    vectorize(path, tmp_path / 'map.geojson', ['a "b"', 'é'])
    collection = json.loads((tmp_path / 'map.geojson').read_text(encoding='utf-8'))
    inner, outer = sorted(collection['features'], key=lambda each: each['properties']['area_m2'])
    assert [inner['properties']['name'], outer['properties']['name']] == ['é', 'a "b"']
    polygon = shapely.geometry.shape(outer['geometry'])
    assert polygon.exterior.is_ccw and not polygon.interiors[0].is_ccw
    corner = Transformer.from_crs(32632, 4326, always_xy=True).transform(500_030, 4_999_970)
    assert polygon.exterior.distance(shapely.Point(corner)) < 1e-7
    assert 'crs' not in collection


@pytest.mark.parametrize('suffix', ['.gpkg', '.fgb', '.parquet', '.geojson'])
def test_a_map_of_nothing_is_an_empty_layer(suffix, tmp_path):
    path = write_raster(tmp_path / 'map.tif', np.full((3, 3), NOTHING, np.uint8))
    assert vectorize(path, tmp_path / f'map{suffix}', NAMES) == 0
    polygons, columns = read(tmp_path / f'map{suffix}')
    assert not polygons
    if suffix != '.geojson':  # which has no columns but those of its features
        assert list(columns) == ['class', 'name', 'area_m2']


def test_geoparquet_without_a_crs_says_so(tmp_path):
    """Without the key, the specification would take degrees."""
    path = write_raster(tmp_path / 'map.tif', plain_map(['0']), crs=None)
    vectorize(path, tmp_path / 'map.parquet', NAMES)
    geo = json.loads(pq.read_schema(tmp_path / 'map.parquet').metadata[b'geo'])
    assert geo['columns']['geometry']['crs'] is None


@pytest.mark.parametrize(('output', 'pixels', 'classes', 'sentence'), [
    ('map.shp', np.zeros((2, 2), np.uint8), NAMES, r'has the suffix \.shp: name a file in \.gp'),
    ('map.gpkg', np.zeros((2, 2), np.float32), NAMES, r'1 band\(s\) of float32: give a cl'),
    ('map.gpkg', np.full((2, 2), 4, np.uint8), NAMES, 'class 4, and only the classes 0 to 3'),
])
def test_a_map_that_does_not_fit_is_one_sentence(output, pixels, classes, sentence, tmp_path):
    path = write_raster(tmp_path / 'map.tif', pixels)
    with pytest.raises(UserError, match=sentence):
        vectorize(path, tmp_path / output, classes)
    assert [path.name for path in tmp_path.iterdir()] == ['map.tif']


def test_geojson_of_a_map_without_a_crs_is_one_sentence(tmp_path):
    path = write_raster(tmp_path / 'map.tif', np.zeros((2, 2), np.uint8), crs=None)
    with pytest.raises(UserError, match='has no CRS: choose .gpkg'):
        vectorize(path, tmp_path / 'map.geojson', NAMES)


def test_scores_of_another_size_are_one_sentence(tmp_path):
    path = write_raster(tmp_path / 'map.tif', np.zeros((2, 2), np.uint8))
    scores = write_raster(tmp_path / 'scores.tif', np.zeros((2, 3), np.uint8))
    with pytest.raises(UserError, match=r'1 band\(s\) of uint8 in 3 x 2 pixels: give the sc'):
        vectorize(path, tmp_path / 'map.gpkg', NAMES, scores=scores)


def test_a_damaged_map_is_one_sentence_and_the_old_file_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, 'STRIP_PIXELS', 64 * 8)
    noise = np.random.default_rng(0).integers(0, 4, (64, 64), dtype=np.uint8)
    path = write_raster(tmp_path / 'map.tif', noise)
    vectorize(path, tmp_path / 'map.gpkg', NAMES)
    old = (tmp_path / 'map.gpkg').read_bytes()
    path.write_bytes(path.read_bytes()[:-64 * 16])  # without its last rows
    with pytest.raises(UserError, match=r'map\.tif cannot be read in the rows from'):
        vectorize(path, tmp_path / 'map.gpkg', NAMES)
    assert (tmp_path / 'map.gpkg').read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map.gpkg', 'map.tif']


@pytest.mark.parametrize('suffix', ['.gpkg', '.fgb', '.geojson', '.parquet'])
def test_a_file_without_room_is_an_error_and_the_old_one_stays(suffix, tmp_path):
    noise = np.random.default_rng(0).integers(0, 4, (60, 60), dtype=np.uint8)
    path, output = write_raster(tmp_path / 'map.tif', noise), tmp_path / f'out{suffix}'
    vectorize(path, output, NAMES)
    old = output.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, hard))
    try:
        with pytest.raises(OSError, match='cannot be written|File too large'):
            vectorize(path, output, NAMES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert output.read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map.tif', output.name]


def test_a_missing_map_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r'none\.tif cannot be read as a raster'):
        vectorize(tmp_path / 'none.tif', tmp_path / 'map.gpkg', NAMES)


@pytest.mark.parametrize('package', ['pyogrio', 'pyproj'])
def test_a_missing_extra_is_one_sentence(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'^writing vectors needs the package {package}, '
                       r'which is not installed: pip install -e .\[geo\]\.$'):
        vectorize(tmp_path / 'map.tif', tmp_path / 'map.gpkg', NAMES)
