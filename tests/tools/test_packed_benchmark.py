"""The benchmark of packed images runs, and its table has every form."""

import pytest
from programs import ROOT, run

TOOL = ROOT / 'tools/benchmarks/packed.py'


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
