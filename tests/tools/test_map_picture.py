"""A map drawn beside its scene: the colors of the picture are those of both."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from pera_mm.errors import UserError
from pera_mm.mapping.rasters import MapInfo, Part, join, write_part
from pera_mm.mapping.vectors import vectorize

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools/analysis'))
import map_picture  # noqa: E402

NAMES, PALETTE = ['water', 'roof'], [[0, 0, 200], [200, 0, 0]]
TRANSFORM = from_origin(500_000, 5_200_000, 2, 2)


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> Path:
    """A scene of one green, an older one of one gray, a map of two halves, and its polygons."""
    folder = tmp_path_factory.mktemp('files')
    for name, color in (('scene', (0, 120, 60)), ('old', (90, 90, 90))):
        with rasterio.open(folder / f'{name}.tif', 'w', driver='GTiff', width=60, height=40,
                           count=3, dtype='uint8', crs='EPSG:32632', transform=TRANSFORM) as file:
            file.write(np.broadcast_to(np.array(color, np.uint8)[:, None, None], (3, 40, 60)))
    classes = np.zeros((40, 60), np.uint8)
    classes[:, 30:] = 1
    write_part(folder / 'part.tif', classes)
    join([Part(folder / 'part.tif', 0, 0, 40, 60)], folder / 'map.tif',
         MapInfo(40, 60, rasterio.CRS.from_epsg(32632), TRANSFORM, NAMES, PALETTE,
                 {'CLASS_NAMES': json.dumps(NAMES)}), folder)
    vectorize(folder / 'map.tif', folder / 'map.gpkg', NAMES)
    return folder


def shares(path: Path) -> dict[tuple[int, ...], float]:
    """The share of each color of a picture."""
    with Image.open(path) as image:
        colors, counts = np.unique(np.asarray(image.convert('RGB')).reshape(-1, 3), axis=0,
                                   return_counts=True)
    return dict(zip(map(tuple, colors.tolist()), counts / counts.sum()))


def draw(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, 'argv', ['map_picture.py', *map(str, arguments)])
    map_picture.draw(map_picture.parse_args())


def test_scenes_map_and_outlines_are_drawn(files, tmp_path, monkeypatch):
    draw(monkeypatch, files / 'scene.tif', files / 'map.tif', '--before', files / 'old.tif',
         '--vectors', files / 'map.gpkg', '-o', tmp_path / 'picture.png')
    found = shares(tmp_path / 'picture.png')
    water, roof, old, new, outlines = (found[color] for color in (
        (0, 0, 200), (200, 0, 0), (90, 90, 90), (0, 120, 60), (255, 255, 0)))
    legend = found[0, 0, 200] + found[200, 0, 0] - old  # two small rectangles
    assert 0 <= legend < .02 < .15 < old
    assert water == pytest.approx(roof, rel=.1) and 0 < outlines < .1
    assert new < old == pytest.approx(new, rel=.3)  # its outlines hide a part


@pytest.mark.parametrize('suffix', ['geojson', 'parquet'])
def test_outlines_are_drawn_from_any_file_and_crs(suffix, files, tmp_path, monkeypatch):
    vectorize(files / 'map.tif', tmp_path / f'map.{suffix}', NAMES)  # GeoJSON is in degrees
    found = []
    for path in (files / 'map.gpkg', tmp_path / f'map.{suffix}'):
        draw(monkeypatch, files / 'scene.tif', files / 'map.tif', '--vectors', path,
             '-o', tmp_path / 'picture.png')
        colors = shares(tmp_path / 'picture.png')
        yellow = sum(share for (r, g, b), share in colors.items() if g >= r > b + 20)
        found.append((yellow, colors[0, 120, 60]))
    (yellow, green), (wanted_yellow, wanted_green) = found[1], found[0]
    assert green == pytest.approx(wanted_green, rel=.1)
    assert .5 < yellow / wanted_yellow < 2  # a line between two pixels is on both


def test_the_older_date_is_drawn_on_the_grid_of_the_newer(files, tmp_path, monkeypatch):
    """Its pixels are twice as large, and it covers the western half."""
    with rasterio.open(tmp_path / 'old.tif', 'w', driver='GTiff', width=15, height=20, count=3,
                       dtype='uint8', crs='EPSG:32632',
                       transform=from_origin(500_000, 5_200_000, 4, 4)) as file:
        file.write(np.full((3, 20, 15), 90, np.uint8))
    draw(monkeypatch, files / 'scene.tif', files / 'map.tif', '--before', tmp_path / 'old.tif',
         '-o', tmp_path / 'picture.png')
    found = shares(tmp_path / 'picture.png')
    assert found[90, 90, 90] == pytest.approx(found[0, 120, 60] / 2, rel=.05)


def test_what_cannot_be_drawn_is_one_sentence(files, tmp_path, monkeypatch):
    for name, dtype in (('empty', 'uint16'), ('far', 'uint8')):
        with rasterio.open(tmp_path / f'{name}.tif', 'w', driver='GTiff', width=60, height=40,
                           count=3, dtype=dtype, nodata=0, crs='EPSG:32632',
                           transform=from_origin(900_000, 5_200_000, 2, 2)) as file:
            file.write(np.zeros((3, 40, 60), dtype))
    scene, far = files / 'scene.tif', tmp_path / 'far.tif'
    for arguments, message in [
            ((scene, '-o', 'p.txt'), r'p.txt is not a picture: .* ends in .*\.png'),
            ((scene, '-o', 'p'), 'p is not a picture'),
            ((scene, '--vectors', tmp_path / 'no.gpkg', '-o', 'p.png'),
             r'no.gpkg cannot be read as polygons \(.*No such file'),
            ((tmp_path / 'empty.tif', '-o', 'p.png'), 'no pixel with a value in the bands 1 2 3'),
            ((scene, '--before', far, '-o', 'p.png'), 'far.tif and .* do not overlap')]:
        with pytest.raises(UserError, match=message):
            draw(monkeypatch, arguments[0], files / 'map.tif', *arguments[1:])


def test_bands_are_numbers_from_1_on(files, monkeypatch, capsys):
    with pytest.raises(SystemExit, match='2'):
        draw(monkeypatch, files / 'scene.tif', files / 'map.tif', '--bands', 0, 1, 2, '-o', 'p.png')
    assert "--bands: expected a whole number of at least 1, got '0'" in capsys.readouterr().err


def test_what_is_not_a_map_is_named(files, tmp_path, monkeypatch):
    with pytest.raises(UserError, match='scene.tif is not a map of tools/predict.py'):
        draw(monkeypatch, files / 'scene.tif', files / 'scene.tif', '-o', tmp_path / 'p.png')
