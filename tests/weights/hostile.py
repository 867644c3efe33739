"""Hostile checkpoints, written by hand: nothing in here needs a class that pickles."""

import io
import pickle
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

HISTORY = 'mmengine.logging.history_buffer HistoryBuffer'
ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler OneCycleParamScheduler'
ARRAY = 'numpy.core.multiarray _reconstruct'
SCALAR = 'numpy.core.multiarray scalar'
TENSOR = 'torch._utils _rebuild_tensor_v2'


class Name(str):
    """``'module name'``: the object of that name."""


class Op:
    """Steps of a pickle for one value."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts


def call(name: str, *args: object) -> Op:
    return Op(Name(name), args, pickle.REDUCE)


def new(name: str, *args: object) -> Op:
    return Op(Name(name), args, pickle.NEWOBJ)


def built(value: object, state: object) -> Op:
    return Op(value, state, pickle.BUILD)


def stored(number: object = 4, kind: str = 'torch FloatStorage', key: object = '0') -> Op:
    return Op(('storage', Name(kind), key, 'cpu', number), pickle.BINPERSID)


def steps(value: object) -> bytes:
    """The pickle steps that put a value on the stack."""
    if isinstance(value, Op):
        return b''.join(part if isinstance(part, bytes) else steps(part) for part in value.parts)
    if isinstance(value, Name):
        module, name = value.split(' ')
        return f'c{module}\n{name}\n'.encode()
    if isinstance(value, tuple):
        return pickle.MARK + b''.join(map(steps, value)) + pickle.TUPLE
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + b''.join(map(steps, value)) + pickle.APPENDS
    if isinstance(value, dict):
        items = b''.join(steps(part) for item in value.items() for part in item)
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    return pickle.dumps(value, 2)[2:-1]


def a_dict_of(keys: Iterable[object]) -> Op:
    """The steps of a dict that Python itself would take long to make."""
    items = b''.join(steps(key) + pickle.NONE for key in keys)
    return Op(pickle.EMPTY_DICT, pickle.MARK, items, pickle.SETITEMS)


def body(value: object) -> bytes:
    return pickle.PROTO + b'\2' + steps(value) + pickle.STOP


def zip_file(path: Path, pickled: bytes, compress: tuple[str, ...] = (),
             numbers: bytes = bytes(16)) -> Path:
    """A checkpoint of torch's zip format with this pickle, and one tensor of four numbers."""
    torch.save(torch.zeros(4), path)
    content = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(content, 'w') as target:
        for name in source.namelist():
            data = {'data.pkl': pickled, '0': numbers}.get(Path(name).name, source.read(name))
            how = zipfile.ZIP_DEFLATED if Path(name).name in compress else zipfile.ZIP_STORED
            target.writestr(name, data, how)
    path.write_bytes(content.getvalue())
    return path


def dtype(name: str, state: object = None) -> Op:
    made = call('numpy dtype', name, False, True)
    return made if state is None else built(made, state)


def array(kind: object, data: object, shape: tuple = (1, ), of: str = 'numpy ndarray') -> Op:
    return built(call(ARRAY, Name(of), (0, ), b'b'), (1, shape, kind, False, data))


def tensor(offset: object, size: object, stride: object, storage: object = None,
           hooks: object = None, *more: object) -> Op:
    hooks = call('collections OrderedDict') if hooks is None else hooks
    return call(TENSOR, storage or stored(), offset, size, stride, False, hooks, *more)


ADDRESS = struct.pack('<Q', 0x10)  # of no object
PLAIN_STATE = (3, '<', None, None, None, -1, -1, 0)


def object_arrays() -> Iterator[tuple[str, object]]:
    """An array of objects over bytes is a Python object at an address that the file chooses."""
    yield 'object dtype', array(dtype('O8'), ADDRESS)
    yield 'object dtype by its state', array(
        dtype('O8', (3, '|', None, None, None, -1, -1, 63)), ADDRESS)
    yield 'number dtype with the state of an object dtype', array(
        dtype('i8', (3, '|', None, None, None, 8, 8, 63)), ADDRESS)
    fields = (3, '|', None, ('a', ), {'a': (dtype('O8'), 0)}, 8, 1, 27)
    yield 'structured dtype with an object', array(dtype('V8', fields), ADDRESS)
    yield 'subarray dtype of objects', array(
        dtype('V8', (3, '|', (dtype('O8'), (1, )), None, None, 8, 1, 27)), ADDRESS)
    yield 'dtype with metadata', array(
        dtype('f8', (4, '<', None, None, None, -1, -1, 0, {'a': 1})), ADDRESS)
    yield 'dtype from a list of fields', array(call('numpy dtype', [('a', 'O')]), ADDRESS)
    yield 'dtype named by a comma list', array(dtype('O8,f8'), bytes(16))
    yield 'object scalar', call(SCALAR, dtype('O8'), ADDRESS)
    yield 'object scalar as an object', call(SCALAR, dtype('O8'), Name('builtins getattr'))
    yield 'array called over a buffer', call('numpy ndarray', (1, ), dtype('O8'), ADDRESS)
    yield 'array made over a buffer', new('numpy ndarray', (1, ), dtype('O8'), ADDRESS)
    yield 'reconstructed history', built(
        call(ARRAY, Name(HISTORY), (0, ), b'b'), {'_log_history': []})
    yield 'reconstructed subclass', array(dtype('f8', PLAIN_STATE), bytes(8), of='numpy memmap')
    yield 'reconstructed with a shape', call(ARRAY, Name('numpy ndarray'), (2**40, ), b'b')
    yield 'reconstructed of objects', built(
        call(ARRAY, Name('numpy ndarray'), (0, ), b'O'), (1, (1, ), dtype('O8'), False, [1]))
    yield 'objects in a list', array(dtype('O8'), [Name('builtins getattr')])
    yield 'history of objects', history(array(dtype('O8'), ADDRESS))


def history(log: object, **more: object) -> Op:
    counts = array(dtype('i8', PLAIN_STATE), bytes(8))
    state = dict(max_length=9, _log_history=log, _count_history=counts, **more)
    return built(new(HISTORY), state)


def callables() -> Iterator[tuple[str, object]]:
    """Functions that the program would call later."""
    good = array(dtype('f8', PLAIN_STATE), bytes(8))
    function = Name('torch._utils _rebuild_tensor_v2')
    yield 'method of a history', history(good, statistics_methods={'mean': function})
    yield 'history with a method of its own', history(good, current=function)
    yield 'history of the class', built(Name(HISTORY), {'mean': function})
    yield 'log that is a function', history(function)
    yield 'function as a value', {'state_dict': function}
    yield 'class as a value', {'state_dict': Name(HISTORY)}
    yield 'method as a value in a list', [call('builtins getattr', Name(HISTORY), 'mean')]
    yield 'method of a scheduler that is not one', {'anneal_func': call(
        'builtins getattr', Name(ONE_CYCLE), '__init__')}
    yield 'call of a method', Op(call('builtins getattr', Name(HISTORY), 'mean'), (good, ),
                                 pickle.REDUCE)
    yield 'scheduler as an object', built(new(ONE_CYCLE), {'step': function})
    yield 'items of an OrderedDict', built(
        call('collections OrderedDict'), {'items': function})
    yield 'state of a ConfigDict', built(
        call('mmengine.config.config ConfigDict', {}), {'get': function})
    yield 'hooks of a tensor', tensor(0, (4, ), (1, ), None,
                                      call('collections OrderedDict', [[1, function]]))
    yield 'tensor of another class', call(
        'torch._tensor _rebuild_from_type_v2', function, Name('torch Tensor'), (), {})


def sparse(*parts: object) -> Op:
    layout = call('torch.serialization _get_layout', 'torch.sparse_coo')
    return call('torch._utils _rebuild_sparse_tensor', layout, parts)


def beyond() -> Iterator[tuple[str, object]]:
    """Tensors and arrays that reach beyond their numbers, and what crashes an interpreter."""
    yield 'larger than its storage', tensor(0, (5, ), (1, ))
    yield 'far larger', tensor(0, (2**40, ), (1, ))
    yield 'offset behind the end', tensor(2**62, (1, ), (1, ))
    yield 'negative offset', tensor(-1, (1, ), (1, ))
    yield 'negative stride', tensor(3, (4, ), (-1, ))
    yield 'stride that overflows', tensor(0, (3, 3), (2**62, 2**62))
    yield 'size that overflows', tensor(0, (2**32, 2**32), (0, 0))
    yield 'one number shown often', tensor(0, (2**40, ), (0, ))
    yield 'size of text', tensor(0, ('4', ), (1, ))
    yield 'size of a truth value', tensor(0, (True, ), (1, ))
    yield 'more strides than sizes', tensor(0, (4, ), (1, 1))
    yield 'storage with other bytes', tensor(0, (8, ), (1, ), stored(8))
    yield 'storage of another type', tensor(0, (4, ), (1, ), stored(4, 'torch DoubleStorage'))
    yield 'storage of a class', tensor(0, (4, ), (1, ), stored(4, 'collections OrderedDict'))
    yield 'storage of a number', tensor(0, (4, ), (1, ), stored(4, key=0))
    yield 'storage that is not there', tensor(0, (4, ), (1, ), stored(4, key='7'))
    yield 'storage of another folder', tensor(0, (4, ), (1, ), stored(4, key='../data.pkl'))
    yield 'storage of a huge number', tensor(0, (4, ), (1, ), stored(10**30))
    yield 'array of another size', array(dtype('f8', PLAIN_STATE), bytes(8), (2, ))
    yield 'array of a negative size', array(dtype('f8', PLAIN_STATE), bytes(8), (-1, -1))
    yield 'array of a huge size', array(dtype('f8', PLAIN_STATE), b'', (2**62, 2**62, 0))
    yield 'scalar of other bytes', call(SCALAR, dtype('f8', PLAIN_STATE), bytes(4))
    two = tensor(0, (2, ), (1, ), stored(2, 'torch LongStorage'))
    places = tensor(0, (1, 2), (2, 1), stored(2, 'torch LongStorage'))
    yield 'sparse tensor beyond its size', sparse(places, two, call('torch Size', (0, )))
    yield 'sparse tensor of other numbers', sparse(places, tensor(
        0, (1, ), (1, ), stored(2, 'torch LongStorage')), call('torch Size', (1, )))
    yield 'rows and columns', call(
        'torch._utils _rebuild_sparse_tensor',
        call('torch.serialization _get_layout', 'torch.sparse_csr'), ())
    yield 'quantized tensor', call('torch._utils _rebuild_qtensor', 1)
    yield 'tensor with metadata', tensor(0, (4, ), (1, ), None, None, {'conj': True})
    yield 'meta tensor', call('torch._utils _rebuild_meta_tensor_no_storage', 1)


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small pickles of much work or memory; each a whole body."""
    start, pair = pickle.PROTO + b'\2', pickle.BINGET + b'\0' + pickle.BINGET + b'\0'
    empty = pickle.EMPTY_TUPLE + pickle.BINPUT + b'\0'
    doubled = empty + (pair + pickle.TUPLE2 + pickle.BINPUT + b'\0') * 60
    last = pickle.BINGET + b'\0'
    rest = pickle.MARK + doubled + pickle.TUPLE
    tail = pickle.TUPLE2 + pickle.STOP
    yield 'doubled tuples as a key', start + rest + steps({}) + last + steps(1) + \
        pickle.SETITEM + tail
    yield 'doubled tuples in a set', start + rest + pickle.EMPTY_SET + pickle.MARK + last + \
        pickle.ADDITEMS + tail
    yield 'doubled tuples in a set that is called', start + rest + steps(
        Name('__builtin__ set')) + pickle.EMPTY_LIST + last + pickle.APPEND + pickle.TUPLE1 + \
        pickle.REDUCE + tail
    yield 'doubled tuples', start + rest + pickle.STOP
    yield 'a list in itself', start + pickle.EMPTY_LIST + pickle.BINPUT + b'\0' + last + \
        pickle.APPEND + pickle.STOP
    yield 'nested deeply', start + pickle.NONE + pickle.TUPLE1 * 200_000 + pickle.STOP
    yield 'marks', start + pickle.MARK * 200_000 + pickle.STOP
    yield 'three million sets', start + pickle.EMPTY_SET * 3_000_000 + pickle.STOP
    for step in (pickle.BINBYTES8, pickle.BINUNICODE8, pickle.FRAME):
        yield f'a length that is a lie ({step[0]:x})', start + step + struct.pack(
            '<Q', 2**40) + pickle.STOP
    yield 'a number of a length that is a lie', start + pickle.LONG4 + struct.pack(
        '<i', 2**31 - 1) + pickle.STOP
    yield 'a memo of a huge index', start + pickle.NONE + pickle.LONG_BINPUT + struct.pack(
        '<I', 2**32 - 1) + b'i'
    modulus = 2**61 - 1  # all of these numbers have the hash 0
    yield 'keys of one hash', body(a_dict_of(number * modulus for number in range(20_000)))
    yield 'a set of one hash', body(call('__builtin__ set', [n * modulus for n in range(20_000)]))
    yield 'tuples of one hash', body(a_dict_of((n * modulus, ) for n in range(20_000)))
    long = pickle.LONG4 + struct.pack('<i', 4_000_000) + b'\x11' * 4_000_000 + \
        pickle.BINPUT + b'\0'
    many = pickle.MARK + (pickle.BINGET + b'\0') * 64 + pickle.TUPLE
    yield 'a product of long numbers', start + pickle.MARK + long + steps(
        Name(TENSOR)) + pickle.MARK + steps(stored()) + steps(0) + many * 2 + steps(False) + \
        steps(call('collections OrderedDict')) + pickle.TUPLE + pickle.REDUCE + pickle.TUPLE + \
        pickle.STOP
    yield 'digits', start + pickle.INT + b'9' * 100_000 + b'\n' + pickle.STOP


def odd_steps() -> Iterator[tuple[str, bytes]]:
    """Ways to an object beside the usual ones."""
    start = pickle.PROTO + b'\2'
    yield 'INST', start + b'(ios\nsystem\n.'
    yield 'OBJ', start + b'(' + steps(Name('os system')) + b'o.'
    yield 'NEWOBJ_EX', start + steps(Name(HISTORY)) + b')}\x92.'
    yield 'EXT1', start + b'\x82\x01.'
    yield 'PERSID', start + b'Psomething\n.'
    yield 'persistent text', start + steps('a') + b'Q.'
    yield 'persistent tuple of another kind', start + steps(('module', 'a')) + b'Q.'
    yield 'STACK_GLOBAL', b'\x80\x04' + steps('os') + steps('system') + b'\x93.'
    yield 'escape sequences', b'\x80\x04' + steps('os\x1b[2J\nsafe') + steps('system') + b'\x93.'
    yield 'a long name', b'\x80\x04' + steps('os' * 50_000) + steps('system') + b'\x93.'
    yield 'dotted name', b'\x80\x04' + steps('collections') + steps(
        'OrderedDict.__init__.__globals__') + b'\x93.'
    yield 'call of a number', start + steps(1) + steps(()) + b'R.'
    yield 'arguments that are a list', start + steps(Name('collections OrderedDict')) + b']R.'
    yield 'nothing', start + b'.'
    yield 'no end', start
