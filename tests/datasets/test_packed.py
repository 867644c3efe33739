import io
import logging
import os
import pickle
import re
import shutil
import tarfile
from multiprocessing import get_context

import lmdb
import numpy as np
import pytest
import torch
from shards import picture, write_shards, write_tar

from pera_mm.datasets.packed import OPEN_SHARDS, LmdbImages, TarShards, position_key
from pera_mm.datasets.reading import UnreadableImage
from pera_mm.datasets.shard_index import scan_shard, write_index


def numbers(images):
    """The number that each image was made of, None where it cannot be read."""
    found = {picture(number): number for number in range(256)}
    read = []
    for index in range(len(images)):
        try:
            read.append(found[images.read(index)])
        except UnreadableImage:
            read.append(None)
    return read


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def warnings(caplog):
    """What is logged: MMEngine's logger does not hand on."""
    from mmengine.logging import MMLogger
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


# Finding and reading ----------------------------------------------------------------------------


@pytest.mark.parametrize('form', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_tar_is_read_by_place(tmp_path, form):
    long = 'long/' * 18 + 'folder/' + 'n' * 40 + '/image.jpeg'  # above the header's 100 bytes
    write_tar(tmp_path / 'x.tar', {
        'b.png': picture(0), 'b.json': b'{}', 'a/A.JPG': picture(1), '.hidden.png': b'',
        'a/._A.JPG': b'', long: picture(2), 'é.tif': picture(3), 'empty.png': b'',
        'notes': b'png', 'a/@eaDir/A.JPG/THUMB.jpg': picture(4), '.trash/x.png': picture(5),
        '__MACOSX/x.png': picture(6)}, form)
    assert len(TarShards(str(tmp_path / 'x.tar'))) == 5
    images = TarShards(str(tmp_path / 'x.tar'))
    assert [images.read(index) for index in range(5)] == [*map(picture, range(4)), b'']
    assert [images.name(index) for index in (0, 1, 3)] == [
        f'{tmp_path}/x.tar/{name}' for name in ('b.png', 'a/A.JPG', 'é.tif')][:2] + [
            images.name(3)]
    assert images.name(2).startswith(f'{tmp_path}/x.tar/long/')
    with tarfile.open(tmp_path / 'x.tar') as tar:
        places = [tar.getmember(name).offset_data for name in ('b.png', 'a/A.JPG', long)]
    assert images.places['offset'][:3].tolist() == places


def test_shards_in_bytewise_order_and_an_index_of_16_bytes_an_image(tmp_path):
    write_shards(tmp_path, [3, 0, 5])
    write_tar(tmp_path / '-.tar', {'x.png': picture(99)})
    write_tar(tmp_path / '._000000.tar', {'x.png': picture(98)})
    (tmp_path / 'manifest.csv').write_text('id\n')
    images = TarShards(str(tmp_path))
    assert numbers(images) == [99, *range(8)] and len(images) == 9
    assert images.name(5) == f'{tmp_path}/000002.tar/0004.png'
    assert [path.name for path in tmp_path.glob('*index*')] == ['index.npy']
    size = (tmp_path / 'index.npy').stat().st_size
    write_shards(tmp_path, [3, 0, 105])
    assert len(TarShards(str(tmp_path))) == 109
    assert (tmp_path / 'index.npy').stat().st_size == size + 100 * 16


def test_the_index_is_made_once_and_again_when_shards_came_went_or_grew(tmp_path):
    write_shards(tmp_path, [3, 4])
    index = tmp_path / 'index.npy'
    TarShards(str(tmp_path))
    made = index.stat().st_ino
    assert len(TarShards(str(tmp_path))) == 7 and index.stat().st_ino == made
    write_shards(tmp_path, [3, 4, 2])
    assert numbers(TarShards(str(tmp_path))) == list(range(9))
    (tmp_path / '000000.tar').unlink()
    assert numbers(TarShards(str(tmp_path))) == list(range(3, 9))
    write_shards(tmp_path, [50, 4, 2])
    assert numbers(TarShards(str(tmp_path))) == list(range(56))
    index.write_bytes(index.read_bytes()[:100])
    assert numbers(TarShards(str(tmp_path))) == list(range(56))


def test_an_index_elsewhere_where_it_cannot_lie_beside_the_shards(tmp_path, warnings):
    shards, elsewhere = tmp_path / 'shards', tmp_path / 'lists/shards.npy'
    write_shards(shards, [3, 4])
    (shards / 'index.npy').mkdir()  # a file cannot be written here, even by root
    assert len(TarShards(str(shards), str(elsewhere))) == 7
    made = elsewhere.stat().st_ino
    assert TarShards(str(shards), str(elsewhere)).index.file == elsewhere
    assert elsewhere.stat().st_ino == made
    for index_file in (None, str(shards / '000000.tar/x.npy')):
        images = TarShards(str(shards), index_file)  # in memory
        assert numbers(images) == numbers(pickle.loads(pickle.dumps(images))) == list(range(7))
        assert re.search('index .* cannot be written to .*npy.* set index_file',
                         warnings.records.pop().getMessage())
    (shards / 'index.npy').rmdir()
    TarShards(str(shards))
    elsewhere.unlink()
    assert TarShards(str(shards), str(elsewhere)).index.file == shards / 'index.npy'
    assert sorted(os.listdir(shards)) == ['000000.tar', '000001.tar', 'index.npy']


def test_no_shard_and_no_image(tmp_path):
    with pytest.raises(ValueError, match='has no .tar shard: check the path'):
        TarShards(str(tmp_path))
    write_tar(tmp_path / 'x.tar', {'a.txt': b'a'})
    with pytest.raises(ValueError, match='the tar shards of .* have no image: give'):
        TarShards(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ['x.tar']


# Damage -----------------------------------------------------------------------------------------


def test_images_of_a_shard_that_lost_its_end_are_unreadable(tmp_path):
    write_shards(tmp_path, [3, 4, 2])
    images = TarShards(str(tmp_path))
    begin, size = images.places['offset'][5], images.places['size'][5]
    os.truncate(tmp_path / '000001.tar', begin + 10)
    for again in (images, TarShards(str(tmp_path))):  # open already, and opened later
        assert numbers(again) == [0, 1, 2, 3, 4, None, None, 7, 8]
        with pytest.raises(UnreadableImage, match=f'the shard ends before byte {begin + size}'):
            again.read(5)
        assert again.name(6) == f'{tmp_path}/000001.tar/byte {int(again.places["offset"][6])}'


def test_a_missing_shard_and_a_replaced_one(tmp_path):
    write_shards(tmp_path, [30, 4])
    images = TarShards(str(tmp_path))
    (tmp_path / '000001.tar').unlink()
    with pytest.raises(UnreadableImage, match='FileNotFoundError'):
        images.read(30)
    write_shards(tmp_path, [30, 4])
    # Another shard of the same size.
    write_tar(tmp_path / '000000.tar', {
        f'{number}.png': picture(number) + b'more' for number in range(60)})
    images = TarShards(str(tmp_path))
    with pytest.raises(UnreadableImage, match='no image of this size here; if it was replaced, '
                                              'delete .*index.npy'):
        images.read(0)


@pytest.mark.parametrize('damage', ['header', 'end', 'whole'])
def test_what_was_damaged_before_it_was_found_is_left_out_with_a_line(tmp_path, warnings, damage):
    write_shards(tmp_path, [3, 4, 2])
    whole = (tmp_path / '000001.tar').read_bytes()
    broken = whole[:1024 * 4 + 100] + bytes(range(256)) * 3 + whole[1024 * 4 + 868:]
    found = [3, 4]  # two pairs of image and text: four members of two blocks each
    if damage == 'end':
        broken, found = whole[:1024 * 4 + 520], [3, 4, None]
    elif damage == 'whole':
        broken, found = b'no tar' * 500, []
    (tmp_path / '000001.tar').write_bytes(broken)
    assert numbers(TarShards(str(tmp_path))) == [0, 1, 2, *found, 7, 8]
    line, = (record.getMessage() for record in warnings.records
             if record.levelno == logging.WARNING)
    assert line.startswith(f'{tmp_path}/000001.tar is damaged (')
    assert f'the {len(found)} images before the damage are used' in line


@pytest.mark.parametrize('hole', ['header', 'second tar'])
def test_zeros_in_the_middle_do_not_end_a_shard_unseen(tmp_path, warnings, hole):
    write_shards(tmp_path, [6])
    shard = tmp_path / '000000.tar'
    data = bytearray(shard.read_bytes())
    if hole == 'header':
        data[1024 * 4:1024 * 4 + 512] = bytes(512)
    else:
        data = data + data
    shard.write_bytes(data)
    assert numbers(TarShards(str(tmp_path))) == list(range(2 if hole == 'header' else 6))
    (line,) = (record.getMessage() for record in warnings.records if record.levelno > 20)
    assert re.search(r'damaged \(an end mark at byte \d+, or a hole, and more bytes after it\)',
                     line)


def test_a_damaged_shard_is_looked_through_again_at_every_start(tmp_path, warnings):
    write_shards(tmp_path, [3, 4, 2])
    shard = tmp_path / '000001.tar'
    whole = shard.read_bytes()
    shard.write_bytes(whole[:2048] + b'x' * 512 + whole[2560:])
    for _ in range(2):
        warnings.clear()
        assert numbers(TarShards(str(tmp_path))) == [0, 1, 2, 3, 7, 8]
        assert len([record for record in warnings.records if record.levelno > 20]) == 1
    shard.write_bytes(whole)  # mended: as large as before
    warnings.clear()
    assert numbers(TarShards(str(tmp_path))) == list(range(9))
    assert [record.getMessage()[-18:] for record in warnings.records] == ['once: shard 2 of 3']
    index = (tmp_path / 'index.npy').stat().st_ino
    assert len(TarShards(str(tmp_path))) == 9
    assert (tmp_path / 'index.npy').stat().st_ino == index


def test_a_shard_that_cannot_be_opened_for_a_time(tmp_path, warnings):
    write_shards(tmp_path / 'there', [3, 4])
    (tmp_path / 'here').mkdir()
    for name in ('000000.tar', '000001.tar'):
        (tmp_path / 'here' / name).symlink_to(tmp_path / 'there' / name)
    (tmp_path / 'there/000001.tar').rename(tmp_path / 'away.tar')
    images = TarShards(str(tmp_path / 'here'))
    assert numbers(images) == [0, 1, 2]
    assert 'No such file' in warnings.records[-1].getMessage()
    (tmp_path / 'away.tar').rename(tmp_path / 'there/000001.tar')
    assert numbers(TarShards(str(tmp_path / 'here'))) == list(range(7))
    (tmp_path / 'there/000001.tar').rename(tmp_path / 'away.tar')  # known, and gone again
    assert numbers(TarShards(str(tmp_path / 'here'))) == [0, 1, 2, None, None, None, None]


def test_a_smaller_shard_in_the_place_of_another_is_looked_through(tmp_path):
    write_shards(tmp_path, [30, 4])
    assert len(TarShards(str(tmp_path))) == 34
    write_tar(tmp_path / '000000.tar', {'a.png': picture(7), 'b.json': bytes(3000)})
    assert numbers(TarShards(str(tmp_path))) == [7, 30, 31, 32, 33]


def test_what_tarfile_finds_is_found(tmp_path):
    """Every kind of member, by a second reader; webdataset's TarWriter gives every one a PAX header
    for its time."""
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        shard = tmp_path / f'{form}.tar'
        with tarfile.open(shard, 'w', format=form) as tar:
            for number in range(200):
                member = tarfile.TarInfo(('deep/' * (number % 30 if form else 5)) + f'{number}.png')
                member.type = {1: tarfile.DIRTYPE, 2: tarfile.SYMTYPE, 3: tarfile.CONTTYPE,
                               5: tarfile.LNKTYPE}.get(number % 17, tarfile.REGTYPE)
                if number % 17 == 4 and form == tarfile.USTAR_FORMAT:
                    member.type = tarfile.AREGTYPE  # tarfile takes long names of it for folders
                member.linkname = 'l' * (150 if form else 50) if number % 17 in (2, 5) else ''
                member.mtime = number + (0.5 if form == tarfile.PAX_FORMAT else 0)
                member.size = number * 37 if member.isreg() else 0
                tar.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
        with tarfile.open(shard) as tar:
            expected = [(member.offset_data, 5, member.size) for member in tar if member.isreg()]
        found, damage = scan_shard(shard, 5)
        assert found.tolist() == expected and len(expected) > 150 and damage == ''


# Processes --------------------------------------------------------------------------------------


def test_pickles_as_a_name_and_opens_few_files(tmp_path):
    write_shards(tmp_path, [1] * (OPEN_SHARDS + 40))
    images = TarShards(str(tmp_path))
    before = len(os.listdir('/proc/self/fd'))
    assert numbers(images) == [number % 256 for number in range(OPEN_SHARDS + 40)]
    assert len(os.listdir('/proc/self/fd')) <= before + OPEN_SHARDS
    data = pickle.dumps(images)
    assert len(data) < 500
    copy = pickle.loads(data)
    assert numbers(copy) == numbers(images) and copy.name(7) == images.name(7)


def open_often(folder):
    for _ in range(20):
        images = TarShards(str(folder))
        assert numbers(images) == list(range(9))
        write_index(images.index.file, images.shards, [images.places])


def test_many_processes_find_the_images_at_once(tmp_path):
    write_shards(tmp_path, [4, 5])
    processes = [get_context('fork').Process(target=open_often, args=(tmp_path,))
                 for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(os.listdir(tmp_path)) == ['000000.tar', '000001.tar', 'index.npy']


def ask(images, queue):
    read = numbers(images)
    if isinstance(images, LmdbImages):  # LMDB forbids to use what the parent opened
        assert images.environment.process == os.getpid()
    queue.put(read)


def in_a_process(method, images):
    context = get_context(method)
    queue = context.Queue()
    process = context.Process(target=ask, args=(images, queue))
    process.start()
    try:
        return queue.get(timeout=60)
    finally:
        process.join()


@pytest.fixture
def database(tmp_path):
    with lmdb.open(str(tmp_path / 'lmdb'), map_size=1 << 20) as environment:
        with environment.begin(write=True) as transaction:
            for number in range(20):
                transaction.put(position_key(number), picture(number))
    return tmp_path / 'lmdb'


def test_forked_processes_read_what_their_parent_has_open(tmp_path, database):
    write_shards(tmp_path / 'tar', [10, 10])
    for images in (TarShards(str(tmp_path / 'tar')), LmdbImages(str(database))):
        assert numbers(images) == list(range(20)) == in_a_process('fork', images)
        assert numbers(images) == list(range(20))


@pytest.mark.slow
def test_spawned_processes(tmp_path, database):
    write_shards(tmp_path / 'tar', [10, 10])
    for images in (TarShards(str(tmp_path / 'tar')), LmdbImages(str(database))):
        assert in_a_process('spawn', images) == list(range(20))


# Order ------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    write_shards(tmp_path, [20, 0, 7, 30, 13, 30])
    return TarShards(str(tmp_path))


def test_an_epoch_has_every_image_once_and_is_a_function_of_the_seed(shards):
    for buffer in (1, 10, 99, 100, 10_000):
        order = shards.order(generator(0), buffer)
        assert order.dtype == torch.int64
        assert order.sort().values.tolist() == list(range(100)) != order.tolist()
        assert torch.equal(order, shards.order(generator(0), buffer))
        assert not torch.equal(order, shards.order(generator(1), buffer))
    # Frozen: another machine, version or refactor must draw the same.
    assert shards.order(generator(0), 10)[:8].tolist() == [20, 22, 21, 23, 25, 24, 70, 26]


def test_without_a_buffer_shards_are_permuted_and_read_from_front_to_back(shards):
    order = shards.order(generator(0), 1)
    owner = shards.places['shard'][order.numpy()]
    runs = np.flatnonzero(np.diff(owner)) + 1
    assert len(runs) == 4  # five shards that are not empty, each in one piece
    pieces = np.split(order.numpy(), runs)
    assert [len(piece) for piece in pieces] != [20, 7, 30, 13, 30]
    assert all((np.diff(piece) == 1).all() for piece in pieces)
    firsts = {int(shards.order(generator(seed), 1)[0]) for seed in range(60)}
    assert firsts == {0, 20, 27, 57, 70}


@pytest.mark.parametrize('buffer', [2, 10, 50])
def test_an_image_moves_by_less_than_the_buffer(shards, buffer):
    farthest = 0
    for seed in range(50):
        sequence = shards.order(generator(seed), 1)  # the same permutation of shards
        where = torch.argsort(shards.order(generator(seed), buffer))
        moved = where[sequence] - torch.arange(100)
        assert moved.abs().max() < buffer
        farthest = max(farthest, int(moved.abs().max()))
    assert farthest >= 0.5 * buffer


def test_moves_are_those_of_a_slow_version(shards):
    """Each image waits for a random time below the buffer after its shard's turn came to it."""
    random = generator(3)
    owner = shards.places['shard'].tolist()
    sequence = [image for shard in torch.randperm(6, generator=random).tolist()
                for image in range(100) if owner[image] == shard]
    waits = torch.rand(100, generator=random, dtype=torch.float64).tolist()
    slow = sorted((place + 10 * wait, image)
                  for place, (wait, image) in enumerate(zip(waits, sequence)))
    assert shards.order(generator(3), 10).tolist() == [image for _, image in slow]


def test_what_fits_into_the_buffer_is_permuted_freely(shards):
    orders = torch.stack([shards.order(generator(seed), 100) for seed in range(400)])
    mean = orders.double().mean(0)  # at every position 49.5, with a deviation of 28.9 / 20
    assert (mean - 49.5).abs().max() < 4.5 * 28.9 / 20


# LMDB -------------------------------------------------------------------------------------------


def test_lmdb_by_position(database):
    images = LmdbImages(str(database))
    assert numbers(images) == list(range(20))
    assert images.name(7) == f'{database}/000000007'
    copy = pickle.loads(pickle.dumps(images))
    again = LmdbImages(os.path.relpath(database))  # LMDB may be open once in a process
    assert numbers(copy) == numbers(again) == list(range(20))
    assert len(pickle.dumps(images)) < 500
    del images, copy, again
    with lmdb.open(str(database)) as environment:  # nobody keeps it open
        assert environment.stat()['entries'] == 20


def test_a_hole_in_lmdb_is_an_unreadable_image(database):
    with lmdb.open(str(database)) as environment, environment.begin(write=True) as transaction:
        transaction.delete(position_key(3))
    images = LmdbImages(str(database))
    assert numbers(images) == [0, 1, 2, None, *range(4, 20)]
    with pytest.raises(UnreadableImage, match='has no key 000000003'):
        images.read(3)


def test_lmdb_that_cannot_be_used(database, tmp_path):
    shutil.copytree(database, tmp_path / 'short')
    os.truncate(tmp_path / 'short/data.mdb', 2 * 4096)
    with pytest.raises(ValueError, match='short/data.mdb ends early: copy it again'):
        LmdbImages(str(tmp_path / 'short'))
    (tmp_path / 'no').mkdir()
    (tmp_path / 'no/data.mdb').write_bytes(b'no LMDB' * 2000)
    with pytest.raises(ValueError, match='no/data.mdb is not a readable LMDB'):
        LmdbImages(str(tmp_path / 'no'))
    for keys in ([], [b'cat_001']):
        with lmdb.open(str(tmp_path / 'other')) as environment:
            with environment.begin(write=True) as transaction:
                for key in keys:
                    transaction.put(key, b'')
        with pytest.raises(ValueError, match="no images under the keys '000000000', 1, 2"):
            LmdbImages(str(tmp_path / 'other'))


@pytest.mark.parametrize('size', [b'-1', b'-100000', b'9' * 30, b'1e3', b''])
def test_a_pax_size_that_is_not_one_is_damage(tmp_path, size):
    record = b' size=' + size + b'\n'
    record = str(len(record) + 2).encode() + record
    header = tarfile.TarInfo('PaxHeaders/x')
    header.type, header.size = tarfile.XHDTYPE, len(record)
    image = tarfile.TarInfo('a.png')
    (tmp_path / '0.tar').write_bytes(b''.join([
        header.tobuf(), record.ljust(512, b'\0'), image.tobuf(), bytes(1024)]))
    found, damage = scan_shard(tmp_path / '0.tar', 0)
    assert len(found) == 0 and damage == 'a broken PAX header'


@pytest.mark.parametrize('kind', [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_name_of_gigabytes_is_damage(tmp_path, kind):
    header = tarfile.TarInfo('x')
    header.type, header.size = kind, 2**33
    (tmp_path / '0.tar').write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert 'header of 8589934592 bytes' in scan_shard(tmp_path / '0.tar', 0)[1]
