"""Measurements in processes of their own."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def in_new_process(run: Callable, *arguments: Any) -> Any:
    """Call ``run`` in a new process, which starts with no memory of this one and ends with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
        try:
            return process.submit(run, *arguments).result()
        except (KeyboardInterrupt, SystemExit):  # the pool would wait for the end of ``run``
            for child in multiprocessing.active_children():
                child.terminate()
                child.join()  # a pool that was still starting does not
            raise
