"""Concurrency of ``fetch``: tasks that wait, and threads that compute."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


async def for_each(items: Sequence[int], tasks: int, do: Callable[[int], Awaitable[None]]) -> None:
    """Call ``do`` with every item, in several tasks at a time; the first error ends all.

    Args:
        items: Taken in their order.
        tasks: Number of tasks.
        do: A coroutine function.
    """
    left = iter(items)

    async def work() -> None:
        for item in left:
            await do(item)

    workers = [asyncio.create_task(work()) for _ in range(tasks)]
    try:
        await asyncio.gather(*workers)
    finally:
        await cancel(workers)


async def cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def one_thread_per_core() -> Iterator[None]:
    """Limit the threads of ``asyncio.to_thread``, which decode and encode without Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        yield
