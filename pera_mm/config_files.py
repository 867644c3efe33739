"""The reading of config files, with one sentence about what is wrong in one."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from traceback import walk_tb
from typing import IO, Any

from mmengine.config import config as mmengine_config

from pera_mm.errors import UserError

READERS = ('_file2dict', '_parse_lazy_import', '_is_lazy_import')  # functions of MMEngine's Config


@contextmanager
def errors_of_files(path: str) -> Iterator[None]:
    """Turn what is wrong in a config file, or in one below ``_base_``, into one sentence.

    A byte-order mark is read over, as Python does.

    Args:
        path: of the config that MMEngine reads inside.

    Raises:
        ValueError: on a mistake in a file, with the file and the line.
    """
    vars(mmengine_config)['open'] = _open
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:
        files = _files(error)
        if not files:  # not from a config, but from a module that it imports
            raise
        raise UserError(_sentence(error, files)) from error
    finally:
        del vars(mmengine_config)['open']


def _open(file: Any, mode: str = 'r', encoding: str | None = None) -> IO:
    if mode == 'r' and encoding == 'utf-8':
        encoding = 'utf-8-sig'
    return open(file, mode, encoding=encoding)


def _files(error: BaseException) -> list[str]:
    """Return the files that were being read, each named by the one before it."""
    files = [str(Path(frame.f_locals['filename']).resolve())
             for frame, _ in walk_tb(error.__traceback__)
             if frame.f_code.co_name in READERS and 'filename' in frame.f_locals]
    return [file for file, _ in groupby(files)]  # two functions read each


def _sentence(error: Exception, files: list[str]) -> str:
    file = files[-1]
    if isinstance(error, RecursionError):
        circle = [*dict.fromkeys(files)]
        return f'the bases of {files[0]} are a circle ({", ".join(circle)}): correct _base_.'
    if not Path(file).is_file():
        return f'{files[-2]} names the base {file}, which does not exist: correct _base_.'
    if Path(file).suffix not in ('.py', '.yaml', '.yml', '.json'):
        return f'{file} cannot be read as a config: give a .py, .yaml or .json file.'
    if isinstance(error, UnicodeDecodeError):
        return f'{file} cannot be read as a config: it is not a text in UTF-8; save it in UTF-8.'
    lines = [line for frame, line in walk_tb(error.__traceback__)
             if frame.f_code.co_filename == file]
    reason = str(error)
    if isinstance(error, SyntaxError):
        error = _syntax_error(file, error)
        reason, lines = error.msg, [error.lineno or 1]
    where = f' in line {lines[-1]}' if lines else ''
    return (f'{file} cannot be read as a config: {type(error).__name__}: '
            f'{" ".join(reason.split())}{where}; correct it.')


def _syntax_error(file: str, error: SyntaxError) -> SyntaxError:
    """Return Python's own error; MMEngine's has no line."""
    try:
        ast.parse(Path(file).read_text('utf-8-sig'))
    except SyntaxError as own:
        return own
    return error
