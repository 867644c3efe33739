import os
import runpy
import signal
import sys
from pathlib import Path

import pytest

from pera_mm.scenes import folders

TOOL = Path(__file__).parents[2] / 'tools' / 'data' / 'make_scenes.py'


@pytest.fixture
def run(monkeypatch):
    """The command as from a shell, without the seconds that a new Python takes."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
        runpy.run_path(str(TOOL), run_name='__main__')

    return run


def test_the_command_draws_and_continues(tmp_path, run, capsys):
    run(tmp_path / 'scenes', 'unlabeled', 3, '--size', 40)
    assert '3 drawn, 0 kept' in capsys.readouterr().out
    run(tmp_path / 'scenes', 'unlabeled', 4, '--size', 40)
    assert '1 drawn, 3 kept' in capsys.readouterr().out
    assert len(list((tmp_path / 'scenes').glob('*.jpg'))) == 4


def test_ctrl_c_is_one_line(tmp_path, run, capsys, monkeypatch):
    monkeypatch.setattr(folders, 'draw_date', lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
        run(tmp_path, 'unlabeled', 3)
    assert str(ended.value) == '130'
    assert capsys.readouterr().err == 'Stopped by SIGINT.\n'


def test_the_command_explains_itself(tmp_path, run, capsys):
    with pytest.raises(SystemExit, match='make_scenes: count is 0, but must be at least 1'):
        run(tmp_path / 'scenes', 'unlabeled', 0)
    with pytest.raises(SystemExit):
        run(tmp_path / 'scenes', 'panoramas', 3)
    assert "invalid choice: 'panoramas'" in capsys.readouterr().err
