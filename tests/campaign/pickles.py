"""Hostile pickles, assembled by hand, opcode by opcode.

Every payload is a :class:`Code`, which leaves one object on the unpickler's stack. Those that run a
command only create a marker file.
"""

import os
import pickle
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

MMENGINE = 'mmengine.logging.history_buffer.HistoryBuffer'
ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
ORDERED, COUNTER = 'collections.OrderedDict', 'collections.Counter'
CONFIG = 'mmengine.config.config.ConfigDict'
Payload = tuple[str, 'Code']  # its name and what it does
FOREIGN = """
    os.system posix.system nt.system subprocess.getoutput subprocess.call builtins.eval
    __builtin__.eval builtins.exec builtins.getattr builtins.__import__ torch.load
    torch.serialization.os torch.hub.load numpy.load numpy.testing._private.utils.runstring
    mmengine.config.config.Config.fromfile mmengine.utils.import_modules_from_strings
    pera_mm.weights.loading.os pera_mm.weights.loading.torch pip._internal.main
    runpy._run_code code.interact pdb.run timeit.timeit pydoc.pipepager webbrowser.open
    ctypes.CDLL operator.attrgetter functools.partial types.FunctionType
    torch.jit._serialization.load torch.utils.data.DataLoader torch.ops.load_library
    torch._inductor.codecache.CppCodeCache torch.utils.cpp_extension.load_inline
    torch.cuda.set_device torch.storage._load_from_bytes torch.Tensor torch.FloatTensor
    builtins.bytearray mmengine.registry.build_from_cfg yaml.unsafe_load
""".split()


class Code(bytes):
    """Opcodes that leave one object on the stack."""


# -- assembler -----------------------------------------------------------------------------------


def code(value: Any) -> Code:
    """The opcodes of a plain value; protocol 2, as torch.save writes it."""
    if isinstance(value, Code):
        return value
    if isinstance(value, str):
        data = value.encode('utf-8', 'surrogatepass')
        return Code(pickle.BINUNICODE + struct.pack('<I', len(data)) + data)
    if isinstance(value, bytes):  # as protocol 2 writes them
        return call('_codecs.encode', value.decode('latin1'), 'latin1')
    if isinstance(value, (tuple, list)):
        items = b''.join(map(code, value))
        if isinstance(value, tuple):
            return Code(b'(' + items + b't')
        return Code(b'](' + items + b'e')
    if isinstance(value, dict):
        return Code(b'}(' + b''.join(code(key) + code(item) for key, item in value.items()) + b'u')
    return Code(pickle.dumps(value, 2)[2:-1])  # None, bool, int, float


def found(name: str) -> Code:
    """GLOBAL."""
    module, _, attribute = name.rpartition('.')
    return Code(f'c{module}\n{attribute}\n'.encode())


def call(function: str | Code, *arguments: Any) -> Code:
    """REDUCE."""
    function = function if isinstance(function, Code) else found(function)
    return Code(function + code(arguments) + b'R')


def new(cls: str, *arguments: Any) -> Code:
    """NEWOBJ."""
    return Code(found(cls) + code(arguments) + b'\x81')


def build(target: str | Code, state: Any) -> Code:
    """BUILD."""
    target = target if isinstance(target, Code) else found(target)
    return Code(target + code(state) + b'b')


def program(payload: Any, protocol: int = 2) -> bytes:
    """A whole pickle."""
    return b'\x80' + bytes([protocol]) + code(payload) + b'.'


def checkpoint(payload: Code) -> bytes:
    """A pickle of a checkpoint with one good tensor that holds the payload, too."""
    state = dict(state_dict=dict(weight=tensor((4,), (1,))), meta=dict(epoch=1), x=payload)
    return program(state)


def storage(kind: str = 'Float', key: Any = '0', device: Any = 'cpu', numel: Any = 4) -> Code:
    """A storage by its persistent id; the file holds 16 bytes under '0'."""
    name = 'torch.storage.UntypedStorage' if kind == 'Untyped' else f'torch.{kind}Storage'
    return Code(code(('storage', found(name), key, device, numel)) + b'Q')


def tensor(
    size: Any, stride: Any, offset: Any = 0, of: Code | None = None, version: str = '_v2'
) -> Code:
    """A tensor, rebuilt as torch does it."""
    arguments = (of or storage(), offset, size, stride)
    hooks = (False, call(ORDERED)) if version == '_v2' else ()
    return call(f'torch._utils._rebuild_tensor{version}', *arguments, *hooks)


def shell(marker: str) -> str:
    return f'touch {marker}'


# -- foreign objects -----------------------------------------------------------------------------


def foreign(marker: str) -> Iterator[Payload]:
    """A command by every opcode that finds, makes or calls something."""
    command = shell(marker)
    for name in FOREIGN:
        yield f'GLOBAL {name}', call(name, command)
    system = code('os') + code('system') + b'\x93'
    yield 'STACK_GLOBAL', call(Code(system), command)
    yield 'STACK_GLOBAL after FRAME', call(Code(b'\x95' + struct.pack('<Q', 20) + system), command)
    dotted = ('HistoryBuffer.__init__.__globals__', 'HistoryBuffer.__class__', 'HistoryBuffer.mean')
    for name in dotted:
        module = code(MMENGINE.rpartition('.')[0])
        yield f'STACK_GLOBAL {name}', Code(module + code(name) + b'\x93')
    yield (
        'STACK_GLOBAL checkpoints.os.system',
        call(Code(code('pera_mm.checkpoints') + code('os.system') + b'\x93'), command),
    )
    yield 'STACK_GLOBAL of a number', Code(code(1) + code(2) + b'\x93')
    yield (
        'STACK_GLOBAL with an escape sequence',
        Code(code('os\x1b[2J\nsafe: this file is fine') + code('system') + b'\x93'),
    )
    yield 'GLOBAL of 1 MB', found('os.' + 'a' * 2**20)
    yield 'GLOBAL not UTF-8', Code(b'c\xff\xfe\nsystem\n')
    yield 'GLOBAL empty', Code(b'c\n\n')
    yield 'INST', Code(b'(' + code(command) + b'ios\nsystem\n')
    yield 'OBJ', Code(b'(' + found('os.system') + code(command) + b'o')
    yield 'OBJ of an admitted type', Code(b'(' + found(ORDERED) + b'o')
    yield 'NEWOBJ', new('subprocess.Popen', [command])
    yield (
        'NEWOBJ_EX',
        Code(found('subprocess.Popen') + code((command,)) + code(dict(shell=True)) + b'\x92'),
    )
    yield 'EXT1', Code(b'\x82\x01')
    yield 'EXT2', Code(b'\x83\x01\x00')
    yield 'EXT4', Code(b'\x84\x01\x00\x00\x00')
    yield 'EXT4 negative', Code(b'\x84\xff\xff\xff\xff')
    yield (
        'memo: a list that becomes the function',
        Code(found('os.system') + b'q\x050' + b'h\x05' + code((command,)) + b'R'),
    )
    yield 'memo: never put', Code(b'h\x63')
    yield 'memo: LONG_BINGET far away', Code(b'j\xff\xff\xff\x7f')
    yield 'memo: GET of a word', Code(b'gos.system\n')
    yield 'POP_MARK of nothing', Code(b'1')
    yield 'REDUCE of a string', Code(code('os.system') + code((command,)) + b'R')
    yield 'REDUCE with a list', Code(found(ORDERED) + code([1]) + b'R')
    yield 'REDUCE of a dictionary', Code(code({}) + code((command,)) + b'R')
    for persistent in ('os.system', 'storage', ''):
        yield f'PERSID {persistent!r}', Code(b'P' + persistent.encode() + b'\n')
    odds: tuple[Any, ...] = (
        (),
        ('storage',),
        ('module', found('os.system'), command, 'x'),
        5,
        'storage',
        None,
        ('storage', found('os.system'), '0', 'cpu', 4),
        ('storage', found('torch.FloatStorage'), '0', 'cpu'),
        ('storage', found('torch.FloatStorage'), '0', 'cpu', 4, 5, 6),
        ('storage', 'torch.FloatStorage', '0', 'cpu', 4),
        ('storage', found('torch.FloatStorage'), ['0'], 'cpu', 4),
        ('storage', found('torch.FloatStorage'), '0', [], 4),
        ('storage', found('torch.FloatStorage'), '../../etc/passwd', 'cpu', 4),
        ('storage', found('torch.FloatStorage'), '0\0', 'cpu', 4),
        ('storage', found('torch.FloatStorage'), '0', 'cpu', '4'),
        ('storage', found('torch.Size'), '0', 'cpu', 4),
    )
    for odd in odds:
        yield f'BINPERSID {str(odd)[:60]}', Code(code(odd) + b'Q')


# -- arrays of objects ---------------------------------------------------------------------------


def address() -> bytes:
    """Where os.system lies: the same in a forked child, as on a Python with fixed addresses."""
    return struct.pack('<Q', id(os.system))


def dtype_of(name: str, state: Any = None) -> Code:
    made = call('numpy.dtype', name, False, True)
    return made if state is None else build(made, state)


def object_dtypes() -> Iterator[Payload]:
    """Object dtypes by every way, also those that hide it."""
    plain_object = dtype_of('O8', (3, '|', None, None, None, -1, -1, 63))
    yield "'O8'", plain_object
    yield "'O'", call('numpy.dtype', 'O')
    yield 'flags 0', dtype_of('O8', (3, '|', None, None, None, -1, -1, 0))
    yield (
        'float64 with the flags of objects',
        dtype_of('f8', (3, '<', None, None, None, -1, -1, 63)),
    )
    field = {'a': (plain_object, 0)}
    yield 'field', dtype_of('V8', (3, '|', None, ('a',), field, 8, 1, 63))
    yield 'field, flags 0', dtype_of('V8', (3, '|', None, ('a',), field, 8, 1, 0))
    nested = dtype_of('V8', (3, '|', None, ('a',), field, 8, 1, 0))
    yield (
        'field of a field, flags 0',
        dtype_of('V8', (3, '|', None, ('b',), {'b': (nested, 0)}, 8, 1, 0)),
    )
    yield 'subarray', dtype_of('V8', (3, '|', (plain_object, (1,)), None, None, 8, 1, 63))
    yield 'subarray, flags 0', dtype_of('V8', (3, '|', (plain_object, (1,)), None, None, 8, 1, 0))
    yield 'metadata', dtype_of('f8', (4, '<', None, None, None, -1, -1, 0, {'m': plain_object}))
    yield 'list of fields', call('numpy.dtype', [('a', 'O')])
    yield 'comma string', call('numpy.dtype', 'O,f8')
    yield 'dictionary', call('numpy.dtype', dict(names=['a'], formats=['O'], offsets=[0]))
    yield (
        'dictionary, objects overlap numbers',
        call('numpy.dtype', dict(names=['a', 'b'], formats=['O', 'u8'], offsets=[0, 0])),
    )
    yield 'class ObjectDType', call('numpy.dtypes.ObjectDType')
    yield 'state 1', dtype_of('O8', (1, '|', None, None, None, -1, -1))
    yield 'alias object', call('numpy.dtype', found('builtins.object'))
    yield (
        'offset beyond the item',
        dtype_of('V8', (3, '|', None, ('a',), {'a': (dtype_of('f8'), 4096)}, 8, 1, 0)),
    )
    yield (
        'negative offset',
        dtype_of('V8', (3, '|', None, ('a',), {'a': (dtype_of('f8'), -4096)}, 8, 1, 0)),
    )
    yield 'size of the item -1', dtype_of('V8', (3, '|', None, None, None, -1, -1, 0))
    yield 'size of the item 2**31-1', dtype_of('V8', (3, '|', None, None, None, 2**31 - 1, 1, 0))
    yield 'f8 with items of 2**20 bytes', dtype_of('f8', (3, '<', None, None, None, 2**20, 1, 0))
    yield 'S8 with items of 2**20 bytes', dtype_of('S8', (3, '|', None, None, None, 2**20, 1, 0))
    yield 'names without fields', dtype_of('V8', (3, '|', None, ('a',), None, 8, 1, 0))
    yield 'fields of another name', dtype_of('V8', (3, '|', None, ('a',), {'b': 1}, 8, 1, 0))
    yield (
        'datetime with odd metadata',
        dtype_of('M8', (4, '<', None, None, None, -1, -1, 0, ({}, (b'ns', -(2**31), 0, 0)))),
    )
    yield 'a state of nothing', dtype_of('f8', ())
    yield 'a string as its state', dtype_of('f8', 'O')


RECONSTRUCT = 'numpy.core.multiarray._reconstruct'


def array(dtype: Any, shape: Any, data: Any, core: str = 'core', base: Any = None) -> Code:
    """An array as NumPy pickles it."""
    made = call(f'numpy.{core}.multiarray._reconstruct', base or found('numpy.ndarray'), (0,), 'b')
    return build(made, (1, shape, dtype, False, data))


def called_from(items: Code, command: str) -> Code:
    """Call the last item of an array that a history hands out; Popen-like flags are not needed."""
    history = build(new(MMENGINE), dict(_log_history=items, _count_history=items, max_length=9))
    current = call('builtins.getattr', found(MMENGINE), 'current')
    return call(call(current, history), command)


def arrays(marker: str) -> Iterator[Payload]:
    """Arrays of objects over bytes of the file, and other arrays that cannot be."""
    data = address()
    binary = Code(b'C\x08' + data)  # SHORT_BINBYTES
    for name, dtype in object_dtypes():
        yield f'dtype alone: {name}', dtype
        yield f'setstate: {name}', array(dtype, (1,), data)
        yield f'ndarray(buffer): {name}', call('numpy.ndarray', (1,), dtype, data)
        yield f'scalar: {name}', call('numpy.core.multiarray.scalar', dtype, data)
        yield (
            f'called: {name}',
            called_from(call('numpy.ndarray', (1,), dtype, binary), shell(marker)),
        )
    twice = build(
        new(MMENGINE),
        dict(
            _log_history=call(
                'numpy.ndarray',
                (1,),
                dtype_of('V8', (3, '|', (call('numpy.dtype', 'O8'), (1,)), None, None, 8, 1, 0)),
                data,
            ),
            _count_history=[],
            max_length=9,
        ),
    )
    inner = call(call('builtins.getattr', found(MMENGINE), 'current'), twice)
    yield 'called: the item of an item', called_from(inner, shell(marker))
    f8 = dtype_of('f8', (3, '<', None, None, None, -1, -1, 0))
    for core in ('core', '_core'):
        yield (
            f'{core}: scalar of objects',
            call(f'numpy.{core}.multiarray.scalar', call('numpy.dtype', 'O8'), data),
        )
        yield (
            f'{core}: reconstruct objects',
            call(f'numpy.{core}.multiarray._reconstruct', found('numpy.ndarray'), (1,), 'O'),
        )
        yield (
            f'{core}: reconstruct 10**12 numbers',
            call(f'numpy.{core}.multiarray._reconstruct', found('numpy.ndarray'), (10**12,), 'd'),
        )
        yield f'{core}: an object over bytes', array(call('numpy.dtype', 'O8'), (1,), data, core)
        yield f'{core}: frombuffer', call(f'numpy.{core}.numeric._frombuffer', data, f8, (1,), 'C')
    for subclass in (
        'numpy.matrix',
        'numpy.memmap',
        'numpy.recarray',
        'numpy.ma.MaskedArray',
        'numpy.rec.recarray',
        'numpy.char.chararray',
    ):
        yield f'reconstruct {subclass}', array(f8, (1,), data, base=found(subclass))
    shapes = (
        (10**12,),
        (-1,),
        (2**63 - 1,),
        (2**40, 2**40),
        (0, 2**62, 2**62),
        (3,),
        (),
        (1,) * 65,
        ('1',),
        (1.5,),
        1,
        None,
    )
    for shape in shapes:
        yield f'setstate: 8 bytes for {str(shape)[:24]}', array(f8, shape, data)
        yield f'ndarray: 8 bytes for {str(shape)[:24]}', call('numpy.ndarray', shape, f8, data)
    for strides in ((2**40,), (-(2**40),), (-8,), (1,)):
        yield f'ndarray: strides {strides}', call('numpy.ndarray', (1,), f8, data, 0, strides)
        yield (
            f'ndarray: 4 items, strides {strides}',
            call('numpy.ndarray', (4,), f8, data, 0, strides),
        )
    yield 'ndarray: offset -4096', call('numpy.ndarray', (1,), f8, data, -4096)
    yield 'ndarray without a buffer', call('numpy.ndarray', (16,), f8)
    yield 'ndarray of objects without a buffer', call('numpy.ndarray', (16,), 'O')
    yield 'ndarray: 2**34 numbers', call('numpy.ndarray', (2**31,), f8)
    yield 'NEWOBJ ndarray', new('numpy.ndarray', (1,), 'O')
    yield 'setstate: a list as bytes', array(f8, (1,), [1.0])
    yield 'setstate: text as bytes', array(f8, (1,), 'abcdefgh')
    yield 'setstate: objects, a list', array(call('numpy.dtype', 'O8'), (1,), [{}])
    yield 'setstate: a list too short', array(call('numpy.dtype', 'O8'), (10**6,), [{}])
    yield (
        'setstate: version 0',
        build(call(RECONSTRUCT, found('numpy.ndarray'), (0,), 'b'), (0, (1,), f8, False, data)),
    )
    yield 'setstate: nothing', build(call(RECONSTRUCT, found('numpy.ndarray'), (0,), 'b'), ())
    yield 'setstate: twice', build(array(f8, (1,), data), (1, (9,), f8, False, bytes(72)))
    yield (
        'setstate of a view',
        build(call('numpy.ndarray', (1,), f8, data), (1, (1,), f8, False, data)),
    )
    yield 'scalar without bytes', call('numpy.core.multiarray.scalar', f8)
    yield 'scalar of 4 bytes', call('numpy.core.multiarray.scalar', f8, data[:4])
    yield (
        'scalar of text U with odd code points',
        call('numpy.core.multiarray.scalar', dtype_of('U2'), b'\xff' * 8),
    )
    yield 'array of text U with odd code points', array(dtype_of('U2'), (1,), b'\xff' * 8)
    yield 'void scalar', call('numpy.core.multiarray.scalar', dtype_of('V8'), data)
    yield 'array as an index of itself', Code(array(f8, (1,), data) + b'q\x070h\x07')
    for name in (
        'numpy.fromfile',
        'numpy.memmap',
        'numpy.lib.format.open_memmap',
        'numpy.core.multiarray.frombuffer',
        'numpy.core.multiarray.fromstring',
        'numpy.lib.stride_tricks.as_strided',
        'numpy.dtypes.Float64DType',
        'numpy.core.records.fromarrays',
        'numpy._core._internal._dtype_from_pep3118',
        'numpy.core.multiarray.add_docstring',
        'numpy._core.multiarray.set_typeDict',
    ):
        yield f'GLOBAL {name}', call(name, data)


# -- callables and states ------------------------------------------------------------------------


def callables(marker: str) -> Iterator[Payload]:
    """Something to call, handed out by what real checkpoints hold."""
    command = shell(marker)
    for owner, name in (
        (MMENGINE, '__init__'),
        (MMENGINE, '__dict__'),
        (MMENGINE, '__class__'),
        (MMENGINE, '__subclasses__'),
        (MMENGINE, '__reduce_ex__'),
        (MMENGINE, 'statistics'),
        (MMENGINE, 'register_statistics'),
        (MMENGINE, '_statistics_methods'),
        (MMENGINE, 'update'),
        (ONE_CYCLE, '__init__'),
        (ONE_CYCLE, 'build_iter_from_epoch'),
        (ORDERED, 'fromkeys'),
        (CONFIG, '__init__'),
        (CONFIG, 'fromkeys'),
        ('torch.Size', '__class__'),
        ('torch.device', '__new__'),
        ('numpy.dtype', 'type'),
        ('numpy.ndarray', 'tofile'),
        ('torch._utils._rebuild_tensor_v2', '__globals__'),
        ('torch.serialization._get_layout', '__globals__'),
    ):
        yield f'getattr({owner}, {name})', call('builtins.getattr', found(owner), name)
    mean = call('builtins.getattr', found(MMENGINE), 'mean')
    yield 'getattr of a method', call('builtins.getattr', mean, '__globals__')
    yield 'getattr of a module', call('builtins.getattr', found('torch.serialization'), 'os')
    yield 'getattr of an object', call('builtins.getattr', tensor((4,), (1,)), 'numpy')
    yield 'getattr with a default', call('builtins.getattr', found(MMENGINE), 'x', 'y')
    yield 'getattr of a str subclass', call('builtins.getattr', found(MMENGINE), code([1]))
    for name in ('current', 'mean', 'min', 'max'):
        method = call('builtins.getattr', found(MMENGINE), name)
        for kind, items in (
            ('a list', [found('torch.device')]),
            ('a set', {}),
            ('text', 'abc'),
            ('a function', [found(ORDERED)]),
        ):
            yield (
                f'{name} of a history of {kind}',
                call(method, build(new(MMENGINE), dict(_log_history=items, _count_history=items))),
            )
        yield f'{name} of a stranger', call(method, call(CONFIG, dict(_log_history=[1])))
        yield f'{name} of text', call(method, 'abc')
    yield (
        'statistics with a foreign method',
        build(
            new(MMENGINE),
            dict(_statistics_methods=dict(mean=found('os.system')), _log_history=[command]),
        ),
    )
    yield (
        'statistics with an admitted function',
        build(
            new(MMENGINE),
            dict(_statistics_methods=dict(mean=found('torch._utils._rebuild_tensor_v2'))),
        ),
    )
    yield 'a history with properties', build(new(MMENGINE), dict(data=1, mean=1, __dict__=1))
    yield 'a history made by a call', call(MMENGINE, [1.0], [1])
    yield 'a history of 10**9', call(MMENGINE, [1.0], [1], 10**9)
    yield 'a history whose methods are changed', call(MMENGINE + '.register_statistics', command)
    yield (
        'annealing called',
        call(call('builtins.getattr', found(ONE_CYCLE), '_annealing_cos'), 0.0, 1.0, 2.0),
    )
    yield (
        'annealing of strings',
        call(
            call('builtins.getattr', found(ONE_CYCLE), '_annealing_linear'), 'a' * 1000, [], 10**8
        ),
    )
    yield 'a scheduler called', call(ONE_CYCLE, command)
    yield 'a scheduler made', new(ONE_CYCLE)
    yield (
        'a ConfigDict with a lazy object',
        call(CONFIG, dict(type=call('mmengine.config.lazy.LazyObject', 'os', 'system'))),
    )
    yield 'a ConfigDict of a device', call(CONFIG, call('torch.device', 'cpu'))
    yield 'a device of text', call('torch.device', command)
    yield 'a layout of text', call('torch.serialization._get_layout', command)
    for codec in ('rot13', 'zip', 'hex', 'idna', 'unicode_escape', 'punycode', 'os', '../os', ''):
        yield f'_codecs.encode to {codec!r}', call('_codecs.encode', command, codec)
    yield '_codecs.encode with errors', call('_codecs.encode', '\ud800', 'latin1', 'namereplace')


def states(marker: str) -> Iterator[Payload]:
    """States set on classes, functions, and on objects in unusual ways."""
    command = shell(marker)
    system = found('os.system')
    for name in (
        MMENGINE,
        ONE_CYCLE,
        ORDERED,
        COUNTER,
        CONFIG,
        'torch.Size',
        'torch.device',
        'numpy.dtype',
        'numpy.ndarray',
        'builtins.set',
        'torch.FloatStorage',
        'torch.float32',
        'torch.storage.UntypedStorage',
        'torch._utils._rebuild_tensor_v2',
        'torch._utils._rebuild_parameter',
        'torch.serialization._get_layout',
        'builtins.getattr',
        '_codecs.encode',
        RECONSTRUCT,
        'torch.Tensor',
        'torch.nn.parameter.Parameter',
    ):
        yield f'attributes of {name}', build(name, dict(mean=1, evil=2))
        yield f'slots of {name}', build(name, (None, dict(mean=1, __code__=2, __class__=3)))
    for name in (MMENGINE, ONE_CYCLE, ORDERED, COUNTER, CONFIG):
        made = new(name)
        yield f'__class__ of a {name}', build(made, (None, {'__class__': found(ORDERED)}))
        yield f'__dict__ of a {name}', build(made, (None, {'__dict__': {'a': 1}}))
        yield f'__setstate__ of a {name}', build(made, {'__setstate__': found(ORDERED)})
        yield (
            f'__setstate__ used, {name}',
            build(build(made, {'__setstate__': found('torch.device')}), 'cpu'),
        )
        yield (
            f'__reduce__ and friends of a {name}',
            build(
                made,
                dict.fromkeys(
                    ('__reduce__', '__getattr__', '__del__', '__eq__', '__len__', 'keys', 'items'),
                    system,
                ),
            ),
        )
        yield (
            f'admitted callables in a {name}',
            build(
                made,
                dict.fromkeys(('__del__', '__eq__', 'keys', 'items', 'get'), found('torch.device')),
            ),
        )
        yield f'a state that is a list, {name}', build(made, [1])
        yield f'a state that is a number, {name}', build(made, 7)
        yield f'keys that are numbers, {name}', build(made, {1: 2})
        yield f'slots alone, {name}', build(made, (None, dict(max_length=command)))
    yield 'items of a list', Code(code([1]) + code('a') + code('b') + b's')
    yield 'items of a tensor', Code(tensor((4,), (1,)) + code(0) + code(5.0) + b's')
    yield 'append to a dictionary', Code(code({}) + code(1) + b'a')
    yield 'append to a storage', Code(storage() + code(1) + b'a')
    yield 'append to a class', Code(found(ORDERED) + code(1) + b'a')
    yield 'SETITEMS, an odd number', Code(b'}(' + code(1) + b'u')
    yield 'ADDITEMS to a list', Code(b'](' + code(1) + b'\x90')
    yield 'an OrderedDict of pairs that are not', call(ORDERED, [1])
    yield 'a Counter of mixed things', call(COUNTER, dict(a='b'))
    yield (
        'a ConfigDict of itself',
        Code(found(CONFIG) + code(()) + b'Rq\x09' + code('me') + b'h\x09s'),
    )
    yield 'state of a tensor', build(tensor((4,), (1,)), (storage(), 0, (10**9,), (1,)))
    yield 'state of a tensor: attributes', build(tensor((4,), (1,)), dict(evil=system))
    yield 'state of a device', build(call('torch.device', 'cpu'), dict(a=1))
    yield 'state of a torch.Size', build(call('torch.Size', (1,)), dict(a=1))
    yield 'state of a set', build(call('builtins.set', [1]), dict(a=1))
    yield 'state of a storage', build(storage(), dict(a=1))
    yield (
        'statistics_methods of the class, an admitted function',
        build(
            new(MMENGINE),
            dict(statistics_methods=dict(mean=found('torch._utils._rebuild_tensor_v2'))),
        ),
    )
    yield (
        'statistics_methods of the class, text',
        build(new(MMENGINE), dict(statistics_methods=dict(mean=command))),
    )
    yield 'a hash of unhashable things', call('builtins.set', [[1]])


# -- tensors -------------------------------------------------------------------------------------


def tensors() -> Iterator[Payload]:
    """Tensors that reach beyond their 16 bytes, or are not what they say."""
    odd = [
        ('one element too many', (5,), (1,), 0),
        ('offset 1', (4,), (1,), 1),
        ('offset -1', (4,), (1,), -1),
        ('offset 2**62', (1,), (1,), 2**62),
        ('offset 2**63', (1,), (1,), 2**63),
        ('offset of nothing', (0,), (1,), 2**40),
        ('10**12 elements', (10**12,), (1,), 0),
        ('2**28 elements', (2**28,), (1,), 0),
        ('2**62 x 4 elements', (2**62, 4), (4, 1), 0),
        ('stride -1', (4,), (-1,), 3),
        ('stride -1, offset 0', (4,), (-1,), 0),
        ('stride 2**40', (2,), (2**40,), 0),
        ('stride 2**61', (3,), (2**61,), 0),
        ('stride 0, 10**12 elements', (10**12,), (0,), 0),
        ('stride 0, 2**62 elements', (2**62,), (0,), 0),
        ('size -1', (-1,), (1,), 0),
        ('size -4, stride -1', (-4,), (-1,), 0),
        ('more strides than sizes', (4,), (1, 1), 0),
        ('no stride', (4,), (), 0),
        ('sizes of text', ('4',), (1,), 0),
        ('size None', None, None, 0),
        ('sizes of floats', (4.0,), (1.0,), 0),
        ('offset of text', (4,), (1,), 'x'),
        ('65 dimensions', (1,) * 65, (1,) * 65, 0),
        ('5,000 dimensions', (1,) * 5000, (1,) * 5000, 0),
        ('sizes over 2**64', (2**33, 2**33), (1, 1), 0),
        ('a size of 2**70', (2**70,), (1,), 0),
    ]
    for name, size, stride, offset in odd:
        yield f'v2: {name}', tensor(size, stride, offset)
        yield f'v1: {name}', tensor(size, stride, offset, version='')
        yield (
            f'parameter: {name}',
            call(
                'torch._utils._rebuild_parameter', tensor(size, stride, offset), True, call(ORDERED)
            ),
        )
        yield (
            f'v3: {name}',
            call(
                'torch._utils._rebuild_tensor_v3',
                storage('Untyped', numel=16),
                offset,
                size,
                stride,
                False,
                call(ORDERED),
                found('torch.float32'),
            ),
        )
        yield f'Tensor.set_: {name}', build(new('torch.Tensor'), (storage(), offset, size, stride))
    hooks = call(ORDERED)
    for numel in (0, 1, 3, 5, 10**6, 10**12, 2**62, 2**64, -1, 'x', None):
        yield f'storage of {numel} numbers', tensor((4,), (1,), of=storage(numel=numel))
        yield f'alone, {numel} numbers', storage(numel=numel)
    for kind in (
        'Double',
        'Byte',
        'Half',
        'Bool',
        'ComplexDouble',
        'BFloat16',
        'QInt8',
        'QUInt4x2',
        'Untyped',
        'Long',
        'Short',
        'Char',
    ):
        yield f'the bytes as {kind}Storage, 4 elements', tensor((4,), (1,), of=storage(kind))
        yield f'the bytes as {kind}Storage, right size', storage(kind, numel=16)
    yield (
        'one storage, two types',
        code([tensor((4,), (1,)), tensor((2,), (1,), of=storage('Double', numel=2))]),
    )
    yield (
        'one storage, two sizes',
        code([tensor((4,), (1,)), tensor((10**6,), (1,), of=storage(numel=10**6))]),
    )
    yield (
        'one storage, first small',
        code([tensor((1,), (1,), of=storage(numel=1)), tensor((4,), (1,), of=storage(numel=4))]),
    )
    for key in ('1', 0, '', '../data.pkl', '0/', 'x' * 10**5, -1):
        yield f'storage {str(key)[:20]!r}', tensor((4,), (1,), of=storage(key=key))
    for device in (
        'cuda',
        'cuda:0',
        'cuda:9999999999',
        'meta',
        'hpu',
        'privateuse1:0',
        'mps',
        '',
        'x',
        'cpu:5',
        'fpga',
        'cuda:-1',
        'x' * 1000,
        5,
        None,
    ):
        yield f'location {str(device)[:20]!r}', tensor((4,), (1,), of=storage(device=device))
    square, values = call('torch.Size', (2, 2)), tensor((2,), (1,))
    sparse = 'torch._utils._rebuild_sparse_tensor'
    coo, csr = (
        call('torch.serialization._get_layout', f'torch.sparse_{x}') for x in ('coo', 'csr')
    )
    long = storage('Long', 'long', numel=4)  # 0, 10**9, -5, 1
    index = tensor((1, 2), (2, 1), of=long)
    yield 'sparse: indices beyond the size', call(sparse, coo, (index, values, square, False))
    yield (
        'sparse: negative indices',
        call(sparse, coo, (tensor((1, 2), (2, 1), 2, of=long), values, square, True)),
    )
    yield 'sparse: float indices', call(sparse, coo, (values, values, square, True))
    yield (
        'sparse: a huge size',
        call(
            sparse,
            coo,
            (
                tensor((1, 1), (1, 1), of=long),
                tensor((1,), (1,)),
                call('torch.Size', (2**62, 2**62)),
                True,
            ),
        ),
    )
    yield (
        'sparse csr: wrong pointers',
        call(
            sparse, csr, (tensor((3,), (1,), of=long), tensor((2,), (1,), of=long), values, square)
        ),
    )
    yield (
        'sparse: values beyond the storage',
        call(sparse, coo, (tensor((1, 1), (1, 1), of=long), tensor((9,), (1,)), square, True)),
    )
    yield 'sparse: no layout', call(sparse, 'x', (1, 2))
    yield 'a layout that is not', call('torch.serialization._get_layout', 'torch.load')
    affine = found('torch.per_tensor_affine')
    quantized = 'torch._utils._rebuild_qtensor'
    byte = storage('QUInt8', numel=16)
    yield (
        'quantized: beyond the storage',
        call(quantized, byte, 0, (10**6,), (1,), (affine, 1.0, 0), False, hooks),
    )
    yield (
        'quantized: a scale of text',
        call(quantized, byte, 0, (16,), (1,), (affine, 'x', 0), False, hooks),
    )
    yield (
        'quantized: per channel, wrong axis',
        call(
            quantized,
            byte,
            0,
            (4, 4),
            (4, 1),
            (found('torch.per_channel_affine'), values, tensor((2,), (1,), of=long), 99),
            False,
            hooks,
        ),
    )
    yield (
        'nested: sizes beyond the storage',
        call(
            'torch._utils._rebuild_nested_tensor',
            tensor((4,), (1,)),
            tensor((1, 1), (1, 1), 1, of=long),
            tensor((1, 1), (1, 1), 3, of=long),
            tensor((1,), (1,), of=long),
        ),
    )
    yield (
        'nested: offsets beyond the storage',
        call(
            'torch._utils._rebuild_nested_tensor',
            tensor((4,), (1,)),
            tensor((1, 1), (1, 1), 3, of=long),
            tensor((1, 1), (1, 1), 3, of=long),
            tensor((1,), (1,), 1, of=long),
        ),
    )
    yield (
        'meta: a huge tensor',
        call(
            'torch._utils._rebuild_meta_tensor_no_storage',
            found('torch.float32'),
            (2**40,),
            (1,),
            False,
        ),
    )
    yield (
        'meta: negative size',
        call(
            'torch._utils._rebuild_meta_tensor_no_storage',
            found('torch.float32'),
            (-1,),
            (1,),
            False,
        ),
    )
    yield (
        'wrapper subclass',
        call(
            'torch._utils._rebuild_wrapper_subclass',
            found('torch.Tensor'),
            found('torch.float32'),
            (4,),
            (1,),
            0,
            call('torch.serialization._get_layout', 'torch.strided'),
            call('torch.device', 'cpu'),
            False,
        ),
    )
    yield (
        'from a type',
        call(
            'torch._tensor._rebuild_from_type_v2',
            found('torch._utils._rebuild_tensor_v2'),
            found(ORDERED),
            (storage(), 0, (4,), (1,), False, hooks),
            dict(evil=1),
        ),
    )
    yield (
        'from a type: device',
        call(
            'torch._tensor._rebuild_from_type_v2',
            found('torch.device'),
            found('torch.Tensor'),
            ('cpu',),
            {},
        ),
    )
    yield (
        'from NumPy',
        call(
            'torch._utils._rebuild_device_tensor_from_numpy',
            call('numpy.ndarray', (1,), 'O'),
            found('torch.float32'),
            'cpu',
            False,
        ),
    )
    yield (
        'from a CPU tensor',
        call(
            'torch._utils._rebuild_device_tensor_from_cpu_tensor',
            values,
            found('torch.float32'),
            'cuda:99',
            False,
        ),
    )
    yield (
        'parameter with state',
        call(
            'torch._utils._rebuild_parameter_with_state',
            values,
            True,
            hooks,
            {'__class__': found(ORDERED)},
        ),
    )
    yield (
        'parameter of an integer tensor',
        call('torch._utils._rebuild_parameter', tensor((1,), (1,), of=long), True, hooks),
    )
    yield 'parameter of text', call('torch._utils._rebuild_parameter', 'x', True, hooks)
    yield (
        'backward hooks of another kind',
        call(
            'torch._utils._rebuild_tensor_v2',
            storage(),
            0,
            (4,),
            (1,),
            True,
            dict(a=found(MMENGINE)),
        ),
    )
    for name in (
        'torch.Tensor',
        'torch.FloatTensor',
        'torch.LongTensor',
        'torch.sparse.FloatTensor',
        'torch.Size',
        'builtins.bytearray',
        'torch.storage.UntypedStorage',
        'torch.FloatStorage',
    ):
        yield f'{name}(2**33)', call(name, 2**33)
        yield f'{name}(2**30)', call(name, 2**30)
        yield f'{name}(-1)', call(name, -1)
        yield f'NEWOBJ {name}', new(name, 2**33)
    yield 'Storage of a list', call('torch.FloatStorage', [1.0, 'x'])
    yield 'Storage by a pointer', call('torch.storage.UntypedStorage', storage(), 'cpu')


# -- bombs ---------------------------------------------------------------------------------------


def doubled(levels: int, start: Code, pair: bytes) -> Code:
    """A value that holds the one before twice, and so on."""
    body = start + b'q\x00'
    for _ in range(levels):
        body += b'h\x00' + pair
        body += b'q\x00'
    return Code(body)


def bombs() -> Iterator[Payload]:
    """A few bytes that cost time or memory without end, or the C stack."""
    equal = [i * (2**61 - 1) for i in range(200_000)]  # all of them have the hash 0
    yield (
        '200,000 keys of one hash',
        Code(b'}(' + b''.join(code(key) + b'N' for key in equal) + b'u'),
    )
    yield '200,000 keys of one hash in an OrderedDict', call(ORDERED, [[key, 0] for key in equal])
    yield '200,000 items of one hash in set()', call('builtins.set', equal)
    yield (
        '200,000 items of one hash in a set',
        Code(b'\x8f(' + b''.join(map(code, equal)) + b'\x90'),
    )
    yield '200,000 tuples of one hash', call('builtins.set', [(key,) for key in equal])
    huge = Code(b'\x8b' + struct.pack('<i', 2**22) + b'\x7f' * 2**22 + b'q\x03')
    times = Code(b'(' + huge + b'h\x03' * 63 + b't')
    yield 'a tensor of 64 sizes of 4 MB', tensor(times, (1,) * 64)
    yield 'a tensor of 64 strides of 4 MB', tensor(times, times)
    yield 'an offset of 4 MB', tensor((1,), (1,), huge)
    yield (
        'an array of 32 sizes of 4 MB',
        array(dtype_of('f8'), Code(b'(' + huge + b'h\x03' * 31 + b't'), bytes(8)),
    )
    yield 'a storage of 10**5000 numbers', tensor((4,), (1,), of=storage(numel=10**5000))
    yield 'a size of 10**5000', tensor((10**5000,), (1,))
    yield 'a torch.Size of 10**5000', call('torch.Size', (10**5000,))
    yield (
        'a history of 10**5000',
        build(new(MMENGINE), dict(_log_history=[], _count_history=[], max_length=10**5000)),
    )
    yield 'a device of 10**5000', call('torch.device', 'cpu', 10**5000)
    tuples = doubled(60, code(()), b'\x86')  # TUPLE2 of itself with itself
    yield 'doubling tuples, never used', tuples
    yield 'doubling tuples in a set', Code(b'\x8f(' + tuples + b'\x90')
    yield 'doubling tuples in set()', call('builtins.set', [tuples])
    yield 'doubling tuples as a key', Code(b'}' + tuples + code(1) + b's')
    yield (
        'doubling tuples, equal keys',
        call('builtins.set', [doubled(26, code(()), b'\x86'), doubled(26, code((1,)), b'\x86')]),
    )
    yield 'doubling tuples as a frozenset', Code(b'(' + tuples + b'\x91')
    yield 'doubling tuples as a name', call('torch.device', tuples)
    yield 'doubling tuples as a size', call('torch.Size', tuples)
    yield 'doubling tuples as a shape', tensor(tuples, (1,))
    yield (
        'doubling tuples as a storage key',
        Code(code(('storage', found('torch.FloatStorage'), tuples, 'cpu', 4)) + b'Q'),
    )
    yield 'doubling tuples, BINPERSID', Code(tuples + b'Q')
    yield 'doubling tuples in a Counter', call(COUNTER, [tuples])
    yield 'doubling lists in a ConfigDict', call(CONFIG, dict(a=doubled(40, code([]), b'\x86')))
    text = code('x' * 2**16) + b'q\x01'
    many = Code(b'(' + text + b'h\x01' * 4000 + b'l')
    yield 'one text 4,000 times', many
    yield (
        'doubled dictionaries in a ConfigDict',
        call(
            CONFIG,
            dict(
                a=Code(
                    code(dict(b=1))
                    + b'q\x02'
                    + b''.join(
                        b'0}(' + code('l') + b'h\x02' + code('r') + b'h\x02uq\x02'
                        for _ in range(40)
                    )
                )
            ),
        ),
    )
    yield 'lists copied by a Counter', call(COUNTER, [*range(100)])
    for name, start in (('tuples', b')'), ('lists', b']')):
        for depth in (500, 5_000, 10**6):
            wrap = b'\x85' * depth if name == 'tuples' else b''
            deep = Code(start + wrap) if wrap else Code(b']' * depth + b'a' * (depth - 1))
            yield f'{depth:,} nested {name}', deep
            yield f'{depth:,} nested {name} in a set', Code(b'\x8f(' + deep + b'\x90')
            yield f'{depth:,} nested {name} in a ConfigDict', call(CONFIG, dict(a=deep))
            yield f'{depth:,} nested {name} as a name', call('torch.device', deep)
    yield '10**6 nested dictionaries', Code(b'}' + b'K\x01}' * 10**6 + b's' * 10**6)
    yield '10**6 marks', Code(b'(' * 10**6 + b'N')
    yield (
        '10**6 memo entries far apart',
        Code(b'N' + b''.join(b'r' + struct.pack('<I', i * 4000) for i in range(10**6))),
    )
    yield 'LONG_BINPUT 2**31-1', Code(b'Nr\xff\xff\xff\x7f')
    yield 'LONG_BINPUT 2**28', Code(b'Nr\x00\x00\x00\x10')
    yield 'PUT 10**9', Code(b'Np1000000000\n')
    yield '300,000 global names', Code(b'(' + found(ORDERED) * 300_000 + b't')
    yield '10**6 objects', Code(b'(' + (found(ORDERED) + b')R') * 2 * 10**5 + b't')
    for name, opcode, form in (
        ('LONG4', b'\x8b', '<i'),
        ('BINUNICODE', b'X', '<I'),
        ('BINBYTES', b'B', '<I'),
        ('BINSTRING', b'T', '<i'),
        ('BINBYTES8', b'\x8e', '<Q'),
        ('BINUNICODE8', b'\x8d', '<Q'),
        ('BYTEARRAY8', b'\x96', '<Q'),
        ('FRAME', b'\x95', '<Q'),
    ):
        for length in (-1, 2**31 - 1, 2**31, 2**34, 2**62, 2**63, 2**64 - 1):
            try:
                packed = struct.pack(form, length)
            except struct.error:  # the opcode has no such length
                continue
            yield f'{name} of {length:,} bytes', Code(opcode + packed + b'abc')
    yield 'INT of 100,000 digits', Code(b'I' + b'9' * 100_000 + b'\n')
    yield 'LONG of 5,000,000 digits', Code(b'L' + b'9' * 5_000_000 + b'L\n')
    yield 'LONG4 of 2 MB', Code(b'\x8b' + struct.pack('<i', 2**21) + b'\x7f' * 2**21)
    yield (
        'LONG4 of 2 MB as a size',
        call('torch.device', Code(b'\x8b' + struct.pack('<i', 2**21) + b'\x7f' * 2**21)),
    )
    yield 'FLOAT of 5,000,000 digits', Code(b'F' + b'9' * 5_000_000 + b'\n')
    yield 'STRING with escapes', Code(b"S'" + rb'\x41' * 10**5 + b"'\n")
    yield 'UNICODE with a bad escape', Code(b'V\\ud8\n')
    yield 'NEXT_BUFFER', Code(b'\x97')
    yield 'READONLY_BUFFER', Code(code(1) + b'\x98')
    yield 'DUP 10**6 times', Code(b'(N' + b'2' * 10**6 + b't')
    yield 'idna of 60,000 letters', call('_codecs.encode', 'é' * 60_000, 'idna')
    yield (
        'punycode of 30,000 letters',
        call('_codecs.encode', ''.join(map(chr, range(0x4E00, 0x9000))) * 2, 'punycode'),
    )
    yield 'a range of 10**10', call('builtins.range', 10**10)
    yield 'bytearray(2**34)', call('builtins.bytearray', 2**34)
    yield 'numpy.dtype of 10**9 bytes', array(call('numpy.dtype', 'S1000000000'), (1,), b'x')
    yield (
        'numpy scalar of 10**9 bytes',
        call('numpy.core.multiarray.scalar', call('numpy.dtype', 'S1000000000'), b'x'),
    )
    yield 'a dtype of 20,000 fields', call('numpy.dtype', ','.join(['f8'] * 20_000))
    yield (
        'a dtype of 2,000 nested brackets',
        call('numpy.dtype', '(' * 2000 + '2,' + ')' * 2000 + 'f8'),
    )
    yield 'a dtype that is nested 1,000 deep', _nested_dtype(1000)
    yield 'a dtype that is nested 100,000 deep', _nested_dtype(100_000)


def _nested_dtype(levels: int) -> Code:
    body = call('numpy.dtype', 'f8')
    # dtype([('a', dtype([('a', ...)]))]): the calls stand around each other.
    prefix = (found('numpy.dtype') + b'(](' + b'(' + code('a')) * levels
    suffix = b'tetR' * levels
    return Code(prefix + body + suffix)


def whole() -> Iterator[tuple[str, bytes]]:
    """Pickles that are wrong as a whole."""
    good = checkpoint(code(None))
    yield 'empty', b''
    yield 'only a protocol', b'\x80\x02'
    yield 'only a stop', b'.'
    yield 'stop with an empty stack', b'\x80\x02.'
    yield 'protocol 6', b'\x80\x06' + good[2:]
    yield 'protocol 255', b'\x80\xff' + good[2:]
    yield 'protocol 0', good[2:]
    yield 'two pickles', good * 2
    yield 'rubbish after it', good + bytes(range(256)) * 40
    yield 'an unknown opcode', b'\x80\x02\xfe.'
    yield 'every opcode once', b'\x80\x02' + bytes(range(256)) + b'.'
    yield 'a list', program([1, 2])
    yield 'a number', program(5)
    yield 'text', program('weights')
    yield 'nothing', program(None)
    yield 'a tensor', program(tensor((4,), (1,)))
    yield 'a class', program(found(ORDERED))
    yield 'a function', program(found('torch._utils._rebuild_tensor_v2'))
    yield 'a mark left', b'\x80\x02(.'
    yield 'two objects left', b'\x80\x02NN.'
    yield 'protocol 4', pickle.dumps(dict(a=1, b=np.arange(3)), 4)
    yield 'protocol 5', pickle.dumps(dict(a=1, b=np.arange(3)), 5)
    yield 'protocol 2 of NumPy', pickle.dumps(dict(a=np.float64(1), b=np.arange(3)), 2)
