"""The demo: what it says, what it leaves behind, and what it must not delete."""

import sys
from pathlib import Path

import pytest
from programs import claimed

from pera_mm import files
from pera_mm.errors import UserError
from pera_mm.files import Claim

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
import demo  # noqa: E402


def start(monkeypatch, *arguments: object) -> str:
    """Start the demo; the sentence that it ends with before it has drawn anything."""
    monkeypatch.setattr(sys, 'argv', ['demo.py', *map(str, arguments)])
    monkeypatch.setattr(demo, 'draw_scenes', lambda: pytest.fail('it draws'))
    with pytest.raises(SystemExit) as ended:
        demo.main()
    return str(ended.value)


@pytest.mark.parametrize('name', ['thesis.txt', demo.CONFIG.name])
def test_a_folder_that_is_no_demo_is_not_deleted(tmp_path, monkeypatch, name):
    """Also that of ``tools/train.py configs/pera/pera_tiny_scenes.py``, and configs/pera."""
    (tmp_path / name).write_text('years of work')
    said = start(monkeypatch, '--work-dir', tmp_path)
    assert said.startswith(f'Error: {tmp_path} has no .demo, so it may hold something other than')
    with pytest.raises(UserError, match='delete it yourself, else choose another --work-dir'):
        demo.remove_earlier_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_earlier_demo_is_replaced(tmp_path):
    demo.remove_earlier_demo(tmp_path)
    (tmp_path / 'run/vis_data').mkdir(parents=True)
    for name in (demo.CONFIG.name, 'run/vis_data/scalars.json'):
        (tmp_path / name).write_text('')
    with Claim(tmp_path):
        demo.remove_earlier_demo(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {demo.MARKER, '.lock'}


def test_a_running_demo_and_one_with_a_wrong_seed_delete_nothing(tmp_path, monkeypatch, capsys):
    demo.remove_earlier_demo(tmp_path)
    (tmp_path / 'iter_400.pth').write_text('')
    monkeypatch.setattr(files, 'MAX_WAIT', .2)
    with claimed(tmp_path) as number:
        said = start(monkeypatch, '--work-dir', tmp_path)
    assert f'another run is at work in {tmp_path} (process {number} ' in said
    for seed in (-1, 2**32):
        assert start(monkeypatch, '--work-dir', tmp_path, '--seed', seed) == '2'
        assert f'got {seed}' in capsys.readouterr().err.replace("'", '')
    assert (tmp_path / 'iter_400.pth').exists()


def test_a_new_folder_may_be_missing_or_empty(tmp_path):
    (tmp_path / 'empty').mkdir()
    for name in ('new/er', 'empty'):
        demo.remove_earlier_demo(tmp_path / name)
        assert [path.name for path in (tmp_path / name).iterdir()] == [demo.MARKER]


@pytest.mark.slow
def test_the_whole_demo_in_small(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, 'UNLABELED', 64)
    monkeypatch.setattr(demo, 'LABELLED', 60)
    monkeypatch.setattr(sys, 'argv', ['demo.py'])
    demo.main()
    said = capsys.readouterr().out
    assert 'random teacher' in said and 'kNN, k = 10' in said and 'report.png' in said
    assert 'INFO' not in said  # MMEngine's log is in its file
    assert (tmp_path / 'work_dirs/demo/report.png').stat().st_size > 50_000
    assert (tmp_path / 'work_dirs/demo' / demo.CONFIG.name).exists()
    demo.check_folder(tmp_path / 'work_dirs/demo')  # the next demo may replace it
