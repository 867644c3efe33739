import gzip
import multiprocessing
import os
import pickle
import sys
import time
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image
from shards import picture, write_shards
from torch.utils.data import DataLoader

from pera_mm.datasets.listing import find_images, write_list
from pera_mm.datasets.packed import TarShards, position_key
from pera_mm.datasets.sampler import Draw, DrawSampler
from pera_mm.datasets.unlabeled import UnlabeledImages
from pera_mm.files import WORK_FOLDER_MARKER


def make(path, value=0):
    """A 4 x 4 image whose pixels are ``value``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (4, 4), (value, value, value)).save(path, 'PNG')
    return path


@pytest.fixture
def folder(tmp_path):
    """Ten images 00.png … 09.png in tmp_path/images."""
    for i in range(10):
        make(tmp_path / 'images' / f'{i:02}.png', i)
    return tmp_path / 'images'


def names(dataset):
    root = dataset.sources[0].root
    return [os.path.relpath(path, root) for path in dataset.sources[0]]


def drawn(results):
    """What a sample is: comparable with ==."""
    return (results['sample_idx'], results['img_path'], results['skipped'],
            results['rng'].random(), results['img'].tolist())


def first(batch):
    return drawn(batch[0])


def test_folder_of_any_depth_bytewise(tmp_path):
    for name in ('b/2.JPG', 'a/x.y/1.TiF', 'a-b/1.png', 'a.png', 'B.jpeg', 'c/d/e/f.Webp', 'z.bmp',
                 '.hidden.png', '._a.png', '.cache/1.png', 'c/._f.png', 'notes.txt', 'png'):
        make(tmp_path / name)
    (tmp_path / 'folder.jpg').mkdir()
    make(tmp_path / 'folder.jpg' / 'in.jp2')
    dataset = UnlabeledImages(str(tmp_path), [])
    expected = [b'B.jpeg', b'a-b/1.png', b'a.png', b'a/x.y/1.TiF', b'b/2.JPG', b'c/d/e/f.Webp',
                b'folder.jpg/in.jp2', b'z.bmp']
    assert names(dataset) == expected == sorted(expected)
    assert len(dataset) == 8


def test_links_to_files_and_folders_without_loops(tmp_path):
    make(tmp_path / 'elsewhere' / 'deep' / 'far.png')
    make(tmp_path / 'images' / 'sub' / 'near.png')
    root = tmp_path / 'images'
    (root / 'link').symlink_to(tmp_path / 'elsewhere')
    (root / 'sub' / 'up').symlink_to(root)
    (root / 'itself').symlink_to(root / 'itself')
    (root / 'itself.png').symlink_to(root / 'itself.png')
    (root / 'file.png').symlink_to(tmp_path / 'elsewhere' / 'deep' / 'far.png')
    (root / 'broken.png').symlink_to(root / 'nowhere.png')
    (root / 'again').symlink_to(root / 'sub')  # the same folder: read once, by its first name
    os.mkfifo(root / 'pipe.png')
    assert list(find_images(os.fsencode(root))) == [
        b'again/near.png', b'broken.png', b'file.png', b'itself.png', b'link/deep/far.png']


def test_names_that_are_not_utf8(tmp_path):
    odd = os.fsencode(tmp_path) + b'/\xff\xfe-\xe9t\xe9.png'
    os.rename(make(tmp_path / 'x.png', 9), odd)
    for options in (dict(), dict(index_file=str(tmp_path / 'index.txt'))):
        results = UnlabeledImages(str(tmp_path), [], **options)[0]
        assert os.fsencode(results['img_path']) == odd
        assert results['img'][0, 0].tolist() == [9, 9, 9]


def test_line_break_in_a_name(tmp_path):
    make(tmp_path / 'a\nb.png')
    with pytest.raises(ValueError, match='contains a line break: rename it'):
        UnlabeledImages(str(tmp_path), [])


def test_list(folder, tmp_path):
    (folder / 'list.txt').write_bytes(b'09.png\r\n\n03.png\r\n\r\n../images/01.png\n'
                                      + os.fsencode(folder / '05.png'))
    dataset = UnlabeledImages(str(folder / 'list.txt'), [])
    assert [dataset[i]['img'][0, 0, 0] for i in range(len(dataset))] == [9, 3, 1, 5]
    (tmp_path / 'other.txt').write_text('02.png\n04.png\n')
    dataset = UnlabeledImages(str(tmp_path / 'other.txt'), [], data_root=str(folder))
    assert [dataset[i]['img'][0, 0, 0] for i in range(len(dataset))] == [2, 4]
    with pytest.raises(IndexError):
        dataset[2]


@pytest.mark.parametrize('line', [
    '"sub dir/03.png"', "'sub dir/03.png'", 'sub dir\\03.png', 'sub dir/03.png  ',
    ' sub dir/03.png', 'sub dir/03.png 17', 'sub dir/03.png\t17', 'sub dir/03.png,forest,17',
    '"sub dir\\03.png" 2\r'])
def test_a_list_with_more_than_paths_says_what_a_line_should_be(tmp_path, line):
    make(tmp_path / 'sub dir' / '03.png', 3)
    (tmp_path / 'list.txt').write_bytes(line.encode() + b'\n')
    with pytest.raises(ValueError, match="while 'sub dir/03.png' is: write one path per line, with "
                                         'slashes, and no quotes, labels or blanks'):
        UnlabeledImages(str(tmp_path / 'list.txt'), [])
    (tmp_path / 'list.txt').write_text('sub dir/03.png\n')
    assert len(UnlabeledImages(str(tmp_path / 'list.txt'), [])) == 1


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-be'])
def test_a_list_in_utf_16_is_named(tmp_path, encoding):
    text = ('\ufeff' if encoding != 'utf-16' else '') + '03.png\n'
    (tmp_path / 'list.txt').write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match='is a list in UTF-16.*save it as UTF-8'):
        UnlabeledImages(str(tmp_path / 'list.txt'), [])


def test_what_programs_leave_is_no_image(tmp_path):
    for name in ('@eaDir/a.png/SYNOPHOTO_THUMB_M.png', '__MACOSX/a.png', '.ipynb_checkpoints/a.png',
                 '#recycle/a.png', '$RECYCLE.BIN/a.png', '._a.png', 'a.png', 'b@eaDir/a.png'):
        make(tmp_path / name, 1)
    assert list(find_images(os.fsencode(tmp_path))) == [b'a.png', b'b@eaDir/a.png']


def test_list_in_the_working_directory(folder, monkeypatch):
    (folder / 'list.txt').write_text('02.png\n')
    monkeypatch.chdir(folder)
    assert UnlabeledImages('list.txt', [])[0]['img_path'] == '02.png'


def test_index_file_is_written_once_and_can_be_a_source(folder, tmp_path):
    index = tmp_path / 'lists' / 'index.txt'
    scanned = UnlabeledImages(str(folder), [], index_file=str(index))
    assert index.read_bytes() == b''.join(b'%02d.png\n' % i for i in range(10))
    assert os.listdir(index.parent) == ['index.txt']  # no temporary file is left
    make(folder / '99.png')
    assert len(UnlabeledImages(str(folder), [], index_file=str(index))) == 10  # not scanned again
    again = UnlabeledImages(str(index), [], data_root=str(folder))
    assert list(again.sources[0]) == list(scanned.sources[0])
    index.unlink()
    assert len(UnlabeledImages(str(folder), [], index_file=str(index))) == 11


def write_often(folder, index):
    for _ in range(50):
        write_list(os.fsencode(folder), index)
        assert len(index.read_bytes()) == 10 * len('00.png\n')


def test_many_processes_write_the_same_index(folder, tmp_path):
    fork = multiprocessing.get_context('fork')
    writers = [fork.Process(target=write_often, args=(folder, tmp_path / 'index.txt'))
               for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert sorted(os.listdir(tmp_path)) == ['images', 'index.txt']


def test_a_failed_scan_leaves_no_index(tmp_path):
    make(tmp_path / 'images' / 'a\nb.png')
    with pytest.raises(ValueError, match='line break'):
        UnlabeledImages(str(tmp_path / 'images'), [], index_file=str(tmp_path / 'index.txt'))
    assert os.listdir(tmp_path) == ['images']


def test_pickles_as_a_name(folder, tmp_path):
    """Spawned workers get no paths: they map the list again."""
    for i in range(10, 200):
        make(folder / f'{i:04}.png')
    mapped = UnlabeledImages(str(folder), [], index_file=str(tmp_path / 'index.txt'))
    in_memory = UnlabeledImages(str(folder), [])
    assert len(pickle.dumps(mapped)) + 190 * 9 < len(pickle.dumps(in_memory)) + 500
    for dataset in (mapped, in_memory):
        copy = pickle.loads(pickle.dumps(dataset))
        assert list(copy.sources[0]) == list(dataset.sources[0])
        assert drawn(copy[Draw(3, 5)]) == drawn(dataset[Draw(3, 5)])


@pytest.mark.parametrize('write, source, words', [
    (None, 'missing', "'.*missing' does not exist"),
    ('empty/notes.txt', 'empty', "the folder '.*empty' has no image at any"),
    ('empty/.hidden.png', 'empty', 'hidden files are left out'),
    ('list.txt', 'list.txt', "'.*list.txt' names no image"),
])
def test_empty_and_missing_sources(tmp_path, write, source, words):
    if write:
        (tmp_path / write).parent.mkdir(exist_ok=True)
        (tmp_path / write).write_text('\n\n' if source == 'list.txt' else '')
    with pytest.raises(ValueError, match=words) as error:
        UnlabeledImages(str(tmp_path / source), [])
    assert '\n' not in str(error.value)


def test_wrong_settings(folder, tmp_path):
    (tmp_path / 'list.txt').write_text('00.png\n01.png\n')
    with pytest.raises(ValueError, match="names '.*00.png'[.] Neither .*: set data_root"):
        UnlabeledImages(str(tmp_path / 'list.txt'), [])
    with pytest.raises(ValueError, match='is a list already'):
        UnlabeledImages(str(tmp_path / 'list.txt'), [], str(folder), index_file='x.txt')
    with pytest.raises(ValueError, match='index_file of its own'):
        UnlabeledImages([dict(path=str(folder)), dict(path=str(folder))], [], index_file='x.txt')
    with pytest.raises(ValueError, match='source is an empty list'):
        UnlabeledImages([], [])
    with pytest.raises(ValueError, match=r'a weight above 0 .*, or none of them; got \[1, None\]'):
        UnlabeledImages([dict(path=str(folder), weight=1), dict(path=str(folder))], [])
    for wrong in (dict(path=str(folder)), [str(folder)], [dict(weight=1)], None, 5,
                  [dict(path=None)], [dict(path=['a'])],
                  [dict(path=str(folder), wieght=1)]):
        with pytest.raises(ValueError, match='source must be a path or a list of dict'):
            UnlabeledImages(wrong, [])
    for wrong in ('2', float('inf'), 1e308, 0):
        with pytest.raises(ValueError, match='a weight above 0 and up to 1e.09'):
            UnlabeledImages([dict(path=str(folder), weight=wrong)] * 2, [])
    with pytest.raises(ValueError, match='bands must be one'):
        UnlabeledImages(str(folder), [], bands=[1, 2])


@pytest.mark.parametrize(('name', 'message'), [
    ('a.tar.gz', 'is not a text list: it has zero bytes: give a folder of images, a list of path'),
    ('folder', r"the folder .* has no image, but '.*deep/0.tar': give the folder of the shards"),
    ('shards/{00..12}.tar', r'is a pattern \(looked for in'),
])
def test_what_is_given_in_place_of_shards(tmp_path, name, message):
    write_shards(tmp_path / 'folder/deep', [2])
    (tmp_path / 'folder/deep/000000.tar').rename(tmp_path / 'folder/deep/0.tar')
    (tmp_path / 'a.tar.gz').write_bytes(gzip.compress(b'0' * 9999, mtime=0))
    with pytest.raises(ValueError, match=message):
        UnlabeledImages(str(tmp_path / name), [])
    (tmp_path / 'folder/deep/0.tar').rename(tmp_path / 'folder/deep/0.TAR')
    assert len(UnlabeledImages(str(tmp_path / 'folder/deep'), [])) == 2


def test_a_work_folder_of_the_collection_is_not_its_packed_images(folder):
    (folder / 'packed').mkdir()
    (folder / WORK_FOLDER_MARKER).touch()
    with pytest.raises(ValueError, match="and has dropped images, too: give '.*/packed'"):
        UnlabeledImages(str(folder), [])


def test_what_the_pipeline_gets(folder):
    results = UnlabeledImages(str(folder), [])[Draw(3, 17)]
    assert list(results) == ['img', 'img_path', 'sample_idx', 'rng', 'skipped']
    assert results['img'].dtype == np.uint8 and results['img'].shape == (4, 4, 3)
    assert results['img_path'] == str(folder / '03.png')
    assert (results['sample_idx'], results['skipped']) == (3, [])
    assert results['rng'].random() == np.random.default_rng(17).random()


def test_plain_index_is_seeded_by_numpy(folder):
    dataset = UnlabeledImages(str(folder), [])
    np.random.seed(0)
    one, two = dataset[0]['rng'].random(), dataset[0]['rng'].random()
    np.random.seed(0)
    assert dataset[0]['rng'].random() == one != two


def test_unreadable_is_skipped_named_and_replaced(folder):
    (folder / '03.png').write_bytes(b'')
    (folder / '04.png').write_text('a text')
    dataset = UnlabeledImages(str(folder), [])
    several = [dataset[Draw(3, seed)] for seed in range(40)]
    for results in several:
        path, reason = results['skipped'][0]
        assert path == str(folder / '03.png') and reason == 'ValueError: the file is empty'
        assert results['img'][0, 0, 0] == results['sample_idx'] != 3
        assert results['img_path'] == str(folder / f'{results["sample_idx"]:02}.png')
    assert {r['sample_idx'] for r in several} == {0, 1, 2, 5, 6, 7, 8, 9}
    assert any(len(r['skipped']) > 1 for r in several)
    assert drawn(dataset[Draw(3, 5)]) == drawn(dataset[Draw(3, 5)])


def test_all_unreadable(tmp_path):
    for i in range(3):
        (tmp_path / f'{i}.jpg').write_bytes(b'')
    with pytest.raises(RuntimeError, match=r"100 images drawn .*/\d.jpg' \(ValueError: the file"):
        UnlabeledImages(str(tmp_path), [])[0]


def test_the_same_samples_with_and_without_workers(folder):
    (folder / '03.png').write_bytes((folder / '03.png').read_bytes()[:50])
    dataset = UnlabeledImages(str(folder), [])

    def epoch(**workers):
        loader = DataLoader(dataset, sampler=DrawSampler(dataset), collate_fn=first, **workers)
        return list(loader)

    alone = epoch()
    assert len(alone) == 10 and sum(len(skipped) for _, _, skipped, *_ in alone) >= 1
    assert epoch(num_workers=2) == alone
    assert epoch(num_workers=3, persistent_workers=True) == alone


@pytest.mark.slow
def test_spawned_workers(folder, tmp_path):
    dataset = UnlabeledImages(str(folder), [], index_file=str(tmp_path / 'index.txt'))
    loader = DataLoader(dataset, sampler=DrawSampler(dataset), collate_fn=first)
    spawned = DataLoader(dataset, sampler=DrawSampler(dataset), collate_fn=first, num_workers=1,
                         multiprocessing_context='spawn')
    assert list(spawned) == list(loader)


@pytest.fixture
def mixture(tmp_path):
    sizes = dict(a=5, b=20, c=15)
    for name, size in sizes.items():
        for i in range(size):
            make(tmp_path / name / f'{i:02}.png', 1 + i)
    return lambda *weights: UnlabeledImages(
        [dict(path=str(tmp_path / name), **({'weight': w} if w else {}))
         for name, w in zip(sizes, weights)], [])


@pytest.mark.parametrize('weights, counts', [
    ((None, None, None), [5, 20, 15]),
    ((2, 1, 1), [20, 10, 10]),
    ((1, 1, 1), [14, 13, 13]),  # 13.33 each: the draw left over goes to the first
    ((0.7, 0.2, 0.1), [28, 8, 4]),
    ((1, 1e-9, 1), [20, 0, 20]),
])
def test_mixture_counts_are_exact(mixture, weights, counts):
    dataset = mixture(*weights)
    order = dataset.epoch_order(torch.Generator().manual_seed(0))
    assert order.dtype == torch.int64 and len(order) == len(dataset) == 40
    times = torch.bincount(order, minlength=40).split([5, 20, 15])
    assert [int(part.sum()) for part in times] == counts
    assert all(part.max() - part.min() <= 1 for part in times)
    assert not torch.equal(order, order.sort().values)
    other = dataset.epoch_order(torch.Generator().manual_seed(1))
    assert not torch.equal(order, other)


def test_a_small_source_beside_a_large_one_takes_no_time(folder, tmp_path):
    """Ten images, 100,000 times over: quadratic, it took minutes."""
    (tmp_path / 'list.txt').write_text(f'{folder}/00.png\n' * 400_000)
    dataset = UnlabeledImages([dict(path=str(folder), weight=1),
                               dict(path=str(tmp_path / 'list.txt'), weight=1)], [])
    begin = time.process_time()
    order = dataset.epoch_order(torch.Generator().manual_seed(0))
    assert time.process_time() - begin < 20
    counts = order[order < 10].bincount()
    assert len(order) == 400_010 and counts.max() - counts.min() <= 1


def test_mixture_reads_the_right_source_and_replaces_within_it(mixture, tmp_path):
    dataset = mixture(1, 1, 1)
    paths = [dataset[i]['img_path'] for i in (0, 4, 5, 24, 25, 39)]
    assert [os.path.relpath(path, tmp_path) for path in paths] == [
        'a/00.png', 'a/04.png', 'b/00.png', 'b/19.png', 'c/00.png', 'c/14.png']
    (tmp_path / 'b' / '00.png').write_bytes(b'')
    for seed in range(20):
        results = dataset[Draw(5, seed)]
        assert Path(results['img_path']).parent.name == 'b'
        assert results['img'][0, 0, 0] == results['sample_idx'] - 5 + 1


def test_mixture_sources_have_rules_of_their_own(tmp_path):
    Image.fromarray(np.full((4, 4), 500, np.uint16)).save(tmp_path / 'x.png')
    dataset = UnlabeledImages([dict(path=str(tmp_path), scale=(0, 1000)),
                               dict(path=str(tmp_path), scale=(400, 500))], [])
    assert [int(dataset[i]['img'][0, 0, 0]) for i in range(2)] == [128, 255]


def test_mixture_interleaves_the_orders_of_its_sources(mixture):
    """Each source is drawn in its own order, so that tar shards are read from front to back."""
    dataset = mixture(2, 1, 1)
    order = dataset.epoch_order(torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(0)
    own = [torch.cat([torch.randperm(5, generator=random) for _ in range(4)]),
           torch.randperm(20, generator=random)[:10] + 5,
           torch.randperm(15, generator=random)[:10] + 25]
    whose = torch.bucketize(order, torch.tensor([4, 24]))
    for number, expected in enumerate(own):
        assert torch.equal(order[whose == number], expected)
    orders = [dataset.epoch_order(torch.Generator().manual_seed(seed)) for seed in range(300)]
    shares = torch.stack([order < 5 for order in orders]).double().mean(0)
    assert (shares - 0.5).abs().max() < 4.5 * 0.5 / 300**0.5  # at every position, of the first


def test_single_source_epoch_is_a_permutation(folder):
    dataset = UnlabeledImages(str(folder), [])
    order = dataset.epoch_order(torch.Generator().manual_seed(0))
    assert order.sort().values.tolist() == list(range(10)) != order.tolist()


def test_from_a_config_with_a_pipeline(folder):
    crops = dict(type='Resize', scale=(2, 2))  # a transform of another registry
    dataset = DATASETS.build(dict(type='pera_mm.UnlabeledImages', source=str(folder),
                                  pipeline=[dict(crops, type='mmcv.Resize')]))
    assert dataset[4]['img'].shape == (2, 2, 3)


# Packed -----------------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path):
    """The same 60 images as a folder, a list, tar shards and an LMDB."""
    write_shards(tmp_path / 'shards', [20, 5, 35])
    (tmp_path / 'lmdb').mkdir()
    with lmdb.open(str(tmp_path / 'lmdb')) as environment:
        with environment.begin(write=True) as transaction:
            for number in range(60):
                transaction.put(position_key(number), picture(number))
    for number in range(60):
        make(tmp_path / 'folder' / f'{number:02}.png', number)
    (tmp_path / 'list.txt').write_text(''.join(f'folder/{n:02}.png\n' for n in range(60)))
    return {name: tmp_path / name for name in ('folder', 'list.txt', 'shards', 'lmdb')}


def test_every_form_gives_the_same_images(packed):
    for name, path in packed.items():
        dataset = UnlabeledImages(str(path), [])
        assert [int(dataset[i]['img'][0, 0, 0]) for i in range(60)] == list(range(60)), name
        assert dataset[37]['img_path'].startswith(str(packed['folder'] if name == 'list.txt'
                                                      else path))
    shards = UnlabeledImages(packed['shards'] / '000002.tar', [])
    assert len(shards) == 35 and shards[0]['img_path'].endswith('/000002.tar/0025.png')


def test_unreadable_images_of_a_shard_are_replaced(packed):
    whole = UnlabeledImages(str(packed['shards']), [])
    os.truncate(packed['shards'] / '000002.tar', int(whole.sources[0].places['offset'][40]))
    dataset = UnlabeledImages(str(packed['shards']), [])
    order = dataset.epoch_order(torch.Generator().manual_seed(0)).tolist()
    results = [dataset[Draw(index, 100 + index)] for index in order]
    assert {r['sample_idx'] for r in results} <= set(range(40))
    skipped = {index: r['skipped'] for index, r in zip(order, results) if r['skipped']}
    assert sorted(skipped) == list(range(40, 60))
    path, reason = skipped[41][0]
    assert path.startswith(f'{packed["shards"]}/000002.tar/') and 'the shard ends before' in reason


def epoch(dataset, rank=0, world_size=1, start=0, **workers):
    sampler = DrawSampler(dataset, seed=5)
    sampler.rank, sampler.world_size, sampler.start = rank, world_size, start
    return list(DataLoader(dataset, sampler=sampler, collate_fn=first, **workers))


@pytest.mark.parametrize('name', ['shards', 'lmdb', 'mixture'])
def test_ranks_workers_and_a_resume_draw_what_one_process_draws(packed, name):
    source = str(packed[name]) if name != 'mixture' else [
        dict(path=str(packed['shards']), weight=2, shuffle_buffer=3),
        dict(path=str(packed['lmdb']), weight=1), dict(path=str(packed['folder']), weight=1)]
    if name != 'lmdb':  # some are replaced, by random ones of the same source
        TarShards(str(packed['shards']))
        os.truncate(packed['shards'] / '000000.tar', 20_000)
    dataset = UnlabeledImages(source, [], shuffle_buffer=7)
    alone = epoch(dataset)
    assert len(alone) == len(dataset)
    assert any(skipped for _, _, skipped, *_ in alone) == (name != 'lmdb')
    ranks = [epoch(dataset, rank, 2, num_workers=2) for rank in range(2)]
    assert [draw for step in zip(*ranks) for draw in step] == alone
    assert epoch(dataset, 1, 2, start=11, num_workers=2) == ranks[1][11:]


@pytest.mark.slow
def test_spawned_workers_read_packed_images(packed):
    for name in ('shards', 'lmdb'):
        dataset = UnlabeledImages(str(packed[name]), [])
        assert epoch(dataset, num_workers=1, multiprocessing_context='spawn') == epoch(dataset)


def test_shards_of_a_mixture_are_read_in_their_order(packed):
    dataset = UnlabeledImages([dict(path=str(packed['folder'])),
                               dict(path=str(packed['shards']), shuffle_buffer=1)], [])
    order = dataset.epoch_order(torch.Generator().manual_seed(0))
    drawn = order[order >= 60] - 60
    owner = dataset.sources[1].places['shard'][drawn.numpy()]
    assert np.count_nonzero(np.diff(owner)) == 2
    assert (drawn.diff() == 1).sum() >= 57  # of 59: but where a shard begins


def test_shards_and_other_images_in_one_folder(packed):
    make(packed['shards'] / 'more' / 'a.png')
    with pytest.raises(ValueError, match="shards' holds .tar files and other images: move one of"):
        UnlabeledImages(str(packed['shards']), [])


def test_the_index_file_of_a_folder_that_has_tars(packed, tmp_path):
    """Its images were listed before: the tars are not looked for."""
    write_shards(packed['folder'], [2])
    (tmp_path / 'index.txt').write_text('07.png\n')
    dataset = UnlabeledImages(str(packed['folder']), [], index_file=str(tmp_path / 'index.txt'))
    assert dataset[0]['img'][0, 0, 0] == 7


def test_a_buffer_below_one(packed):
    for settings in (dict(source=str(packed['shards']), shuffle_buffer=0),
                     dict(source=[dict(path=str(packed['shards']), shuffle_buffer=-2)])):
        with pytest.raises(ValueError, match=r'shuffle_buffer is (0|-2), but must be a whole'):
            UnlabeledImages(pipeline=[], **settings)


def test_lmdb_missing(packed, monkeypatch):
    monkeypatch.setitem(sys.modules, 'lmdb', None)  # as Python marks what cannot be imported
    with pytest.raises(ValueError, match='is an LMDB: install the package lmdb to read it'):
        UnlabeledImages(str(packed['lmdb']), [])


CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.mark.parametrize('name, images', [
    ('_base_/datasets/rsrsd-5m', 60), ('_base_/datasets/tov-rs', 8),
    ('_base_/datasets/million-aid', 6), ('_base_/datasets/rsrsd-100k', 3),
    ('_base_/datasets/tov-100k', 2), ('pera/pera_vitg_rsrsd_tov_million-aid', 74)])
def test_data_configs_read_what_lies_at_their_paths(tmp_path, monkeypatch, name, images):
    write_shards(tmp_path / 'data/rsrsd-5m', [20, 40])  # packed or not: the same line
    for folder, count in (('tov-rs', 8), ('million-aid', 6)):
        for number in range(count):
            make(tmp_path / 'data' / folder / f'class/{number}.png', number)
    for subset, count in (('rsrsd-100k', 3), ('tov-rs-100k', 2)):
        lines = ''.join(f'tov-rs/class/{number}.png\n' for number in range(count))
        (tmp_path / f'data/{subset}.txt').write_text(lines)
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(CONFIGS / f'{name}.py').train_dataloader.dataset
    assert len(DATASETS.build(dict(cfg, pipeline=[]))) == images
    assert not (tmp_path / 'data/rsrsd-5m.txt').exists()
    written = {'data/tov-rs.txt', 'data/million-aid.txt'}
    found = {path for path in written if (tmp_path / path).exists()}
    assert found == {f'data/{part}.txt' for part in ('tov-rs', 'million-aid')
                     if part in name or (part == 'tov-rs' and '_tov_' in name)}
