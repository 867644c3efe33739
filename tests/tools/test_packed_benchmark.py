"""The benchmarks of reading and fetching images: what they refuse, and that packed.py runs."""

import runpy
import sys

import pytest
from programs import ROOT, run

BENCHMARKS = ROOT / 'tools/benchmarks'
TOOL = BENCHMARKS / 'packed.py'


@pytest.mark.parametrize('tool, options, said', [
    ('packed', '--paths 100', 'argument --paths: expected 0 or at least 200, got 100'),
    ('file_index', '--paths 199', "expected a whole number of at least 200, got '199'"),
    ('fetch', '--concurrency 0', "expected a whole number of at least 1, got '0'"),
    ('fetch', f'--json {TOOL}/a.json', 'or give another --json.'),
    ('data_pipeline', '--workers -1', "expected a whole number of at least 0, got '-1'"),
    ('data_pipeline', f'--json {TOOL}/a.json', 'or give another --json.'),
    ('data_pipeline', '--images nowhere', "the image source 'nowhere' does not exist"),
])
def test_what_cannot_be_is_a_sentence_before_anything_is_measured(monkeypatch, capsys, tool,
                                                                  options, said):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *options.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / f'{tool}.py'), run_name='__main__')
    assert said in f'{ended.value} {capsys.readouterr().err}'


@pytest.mark.slow
def test_it_runs(tmp_path):
    (tmp_path / 'disk').mkdir()
    done = run(TOOL, '--images', '10', '--repeats', '1', '--paths', '20000', '--workers', '1',
               '--folder', tmp_path / 'disk', TMPDIR=str(tmp_path), PYTHONPATH=str(ROOT))
    rows = [[cell.strip() for cell in line.strip('|').split('|')]
            for line in done.stdout.splitlines() if line.startswith('| ')]
    assert [row[0] for row in rows] == [
        'form', 'webdataset', 'folder', 'lmdb', 'form', 'list', 'webdataset', 'lmdb']
    assert all(float(row[1].replace(',', '')) > 0 for row in rows[1:4])
    assert list((tmp_path / 'disk').iterdir()) == []
