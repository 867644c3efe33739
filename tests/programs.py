"""Programs that tests start as a user does."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

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
        **variables: str) -> Done:
    """Run this Python with ``arguments`` to its end, on one thread.

    Args:
        arguments: a script or ``'-m'`` and a module, and what follows.
        code: the exit code that the test expects.
        cwd: the folder in which the program starts.
        timeout: seconds.
        variables: of the environment, besides those of the test.

    Raises:
        AssertionError: if the exit code is another; the message is the end of the output.
    """
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'  # mim starts `python`
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
        env=os.environ | dict(OMP_NUM_THREADS='1', PATH=path) | variables, timeout=timeout)
    result = Done(done.returncode, done.stdout, done.stderr)
    assert result.code == code, f'exit code {result.code}: {result.output[-SHOWN:]}'
    return result
