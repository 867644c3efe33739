"""Exact search against plain, slow cosines."""

import csv
import io
import json
from math import sqrt
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from small_world import CRS, PATCH, SIZE, noise, tiny_vit, write_scene, write_vectors

from pera_mm.embedding import search
from pera_mm.embedding.extract import Extractor
from pera_mm.embedding.pictures import open_pictures
from pera_mm.embedding.results import check_result, contact_sheet, write_result
from pera_mm.embedding.table import Vectors

pytest.importorskip('pyarrow')
geopandas = pytest.importorskip('geopandas')
shapely = pytest.importorskip('shapely')


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(search, 'BLOCK', 11)
    monkeypatch.setattr(search, 'PAIR_BLOCK', 9)


def cosine(a, b) -> float:
    a, b = ([float(x) for x in vector] for vector in (a, b))
    product = sum(x * y for x, y in zip(a, b))
    return product / max(sqrt(sum(x * x for x in a)) * sqrt(sum(y * y for y in b)), 1e-12)


def random_vectors(number: int, width: int = 6, seed: int = 0, dtype: str = 'float32'):
    return np.random.default_rng(seed).normal(size=(number, width)).astype(dtype)


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize('number', [1, 9, 22, 50])
def test_the_nearest_are_those_of_the_slow_way(tmp_path, number, dtype):
    vectors = random_vectors(number, dtype=dtype)
    table = Vectors(write_vectors(tmp_path / 'a.parquet', vectors))
    query = random_vectors(1, seed=1)[0]
    slow = sorted(((-cosine(query, vector), i) for i, vector in enumerate(vectors)
                   if i not in (3, 12)))[:8]
    found = search.nearest(table, torch.from_numpy(query), 8, [3, 12])
    assert found.ids.tolist() == [i for _, i in slow]
    np.testing.assert_allclose(found.scores, [-score for score, _ in slow], rtol=1e-5, atol=1e-6)


def test_equal_rows_come_in_their_order_and_a_zero_vector_has_cosine_zero(tmp_path):
    vectors = np.array([[-1, 0], [0, 0], [2, 0], [1, 0]] * 8, np.float32)
    table = Vectors(write_vectors(tmp_path / 'a.parquet', vectors))
    found = search.nearest(table, torch.tensor([5., 0.]), 20)
    assert found.ids.tolist() == sorted([*range(2, 32, 4), *range(3, 32, 4)]) + [1, 5, 9, 13]
    assert found.scores.tolist() == [1.] * 16 + [0.] * 4


@pytest.mark.parametrize('threshold', [.3, .8, .99])
def test_duplicates_are_those_of_the_slow_way(tmp_path, threshold):
    vectors = random_vectors(60, width=3)
    vectors[40:50] = vectors[5:15] * 3
    table = Vectors(write_vectors(tmp_path / 'a.parquet', vectors))
    kept, slow = [], {}
    for i, vector in enumerate(vectors):
        scores = [(cosine(vector, vectors[j]), -j) for j in kept]
        if scores and max(scores)[0] >= threshold:
            slow[i] = max(scores)
        else:
            kept.append(i)
    found = search.duplicates(table, threshold)
    assert found.ids.tolist() == [*slow]
    assert found.originals.tolist() == [-j for _, j in slow.values()]
    np.testing.assert_allclose(found.scores, [score for score, _ in slow.values()], rtol=1e-5)


@pytest.mark.parametrize('references', [10**6, 13])
def test_outliers_are_those_of_the_slow_way(tmp_path, monkeypatch, references):
    monkeypatch.setattr(search, 'REFERENCES', references)
    monkeypatch.setattr(search, 'NEIGHBORS', 4)
    vectors = random_vectors(40)
    chosen = sorted({round(i) for i in np.linspace(0, 39, min(references, 40))})
    slow = []
    for i, vector in enumerate(vectors):
        best = sorted((cosine(vector, vectors[j]) for j in chosen if j != i), reverse=True)[:4]
        slow.append((sum(best) / 4, i))
    found = search.outliers(Vectors(write_vectors(tmp_path / 'a.parquet', vectors)), 7)
    assert found.ids.tolist() == [i for _, i in sorted(slow)[:7]]
    np.testing.assert_allclose(found.scores, [score for score, _ in sorted(slow)[:7]], rtol=1e-5)


def test_one_row_has_no_outliers(tmp_path):
    with pytest.raises(ValueError, match=r'has 1 row\(s\), but outliers need others'):
        search.outliers(Vectors(write_vectors(tmp_path / 'a.parquet', random_vectors(1))), 1)


def test_blocks_have_their_rows_whatever_the_row_groups_are(tmp_path):
    vectors = random_vectors(50)
    table = Vectors(write_vectors(tmp_path / 'a.parquet', vectors, row_group=7))
    for rows in (1, 7, 10, 49, 50, 99):
        blocks = list(table.blocks(rows))
        assert [start for start, _ in blocks] == list(range(0, 50, rows))
        torch.testing.assert_close(torch.cat([block for _, block in blocks]), torch.nn.functional
                                   .normalize(torch.from_numpy(vectors)))
    assert [len(block) for _, block in table.blocks(10, stop=25)] == [10, 10, 5]
    ids = [49, 0, 13, 14, 13]
    assert [row['index'] for row in table.rows(ids)] == ids
    torch.testing.assert_close(table.vectors_of(ids), torch.cat([b for _, b in table.blocks(50)])
                               [ids])


def polygons(path: Path, *columns: tuple[float, float], crs: str | None = CRS) -> Path:
    """Boxes over the windows of these columns, in the CRS of the scene."""
    boxes = [shapely.box(500_000 + a * SIZE * 10, 4_999_730, 500_000 + b * SIZE * 10, 4_999_950)
             for a, b in columns]
    geopandas.GeoDataFrame(geometry=boxes, crs=crs).to_file(path)
    return path


def test_the_rows_of_polygons_are_the_example(tmp_path):
    vectors = random_vectors(30)
    table = Vectors(write_vectors(tmp_path / 'a.parquet', vectors, places=range(30)))
    file = polygons(tmp_path / 'a.gpkg', (2.2, 4.8), (20.1, 20.9))
    ids, query = search.within_polygons(table, file)
    assert ids.tolist() == [2, 3, 4, 20]
    units = [vectors[i] / np.linalg.norm(vectors[i]) for i in ids]
    np.testing.assert_allclose(query, np.mean(units, axis=0), rtol=1e-4, atol=1e-5)


def test_polygons_that_say_nothing_are_refused(tmp_path):
    placed = Vectors(write_vectors(tmp_path / 'a.parquet', random_vectors(3), places=range(3)))
    bare = Vectors(write_vectors(tmp_path / 'b.parquet', random_vectors(3)))
    file = polygons(tmp_path / 'far.gpkg', (50, 60))
    with pytest.raises(ValueError, match='no row of .* touches the polygons'):
        search.within_polygons(placed, file)
    with pytest.raises(ValueError, match='has no places'):
        search.within_polygons(bare, file)
    with pytest.raises(ValueError, match='has no CRS'):
        search.within_polygons(placed, polygons(tmp_path / 'bare.gpkg', (0, 1), crs=None))
    with pytest.raises(FileNotFoundError, match=r'There is no file .*none\.gpkg'):
        search.within_polygons(placed, tmp_path / 'none.gpkg')
    (tmp_path / 'text.gpkg').write_text('nothing')
    with pytest.raises(ValueError, match='cannot be read as polygons'):
        search.within_polygons(placed, tmp_path / 'text.gpkg')


def test_tables_of_others_are_refused(tmp_path):
    (tmp_path / 'a.parquet').write_text('nothing')
    with pytest.raises(ValueError, match='is not a Parquet file'):
        Vectors(tmp_path / 'a.parquet')
    with pytest.raises(FileNotFoundError, match='There is no table'):
        Vectors(tmp_path / 'none.parquet')
    frame = geopandas.GeoDataFrame(geometry=[shapely.Point(0, 0)], crs='EPSG:4326')
    frame.to_parquet(tmp_path / 'b.parquet')
    with pytest.raises(ValueError, match=r'has no vectors of tools/embed\.py'):
        Vectors(tmp_path / 'b.parquet')


def test_results_are_geojson_or_csv(tmp_path):
    table = Vectors(write_vectors(tmp_path / 'a.parquet', random_vectors(9), places=range(9)))
    rows = [dict(row, score=.5) for row in table.rows([7, 2])]
    write_result(tmp_path / 'a.geojson', rows, table)
    features = json.loads((tmp_path / 'a.geojson').read_text())['features']
    assert [feature['properties']['id'] for feature in features] == [7, 2]
    assert features[0]['properties']['date'] == '2020-01-02'
    frame = geopandas.read_file(tmp_path / 'a.geojson').to_crs(CRS)
    middle = frame.geometry[0].centroid
    assert (middle.x, middle.y) == pytest.approx((502_400, 4_999_840), abs=.1)
    write_result(tmp_path / 'a.csv', rows, table)
    found = list(csv.DictReader(io.StringIO((tmp_path / 'a.csv').read_text())))
    assert [(row['id'], row['path'], row['score']) for row in found] == [
        ('7', '7.png', '0.500000'), ('2', '2.png', '0.500000')]
    write_result(tmp_path / 'none.csv', [], table)
    assert (tmp_path / 'none.csv').read_text() == 'id,score\n'


def test_results_that_cannot_be_written_are_refused_before_the_search(tmp_path):
    table = Vectors(write_vectors(tmp_path / 'a.parquet', random_vectors(2)))
    with pytest.raises(ValueError, match=r'-o must end with \.geojson, \.csv, \.png'):
        check_result(Path('a.xls'), table)
    with pytest.raises(ValueError, match='has no places, so its rows have no polygons'):
        check_result(Path('a.geojson'), table)


def test_a_sheet_shows_what_the_model_saw(tmp_path):
    scene = write_scene(tmp_path / 'a.tif', noise(64, 64))
    pictures = open_pictures(scene, SIZE, PATCH)
    rows = [dict(id=i, score=.1, index=i, row=16, column=0) for i in (2, 1)]
    sheet = contact_sheet(rows, pictures, patches=False)
    seen = np.asarray(sheet.crop((4, 4, 132, 132)))
    expected = Image.fromarray(pictures.read(2).pixels).resize((128, 128), Image.Resampling.BICUBIC)
    assert np.array_equal(seen, expected)
    marked = contact_sheet([dict(rows[0], index=0)], pictures, patches=True)
    assert marked.getpixel((4 + 2, 4 + 64 + 2)) == pytest.approx((255, 230, 0), abs=40)


def test_a_source_that_has_changed_is_named(tmp_path):
    (tmp_path / 'images').mkdir()
    assert cv2.imwrite(str(tmp_path / 'images/a.png'), noise(32, 32).transpose(1, 2, 0))
    facts = dict(source=str(tmp_path / 'images'), size=SIZE, patch_size=PATCH, windows=False,
                 bands=None, scale='auto', pictures=2)
    table = Vectors(write_vectors(tmp_path / 'a.parquet', random_vectors(2), **facts))
    with pytest.raises(ValueError, match=r'has 1 pictures and had 2 when .* make it again'):
        write_result(tmp_path / 'a.png', [dict(id=0, score=0., index=0)], table)


def test_a_window_is_most_like_itself_in_another_scene(tmp_path):
    scene = write_scene(tmp_path / 'a.tif', noise(128, 128))
    facts = dict(token='patch')
    Extractor(tiny_vit(), open_pictures(scene, SIZE, PATCH), 'patch', 'float16', 4).write(
        tmp_path / 'a.parquet', facts)
    table = Vectors(tmp_path / 'a.parquet')
    found = search.nearest(table, table.vectors_of([6])[0], 1)
    assert found.ids.tolist() == [6] and found.scores[0] == pytest.approx(1, abs=1e-5)
