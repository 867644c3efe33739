"""The plain files between the steps: what is written is read back, digit by digit."""

import numpy as np
import pandas as pd
import pytest

from pera_mm.collect.common.tables import Journal, read_table, write_table


def test_a_table_survives_reading_and_writing(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(dict(
        id=[f'{number:07}' for number in range(10_000)], lon=rng.uniform(-180, 180, 10_000),
        lat=rng.uniform(-90, 90, 10_000).round(6), gsd=rng.uniform(0.3, 10, 10_000).round(3),
        country='NA', zoom=['', '16'] * 5000))
    write_table(tmp_path / 'a.csv', table)
    read = read_table(tmp_path / 'a.csv', ('id', 'lon', 'lat', 'gsd'), 'x')
    pd.testing.assert_frame_equal(read, table.astype(read.dtypes), check_exact=True)
    write_table(tmp_path / 'b.csv', read)
    assert (tmp_path / 'b.csv').read_bytes() == (tmp_path / 'a.csv').read_bytes()


@pytest.mark.parametrize(('text', 'sentence'), [
    ('', 'is not a CSV table'),
    ('id,lon\n1,2\n', "no column 'lat'; it needs id, lon, lat"),
    ('id,lon,lat\n1,2,3\n2,x,3\n', "line 3: lon is 'x', which is not a number"),
    ('id,lon,lat\n1,2,3\n2,,3\n', 'line 3: lon is empty'),
    ('id,lon,lat\n,2,3\n', 'line 2: id is empty'),
    ('id,lon,lat\n7,2,3\n7,2,3\n', "has the id '7' twice"),
    ('id,lon,lat\n7,2,3,4,5\n8,2\n', 'not a CSV table|no number|empty'),
])
def test_a_table_that_is_none_is_one_sentence(tmp_path, text, sentence):
    (tmp_path / 'a.csv').write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        read_table(tmp_path / 'a.csv', ('id', 'lon', 'lat'), 'a step')
    assert '\n' not in str(error.value) and 'a.csv' in str(error.value)


def test_a_missing_table_says_who_writes_it(tmp_path):
    with pytest.raises(ValueError, match='does not exist: it is written by the step sample'):
        read_table(tmp_path / 'a.csv', (), 'the step sample')


@pytest.mark.parametrize('cut', [b'', b'{"id": "2', b'x' * 10_000])
def test_a_journal_loses_the_line_that_was_cut(tmp_path, cut):
    path = tmp_path / 'new' / 'journal.jsonl'
    with Journal(path) as journal:
        assert list(journal) == []
        journal.add(dict(id='0'))
        journal.add(dict(id='1', long='y' * 9000))
        assert [row['id'] for row in journal] == ['0', '1']  # on the disk at once
    with open(path, 'ab') as file:
        file.write(cut)
    with Journal(path) as journal:
        assert [row['id'] for row in journal] == ['0', '1']
        journal.add(dict(id='2'))
    assert [row['id'] for row in Journal(path)] == ['0', '1', '2']


def test_a_journal_skips_damaged_lines_and_says_so(tmp_path, caplog):
    path = tmp_path / 'journal.jsonl'
    path.write_bytes(b'{"id": "0"}\n' + bytes(40) + b'\n[1]\n"x"\n{"id": "1"\xff}\n{"id": "2"}\n')
    assert [row['id'] for row in Journal(path)] == ['0', '2']
    assert [record.getMessage() for record in caplog.records] == [
        f'{path} has damaged lines, as a loss of power leaves them: 4 are skipped']


def test_a_journal_of_half_a_line_is_empty(tmp_path):
    (tmp_path / 'journal.jsonl').write_bytes(b'{"settings": ')
    assert list(Journal(tmp_path / 'journal.jsonl')) == []
    assert (tmp_path / 'journal.jsonl').stat().st_size == 0
