"""One function for many items, spread over processes."""

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

from pera_mm.errors import UserError

Item = TypeVar('Item')
Result = TypeVar('Result')

CHUNK = 16  # items a process takes at once
ROUND = 64  # chunks per process and round
ALONE = 5.  # s; what this process does by then, others would not have done sooner

_function: Callable | None = None  # of a process that in_processes started


def in_processes(function: Callable[[Item], Result], items: Iterable[Item],
                 workers: int) -> Iterator[Result]:
    """Like ``map(function, items)``: the results come in the order of the items.

    Items are taken round by round, so that five million of them do not wait in a queue. Processes
    take seconds to start, so those come first that this one does in so many seconds.

    Args:
        function: Pickled once for every process; a ``functools.partial`` may hold what is large.
        items: Small things that pickle.
        workers: Number of processes; 1 works in this one.
    """
    rest = iter(items)
    until = time.monotonic() + ALONE
    for item in rest:
        yield function(item)
        if workers > 1 and time.monotonic() >= until:
            break
    else:
        return
    # Not forked from here: the progress bar's thread may hold a lock at that moment. The fork
    # server imports the packages once for all.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([getattr(function, 'func', function).__module__])
    _start_fork_server()
    # Waits until the packages are imported. Ctrl-C may come meanwhile, and a process of the pool
    # that is begun would not find the pool when it starts at last.
    context.Process(target=int, daemon=True).start()
    with ProcessPoolExecutor(workers, context, _start, (function, )) as pool:
        while some := list(islice(rest, workers * ROUND * CHUNK)):
            yield from pool.map(_call, some, chunksize=CHUNK)


def _start_fork_server() -> None:
    """Ctrl-C goes to all processes of a terminal; what ignores it from its start on, says nothing.

    The fork server and its children inherit this; the parent alone answers.
    """
    if threading.current_thread() is not threading.main_thread():
        forkserver.ensure_running()  # signals are the main thread's
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _start(function: Callable) -> None:
    global _function
    _function = function
    cv2.setNumThreads(0)  # one core per process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the parent alone
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed ends no pool: without this, its processes would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)


def check_workers(workers: int) -> None:
    """Raise a ValueError unless ``workers`` is a number of processes."""
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise UserError(f'workers must be a number of processes, 1 or more; got {workers!r}.')
