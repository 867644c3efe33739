"""Writing the prepared files: each whole or not at all, those that are there are kept."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from pera_mm.files import write_whole
from pera_mm.prepare.archives import BadFile, Entry

T = TypeVar('T')
R = TypeVar('R')


class Progress(Protocol):
    """How a long loop shows where it is; ``rich.progress.track`` is one."""

    def __call__(self, sequence: Iterable[T], description: str, total: int) -> Iterable[T]:
        """Yield the items of the sequence."""


def quiet(sequence: Iterable[T], description: str, total: int) -> Iterable[T]:
    """No progress bar."""
    return sequence


class Job(NamedTuple):
    """What becomes of one file of the source."""

    source: str
    outputs: list[Path]
    make: Callable[[], Iterable[bytes]]  # the outputs' contents, in their order
    size: int | None = None  # bytes of the output where known before


def copy(entry: Entry, output: Path) -> Job:
    """Copy a file as it is. No links: the result must survive the source, and never alter it."""
    return Job(entry.path, [output], lambda: [entry.read()], entry.size)


def run_jobs(jobs: list[Job], workers: int, progress: Progress) -> dict[str, str]:
    """Do what has not been done yet.

    Returns:
        What failed: file of the source → reason.

    Raises:
        OSError: if a result cannot be written, e.g. because the disk is full.
    """
    results = in_threads(_run, jobs, workers)
    failed = list(progress(results, 'unpacking', len(jobs)))
    return {job.source: reason for job, reason in zip(jobs, failed) if reason}


def _run(job: Job) -> str:
    """Do one job; returns why it failed, or ''."""
    there = [path.exists() for path in job.outputs]
    if all(there):
        if job.size in (None, job.outputs[0].stat().st_size):
            return ''
        return (f'is not what {job.outputs[0]} holds, which has another size: remove that, or '
                'choose an empty folder')
    try:
        for path, is_there, data in zip(job.outputs, there, job.make()):
            if not is_there:
                write_whole(path, data)
    except BadFile as error:
        return str(error)
    return ''


def in_threads(function: Callable[[Any], R], items: list, workers: int) -> Iterator[R]:
    """Map in order with several threads (decoders and encoders release the interpreter)."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for all the rest
