"""Hostile checkpoints end in one sentence: nothing runs, nothing crashes, little memory.

Each file is loaded in a child process, so that a crash of the interpreter is a failure of the
test and not its end.
"""

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from hostile import Name, array, body, call, dtype, history, tensor, zip_file
from mmengine.logging import HistoryBuffer

from pera_mm.weights.loading import load_checkpoint

LOAD_ALL = Path(__file__).with_name('load_all.py')
MAX_MIB, MAX_SECONDS = 600, 30  # of one file, on a busy machine
KINDS = dict(objects=hostile.object_arrays, callables=hostile.callables, beyond=hostile.beyond,
             bombs=hostile.bombs, steps=hostile.odd_steps)
LEGACY_HEAD = b''.join(pickle.dumps(part, 2) for part in (
    0x1950a86a20f9469cfc6c, 1001, dict(little_endian=True)))
LEGACY_END = pickle.dumps(['0'], 2) + struct.pack('<q', 4) + bytes(16)


@pytest.fixture(scope='module')
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict]]:
    """What came of every hostile file, by kind and name; one child process loads them all."""
    folder = tmp_path_factory.mktemp('hostile')
    for kind, cases in KINDS.items():
        for name, value in cases():
            pickled = value if isinstance(value, bytes) else body(value)
            zip_file(folder / f'{kind}={name}', pickled)
            if kind != 'bombs':
                (folder / f'legacy={kind}, {name}').write_bytes(LEGACY_HEAD + pickled + LEGACY_END)
    compressed_files(folder)
    contradicting_files(folder)
    overlapping_file(folder / 'zip=overlapping')
    foreign_files(folder)
    child = subprocess.run([sys.executable, str(LOAD_ALL), str(folder)], capture_output=True,
                           text=True, timeout=280)
    assert child.returncode == 0, f'ended with {child.returncode}: {child.stdout[-500:]}'
    found: dict[str, dict[str, dict]] = {}
    for line in child.stdout.splitlines():
        kind, _, name = json.loads(line)['name'].partition('=')
        found.setdefault(kind, {})[name] = json.loads(line)
    assert sum(map(len, found.values())) == len(list(folder.iterdir()))
    return found


def compressed_files(folder: Path) -> None:
    """Some kilobytes of deflated zeros would be a pickle of 256 MB."""
    big = pickle.PROTO + b'\2' + pickle.BINUNICODE + struct.pack('<I', 2**28) + bytes(2**28) + b'.'
    zip_file(folder / 'compressed=pickle', big, compress=('data.pkl', ))
    zip_file(folder / 'compressed=numbers', body(tensor(0, (4, ), (1, ))), compress=('0', ))
    zip_file(folder / 'compressed=order', body(1), compress=('byteorder', ))


def contradicting_files(folder: Path) -> None:
    good = zip_file(folder / 'zip=twice', body(tensor(0, (4, ), (1, ))))
    assert load_checkpoint(good).tolist() == [0] * 4
    content = good.read_bytes()
    with zipfile.ZipFile(good) as file:
        first = file.infolist()[0]
    start = first.header_offset
    (folder / 'zip=header').write_bytes(content[:start] + b'PK\3\5' + content[start + 4:])
    index = content.index(b'PK\1\2')  # of data.pkl
    for name, at in (('offset', 42), ('size', 24), ('compressed size', 20)):
        changed = bytearray(content)
        changed[index + at:index + at + 4] = struct.pack('<I', 2**31)
        (folder / f'zip={name}').write_bytes(changed)
    end = content.rindex(b'PK\5\6')
    for name, at, value in (('directory', 16, 2**32 - 1), ('itself', 16, end), ('long', 12, end)):
        changed = bytearray(content)
        changed[end + at:end + at + 4] = struct.pack('<I', value)
        (folder / f'zip=end, {name}').write_bytes(changed)
    with pytest.warns(UserWarning), zipfile.ZipFile(good, 'a') as file:
        file.writestr(first.filename, b'.')
    for name, records in dict(
            empty={'readme': b''}, two={'a/data.pkl': body(1), 'b/data.pkl': body(1)},
            order={'a/data.pkl': body(1), 'a/byteorder': b'big'}).items():
        with zipfile.ZipFile(folder / f'zip={name}', 'w') as file:
            for record, data in records.items():
                file.writestr(record, data)


def overlapping_file(path: Path) -> None:
    """Twenty tensors whose records lie over each other."""
    tensors = [tensor(0, (4, ), (1, ), hostile.stored(key=str(key))) for key in range(20)]
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('a/data.pkl', body(tensors))
        for key in range(20):
            file.writestr(f'a/data/{key}', bytes(16) if key else bytes(2**20))
        first = file.getinfo('a/data/0')
        for key in range(1, 20):
            info = file.getinfo(f'a/data/{key}')
            info.header_offset, info.CRC = first.header_offset, first.CRC
            info.file_size = info.compress_size = first.file_size


def foreign_files(folder: Path) -> None:
    """An ordinary pickle; torch's tar format, which would unpack files; others."""
    for name, content in dict(
            pickle=pickle.dumps(dict(a=1)), number=pickle.dumps(0x1950a86a20f9469cfc6c),
            tar=b'\x80sys_info' + bytes(2048), numpy=b'\x93NUMPY\x01\x00', start=b'PK',
            keys=LEGACY_HEAD + body(tensor(0, (4, ), (1, ))) + pickle.dumps([0], 2)
            + LEGACY_END[-24:], safetensors=struct.pack('<Q', 2**40) + b'{"a":').items():
        (folder / f'foreign={name}').write_bytes(content)


@pytest.mark.parametrize('kind', [*KINDS, 'legacy', 'compressed', 'zip', 'foreign'])
def test_hostile_files_end_in_one_sentence(results: dict, kind: str):
    for result in results[kind].values():
        assert result['outcome'] == 'UserError', result
        assert result['message'].isprintable() and len(result['message']) < 1000, result
        assert result['mib'] < MAX_MIB and result['seconds'] < MAX_SECONDS, result


@pytest.mark.parametrize(('kind', 'name', 'reason'), [
    ('objects', 'object dtype', 'a NumPy type that is not a plain number'),
    ('objects', 'number dtype with the state of an object dtype', 'not a plain number'),
    ('objects', 'reconstructed history', 'a NumPy array of another class'),
    ('objects', 'array called over a buffer', 'a call of numpy.ndarray'),
    ('callables', 'history with a method of its own', '_rebuild_tensor_v2 as a value'),
    ('callables', 'history of the class', 'new attributes for mmengine.*HistoryBuffer'),
    ('callables', 'items of an OrderedDict', 'new attributes for an OrderedDict'),
    ('beyond', 'larger than its storage', 'reaches beyond the 4 numbers of its storage'),
    ('beyond', 'storage with other bytes', 'has 8 numbers, its record 16 bytes'),
    ('bombs', 'doubled tuples as a key', 'an object of type tuple as a key'),
    ('bombs', 'three million sets', 'more than 2,000,000 instructions'),
    ('bombs', 'a product of long numbers', 'are not whole numbers'),
    ('bombs', 'keys of one hash', 'an object of type int as a key'),
    ('steps', 'INST', "instruction 'i'"),
    ('compressed', 'pickle', "'.*data.pkl' is compressed"),
    ('zip', 'twice', 'two records of one name'),
    ('zip', 'overlapping', 'records are larger than the file'),
    ('zip', 'order', 'another order of bytes'),
    ('foreign', 'pickle', 'that torch.save did not write'),
])
def test_the_sentence_says_why(results: dict, kind: str, name: str, reason: str):
    assert re.search(reason, results[kind][name]['message'])


def test_the_danger_is_real():
    """NumPy reads the address 16 as an object, which crashes; at a better one it is any object."""
    child = subprocess.run([sys.executable, '-c', (
        'import numpy as np\n'
        'print(np.ndarray((1,), np.dtype("O"), (16).to_bytes(8, "little"))[0])')],
        capture_output=True)
    assert child.returncode < 0  # ended by a signal


# -- what is admitted arrives ----------------------------------------------------------------


def test_what_the_hostile_files_are_made_of_loads(tmp_path: Path):
    """Otherwise they could be refused for their making."""
    def loaded(value: object) -> object:
        return load_checkpoint(zip_file(tmp_path / 'good.pth', body(value),
                                        numbers=np.arange(4, dtype=np.float32).tobytes()))

    assert loaded(tensor(1, (3, ), (1, ))).tolist() == [1, 2, 3]
    assert loaded(tensor(0, (2, 2), (1, 2))).tolist() == [[0, 2], [1, 3]]
    assert loaded(tensor(3, (5, ), (0, ))).tolist() == [3] * 5
    one = np.float64(1).tobytes()
    plain = dtype('f8', hostile.PLAIN_STATE)
    assert loaded(array(plain, one)).tolist() == [1]
    assert loaded(array(dtype('f8', (3, '>', None, None, None, -1, -1, 0)),
                        one[::-1])).tolist() == [1]
    assert loaded(call(hostile.SCALAR, plain, one)) == 1
    buffer = loaded(history(array(plain, one), statistics_methods={
        'mean': call('builtins getattr', Name(hostile.HISTORY), 'mean')}))
    assert isinstance(buffer, HistoryBuffer) and buffer.current() == 1
    assert loaded({'anneal_func': call('builtins getattr', Name(hostile.ONE_CYCLE),
                                       '_annealing_cos'), 'lr': 1}) == {'lr': 1}
    assert loaded(hostile.stored(kind='torch.storage UntypedStorage', number=16)).nbytes() == 16


def test_the_classes_of_mmengine_stay_as_they_are(tmp_path: Path):
    before = dict(HistoryBuffer._statistics_methods)
    log = array(dtype('f8', hostile.PLAIN_STATE), bytes(8))
    for methods in ({'mean': Name('torch._utils _rebuild_tensor_v2')}, {'mean': 'text'}):
        with pytest.raises(ValueError, match='HistoryBuffer|_rebuild_tensor_v2'):
            load_checkpoint(zip_file(tmp_path / 'x.pth', body(
                history(log, statistics_methods=methods))))
    assert before == HistoryBuffer._statistics_methods


def test_shared_parts_stay_shared(tmp_path: Path):
    weight, betas = torch.arange(4.), [0.9, 0.99]
    torch.save(dict(a=weight, b=weight, c=weight[1:3], groups=[betas, betas]), tmp_path / 'x.pth')
    found = load_checkpoint(tmp_path / 'x.pth')
    assert found['a'] is found['b'] and found['groups'][0] is found['groups'][1]
    found['a'][1] = 9
    assert found['c'].tolist() == [9, 2]


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_every_protocol_is_read(tmp_path: Path, protocol: int):
    value = dict(w=torch.arange(3.), text='é' * 300, many=list(range(300)), none=None, seen={1, 2},
                 large=2**70, real=0.5, raw=b'\xff' * 300, pair=(True, (False, )))
    torch.save(value, tmp_path / 'x.pth', pickle_protocol=protocol)
    found = load_checkpoint(tmp_path / 'x.pth')
    assert found.pop('w').equal(value.pop('w')) and found == value


@pytest.mark.skipif(os.name == 'nt', reason='a file is not mapped there')
def test_unaligned_records_are_read_all_the_same(tmp_path: Path):
    numbers = np.arange(4, dtype=np.float32).tobytes()
    for length in range(1, 20):
        with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as file:
            file.writestr('a/data.pkl', body(tensor(0, (4, ), (1, ))))
            file.writestr('a/pad', bytes(length))
            file.writestr('a/data/0', numbers)
        assert load_checkpoint(tmp_path / 'x.pth', mmap=True).tolist() == [0, 1, 2, 3]
