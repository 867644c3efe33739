"""The demo: what it says, what it leaves behind, and what it must not delete."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
import demo  # noqa: E402


def test_a_folder_that_is_no_demo_is_not_deleted(tmp_path):
    (tmp_path / 'thesis.txt').write_text('years of work')
    with pytest.raises(SystemExit, match='holds something other than a demo; choose another'):
        demo.remove_earlier_demo(tmp_path)
    assert (tmp_path / 'thesis.txt').exists()


def test_an_earlier_demo_is_replaced(tmp_path):
    (tmp_path / demo.CONFIG.name).write_text('')
    demo.remove_earlier_demo(tmp_path)
    assert not tmp_path.exists()


def test_a_new_folder_may_be_missing_or_empty(tmp_path):
    demo.remove_earlier_demo(tmp_path / 'new')
    (tmp_path / 'empty').mkdir()
    demo.remove_earlier_demo(tmp_path / 'empty')
    assert [path.name for path in tmp_path.iterdir()] == ['empty']


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
