"""Points: quotas, uniform per km² (chi-square), distances, restarts, and what is refused."""

import functools
import http.server
import io
import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.warp import transform
from scipy.stats import chisquare, kstest

from pera_mm.collect.common.tables import POINT, read_table
from pera_mm.collect.sample import landcover, step, strata
from pera_mm.collect.sample.continents import CONTINENTS, continent_of
from pera_mm.collect.sample.figure import draw_map, label_place
from pera_mm.collect.sample.landcover import LandCover
from pera_mm.collect.sample.spacing import EARTH_RADIUS, far_enough, on_sphere
from pera_mm.collect.sample.step import sample
from pera_mm.scenes.planet import ISLANDS
from pera_mm.shares import largest_remainder

PAPER = dict(urban=0.6, farmland=0.1, wetland=0.1, forest=0.1, water=0.1)
TWICE = {'asia': 2, 'europe': 2, 'north america': 2, 'africa': 1, 'oceania': 1, 'south america': 1}
CODES = dict(water=1, forest=2, wetland=4, farmland=5, urban=7, desert=8, ice=9, cloud=10,
             grassland=11)


def write(path, codes, crs, affine, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, 'w', driver='GTiff', height=codes.shape[0], width=codes.shape[1],
                       count=1, dtype='uint8', crs=crs, transform=affine, **options) as file:
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


def test_classes_and_continents_get_the_points_of_the_paper(drawn):
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
        with rasterio.open(islands / f'{name}.tif') as file:
            x, y = transform('EPSG:4326', file.crs, some['lon'].to_numpy(), some['lat'].to_numpy())
            assert [row[0] for row in file.sample(zip(x, y))] == some['class'].map(CODES).tolist()


def test_the_others_get_the_points_of_a_class_that_a_continent_lacks(tmp_path):
    write_globe(tmp_path / 'globe.tif')
    with rasterio.open(tmp_path / 'globe.tif', 'r+') as file:
        codes = file.read(1)
        codes[(codes == CODES['ice']) & (np.arange(90)[:, None] > 20)] = CODES['desert']  # < 50 N
        file.write(codes, 1)
    summary = sample(tmp_path, 0, **settings(tmp_path, counts=dict(ice=30)))
    ice = {row['continent']: row['got'] for row in summary['table'] if row['class'] == 'ice'}
    assert ice == {'asia': 10, 'europe': 10, 'north america': 10}


def test_the_other_continents_get_the_points_that_a_stray_pixel_has_no_room_for(tmp_path, caplog):
    codes = np.full((90, 180), CODES['urban'], np.uint8)
    codes[:20] = CODES['ice']  # > 50 N: Asia, Europe, North America
    codes[43, 101] = CODES['ice']  # one pixel of 2 degrees in Africa, 3 N, 23 E
    write(tmp_path / 'globe.tif', codes, 'EPSG:4326', from_origin(-180, 90, 2, 2))
    with caplog.at_level('INFO', 'pera_mm.collect'):
        summary = sample(tmp_path, 0, **settings(
            tmp_path, shares=dict(urban=1), counts=dict(ice=700), min_distance=100_000,
            continents={'asia': 2, 'europe': 1, 'africa': 4}))
    ice = {row['continent']: row for row in summary['table'] if row['class'] == 'ice'}
    assert {name: row['asked'] for name, row in ice.items()} == dict(asia=200, europe=100,
                                                                     africa=400)
    room = ice['africa']['got']
    assert 2 <= room <= 10 and summary['points'] == summary['asked'] == 1300
    to_asia, to_europe = largest_remainder(400 - room, [2, 1])
    assert {name: row['got'] for name, row in ice.items()} == dict(
        asia=200 + to_asia, europe=100 + to_europe, africa=room)
    assert f'ice: {400 - room} points for which a continent has no room move to' in caplog.text
    assert re.search(rf'ice in africa: {room} of 400 points at min_distance; the last 3 rounds '
                     r'found no room for more on its [\d.]+ km²', caplog.text)


def test_quotas_with_room_are_reached_in_few_rounds(tmp_path, caplog, monkeypatch):
    write(tmp_path / 'a.tif', np.full((500, 500), 7, np.uint8), 'EPSG:32633',
          from_origin(300_000, 5_500_000, 10, 10))
    options = settings(tmp_path, shares=dict(urban=1), counts={}, continents=None,
                       min_distance=200)  # of which some 430 fit on 25 km² by chance
    with caplog.at_level('INFO', 'pera_mm.collect'):
        assert sample(tmp_path / 'a', 0, **options | dict(total=300))['points'] == 300
    assert 3 < caplog.text.count('missing') < 9  # the same number each time would take 20
    caplog.clear()
    for module in ('points', 'step'):
        monkeypatch.setattr(f'pera_mm.collect.sample.{module}.MAX_ROUNDS', 5)
    summary = sample(tmp_path / 'b', 0, **options | dict(total=420))
    assert 300 < summary['points'] < 420
    assert 'of 420 points at min_distance; the 5 rounds of drawing ended' in caplog.text


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
    # The test has enough power: points uniform per degree fail it.
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
    centers = (np.arange(180) + 0.5) * 2 - 180, 89 - np.arange(90) * 2
    # A pixel of 2 degrees belongs to the continent of its center.
    owner = continent_of(*np.meshgrid(*centers))[((90 - lat) / 2).astype(int),
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


def pixel_of(path, points):
    """Fractional row and column in a raster of each point."""
    with rasterio.open(path) as file:
        x, y = transform('EPSG:4326', file.crs, points['lon'].to_numpy(), points['lat'].to_numpy())
        return np.array(rasterio.transform.rowcol(file.transform, x, y, op=lambda axis: axis))


def test_with_a_step_every_point_lies_in_a_pixel_of_its_class(tmp_path):
    # 603 x 501 pixels without order; the last squares of 4 are cut, the overviews are averages.
    codes = np.random.default_rng(0).choice(np.array([7, 2], np.uint8), (603, 501))
    affine = from_origin(400_000, 5_000_000, 100, 100)
    write(tmp_path / 'map.tif', codes, 'EPSG:32633', affine, tiled=True, blockxsize=256,
          blockysize=256)
    with rasterio.open(tmp_path / 'map.tif', 'r+') as file:
        file.build_overviews([2, 4], Resampling.average)
    cover = dict(paths=str(tmp_path / 'map.tif'), step=4)
    options = settings(tmp_path, landcover=cover, shares=dict(urban=0.5, forest=0.5), counts={},
                       total=20_000, continents=None, min_distance=0)
    summary = sample(tmp_path, 0, **options)
    points = points_of(tmp_path)
    within = pixel_of(cover['paths'], points)
    row, col = within.astype(int)
    assert (codes[row, col] == points['class'].map(CODES)).all()
    middle = [np.minimum(axis // 4 * 4 + 2, (size + axis // 4 * 4) // 2)
              for axis, size in ((row, 603), (col, 501))]
    assert np.array_equal((row, col), middle)
    for axis in within:
        assert chisquare(np.histogram(axis % 1, 10, (0, 1))[0]).pvalue > 0.001
    # The same density everywhere, also where the squares are cut.
    assert sum(line['km2'] for line in summary['table']) == pytest.approx(3021, rel=2e-3)
    urban = points[points['class'] == 'urban']
    looked_at = codes[np.minimum(np.arange(151) * 4 + 2, 601)][:, np.minimum(
        np.arange(126) * 4 + 2, 500)] == 7
    areas = looked_at * np.r_[np.full(150, 4), 3][:, None] * np.r_[np.full(125, 4), 1]
    expected = np.add.reduceat(areas.sum(axis=1), range(0, 151, 15))
    seen = np.histogram(pixel_of(cover['paths'], urban)[0], [*range(0, 603, 60), 603])[0]
    assert chisquare(seen, expected * len(urban) / expected.sum()).pvalue > 0.001
    with pytest.raises(ValueError, match='comes from the overviews'):
        sample(tmp_path / 'coarse', 0, **options | dict(landcover=cover | dict(overviews=True)))


def test_density_is_uniform_with_a_step_in_both_coordinate_systems(tmp_path):
    # 60 km in UTM, and around them in degrees.
    write(tmp_path / 'a.tif', np.full((600, 600), 7, np.uint8), 'EPSG:32633',
          from_origin(420_000, 5_540_000, 100, 100))
    write(tmp_path / 'b.tif', np.full((1000, 1500), 7, np.uint8), 'EPSG:4326',
          from_origin(13.5, 50.25, 0.002, 0.001))
    summary = sample(tmp_path, 0, **settings(
        tmp_path, landcover=dict(paths=str(tmp_path / '*.tif'), step=3), shares=dict(urban=1),
        total=20_000, counts={}, continents=None, min_distance=0))
    x, y = np.diff(transform('EPSG:4326', 'EPSG:6933', [13.5, 16.5], [49.25, 50.25]))
    assert summary['table'][0]['km2'] == pytest.approx(x[0] * y[0] / 1e6, rel=3e-3)
    points = points_of(tmp_path)
    heights = np.sin(np.radians(points['lat']))
    cells = np.histogram2d(points['lon'], heights, (30, 20), (
        (13.5, 16.5), np.sin(np.radians((49.25, 50.25)))))[0]
    assert cells.sum() == 20_000 and chisquare(cells.ravel()).pvalue > 0.001


def test_density_is_the_same_across_a_seam(tmp_path):
    for number in range(2):  # of 1 km, which overlap by 200 m
        write(tmp_path / f'{number}.tif', np.full((100, 100), 7, np.uint8), 'EPSG:32633',
              from_origin(300_000 + 800 * number, 5_500_000, 10, 10))
    summary = sample(tmp_path, 0, **settings(tmp_path, shares=dict(urban=1), total=20_000,
                                             counts={}, continents=None, min_distance=0))
    assert summary['table'][0]['km2'] == pytest.approx(1.8, rel=0.01)
    _, cols = pixel_of(tmp_path / '0.tif', points_of(tmp_path))
    assert chisquare(np.histogram(cols, 36, (0, 180))[0]).pvalue > 0.001


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


def meters(one, other):
    cosine = np.clip(on_sphere(one['lon'], one['lat']) @ on_sphere(other['lon'], other['lat']).T,
                     -1, 1)
    return EARTH_RADIUS * np.arccos(cosine)


def test_no_two_points_are_too_near(drawn):
    points = points_of(drawn[0])
    distances = meters(points, points)[np.triu_indices(len(points), 1)]
    assert distances.min() >= 99.9  # arccos: 0.1 m
    assert (distances < 120).any()  # and it was close


def test_first_come_first_served_as_the_plain_loop_says():
    random = np.random.default_rng(0)
    places = np.empty(900, [('lon', 'f8'), ('lat', 'f8')])
    places['lon'], places['lat'] = random.uniform(179.9, 180.1, 900), random.uniform(60, 60.1, 900)
    places['lon'][places['lon'] >= 180] -= 360  # across the antimeridian
    old, new = places[:100], places[100:]
    near, kept = meters(places, places) < 400, list(range(100))
    for number in range(100, 900):
        if not near[number, kept].any():
            kept.append(number)
    assert (np.flatnonzero(far_enough(new, old, 400)) + 100).tolist() == kept[100:]
    assert 50 < len(kept) - 100 < 700
    assert far_enough(new, old, 0).all()


def test_first_come_first_served_where_thousands_crowd():
    random = np.random.default_rng(0)
    places = np.empty(100_000, [('lon', 'f8'), ('lat', 'f8')])  # on 9 km²
    places['lon'], places['lat'] = random.random((2, 100_000)) * [[0.04], [0.027]] + [[10], [48]]
    kept = np.flatnonzero(far_enough(places, places[:0], 200))
    xyz = on_sphere(places['lon'], places['lat'])
    near_kept = xyz @ xyz[kept].T > np.cos(200 / EARTH_RADIUS)
    # A place that is not kept lies near an earlier one that is.
    assert np.array_equal(np.flatnonzero(
        ~(near_kept & (kept < np.arange(100_000)[:, None])).any(axis=1)), kept)
    assert 100 < len(kept) < 200


def test_where_there_is_no_room_fewer_points_are_drawn_and_logged(islands, tmp_path, caplog):
    summary = sample(tmp_path, 0, **settings(islands, min_distance=1000))
    assert 100 < summary['points'] < summary['asked'] == 680
    assert summary['points'] == sum(row['got'] for row in summary['table']) == \
        len(points_of(tmp_path))
    assert re.search(r'urban in asia: \d+ of 80 points at min_distance; the last 3 rounds found no '
                     r'room for more on its [\d.]+ km²', caplog.text)


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
    # Nothing was read twice: six reads for the census, six to draw, and those of the later rounds.
    assert seen[:12] == [str(islands / f'{name}.tif') for name in sorted(ISLANDS)] * 2


def test_stopped_in_the_middle_of_one_large_raster(islands, tmp_path, monkeypatch):
    monkeypatch.setattr(landcover, 'WINDOW_SIDE', 60)  # 100 windows
    monkeypatch.setattr(strata, 'PART_WINDOWS', 8)
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


def test_a_full_disk_loses_nothing(islands, drawn, tmp_path):
    (census,) = drawn[0].glob('census/*')
    folder = tmp_path / 'census' / census.name
    folder.mkdir(parents=True)
    # A device that is really full, in place of the fourth part of the census, then of the table.
    for part, options in ((folder / '.00003-0000000.npy.part', dict(workers=1)),
                          (tmp_path / '.points.csv.part', {})):
        part.symlink_to('/dev/full')
        with pytest.raises(OSError, match='No space left on device'):
            sample(tmp_path, 0, **settings(islands), **options)
        part.unlink(missing_ok=True)
        finished = sorted(path.name for path in folder.glob('0*.npy'))
        assert [name[:5] for name in finished][:3] == ['00000', '00001', '00002']
        kept = {path: path.stat().st_mtime_ns for path in folder.glob('0*.npy')}
    sample(tmp_path, 0, **settings(islands))
    assert files_of(tmp_path) == files_of(drawn[0])
    assert kept == {path: path.stat().st_mtime_ns for path in folder.glob('0*.npy')}


class FailingHandler(http.server.SimpleHTTPRequestHandler):
    """A file server with byte ranges that fails at some requests."""

    protocol_version = 'HTTP/1.1'
    fails: ClassVar = set()  # numbers of requests
    seen: ClassVar = []

    def do_GET(self):
        self.seen.append(self.path)
        if len(self.seen) in self.fails:
            self.answer(500, b'')
            return
        data = Path(self.translate_path(self.path)).read_bytes()
        first, _, last = self.headers.get('Range', 'bytes=0-').removeprefix('bytes=').partition('-')
        part = data[int(first):int(last or len(data)) + 1]
        self.answer(206, part, **{'Content-Range': f'bytes {first}-{int(first) + len(part) - 1}/'
                                                   f'{len(data)}'})

    def answer(self, status, data, **headers):
        self.send_response(status)
        for name, value in (headers | {'Content-Length': str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_a_server_that_fails_in_the_middle_changes_nothing(tmp_path):
    codes = np.random.default_rng(0).choice(np.array([7, 2], np.uint8), (1500, 1500))
    for name in ('a.tif', 'b.tif'):
        write(tmp_path / name, codes, 'EPSG:32633', from_origin(
            300_000 + 20_000 * (name == 'b.tif'), 5_500_000, 10, 10), tiled=True, blockxsize=256,
            blockysize=256)
    options = settings(tmp_path, shares=dict(urban=1), total=200, counts={}, continents=None)
    sample(tmp_path / 'local', 0, **options)
    handler = functools.partial(FailingHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}'
        FailingHandler.fails = {9, 10}
        cover = dict(paths=[f'{address}/a.tif', f'{address}/b.tif'])
        sample(tmp_path / 'remote', 0, **options | dict(landcover=cover), workers=1)
        assert FailingHandler.seen[8] == FailingHandler.seen[9] == FailingHandler.seen[10]  # again
        assert len(FailingHandler.seen) > 20
        server.shutdown()
    assert files_of(tmp_path / 'remote') == files_of(tmp_path / 'local')


def test_a_map_that_changed_is_measured_anew_or_refused(tmp_path, monkeypatch):
    codes = np.full((300, 300), CODES['urban'], np.uint8)
    place = 'EPSG:32633', from_origin(300_000, 5_500_000, 10, 10)
    write(tmp_path / 'map.tif', codes, *place)
    rasterio.shutil.copy(tmp_path / 'map.tif', tmp_path / 'map.vrt', driver='VRT')
    options = settings(tmp_path, landcover=dict(paths=str(tmp_path / 'map.vrt')), counts={},
                       shares=dict(urban=1), continents=None, total=20)
    sample(tmp_path, 0, **options)
    (tmp_path / 'points.csv').unlink()
    codes[10:] = CODES['forest']
    write(tmp_path / 'map.tif', codes, *place)  # what the VRT shows
    (line,) = sample(tmp_path, 0, **options)['table']
    assert line['km2'] == pytest.approx(0.3, rel=1e-3)
    # A remote map may change unseen.
    monkeypatch.setattr(step, '_file_states', lambda raster: [])
    sample(tmp_path / 'remote', 0, **options)
    (tmp_path / 'remote/points.csv').unlink()
    codes[:10] = CODES['forest']
    write(tmp_path / 'map.tif', codes, *place)
    with pytest.raises(ValueError, match='map.vrt has changed since its census: urban is no longer '
                                         'where it was; remove census and draws'):
        sample(tmp_path / 'remote', 1, **options)


def test_the_log_has_every_tenth_of_a_large_census(islands, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(landcover, 'WINDOW_SIDE', 60)  # 100 windows
    with caplog.at_level('INFO', 'pera_mm.collect'):
        sample(tmp_path, 0, **settings(islands, landcover=dict(paths=str(islands / 'asia.tif')),
                                       total=20, continents={'asia': 1}))
    logged = re.findall(r'land cover: (\d+) of 100 windows', caplog.text)
    assert logged == [str(number) for number in range(10, 101, 10)]


@pytest.mark.slow
def test_killed_and_started_again(islands, drawn, tmp_path):
    folder = tmp_path / 'killed'
    program = f"""
import sys
from pathlib import Path
from pera_mm.collect.sample.landcover import LandCover
from pera_mm.collect.sample.step import sample
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
    with pytest.raises(ValueError, match='points.csv exists and was not drawn with these'):
        sample(drawn[0], 0, **settings(islands, total=700))
    assert files_of(drawn[0]) == before
    (tmp_path / 'points.csv').write_text('id,lon,lat,gsd\n1,2,3,4\n')
    with pytest.raises(ValueError, match='points.csv exists and was not drawn with these'):
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


def test_no_class_hides_another_on_the_map():
    random = np.random.default_rng(0)
    points = pd.DataFrame({'lon': random.uniform(-1, 1, 6000), 'lat': random.uniform(-1, 1, 6000),
                           'class': random.choice(['urban', 'water'], 6000), 'gsd': 1.0,
                           'continent': ''})
    points['lat'] += np.where(np.arange(6000), 0, 40.0)  # one far away: all others in one spot
    picture = np.asarray(Image.open(io.BytesIO(draw_map(points))).convert('RGB')).astype(int)
    spot = picture[:, 600:1000]
    red = ((spot[..., 0] - spot[..., 2]) > 60).sum()
    blue = ((spot[..., 2] - spot[..., 0]) > 60).sum()
    assert 0.5 < red / blue < 2 and min(red, blue) > 20


def test_the_names_of_continents_leave_the_points_free():
    lon, lat = ISLANDS['africa']
    points = pd.DataFrame({'lon': [lon] * 9 + [ISLANDS['asia'][0]], 'gsd': 1.0,
                           'lat': [lat] * 9 + [ISLANDS['asia'][1]],
                           'class': 'urban', 'continent': ['africa'] * 9 + ['asia']})
    assert all(abs(label_place(name, points)[0] - ISLANDS[name][0]) > 15
               or abs(label_place(name, points)[1] - ISLANDS[name][1]) > 6
               for name in ('africa', 'asia'))
    empty = points[:0]
    assert continent_of(*label_place('africa', empty)) == CONTINENTS.index('africa')


def test_a_table_without_any_point_of_a_class_has_its_columns(islands, tmp_path):
    sample(tmp_path, 0, **settings(islands, total=1, counts={}))
    assert list(pd.read_csv(tmp_path / 'points.csv').columns) == list(POINT)


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(total=-1), 'total must be a number of points, got -1'),
    (dict(total='many'), "total must be a number of points, got 'many'"),
    (dict(total=True), 'total must be a number of points, got True'),
    (dict(total=math.inf), 'total must be a number of points, got inf'),
    (dict(total=0, counts={}), 'no point is asked for'),
    (dict(shares=dict(urban=0.6, forest=0.3)), 'the shares sum to 0.9, not to 1: urban 0.6, fore'),
    (dict(shares=dict(urban=1.5, forest=-0.5)), r"shares\['urban'\] must be from 0 to 1, got 1.5"),
    (dict(shares=dict(urban=None)), r"shares\['urban'\] must be from 0 to 1, got None"),
    (dict(shares=dict(urban=math.nan)), r"shares\['urban'\] must be from 0 to 1, got nan"),
    (dict(shares='urban'), "shares must be a dictionary, e.g. .*, got 'urban'"),
    (dict(shares=dict(city=1.0)), "the class 'city' is not in the legend .*it has water, forest"),
    (dict(counts=dict(sand=5)), "the class 'sand' is not in the legend"),
    (dict(counts=dict(ice=-5)), r"counts\['ice'\] must be a number of points, got -5"),
    (dict(counts=dict(ice='5')), r"counts\['ice'\] must be a number of points, got '5'"),
    (dict(counts=dict(ice=True)), r"counts\['ice'\] must be a number of points, got True"),
    (dict(counts=['ice']), r"counts must be a dictionary, e.g. .*, or None, got \['ice'\]"),
    (dict(continents={'atlantis': 1}),
     "the continent 'atlantis' is unknown; the names are africa, "),
    (dict(continents={'asia': 0}), r"continents\['asia'\] must be above 0 \(leave .*, got 0"),
    (dict(continents={'asia': 'two'}), r"continents\['asia'\] must be above 0 .*, got 'two'"),
    (dict(continents={'asia': math.inf}), r"continents\['asia'\] must be above 0 .*, got inf"),
    (dict(continents=['asia']), r"continents must be a dictionary, e.g. .*, got \['asia'\]"),
    (dict(continents={}), 'continents is empty; name some'),
    (dict(min_distance=-1), 'min_distance must be 0 or more meters, got -1'),
    (dict(min_distance='abc'), "min_distance must be 0 or more meters, got 'abc'"),
    (dict(min_distance=math.inf), 'min_distance must be 0 or more meters, got inf'),
    (dict(gsd=(3, 1)), r'gsd must be the lowest and the highest meters per pixel'),
    (dict(gsd=(0, 1)), r'gsd must be the lowest and the highest meters per pixel'),
    (dict(gsd=4.0), r'gsd must be the lowest and the highest meters per pixel'),
    (dict(gsd=('a', 'b')), r'gsd must be the lowest and the highest meters per pixel'),
    (dict(gsd=(True, 2)), r'gsd must be .* meters per pixel, e.g. .*, got \(True, 2\)'),
    (dict(gsd=(1, math.inf)), r'gsd must be the lowest and the highest meters per pixel'),
    (dict(workers=0), 'workers must be a whole number from 1, got 0'),
    (dict(workers=True), 'workers must be a whole number from 1, got True'),
    (dict(workers=1.5), 'workers must be a whole number from 1, got 1.5'),
    (dict(seed=True), 'seed must be a whole number, got True'),
    (dict(seed='abc'), "seed must be a whole number, got 'abc'"),
    (dict(landcover='a.tif'), "landcover must be a dictionary, e.g. .*, got 'a.tif'"),
    (dict(landcover=dict(path='x')), 'landcover needs paths and may have legend, step and overv'),
    (dict(landcover=dict(paths='nowhere/*.tif')), "no raster matches 'nowhere"),
])
def test_bad_settings(islands, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        sample(tmp_path, **dict(seed=0) | settings(islands, **changes))
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
