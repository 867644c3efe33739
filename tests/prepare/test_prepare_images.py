"""The pre-training data sets: what is checked, what is written, and that training reads it."""

import io
import runpy
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from official_archives import pack, snapshot, unpack
from PIL import Image

from pera_mm.datasets.unlabeled import UnlabeledImages
from pera_mm.prepare import pretraining
from pera_mm.prepare.pretraining import SETS, Published, list_of, list_of_subset, prepare_images

CONFIGS = Path(__file__).parents[2] / 'configs' / '_base_' / 'datasets'
TOOL = Path(__file__).parents[2] / 'tools' / 'data' / 'prepare.py'
SIDE = 16
TWELVE = Published(12, SIDE, 'few')
LITTER = {'.hidden/0.png': b'', 'a/._1.png': b'', '__MACOSX/a/1.png': b'',
          'a/@eaDir/2.png/SYNOPHOTO_THUMB_M.png': b'', 'readme.txt': b''}


def image(value, side=SIDE):
    """A PNG of one gray."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(file, 'PNG')
    return file.getvalue()


def nested(numbers=range(12)):
    """Images at three depths, their gray in their name; and what programs leave there."""
    folders = ('', 'a/', 'a/deep/')
    files = {f'{folders[n % 3]}{n:03}.png': image(n) for n in numbers}
    return {**files, **{name: image(200) if name.endswith('.png') else data
                        for name, data in LITTER.items()}}


def tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


LAYOUTS = {
    'folder': lambda source: unpack(source, nested()),
    'zip': lambda source: pack(source / 'all.zip', nested()),
    'zips': lambda source: [pack(source / 'x' / f'{part}.ZIP', nested(range(part, 12, 2)))
                            for part in range(2)],
    'shard': lambda source: tar(source / 'all.tar', nested()),
    'tar': lambda source: tar(source / 'below' / 'all.tar', nested()),
    'zip and folder': lambda source: (pack(source / 'some.zip', nested(range(5))),
                                      unpack(source / 'rest', nested(range(5, 12)))),
}


def grays(root):
    """The gray of every image that training reads, as the configs name the data set."""
    dataset = UnlabeledImages([dict(path=str(root), index_file=str(list_of(root)))], [])
    images = [dataset[index] for index in range(len(dataset))]
    assert not any(found['skipped'] for found in images)
    return sorted(int(found['img'][0, 0, 0]) for found in images)


def rows(report):
    return {row.what: (row.found, row.verdict) for row in report.rows}


@pytest.fixture
def source(tmp_path):
    return tmp_path / 'download'


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data' / 'few'


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_becomes_shards_that_train(layout, source, root):
    LAYOUTS[layout](source)
    before = snapshot(source)
    report = prepare_images(TWELVE, source, root)
    assert report.ok and rows(report)['images'] == ('12', 'ok')
    assert rows(report)['of 16 x 16 px'] == ('12', '-')
    assert snapshot(source) == before
    assert grays(root) == list(range(12))
    assert sorted(path.name for path in root.iterdir()) == [
        '.shards.json', '000000.tar', 'index.npy']


def test_an_unpacked_data_set_gets_a_list_and_is_not_touched(root):
    unpack(root, nested())
    before = snapshot(root)
    assert prepare_images(TWELVE, root, root).ok
    assert snapshot(root) == before
    assert list_of(root).read_text().splitlines() == sorted(
        name for name in nested() if name not in LITTER)
    assert grays(root) == list(range(12))


def test_shards_in_place_are_only_checked(root):
    LAYOUTS['shard'](root)
    assert prepare_images(TWELVE, root, root).ok
    assert not list_of(root).exists() and grays(root) == list(range(12))


def test_unreadable_images_are_named_left_out_and_do_not_fail(source, root):
    pack(source / 'x.zip', {**nested(), '003.png': image(3)[:40], 'a/001.png': b''})
    report = prepare_images(TWELVE, source, root)
    assert report.ok and rows(report)['unreadable, left out'] == ('2', '-')
    assert grays(root) == [0, 2, *range(4, 12)]
    lines = (root.parent / 'few.check/unreadable.txt').read_text().splitlines()
    assert len(lines) == 2
    assert 'x.zip/a/001.png: ValueError: the file is empty' in lines
    unpack(root.parent / 'list', {**nested(), '003.png': b'no image'})
    prepare_images(TWELVE, root.parent / 'list', root.parent / 'list')
    assert grays(root.parent / 'list') == [0, 1, 2, *range(4, 12)]


def test_numbers_sizes_and_duplicates_are_compared_and_named(root):
    unpack(root, {**nested(), '003.png': image(3, 24), 'z.png': image(5)})
    report = prepare_images(TWELVE, root, root)
    assert rows(report)['images'] == ('13', 'WRONG') and not report.ok
    assert rows(report)['of 16 x 16 px'] == ('12', '-')
    assert rows(report)['of 24 x 24 px'] == ('1', '-')
    assert rows(report)['with the bytes of an earlier one'] == ('1', '-')
    problem, = report.problems
    assert problem.sentence() == (f'Images are not 16 x 16 pixels (1): {root}/003.png (24 x 24). '
                                  'They are used, too.')
    check = root.parent / 'few.check'
    assert (check / 'duplicates.txt').read_text() == (
        f'{root}/z.png: as {root}/a/deep/005.png\n')
    assert 'WRONG images: 13 (published: 12)' in (check / 'verification.txt').read_text()
    assert len(grays(root)) == 13  # everything is written all the same


@pytest.mark.parametrize(('partial', 'verdict'), [(False, 'WRONG'), (True, 'fewer')])
def test_fewer_images_than_published(partial, verdict, root):
    unpack(root, nested(range(11)))
    report = prepare_images(TWELVE, root, root, partial)
    assert rows(report)['images'] == ('11', verdict) and report.ok == partial


class Stop(BaseException):
    """As a kill: nothing of the command catches it."""


def stopping(after, what):
    """A progress display that stops the named loop after some items."""
    def progress(sequence, description, total):
        for number, item in enumerate(sequence):
            if description == what and number == after:
                raise Stop
            yield item
    return progress


def test_a_stopped_check_continues_where_it_was(root, monkeypatch):
    monkeypatch.setattr(pretraining, 'BATCH', 5)
    unpack(root, nested())
    with pytest.raises(Stop):
        prepare_images(TWELVE, root, root, progress=stopping(11, 'reading'))
    looks, = (root.parent / 'few.check').glob('looks-*.bin')
    assert looks.stat().st_size == 10 * pretraining.LOOK.itemsize
    with looks.open('ab') as file:
        file.write(b'half of')
    assert not list_of(root).exists()
    names = sorted(name for name in nested() if name not in LITTER)
    for name in names[:10]:  # were they read again, they would be unreadable
        (root / name).write_bytes(b'gone')
    seen = []

    def progress(sequence, description, total):
        seen.append((description, total))
        return sequence

    report = prepare_images(TWELVE, root, root, progress=progress)
    assert rows(report)['unreadable, left out'] == ('0', '-')
    assert rows(report)['of 16 x 16 px'] == ('12', '-')
    assert seen == [('reading', 2)]
    (root / 'new.png').write_bytes(image(99))  # another set of files: from the beginning
    report = prepare_images(TWELVE, root, root)
    assert rows(report)['unreadable, left out'] == ('10', '-')
    assert grays(root) == [*(int(Path(name).stem) for name in names[10:]), 99]


@pytest.mark.slow
def test_the_command_killed_and_repeated_writes_what_it_writes_at_once(tmp_path):
    folder = tmp_path / 'data' / 'million-aid'
    unpack(folder, {f'{n:05}.png': image(n % 256) for n in range(6000)} | {'00007.png': b'x'})
    arguments = [sys.executable, TOOL, 'million-aid', folder, folder, '--partial']
    check = tmp_path / 'data' / 'million-aid.check'
    command = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    wait_until(lambda: any(path.stat().st_size for path in check.glob('looks-*.bin')), command)
    command.kill()
    command.wait()
    looks, = check.glob('looks-*.bin')
    seen = looks.read_bytes()
    assert 0 < len(seen) < 6000 * pretraining.LOOK.itemsize and not list_of(folder).exists()
    subprocess.run(arguments, stdout=subprocess.DEVNULL, check=True)
    assert looks.read_bytes().startswith(seen)
    names = [f'{n:05}.png' for n in range(6000) if n != 7]
    assert list_of(folder).read_text().splitlines() == names
    written = looks.read_bytes()
    looks.unlink()
    subprocess.run(arguments, stdout=subprocess.DEVNULL, check=True)
    assert looks.read_bytes() == written


def wait_until(happened, command):
    while not happened():
        assert command.poll() is None, 'the command ended before it could be killed'
        time.sleep(0.005)


def test_a_stopped_packing_ends_with_the_same_bytes(source, root, monkeypatch):
    monkeypatch.setattr(pretraining, 'SHARD_IMAGES', 5)
    LAYOUTS['zip'](source)
    prepare_images(TWELVE, source, root)
    other = root.with_name('other')
    with pytest.raises(Stop):
        prepare_images(TWELVE, source, other, progress=stopping(2, 'packing'))
    (other / '.000002.tar.part').write_bytes(b'half')
    assert [path.name for path in sorted(other.glob('*.tar'))] == ['000000.tar', '000001.tar']
    prepare_images(TWELVE, source, other)
    assert {name: data for name, (data, _) in snapshot(other).items()} == {
        name: data for name, (data, _) in snapshot(root).items()}


def test_a_file_that_a_network_failed_to_read_once_is_read_again(root):
    unpack(root, nested())
    broken = root / '003.png'
    whole = broken.read_bytes()
    broken.write_bytes(b'')

    def progress(sequence, description, total):
        yield from sequence
        broken.write_bytes(whole)

    report = prepare_images(TWELVE, root, root, progress=progress)
    assert rows(report)['unreadable, left out'] == ('0', '-') and len(grays(root)) == 12


@pytest.mark.parametrize(('files', 'same', 'message'), [
    ({'readme.txt': b'', 'notes.md': b''}, False, 'has no image at any depth: check the path'),
    ({'a.zip': 'readme.txt'}, False, 'holds no image, but other files: unpack what is an archive'),
    ({'all.rar': b'', '0.png': image(0)}, False, 'holds 1 images, and all.rar: unpack what is'),
    ({'a/all.zip': '0.png'}, True, r'holds the archive a/all.zip: move it away if it is unpacked'),
    ({'0.png': b''}, False, 'none of the 1 images of .* can be read: .*unreadable.txt has the'),
    ({'t.zip.001': b'', 't.zip.002': b''}, False,
     r't.zip.001 is one of 2 pieces of an archive that was split: join them .*: cat t.zip.\* > '
     r't.zip\), then move the pieces out of the source'),
])
def test_a_wrong_folder_is_one_sentence(files, same, message, source, root):
    for name, data in files.items():
        if isinstance(data, bytes):
            unpack(source, {name: data})
        else:
            pack(source / name, {data: image(1) if data.endswith('png') else b''})
    with pytest.raises(ValueError, match=message) as failure:
        prepare_images(TWELVE, source, source if same else root)
    assert '\n' not in str(failure.value)
    assert not root.exists()


def test_shards_are_not_written_into_the_source_or_over_other_things(source, root):
    unpack(source, nested())
    with pytest.raises(ValueError, match='lies in the source .* or give the source twice'):
        prepare_images(TWELVE, source, source / 'data')
    unpack(root, {'mine.txt': b''})
    with pytest.raises(ValueError, match='is not an empty folder'):
        prepare_images(TWELVE, source, root)
    list_of(root).write_text('')
    with pytest.raises(ValueError, match='few.txt lists images in .*few, where tar shards shall'):
        prepare_images(TWELVE, source, root)


def test_the_results_lie_where_the_configs_look():
    data = Path('data')
    for name, published in SETS.items():
        loader = Config.fromfile(CONFIGS / f'{name}.py').train_dataloader
        assert loader.dataset.source == [
            dict(path=str(data / name), index_file=str(list_of(data / name)))]
        assert f'{published.images:,} ' in (CONFIGS / f'{name}.py').read_text()
    for name, config in {'tov-rs': 'tov-100k', 'rsrsd-5m': 'rsrsd-100k'}.items():
        source = Config.fromfile(CONFIGS / f'{config}.py').train_dataloader.dataset.source
        assert source == str(list_of_subset(SETS[name], data / name, 100_000))
    assert str(list_of_subset(TWELVE, data / 'x', 1500)) == 'data/few-1500.txt'


@pytest.mark.parametrize('packed', [False, True], ids=['list', 'shards'])
def test_the_command_checks_writes_and_draws_a_subset(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    numbers = [n for n in range(12) if n != 4]
    where = 'download' if packed else 'data/million-aid'
    unpack(tmp_path / where, {**nested(), 'a/004.png': b'no image'})
    arguments = ['million-aid', where, 'data/million-aid', '--partial', '--subset', '7']
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *arguments])
    runpy.run_path(str(TOOL), run_name='__main__')
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ['data/million-aid-7.txt: 7 images, seed 0',
                          'data/million-aid: all is well']
    assert grays(Path('data/million-aid')) == numbers
    drawn = UnlabeledImages('data/million-aid-7.txt', [])
    found = {int(drawn[index]['img'][0, 0, 0]) for index in range(7)}
    assert len(found) == 7 and found <= set(numbers)


def test_a_subset_is_for_pretraining(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), 'aid', 'x', str(tmp_path), '--subset', '7'])
    with pytest.raises(SystemExit):
        runpy.run_path(str(TOOL), run_name='__main__')
    assert '--subset is for rsrsd-5m, tov-rs, million-aid; the splits' in capsys.readouterr().err


@pytest.mark.parametrize('count, said', [
    ('0', "expected a whole number of at least 1, got '0'"),
    ('1088942', '--subset 1088942: tov-rs has 1088941 images')])
def test_a_subset_that_cannot_be_is_refused_first(monkeypatch, capsys, tmp_path, count, said):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), 'tov-rs', 'x', str(tmp_path), '--subset', count])
    with pytest.raises(SystemExit):
        runpy.run_path(str(TOOL), run_name='__main__')
    assert said in capsys.readouterr().err
