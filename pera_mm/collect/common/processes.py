"""One function for many items, spread over processes.

Not joblib (1.6 was tried): its workers print tracebacks on Ctrl-C and outlive a killed parent.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import Any, TypeVar

import cv2

from pera_mm.collect.common.settings import is_whole
from pera_mm.errors import UserError

Item = TypeVar('Item')
Result = TypeVar('Result')

CHUNK = 16  # items a process takes at once
CHUNKS_PER_ROUND = 64  # of each process
SERIAL_SECONDS = 5.  # about the time that the processes need to start

_function: Callable | None = None  # in a process that in_processes started


def in_processes(function: Callable[[Item], Result], items: Iterable[Item],
                 workers: int) -> Iterator[Result]:
    """Apply a function to items as ``map(function, items)`` does, in the same order.

    Items are taken in rounds, so that five million of them do not wait in a queue. Processes take
    seconds to start, so this process works alone for the first ``SERIAL_SECONDS``.

    Args:
        function: Pickled once for every process; a ``functools.partial`` may hold large arguments.
        items: Small objects that pickle.
        workers: Number of processes; with 1, this process does all the work.

    Yields:
        The result for each item.
    """
    rest = iter(items)
    until = time.monotonic() + SERIAL_SECONDS
    for item in rest:
        yield function(item)
        if workers > 1 and time.monotonic() >= until:
            break
    else:
        return
    # A fork of this process could copy a lock that the progress bar's thread holds. The fork server
    # imports the packages once for all processes.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([getattr(function, 'func', function).__module__])
    _start_fork_server()
    # This waits until the packages are imported. If Ctrl-C came meanwhile, a process of the pool
    # would start later and not find the pool.
    context.Process(target=int, daemon=True).start()
    with ProcessPoolExecutor(workers, context, _start, (function, )) as pool:
        while some := list(islice(rest, workers * CHUNKS_PER_ROUND * CHUNK)):
            yield from pool.map(_call, some, chunksize=CHUNK)


def _start_fork_server() -> None:
    """Start the fork server so that it and its children ignore Ctrl-C.

    Ctrl-C reaches all processes of a terminal. Only the parent shall answer it.
    """
    if threading.current_thread() is not threading.main_thread():
        forkserver.ensure_running()  # only the main thread can set signal handlers
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _start(function: Callable) -> None:
    """Prepare a process of the pool."""
    global _function
    _function = function
    cv2.setNumThreads(0)  # one core per process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent answers Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process with its parent: a killed parent cannot end the processes of its pool."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)


def check_workers(workers: int) -> None:
    """Check a number of processes.

    Raises:
        UserError: if it is not a whole number of at least 1.
    """
    if not is_whole(workers) or workers < 1:
        raise UserError(f'workers must be a number of processes, 1 or more; got {workers!r}.')
