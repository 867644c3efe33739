"""Strips joined to a map: a valid COG with colors, names and tags."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import Affine, from_origin

from pera_mm.errors import UserError
from pera_mm.mapping.rasters import MapInfo, Part, join, join_scores, write_part

CLASSES, PALETTE = ['water', 'roof & <tiles>'], [[0, 0, 200], [200, 0, 0]]


def map_info(height: int, width: int, crs: str | None = 'EPSG:32632') -> MapInfo:
    place = None if crs is None else CRS.from_user_input(crs)
    transform = Affine.identity() if crs is None else from_origin(500_000.25, 5_200_000, .3, .3)
    return MapInfo(height, width, place, transform, CLASSES, PALETTE,
                   {'CLASS_NAMES': json.dumps(CLASSES), 'CONFIG': 'a "b" <c>.py'})


def write_parts(work: Path, classes: np.ndarray, tops: list[int], lefts: list[int],
                scores: np.ndarray | None = None) -> list[Part]:
    parts = []
    for top, bottom in zip(tops, [*tops[1:], classes.shape[0]]):
        for left, right in zip(lefts, [*lefts[1:], classes.shape[1]]):
            part = Part(work / f'{left}-{top}.tif', top, left, bottom - top, right - left)
            inside = np.s_[..., top:bottom, left:right]
            write_part(part.path, classes[inside], None if scores is None else scores[inside])
            parts.append(part)
    return parts


@pytest.fixture
def classes() -> np.ndarray:
    """Two classes and nothing; 300 rows without anything."""
    values = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (1300, 1100))
    values[400:700] = 255
    return values


@pytest.mark.parametrize('crs', ['EPSG:32632', 'EPSG:4326', None])
def test_strips_become_one_cog(tmp_path, classes, crs):
    work, output = tmp_path / 'work', tmp_path / 'out' / 'map.tif'
    info = map_info(*classes.shape, crs)
    parts = write_parts(work, classes, [0, 341, 450, 650, 1000], [0, 700])
    assert any(part.is_empty for part in parts)
    join(parts, output, info, work)
    with rasterio.open(output) as file:
        np.testing.assert_array_equal(file.read(1), classes)
        assert (file.crs, file.transform) == (info.crs, info.transform)
        assert file.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG'
        assert file.profile['compress'] == 'deflate' and file.block_shapes == [(512, 512)]
        assert file.overviews(1) == [2, 4] and file.nodata == 255
        assert file.colorinterp == (ColorInterp.palette,)
        colors = file.colormap(1)
        assert [list(colors[index]) for index in (0, 1)] == [[*color, 255] for color in PALETTE]
        assert json.loads(file.tags()['CLASS_NAMES']) == CLASSES
        assert file.tags()['CONFIG'] == info.tags['CONFIG']
        np.testing.assert_array_equal(file.read_masks(1) > 0, classes != 255)
    assert [path.name for path in output.parent.iterdir()] == ['map.tif']


def test_scores_have_a_band_for_each_class(tmp_path, classes):
    work, output = tmp_path / 'work', tmp_path / 'scores.tif'
    scores = np.random.default_rng(1).integers(0, 256, (2, *classes.shape), dtype=np.uint8)
    scores[:, classes == 255] = 0
    parts = write_parts(work, classes, [0, 400, 700], [0], scores)
    join_scores(parts, output, map_info(*classes.shape), work, CLASSES)
    join(parts, tmp_path / 'map.tif', map_info(*classes.shape), work)
    with rasterio.open(output) as file:
        np.testing.assert_array_equal(file.read(), scores)
        assert list(file.descriptions) == CLASSES
    with rasterio.open(tmp_path / 'map.tif') as file:
        np.testing.assert_array_equal(file.read(1), classes)


def test_the_same_strips_give_the_same_bytes(tmp_path, classes):
    work, files = tmp_path / 'work', []
    for number in range(2):
        parts = write_parts(work, classes, [0, 341, 900], [0, 700])
        join(parts, tmp_path / f'{number}.tif', map_info(*classes.shape), work)
        files.append((tmp_path / f'{number}.tif').read_bytes())
    assert files[0] == files[1]


def test_a_damaged_strip_is_an_error_and_leaves_the_old_map(tmp_path, classes):
    output = tmp_path / 'map.tif'
    output.write_bytes(b'old')
    parts = write_parts(tmp_path / 'work', classes, [0, 400], [0])
    parts[1].path.write_bytes(b'broken')
    with pytest.raises(UserError, match=r'map.tif could not be written'):
        join(parts, output, map_info(*classes.shape), tmp_path / 'work')
    assert output.read_bytes() == b'old'
