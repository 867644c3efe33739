"""Jobs that write the prepared files: each whole or not at all; existing files are kept."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from pera_mm.files import write_whole
from pera_mm.prepare.archives import BadFile, Entry

T = TypeVar('T')
R = TypeVar('R')


class Progress(Protocol):
    """A progress display around a long loop, such as ``rich.progress.track``."""

    def __call__(self, sequence: Iterable[T], description: str, total: int) -> Iterable[T]:
        """Yield the items of the sequence."""


def quiet(sequence: Iterable[T], description: str, total: int) -> Iterable[T]:
    """Return the sequence without a progress bar."""
    return sequence


class Job(NamedTuple):
    """The outputs of one file of the source."""

    source: str
    outputs: list[Path]
    make: Callable[[], Iterable[bytes]]  # the outputs' contents, in their order
    size: int | None = None  # bytes of the output where known before


def copy(entry: Entry, output: Path) -> Job:
    """Copy a file as it is; a link would break with the source, or let changes reach it."""
    return Job(entry.path, [output], lambda: [entry.read()], entry.size)


def run_jobs(jobs: list[Job], workers: int, progress: Progress) -> dict[str, str]:
    """Run the jobs whose outputs do not all exist.

    Returns:
        The failures: file of the source → reason.

    Raises:
        OSError: if a result cannot be written, e.g. because the disk is full.
    """
    results = in_threads(_run, jobs, workers)
    failed = list(progress(results, 'unpacking', len(jobs)))
    return {job.source: reason for job, reason in zip(jobs, failed) if reason}


def _run(job: Job) -> str:
    """Run one job; return why it failed, or an empty string."""
    there = [path.exists() for path in job.outputs]
    if all(there):
        if job.size in (None, job.outputs[0].stat().st_size):
            return ''
        return (f'differs in size from the existing {job.outputs[0]}: remove this file, or choose '
                'an empty folder')
    try:
        for path, is_there, data in zip(job.outputs, there, job.make()):
            if not is_there:
                write_whole(path, data)
    except BadFile as error:
        return str(error)
    return ''


def in_threads(function: Callable[[Any], R], items: list, workers: int) -> Iterator[R]:
    """Map in order with several threads (decoders and encoders release the GIL)."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the remaining items
