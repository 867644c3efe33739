"""One function for many items, spread over processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing.connection import wait
from typing import Any, TypeVar

import cv2

Item = TypeVar('Item')
Result = TypeVar('Result')

CHUNK = 16  # items a process takes at once
ROUND = 64  # chunks per process and round
FEW = 400  # items that are done sooner than processes have started

_function: Callable | None = None  # of a process that in_processes started


def in_processes(function: Callable[[Item], Result], items: Iterable[Item],
                 workers: int) -> Iterator[Result]:
    """Like ``map(function, items)``: the results come in the order of the items.

    Items are taken round by round, so that five million of them do not wait in a queue.

    Args:
        function: Pickled once for every process; a ``functools.partial`` may hold what is large.
        items: Small things that pickle.
        workers: Number of processes; 1 works in this one, as do fewer than 400 items.
    """
    rest = iter(items)
    few = list(islice(rest, FEW))
    if workers == 1 or len(few) < FEW:
        yield from map(function, chain(few, rest))
        return
    rest = chain(few, rest)
    # Not forked from here: the progress bar's thread may hold a lock at that moment. The fork
    # server imports the packages once for all.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context, _start, (function, )) as pool:
        while some := list(islice(rest, workers * ROUND * CHUNK)):
            yield from pool.map(_call, some, chunksize=CHUNK)


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
    if not isinstance(workers, int) or workers < 1:
        raise ValueError(f'workers must be a number of processes, 1 or more; got {workers!r}.')
