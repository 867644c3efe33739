"""Points: quotas, uniform per km² (chi-square), distances, restarts, and what is refused."""

import io
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from rasterio.warp import transform
from scipy.stats import chisquare, kstest

from pera_mm.collect import landcover, sampling
from pera_mm.collect.continents import CONTINENTS, continent_of
from pera_mm.collect.landcover import LandCover
from pera_mm.collect.planet import ISLANDS
from pera_mm.collect.sampling import EARTH, draw_map, far_enough, on_sphere, sample, split
from pera_mm.collect.tables import POINT, read_table

PAPER = dict(urban=0.6, farmland=0.1, wetland=0.1, forest=0.1, water=0.1)
TWICE = {'asia': 2, 'europe': 2, 'north america': 2, 'africa': 1, 'oceania': 1, 'south america': 1}
CODES = dict(water=1, forest=2, wetland=4, farmland=5, urban=7, desert=8, ice=9, cloud=10,
             grassland=11)


def write(path, codes, crs, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, 'w', driver='GTiff', height=codes.shape[0], width=codes.shape[1],
                       count=1, dtype='uint8', crs=crs, transform=affine) as file:
        file.write(codes, 1)


def write_globe(path, classes=tuple(CODES), degrees=2):
    codes = np.random.default_rng(1).choice(np.array([CODES[name] for name in classes], np.uint8),
                                            (180 // degrees, 360 // degrees))
    write(path, codes, 'EPSG:4326', from_origin(-180, 90, degrees, degrees))


@pytest.fixture(scope='session')
def islands(tmp_path_factory):
    """A raster of 6 x 6 km on each continent, three in UTM and three in degrees."""
    folder = tmp_path_factory.mktemp('islands')
    for number, (name, (lon, lat)) in enumerate(ISLANDS.items()):
        codes = np.random.default_rng(number).choice(
            np.array(list(CODES.values()), np.uint8), (30, 30)).repeat(20, 0).repeat(20, 1)
        codes[:100, :50] = 0
        crs, size = 'EPSG:4326', 1e-4
        x, y = lon, lat
        if number % 2:
            crs, size = f'EPSG:{(32600 if lat > 0 else 32700) + int((lon + 180) // 6) + 1}', 10
            (x,), (y,) = transform('EPSG:4326', crs, [lon], [lat])
        write(folder / f'{name}.tif', codes, crs, from_origin(x, y, size, size))
    return folder


@pytest.fixture(scope='session')
def drawn(islands, tmp_path_factory):
    """The folder of a finished step, and its summary."""
    folder = tmp_path_factory.mktemp('drawn')
    return folder, sample(folder, 0, **settings(islands))


def settings(folder, **changes):
    return dict(landcover=dict(paths=str(folder / '*.tif')), total=600, shares=PAPER,
                counts=dict(desert=20, ice=20, grassland=20, cloud=20), continents=TWICE,
                min_distance=100, gsd=(0.3, 10)) | changes


def points_of(folder):
    return read_table(folder / 'points.csv', POINT, 'sample')


# -- quotas --------------------------------------------------------------------------------------


def test_split_gives_the_largest_remainders_one_more():
    assert split(10, [1, 1, 1]).tolist() == [4, 3, 3]  # ties: the first
    assert split(100, [2, 2, 2, 1, 1, 1]).tolist() == [23, 22, 22, 11, 11, 11]
    assert split(7, [0.6, 0.1, 0.1, 0.1, 0.1]).tolist() == [4, 1, 1, 1, 0]
    random = np.random.default_rng(0)
    for total in random.integers(0, 10_000, 50):
        weights = random.random(6)
        parts = split(int(total), weights)
        assert parts.sum() == total
        assert (np.abs(parts - total * weights / weights.sum()) < 1).all()


def test_classes_and_continents_get_what_the_paper_gives_them(drawn):
    folder, summary = drawn
    points = points_of(folder)
    assert summary['points'] == summary['asked'] == len(points) == 680
    assert points['class'].value_counts().to_dict() == dict(
        urban=360, farmland=60, wetland=60, forest=60, water=60, desert=20, ice=20, grassland=20,
        cloud=20)
    table = points.groupby(['class', 'continent']).size()
    assert {row['continent']: row['got'] for row in summary['table'] if row['class'] == 'urban'} \
        == {'asia': 80, 'europe': 80, 'north america': 80, 'africa': 40, 'oceania': 40,
            'south america': 40} == table['urban'].to_dict()
    assert all(row['asked'] == row['got'] for row in summary['table'])
    assert sum(row['km2'] for row in summary['table'] if row['continent'] == 'asia') == \
        pytest.approx((360_000 - 5000) * 1e-4, rel=2e-3)  # UTM, 10 m


def test_every_point_lies_on_its_class_and_continent(islands, drawn):
    points = points_of(drawn[0])
    assert [CONTINENTS[index] for index in continent_of(points['lon'], points['lat'])] == \
        points['continent'].tolist()
    for name, some in points.groupby('continent'):
        right = np.zeros(len(some), bool)
        with rasterio.open(islands / f'{name}.tif') as file:
            for shift in (0, 6e-7, -6e-7):  # six decimals may move a point over a border
                x, y = transform('EPSG:4326', file.crs, some['lon'].to_numpy() + shift,
                                 some['lat'].to_numpy() + shift)
                right |= [row[0] for row in file.sample(zip(x, y))] == some['class'].map(CODES)
        assert right.all()


def test_what_a_continent_lacks_the_others_get(tmp_path):
    write_globe(tmp_path / 'globe.tif')
    with rasterio.open(tmp_path / 'globe.tif', 'r+') as file:
        codes = file.read(1)
        codes[(codes == CODES['ice']) & (np.arange(90)[:, None] > 20)] = CODES['desert']  # < 50 N
        file.write(codes, 1)
    summary = sample(tmp_path, 0, **settings(tmp_path, counts=dict(ice=30)))
    ice = {row['continent']: row['got'] for row in summary['table'] if row['class'] == 'ice'}
    assert ice == {'asia': 10, 'europe': 10, 'north america': 10}


def test_the_whole_map_without_continents(shared_data, tmp_path):
    legend = {1: 'water', 2: 'urban', 3: 'desert', 4: 'forest', 5: 'shrubland', 6: 'grassland',
              7: 'farmland', 8: 'wetland'}
    path = shared_data / 'zion' / 'nlcd8.tif'
    shares = dict(urban=0.6, farmland=0.1, wetland=0.1, forest=0.1, water=0.1)
    summary = sample(tmp_path, 0, **settings(
        tmp_path, landcover=dict(paths=str(path), legend=legend), shares=shares, total=100,
        counts={}, continents=None, min_distance=50))
    points = points_of(tmp_path)
    assert summary['points'] == 100 and set(points['continent']) == {''}
    with rasterio.open(path) as file:
        places = transform('EPSG:4326', file.crs, points['lon'].to_numpy(),
                           points['lat'].to_numpy())
        assert [legend[row[0]] for row in file.sample(zip(*places))] == points['class'].tolist()
        count = (file.read(1) == 8).sum()
    (wetland,) = (row for row in summary['table'] if row['class'] == 'wetland')
    assert wetland['km2'] == pytest.approx(count * 0.0009, rel=1e-3)


# -- chance --------------------------------------------------------------------------------------


@pytest.mark.parametrize('degrees', [2, 30])  # 30: many places in one pixel
def test_density_is_the_same_per_km2_at_all_latitudes_and_longitudes(tmp_path, degrees):
    write_globe(tmp_path / 'globe.tif', ['urban'], degrees)
    sample(tmp_path, 0, **settings(tmp_path, shares=dict(urban=1), total=20_000, counts={},
                                   continents=None, min_distance=0))
    points = points_of(tmp_path)
    heights = np.sin(np.radians(points['lat']))  # equal-area: Archimedes
    assert chisquare(np.histogram(heights, 40, (-1, 1))[0]).pvalue > 0.001
    assert chisquare(np.histogram(points['lon'], 36, (-180, 180))[0]).pvalue > 0.001
    cells = np.histogram2d(heights, points['lon'], (12, 12), ((-1, 1), (-180, 180)))[0]
    assert chisquare(cells.ravel()).pvalue > 0.001
    # The test has the power to tell: uniform per degree fails it.
    wrong = np.sin(np.radians(np.random.default_rng(0).uniform(-90, 90, 20_000)))
    assert chisquare(np.histogram(wrong, 40, (-1, 1))[0]).pvalue < 1e-6


def test_density_within_a_class_and_continent_follows_its_area(tmp_path):
    write_globe(tmp_path / 'globe.tif', ['urban', 'forest'])
    sample(tmp_path, 3, **settings(tmp_path, shares=dict(urban=1), total=30_000, counts={},
                                   continents={'africa': 1, 'asia': 2}, min_distance=0))
    points = points_of(tmp_path)
    assert points['continent'].value_counts().to_dict() == dict(asia=20_000, africa=10_000)
    # Expected by plain counting on a fine equal-area grid, independent of LandCover.
    x, height = np.meshgrid((np.arange(1440) + 0.5) / 4 - 180, (np.arange(720) + 0.5) / 360 - 1)
    lat = np.degrees(np.arcsin(height))
    with rasterio.open(tmp_path / 'globe.tif') as file:
        urban = file.read(1)[((90 - lat) / 2).astype(int), ((x + 180) / 2).astype(int)] == 7
    centres = (np.arange(180) + 0.5) * 2 - 180, 89 - np.arange(90) * 2
    # A pixel of 2 degrees belongs to the continent of its centre.
    owner = continent_of(*np.meshgrid(*centres))[((90 - lat) / 2).astype(int),
                                                 ((x + 180) / 2).astype(int)]
    for name in ('asia', 'africa'):
        expected = np.histogram(lat[urban & (owner == CONTINENTS.index(name))], 24, (-36, 84))[0]
        some = points[points['continent'] == name]
        seen = np.histogram(some['lat'], 24, (-36, 84))[0]
        large = expected * len(some) / expected.sum() > 20
        expected = expected[large] * seen[large].sum() / expected[large].sum()
        assert chisquare(seen[large], expected).pvalue > 0.001


def test_places_are_uniform_within_pixels_in_both_coordinate_systems(islands, tmp_path):
    sample(tmp_path, 0, **settings(islands, min_distance=0, total=12_000))
    points = points_of(tmp_path)
    for name in ('africa', 'asia'):  # degrees, UTM
        some = points[points['continent'] == name]
        with rasterio.open(islands / f'{name}.tif') as file:
            x, y = transform('EPSG:4326', file.crs, some['lon'].to_numpy(), some['lat'].to_numpy())
            rows, cols = rasterio.transform.rowcol(file.transform, x, y, op=lambda value: value)
        if name == 'africa':  # six decimals are a hundredth of a pixel there
            rows, cols = (np.asarray(axis) + 0.005 for axis in (rows, cols))
        for axis in (rows, cols):
            assert chisquare(np.histogram(np.asarray(axis) % 1, 10, (0, 1))[0]).pvalue > 0.001
            assert chisquare(np.histogram(np.asarray(axis) % 20, 20, (0, 20))[0]).pvalue > 0.001


def test_every_part_of_the_table_is_a_fair_sample(islands, tmp_path):
    sample(tmp_path, 0, **settings(islands, total=6000, min_distance=0))
    points = points_of(tmp_path)
    share = points['class'].value_counts(normalize=True).sort_index()
    for part in (points[:1000], points[-1000:]):
        seen = part['class'].value_counts().reindex(share.index, fill_value=0)
        assert chisquare(seen, share * 1000).pvalue > 0.001
    assert points['id'].tolist() == [f'{number:07d}' for number in range(len(points))]


def test_gsd_is_uniform_in_its_logarithm(islands, tmp_path):
    sample(tmp_path, 0, **settings(islands, total=6000, min_distance=0))
    points = points_of(tmp_path)
    fraction = np.log(points['gsd'] / 0.3) / np.log(10 / 0.3)
    assert kstest(fraction, 'uniform').pvalue > 0.001
    assert abs(np.corrcoef(fraction, points['class'] == 'urban')[0, 1]) < 0.05


# -- distances -----------------------------------------------------------------------------------


def metres(one, other):
    cosine = np.clip(on_sphere(one['lon'], one['lat']) @ on_sphere(other['lon'], other['lat']).T,
                     -1, 1)
    return EARTH * np.arccos(cosine)


def test_no_two_points_are_too_near(drawn):
    points = points_of(drawn[0])
    distances = metres(points, points)[np.triu_indices(len(points), 1)]
    assert distances.min() >= 99.9  # arccos: 0.1 m
    assert (distances < 120).any()  # and it was close


def test_first_come_first_served_as_the_plain_loop_says():
    random = np.random.default_rng(0)
    places = np.empty(900, [('lon', 'f8'), ('lat', 'f8')])
    places['lon'], places['lat'] = random.uniform(179.9, 180.1, 900), random.uniform(60, 60.1, 900)
    places['lon'][places['lon'] >= 180] -= 360  # across the antimeridian
    old, new = places[:100], places[100:]
    near, kept = metres(places, places) < 400, list(range(100))
    for number in range(100, 900):
        if not near[number, kept].any():
            kept.append(number)
    assert (np.flatnonzero(far_enough(new, old, 400)) + 100).tolist() == kept[100:]
    assert 50 < len(kept) - 100 < 700
    assert far_enough(new, old, 0).all()


def test_where_there_is_no_room_less_is_got_and_said(islands, tmp_path, caplog):
    summary = sample(tmp_path, 0, **settings(islands, min_distance=1000))
    assert 100 < summary['points'] < summary['asked'] == 680
    assert summary['points'] == sum(row['got'] for row in summary['table']) == \
        len(points_of(tmp_path))
    assert re.search(r'urban in asia: \d+ of 80 points; its [\d.]+ km² have no room', caplog.text)


# -- the same again ------------------------------------------------------------------------------


def files_of(folder):
    return {name: (folder / name).read_bytes() for name in ('points.csv', 'points.png')}


def test_the_same_seed_gives_the_same_bytes(islands, drawn, tmp_path):
    sample(tmp_path / 'same', 0, **settings(islands), workers=1)
    assert files_of(tmp_path / 'same') == files_of(drawn[0])
    sample(tmp_path / 'other', 1, **settings(islands))
    one, other = points_of(drawn[0]), points_of(tmp_path / 'other')
    assert not set(zip(one['lon'], one['lat'])) & set(zip(other['lon'], other['lat']))


@pytest.mark.parametrize('reads', [2, 8])  # stopped in the census, and while drawing
def test_stopped_and_started_again(islands, drawn, tmp_path, monkeypatch, reads):
    folder, read, seen = tmp_path / 'stopped', LandCover.read, []

    def until_stopped(self, number, window):
        if len(seen) == reads and not (folder / 'stopped').exists():
            raise KeyboardInterrupt
        seen.append(self.rasters[number].path)
        return read(self, number, window)

    monkeypatch.setattr(LandCover, 'read', until_stopped)
    with pytest.raises(KeyboardInterrupt):
        sample(folder, 0, **settings(islands), workers=1)
    assert not (folder / 'points.csv').exists() and len(seen) == reads
    (folder / 'stopped').touch()
    sample(folder, 0, **settings(islands), workers=1)
    (folder / 'stopped').unlink()
    assert files_of(folder) == files_of(drawn[0])
    # Nothing was read twice: six for the census, six to draw, and what the later rounds of drawing
    # need.
    assert seen[:12] == [str(islands / f'{name}.tif') for name in sorted(ISLANDS)] * 2


def test_stopped_in_the_middle_of_one_large_raster(islands, tmp_path, monkeypatch):
    monkeypatch.setattr(landcover, 'SIDE', 60)  # 100 windows
    monkeypatch.setattr(sampling, 'PART', 8)
    path = str(islands / 'asia.tif')
    options = settings(islands, landcover=dict(paths=path), total=50, continents={'asia': 1})
    sample(tmp_path / 'whole', 0, **options)
    folder, read, seen = tmp_path / 'stopped', LandCover.read, []

    def until_stopped(self, number, window):
        if len(seen) == 50 and not (folder / 'stopped').exists():
            raise KeyboardInterrupt
        seen.append(window)
        return read(self, number, window)

    monkeypatch.setattr(LandCover, 'read', until_stopped)
    with pytest.raises(KeyboardInterrupt):
        sample(folder, 0, **options, workers=1)
    assert len(list(folder.glob('census/*/*.npy'))) == 6  # 48 of its windows
    (folder / 'stopped').touch()
    sample(folder, 0, **options, workers=1)
    (folder / 'stopped').unlink()
    assert seen[48:50] == seen[50:52] and len(set(map(repr, seen[50:102]))) == 52
    assert files_of(folder) == files_of(tmp_path / 'whole')


@pytest.mark.slow
def test_killed_and_started_again(islands, drawn, tmp_path):
    folder = tmp_path / 'killed'
    program = f"""
import sys
from pathlib import Path
from pera_mm.collect.landcover import LandCover
from pera_mm.collect.sampling import sample
read = LandCover.read
def slow(self, *args):
    import time
    time.sleep(0.3)
    return read(self, *args)
LandCover.read = slow
sample(Path({str(folder)!r}), 0, **{settings(islands)!r}, workers=1)
"""
    process = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 200
        while not list(folder.glob('census/*/00001-*.npy')) and time.monotonic() < end:
            time.sleep(0.02)
            assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = {path: path.stat().st_mtime_ns for path in folder.glob('census/*/*.npy')}
    assert 2 <= len(left) < 6
    sample(folder, 0, **settings(islands))
    assert files_of(folder) == files_of(drawn[0])
    assert {path: path.stat().st_mtime_ns for path in left} == left


def test_what_is_finished_is_not_done_again(islands, drawn, monkeypatch):
    folder, summary = drawn
    before = files_of(folder)
    monkeypatch.setattr(LandCover, 'read', None)
    assert sample(folder, 0, **settings(islands)) == json.loads(json.dumps(summary))
    assert files_of(folder) == before


def test_points_of_other_origin_are_not_overwritten(islands, drawn, tmp_path):
    before = files_of(drawn[0])
    with pytest.raises(ValueError, match='points.csv is there and was not drawn with these'):
        sample(drawn[0], 0, **settings(islands, total=700))
    assert files_of(drawn[0]) == before
    (tmp_path / 'points.csv').write_text('id,lon,lat,gsd\n1,2,3,4\n')
    with pytest.raises(ValueError, match='points.csv is there and was not drawn with these'):
        sample(tmp_path, 0, **settings(islands))


# -- the map -------------------------------------------------------------------------------------


def test_the_map_shows_land_and_points():
    points = pd.DataFrame({'lon': [100.0, 20, -60], 'lat': [60.0, 10, -10], 'gsd': 1.0,
                           'class': ['urban', 'urban', 'water'],
                           'continent': ['asia', 'africa', 'south america']})
    picture = np.asarray(Image.open(io.BytesIO(draw_map(points))).convert('RGB')).astype(int)
    assert picture.shape == (704, 1540, 3)
    assert 0.1 < (picture == (0xf3, 0xf1, 0xec)).all(axis=-1).mean() < 0.5
    red = (picture[..., 0] > 190) & (picture[..., 1] < 120) & (picture[..., 2] < 110)
    rows, cols = np.nonzero(red)
    assert np.unique(rows[cols > 600] // 20).size <= 4 and cols.max() > 1000  # two, and the legend
    assert ((picture[..., 2] - picture[..., 0]) > 90).any()  # water


def test_a_table_without_any_point_of_a_class_has_its_columns(islands, tmp_path):
    sample(tmp_path, 0, **settings(islands, total=1, counts={}))
    assert list(pd.read_csv(tmp_path / 'points.csv').columns) == list(POINT)


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(total=-1), 'total must be a number of points, got -1'),
    (dict(total=0, counts={}), 'no point is asked for'),
    (dict(shares=dict(urban=0.6, forest=0.3)), 'the shares sum to 0.9, not to 1: urban 0.6, fore'),
    (dict(shares=dict(urban=1.5, forest=-0.5)), r"shares\['urban'\] must lie between 0 and 1"),
    (dict(shares=dict(city=1.0)), "the class 'city' is not in the legend .*it has water, forest"),
    (dict(counts=dict(sand=5)), "the class 'sand' is not in the legend"),
    (dict(counts=dict(ice=-5)), r"counts\['ice'\] must be a number of points, got -5"),
    (dict(continents={'atlantis': 1}), "the continent 'atlantis' is unknown; there are africa, "),
    (dict(continents={'asia': 0}), r"continents\['asia'\] must be above 0, got 0; leave"),
    (dict(continents={}), 'continents is empty; name some'),
    (dict(min_distance=-1), 'min_distance must be 0 or more metres, got -1'),
    (dict(gsd=(3, 1)), r'gsd must be the lowest and the highest metres per pixel'),
    (dict(gsd=(0, 1)), r'gsd must be the lowest and the highest metres per pixel'),
    (dict(gsd=4.0), r'gsd must be the lowest and the highest metres per pixel'),
    (dict(workers=0), 'workers must be 1 or more, got 0'),
    (dict(landcover=dict(path='x')), 'landcover needs paths and may have legend and step, got pa'),
    (dict(landcover=dict(paths='nowhere/*.tif')), "no raster matches 'nowhere"),
])
def test_bad_settings(islands, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        sample(tmp_path, 0, **settings(islands, **changes))
    assert not list(tmp_path.iterdir())


def test_quotas_that_the_map_cannot_give(islands, tmp_path):
    with pytest.raises(ValueError, match='the land cover has nothing in asia: add its rasters to '
                                         'landcover.paths, or leave it out of continents'):
        sample(tmp_path, 0, **settings(islands, landcover=dict(
            paths=str(islands / 'europe.tif')), continents=TWICE))
    write_globe(tmp_path / 'globe.tif', ['urban', 'forest'])
    with pytest.raises(ValueError, match="the class 'ice' does not occur on the land cover of "
                                         'these continents, but 20 points of it are asked for'):
        sample(tmp_path, 0, **settings(tmp_path, shares=dict(urban=1.0), counts=dict(ice=20)))


def test_an_unknown_code_stops_the_census(islands, tmp_path):
    write_globe(tmp_path / 'globe.tif')
    with pytest.raises(ValueError, match='globe.tif has the class code .* in row'):
        sample(tmp_path, 0, **settings(tmp_path, landcover=dict(
            paths=str(tmp_path / 'globe.tif'), legend={7: 'urban', 1: 'water'}),
            shares=dict(urban=1.0), counts={}))
