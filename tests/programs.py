"""Programs that tests start as a user does."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from pera_mm.files import Claim

ROOT = Path(__file__).parents[1]
TIMEOUT = 280  # seconds; a test may take 300
SHOWN = 4000  # characters of the output in the message of a failed test


class Done(NamedTuple):
    """What a program printed, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def run(*arguments: object, code: int = 0, cwd: Path = ROOT, timeout: float = TIMEOUT,
        program: object = sys.executable, **variables: str | None) -> Done:
    """Run this Python with ``arguments`` to its end, on one thread.

    Args:
        arguments: a script or ``'-m'`` and a module, and what follows.
        code: the exit code that the test expects.
        cwd: the folder in which the program starts.
        timeout: seconds.
        program: another program than this Python.
        variables: of the environment, besides those of the test; None removes one.

    Raises:
        AssertionError: if the exit code is another; the message is the end of the output.
    """
    done = subprocess.run([str(program), *map(str, arguments)], cwd=cwd, capture_output=True,
                          text=True, env=environment(**variables), timeout=timeout)
    result = Done(done.returncode, done.stdout, done.stderr)
    assert result.code == code, f'exit code {result.code}: {result.output[-SHOWN:]}'
    return result


def environment(**variables: str | None) -> dict[str, str]:
    """Make the environment of a program: the test's, with these variables; None removes one."""
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'  # mim starts `python`
    given = dict(os.environ, OMP_NUM_THREADS='1', PATH=path) | variables
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def claimed(folder: Path) -> Iterator[int]:
    """Let another process claim a folder; its number."""
    fork = multiprocessing.get_context('fork')
    ready, theirs = fork.Pipe(duplex=False)
    other = fork.Process(target=_claim, args=(folder, theirs))
    other.start()
    try:
        assert ready.recv() and other.pid
        yield other.pid
    finally:
        other.kill()
        other.join()


def _claim(folder: Path, ready: Connection) -> None:
    with Claim(folder):
        ready.send(True)
        time.sleep(TIMEOUT)
