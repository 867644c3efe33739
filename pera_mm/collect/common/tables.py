"""The plain files between the steps: CSV tables, and journals that survive a kill."""

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

log = logging.getLogger('pera_mm.collect')


def read_table(path: Path, columns: Sequence[str], written_by: str) -> pd.DataFrame:
    """Read a table that another step, or the user, has written.

    Args:
        path: A CSV file with a header.
        columns: Those that must be there; others are kept.
        written_by: What writes this file, for the message.

    Returns:
        lon, lat and gsd as numbers, everything else as it is written: the id '007' is no number,
        and the country code 'NA' no missing value.

    Raises:
        ValueError: if the file is missing, empty or no CSV, lacks a column or a value, has no
            number where one must be, or two rows have the same id.
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
    said = f'{text!r}, which is no number' if text else 'empty'
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
    """Rows appended as they come to be, one JSON object a line; a kill loses at most the last.

    The line that a kill cut short is removed when the journal is opened again. What a loss of power
    has damaged further up is skipped, with a warning. Iterating gives all rows anew from the file:
    in memory they would take 2 kB each, and there are millions.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, 'ab+')
        self._cut_half_line()

    def _cut_half_line(self) -> None:
        end = last = self.file.seek(0, os.SEEK_END)
        while last > 0:
            start = max(last - 4096, 0)
            self.file.seek(start)
            if (found := self.file.read(last - start).rfind(b'\n')) >= 0:
                last = start + found + 1
                break
            last = start
        if last < end:
            self.file.truncate(last)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        damaged = 0
        # As text: json would look for the encoding of every line.
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
        """Append a row, handed to the operating system before this returns."""
        self.file.write(json.dumps(row).encode() + b'\n')
        self.file.flush()

    def __enter__(self) -> 'Journal':
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal; gives a function that moves it on by a number of items."""
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn(), TextColumn('left:'), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda items: progress.advance(task, items)
