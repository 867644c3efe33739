"""The objects that the records of a pickle become: tensors, arrays and a few plain ones.

One function here builds each kind of object in a checkpoint of torch, MMEngine or the PerA
authors, from plain parts that it checks. The result has no function, no class, and no object whose
behavior a file could change. Objects that the user has admitted with
``torch.serialization.add_safe_globals`` are the exception: they are built as pickle builds them.
"""

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from pera_mm.weights.pickles import Call, Misfit, Name, Refused, Stored, checked_key

MAX_DEPTH = 100  # of containers within each other
MAX_OBJECTS = 20_000_000  # a shared object counts at each of its places
MAX_DIMENSIONS = 32
MAX_NUMBER = 2**63  # exclusive; of sizes and strides
MAX_REPEATED = 1 << 30  # bytes; of a tensor that repeats the numbers of its storage

STORAGE_TYPES: dict[str, torch.dtype] = {
    f'torch.{name}': dtype
    for name, dtype in torch.storage._storage_type_to_dtype_map().items()
} | {'torch.storage.UntypedStorage': torch.uint8}
DTYPES: dict[str, torch.dtype] = {str(value): value for value in vars(torch).values()
                                  if isinstance(value, torch.dtype)}
GETATTR, LAYOUT = 'builtins.getattr', 'torch.serialization._get_layout'
INNER_NAMES = (GETATTR, LAYOUT, 'numpy.dtype', 'numpy.ndarray')  # only inside other objects
NUMERIC = re.compile(r'b1|[iu][1248]|f[248]|c(8|16)')  # NumPy's names of plain numbers

# Methods that MMEngine writes into its dicts. They are left out: its objects have their own.
METHODS = {
    'mmengine.logging.history_buffer.HistoryBuffer': ('min', 'max', 'mean', 'current'),
    'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler': (
        '_annealing_cos', '_annealing_linear'),
}

Storages = Mapping[str, torch.UntypedStorage]


def is_admitted(full_name: str) -> bool:
    """Whether a checkpoint may ask for this name."""
    return any(full_name in names for names in (
        BUILDERS, METHODS, DTYPES, STORAGE_TYPES, INNER_NAMES)) or full_name in trusted()


def trusted() -> dict[str, Any]:
    """Look up the objects that the user has admitted, without those that torch itself admits."""
    pairs = [item if isinstance(item, tuple) else (item, f'{item.__module__}.{item.__qualname__}')
             for item in torch.serialization.get_safe_globals()]
    return {name: value for value, name in pairs if not name.startswith('torch.')}


def build(tree: Any, storages: Storages) -> Any:
    """Build the object that a pickle describes.

    Args:
        tree: What :func:`~pera_mm.weights.pickles.read_pickle` returned.
        storages: The numbers of its tensors, by key.

    Raises:
        Refused: If a part is not plain data.
        Misfit: If parts contradict each other, such as a tensor that reaches beyond its numbers.
    """
    return _Builder(storages).build(tree)


class _Builder:
    """A builder of objects; one that is shared in the file is shared in the result."""

    def __init__(self, storages: Storages) -> None:
        self.storages = storages
        self.trusted = trusted()
        self.built: dict[int, tuple[Any, int]] = {}  # by id: the object, and its size
        self.depth = self.count = 0

    def build(self, part: Any) -> Any:
        """Build a part, and count the objects in it."""
        if part is None or type(part) in (bool, int, float, str, bytes):
            self.count += 1
            return part
        if id(part) not in self.built:
            before, self.count = self.count, 1
            self.built[id(part)] = None, MAX_OBJECTS + 1  # until it is built: it may hold itself
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise Misfit(f'containers are nested more than {MAX_DEPTH} deep')
            self.built[id(part)] = self._build(part), self.count
            self.depth -= 1
            self.count = before
        built, count = self.built[id(part)]
        self.count += count
        if self.count > MAX_OBJECTS:
            raise Misfit(f'it holds itself, or more than {MAX_OBJECTS:,} objects')
        return built

    def _build(self, part: Any) -> Any:
        kind = type(part)
        if kind is Call:
            return self._call(part)
        if kind is Stored:
            return self._bare_storage(part)
        if kind is Name:
            return self._value(part)
        if kind is dict:
            return self.dict_of(part.items())
        if kind in (list, tuple, set, frozenset):
            return kind([self.build(item) for item in part])
        raise Refused(f'an object of type {kind.__name__}')

    def dict_of(self, items: Iterable[tuple[Any, Any]]) -> dict:
        """Build a dict from plain keys and the records of values; methods are left out."""
        return {key: self.build(value) for key, value in items if not _is_method(value)}

    def _value(self, name: Name) -> Any:
        """Return what a name stands for: a dtype, or an object that the user has admitted."""
        if name.text in DTYPES:
            return DTYPES[name.text]
        if name.text in self.trusted:
            return self.trusted[name.text]
        raise Refused(f'{name.text} as a value')

    def _bare_storage(self, stored: Stored) -> torch.UntypedStorage:
        if stored.type_name != 'torch.storage.UntypedStorage':
            raise Refused(f'a bare {stored.type_name}')
        return self.storages[stored.key]

    def _call(self, call: Call) -> Any:
        name = call.name.text
        if name in BUILDERS:
            return BUILDERS[name](self, call)
        if name in self.trusted:
            return self._trusted(self.trusted[name], call)
        raise Refused(f'a call of {name}')

    def _trusted(self, kind: Any, call: Call) -> Any:
        """Build an object that the user has admitted, as pickle does."""
        args = [self.build(arg) for arg in call.args]
        made = kind.__new__(kind, *args) if call.is_new else kind(*args)
        for key, value in self.dict_of(call.items).items():
            made[key] = value
        if call.has_state:
            state = self.build(call.state)
            if hasattr(made, '__setstate__'):
                made.__setstate__(state)
            elif state:
                made.__dict__.update(state)
        return made


def _is_method(value: Any) -> bool:
    """Whether a value is one of the methods of MMEngine."""
    if not (isinstance(value, Call) and value.name.text == GETATTR):
        return False
    match value.args:
        case (Name() as owner, str(name)) if name in METHODS.get(owner.text, ()):
            return True
        case _:
            raise Refused(f'getattr({", ".join(map(_as_text, value.args))})')


def _as_text(arg: Any) -> str:
    return repr(arg) if isinstance(arg, str) else str(arg)


def _plain_args(call: Call, *kinds: type | tuple[type, ...]) -> tuple:
    """Return the arguments of a call without items and state, if they have these types."""
    if call.items or call.has_state:
        raise Refused(f'new attributes for {call}')
    if len(call.args) != len(kinds) or not all(map(_is_instance, call.args, kinds)):
        raise Misfit(f'{call.name.text} has other arguments than it takes')
    return call.args


def _is_instance(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether ``isinstance`` holds, but True and False are not numbers."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


# -- containers -----------------------------------------------------------------------------


def _ordered_dict(builder: _Builder, call: Call) -> OrderedDict:
    """Build an OrderedDict, with the versions of modules that torch keeps in its ``_metadata``."""
    pairs = call.args[0] if len(call.args) == 1 else []
    if len(call.args) > 1 or not isinstance(pairs, list):
        raise Misfit('an OrderedDict has other arguments than it takes')
    if not all(_is_instance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise Misfit('an OrderedDict has items that are not pairs')
    items = [(checked_key(key), value) for key, value in pairs] + call.items
    made = OrderedDict(builder.dict_of(items))
    if call.has_state:
        if not (isinstance(call.state, dict) and set(call.state) <= {'_metadata'}):
            raise Refused('new attributes for an OrderedDict')
        for name, value in call.state.items():
            setattr(made, name, builder.build(value))
    return made


def _counter(builder: _Builder, call: Call) -> Counter:
    counts, = _plain_args(call, dict)  # MultiStepLR's milestones
    return Counter(builder.dict_of(counts.items()))


def _config_dict(builder: _Builder, call: Call) -> ConfigDict:
    values, = _plain_args(call, dict)
    return ConfigDict(builder.dict_of(values.items()))


def _namespace(builder: _Builder, call: Call) -> dict:
    """Return the arguments of a training by DINO or MAE as a dict."""
    if call.args or call.items or not (call.has_state and isinstance(call.state, dict)):
        raise Misfit('a Namespace without its arguments')
    return builder.dict_of(call.state.items())


def _set(kind: type) -> Callable[[_Builder, Call], Any]:
    def make(builder: _Builder, call: Call) -> Any:
        items, = _plain_args(call, list)
        return kind([checked_key(item) for item in items])
    return make


def _no_bytes(builder: _Builder, call: Call) -> bytes:
    """Return no bytes: protocol 2 writes those of an empty array as ``bytes()``."""
    _plain_args(call)
    return b''


def _bytes(builder: _Builder, call: Call) -> bytes:
    """Decode bytes, which protocol 2 writes as text of the first 256 characters."""
    text, encoding = _plain_args(call, str, str)
    if encoding != 'latin1':
        raise Refused(f'_codecs.encode to {encoding!r}')
    return text.encode(encoding)


def _history(builder: _Builder, call: Call) -> HistoryBuffer:
    """Build MMEngine's log of a number from its two arrays; its methods are MMEngine's own."""
    state = call.state if call.has_state else None
    if call.args or call.items or not isinstance(state, dict):
        raise Misfit('a HistoryBuffer without its arrays')
    state = builder.dict_of(state.items())
    known = {'max_length', '_log_history', '_count_history', 'statistics_methods'}
    if set(state) - known or state.pop('statistics_methods', {}):
        raise Refused('new attributes for a HistoryBuffer')
    logs, counts = (state.get(name) for name in ('_log_history', '_count_history'))
    length = state.get('max_length')
    if not (isinstance(logs, np.ndarray) and isinstance(counts, np.ndarray)
            and isinstance(length, int) and length > 0
            and logs.ndim == counts.ndim == 1 and len(logs) == len(counts)):
        raise Misfit('a HistoryBuffer whose arrays do not fit')
    return HistoryBuffer(logs[-length:], counts[-length:], length)


# -- NumPy ----------------------------------------------------------------------------------


def _dtype(part: Any) -> np.dtype:
    """Build a type of plain numbers; of its state, only the order of bytes is used."""
    if not (isinstance(part, Call) and part.name.text == 'numpy.dtype'):
        raise Misfit('a NumPy array or scalar without its type')
    if (len(part.args) != 3 or part.items or not isinstance(part.args[0], str)
            or not NUMERIC.fullmatch(part.args[0])):
        raise Refused('a NumPy type that is not a plain number')
    order = '='
    if part.has_state:
        match part.state:
            case (3 | 4, '<' | '>' | '=' | '|' as order, None, None, None, -1, -1, 0):
                pass
            case _:
                raise Refused('a NumPy type that is not a plain number')
    return np.dtype(f'{order}{part.args[0]}')


def _array(builder: _Builder, call: Call) -> np.ndarray:
    """Build an array from its type, shape and bytes."""
    if not (call.args and isinstance(call.args[0], Name)
            and call.args[0].text == 'numpy.ndarray'):
        raise Refused('a NumPy array of another class')
    match (call.args[1:], call.state):
        case (((0, ), bytes() | Call()), (1, tuple() as shape, dtype, bool(fortran), data)):
            pass
        case _:
            raise Misfit('a NumPy array without its numbers')
    dtype, data = _dtype(dtype), builder.build(data)
    if not (isinstance(data, bytes) and _are_sizes(shape)
            and math.prod(shape) * dtype.itemsize == len(data)):
        raise Misfit('a NumPy array whose shape does not fit its bytes')
    flat = np.frombuffer(data, dtype)
    return flat.reshape(shape, order='F' if fortran else 'C').copy(order='K')


def _scalar(builder: _Builder, call: Call) -> np.generic:
    kind, data = _plain_args(call, Call, (bytes, Call))
    dtype, data = _dtype(kind), builder.build(data)
    if not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise Misfit('a NumPy scalar that does not fit its bytes')
    return np.frombuffer(data, dtype)[0]


# -- torch ----------------------------------------------------------------------------------


def _tensor(builder: _Builder, call: Call) -> Tensor:
    """Build a tensor from ``(storage, offset, size, stride)``, in version 2 also
    ``requires_grad`` and hooks.
    """
    stored, offset, size, stride, *more = _at_least(call, 4)
    requires_grad = more[0] if more else False
    if not isinstance(stored, Stored) or not _is_instance(requires_grad, bool):
        raise Misfit('a tensor without its numbers')
    _check_hooks(more[1:2])
    if any(more[2:]):
        raise Refused('a tensor with metadata')
    return _view(builder, stored, STORAGE_TYPES[stored.type_name], offset, size, stride,
                  requires_grad)


def _tensor_of_new_type(builder: _Builder, call: Call) -> Tensor:
    """Build one of version 3: ``(storage, offset, size, stride, requires_grad, hooks, dtype)``."""
    stored, offset, size, stride, requires_grad, hooks, dtype, *more = _at_least(call, 7)
    if not (isinstance(stored, Stored) and isinstance(dtype, Name) and dtype.text in DTYPES
            and _is_instance(requires_grad, bool)):
        raise Misfit('a tensor without its numbers')
    _check_hooks([hooks])
    if any(more):
        raise Refused('a tensor with metadata')
    return _view(builder, stored, DTYPES[dtype.text], offset, size, stride, requires_grad)


def _at_least(call: Call, number: int) -> tuple:
    if call.items or call.has_state:
        raise Refused(f'new attributes for {call}')
    if len(call.args) < number:
        raise Misfit(f'{call.name.text} has other arguments than it takes')
    return call.args


def _check_hooks(hooks: Any) -> None:
    """Refuse hooks, which are functions; torch.save writes an empty OrderedDict for none."""
    for hook in hooks:
        if hook and not (isinstance(hook, Call) and hook.name.text == 'collections.OrderedDict'
                         and not (any(hook.args) or hook.items or hook.has_state)):
            raise Refused('a tensor with hooks')


def _view(builder: _Builder, stored: Stored, dtype: torch.dtype, offset: Any, size: Any,
           stride: Any, requires_grad: bool) -> Tensor:
    """Build a tensor on a storage of the file, if it lies within the storage."""
    size, stride = _sizes(builder, size), _sizes(builder, stride)
    if not (_is_instance(offset, int) and 0 <= offset < MAX_NUMBER and len(size) == len(stride)):
        raise Misfit('a tensor whose size, strides and offset do not fit each other')
    storage = builder.storages[stored.key]
    available = storage.nbytes() // dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    count = math.prod(size)
    if offset > available or (count and last >= available):
        raise Misfit(f'a tensor that reaches beyond the {available} numbers of its storage')
    if count > max(available, MAX_REPEATED // dtype.itemsize):
        raise Misfit(f'a tensor of {count} numbers on a storage of {available}')
    empty = torch.empty(0, dtype=dtype, device=storage.device)
    return empty.set_(storage, offset, size, stride).requires_grad_(requires_grad)


def _sizes(builder: _Builder, numbers: Any) -> tuple[int, ...]:
    """Build sizes or strides: whole numbers of at least 0."""
    if isinstance(numbers, Call) and numbers.name.text == 'torch.Size':
        numbers = builder.build(numbers)
    if not _are_sizes(numbers):
        raise Misfit('a tensor whose size or strides are not whole numbers')
    return tuple(numbers)


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, tuple) and len(numbers) <= MAX_DIMENSIONS and all(
        _is_instance(number, int) and 0 <= number < MAX_NUMBER for number in numbers)


def _parameter(builder: _Builder, call: Call) -> nn.Parameter:
    data, requires_grad, *hooks = _at_least(call, 2)
    tensor = builder.build(data)
    if not isinstance(tensor, Tensor) or not _is_instance(requires_grad, bool):
        raise Misfit('a parameter without its tensor')
    _check_hooks(hooks)
    return nn.Parameter(tensor.detach(), requires_grad)


def _sparse(builder: _Builder, call: Call) -> Tensor:
    """Build a sparse tensor of the layout with coordinates; other layouts are refused."""
    layout, parts = _plain_args(call, Call, tuple)
    if layout.name.text != LAYOUT or layout.args != (
            'torch.sparse_coo', ):
        raise Refused('a sparse tensor of another layout than coordinates')
    match builder.build(parts):
        case (Tensor() as indices, Tensor() as values, tuple() as size):
            coalesced = None
        case (Tensor() as indices, Tensor() as values, tuple() as size, bool(coalesced)):
            pass
        case _:
            raise Misfit('a sparse tensor without its coordinates')
    return torch.sparse_coo_tensor(indices, values, _sizes(builder, size), check_invariants=True,
                                   is_coalesced=coalesced)


def _size(builder: _Builder, call: Call) -> torch.Size:
    numbers, = _plain_args(call, tuple)
    return torch.Size(_sizes(builder, numbers))


def _device(builder: _Builder, call: Call) -> torch.device:
    if not (call.args and isinstance(call.args[0], str)):
        raise Misfit('a device without a name')
    return torch.device(*_plain_args(call, *(str, int)[:len(call.args)]))


BUILDERS: dict[str, Callable[[_Builder, Call], Any]] = {
    'argparse.Namespace': _namespace,
    'builtins.bytes': _no_bytes,
    'builtins.set': _set(set),
    'builtins.frozenset': _set(frozenset),
    'collections.Counter': _counter,
    'collections.OrderedDict': _ordered_dict,
    '_codecs.encode': _bytes,
    'mmengine.config.config.ConfigDict': _config_dict,
    'mmengine.logging.history_buffer.HistoryBuffer': _history,
    'numpy.core.multiarray.scalar': _scalar,  # NumPy 1
    'numpy.core.multiarray._reconstruct': _array,
    'numpy._core.multiarray.scalar': _scalar,  # NumPy 2
    'numpy._core.multiarray._reconstruct': _array,
    'torch.Size': _size,
    'torch.device': _device,
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_of_new_type,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_sparse_tensor': _sparse,
}
