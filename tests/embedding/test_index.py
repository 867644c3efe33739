"""An approximate index finds what the exact search finds."""

import sys

import numpy as np
import pytest
import torch
from small_world import write_vectors

from pera_mm.embedding import index, search
from pera_mm.embedding.index import Index, build
from pera_mm.embedding.table import Vectors
from pera_mm.errors import UserError

pytest.importorskip('pyarrow')
pytest.importorskip('faiss')
NUMBER, WIDTH = 600, 16


@pytest.fixture
def table(tmp_path) -> Vectors:
    """Random directions; 40 rows are those of 200 rows before, longer and a little turned."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(NUMBER, WIDTH)).astype(np.float32)
    vectors[300:340] = 3 * vectors[100:140] + .01 * rng.normal(size=(40, WIDTH))
    return Vectors(write_vectors(tmp_path / 'a.parquet', vectors))


@pytest.fixture
def opened(table, tmp_path, monkeypatch) -> Index:
    monkeypatch.setattr(index, 'BLOCK', 64)
    done: list[int] = []
    build(table, tmp_path / 'a.faiss', done.append)
    assert sum(done) == NUMBER
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.faiss', 'a.parquet']
    return Index(table, tmp_path / 'a.faiss')


def test_nearly_all_of_the_nearest_are_found_with_exact_cosines(table, opened):
    queries = np.random.default_rng(1).normal(size=(40, WIDTH)).astype(np.float32)
    common = 0
    for query in map(torch.from_numpy, queries):
        exact, found = search.nearest(table, query, 10, [3, 12]), opened.nearest(query, 10, [3, 12])
        assert len(found.ids) == 10 and not {3, 12} & set(found.ids.tolist())
        expected = dict(zip(exact.ids.tolist(), exact.scores.tolist()))
        same = [number for number in found.ids.tolist() if number in expected]
        common += len(same)
        scores = dict(zip(found.ids.tolist(), found.scores.tolist()))
        assert [scores[each] for each in same] == pytest.approx([expected[each] for each in same],
                                                                abs=1e-6)
        assert sorted(found.scores, reverse=True) == found.scores.tolist()
    assert common >= .97 * 400


def test_more_than_there_are_gives_all(opened):
    assert sorted(opened.nearest(torch.ones(WIDTH), 2 * NUMBER).ids) == [*range(NUMBER)]


@pytest.mark.parametrize('threshold', [.99, .9])
def test_duplicates_are_those_of_the_exact_search(table, opened, threshold):
    exact, found = search.duplicates(table, threshold), opened.duplicates(threshold)
    assert exact.ids.tolist() == found.ids.tolist() and len(found.ids) >= 40
    assert exact.originals.tolist() == found.originals.tolist()
    np.testing.assert_allclose(exact.scores, found.scores, atol=1e-6)


def test_none_is_a_duplicate(opened):
    found = opened.duplicates(1.)
    assert [len(each) for each in found] == [0, 0, 0]


def test_another_tables_index_is_refused(table, opened, tmp_path):
    others = np.random.default_rng(2).normal(size=(NUMBER, WIDTH)).astype(np.float32)
    other = Vectors(write_vectors(tmp_path / 'b.parquet', others))
    shorter = Vectors(write_vectors(tmp_path / 'c.parquet', others[:-1]))
    (tmp_path / 'broken.faiss').write_bytes(b'no index')
    for vectors, name in ((other, 'a'), (shorter, 'a'), (table, 'broken')):
        with pytest.raises(UserError, match=rf'{name}.faiss is not an index of .*: delete it'):
            Index(vectors, tmp_path / f'{name}.faiss')


def test_a_missing_package_is_one_sentence(table, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(UserError, match=r'needs the package faiss, .*\[index\]'):
        build(table, tmp_path / 'a.faiss')
