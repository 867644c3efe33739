"""From pictures to a table or a map: the right vectors, in the right places, whatever happens."""

import json
import os
import signal
import tarfile
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rasterio import Affine
from small_world import PATCH, PLACE, SIZE, WIDTH, noise, tiny_vit, write_scene

from pera_mm.datasets.reading import read_image
from pera_mm.embedding import extract
from pera_mm.embedding.extract import Extractor, Summary
from pera_mm.embedding.pictures import open_pictures, squared

pq = pytest.importorskip('pyarrow.parquet')
geopandas = pytest.importorskip('geopandas')
rasterio = pytest.importorskip('rasterio')

FACTS = dict(model='some.pth', token='any')


@pytest.fixture(scope='module')
def model():
    return tiny_vit()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(extract, 'PIECE_PICTURES', 4)
    monkeypatch.setattr(extract, 'PIECE_ROWS', 10)


def write(model, data: Path, out: Path, token: str = 'cls', dtype: str = 'float32',
          **options) -> Summary:
    pictures = open_pictures(data, SIZE, PATCH, **options)
    return Extractor(model, pictures, token, dtype, batch_size=3).write(out, FACTS)


def features(model, image: np.ndarray):
    with torch.no_grad():
        return model(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])


def image_folder(folder: Path, number: int) -> Path:
    folder.mkdir()
    for index in range(number):
        assert cv2.imwrite(str(folder / f'{index:02}.png'), noise(40, 50, index).transpose(1, 2, 0))
    return folder


@pytest.mark.parametrize('token', ['cls', 'patch'])
def test_a_vector_per_image_is_that_of_the_model(model, tmp_path, token):
    folder = image_folder(tmp_path / 'images', 10)
    summary = write(model, folder, tmp_path / 'a.parquet', token)
    table = pq.read_table(tmp_path / 'a.parquet').to_pylist()
    assert summary == (10, 10, []) and len(table) == 10
    assert [row['path'] for row in table] == [str(folder / f'{i:02}.png') for i in range(10)]
    assert [(row['index'], row['row'], row['column']) for row in table] == [
        (i, 0, 0) for i in range(10)]
    assert 'geometry' not in table[0]
    for row in table:
        seen = features(model, squared(read_image(row['path']), SIZE))
        expected = seen.cls[0] if token == 'cls' else seen.mean[0]
        torch.testing.assert_close(torch.tensor(row['vector']), expected, rtol=1e-4, atol=1e-5)


def test_shards_lists_and_folders_give_the_same_vectors(model, tmp_path):
    folder = image_folder(tmp_path / 'images', 5)
    (tmp_path / 'tars').mkdir()
    with tarfile.open(tmp_path / 'tars/0.tar', 'w') as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    (tmp_path / 'list.txt').write_text(''.join(f'images/{i:02}.png\n' for i in range(5)))
    tables = []
    for number, data in enumerate([folder, tmp_path / 'tars', tmp_path / 'list.txt']):
        write(model, data, tmp_path / f'{number}.parquet')
        tables.append(pq.read_table(tmp_path / f'{number}.parquet'))
    assert tables[0]['vector'] == tables[1]['vector'] == tables[2]['vector']
    assert tables[1]['path'][4].as_py() == f'{tmp_path}/tars/0.tar/04.png'


def test_vectors_are_float16_when_asked_and_facts_are_in_the_metadata(model, tmp_path):
    folder = image_folder(tmp_path / 'images', 2)
    write(model, folder, tmp_path / 'a.parquet', dtype='float16')
    write(model, folder, tmp_path / 'b.parquet')
    half, single = (pq.read_table(tmp_path / name) for name in ('a.parquet', 'b.parquet'))
    assert str(half.schema.field('vector').type) == (
        f'fixed_size_list<element: halffloat not null>[{WIDTH}]')
    both = [np.stack(table['vector'].to_numpy()) for table in (half, single)]
    np.testing.assert_allclose(*both, rtol=1e-3, atol=1e-3)
    assert json.loads(half.schema.metadata[b'pera_mm']) == dict(FACTS, skipped=0)


def test_windows_of_a_scene_lie_where_they_are_in_longitude_and_latitude(model, tmp_path):
    image = noise(70, 100)
    image[:, :40, 20:] = 0
    scene = write_scene(tmp_path / 'utm_20200831.tif', image, nodata=0)
    assert write(model, scene, tmp_path / 'a.parquet').pictures == 3 * 4
    table = geopandas.read_parquet(tmp_path / 'a.parquet')
    assert table.crs == 'OGC:CRS84'
    back = table.to_crs('EPSG:32633').bounds.to_numpy()
    left, top = table['column'].to_numpy(), table['row'].to_numpy()
    right, bottom = np.minimum(left + SIZE, 100), np.minimum(top + SIZE, 70)
    x = PLACE.c + PLACE.a * np.stack([left, right])
    y = PLACE.f + PLACE.e * np.stack([bottom, top])
    np.testing.assert_allclose(back, np.stack([x[0], y[0], x[1], y[1]], 1), atol=.1)
    assert (0, 32) not in zip(top, left) and (0, 0) in zip(top, left)  # no valid pixel there
    assert table['date'].astype(str).unique().tolist() == ['2020-08-31']
    whole = np.zeros((80, 112, 3), np.uint8)
    whole[:70, :100] = image.transpose(1, 2, 0)
    for row in table.itertuples():
        window = whole[row.row:row.row + SIZE, row.column:row.column + SIZE]
        torch.testing.assert_close(torch.tensor(np.array(row.vector)),
                                   features(model, window).cls[0], rtol=1e-4, atol=1e-5)


def test_a_grid_has_a_row_per_patch_and_a_map_the_same_numbers(model, tmp_path):
    image = noise(50, 100)
    image[:, 16:32, 16:48] = 0
    scene = write_scene(tmp_path / 'a.tif', image, nodata=0)
    write(model, scene, tmp_path / 'a.parquet', 'grid')
    summary = write(model, scene, tmp_path / 'map.tif', 'grid')
    with rasterio.open(tmp_path / 'map.tif') as raster:
        pixels = raster.read()
        assert raster.shape == (4, 7) and raster.count == WIDTH and np.isnan(raster.nodata)
        assert raster.crs == 'EPSG:32633'
        assert raster.transform == Affine(160, 0, 500_000, 0, -160, 5_000_000)
        assert raster.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG'
        assert json.loads(raster.tags()['pera_mm']) == dict(FACTS, skipped=0)
    table = geopandas.read_parquet(tmp_path / 'a.parquet')
    places = list(zip(table['row'] // PATCH, table['column'] // PATCH))
    assert len(places) == len(set(places)) == 4 * 7 - 2 == summary.rows
    assert np.isnan(pixels[:, 1, 1:3]).all() and np.isfinite(pixels).sum() == WIDTH * 26
    for (row, column), vector in zip(places, table['vector']):
        np.testing.assert_allclose(pixels[:, row, column], vector, rtol=1e-4, atol=1e-5)
    window = np.zeros((SIZE, SIZE, 3), np.uint8)
    window[:18] = image[:, 32:50, 64:96].transpose(1, 2, 0)
    np.testing.assert_allclose(pixels[:, 2:4, 4:6], features(model, window).grid[0], rtol=1e-4,
                               atol=1e-5)
    middle = table.to_crs('EPSG:32633').geometry[places.index((2, 4))].centroid
    assert (middle.x, middle.y) == pytest.approx((500_720, 4_999_600), abs=.1)


def test_patches_of_an_image_are_in_pixels_of_its_file(model, tmp_path):
    folder = image_folder(tmp_path / 'images', 1)
    write(model, folder, tmp_path / 'a.parquet', 'grid')
    table = pq.read_table(tmp_path / 'a.parquet').to_pylist()
    assert [(row['row'], row['column']) for row in table] == [(0, 0), (0, 25), (20, 0), (20, 25)]


def test_unreadable_images_are_left_out_and_named(model, tmp_path):
    folder = image_folder(tmp_path / 'images', 9)
    (folder / '03.png').write_bytes((folder / '03.png').read_bytes()[:100])
    (folder / '05.png').write_bytes(b'')
    summary = write(model, folder, tmp_path / 'a.parquet')
    assert summary.rows == 7 and summary.pictures == 9
    assert [path for path, _ in summary.skipped] == [str(folder / f'0{i}.png') for i in (3, 5)]
    table = pq.read_table(tmp_path / 'a.parquet')
    assert table['index'].to_pylist() == [0, 1, 2, 4, 6, 7, 8]
    assert json.loads(table.schema.metadata[b'pera_mm'])['skipped'] == 2


def test_if_nothing_can_be_read_there_is_no_table(model, tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/a.png').write_bytes(b'nothing')
    with pytest.raises(ValueError, match=r'none of the 1 pictures .* 1 could not be read; the '
                       r'first is .*a\.png'):
        write(model, tmp_path / 'images', tmp_path / 'a.parquet')
    assert not (tmp_path / 'a.parquet').exists() and not (tmp_path / 'a.parquet.pieces').exists()


def kill_at(pictures, last: int):
    """Let the reading of one picture kill the process, as ``kill -9`` does."""
    read = pictures.read

    def deadly(index: int):
        if index == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(index)

    pictures.read = deadly
    return pictures


def killed(job: Extractor, out: Path) -> bool:
    """Run a job in another process; whether it was killed and left no output."""
    child = get_context('fork').Process(target=job.write, args=(out, FACTS))
    child.start()
    child.join(60)
    return child.exitcode == -signal.SIGKILL and not out.exists()


@pytest.mark.parametrize('token', ['cls', 'grid'])
def test_killed_and_started_again_it_writes_the_same_bytes(model, tmp_path, token):
    folder = image_folder(tmp_path / 'images', 18)
    (folder / '02.png').write_bytes(b'nothing')
    whole, out = tmp_path / 'whole.parquet', tmp_path / 'a.parquet'
    write(model, folder, whole, token)
    pictures = kill_at(open_pictures(folder, SIZE, PATCH), 13)
    assert killed(Extractor(model, pictures, token, 'float32', 3), out)
    pieces = sorted((tmp_path / 'a.parquet.pieces').glob('*.parquet'))
    assert len(pieces) == 3 if token == 'cls' else len(pieces) >= 5
    times = [piece.stat().st_mtime_ns for piece in pieces]
    made = []
    again = Extractor(model, open_pictures(folder, SIZE, PATCH), token, 'float32', 3)
    again.write(out, FACTS, lambda done: made.append(
        [piece.stat().st_mtime_ns for piece in pieces]))
    assert out.read_bytes() == whole.read_bytes() and all(found == times for found in made)
    assert not (tmp_path / 'a.parquet.pieces').exists()


def test_a_map_killed_and_started_again_is_the_same(model, tmp_path):
    scene = write_scene(tmp_path / 'a.tif', noise(100, 40))
    write(model, scene, tmp_path / 'whole.tif', 'grid')
    pictures = kill_at(open_pictures(scene, SIZE, PATCH), 5)
    assert killed(Extractor(model, pictures, 'grid', 'float32', 3), tmp_path / 'map.tif')
    assert len(list((tmp_path / 'map.tif.pieces').glob('*.npz'))) == 2
    write(model, scene, tmp_path / 'map.tif', 'grid')
    assert (tmp_path / 'map.tif').read_bytes() == (tmp_path / 'whole.tif').read_bytes()


def test_pieces_of_another_job_are_refused(model, tmp_path):
    folder = image_folder(tmp_path / 'images', 1)
    (tmp_path / 'a.parquet.pieces').mkdir()
    (tmp_path / 'a.parquet.pieces/recipe.json').write_text(json.dumps(dict(FACTS, model='other')))
    (tmp_path / 'a.parquet.pieces/0000000.parquet').touch()
    with pytest.raises(ValueError, match="begun with model='other', not with model='some.pth'"):
        write(model, folder, tmp_path / 'a.parquet')


def test_a_map_is_of_one_scene_and_its_patches(model, tmp_path):
    scene = write_scene(tmp_path / 'a.tif', noise(32, 32))
    folder = image_folder(tmp_path / 'images', 1)
    for data, token in ((scene, 'cls'), (folder, 'grid')):
        with pytest.raises(ValueError, match='give a scene and --token grid'):
            write(model, data, tmp_path / 'map.tif', token)


def test_images_without_a_place_among_others_have_none(model, tmp_path):
    folder = image_folder(tmp_path / 'images', 5)
    write_scene(folder / '02.tif', noise(40, 40))
    write(model, folder, tmp_path / 'a.parquet')
    table = geopandas.read_parquet(tmp_path / 'a.parquet')
    assert table.geometry.isna().tolist() == [True] * 3 + [False] + [True] * 2
