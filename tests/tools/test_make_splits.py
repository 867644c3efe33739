import os
import runpy
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from pera_mm.prepare import splits
from pera_mm.prepare.classification import AID, UCM, published_names

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'data' / 'make_splits.py'
LISTS = ROOT / 'configs' / '_base_' / 'datasets' / 'splits'


@pytest.fixture
def run(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
        runpy.run_path(str(TOOL), run_name='__main__')

    return run


@pytest.mark.parametrize('split', ['aid_tr20', 'aid_tr50', 'ucm_tr50', 'ucm_tr80'])
def test_the_committed_list_is_what_the_command_makes(tmp_path, run, split):
    dataset, share = split.split('_tr')
    run(dataset, tmp_path / f'{split}.txt', '--share', f'0.{share[0]}')
    assert (tmp_path / f'{split}.txt').read_text() == (LISTS / f'{split}.txt').read_text()


@pytest.mark.parametrize(('split', 'share', 'counts'), [
    ('aid_tr20', 0.2, AID), ('aid_tr50', 0.5, AID), ('ucm_tr50', 0.5, UCM), ('ucm_tr80', 0.8, UCM),
])
def test_every_class_gives_its_exact_share(split, share, counts):
    names = splits.read_list(split)
    assert len(names) == len(set(names))
    assert set(names) <= set(published_names(split[:3]))
    assert Counter(map(splits.class_of, names)) == {
        label: round(share * count) for label, count in counts.items()}


def test_lists_are_found_in_a_checkout_and_in_a_wheel(tmp_path):
    for place in ('configs', 'site-packages/pera_mm/.mim/configs'):
        path = tmp_path / place / '_base_/datasets/splits/aid_tr20.txt'
        path.parent.mkdir(parents=True)
        path.write_text('')
    assert splits.list_path('aid_tr20', tmp_path / 'pera_mm').parts[-5] == 'configs'
    wheel = splits.list_path('aid_tr20', tmp_path / 'site-packages/pera_mm')
    assert '.mim' in wheel.parts
    with pytest.raises(ValueError, match='aid_tr99.txt is missing: install pera_mm again'):
        splits.list_path('aid_tr99')


def test_rounding_is_half_up_and_leaves_both_sides_something():
    names = [f'{label}/{number}' for label, count in (('ten', 10), ('two', 2), ('three', 3))
             for number in range(count)]
    train = Counter(map(splits.class_of, splits.stratified(names, 0.15, 0)))
    assert train == {'ten': 2, 'two': 1, 'three': 1}
    train = Counter(map(splits.class_of, splits.stratified(names, 0.99, 0)))
    assert train == {'ten': 9, 'two': 1, 'three': 2}


def test_seeds_differ_and_a_smaller_share_lies_within_a_larger():
    names = published_names('ucm')
    small, large = (set(splits.stratified(names, share, 0)) for share in (0.5, 0.8))
    assert small < large
    assert set(splits.stratified(names, 0.5, 1)) != small
    assert splits.stratified(names[::-1], 0.5, 0)[::-1] != []
    assert set(splits.stratified(names[::-1], 0.5, 0)) == small


def test_a_folder_gives_both_lists_for_mmpretrain(tmp_path, run, capsys):
    for label in ('field', 'forest'):
        (tmp_path / label).mkdir()
        for number in range(5):
            Image.new('RGB', (8, 8)).save(tmp_path / label / f'{number}.png')
        (tmp_path / label / 'notes.md').write_text('')
    run(tmp_path, tmp_path / 'splits/tr40', '--share', 0.4)
    assert '4 train, 6 test' in capsys.readouterr().out
    train, test = ((tmp_path / f'splits/tr40_{part}.txt').read_text().splitlines()
                   for part in ('train', 'test'))
    assert (len(train), len(test)) == (4, 6)
    assert sorted(train + test) == [f'{label}/{number}.png {index}' for index, label in
                                    enumerate(('field', 'forest')) for number in range(5)]
    from mmpretrain.datasets import CustomDataset
    dataset = CustomDataset(data_root=str(tmp_path), ann_file='splits/tr40_test.txt',
                            metainfo=dict(classes=['field', 'forest']), pipeline=[])
    assert [(Path(dataset[i]['img_path']).is_file(), dataset[i]['gt_label'])
            for i in range(6)] == [(True, 0)] * 3 + [(True, 1)] * 3


def test_classes_are_folders_with_images_of_any_type_and_names_of_any_bytes(tmp_path, run):
    from pera_mm.registry import DATASETS
    odd = os.fsdecode(b'bad\xe9.png')
    names = ['a/1.PNG', 'a/2.webp', 'a/deep/1.tiff', 'a/with blank.gif', f'b/{odd}', 'b/1.bmp']
    for name in [*names, '.ipynb_checkpoints/1.png', '@eaDir/1.png', 'a/@eaDir/1.png', 'a/._1.png']:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(tmp_path / name)
    for _ in range(2):  # the folder of the splits is not a class
        run(tmp_path, tmp_path / 'splits/half', '--share', 0.5)
    found = []
    for part in ('train', 'test'):
        data = DATASETS.build(dict(
            type='pera_mm.LabelledImages', data_root=str(tmp_path), test_mode=True,
            ann_file=f'splits/half_{part}.txt', pipeline=[]))
        found += [(os.path.relpath(data[i]['img_path'], tmp_path), data[i]['gt_label'])
                  for i in range(len(data))]
    assert len(data) == 3
    assert sorted(found) == [(name, 'ab'.index(name[0])) for name in sorted(names)]
    data = DATASETS.build(dict(type='pera_mm.LabelledImages', data_root=str(tmp_path), pipeline=[]))
    assert sorted(found) == sorted((os.path.relpath(data[i]['img_path'], tmp_path),
                                    data[i]['gt_label']) for i in range(len(data)))


def test_a_broken_link_is_named(tmp_path, run):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/1.png').symlink_to('nowhere')
    with pytest.raises(SystemExit, match='1 of 1 images in .* are broken links: a/1.png; repair'):
        run(tmp_path, tmp_path / 'x', '--share', 0.5)
    with pytest.raises(SystemExit, match='nowhere has no folders with images'):
        run(tmp_path / 'nowhere', tmp_path / 'x', '--share', 0.5)


def test_the_command_explains_itself(tmp_path, run):
    with pytest.raises(SystemExit, match='share is 1.5, but must lie between 0 and 1'):
        run('aid', tmp_path / 'x.txt', '--share', 1.5)
    with pytest.raises(SystemExit, match='has no folders with images'):
        run(tmp_path, tmp_path / 'x', '--share', 0.5)
    (tmp_path / 'lone').mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path / 'lone/1.png')
    with pytest.raises(SystemExit, match='class lone has a single image'):
        run(tmp_path, tmp_path / 'x', '--share', 0.5)
