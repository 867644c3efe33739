"""The common form of the campaign: results, cases in child processes, and the table of counts.

A part is a module with ``cases(folder, seed)``, a generator of :class:`Result`: it may write below
``folder`` only, is stopped when its time is up, and draws every random number from ``seed``.
"""

import json
import math
import os
import resource
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

Item = TypeVar('Item')
MIB = 2**20
WAIT = 4

# The two right outcomes; everything else is what went wrong, in a word or two.
REFUSED = 'refused'  # with a documented error, in one sentence
HELD = 'held'  # loaded as data with the right values; a run that continued as it should
RIGHT = (REFUSED, HELD)
RAN_CODE, CRASHED, HUNG, MEMORY = 'ran code', 'crashed', 'hung', 'took too much memory'
WROTE_OUTSIDE, WRONG_VALUES = 'wrote outside', 'wrong values'


class Result(NamedTuple):
    """The outcome of one case."""

    kind: str  # the row of the table
    name: str  # of the case, within its kind
    outcome: str  # one of RIGHT, or what went wrong
    detail: str = ''  # the sentence of the refusal


class Limits(NamedTuple):
    """The limits of a child process."""

    seconds: int = 10  # of a processor, for one item; by the clock WAIT times as many
    memory: int = 2048 * MIB  # bytes above what it starts with


def in_children(
    action: Callable[[Item], tuple[str, str]], items: Iterable[Item], limits: Limits, batch: int = 1
) -> Iterator[tuple[Item, str, str]]:
    """Call ``action`` with every item in forked children, and see how each call ends.

    Args:
        action: Returns an outcome and a detail. A crash, a hang and too much memory are seen from
            outside.
        items: All of them are kept in memory.
        limits: Of a child.
        batch: Items a child takes one after another; after a wrong outcome it takes no more.

    Yields:
        The item, the outcome, the detail; in order.
    """
    items = list(items)
    done = 0
    while done < len(items):
        todo = items[done : done + batch]
        process, pipe = _fork(action, todo, limits)
        try:
            for item in todo:
                outcome, detail = _outcome(process, pipe, limits)
                done += 1
                yield item, outcome, detail
                if outcome not in RIGHT:
                    break
        finally:
            os.close(pipe)
            _end(process)


def _outcome(process: int, pipe: int, limits: Limits) -> tuple[str, str]:
    line = _line(pipe, WAIT * limits.seconds)
    if line is None:
        return HUNG, f'{WAIT * limits.seconds} s'
    if not line:  # the pipe was closed
        ending = _ending(process)
        return (
            (HUNG, f'{limits.seconds} s of a processor')
            if ending == 'SIGXCPU'
            else (CRASHED, ending)
        )
    outcome, detail, peak = json.loads(line)
    if outcome in RIGHT and peak > limits.memory:
        return MEMORY, f'{peak / MIB:,.0f} MiB: {detail}'
    return outcome, detail


def _fork(
    action: Callable[[Item], tuple[str, str]], items: list[Item], limits: Limits
) -> tuple[int, int]:
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    code = 1
    try:
        os.setsid()  # what a payload starts is ended with it
        os.close(reading)
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(quiet, descriptor)
        _limit(limits)
        for item in items:
            Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
            start = _status('VmRSS')
            used = resource.getrusage(resource.RUSAGE_SELF)
            seconds = math.ceil(used.ru_utime + used.ru_stime) + limits.seconds
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
            try:
                outcome, detail = action(item)
            except MemoryError:
                outcome, detail = MEMORY, 'MemoryError'
            row = [outcome, detail[:1000], _status('VmHWM') - start]
            os.write(writing, json.dumps(row).encode() + b'\n')
        code = 0
    finally:
        os._exit(code)


def _limit(limits: Limits) -> None:
    space = _status('VmSize') + 2 * limits.memory  # so that it is seen, and ends
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.memory, limits.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _status(field: str) -> int:
    """A field of this process in ``/proc``, in bytes."""
    text = Path('/proc/self/status').read_text()
    return int(text.partition(f'{field}:')[2].split()[0]) * 1024


def _line(pipe: int, seconds: float) -> bytes | None:
    """A line of the child; b'' if it has ended, None if it has not written one in time."""
    end, line = time.monotonic() + seconds, b''
    while not line.endswith(b'\n'):
        ready, _, _ = select.select([pipe], [], [], max(end - time.monotonic(), 0))
        if not ready:
            return None
        more = os.read(pipe, 1)
        if not more:
            return b''
        line += more
    return line


def _ending(process: int) -> str:
    # Left for _end to collect.
    ending = os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    if ending is None or ending.si_code == os.CLD_EXITED:
        return f'exit code {ending.si_status if ending else "?"}'
    return signal.Signals(ending.si_status).name


def _end(process: int) -> None:
    """End a child and whatever it has started."""
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        pass
    os.waitpid(process, 0)


def table(results: dict[str, list[Result]]) -> str:
    """Counts in Markdown: a row for each kind, a last one for all."""
    rows = ['| part | kind | cases | refused | held | wrong |', '|---|---|--:|--:|--:|---|']
    total: Counter[str] = Counter()
    for part, found in results.items():
        for kind in dict.fromkeys(result.kind for result in found):
            count = Counter(result.outcome for result in found if result.kind == kind)
            total += count
            rows.append(_row(part, kind, count))
    rows.append(_row('all', '', total))
    return '\n'.join(rows)


def _row(part: str, kind: str, count: Counter[str]) -> str:
    wrong = ', '.join(f'{n} {what}' for what, n in count.items() if what not in RIGHT)
    return (
        f'| {part} | {kind} | {count.total():,} | {count[REFUSED]:,} | {count[HELD]:,} '
        f'| {wrong or "0"} |'
    )
