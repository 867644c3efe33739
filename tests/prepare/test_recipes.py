"""The six recipes on made-up archives: what they write, and what they say is wrong."""

import io
import runpy
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import official_archives as official
import pytest
from PIL import Image

from pera_mm.prepare import dior, levircd, loveda, potsdam
from pera_mm.prepare.classification import aid, published_names, ucm
from pera_mm.prepare.recipe import prepare
from pera_mm.prepare.splits import read_list

TOOL = Path(__file__).parents[2] / 'tools' / 'data' / 'prepare.py'
AID_NAMES = ['Airport/airport_1.jpg', 'Airport/airport_16.jpg', 'Viaduct/viaduct_7.jpg']
UCM_NAMES = ['agricultural/agricultural00.tif', 'agricultural/agricultural01.tif',
             'river/river99.tif']


@pytest.fixture
def run(monkeypatch, capsys):
    """The command as from a shell, without the seconds that a new Python takes → (code, output)."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
        code, last = 0, ''
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as stop:
            code, last = 1, str(stop)
        return code, capsys.readouterr().out + last

    return run


@pytest.fixture
def source(tmp_path):
    return tmp_path / 'source'


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'out' / 'data'


def sentences(report):
    return ' '.join(problem.sentence() for problem in report.problems)


def prepared(recipe, source, root, archives=None, partial=True):
    if archives is not None:
        official.pack_all(source, archives)
    before = official.snapshot(source)
    report = prepare(recipe, source, root, partial)
    assert official.snapshot(source) == before
    assert not [name for name in official.tree(root) if name.endswith('.part')]
    return report


# -- as a user ------------------------------------------------------------------------------------

SAMPLES = {  # archives, files made of them
    'aid': (lambda: {'AID.zip': {f'AID/{name}': official.picture(600) for name in AID_NAMES}}, [
        *AID_NAMES, 'splits/tr20_test.txt', 'splits/tr20_train.txt', 'splits/tr50_test.txt',
        'splits/tr50_train.txt']),
    'ucm': (lambda: {'UCMerced_LandUse.zip': {
        f'UCMerced_LandUse/Images/{name}': official.picture(256, 'TIFF') for name in UCM_NAMES}}, [
        *UCM_NAMES, 'splits/tr50_test.txt', 'splits/tr50_train.txt', 'splits/tr80_test.txt',
        'splits/tr80_train.txt']),
    'loveda': (lambda: official.loveda(1024, train=(0,), val=(2522,)), [
        'ann_dir/val/2522.png', 'img_dir/test/4191.png', 'img_dir/val/2522.png',
        *(f'{kind}_dir/train_512/0_{corner}.png' for kind in ('ann', 'img')
          for corner in ('0000_0000', '0512_0000', '0000_0512', '0512_0512'))]),
    'levircd': (lambda: official.levircd(1024, train=1), [
        *(f'{split}/{part}/{split}_1.png' for split in ('test', 'train', 'val')
          for part in ('A', 'B', 'label')),
        *(f'train_512/{part}/train_1_{corner}.png' for part in ('A', 'B', 'label')
          for corner in ('0000_0000', '0512_0000', '0000_0512', '0512_0512'))]),
    'dior': (lambda: official.dior(800), [
        *(f'Annotations/Horizontal Bounding Boxes/{number}.xml'
          for number in ('00001', '00002', '11726', '11727')),
        *(f'ImageSets/Main/{name}.txt' for name in ('test', 'train', 'trainval', 'val')),
        'JPEGImages-test/11726.jpg', 'JPEGImages-test/11727.jpg',
        'JPEGImages-trainval/00001.jpg', 'JPEGImages-trainval/00002.jpg']),
}


@pytest.mark.parametrize('packed', [True, False], ids=['archives', 'folders'])
@pytest.mark.parametrize('dataset', SAMPLES)
def test_the_command_prepares_a_sample_and_reports_success(dataset, packed, source, root, run):
    make, expected = SAMPLES[dataset]
    archives = make()
    if packed:
        official.pack_all(source / 'anywhere', archives)
    else:
        for name, members in archives.items():
            official.unpack(source / name.removesuffix('.zip'), members)
    before = official.snapshot(source)
    code, output = run(dataset, source, root, '--partial')
    assert (code, output.splitlines()[-1]) == (0, f'{root}: all is well'), output
    assert official.tree(root) == sorted([*expected, 'verification.txt'])
    assert official.snapshot(source) == before
    shutil.rmtree(source)  # the result does not need it
    for path in root.rglob('*.[jpt][pni][gf]'):
        Image.open(path).load()


def test_without_partial_missing_files_are_wrong(source, root, run):
    official.pack_all(source, official.loveda(1024))
    code, output = run('loveda', source, root)
    assert code == 1
    assert f'{root} is not as published; {root}/verification.txt names every file' in output
    assert 'WRONG' in output and '10,088' in output
    text = (root / 'verification.txt').read_text()
    assert 'WRONG train_512 images (512 px): 8 (published: 10,088)' in text


@pytest.mark.parametrize(('dataset', 'archive', 'asked'), [
    ('levircd', 'val.zip', 'val.zip (A, B, label/val_*.png)'),
    ('loveda', 'Test.zip', 'Test.zip (Test/Urban/images_png/*.png …)'),
    ('dior', 'Annotations.zip', 'Annotations.zip (Horizontal Bounding Boxes/*.xml)'),
    ('dior', 'Main.zip', 'ImageSets (Main/test.txt) nor of ImageSets (Main/train.txt)'),
])
def test_a_missing_archive_is_named_before_anything_is_written(
        dataset, archive, asked, source, root, run):
    archives = {'loveda': official.loveda, 'levircd': official.levircd,
                'dior': official.dior}[dataset](16)
    del archives[archive]
    official.pack_all(source, archives)
    code, output = run(dataset, source, root)
    assert code == 1 and asked in output and '--partial accepts this' in output
    assert not root.exists()


def test_hidden_folders_thumbnails_and_copies_are_no_images(source, root, monkeypatch):
    monkeypatch.setattr(loveda, 'PUBLISHED', dict(train=2, val=2, test=1))
    archives = official.loveda(16)
    train = archives['Train.zip']
    name = 'Train/Urban/images_png/0.png'
    train |= {f'{folder}/{name}': official.picture(16, 'PNG', 7) for folder in (
        '.Trash-1000', '__MACOSX', '@eaDir', 'x/.ipynb_checkpoints')}
    train |= {'Train/Urban/images_png/0 (copy).png': train[name],
              'Train/Urban/images_png/._0.png': b''}
    assert prepared(loveda.LoveDA(size=16, tile=8), source, root, archives, partial=False).ok


def test_bad_sources_are_one_sentence_and_nothing_is_written(source, root, run, tmp_path):
    source.mkdir()
    assert 'holds nothing of AID.zip (folders Airport' in run('aid', source, root)[1]
    official.unpack(source, {'AID.rar': b'', 'readme.txt': b''})
    assert ('within an archive: AID.rar; unpack what is needed first'
            in run('aid', source, root)[1])
    (source / 'half.zip').write_bytes(b'PK\x03\x04half')
    assert 'half.zip is not a whole zip file' in run('aid', source, root)[1]
    assert 'is neither a folder nor an archive' in run('aid', tmp_path / 'nowhere', root)[1]
    assert 'lies in the source' in run('aid', source, source / 'prepared')[1]
    assert 'lies in the source' in run('aid', source, source)[1]
    (tmp_path / 'file').write_text('')
    official.unpack(tmp_path / 'good', {f'{name}': official.picture(600) for name in AID_NAMES})
    output = run('aid', tmp_path / 'good', tmp_path / 'file' / 'x')[1]
    assert f'{tmp_path}/file is a file where a folder must be' in output
    assert not root.exists()


def test_a_killed_command_continues_when_repeated(source, root):
    small = levircd.LevirCD(size=64, tile=32)
    prepared(small, source, root, official.levircd(64))
    whole = official.snapshot(root)
    label = 'train_512/label'.replace('512', '32')
    (root / label / 'train_1_0032_0032.png').unlink()
    (root / label / '.train_1_0032_0032.png.part').write_bytes(b'half')
    (root / 'val/A/val_1.png').unlink()
    report = prepared(small, source, root)
    assert report.ok
    again = official.snapshot(root)
    changed = {name for name in whole if whole[name] != again[name]}
    assert {name: data for name, (data, _) in whole.items()} == {
        name: data for name, (data, _) in again.items()}
    assert changed == {f'{label}/train_1_0032_0032.png', 'val/A/val_1.png', 'verification.txt'}


# -- whole data sets, small pictures --------------------------------------------------------------

def test_the_whole_ucm_is_as_published_and_split_by_the_lists(source, root):
    data = official.picture(16, 'TIFF')
    report = prepared(replace(ucm, size=16), source, root, {
        'UCM.zip': {f'Images/{name}': data for name in published_names('ucm')}}, partial=False)
    assert report.ok, report.text()
    for split, number in (('tr50', 1050), ('tr80', 1680)):
        train, test = ([line.split() for line in
                        (root / f'splits/{split}_{part}.txt').read_text().splitlines()]
                       for part in ('train', 'test'))
        assert [name for name, _ in train] == read_list(f'ucm_{split}')
        assert (len(train), len(test)) == (number, 2100 - number)
        labels = {name.split('/')[0]: int(label) for name, label in train + test}
        assert labels == {label: index for index, label in enumerate(sorted(ucm.counts))}


def test_a_release_with_other_names_gets_the_command_for_its_splits(
        source, root, monkeypatch):
    data = official.picture(16, 'TIFF')
    report = prepared(replace(ucm, size=16), source, root, {'UCM.zip': {
        f'Images/{name.replace("01.tif", "101.tif")}': data for name in published_names('ucm')}},
        partial=False)
    lacking = [name for name in read_list('ucm_tr80') if name.endswith('01.tif')]
    assert len(lacking) > 5
    assert f'Names of the list tr80 are not in this release ({len(lacking)}): {lacking[0]}, ' in \
        sentences(report)
    command = f'make_splits.py {root} {root}/splits/tr80 --share 0.80'
    assert command in sentences(report)
    assert not (root / 'splits/tr80_train.txt').exists()
    tool = TOOL.with_name('make_splits.py')
    monkeypatch.setattr(sys, 'argv', command.split())
    runpy.run_path(str(tool), run_name='__main__')  # the command in the sentence works
    assert len((root / 'splits/tr80_train.txt').read_text().splitlines()) == 1680


def test_a_sample_gets_the_splits_of_what_it_has(source, root):
    prepared(replace(aid, size=32), source, root, {
        'AID.zip': {name: official.picture(32) for name in AID_NAMES}})
    assert 'Airport/airport_16.jpg' in read_list('aid_tr20')
    assert (root / 'splits/tr20_train.txt').read_text() == 'Airport/airport_16.jpg 0\n'
    assert 'Viaduct/viaduct_7.jpg 29\n' in (root / 'splits/tr20_test.txt').read_text()


def test_an_image_of_aid_too_many_or_of_a_class_too_few_is_named(source, root):
    recipe = replace(aid, size=32, counts=dict(Airport=2, Beach=1), splits={})
    report = prepared(recipe, source, root, {'AID.zip': {
        f'{name}.jpg': official.picture(32) for name in ('Airport/1', 'Beach/1', 'Beach/2')}},
        partial=False)
    assert ('Classes have another number of images than published (2): Airport (1, published 2), '
            'Beach (2, published 1)') in sentences(report)
    assert 'Beach (2, published 1)' in sentences(prepare(recipe, source, root, partial=True))


def test_the_whole_potsdam(source, root):
    recipe = potsdam.Potsdam(size=40, tile=16)
    report = prepared(recipe, source, root, official.potsdam(
        40, (*potsdam.TRAIN, *potsdam.TEST)), partial=False)
    assert report.ok, report.text()
    assert len(official.tree(root / 'img_dir/train')) == 24 * 9
    assert official.tree(root / 'img_dir/train') == official.tree(root / 'ann_dir/train')
    assert official.tree(root / 'img_dir/val') == official.tree(root / 'ann_dir/val_eroded') == \
        sorted(f'top_potsdam_{number}.png' for number in potsdam.TEST)
    labels = official.label_map(40, [1, 2, 3, 4, 5, 6], seed=0)
    tile = np.asarray(Image.open(root / 'ann_dir/train/top_potsdam_2_10_0016_0024.png'))
    np.testing.assert_array_equal(tile, labels[24:40, 16:32])
    tile = np.asarray(Image.open(root / 'img_dir/train/top_potsdam_2_10_0016_0024.png'))
    image = np.asarray(Image.open(io.BytesIO(official.picture(40, 'TIFF', seed=0))))
    np.testing.assert_array_equal(tile, image[24:40, 16:32])
    whole = np.asarray(Image.open(root / 'ann_dir/val/top_potsdam_2_13.png'))
    np.testing.assert_array_equal(whole, official.label_map(40, [1, 2, 3, 4, 5, 6], seed=24))
    assert report.shares['ann_dir/train']['tree'] == pytest.approx(1 / 6, abs=0.01)
    assert report.shares['ann_dir/val_eroded']['no class (border)'] > 0.1


@pytest.mark.parametrize('module', [loveda, levircd, dior])
def test_as_many_as_published_is_well_and_one_less_is_not(module, source, root, monkeypatch):
    if module is loveda:
        recipe, archives = loveda.LoveDA(size=16, tile=8), official.loveda(16)
        monkeypatch.setattr(loveda, 'PUBLISHED', dict(train=2, val=2, test=1))
    elif module is levircd:
        recipe, archives = levircd.LevirCD(size=16, tile=8), official.levircd(16)
        monkeypatch.setattr(levircd, 'PUBLISHED', dict(train=2, val=1, test=1))
    else:
        recipe, archives = dior.Dior(size=16), official.dior(16)
        monkeypatch.setattr(dior, 'PUBLISHED', dict(trainval=2, test=2))
        monkeypatch.setattr(dior, 'BOXES', (7, 8))
    assert prepared(recipe, source, root, archives, partial=False).ok
    monkeypatch.setitem(module.PUBLISHED, 'test', 3)
    assert not prepare(recipe, source, root).ok
    assert prepare(recipe, source, root, partial=True).ok
    monkeypatch.setitem(module.PUBLISHED, 'test', 0)
    assert not prepare(recipe, source, root, partial=True).ok  # more than published


# -- what is wrong --------------------------------------------------------------------------------

def test_unreadable_and_odd_images_are_counted_and_named(source, root):
    whole = official.picture(32)
    report = prepared(replace(aid, size=32), source, root, {'AID.zip': {
        'Airport/airport_1.jpg': whole, 'Airport/airport_2.jpg': whole[:-2],
        'Airport/airport_3.jpg': b'', 'Airport/airport_4.jpg': official.picture(40)}})
    assert ('Images cannot be read (2): Airport/airport_2.jpg (ValueError: the JPEG is truncated: '
            'it has no end marker), Airport/airport_3.jpg (ValueError: the file is empty). '
            'Remove them, download their archive again') in sentences(report)
    assert 'Images are not 32 x 32 pixels (1): Airport/airport_4.jpg (40 x 40)' in sentences(report)
    assert not report.ok


def test_ucm_images_a_few_pixels_off_are_accepted_and_counted(source, root):
    sizes = dict(zip(UCM_NAMES, (256, 251, 200)))
    report = prepared(ucm, source, root, {'UCM.zip': {
        name: official.picture(size, 'TIFF') for name, size in sizes.items()}})
    assert [problem.names for problem in report.problems] == [('river/river99.tif (200 x 200)',)]
    assert [row.found for row in report.rows if 'a few pixels off' in row.what] == ['1']


def test_a_damaged_member_is_named_and_the_others_are_prepared(source, root):
    recipe = replace(aid, size=32)
    official.pack_all(source, {'AID.zip': {name: official.picture(32) for name in AID_NAMES}})
    data = bytearray((source / 'AID.zip').read_bytes())
    data[data.index(b'\xff\xd8\xff') + 30] ^= 255
    (source / 'AID.zip').write_bytes(data)
    report = prepared(recipe, source, root)
    assert ('Files of the source could not be used (1): AID.zip/Airport/airport_1.jpg cannot be '
            'read (Bad CRC-32') in sentences(report)
    assert (root / AID_NAMES[1]).exists() and not (root / AID_NAMES[0]).exists()


def test_many_files_are_counted_in_the_sentence_and_all_named_in_the_file(source, root):
    names = [f'Airport/airport_{number}.jpg' for number in range(1, 13)]
    report = prepared(replace(aid, size=32), source, root,
                      {'AID.zip': dict.fromkeys(names, b'no image')})
    assert sentences(report).startswith('Images cannot be read (12): Airport/airport_1.jpg')
    assert 'and 7 more' in sentences(report)
    assert all(f'{name} (' in (root / 'verification.txt').read_text() for name in names)


def test_loveda_pairs_sizes_and_labels(source, root):
    archives = official.loveda(16, train=(0, 1, 2, 3))
    train = archives['Train.zip']
    del train['Train/Urban/masks_png/0.png'], train['Train/Rural/images_png/1.png']
    train['Train/Urban/masks_png/2.png'] = official.mask(15, range(8))
    train['Train/Rural/masks_png/3.png'] = official.mask(16, [*range(8), 9, 200])
    train['Train/Rural/masks_png/4.png'] = official.picture(16, 'PNG')
    train['Train/Rural/images_png/4.png'] = b'\x89PNG'
    archives['Val.zip']['Val/Urban/masks_png/2522.png'] = official.picture(16, 'PNG')
    archives['Test.zip']['Test/Urban/images_png/4191.png'] = b'\x89PNG'
    text = sentences(prepared(loveda.LoveDA(size=16, tile=8), source, root, archives))
    assert ('ann_dir/train_8 have no counterpart in img_dir/train_8 (4): 1_0000_0000.png, '
            '1_0000_0008.png') in text
    assert 'img_dir/train_8 have no counterpart in ann_dir/train_8 (8): 0_0000_0000.png' in text
    assert 'Train.zip/Train/Urban/masks_png/2.png is 15 x 15 pixels, not 16 x 16' in text
    assert 'Masks in ann_dir/train_8 have unknown labels (' in text
    assert 'ann_dir/train_8/3_0000_0000.png (9, 200 in' in text
    assert 'masks_png/4.png has pixels of mode RGB, but a mask has one 8-bit channel' in text
    assert 'images_png/4.png cannot be read (' in text
    assert 'Known labels are 0, 1, 2, 3, 4, 5, 6, 7.' in text
    assert 'ann_dir/val/2522.png (a mask has one 8-bit channel, this is uint8 (16, 16, 3))' in text
    assert 'Test images cannot be read (1): img_dir/test/4191.png' in text


def test_loveda_numbers_that_collide_are_refused(source, root):
    archives = official.loveda(16)
    archives['Train.zip']['Train/Rural/images_png/0.png'] = official.picture(16, 'PNG', 77)
    official.pack_all(source, archives)
    with pytest.raises(ValueError, match=r'Urban/images_png/0.png and .*Rural/images_png/0.png '
                                         'differ, but both would become img_dir/train/0.png'):
        prepare(loveda.LoveDA(size=16, tile=8), source, root, partial=True)
    assert not root.exists()


def test_loveda_without_its_first_folder(source, root):
    archives = {f'train_and_test/{name}': {path.split('/', 1)[1]: data for path, data in
                                           members.items()}
                for name, members in official.loveda(16).items()}
    prepared(loveda.LoveDA(size=16, tile=16), source, root, archives)
    assert official.tree(root / 'img_dir') == [
        'test/4191.png', 'train_16/0_0000_0000.png', 'train_16/1_0000_0000.png', 'val/2522.png',
        'val/2523.png']


def test_loveda_trains_on_four_tiles_of_each_image(source, root):
    archives = official.loveda(16)
    masks = archives['Train.zip']
    palette = Image.fromarray(official.label_map(16, range(8), seed=5))
    palette.putpalette(list(range(8 * 3)))
    file = io.BytesIO()
    palette.save(file, 'PNG')
    masks['Train/Rural/masks_png/1.png'] = file.getvalue()  # its indices are the labels
    report = prepared(loveda.LoveDA(size=16, tile=8), source, root, archives)
    assert report.ok, report.text()
    for number, seed in ((0, 0), (1, 5)):
        for x, y in ((0, 0), (8, 0), (0, 8), (8, 8)):
            tile = np.asarray(Image.open(root / f'ann_dir/train_8/{number}_{x:04d}_{y:04d}.png'))
            labels = official.label_map(16, range(8), seed)
            np.testing.assert_array_equal(tile, labels[y:y + 8, x:x + 8])
    image = np.asarray(Image.open(io.BytesIO(official.picture(16, 'PNG', 1))))
    tile = np.asarray(Image.open(root / 'img_dir/train_8/1_0008_0000.png'))
    np.testing.assert_array_equal(tile, image[:8, 8:])
    assert loveda.PUBLISHED['train'] * 4 == 10_088 == 1_261 * 8


def test_levircd_pairs_and_labels(source, root):
    archives = official.levircd(16)
    del archives['train.zip']['B/train_2.png']
    archives['test.zip']['label/test_1.png'] = official.mask(16, [0, 1, 255])
    archives['val.zip']['A/val_1.png'] = official.picture(12, 'PNG')
    text = sentences(prepared(levircd.LevirCD(size=16, tile=8), source, root, archives))
    assert 'train/A and train/label have no counterpart in train/B (1): train_2.png' in text
    assert 'train_8/A and train_8/label have no counterpart in train_8/B (4): ' in text
    assert 'Masks in test/label have unknown labels (1): test/label/test_1.png (1 in' in text
    assert 'Val images are not 16 x 16 pixels (1): val/A/val_1.png (12 x 12)' in text


def test_levircd_within_other_folders(source, root):
    archives = {'LEVIR CD.zip': {
        f'LEVIR CD/{name.removesuffix(".zip")}/{path}': data
        for name, members in official.levircd(16).items() for path, data in members.items()}}
    prepared(levircd.LevirCD(size=16, tile=8), source, root, archives)
    assert len(official.tree(root / 'train_8')) == 3 * 2 * 4
    assert official.tree(root / 'val') == ['A/val_1.png', 'B/val_1.png', 'label/val_1.png']


def test_levircd_broken_and_odd_files_that_are_cut(source, root):
    archives = official.levircd(512, train=3)
    train = archives['train.zip']
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    data = bytearray(official.encoded(noise, 'PNG'))
    second = data.index(b'IDAT', data.index(b'IDAT') + 4)
    data[second:second + 4] = b'\x1e\xec\xc5\xd1'  # Pillow raises a SyntaxError
    train['A/train_1.png'] = bytes(data)
    train['label/train_2.png'] = official.encoded(noise[..., 0] > 127, 'PNG')  # one bit a pixel
    text = sentences(prepared(levircd.LevirCD(size=512, tile=256), source, root, archives))
    assert ('could not be used (1): train.zip/A/train_1.png cannot be read (SyntaxError: broken PNG'
            in text)
    assert 'train/label/train_2.png (a mask has one 8-bit channel, this is bool' in text
    tile = np.asarray(Image.open(root / 'train_256/label/train_2_0256_0000.png'))
    np.testing.assert_array_equal(tile, np.where(noise[:256, 256:, 0] > 127, 255, 0))


def test_levircd_whole_and_cut_together_are_refused(source, root):
    archives = official.levircd(16)
    archives['train.zip']['A/train_1_0000_0000.png'] = b''
    official.pack_all(source, archives)
    with pytest.raises(ValueError, match='both whole and in tiles'):
        prepare(levircd.LevirCD(size=16, tile=8), source, root)


@pytest.fixture
def small_potsdam(source):
    archives = official.potsdam(32, ('2_10', '4_12', '2_13'))
    return potsdam.Potsdam(size=32, tile=16), archives


def test_potsdam_near_colors_count_and_others_are_refused(source, root, small_potsdam):
    recipe, archives = small_potsdam
    labels = archives['5_Labels_all.zip']
    truth = official.label_map(32, [1, 2, 3, 4, 5, 6], seed=0)
    rng = np.random.default_rng(0)
    noise = rng.integers(-potsdam.TOLERANCE, potsdam.TOLERANCE + 1, (32, 32, 3))
    near = np.clip(official.COLORS[truth].astype(int) + noise, 0, 255).astype(np.uint8)
    labels['top_potsdam_2_10_label.tif'] = official.encoded(near, 'TIFF')
    far = official.COLORS[truth].copy()
    far[:2, :8] = 130, 140, 99
    far[2, 0] = 255, 0, 255
    far[3, 0] = 255 - potsdam.TOLERANCE - 1, 255, 255
    far[0, 0] = 1, 140, 99
    labels['top_potsdam_4_12_label.tif'] = official.encoded(far, 'TIFF')
    report = prepared(recipe, source, root, archives)
    tile = np.asarray(Image.open(root / 'ann_dir/train/top_potsdam_2_10_0016_0000.png'))
    np.testing.assert_array_equal(tile, truth[:16, 16:])
    text = sentences(report)
    assert ('5_Labels_all.zip/top_potsdam_4_12_label.tif has colors of no class in 1.76% of its '
            'pixels: (130, 140, 99) 15 times, (1, 140, 99) 1 times') in text
    assert 'put 5_Labels_for_participants.zip beside it' in text
    assert 'Files of img_dir/train have no counterpart in ann_dir/train (4): ' in text
    official.pack(source / '5_Labels_for_participants.zip', {
        'top_potsdam_4_12_label.tif': official.encoded(official.COLORS[truth], 'TIFF')})
    report = prepared(recipe, source, root)
    assert report.ok, report.text()


def test_potsdam_beside_the_labels_for_participants(source, root, small_potsdam):
    recipe, archives = small_potsdam
    restored = official.encoded(official.COLORS[official.label_map(32, [0, 1], seed=9)], 'TIFF')
    archives['5_Labels_for_participants_no_Boundary.zip'] = {
        '5_Labels_for_participants_no_Boundary/top_potsdam_4_12_label_noBoundary.tif': restored}
    report = prepared(recipe, source, root, archives)
    assert report.ok, report.text()
    assert official.tree(root / 'ann_dir/val_eroded') == ['top_potsdam_2_13.png']


def test_potsdam_wrong_sizes_and_swapped_labels(source, root, small_potsdam):
    recipe, archives = small_potsdam
    full, eroded = archives['5_Labels_all.zip'], archives['5_Labels_all_noBoundary.zip']
    archives['2_Ortho_RGB.zip']['2_Ortho_RGB/top_potsdam_2_10_RGB.tif'] = official.picture(
        31, 'TIFF')
    archives['2_Ortho_RGB.zip']['2_Ortho_RGB/top_potsdam_9_9_RGB.tif'] = b''
    name = 'top_potsdam_2_13_label.tif'
    border = name.replace('.tif', '_noBoundary.tif')
    full[name], eroded[border] = eroded[border], full[name]
    full['top_potsdam_4_12_label.tif'] = full['top_potsdam_4_12_label.tif'][:-9]
    text = sentences(prepared(recipe, source, root, archives))
    assert 'top_potsdam_2_10_RGB.tif is 31 x 31 pixels, not 32 x 32' in text
    assert 'top_potsdam_4_12_label.tif cannot be read' in text
    assert 'Images in neither official split were left out (1): 9_9' in text
    assert 'Full labels have black borders (1): ann_dir/val (' in text
    assert 'Eroded labels have no border (1): ann_dir/val_eroded' in text
    assert text.count('remove this folder, download 5_Labels_all') == 2  # or they would be kept


def test_dior_lists_pairs_and_boxes(source, root):
    archives = official.dior(16, train=('00001', '00003', '00004'), test=('11726',))
    boxes = archives['Annotations.zip']
    folder = 'Annotations/Horizontal Bounding Boxes'
    boxes[f'{folder}/00001.xml'] = official.xml('00001', 16, [
        ('ship', 4, 4, 4, 9), ('ship', 1, 1, 17, 9), ('Tree', 1, 1, 5, 5), ('', 1, 1, 5, 5)])
    boxes[f'{folder}/00002.xml'] = b'<annotation><object>'
    boxes[f'{folder}/00003.xml'] = official.xml('00003', 12, [])
    del boxes[f'{folder}/00004.xml']
    boxes[f'{folder}/00005.xml'] = b'<?xml version="1.0" encoding="klingon"?><annotation/>'
    boxes[f'{folder}/99999.xml'] = boxes[f'{folder}/11726.xml']
    archives['JPEGImages-trainval.zip']['JPEGImages-trainval/00009.jpg'] = official.picture(16)
    report = prepared(dior.Dior(size=16), source, root, archives)
    text = sentences(report)
    assert '00001.xml (empty box 4 4 4 9; box 1 1 17 9 leaves the image)' in text
    assert '00002.xml (cannot be read: no element found' in text
    assert '00005.xml (cannot be read: ' in text
    assert '00003.xml (says 12 x 12 pixels)' in text
    assert 'Classes are unknown (2): Tree (1 boxes), (no name) (1 boxes). Known are a' in text
    assert 'Trainval images have no XML (2): 00004, 00009' in text
    assert 'Trainval images are in no list (1): 00009' in text
    assert 'XML files have no image (2): 00005, 99999' in text
    lists = {path.stem: path.read_text().split()
             for path in (root / 'ImageSets/Main').iterdir()}
    assert lists == dict(train=['00001', '00003'], val=['00002'], test=['11726'],
                         trainval=['00001', '00002', '00003'])
    assert 'Names in' not in text
    text = sentences(prepare(dior.Dior(size=16), source, root))
    assert 'Names in train.txt have no image or XML file and were left out (1): 00004' in text


def test_dior_xml_that_training_would_refuse(tmp_path):
    whole = official.xml('1', 16, [('ship', 1, 1, 9, 9)])
    for old, new, fault in (
            (b'<width>16</width>', b'', 'says ? x 16 pixels'),
            (b'<width>16', b'<width>1e999', 'says 1e999 x 16 pixels'),
            (b'<xmin>1', b'<xmin>', "cannot be read: could not convert string to float: ''")):
        (tmp_path / '1.xml').write_bytes(whole.replace(old, new))
        assert dior.read_xml(tmp_path / '1.xml', 16).faults == [fault]


def test_dior_by_other_archives(source, root):
    archives = official.dior(16)
    archives['Horizontal Bounding Boxes.zip'] = {
        name.rpartition('/')[2]: data for name, data in archives.pop('Annotations.zip').items()
        if 'Horizontal' in name}
    archives['JPEGImages-test-001.zip'] = archives.pop('JPEGImages-test.zip')
    main = archives['Main.zip']
    main['Main/train.txt'] = b'\xef\xbb\xbf' + main['Main/train.txt'].replace(b'\n', b'\r\n')
    report = prepared(dior.Dior(size=16), source, root, archives)
    assert report.ok, report.text()
    assert (root / 'ImageSets/Main/trainval.txt').read_text().split() == ['00001', '00002']


def test_the_boxes_of_dior_match_the_paper_or_the_files(source, root, monkeypatch):
    monkeypatch.setattr(dior, 'PUBLISHED', dict(trainval=2, test=2))
    official.pack_all(source, official.dior(16))
    for boxes, ok in (((8, 9), True), ((7, 8), True), ((6, 7), False)):
        monkeypatch.setattr(dior, 'BOXES', boxes)
        assert prepare(dior.Dior(size=16), source, root).ok == ok


# -- real samples ---------------------------------------------------------------------------------

def test_the_cut_levircd_sample(shared_data, root, run):
    code, output = run('levircd', shared_data / 'levircd', root, '--partial')
    assert code == 0, output
    assert 'in tiles of 256 px' in output
    assert {split: len(official.tree(root / split / 'B')) for split in ('train', 'val', 'test')} \
        == dict(train=3, val=1, test=4)
    assert not (root / 'train_512').exists()


def test_the_loveda_sample_in_the_official_layout(shared_data, source, root, run):
    archives = {'Train.zip': {}, 'Val.zip': {}, 'Test.zip': {}}
    for split, number in (('Train', 0), ('Val', 1), ('Test', 2)):
        for ours, theirs in (('img_dir', 'images_png'), ('ann_dir', 'masks_png')):
            data = (shared_data / 'loveda' / ours / f'{number}.png').read_bytes()
            archives[f'{split}.zip'][f'{split}/Rural/{theirs}/{number}.png'] = data
    del archives['Test.zip']['Test/Rural/masks_png/2.png']
    official.pack_all(source, archives)
    code, output = run('loveda', source, root, '--partial')
    assert code == 0, output
    assert 'background' in output
    assert [line.split()[0] for line in (root / 'verification.txt').read_text().splitlines()
            if 'images' in line] == ['fewer'] * 3


def test_the_potsdam_sample_turned_back_into_colors(shared_data, source, root):
    name = '2_10_0_0_512_512.png'
    image = np.asarray(Image.open(shared_data / 'potsdam/img_dir' / name))
    labels = np.asarray(Image.open(shared_data / 'potsdam/ann_dir' / name))
    report = prepared(potsdam.Potsdam(size=512, tile=200), source, root, {
        '2_Ortho_RGB.zip': {'top_potsdam_2_10_RGB.tif': official.encoded(image, 'TIFF'),
                            'top_potsdam_2_13_RGB.tif': official.encoded(image, 'TIFF')},
        '5_Labels_all.zip': {f'top_potsdam_{number}_label.tif': official.encoded(
            official.COLORS[labels], 'TIFF') for number in ('2_10', '2_13')}})
    found = np.asarray(Image.open(root / 'ann_dir/train/top_potsdam_2_10_0312_0200.png'))
    np.testing.assert_array_equal(found, labels[200:400, 312:])
    found = np.asarray(Image.open(root / 'img_dir/val/top_potsdam_2_13.png'))
    np.testing.assert_array_equal(found, image)
    shares = {dict(enumerate(potsdam.CLASSES.values()))[label]: (labels == label).mean()
              for label in range(7)}
    assert report.shares['ann_dir/val'] == pytest.approx(shares)


def test_real_voc_files_are_read_and_their_faults_counted(shared_data):
    folder = shared_data / 'neon_trees' / 'Annotations'
    found = [dior.read_xml(path, 400) for path in sorted(folder.glob('*.xml'))]
    assert len(found) == 38
    assert sum((each.classes for each in found), Counter())['Tree'] > 100
    assert not any('cannot be read' in fault for each in found for fault in each.faults)
