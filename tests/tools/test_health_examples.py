"""The examples of docs/health.md: which trainings count as results."""

import sys
from pathlib import Path

import pytest
from made_data import noise_classes

from pera_mm.errors import RunError, UserError

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))  # tools/ is not a package

from analysis import health_examples  # noqa: E402
from analysis.health_examples import CASES, main, train  # noqa: E402

LOGS_AND_DIVERGES = """
import sys
from pathlib import Path
folder = Path(sys.argv[sys.argv.index('--work-dir') + 1], 'start/vis_data')
folder.mkdir(parents=True)
(folder / 'scalars.json').touch()
sys.exit(1)
"""


@pytest.fixture
def trainer(tmp_path, monkeypatch) -> Path:
    """The file that stands for tools/train.py."""
    (tmp_path / 'root/tools').mkdir(parents=True)
    monkeypatch.setattr(health_examples, 'ROOT', tmp_path / 'root')
    return tmp_path / 'root/tools/train.py'


def test_only_a_run_that_logged_numbers_is_a_result(tmp_path, trainer):
    folder = tmp_path / 'healthy'
    trainer.write_text('raise SystemExit("Error: no images.")')
    with pytest.raises(RunError, match=r"'healthy' failed \(exit code 1\): .*/output.txt says why"):
        train(CASES[0], 'images', folder)
    assert not (folder / 'ended').exists()
    assert (folder / 'output.txt').read_text() == 'Error: no images.\n'
    trainer.write_text(LOGS_AND_DIVERGES)
    train(CASES[0], 'images', folder)
    assert (folder / 'ended').read_text() == '1\n'
    trainer.write_text('raise SystemExit("not called")')
    train(CASES[0], 'images', folder)
    (folder / 'ended').unlink()  # as if that start had been stopped; its numbers are not this one's
    with pytest.raises(RunError, match='failed'):
        train(CASES[0], 'images', folder)


def test_the_images_are_checked_first_and_are_those_of_the_work_folder(tmp_path, trainer,
                                                                       monkeypatch):
    work = tmp_path / 'work'
    with pytest.raises(UserError, match="folder '.*/nowhere' does not exist"):
        main(['--data', f'{tmp_path}/nowhere', '--work-dir', str(work)])
    assert not work.exists()
    trainer.write_text(LOGS_AND_DIVERGES)
    data = {name: noise_classes(tmp_path / name, 1, 8, dark=(0, 90), light=(90, 255))
            for name in ('one', 'other')}
    monkeypatch.setattr(health_examples, 'read_run', lambda *_: sys.exit('all are trained'))
    with pytest.raises(SystemExit, match='all are trained'):
        main(['--data', str(data['one']), '--work-dir', str(work)])
    assert len(list(work.glob('*/ended'))) == len(CASES)
    with pytest.raises(UserError, match="was begun with data='.*/one', not with data='.*/other': "
                                        'give another --work-dir'):
        main(['--data', str(data['other']), '--work-dir', str(work)])
