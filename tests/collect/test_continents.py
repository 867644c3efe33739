"""Six continents: well-known places, the decisions at their borders, and their areas."""

import json

import numpy as np
import pytest
import shapely
from rasterio.warp import transform

from pera_mm.collect.sample.continents import CONTINENTS, FILE, continent_of, polygons


@pytest.mark.parametrize(('place', 'lon', 'lat', 'continent'), [
    ('Berlin', 13.4, 52.5, 'europe'),
    ('Moscow, west of the Urals', 37.6, 55.7, 'europe'),
    ('Novosibirsk, east of them', 82.9, 55.0, 'asia'),
    ('Chukotka, beyond the antimeridian', -175.0, 67.0, 'asia'),
    ('Ankara', 32.9, 39.9, 'asia'),
    ('Cairo', 31.2, 30.0, 'africa'),
    ('French Guiana', -52.8, 4.0, 'south america'),
    ('Greenland', -40.0, 72.0, 'north america'),
    ('Mexico City', -99.1, 19.4, 'north america'),
    ('Alice Springs', 133.9, -23.7, 'oceania'),
    ('the Gulf of Guinea', 0.0, 0.0, None),
    ('the South Pole', 0.0, -89.0, None),
])
def test_places(place, lon, lat, continent):
    index = int(continent_of(lon, lat))
    assert (CONTINENTS[index] if index >= 0 else None) == continent, place


def test_arrays_keep_their_shape():
    lon, lat = np.meshgrid([13.4, 0.0, 133.9], [52.5, -23.7])
    assert continent_of(lon, lat).tolist() == [[2, 2, 1], [-1, -1, 4]]
    assert continent_of(13.4, [52.5, 0.0]).shape == (2,)  # broadcast


# Million km² as atlases give them, for these borders; 1:110m outlines are good to a few per cent.
@pytest.mark.parametrize(('name', 'area'), [
    ('africa', 30.0), ('asia', 44.5), ('europe', 9.9), ('north america', 24.3), ('oceania', 8.5),
    ('south america', 17.8)])
def test_areas(name, area):
    def equal_area(points):
        return np.stack(transform('EPSG:4326', 'EPSG:6933', *points.T), axis=1)

    # Short edges: a straight line in degrees is curved in the plane.
    land = shapely.segmentize(polygons()[name], 0.5)
    assert shapely.transform(land, equal_area).area / 1e12 == pytest.approx(area, rel=0.05)


def test_no_place_lies_on_two():
    lands = list(polygons().values())
    for number, land in enumerate(lands):
        assert land.is_valid
        for other in lands[:number]:
            assert land.intersection(other).area < 1e-6


def test_the_file_states_its_origin():
    stated = json.loads(FILE.read_text())
    assert 'Natural Earth' in stated['source'] and 'Public domain' in stated['license']
    assert any('Russia' in choice for choice in stated['choices'])
