"""The plain files between the steps: CSV tables, and journals that survive a kill."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pera_mm.datasets.writing import write_whole

POINT = ('id', 'lon', 'lat', 'class', 'continent', 'gsd')
TILE = ('id', 'lon', 'lat', 'class', 'continent', 'gsd', 'zoom', 'source', 'date', 'file', 'sha256')
TEXTS = ('id', 'class', 'continent', 'source', 'date', 'file', 'sha256', 'reason')

log = logging.getLogger('pera_mm.collect')


def read_table(path: Path, columns: Sequence[str], written_by: str) -> pd.DataFrame:
    """Read a table that another step, or the user, has written.

    Args:
        path: A CSV file with a header.
        columns: Those that must be there; others are kept as they are.
        written_by: What writes this file, for the message.

    Raises:
        ValueError: if the file is missing, empty or no CSV, lacks a column or a value, or two rows
            have the same id.
    """
    if not path.is_file():
        raise ValueError(f'{path} does not exist: it is written by {written_by}.')
    try:
        # Texts as they are: the id '007' is no number, and the country code 'NA' no missing value.
        table = pd.read_csv(path, dtype={name: str for name in TEXTS}, keep_default_na=False,
                            na_values={name: [''] for name in ('lon', 'lat', 'gsd', 'zoom')},
                            float_precision='round_trip')  # written again, the same digits
    except (ValueError, UnicodeDecodeError) as error:  # pandas' errors are ValueErrors
        raise ValueError(f'{path} is not a CSV table: {" ".join(str(error).split())}') from None
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f'{path} has no column {missing[0]!r}; it needs {", ".join(columns)}.')
    for name in ('id', 'lon', 'lat', 'gsd'):
        if name in columns and (table[name].isna() | (table[name] == '')).any():
            row = int((table[name].isna() | (table[name] == '')).argmax())
            raise ValueError(f'{path}, line {row + 2}: {name} is empty.')
    if 'id' in columns and table['id'].duplicated().any():
        twice = table['id'][table['id'].duplicated()].iloc[0]
        raise ValueError(f'{path} has the id {twice!r} twice.')
    return table


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV table, whole or not at all; the same rows give the same bytes."""
    write_whole(path, table.to_csv(index=False, lineterminator='\n').encode())


class Journal:
    """Rows appended as they come to be, one JSON object a line; a kill loses at most the last.

    The line that a kill cut short is removed when the journal is opened again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = self._read() if path.exists() else []
        self.file = open(path, 'a', encoding='utf-8')

    def _read(self) -> list[dict[str, Any]]:
        data = self.path.read_bytes()
        whole = data[:data.rfind(b'\n') + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        return [json.loads(line) for line in whole.splitlines()]

    def add(self, row: dict[str, Any]) -> None:
        """Append a row, handed to the operating system before this returns."""
        self.file.write(json.dumps(row) + '\n')
        self.file.flush()
        self.rows.append(row)

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
