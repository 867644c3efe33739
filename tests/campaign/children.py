"""The scripts of ``tools/`` as a user runs them, in child processes with limits.

They start from a fork server that has already imported the packages: milliseconds, not seconds.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from report import CRASHED, HUNG, MEMORY, MIB

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tests/engine'))
sys.path.insert(0, str(ROOT / 'tests/collect'))

PROCESSES = multiprocessing.get_context('forkserver')
PROCESSES.set_forkserver_preload([
    'training_runs', 'pera_mm.models', 'pera_mm.datasets', 'pera_mm.engine', 'mmpretrain.models',
    'pera_mm.collect.stats', 'pera_mm.collect.fetch.step', 'pera_mm.collect.filter.step',
    'pera_mm.collect.pack.step', 'pera_mm.collect.sample.step', 'rich.logging'])


@lru_cache
def warm_up() -> None:
    """Wait until the fork server has imported the packages, so that no case pays for it."""
    first = PROCESSES.Process(target=os.getpid)
    first.start()
    first.join()


class Ended(NamedTuple):
    """How a script ended."""

    code: int  # negative: by a signal
    said: str  # on both streams
    seconds: float
    memory: int  # peak, bytes
    limit: str  # HUNG or MEMORY if it was stopped for that, else ''

    def fault(self) -> str:
        """What is wrong with its end whatever it was to do, in the words of ``report``; or ''."""
        if self.limit:
            return self.limit
        return CRASHED if self.code < 0 else 'traceback' if 'Traceback (' in self.said else ''

    def last_line(self) -> str:
        """The last line said."""
        return (self.said.strip().splitlines() or [''])[-1]


class Script:
    """A running script of ``tools/``.

    Args:
        name: Below ``tools/``.
        arguments: Of the command line.
        folder: Where it runs, and where ``said.txt`` is written.
        environment: Added to this process's.
        file_bytes: No file may grow beyond; 0: any size.
    """

    def __init__(self, name: str, arguments: list[str], folder: Path,
                 environment: dict[str, str] | None = None, file_bytes: int = 0) -> None:
        warm_up()
        self.said = folder / 'said.txt'
        self.said.write_bytes(b'')
        self.process = PROCESSES.Process(target=_run, args=(
            str(ROOT / 'tools' / name), arguments, str(folder), environment or {}, file_bytes))
        self.start = time.monotonic()
        self.process.start()
        self.pid = self.process.pid or 0  # it has started, so there is one

    def kill(self) -> None:
        """SIGKILL to the script and to what it has started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # nothing is left, or it has not made its group yet
            self.process.kill()
        self.process.join()

    def wait(self, seconds: float, memory: int = 8192 * MIB) -> Ended:
        """Wait for the end; stop it at the limits."""
        peak, limit = 0, ''
        while self.process.exitcode is None:
            self.process.join(0.02)
            peak = max(peak, _peak_of(self.pid))
            limit = MEMORY if peak > memory else (
                HUNG if time.monotonic() - self.start > seconds else '')
            if limit and self.process.exitcode is None:
                self.kill()
                break
        took = time.monotonic() - self.start
        self.kill()  # what it has left behind
        said = self.said.read_text(errors='replace')
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, said, took, peak, limit)


def _peak_of(process: int) -> int:
    try:
        status = Path(f'/proc/{process}/status').read_text()
    except OSError:
        return 0
    return int(status.partition('VmHWM:')[2].partition('kB')[0] or 0) * 1024


def _run(script: str, arguments: list[str], folder: str, environment: dict[str, str],
         file_bytes: int) -> None:
    """In the child: become the script."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    said = os.open('said.txt', os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(said, descriptor)
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    torch.set_num_threads(1)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name='__main__')
