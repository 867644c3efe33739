"""The values of a command line: numbers in their range, and ``--cfg-options KEY=VALUE``.

A text of ``--cfg-options`` stays as it was typed. MMEngine's ``DictAction`` drops all blanks of a
value and splits it at commas, so that ``source='/data/my tiles'`` becomes ``/data/mytiles``. The
commands of tools/ take their options by :func:`add_cfg_options` instead. The train.py of a toolbox
(``mim train``) parses its command line before it reads the config, and with it ``pera_mm``.
:func:`activate` sets such values right when they are written into the config.
"""

import argparse
import ast
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from os.path import expanduser
from typing import Any

import torch
from mmengine.config import Config, DictAction

QUOTES = 'correct it, and put quotes around a text that begins with a bracket'
OPTION = '--cfg-options'
PAIRS = {'(': ')', '[': ']', '{': '}'}
WORDS = {'None': None, 'inf': float('inf'), '-inf': -float('inf'), 'nan': float('nan'),
         'true': True, 'True': True, 'TRUE': True, 'false': False, 'False': False, 'FALSE': False}
INTEGER = re.compile(r'[+-]?(0|[1-9]\d*)')  # 007 is a text
FLOAT = re.compile(r'[+-]?(\d+\.\d*|\.\d+|\d+(?=e))(e[+-]?\d+)?', re.IGNORECASE)


def whole_number(least: int) -> Callable[[str], int]:
    """Make the ``type`` of an argument that is a whole number of at least ``least``."""
    def parse(text: str) -> int:
        if not INTEGER.fullmatch(text) or int(text) < least:
            raise argparse.ArgumentTypeError(
                f'expected a whole number of at least {least}, got {text!r}')
        return int(text)

    return parse


def positive_number(text: str) -> float:
    """Parse an argument that is a finite number above 0."""
    number = _float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f'expected a number above 0, got {text!r}')
    return number


def number_of_at_least(least: float) -> Callable[[str], float]:
    """Make the ``type`` of an argument that is a finite number of at least ``least``."""
    def parse(text: str) -> float:
        number = _float(text)
        if not least <= number < math.inf:
            raise argparse.ArgumentTypeError(
                f'expected a number of at least {least:g}, got {text!r}')
        return number

    return parse


def _float(text: str) -> float:
    """Return a number; NaN, which lies in no range, for what is not one."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def add_device(parser: argparse.ArgumentParser) -> None:
    """Give a command the option ``--device``: by default the first GPU, or the CPU."""
    parser.add_argument('--device', type=device, default='cuda' if torch.cuda.is_available()
                        else 'cpu', help='(default here: %(default)s)')


def device(text: str) -> str:
    """Parse an argument that is a device of this machine, like ``cpu`` or ``cuda:1``."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # the latter without CUDA in torch
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f'{text!r} cannot be used here ({reason})') from None
    return text


class CollectOptions(argparse.Action):
    """Gather the pairs of :func:`key_and_value` in a dict."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: Any, option_string: str | None = None) -> None:
        """Add the pairs to those of an earlier ``--cfg-options``."""
        earlier = getattr(namespace, self.dest, None) or {}
        setattr(namespace, self.dest, {**earlier, **dict(values)})


def add_cfg_options(parser: argparse.ArgumentParser,
                    description: str = 'change keys of the config') -> None:
    """Give a command the option ``--cfg-options KEY=VALUE ...``, parsed into a dict."""
    parser.add_argument(OPTION, metavar='KEY=VALUE', nargs='+', type=key_and_value,
                        action=CollectOptions, default={}, help=description)


def key_and_value(text: str) -> tuple[str, Any]:
    """Split one item of ``--cfg-options``; argparse prints what is wrong with it."""
    key, equals, value = text.partition('=')
    if not key or not equals:
        raise argparse.ArgumentTypeError(f'expected KEY=VALUE, got {text!r}')
    try:
        return key, value_of(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{key}: {error}') from None


def value_of(text: str) -> Any:
    """Read the value of an option.

    Numbers, booleans, None and quoted texts are what they are in Python, and so are lists, tuples
    and dicts in their brackets. Words of a list or tuple need no quotes: ``[a, b]``. Numbers with
    commas between them are a list, too: ``1,2,3``. Everything else is a text and stays as it is,
    with its blanks and commas. A ``~`` at its start becomes the home folder.

    Raises:
        ValueError: if a value begins with a bracket that is not closed, or with that of a dict
            and is none.
    """
    bare = text.strip()
    if _is_bracketed(bare):
        return _in_brackets(bare)
    try:
        return _literal(bare)
    except ValueError:
        pass
    try:
        if ',' in bare:
            return [_in_brackets(part) if _is_bracketed(part) else _literal(part)
                    for part in _parts(bare)]
    except ValueError:
        pass
    return expanduser(text)


def _literal(text: str) -> Any:
    """Read a number, a boolean, None or a quoted text; raise a ValueError for any other text."""
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    if text[:1] in ('"', "'"):
        return _python(text, str)
    raise ValueError(text)


def _python(text: str, kind: type) -> Any:
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise ValueError(f'{text} is not a {kind.__name__} as Python writes it; {QUOTES}')
    return value


def _in_brackets(text: str) -> Any:
    if text[0] == '{':
        return _python(text, dict)
    values = [value_of(part) for part in _parts(text[1:-1])]
    return tuple(values) if text[0] == '(' else values


def _is_bracketed(text: str) -> bool:
    """Whether the bracket at the start is closed at the end; raise a ValueError if one never is."""
    return text[:1] in PAIRS and _depths(text).index(0) == len(text) - 1


def _parts(text: str) -> list[str]:
    """Split at the commas that are neither in brackets nor in quotes; the last may end the text."""
    commas = [index for index, (char, depth) in enumerate(zip(text, _depths(text)))
              if char == ',' and depth == 0]
    parts = [text[start + 1:end].strip()
             for start, end in zip([-1, *commas], [*commas, len(text)])]
    return parts if parts[-1] else parts[:-1]


def _depths(text: str) -> list[int]:
    """Count the brackets that are open after each character; in quotes it is -1."""
    depths, waiting, quote, before = [], [], '', ''
    for char in text:
        if quote:
            quote = '' if char == quote and before != '\\' else quote
            depths.append(-1)
        elif char in '\'"' and before in ('', ',', ':', *PAIRS):  # not the one of a name: O'Brien
            quote = char
            depths.append(-1)
        else:
            if char in PAIRS:
                waiting.append(PAIRS[char])
            elif char in PAIRS.values() and (not waiting or waiting.pop() != char):
                break
            depths.append(len(waiting))
        before = before if char == ' ' else char
    if waiting or len(depths) < len(text):
        raise ValueError(f'the brackets of {text} do not match; {QUOTES}')
    return depths


def activate() -> None:
    """Let MMEngine read options as here, also where they were parsed before this import."""
    if getattr(DictAction, '_reads_texts', False):
        return
    mangled = {}
    for text in _typed(sys.argv[1:]):
        key, _, value = text.partition('=')
        try:
            mangled[key] = DictAction._parse_iterable(value), value_of(value)
        except (AssertionError, ValueError):  # reported by the parser
            continue
    if mangled:
        merge = Config.merge_from_dict

        @wraps(merge)
        def merge_from_dict(self: Config, options: dict, *args: Any, **kwargs: Any) -> None:
            merge(self, {key: mangled[key][1] if key in mangled and value == mangled[key][0]
                         else value for key, value in options.items()}, *args, **kwargs)

        Config.merge_from_dict = merge_from_dict
    DictAction._parse_iterable = staticmethod(value_of)
    DictAction._reads_texts = True


def _typed(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the items after each ``--cfg-options`` of a command line."""
    inside = False
    for argument in arguments:
        if argument.startswith('--'):
            inside = argument.partition('=')[0] == OPTION
            argument = argument.partition('=')[2] if inside else ''
        if inside and '=' in argument:
            yield argument
