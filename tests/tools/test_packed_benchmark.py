"""The benchmark of packed images runs, and its table has every form."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / 'tools/benchmarks/packed.py'


@pytest.mark.slow
def test_it_runs(tmp_path):
    (tmp_path / 'disk').mkdir()
    environment = dict(os.environ, TMPDIR=str(tmp_path), PYTHONPATH=str(TOOL.parents[2]))
    done = subprocess.run(
        [sys.executable, str(TOOL), '--images', '10', '--repeats', '1', '--paths', '20000',
         '--workers', '1', '--folder', str(tmp_path / 'disk')],
        env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip('|').split('|')]
            for line in done.stdout.splitlines() if line.startswith('| ')]
    assert [row[0] for row in rows] == [
        'form', 'webdataset', 'folder', 'lmdb', 'form', 'list', 'webdataset', 'lmdb']
    assert all(float(row[1].replace(',', '')) > 0 for row in rows[1:4])
    assert list((tmp_path / 'disk').iterdir()) == []
