"""Text lists as people and other programs write them: names, or paths with labels.

A list is UTF-8 or UTF-16, with any line ends. Blank lines and comments (``#``) are left out. A line
that names no file as it stands may have quotes, backslashes or blanks around it. Bytes that are not
UTF-8 are read as Python reads them in names of files.
"""

import codecs
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pera_mm.datasets.reading import SUFFIXES
from pera_mm.errors import UserError, printable

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as some programs of Windows write it
SEPARATORS = '\t,; '  # between a path and its label, the surest first
IMAGE = '|'.join(re.escape(suffix.decode()) for suffix in SUFFIXES)


class Line(NamedTuple):
    """A line of a list; the first has the number 1."""

    number: int
    text: str


class Names(NamedTuple):
    """The names of a list, in its order, and the lines that name nothing known."""

    known: list[str]
    unknown: list[Line]


class Labelled(NamedTuple):
    """A path, the index of its class, and the number of its line."""

    path: str
    label: int
    number: int


def read_lines(file: str) -> list[Line]:
    """Read the lines that are not blank.

    Raises:
        ValueError: if the file cannot be read, is not text, or has no line.
    """
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f'the list {printable(file)} cannot be read ({error.strerror}): give a '
                        'text file.') from None
    if data.startswith(UTF_16):
        text = data.decode('utf-16', 'replace')
    elif b'\0' in data:
        raise UserError(f'{printable(file)} is not a text list: it has zero bytes; save it as '
                        'UTF-8.')
    else:
        text = data.decode('utf-8-sig', 'surrogateescape')
    lines = [Line(number, line) for number, line in enumerate(re.split('\r\n|\n|\r', text), 1)
             if line.strip()]
    if not lines:
        raise UserError(_empty(file))
    return lines


def _empty(file: str) -> str:
    return f'the list {printable(file)} is empty: write the name of an image on every line.'


def unquoted(text: str) -> str:
    """Return a path without blanks and quotes around it, and with slashes."""
    return text.strip().strip('"\'').strip().replace('\\', '/')


def meanings(line: str) -> Iterator[str]:
    """Yield the paths that a line may mean: without blanks, quotes, backslashes and columns."""
    for path in (line, line.rpartition(' ')[0], line.partition(' ')[0], line.partition('\t')[0],
                 line.partition(',')[0]):
        yield unquoted(path)


def read_names(file: str, known: Container[str], named: Callable[[str], Iterable[str]]) -> Names:
    """Read a list of names.

    Args:
        file: The list.
        known: The names that a line may have.
        named: The names that a line with a path or a suffix may mean.

    Raises:
        ValueError: as :func:`read_lines`.
    """
    found, unknown = [], []
    for line in read_lines(file):
        path = unquoted(line.text)
        spellings = chain((line.text, path), named(path))
        name = next((name for name in spellings if name in known), None)
        if name is not None:
            found.append(name)
        elif not path.startswith('#'):
            unknown.append(line)
    if not found and not unknown:
        raise UserError(_empty(file))
    return Names(found, unknown)


def read_labels(file: str, folder: str, classes: Sequence[str] | None) -> list[Labelled]:
    """Read a list of paths with labels: the number of a class from 0, or its name.

    A blank, a tab, a comma or a semicolon is between them. A first line of other words is a header.

    Args:
        file: The list.
        folder: The folder that the paths are relative to; a file need not exist.
        classes: The names of the classes, in order; None: unknown.

    Raises:
        ValueError: as :func:`read_lines`; if a line has no label or one that is not a class, or
            two lines give one path different labels. The error names the line.
    """
    spaced = [name for name in classes or () if set(name) & set(SEPARATORS)]
    labels = {name: index for index, name in enumerate(classes or ())}
    found: list[Labelled] = []
    wrong: list[str] = []
    first: dict[str, Labelled] = {}
    for index, line in enumerate(read_lines(file)):
        best = _best_split(line, folder, spaced, labels)
        is_found = best is not None and os.path.exists(best.path)
        if not is_found and line.text.lstrip().startswith('#'):
            continue
        if fault := _fault(line, folder, best, is_found, classes):
            if index or re.search(IMAGE, line.text.lower()):  # otherwise a header
                wrong.append(f'line {line.number} {fault}')
            continue
        assert best is not None  # otherwise there is a fault
        before = first.setdefault(os.path.normpath(best.path), best)
        if before.label != best.label:
            wrong.append(f'line {line.number} gives {printable(best.path)} the label {best.label}, '
                         f'line {before.number} the label {before.label}')
        found.append(best)
    if wrong:
        more = f' (lines with a fault: {len(wrong)})' if len(wrong) > 1 else ''
        raise UserError(f'{printable(file)}: {wrong[0]}{more}; a line has the path of an image, a '
                        'blank and the number of its class from 0, or the name of a class in '
                        'metainfo=dict(classes=(...)).')
    if not found:
        raise UserError(_empty(file))
    return found


def _best_split(line: Line, folder: str, spaced: Sequence[str],
                labels: dict[str, int]) -> Labelled | None:
    """Split a line where a label follows, best behind a file that exists."""
    best = None
    for path, text in _splits(line.text, spaced):
        label = _label(text, labels)
        if label is None:
            continue
        for spelled in (path, unquoted(path)):
            found = Labelled(os.path.join(folder, spelled), label, line.number)
            if os.path.exists(found.path):
                return found
        best = best or found
    return best


def _splits(text: str, spaced: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield a path and a label for each separator; ``spaced`` are names with separators."""
    text = text.strip()
    for name in spaced:
        for written in (name, f'"{name}"', f"'{name}'"):
            path = text.removesuffix(written)
            if path != text and path.endswith(tuple(SEPARATORS)):
                yield path.rstrip(SEPARATORS), name
    for separator in SEPARATORS:
        path, found, label = text.rpartition(separator)
        if found:
            yield path, unquoted(label)


def _label(text: str, labels: dict[str, int]) -> int | None:
    """Return the index of a class; None if the text is not a class or can be two."""
    number = int(found[1]) if (found := re.fullmatch(r'\+?([0-9]+)(\.0*)?', text)) else None
    named = labels.get(text)
    if number is not None and named is not None and number != named:
        return None
    return number if named is None else named


def _fault(line: Line, folder: str, best: Labelled | None, is_found: bool,
           classes: Sequence[str] | None) -> str | None:
    """Say why a line is not a path with the label of a class; None if it is."""
    if best is not None:
        if classes is not None and best.label >= len(classes):
            return f'has the label {best.label}, and there are {len(classes)} classes'
        if not is_found and any(os.path.isfile(os.path.join(folder, path))
                                for path in meanings(line.text)):
            return f"('{printable(line.text.strip())}') has more than a path and a label"
        return None
    splits = [label for _, label in _splits(line.text, ())]
    if os.path.exists(os.path.join(folder, unquoted(line.text))) or not splits:
        return f"('{printable(line.text.strip())}') has no label"
    known = 'the names of the classes are not set' if classes is None else (
        f'the classes are {", ".join(classes[:20])}')
    return f"has the label '{printable(splits[0])}', which is not a class from 0 on ({known})"


def is_not_utf_8(text: str) -> bool:
    """Tell whether a text, as :func:`read_lines` gives it, has bytes that are not UTF-8."""
    return any('\ud800' <= letter <= '\udfff' for letter in text)
