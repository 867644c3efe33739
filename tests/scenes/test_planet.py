"""The synthetic planet: land cover and imagery of the same ground, with all that sampling needs."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform_bounds

from pera_mm.collect.sample.continents import CONTINENTS, continent_of
from pera_mm.collect.sample.landcover import LandCover
from pera_mm.scenes import planet
from pera_mm.scenes.planet import ISLANDS, make_planet

TOOL = Path(__file__).parents[2] / 'tools/data/make_planet.py'
TWO = ('asia', 'europe')  # in degrees, in UTM


@pytest.fixture(scope='module')
def islands(tmp_path_factory):
    """Two of the six islands, which are enough to look at."""
    folder = tmp_path_factory.mktemp('planet')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planet, 'ISLANDS', {name: ISLANDS[name] for name in TWO})
        make_planet(folder)
    return folder


def test_every_island_lies_on_its_continent(islands):
    for name, (lon, lat) in ISLANDS.items():
        around = np.array([-0.1, 0.1, 0.1, -0.1]), np.array([-0.1, -0.1, 0.1, 0.1])
        assert (continent_of(lon + around[0], lat + around[1]) == CONTINENTS.index(name)).all()
    for name in TWO:
        with rasterio.open(islands / f'landcover/{name}.tif') as file:
            assert file.crs.is_geographic == (name == 'asia')
            west, south, east, north = transform_bounds(file.crs, 'EPSG:4326', *file.bounds)
        lon, lat = ISLANDS[name]
        assert abs((west + east) / 2 - lon) < 1e-3 and abs((south + north) / 2 - lat) < 1e-3


def test_all_classes_are_there_and_a_corner_without_data(islands):
    land = LandCover(str(islands / 'landcover/*.tif'))
    for raster in range(2):
        (window,) = land.windows(raster)
        classes = land.read(raster, window)
        counts = np.bincount(classes.ravel() + 1, minlength=10) / classes.size
        assert len(land.classes) == 9 and counts.min() > 0.01
        assert (classes[:80, -80:] == -1).all() and counts[0] == (80 / 640)**2
        grid = land.grid(raster, window)
        assert (grid.spread(grid.pixel_areas())).sum() == pytest.approx(6.4**2, rel=0.01)


@pytest.mark.parametrize('name', TWO)
def test_the_picture_shows_the_classes_of_the_map(islands, name):
    with rasterio.open(islands / f'imagery/{name}.tif') as file:
        image, valid = file.read(), file.dataset_mask() > 0
        assert file.overviews(1) == [2, 4, 8]
        cover = np.zeros(image.shape[1:], np.uint8)
        with rasterio.open(islands / f'landcover/{name}.tif') as source:
            reproject(source.read(1), cover, src_transform=source.transform,
                      src_crs=source.crs, dst_transform=file.transform, dst_crs=file.crs,
                      resampling=Resampling.nearest)
    assert not valid[:200, -200:].any() and valid.sum() == 1600**2 - 200**2
    blank = (np.abs(image.astype(int) - 204) < 2).all(axis=0)
    assert 200**2 < blank.sum() < 260**2
    color = {code: image[:, (cover == code) & valid & ~blank] for code in planet.PAINTS}
    mean = {code: pixels.mean(axis=1) for code, pixels in color.items()}
    looks = {code: np.append(mean[code], pixels.std(axis=1)) for code, pixels in color.items()}
    pairs = [(one, other) for one in looks for other in looks if one < other]
    assert min(np.abs(looks[one] - looks[other]).max() for one, other in pairs) > 12
    assert mean[planet.CLOUD].min() > 200 and mean[planet.ICE].min() > 190
    assert mean[planet.WATER].argmax() == 2 and mean[planet.FOREST].argmax() == 1
    # Texture: a city is rough, water is smooth.
    assert color[planet.URBAN].std() > 3 * color[planet.WATER][2].std()


def test_an_island_that_is_there_is_kept_and_a_missing_one_drawn_alike(islands, monkeypatch):
    def hashes():
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in islands.glob('*/*.tif')}

    before, kept = hashes(), (islands / 'imagery/europe.tif').stat().st_mtime_ns
    (islands / 'landcover/asia.tif').unlink()
    monkeypatch.setattr(planet, 'ISLANDS', {name: ISLANDS[name] for name in TWO})
    make_planet(islands)
    assert hashes() == before
    assert (islands / 'imagery/europe.tif').stat().st_mtime_ns == kept


def test_a_planet_of_another_seed_is_not_taken_for_this_one(islands, monkeypatch):
    monkeypatch.setattr(planet, 'ISLANDS', {name: ISLANDS[name] for name in TWO})
    with pytest.raises(ValueError, match='landcover/asia.tif exists with the seed 0, not 3: '
                                         'choose another folder, or remove this one'):
        make_planet(islands, 3)


@pytest.mark.slow
def test_the_tool_draws_six(tmp_path):
    done = subprocess.run([sys.executable, TOOL, tmp_path / 'planet', '--seed', '3'],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and '6 islands' in done.stdout, done.stderr
    files = [path.name for path in (tmp_path / 'planet/imagery').iterdir()]
    assert sorted(files) == [f'{name.replace(" ", "_")}.tif' for name in ISLANDS]
    assert sum(path.stat().st_size for path in tmp_path.rglob('*.tif')) < 30e6
    done = subprocess.run([sys.executable, TOOL, tmp_path / 'planet'], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 1 and 'exists with the seed 3, not 0' in done.stderr
    (tmp_path / 'file').write_text('')
    done = subprocess.run([sys.executable, TOOL, tmp_path / 'file'], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith('make_planet: ')
    assert 'Traceback' not in done.stderr
