"""What ends a run from outside: SIGINT and SIGTERM, and the end of its launcher."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

PR_SET_PDEATHSIG = 1  # Linux: sys/prctl.h
SAME = 1.  # s; Ctrl-C may reach a process twice: from the terminal and from its launcher
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def first_rank() -> bool:
    """Whether this process is rank 0 of its run, as the launcher's environment says."""
    return os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0'


def end_with_launcher() -> None:
    """Let the system kill this rank when torchrun ends; does nothing without torchrun.

    A rank whose launcher was gone before cannot meet the others, whose meeting point it was.
    """
    if 'TORCHELASTIC_RUN_ID' in os.environ and sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class StopSignals:
    """SIGINT and SIGTERM end the process with one line and exit code 130 or 143.

    After :meth:`note` the first one only sets :attr:`pending`, for the training to stop
    at a good moment; a second one ends the process. In forked children SIGINT does nothing, since
    their parent answers it, and SIGTERM ends them as by default.
    """

    def __init__(self) -> None:
        self.pending: signal.Signals | None = None
        self.exit_code: int | None = None  # once a signal has ended the process
        self._since = 0.
        self._noting = False
        self._owner = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Answer the signals from now on; only the main thread of a process can."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {number: signal.signal(number, self._answer) for number in SIGNALS}

    def restore(self) -> None:
        """Let whatever answered before answer again."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        self._noting = False

    def note(self) -> None:
        """From now on the first signal waits in :attr:`pending`."""
        self._noting = True

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self._noting and self.pending is None:
            self.pending, self._since = signal.Signals(number), now
        elif self.pending is None or now - self._since > SAME:
            if first_rank():
                print(f'Stopped by {signal.Signals(number).name}.', file=sys.stderr)
            self.restore()
            self.exit_code = 128 + number
            raise SystemExit(self.exit_code)


@contextmanager
def stopped_in_one_line() -> Iterator[None]:
    """Within, SIGINT and SIGTERM end the process with one line and exit code 130 or 143."""
    signals = StopSignals()
    signals.install()
    try:
        yield
    except Exception:  # some code catches everything, and raises something else (yapf does)
        if signals.exit_code is None:
            raise
        raise SystemExit(signals.exit_code) from None
    finally:
        signals.restore()


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within, SIGTERM raises KeyboardInterrupt as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class GuardedWorker:
    """A ``worker_init_fn``: a data-loader worker that only its parent can interrupt.

    Ctrl-C, torchrun and Slurm send their signals to the workers as well; the run would lose them
    before the step ends.

    Args:
        then: the ``worker_init_fn`` that the loader had.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then

    def __call__(self, worker_id: int) -> None:
        """Set the worker up; ``worker_id`` is torch's."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()
        if self.then is not None:
            self.then(worker_id)


def _obey_parent() -> None:
    """Wait for a SIGTERM from the parent: torch ends workers that way."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
