"""A pickle read as data: nothing that it names is imported, looked up or called.

A pickle is a program. The reader here runs the few instructions that ``torch.save`` writes. It
records every name, call and stored tensor (:class:`Name`, :class:`Call`, :class:`Stored`).
:mod:`pera_mm.weights.objects` decides what becomes of these records.

Not ``torch.load(weights_only=True)``: it returns functions of torch as values, lets a file replace
the methods of an OrderedDict and of MMEngine's HistoryBuffer class, spends hours on nested tuples
as keys of a dict, and does not read the pickle protocols 4 and 5.
"""

import pickle
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, NamedTuple

MAX_STEPS = 2_000_000  # instructions; ViT-G with its optimizer has 75,000
CHUNK = 1 << 20  # bytes
MAX_KEY = 2**60  # Python's hash of a number is itself below 2**61 - 1


class Refused(Exception):
    """An error about a pickle that asks for something other than plain data; the text says what."""


class Misfit(Exception):
    """An error about a damaged pickle or record; the text says what is wrong."""


class Name:
    """A name that a pickle asks for, such as ``torch._utils._rebuild_tensor_v2``."""

    __slots__ = ('text',)

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text.rpartition('.')[2]


class Call:
    """An object as a pickle describes it: a name, its arguments, items and state."""

    __slots__ = ('args', 'has_state', 'is_new', 'items', 'name', 'state')

    def __init__(self, name: Name, args: tuple, is_new: bool) -> None:
        self.name, self.args = name, args
        self.is_new = is_new  # made by __new__ alone
        self.items: list[tuple[Any, Any]] = []
        self.state: Any = None
        self.has_state = False

    def __str__(self) -> str:
        return f'{self.name}(…)'


class Stored(NamedTuple):
    """The numbers of a tensor, which are elsewhere in the file."""

    type_name: str  # torch.FloatStorage
    key: str
    location: str
    number: int  # elements of the type


def read_pickle(file: BinaryIO, admitted: Callable[[str], bool],
                max_bytes: int) -> tuple[Any, dict[str, Stored]]:
    """Read one pickle.

    Args:
        file: Read up to the end of the pickle.
        admitted: Whether a full name may be asked for.
        max_bytes: The size of the pickle, at most.

    Returns:
        The content: numbers, texts, bytes, None, lists, tuples, dicts, sets and records; and the
        stored tensors in it, by key.

    Raises:
        Refused: If the pickle asks for a name that is not admitted, or for a step that plain data
            does not need.
        Misfit: If it is damaged or too large, or is not a pickle.
    """
    reader = _Reader(_Bounded(file, max_bytes), admitted)
    try:
        return reader.load(), reader.stored
    except (Refused, Misfit):
        raise
    except Exception as error:  # Python's steps raise anything on a damaged pickle
        raise Misfit(f'{type(error).__name__}: {error}') from None


class _Bounded:
    """A file that ends after ``max_bytes``; a false length does not reserve memory."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self.file, self.left = file, max_bytes

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise Misfit('it ends too early')
        parts, wanted = [], size
        while wanted:
            part = self.file.read(min(wanted, CHUNK))
            if not part:
                raise Misfit('it ends too early')
            parts.append(part)
            wanted -= len(part)
        self.left -= size
        return parts[0] if len(parts) == 1 else b''.join(parts)

    def readline(self) -> bytes:
        line = self.file.readline(min(self.left, CHUNK))
        self.left -= len(line)
        if not line.endswith(b'\n'):
            raise Misfit('it ends too early')
        return line


# The names of their constants in pickle.py. torch.save never writes the others: INST, OBJ,
# NEWOBJ_EX, EXT*, PERSID, out-of-band buffers, and those that edit the stack.
_STEPS = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES
    SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS
    EMPTY_DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET GET BINGET LONG_BINGET PUT BINPUT
    LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID""".split()


class _Reader(pickle._Unpickler):
    """The unpickler of pickle.py, with other steps for names, calls and containers."""

    def __init__(self, file: _Bounded, admitted: Callable[[str], bool]) -> None:
        super().__init__(file, encoding='utf-8')
        self.read, self.readline = file.read, file.readline
        self.admitted = admitted
        self.stored: dict[str, Stored] = {}

    pop_mark: Callable[[], list]  # defined by Python's unpickler

    def load(self) -> Any:
        """Run the steps, one byte each."""
        self.metastack: list[list] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.proto = 0
        for _ in range(MAX_STEPS):
            step = self.read(1)[0]
            if step not in _DISPATCH:
                raise Refused(f'the pickle instruction {chr(step)!r}')
            try:
                _DISPATCH[step](self)
            except pickle._Stop as stop:  # type: ignore[attr-defined]
                return stop.value
        raise Misfit(f'it has more than {MAX_STEPS:,} instructions')

    def load_frame(self) -> None:
        """Skip the size of a frame: nothing is read ahead."""
        self.read(8)

    def find_class(self, module: str, name: str) -> Name:
        """Record a name."""
        full_name = f'{module}.{name}'.replace('__builtin__.', 'builtins.')
        if not self.admitted(full_name):
            raise Refused(full_name)
        return Name(full_name)

    def load_reduce(self) -> None:
        """Record a call."""
        self._record_call(is_new=False)

    def load_newobj(self) -> None:
        """Record ``cls.__new__(cls, *args)``."""
        self._record_call(is_new=True)

    def _record_call(self, is_new: bool) -> None:
        args = self.stack.pop()
        name = self.stack.pop()
        if not isinstance(name, Name):
            raise Refused(f'a call of {_kind(name)}')
        if not isinstance(args, tuple):
            raise Misfit('the arguments of a call are not a tuple')
        self.append(Call(name, args, is_new))

    def load_build(self) -> None:
        """Record the state of an object; a class or a function has none."""
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, Call):
            raise Refused(f'new attributes for {_kind(target)}')
        if target.has_state:
            raise Misfit('an object has two states')
        target.state, target.has_state = state, True

    def load_append(self) -> None:
        """Append one item to a list."""
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        """Append items to a list."""
        self._extend(self.pop_mark())

    def _extend(self, items: list) -> None:
        if type(self.stack[-1]) is not list:
            raise Misfit(f'appending to {_kind(self.stack[-1])}')
        self.stack[-1].extend(items)

    def load_setitem(self) -> None:
        """Set one item of a dict."""
        value = self.stack.pop()
        self._set_items([self.stack.pop(), value])

    def load_setitems(self) -> None:
        """Set items of a dict."""
        self._set_items(self.pop_mark())

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        pairs = zip(_checked_keys(items[::2]), items[1::2], strict=True)
        if type(target) is dict:
            target.update(pairs)
        elif isinstance(target, Call):  # an OrderedDict
            target.items.extend(pairs)
        else:
            raise Misfit(f'items of {_kind(target)}')

    def load_additems(self) -> None:
        """Add items to a set."""
        items = _checked_keys(self.pop_mark())
        if type(self.stack[-1]) is not set:
            raise Misfit(f'items of {_kind(self.stack[-1])}')
        self.stack[-1].update(items)

    def load_frozenset(self) -> None:
        """Make a frozen set."""
        self.append(frozenset(_checked_keys(self.pop_mark())))

    def persistent_load(self, pid: Any) -> Stored:
        """Record the numbers of a tensor: ``('storage', type, key, location, count)``."""
        match pid:
            case ('storage', Name() as name, str(key), str(location), int(number)):
                pass
            case ('storage', Name() as name, str(key), str(location), int(number), None):
                pass  # the older format
            case _:
                raise Refused('a persistent object that is not a storage')
        if number < 0 or isinstance(number, bool):
            raise Misfit(f'storage {key!r} has {number} elements')
        stored = Stored(name.text, key, location, number)
        if self.stored.setdefault(key, stored) != stored:
            raise Misfit(f'storage {key!r} is described in two ways')
        return stored


def _dispatch() -> dict[int, Callable[[_Reader], None]]:
    """Map the steps to the methods of :class:`_Reader`."""
    steps = {}
    for constant in _STEPS:
        step = getattr(pickle, constant)[0]
        steps[step] = getattr(_Reader, pickle._Unpickler.dispatch[step].__name__)
    return steps


_DISPATCH = _dispatch()


def checked_key(key: Any) -> Any:
    """Check a key of a dict or an item of a set: it must be plain, so that its hash is fast.

    Raises:
        Refused: If it is anything but text, bytes, None or a number. Many tuples, or numbers that
            are larger than their hash, may share one hash: a dict of them takes hours.
    """
    if key is None or type(key) in (bool, str, bytes):
        return key
    if type(key) in (int, float) and (key != key or abs(key) < MAX_KEY):
        return key
    raise Refused(f'{_kind(key)} as a key')


def _checked_keys(keys: Iterable[Any]) -> list[Any]:
    return [checked_key(key) for key in keys]


def _kind(value: Any) -> str:
    if isinstance(value, Name):
        return value.text
    return str(value) if isinstance(value, Call) else f'an object of type {type(value).__name__}'
