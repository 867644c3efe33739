"""Files that are whole or not there, and folders that one process works in."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pera_mm.errors import UserError
from pera_mm.files import Claim, check_writable, sign_folder, write_whole

HOLDER = """
import os, sys, time
from pathlib import Path
from pera_mm.files import Claim
claim = Claim(Path(sys.argv[1]))
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that claims ``tmp_path``, and its forked child."""
    process = subprocess.Popen([sys.executable, '-c', HOLDER, tmp_path], stdout=subprocess.PIPE,
                               text=True)
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    os.kill(child, signal.SIGKILL)


def test_a_write_replaces_the_whole_file(tmp_path):
    write_whole(tmp_path / 'new/file', b'old')
    write_whole(tmp_path / 'new/file', b'new')
    assert (tmp_path / 'new/file').read_bytes() == b'new'
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['file']


def test_a_claim_says_who_has_the_folder(tmp_path, holder):
    with pytest.raises(ValueError, match=rf'{tmp_path} \(process {holder.pid} on \S+ since 20'):
        Claim(tmp_path)


def test_a_claim_ends_with_its_process_and_not_with_forked_children(tmp_path, holder):
    holder.kill()
    start = time.monotonic()
    with Claim(tmp_path), Claim(tmp_path):  # the same process may claim again
        assert time.monotonic() - start < 2


def test_a_file_in_place_of_the_folder_is_said(tmp_path):
    (tmp_path / 'file').touch()
    for folder in (tmp_path / 'file', tmp_path / 'file/run'):
        with pytest.raises(ValueError, match=rf'cannot write to the work folder {folder} \(a file'):
            check_writable(folder)


def test_an_unwritable_folder_is_said():
    with pytest.raises(ValueError, match=r'work folder /proc/run \(.*\): make it writable with'):
        Claim(Path('/proc/run'))


def test_a_signed_folder_continues_with_the_same_recipe_alone(tmp_path):
    recipe = dict(kind='scenes', size=(3, 4))
    sign_folder(tmp_path / 'new', 'recipe.json', recipe)
    (tmp_path / 'new/image').write_bytes(b'')
    sign_folder(tmp_path / 'new', 'recipe.json', recipe)
    with pytest.raises(UserError, match=f'{tmp_path}/new was begun with .*scenes.*, not with .*'
                                        'planet.*: choose another folder'):
        sign_folder(tmp_path / 'new', 'recipe.json', recipe | dict(kind='planet'))
    (tmp_path / 'new/recipe.json').unlink()
    for folder in (tmp_path / 'new', tmp_path / 'new/image'):
        with pytest.raises(UserError, match='is not an empty folder: choose another'):
            sign_folder(folder, 'recipe.json', recipe)
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['image']
