"""Files written whole or not at all, and folders that one process works in."""

import fcntl
import hashlib
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TextIO
from weakref import WeakValueDictionary

from pera_mm.errors import UserError

MAX_WAIT = 5.  # s; a killed process may take this long to end
ANOTHER = 'give another --work-dir'
LOCK = '.lock'  # of a claim, in its folder
READ_BYTES = 2**24  # of a file at a time
PROBE_BYTES = 65_536  # the first log lines fit
WORK_FOLDER_MARKER = '.rsrsd'  # an empty file in a work folder of tools/data/rsrsd.py


def sha256(path: Path) -> str:
    """Compute the hash of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file such that a kill leaves the old or the new one, whole.

    A kill may also leave a hidden ``.part`` file, which the next try replaces.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.part')
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError:  # the disk may be full
        part.unlink(missing_ok=True)
        raise


def check_writable(folder: Path, instead: str = ANOTHER) -> None:
    """Make the folder if it is missing, and check that files can be written there.

    Args:
        folder: The folder.
        instead: What else a user can do, for the message.

    Raises:
        ValueError: if not, with the reason.
    """
    probe = folder / f'.writable-{os.getpid()}'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(PROBE_BYTES))
    except OSError as error:
        reason = 'a file has its name or that of a folder above' if isinstance(
            error, (FileExistsError, NotADirectoryError)) else error.strerror
        raise UserError(f'cannot write to the work folder {folder} ({reason}): make it '
                        f'writable with room on its disk, or {instead}.') from None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


class Claim:
    """A folder that this process alone works in, until :meth:`release` or its end.

    The lock is a POSIX record lock. The system drops it with the process, also after ``kill -9``.
    Forked children (data-loader workers) do not have it. A file system without locks has none.

    The process may claim a folder again; only the release of its first claim counts. (A second
    descriptor of the file would drop the lock when it is closed.)

    Not filelock: it uses flock, which a forked child keeps after ``kill -9`` of its parent (tried).

    Args:
        folder: It is made if it is missing; ``.lock`` in it says who works there.
        instead: What a user can do if the folder cannot be had, for the messages.

    Raises:
        ValueError: if the folder cannot be written to, or if another process works there and
            still does after a few seconds, which a killed run may need to end.
    """

    _holders: ClassVar[WeakValueDictionary[tuple[int, str], 'Claim']] = WeakValueDictionary()

    def __init__(self, folder: Path, instead: str = ANOTHER) -> None:
        self._file: TextIO | None = None
        self._key = os.getpid(), os.path.realpath(folder)
        if self._key in self._holders:
            return
        check_writable(folder, instead)
        self._file = _locked_file(folder, instead)
        self._holders[self._key] = self

    def release(self) -> None:
        """Let others work in the folder."""
        if self._file is not None:
            self._file.close()
            self._holders.pop(self._key, None)
            self._file = None

    def __enter__(self) -> 'Claim':
        return self

    def __exit__(self, *error: Any) -> None:
        self.release()


def _locked_file(folder: Path, instead: str) -> TextIO:
    """Lock :data:`LOCK` in a folder, and write there who holds it.

    Raises:
        UserError: if another process holds it for longer than ``MAX_WAIT``.
    """
    file = open(folder / LOCK, 'a+', encoding='utf-8')
    deadline = time.monotonic() + MAX_WAIT
    while not _lock(file):
        if time.monotonic() > deadline:
            file.seek(0)
            holder = ' '.join(file.read().split())
            file.close()
            raise UserError(f'another run is at work in {folder} ({holder or "unknown"}): '
                            f'wait for its end or {instead}.')
        time.sleep(0.1)
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()} since '
               f'{time.strftime("%Y-%m-%d %H:%M:%S")}\n')
    file.flush()
    return file


def _lock(file: TextIO) -> bool:
    """Whether the file could be locked."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: POSIX leaves the choice
        return False
    except OSError:  # a file system without locks
        pass
    return True


def sign_folder(folder: Path, name: str, recipe: dict[str, Any], advice: str) -> None:
    """Write the recipe of the folder's files into the folder, after :func:`check_signature`."""
    check_signature(folder, name, recipe, advice)
    signature, data = folder / name, json.dumps(recipe).encode()
    if not signature.exists() or signature.read_bytes() != data:
        write_whole(signature, data)


def check_signature(folder: Path, name: str, recipe: dict[str, Any], advice: str) -> None:
    """Check that a folder is new or empty, or that its files have this recipe.

    A signature alone, and what a kill left of one (``.part``), are not files.

    Args:
        folder: The folder; it may be missing.
        name: The file of its signature, which holds a recipe as JSON.
        recipe: What its files depend on.
        advice: What to do if the folder was signed with another recipe.

    Raises:
        UserError: if the folder has files without a signature or with another one.
    """
    paths = folder.iterdir() if folder.is_dir() else ()
    held = {path.name for path in paths if not path.name.endswith('.part')}
    if folder.exists() and not folder.is_dir() or held and name not in held:
        raise UserError(f'{folder} is not an empty folder: move its files away, or choose another '
                        'folder.')
    if held <= {name}:
        return
    wanted = json.loads(json.dumps(recipe))
    try:
        found = dict(json.loads((folder / name).read_text()))
    except (ValueError, TypeError):
        raise UserError(f'{folder} cannot be continued, because its {name} cannot be read: '
                        f'{advice}.') from None
    differing = [key for key in wanted | found if wanted.get(key) != found.get(key)]
    if differing:
        before, now = (', '.join(f'{key}={some.get(key)!r}' for key in differing)
                       for some in (found, wanted))
        raise UserError(f'{folder} was begun with {before}, not with {now}: {advice}.')
