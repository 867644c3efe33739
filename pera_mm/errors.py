"""The errors that users read."""

import errno
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An error that a user can correct; its text is one sentence: what is wrong, where, what to do.

    :func:`~pera_mm.launch.errors_in_one_sentence` prints it without a traceback. An error of any
    other class is a bug somewhere and keeps its traceback.
    """


class RunError(UserError, RuntimeError):
    """An error of a run that cannot continue because of its data or its settings."""


class NotFiniteError(RunError, FloatingPointError):
    """An error of a run whose loss, gradients or weights are inf or nan."""


class FileError(UserError, OSError):
    """An error of a file that cannot be read or written."""


class MissingFileError(UserError, FileNotFoundError):
    """An error of a file that does not exist."""


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Name the package whose import fails inside, and the command that installs it.

    Args:
        extra: of setup.py, that has the package.
        what: cannot be done without it; the subject of the sentence.

    Raises:
        UserError: if a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f'{what} needs the package {error.name}, which is not installed: '
                        f'pip install -e .[{extra}].') from None


def about_open_files() -> str:
    """Say in one sentence that this process has as many files open as it may, and what to do."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (f'a process has the {limit} files open that it may have: allow more (ulimit -n 4096 in '
            'the shell that trains, or docker run --ulimit nofile=4096), or use fewer workers '
            '(train_dataloader.num_workers).')


def check_open_files(error: BaseException) -> None:
    """Raise if a file could not be opened because of the number of open ones: not its fault.

    Raises:
        RunError: if so.
    """
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise RunError(about_open_files()) from error


def printable(text: str | os.PathLike) -> str:
    r"""Return the text with ``\xNN`` for every byte that is not UTF-8 and every control character.

    Python keeps bytes of a name that are not UTF-8 as surrogates, which no stream can write: a log
    handler drops the whole message.
    """
    return re.sub('[\x00-\x1f\x7f-\x9f\ud800-\udfff]', _escape, os.fspath(text))


def _escape(match: re.Match) -> str:
    code = ord(match[0])
    byte = code - 0xdc00 if 0xdc80 <= code <= 0xdcff else code
    return f'\\x{byte:02x}' if byte < 0x100 else f'\\u{byte:04x}'
