import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from multiprocessing import get_context
from pathlib import Path

import lmdb
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pera_mm.collect.common.tables import TILE
from pera_mm.collect.pack import step as packing
from pera_mm.collect.pack.step import FORMS, KeptTile, pack
from pera_mm.collect.pack.subset import subset
from pera_mm.collect.pack.verify import verify
from pera_mm.datasets.listing import open_source
from pera_mm.datasets.packed import TarShards
from pera_mm.datasets.shard_index import scan_shard
from pera_mm.datasets.unlabeled import UnlabeledImages


def tile(number, size=16):
    """A noisy JPEG of its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'JPEG')
    return file.getvalue()


def write_kept(folder, count=25, **changes):
    """A work folder as the step filter leaves it."""
    rows = []
    for number in range(count):
        identity = f'{number:07}'
        file = f'tiles/{number // 10:03}/{identity}.jpg'
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(tile(number))
        rows.append((identity, '12.340000', '-5.100000', 'urban', 'north america', '0.597', '17',
                     'a server', '', file, hashlib.sha256(tile(number)).hexdigest()))
    table = pd.DataFrame(rows, columns=TILE).assign(**changes)
    table.to_csv(folder / 'kept.csv', index=False, lineterminator='\n')
    return folder


def files_of(folder):
    """Every file below a folder, hidden ones included, with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.fixture
def work(tmp_path):
    return write_kept(tmp_path / 'work')


def pack_quickly(folder, form='webdataset', images_per_shard=10):
    return pack(folder, form=form, images_per_shard=images_per_shard)


# Packing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('form, name', [
    ('webdataset', '000001.tar/0000013.jpg'), ('folder', '001/0000013.jpg'), ('lmdb', '000000013')])
def test_what_is_packed_is_read_back_in_the_order_of_kept_csv(work, form, name):
    summary = pack_quickly(work, form)
    assert summary == dict(form=form, images=25, bytes=sum(len(tile(n)) for n in range(25)),
                           **({} if form == 'lmdb' else dict(shards=3)))
    images = open_source(str(work / 'packed'))
    assert [images.read(index) for index in range(25)] == [tile(number) for number in range(25)]
    assert images.name(13) == f'{work}/packed/{name}'
    dataset = UnlabeledImages(str(work / 'packed'), [])
    assert dataset[13]['img_path'] == images.name(13)
    manifest = (work / 'packed/manifest.csv').read_text().splitlines()
    kept = (work / 'kept.csv').read_text().splitlines()
    assert manifest[0] == kept[0] == ','.join(TILE)
    assert manifest[14] == kept[14].replace('tiles/001/0000013.jpg', name)  # text for text
    assert verify(work / 'packed') == dict(
        ok=True, images=25, sound=25, missing=0, altered=0, extra=0, problems=[])


def test_shards_are_webdatasets_and_the_same_bytes_everywhere(work, tmp_path):
    pack_quickly(work)
    with tarfile.open(work / 'packed/000002.tar') as tar:
        members = tar.getmembers()
        assert [member.name for member in members[:4]] == [
            '0000020.jpg', '0000020.json', '0000021.jpg', '0000021.json']
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, '', 0o644)}
        row = json.loads(tar.extractfile('0000020.json').read())
    assert row == dict(
        id='0000020', lon=12.34, lat=-5.1, gsd=0.597, zoom=17, source='a server', date='',
        file='000002.tar/0000020.jpg', sha256=hashlib.sha256(tile(20)).hexdigest(),
        continent='north america', **{'class': 'urban'})
    other = write_kept(tmp_path / 'other')
    for file in other.rglob('*.jpg'):
        os.utime(file, (1, 1))
    pack_quickly(other)
    assert files_of(other / 'packed') == files_of(work / 'packed')


def test_the_index_of_a_packer_is_that_of_a_reader(work):
    pack_quickly(work)
    packed = work / 'packed'
    written = TarShards(str(packed))
    scanned = [scan_shard(packed / f'{number:06}.tar', number)[0] for number in range(3)]
    np.testing.assert_array_equal(written.places, np.concatenate(scanned))
    index = (packed / 'index.npy').read_bytes()
    (packed / 'index.npy').unlink()
    TarShards(str(packed))
    assert (packed / 'index.npy').read_bytes() == index


def test_a_raster_without_zoom_and_with_other_columns(tmp_path):
    folder = write_kept(tmp_path, 3, zoom=['', '17', ''], cloud=[0.1, 0.2, 0.3])
    pack_quickly(folder)
    table = pd.read_csv(folder / 'packed/manifest.csv', dtype=str, keep_default_na=False)
    assert list(table) == list(TILE) and list(table['zoom']) == ['', '17', '']
    with tarfile.open(folder / 'packed/000000.tar') as tar:
        zooms = [json.loads(tar.extractfile(f'000000{n}.json').read())['zoom'] for n in range(3)]
    assert zooms == [None, 17, None]


def test_a_folder_links_where_it_can_and_copies_where_it_cannot(work, monkeypatch):
    pack_quickly(work, 'folder')
    linked = work / 'packed/000/0000003.jpg'
    assert linked.samefile(work / 'tiles/000/0000003.jpg')
    shutil.rmtree(work / 'packed')

    def no_links(*_):
        raise OSError(errno.EXDEV, 'Invalid cross-device link')
    monkeypatch.setattr(os, 'link', no_links)
    pack_quickly(work, 'folder')
    assert not linked.samefile(work / 'tiles/000/0000003.jpg')
    assert verify(work / 'packed')['ok']


# Restart ----------------------------------------------------------------------------------------


def pack_and_die(work, form, after):
    """Be killed while the image number ``after`` is read."""
    read, left = KeptTile.read, iter(range(after, -1, -1))

    def deadly(self):
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self)
    packing.KeptTile.read = deadly  # in the forked process only
    pack_quickly(work, form)


@pytest.mark.parametrize('form', FORMS)
def test_killed_and_started_again_is_as_never_killed(work, tmp_path, form):
    undisturbed = shutil.copytree(work, tmp_path / 'undisturbed')
    pack_quickly(undisturbed, form)
    for after in (0, 4, 12, 6):  # images of the rest: whole shards are not read again
        process = get_context('fork').Process(target=pack_and_die, args=(work, form, after))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (work / 'packed/manifest.csv').exists()
    pack_quickly(work, form)
    assert files_of(work / 'packed') == files_of(undisturbed / 'packed')


@pytest.mark.parametrize('form, rest', [('webdataset', 15), ('folder', 13), ('lmdb', 15)])
def test_finished_work_is_not_done_twice(work, form, rest, monkeypatch):
    process = get_context('fork').Process(target=pack_and_die, args=(work, form, 12))
    process.start()
    process.join()
    reads = []
    read = KeptTile.read
    monkeypatch.setattr(KeptTile, 'read', lambda self: reads.append(self.name) or read(self))
    first = pack_quickly(work, form)
    assert len(reads) == rest
    assert pack_quickly(work, form) == first and len(reads) == rest


def test_a_shard_that_a_power_failure_emptied_is_made_again(work, tmp_path):
    undisturbed = shutil.copytree(work, tmp_path / 'undisturbed')
    pack_quickly(undisturbed)
    process = get_context('fork').Process(target=pack_and_die, args=(work, 'webdataset', 22))
    process.start()
    process.join()
    (work / 'packed/000000.tar').write_bytes(b'')
    os.truncate(work / 'packed/000001.tar', 5000)
    pack_quickly(work)
    assert files_of(work / 'packed') == files_of(undisturbed / 'packed')


def test_a_full_disk_surfaces_and_loses_nothing(work, monkeypatch):
    read = KeptTile.read

    def full(self):
        if self.row['id'] == '0000017':
            raise OSError(errno.ENOSPC, 'No space left on device')
        return read(self)
    for form in FORMS:
        with monkeypatch.context() as patch:
            patch.setattr(KeptTile, 'read', full)
            with pytest.raises(OSError, match='No space left'):
                pack_quickly(work, form)
        pack_quickly(work, form)
        assert verify(work / 'packed')['ok']
        shutil.rmtree(work / 'packed')


@pytest.fixture
def small_disk(tmp_path):
    """Three megabytes of memory as a disk."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', str(disk)],
                      capture_output=True).returncode:
        pytest.skip('a small disk can only be made by root')
    yield disk
    subprocess.run(['umount', str(disk)], check=True)


@pytest.mark.parametrize('form', FORMS)
def test_a_disk_that_is_really_full(work, small_disk, monkeypatch, form):
    (small_disk / 'packed').mkdir()
    (work / 'packed').symlink_to(small_disk / 'packed')
    monkeypatch.setattr(packing, '_check_room', lambda *_: None)  # others fill it meanwhile
    filler = small_disk / 'filler'
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 50_000))
    with pytest.raises(OSError) as error:
        pack(work, form=form, images_per_shard=3)
    assert error.value.errno == errno.ENOSPC
    filler.unlink()
    pack(work, form=form, images_per_shard=3)
    assert verify(work / 'packed')['ok']


def test_lmdb_has_room_for_images_of_any_size(tmp_path):
    """The map is as large as it may become: blocks of a page and a byte, many small ones, big."""
    sizes = [4096 - 15, 1, 2, 100_000, 0, 2030, 4080] * 60
    rows = []
    for number, size in enumerate(sizes):
        file = tmp_path / f'{number}.jpg'
        file.write_bytes(bytes(size))
        rows.append(KeptTile(dict(sha256=hashlib.sha256(bytes(size)).hexdigest()), file))
    (tmp_path / 'packed').mkdir()
    room = packing._lmdb_room(np.array(sizes))
    packing._pack_lmdb(tmp_path / 'packed', iter([rows[i:i + 20] for i in range(0, 420, 20)]), room)
    used = (tmp_path / 'packed/data.mdb').stat().st_size
    assert used < room - (15 << 20) and room < 3 * used + (16 << 20)


# Refusals ---------------------------------------------------------------------------------------


def test_wrong_settings(work):
    with pytest.raises(ValueError, match="form is 'zip'; choose one of webdataset, folder, lmdb"):
        pack_quickly(work, 'zip')
    for value in (0, '10', True, 2.5, None):
        message = f'images_per_shard is {value!r}, but must be a whole number of at least 1'
        with pytest.raises(ValueError, match=message):
            pack_quickly(work, images_per_shard=value)
    assert not (work / 'packed').exists()


def test_other_settings_another_kept_csv_or_files_of_others(work):
    pack_quickly(work)
    for settings, words in (
            (dict(form='lmdb'), "form='webdataset', not with form='lmdb'"),
            (dict(images_per_shard=11), 'images_per_shard=.*, not with images_per_shard=11')):
        with pytest.raises(ValueError, match=f'packed was begun with {words}: delete or move it'):
            pack_quickly(work, **settings)
    lines = (work / 'kept.csv').read_text().splitlines(keepends=True)
    (work / 'kept.csv').write_text(''.join(lines[:-1]))
    with pytest.raises(ValueError, match='packed was begun with kept_sha256=.*: delete or move it'):
        pack_quickly(work)
    (work / 'packed/.pack.json').unlink()
    with pytest.raises(ValueError, match='packed is not an empty folder: move its files away'):
        pack_quickly(work)


def test_what_a_kill_left_of_the_label_is_ignored(work):
    (work / 'packed').mkdir()
    (work / 'packed/..pack.json.part').write_text('{"fo')
    pack_quickly(work)
    assert verify(work / 'packed')['ok']


@pytest.mark.parametrize('left', [-1024, 3000, 0])  # of the second shard: the end mark, some, none
def test_a_shard_that_a_power_failure_cut_is_packed_again(work, left):
    pack_quickly(work)
    expected = files_of(work / 'packed')
    (work / 'packed/manifest.csv').unlink()
    shard = work / 'packed/000001.tar'
    found = scan_shard(shard, 1)[0]
    end = int(found['offset'][-1]) + 100 if left < 0 else left  # in the bytes of its last image
    os.truncate(shard, end)
    pack_quickly(work)
    assert files_of(work / 'packed') == expected


def test_a_copy_that_a_power_failure_emptied_is_made_again(work, monkeypatch):
    monkeypatch.setattr(os, 'link', no_links)
    pack_quickly(work, 'folder')
    (work / 'packed/manifest.csv').unlink()
    os.truncate(work / 'packed/001/0000013.jpg', 0)
    pack_quickly(work, 'folder')
    assert verify(work / 'packed')['ok']


def no_links(*_):
    raise OSError(errno.EPERM, 'no hard links here')


@pytest.mark.parametrize(('column', 'value', 'message'), [
    ('zoom', 'abc', "line 3: zoom is 'abc', which is not a whole number"),
    ('gsd', 'nan', "line 3: gsd is 'nan', which is not a number"),
    ('file', 'tiles/x.data', "line 3: the file 'tiles/x.data' has no suffix of an image"),
    ('file', '', "line 3: the file '' has no suffix"),
])
def test_a_bad_cell_of_kept_csv_is_named(tmp_path, column, value, message):
    write_kept(tmp_path, 2)
    table = pd.read_csv(tmp_path / 'kept.csv', dtype=str, keep_default_na=False)
    table.loc[1, column] = value
    table.to_csv(tmp_path / 'kept.csv', index=False)
    with pytest.raises(ValueError, match=message):
        pack_quickly(tmp_path)
    assert not (tmp_path / 'packed').exists()


def test_bad_tables(tmp_path):
    with pytest.raises(ValueError, match='kept.csv does not exist: .* by the filter step'):
        pack_quickly(tmp_path)
    write_kept(tmp_path, 0)
    with pytest.raises(ValueError, match='kept.csv keeps no image; dropped.csv says why'):
        pack_quickly(tmp_path)
    for wrong in ('../x', 'a/b', 'a.b', '', 'n' * 91, 'é'):
        write_kept(tmp_path, 2, id=['good', wrong])
        with pytest.raises(ValueError, match='line 3: the id .* 90 letters|id is empty'):
            pack_quickly(tmp_path)


@pytest.mark.parametrize('form', FORMS)
def test_a_tile_that_changed_or_went(work, form):
    file = work / 'tiles/001/0000013.jpg'
    file.write_bytes(tile(99))
    with pytest.raises(ValueError, match='0000013.jpg is not the image that was fetched'):
        pack_quickly(work, form)
    file.unlink()
    with pytest.raises(ValueError, match='0000013.jpg is missing, but kept.csv names it'):
        pack_quickly(work, form)
    file.write_bytes(tile(13))
    pack_quickly(work, form)
    assert verify(work / 'packed')['ok']


@pytest.mark.parametrize('form', ['webdataset', 'lmdb'])
def test_room_is_looked_for_before_anything_is_written(work, form):
    free = shutil.disk_usage(work).free
    with open(work / 'tiles/000/0000003.jpg', 'wb') as file:
        file.truncate(free + 10**9)  # a hole that takes no room itself
    with pytest.raises(ValueError, match=r'packing needs \d+.\d GB more in .*packed, where \d+.\d'):
        pack_quickly(work, form)
    assert os.listdir(work / 'packed') == []
    (work / 'tiles/000/0000003.jpg').write_bytes(tile(3))
    pack_quickly(work, 'folder')  # another form, as nothing was begun
    assert verify(work / 'packed')['ok']


# Checking ---------------------------------------------------------------------------------------


def problems(packed):
    found = verify(packed)
    assert found['ok'] == (not found['problems'])
    return found, sorted((row['problem'], row['file']) for row in found['problems'])


def test_verify_names_what_is_missing_altered_and_extra_in_a_folder(work):
    pack_quickly(work, 'folder')
    packed = work / 'packed'
    (packed / '000/0000002.jpg').unlink()
    shutil.copy(packed / '001/0000011.jpg', packed / '001/new.jpg')
    os.replace(packed / '001/new.jpg', packed / '001/0000012.jpg')
    shutil.copy(packed / '001/0000011.jpg', packed / '002/more.jpg')
    found, listed = problems(packed)
    assert listed == [('altered', '001/0000012.jpg'), ('extra', '002/more.jpg'),
                      ('missing', '000/0000002.jpg')]
    assert [found[key] for key in ('images', 'sound', 'missing', 'altered', 'extra')] == [
        25, 23, 1, 1, 1]


def test_verify_of_shards(work):
    pack_quickly(work)
    packed = work / 'packed'
    data = bytearray((packed / '000000.tar').read_bytes())
    data[data.index(tile(4)) + 50] ^= 1  # one bit
    (packed / '000000.tar').write_bytes(data)
    with tarfile.open(packed / '000003.tar', 'w') as tar:
        tar.add(work / 'tiles/000/0000001.jpg', 'again.jpg')
    assert problems(packed)[1] == [('altered', '000000.tar/0000004.jpg'),
                                   ('extra', '000003.tar/again.jpg')]
    (packed / '000003.tar').unlink()
    places = TarShards(str(packed)).places
    os.truncate(packed / '000002.tar', int(places['offset'][22]) + 5)
    assert problems(packed)[1] == [
        ('altered', '000000.tar/0000004.jpg'),
        *(('missing', f'000002.tar/00000{number}.jpg') for number in (22, 23, 24))]
    (packed / '000002.tar').unlink()
    assert problems(packed)[0]['missing'] == 5


def test_verify_of_lmdb(work):
    pack_quickly(work, 'lmdb')
    with lmdb.open(str(work / 'packed'), map_size=1 << 24) as environment:
        with environment.begin(write=True) as transaction:
            transaction.delete(b'000000003')
            transaction.put(b'000000004', tile(5))
            transaction.put(b'000000026', tile(5))
    assert problems(work / 'packed')[1] == [
        ('altered', '000000004'), ('extra', '000000026'), ('missing', '000000003')]


def test_verify_without_a_manifest(tmp_path):
    with pytest.raises(ValueError, match='manifest.csv does not exist: .* by the pack step'):
        verify(tmp_path)


# Subsets ----------------------------------------------------------------------------------------


def test_a_subset_is_a_function_of_the_seed_and_part_of_a_larger_one(work):
    lists = {}
    for name, count, seed in (('a', 10, 0), ('b', 10, 0), ('c', 17, 0), ('d', 10, 1)):
        out = work / f'{name}.txt'
        summary = subset(str(work / 'tiles'), out, count, seed)
        assert summary == dict(list=str(out), images=count, source=str(work / 'tiles'),
                               images_of_source=25, seed=seed)
        lists[name] = out.read_text().splitlines()
    assert lists['a'] == lists['b'] != lists['d']
    assert set(lists['a']) < set(lists['c']) and len(lists['c']) == 17
    assert lists['c'] == sorted(lists['c']) and lists['c'][0].startswith('tiles/000/')
    images = open_source(str(work / 'c.txt'))
    assert images.read(4) == (work / lists['c'][4]).read_bytes()
    assert lists['a'] == [f'tiles/{n // 10:03}/{n:07}.jpg' for n in FROZEN]


FROZEN = [0, 2, 4, 7, 8, 16, 17, 18, 19, 21]  # another machine must draw the same


def test_every_image_is_drawn_as_often(work):
    drawn = np.zeros(25)
    for seed in range(200):
        subset(str(work / 'tiles'), work / 'x.txt', 5, seed)
        drawn[[int(Path(line).stem) for line in (work / 'x.txt').read_text().split()]] += 1
    chi_square = ((drawn - 40)**2 / (40 * 0.8)).sum()  # 24 degrees of freedom
    assert chi_square < 51.2  # p = 0.001


def test_a_subset_of_a_list_and_for_another_folder(work, tmp_path):
    subset(str(work / 'tiles'), work / 'all.txt', 25, 0)
    subset(str(work / 'all.txt'), tmp_path / 'elsewhere/some.txt', 5, 0)
    lines = (tmp_path / 'elsewhere/some.txt').read_text().splitlines()
    assert all(line.startswith(f'{work}/tiles/') for line in lines)
    (work / 'link.txt').symlink_to('all.txt')
    for source in ('all.txt', 'link.txt'):
        with pytest.raises(ValueError, match='all.txt is the source itself: give the list another'):
            subset(str(work / source), work / 'tiles/../all.txt', 5, 0)
    assert len((work / 'all.txt').read_text().splitlines()) == 25
    assert len(UnlabeledImages(str(tmp_path / 'elsewhere/some.txt'), [])) == 5


@pytest.mark.parametrize('form', ['webdataset', 'lmdb'])
def test_a_subset_of_packed_images_is_copied_out(work, form):
    pack_quickly(work, form)
    for _ in range(2):
        subset(str(work / 'packed'), work / 'few.txt', 10, 0)
        lines = (work / 'few.txt').read_text().splitlines()
        assert lines == [f'few/000/{number:09}.jpg' for number in FROZEN]
        assert [(work / line).read_bytes() for line in lines] == [tile(n) for n in FROZEN]


def test_copies_of_another_subset_are_not_taken_for_those_of_this_one(work, tmp_path):
    pack_quickly(work)
    subset(str(work / 'packed'), tmp_path / 'few.txt', 10, 0)
    before = files_of(tmp_path / 'few')
    for source, count, seed in (('packed', 10, 1), ('packed', 9, 0), ('other', 10, 0)):
        if source == 'other':
            shutil.copytree(work / 'packed', work / 'other')
        with pytest.raises(ValueError, match='few was begun with .*: delete it, or give the list'):
            subset(str(work / source), tmp_path / 'few.txt', count, seed)
    os.truncate(tmp_path / f'few/000/{FROZEN[3]:09}.jpg', 0)  # as a power failure may leave it
    subset(str(work / 'packed'), tmp_path / 'few.txt', 10, 0)
    assert files_of(tmp_path / 'few') == before
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/a.jpg').touch()
    with pytest.raises(ValueError, match='mine is not an empty folder: move its files away'):
        subset(str(work / 'packed'), tmp_path / 'mine.txt', 10, 0)


def test_copies_never_lie_in_the_data_set_itself(work):
    pack_quickly(work)
    for out, message in ((work / 'packed.txt', 'lies in the data set itself'),
                         (work / 'packed/few.txt', 'lies in the data set itself'),
                         (work / 'few', 'few needs a suffix, e.g. .*few.txt')):
        with pytest.raises(ValueError, match=message):
            subset(str(work / 'packed'), out, 10, 0)
    assert verify(work / 'packed')['ok']


def test_a_subset_that_cannot_be(work):
    for count in (0, 26, True, 2.5):
        with pytest.raises(ValueError, match=f'count is {count}, but must lie between 1 and 25, '):
            subset(str(work / 'tiles'), work / 'x.txt', count, 0)
    pack_quickly(work)
    (work / 'packed/000001.tar').write_bytes(b'')
    with pytest.raises(ValueError, match=r'000001.tar/byte \d+ cannot be read: the shard ends'):
        subset(str(work / 'packed'), work / 'x.txt', 25, 0)
    assert not (work / 'x.txt').exists()
