import numpy as np
import pytest
from rasterio.warp import transform

from pera_mm.collect.fetch.mercator import (
    HALF_WORLD,
    MAX_LATITUDE,
    flip_row,
    from_quadkey,
    ground_resolution,
    to_lonlat,
    to_meters,
    to_pixels,
    to_quadkey,
    zoom_for,
)


def test_ground_resolution_as_published():
    # The table of 'Bing Maps Tile System', at the equator.
    published = {1: 78271.5170, 10: 152.8741, 15: 4.7773, 19: 0.2986, 23: 0.0187}
    for zoom, meters in published.items():
        assert ground_resolution(0, zoom) == pytest.approx(meters, abs=5e-5)
    # cos 60° = 1/2: as one zoom further; and a pixel of a 512 px tile is half as large.
    assert ground_resolution(60, 10) == pytest.approx(ground_resolution(0, 11))
    assert ground_resolution(-33, 7, tile_size=512) == pytest.approx(ground_resolution(-33, 8))


def test_zoom_is_the_coarsest_that_is_fine_enough():
    assert zoom_for(4.78, 0) == 15 and zoom_for(4.77, 0) == 16
    assert zoom_for(4.78, 0, tile_size=512) == 14
    assert zoom_for(4.78, 60) == 14
    gsd, lat = np.geomspace(0.3, 10, 50)[:, None], np.linspace(-80, 80, 33)
    zoom = zoom_for(gsd, lat)
    assert (ground_resolution(lat, zoom) <= gsd).all()
    assert (ground_resolution(lat, zoom - 1) > gsd).all()


@pytest.mark.parametrize('zoom', [0, 3, 17, 23])
def test_the_resolution_of_a_zoom_asks_for_that_zoom(zoom):
    lat = np.linspace(-85, 85, 101)
    resolution = ground_resolution(lat, zoom)
    assert (zoom_for(resolution, lat) == zoom).all()
    assert (zoom_for(resolution * (1 - 1e-12), lat) == zoom).all()  # as after rounding


def test_pixels():
    assert to_pixels(0, 0, 0) == (128, 128)
    x, y = to_pixels([-180, 180], [MAX_LATITUDE, -MAX_LATITUDE], 2)
    np.testing.assert_allclose([x, y], [[0, 1024], [0, 1024]], atol=1e-9)
    # Seattle's tile at zoom 10, as slippy-map libraries number it.
    x, y = to_pixels(-122.3321, 47.6062, 10)
    assert (x // 256, y // 256) == (164, 357)


def test_metres_are_those_of_epsg_3857():
    lon, lat = np.array([-179, -33.3, 0, 12, 151.2]), np.array([-85, 7.7, 0, 52.1, -33.9])
    np.testing.assert_allclose(to_meters(lon, lat), transform('EPSG:4326', 'EPSG:3857', lon, lat),
                               atol=1e-6)
    np.testing.assert_allclose(to_lonlat(*to_meters(lon, lat)), [lon, lat], atol=1e-12)
    assert MAX_LATITUDE == pytest.approx(85.05112877980659)
    assert to_meters(0, 90)[1] == pytest.approx(HALF_WORLD)


def test_quadkeys_as_published():
    assert to_quadkey(3, 3, 5) == '213'  # the example of 'Bing Maps Tile System'
    assert from_quadkey('213') == (3, 3, 5)
    assert to_quadkey(0, 0, 0) == ''
    for tile in [(1, 1, 0), (7, 100, 3), (19, 271_003, 400_001)]:
        assert from_quadkey(to_quadkey(*tile)) == tile


def test_rows_from_the_south():
    assert flip_row(0, 0) == 0
    assert flip_row(0, 3) == 7 and flip_row(7, 3) == 0
    np.testing.assert_array_equal(flip_row([0, 5], [1, 4]), [1, 10])
