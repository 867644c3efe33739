"""The files between the steps: CSV tables, and journals that survive a kill."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pera_mm.errors import UserError
from pera_mm.files import write_whole

POINT = ('id', 'lon', 'lat', 'class', 'continent', 'gsd')
TILE = ('id', 'lon', 'lat', 'class', 'continent', 'gsd', 'zoom', 'source', 'date', 'file', 'sha256')
NUMBERS = ('lon', 'lat', 'gsd')
BLOCK = 4096  # bytes; a journal's last line is searched in steps of this

log = logging.getLogger('pera_mm.collect')


def read_table(path: Path, columns: Sequence[str], written_by: str) -> pd.DataFrame:
    """Read a table that another step, or the user, has written.

    Args:
        path: A CSV file with a header.
        columns: The columns that must be there; other columns are kept.
        written_by: What writes this file, for the message.

    Returns:
        The table, with lon, lat and gsd as numbers and everything else as text: the id '007' keeps
        its zeros, and the country code 'NA' is not a missing value.

    Raises:
        UserError: if the file is missing, empty or not a CSV, lacks a column or an id, has a lon,
            lat or gsd that is not a number, or has the same id twice.
    """
    if not path.is_file():
        raise UserError(f'{path} does not exist: it is written by {written_by}.')
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' errors are ValueErrors
        raise UserError(f'{path} is not a CSV table: {" ".join(str(error).split())}') from None
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(f'{path} has no column {missing[0]!r}; it needs {", ".join(columns)}.')
    for name in NUMBERS:
        if name in table:
            table[name] = _numbers(path, table[name])
    if 'id' in columns:
        ids = table['id']
        if (ids == '').any():
            raise UserError(f'{path}, line {int((ids == "").argmax()) + 2}: id is empty.')
        if ids.duplicated().any():
            raise UserError(f'{path} has the id {ids[ids.duplicated()].iloc[0]!r} twice.')
    return table


def _numbers(path: Path, column: pd.Series) -> pd.Series:
    try:
        numbers = column.map(float).astype(float)  # Python's float loses no digit
        if np.isfinite(numbers).all():
            return numbers
    except ValueError:
        pass
    line, text = next((line, text) for line, text in enumerate(column, 2) if not _is_finite(text))
    said = f'{text!r}, which is not a number' if text else 'empty'
    raise UserError(f'{path}, line {line}: {column.name} is {said}.')


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV table, whole or not at all; the same rows give the same bytes."""
    write_whole(path, table.to_csv(index=False, lineterminator='\n').encode())


class Journal:
    """A file of rows, one JSON object a line, each appended at once: a kill loses at most the last.

    A line that a kill cut short is removed when the journal is opened again. Lines that a loss of
    power damaged further up are skipped, with a warning. Each iteration reads all rows from the
    file: in memory, millions of rows would take 2 kB each.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, 'ab+')
        self._cut_half_line()

    def _cut_half_line(self) -> None:
        end = last = self.file.seek(0, os.SEEK_END)
        while last > 0:
            start = max(last - BLOCK, 0)
            self.file.seek(start)
            if (found := self.file.read(last - start).rfind(b'\n')) >= 0:
                last = start + found + 1
                break
            last = start
        if last < end:
            self.file.truncate(last)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        damaged = 0
        # As text: from bytes, json would detect the encoding of every line anew.
        with open(self.path, encoding='ascii', errors='replace', newline='\n') as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if isinstance(row, dict):
                    yield row
                else:
                    damaged += 1
        if damaged:
            log.warning('%s has damaged lines, as a loss of power leaves them: %d are skipped',
                        self.path, damaged)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row and hand it to the operating system."""
        self.file.write(json.dumps(row).encode() + b'\n')
        self.file.flush()

    def __enter__(self) -> 'Journal':
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a bar on the terminal; yield a function that advances it by a number of items."""
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn(), TextColumn('left:'), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda items: progress.advance(task, items)
