"""Files that are whole or not there, and folders that one process works in."""

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pera_mm.errors import UserError

LEFTOVER = 5.  # s; what a killed process may still take to end
ENOUGH = 65_536  # bytes; the first log lines fit
WORK_FOLDER_MARKER = '.rsrsd'  # an empty file in a work folder of tools/data/rsrsd.py


def write_whole(path: Path, data: bytes) -> None:
    """Write a file such that a kill leaves the old one or the new one, never a half one.

    What a kill leaves besides is a hidden ``.part`` file, which the next try replaces.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.part')
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError:  # a full disk has better use for its bytes
        part.unlink(missing_ok=True)
        raise


def check_writable(folder: Path) -> None:
    """Make the folder if it is missing, and see that files can be written there.

    Raises:
        ValueError: if not, with the reason.
    """
    probe = folder / f'.writable-{os.getpid()}'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(ENOUGH))
    except OSError as error:
        reason = 'a file has its name or that of a folder above' if isinstance(
            error, (FileExistsError, NotADirectoryError)) else error.strerror
        raise UserError(f'cannot write to the work folder {folder} ({reason}): make it '
                        'writable with room on its disk, or give another --work-dir.') from None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


class Claim:
    """A folder that this process alone works in, until :meth:`release` or its end.

    The system drops the lock with the process, also after ``kill -9``. It is a POSIX record lock:
    forked children (data-loader workers) do not share it and cannot outlive it, and the same
    process may claim a folder again. Without effect on a file system that has no locks.

    Args:
        folder: made if it is missing; ``.lock`` in it says who works there.

    Raises:
        ValueError: if the folder cannot be written to, or if another process works there and
            still does after a few seconds, which a killed run may need to end.
    """

    def __init__(self, folder: Path) -> None:
        check_writable(folder)
        self._file = open(folder / '.lock', 'a+', encoding='utf-8')
        deadline = time.monotonic() + LEFTOVER
        while not self._locked():
            if time.monotonic() > deadline:
                self._file.seek(0)
                holder = ' '.join(self._file.read().split())
                self._file.close()
                raise UserError(f'another run is at work in {folder} ({holder or "unknown"}): '
                                'wait for its end or give another --work-dir.')
            time.sleep(0.1)
        self._file.truncate(0)
        self._file.write(f'process {os.getpid()} on {socket.gethostname()} since '
                         f'{time.strftime("%Y-%m-%d %H:%M:%S")}\n')
        self._file.flush()

    def _locked(self) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: POSIX leaves the choice
            return False
        except OSError:  # a file system without locks
            pass
        return True

    def release(self) -> None:
        """Let others work in the folder."""
        self._file.close()

    def __enter__(self) -> 'Claim':
        return self

    def __exit__(self, *error: Any) -> None:
        self.release()


def sign_folder(folder: Path, name: str, recipe: dict[str, Any]) -> None:
    """Sign a new or empty folder with the recipe of its files, or find the same signature there.

    Args:
        name: The signature's file name; the recipe lies there as JSON.

    Raises:
        UserError: If the folder holds other files, or was signed with another recipe.
    """
    signature, text = folder / name, json.dumps(recipe)
    if not signature.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f'{folder} is not an empty folder: choose another one.')
        write_whole(signature, text.encode())
        return
    try:
        found = json.loads(signature.read_text())
    except ValueError:
        found = 'something unreadable'
    if found != json.loads(text):
        raise UserError(f'{folder} was begun with {found}, not with {recipe}: choose another '
                        'folder.')
