"""The ends of a run from outside: SIGINT and SIGTERM, and the end of its launcher."""

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
SAME_SIGNAL = 1.  # s; Ctrl-C may arrive twice: from the terminal and from the launcher
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def is_first_rank() -> bool:
    """Return whether this process is rank 0 of its run, by the launcher's environment."""
    return os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0'


def end_with_launcher() -> None:
    """Let the system kill this rank when torchrun ends; does nothing without torchrun.

    If the launcher had already ended, the rank fails anyway: ranks connect through the launcher.
    """
    if 'TORCHELASTIC_RUN_ID' in os.environ and sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class StopSignals:
    """A handler that ends the process at SIGINT and SIGTERM, with a line and exit code 130 or 143.

    After :meth:`defer` the first signal only sets :attr:`pending`, so that the training stops at a
    good moment; a second signal ends the process. Forked children ignore SIGINT, because their
    parent handles it, and SIGTERM ends them as by default.
    """

    def __init__(self) -> None:
        self.pending: signal.Signals | None = None
        self.exit_code: int | None = None  # once a signal has ended the process
        self._since = 0.
        self._deferring = False
        self._owner = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Handle the signals from now on; only the main thread of a process can."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def restore(self) -> None:
        """Restore the earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        self._deferring = False

    def defer(self) -> None:
        """Keep the first signal in :attr:`pending` from now on."""
        self._deferring = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return
        now = time.monotonic()
        if self._deferring and self.pending is None:
            self.pending, self._since = signal.Signals(number), now
        elif self.pending is None or now - self._since > SAME_SIGNAL:
            if is_first_rank():
                print(f'Stopped by {signal.Signals(number).name}.', file=sys.stderr)
            self.restore()
            self.exit_code = 128 + number
            raise SystemExit(self.exit_code)


def _end_by_default() -> None:
    """Let SIGTERM end a forked child at once.

    A handler in Python runs only between two steps of Python. A child of a process pool that waits
    for work would miss the signal that comes right before its wait, and the end of the pool would
    wait for that child forever.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if handler is signal.default_int_handler or isinstance(getattr(handler, '__self__', None),
                                                           StopSignals):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, 'register_at_fork'):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_end_by_default)


@contextmanager
def stopped_in_one_line() -> Iterator[None]:
    """End the process at SIGINT and SIGTERM with one line and exit code 130 or 143."""
    signals = StopSignals()
    signals.install()
    try:
        yield
    except Exception:  # some code (yapf) catches everything and raises something else
        if signals.exit_code is None:
            raise
        raise SystemExit(signals.exit_code) from None
    finally:
        signals.restore()


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class GuardedWorker:
    """A ``worker_init_fn`` for a data-loader worker that only its parent can interrupt.

    Ctrl-C, torchrun and Slurm also send their signals to the workers; the run would lose them
    before the end of its step.

    Args:
        then: the ``worker_init_fn`` that the loader had, called afterwards.
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
