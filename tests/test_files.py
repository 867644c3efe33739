"""Files that are whole or not there, and folders that one process works in."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from pera_mm import files
from pera_mm.errors import UserError
from pera_mm.files import Claim, check_writable, sign_folder, write_whole

FORK = multiprocessing.get_context('fork')


def hold(folder, ready):
    """Claim a folder, and fork."""
    with Claim(folder):
        child = os.fork()
        if child:
            ready.send(child)
        time.sleep(600)


def refusal(folder) -> str | None:
    """What stops another process from claiming a folder; None if it may."""
    answer, theirs = FORK.Pipe(duplex=False)

    def claim():
        try:
            Claim(folder)
        except UserError as error:
            theirs.send(str(error))
        else:
            theirs.send(None)

    process = FORK.Process(target=claim)
    process.start()
    process.join()
    return answer.recv()


@pytest.fixture
def holder(tmp_path):
    """A process that claims ``tmp_path``, and its forked child."""
    answer, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    child = answer.recv()
    yield process
    process.kill()
    process.join()
    os.kill(child, signal.SIGKILL)


def test_a_write_replaces_the_whole_file(tmp_path):
    write_whole(tmp_path / 'new/file', b'old')
    write_whole(tmp_path / 'new/file', b'new')
    assert (tmp_path / 'new/file').read_bytes() == b'new'
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['file']


def test_a_claim_says_who_has_the_folder(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(files, 'MAX_WAIT', .2)
    with pytest.raises(ValueError, match=rf'{tmp_path} \(process {holder.pid} on \S+ since 20'):
        Claim(tmp_path)


def test_a_claim_ends_with_its_process_and_not_with_forked_children(tmp_path, holder):
    holder.kill()
    start = time.monotonic()
    with Claim(tmp_path), Claim(tmp_path):  # the same process may claim again
        assert time.monotonic() - start < 2


def test_the_end_of_a_second_claim_does_not_end_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'MAX_WAIT', .2)
    (tmp_path / 'link').symlink_to('.')
    with Claim(tmp_path):
        for second in (Claim(tmp_path), Claim(tmp_path / 'link')):
            second.release()
        assert f'(process {os.getpid()} on ' in (refusal(tmp_path) or '')
    assert refusal(tmp_path) is None


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

    def sign(folder, **changes):
        sign_folder(folder, 'recipe.json', recipe | changes, 'choose another folder')

    sign(tmp_path / 'new', kind='planet')
    (tmp_path / 'new/.recipe.json.part').touch()  # of a kill
    sign(tmp_path / 'new')
    (tmp_path / 'new/image').write_bytes(b'')
    sign(tmp_path / 'new')
    with pytest.raises(UserError, match=f"^{tmp_path}/new was begun with kind='scenes', not with "
                                        "kind='planet': choose another folder.$"):
        sign(tmp_path / 'new', kind='planet')
    for unreadable in (b'{', b'\xff', b'[1]'):
        (tmp_path / 'new/recipe.json').write_bytes(unreadable)
        with pytest.raises(UserError, match='its recipe.json cannot be read: choose another fold'):
            sign(tmp_path / 'new')
    (tmp_path / 'new/recipe.json').unlink()
    for folder in (tmp_path / 'new', tmp_path / 'new/image'):
        with pytest.raises(UserError, match='is not an empty folder: move its files away, or ch'):
            sign(folder)
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['image']
