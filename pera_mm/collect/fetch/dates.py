"""Dates of imagery, as servers send them and as the tables hold them.

A table may be opened by a program that takes ``=`` for the beginning of a formula. Therefore only
characters of dates are kept of what a server sends.
"""

import re
from collections.abc import Iterable
from typing import Any

SERVER_DATE = re.compile(r'[A-Za-z0-9][A-Za-z0-9 ,:/.+-]{0,63}')
MAX_CHARACTERS = 256  # of the dates of one image


def one_line(value: Any) -> str:
    """Convert a date of the config to text; YAML and Python read 2021 as a number."""
    return ' '.join(str(value).split())


def parse_date(text: str) -> str:
    """Return the date that a server sent; '' where the text is not a date.

    Servers send any form (``2020-05-17``, ``Sun, 17 May 2020 10:00:00 GMT``, Bing
    ``5/17/2020-6/2/2020``), so the characters decide.
    """
    date = text.strip()
    return date if SERVER_DATE.fullmatch(date) else ''


def join_dates(dates: Iterable[str]) -> str:
    """Join the dates of an image's tiles, each once and sorted, up to 256 characters."""
    joined = ''
    for date in sorted(set(filter(None, dates))):
        if len(joined) + 1 + len(date) > MAX_CHARACTERS and joined:
            break
        joined = f'{joined} {date}'.strip()
    return joined


def safe_dates(dates: Any) -> str:
    """Return an image's dates from a journal, which may be older than :func:`parse_date`.

    Returns:
        '' for a value that is not a text, is too long, or could begin a formula.
    """
    is_safe = (isinstance(dates, str) and len(dates) <= MAX_CHARACTERS and dates.isprintable()
               and not dates.startswith(('=', '+', '-', '@')))
    return dates if is_safe else ''
