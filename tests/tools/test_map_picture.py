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


def test_what_is_not_a_map_is_named(files, tmp_path, monkeypatch):
    with pytest.raises(UserError, match='scene.tif is not a map of tools/predict.py'):
        draw(monkeypatch, files / 'scene.tif', files / 'scene.tif', '-o', tmp_path / 'p.png')
