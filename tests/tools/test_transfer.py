"""The table of the downstream tasks: from scores that are there, and without tasks that failed."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / 'tools/benchmarks'
sys.path.insert(0, str(BENCHMARKS))
import transfer  # noqa: E402

SCORES = {('linear', 'random'): (30., 32.), ('linear', 'teacher'): (61., 63.),
          ('dior', 'random'): (10., 11.), ('dior', 'teacher'): (9., 10.5)}


@pytest.fixture
def finished(monkeypatch, tmp_path) -> Path:
    """A work folder in which two tasks have the scores of two seeds; the scenes are not drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transfer, 'draw_scenes', lambda: None)
    Path('teacher.pth').write_bytes(b'its weights are not read')
    for (name, start), scores in SCORES.items():
        for seed, score in zip((10, 11), scores):
            folder = tmp_path / f'work/{name}_{start}_{seed}'
            folder.mkdir(parents=True)
            (folder / 'score.json').write_text(json.dumps(score))
    return tmp_path / 'work'


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, 'argv', [
        'transfer.py', '--teacher', 'teacher.pth', '--work-dir', 'work', '--tasks', 'linear',
        'dior', '--seeds', '10', '11', *arguments])
    transfer.main()


def test_what_is_done_is_not_repeated(monkeypatch, finished, capsys):
    run(monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert '| task, metric in percent (seeds 10, 11) | random | teacher | gain |' in lines
    assert '| classification, linear: OA | 31.0 (30.0, 32.0) | 62.0 (61.0, 63.0) | +31.0 |' in lines
    assert '| detection, Faster R-CNN: AP50 | 10.5 (10.0, 11.0) | 9.8 (9.0, 10.5) | -0.8 |' in lines
    assert not list(finished.glob('*/output.txt'))


def test_a_run_that_fails_takes_its_task_alone_from_the_table(monkeypatch, finished, capsys):
    (finished / 'dior_random_11/score.json').unlink()  # its data is not here, so it fails again
    with pytest.raises(SystemExit, match='not in the table; see work/dior_random_11/output.txt'):
        run(monkeypatch)
    shown = capsys.readouterr().out
    assert '| classification, linear: OA | 31.0' in shown and 'detection' not in shown
    assert 'data/scenes/detection' in (finished / 'dior_random_11/output.txt').read_text()


def test_a_seed_that_is_named_twice_is_refused(monkeypatch, finished):
    with pytest.raises(SystemExit, match='--seeds has 11 more than once'):
        run(monkeypatch, '--seeds', '11', '10', '11')
