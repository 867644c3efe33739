"""Class folders and split lists; files that are missing or cannot be read; names of classes."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from mmengine.config import Config, ConfigDict
from mmengine.dataset import ConcatDataset, pseudo_collate
from PIL import Image
from rasterio.transform import Affine
from torch.utils.data import DataLoader

from pera_mm.datasets.labelled import classes_of, with_classes
from pera_mm.registry import DATASETS, TRANSFORMS

PIPELINE = [
    dict(type='pera_mm.LoadRGB'),
    dict(type='mmpretrain.PackInputs', meta_keys=('img_path', 'ori_shape', 'skipped'))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, name in enumerate(('field', 'town')):
        (tmp_path / name).mkdir()
        for i in range(4):
            pixels = np.full((8, 12, 3), (10 * i, 100 * label, 255), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f'{i}.png')
    (tmp_path / 'split.txt').write_text('town/1.png 1\nfield/2.png 0\n')
    return tmp_path


def build(folder: Path, **kwargs):
    return DATASETS.build(dict(type='pera_mm.LabelledImages', data_root=str(folder),
                               pipeline=PIPELINE, **kwargs))


def test_a_list_gives_paths_and_classes_and_pixels_are_rgb(folder):
    samples = list(build(folder, ann_file='split.txt'))
    assert [int(sample['data_samples'].gt_label) for sample in samples] == [1, 0]
    assert samples[0]['inputs'][:, 0, 0].tolist() == [10, 100, 255]
    assert samples[0]['data_samples'].ori_shape == (8, 12)


def test_bands_and_scale_of_a_config(tmp_path):
    pixels = np.stack([np.full((4, 6), value, np.uint16) for value in (100, 200, 300, 400)])
    with rasterio.open(tmp_path / 'deep.tif', 'w', driver='GTiff', width=6, height=4, count=4,
                       dtype='uint16', transform=Affine(9, 0, 0, 0, -9, 0)) as file:
        file.write(pixels)
    loader = TRANSFORMS.build(dict(type='pera_mm.LoadRGB', bands=[4, 2, 1], scale=[100, 355]))
    image = pickle.loads(pickle.dumps(loader))(  # as a worker gets it
        dict(img_path=str(tmp_path / 'deep.tif'), skipped=[]))['img']
    assert image.shape == (4, 6, 3) and np.unique(image.reshape(-1, 3), axis=0).tolist() == [
        [255, 100, 0]]
    for options, message in ((dict(bands=[1, 2]), 'one .* or three'),
                             (dict(scale=[5, 5]), 'low < high')):
        with pytest.raises(ValueError, match=message):
            TRANSFORMS.build(dict(type='pera_mm.LoadRGB', **options))


def test_class_folders_without_a_list(folder):
    dataset = build(folder)
    assert len(dataset) == 8 and dataset.metainfo['classes'] == ('field', 'town')


def test_an_unreadable_image_is_replaced_and_named_in_training(folder):
    (folder / 'town/1.png').write_bytes(b'no picture')
    sample = build(folder, ann_file='split.txt')[0]['data_samples']
    assert sample.img_path.endswith('field/2.png') and int(sample.gt_label) == 0
    (path, reason), *others = sample.skipped
    assert path.endswith('town/1.png') and reason
    assert all(other == (path, reason) for other in others)  # drawn again by chance


def test_unreadable_images_are_an_error_in_a_test_that_counts_and_names_them(folder):
    (folder / 'town/1.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match=r'^1 of 2 test samples cannot be read: \S*town/1.png '
                                         r'\(UnidentifiedImageError: .*\); .* repair these files'):
        build(folder, ann_file='split.txt', test_mode=True)[0]
    for name in ('town/0', 'town/2', 'town/3', 'field/1', 'field/2'):
        (folder / f'{name}.png').write_bytes(b'')
    dataset = build(folder, test_mode=True)
    assert dataset[0]['data_samples'].img_path.endswith('field/0.png')
    with pytest.raises(ValueError, match=r'^6 of 8 test samples cannot be read: .*field/1.png .*'
                                         r'field/2.png .*town/0.png .* and 1 more; ') as error:
        dataset[5]
    assert str(error.value).count('.png') == 5


def test_a_transform_that_makes_no_sample_is_left_to_the_toolbox(folder):
    dataset = build(folder, ann_file='split.txt')
    dataset.pipeline = lambda sample: None
    assert dataset.prepare_data(0) is None


def test_a_sample_knows_its_worker(folder):
    dataset = build(folder, ann_file='split.txt')
    dataset.pipeline.transforms[-1].meta_keys = ('worker', )
    assert dataset[0]['data_samples'].worker == -1
    loader = DataLoader(dataset, num_workers=2, collate_fn=pseudo_collate)
    assert [batch['data_samples'][0].worker for batch in loader] == [0, 1]


def test_nothing_readable_stops_with_a_sentence(folder):
    for name in ('town/1.png', 'field/2.png'):
        (folder / name).write_bytes(b'')
    with pytest.raises(RuntimeError, match='100 samples drawn one after another'):
        build(folder, ann_file='split.txt')[0]


def test_a_missing_list_or_folder_is_a_sentence(folder):
    with pytest.raises(ValueError, match='no .*nowhere.txt: prepare the data'):
        build(folder, ann_file='nowhere.txt')
    with pytest.raises(ValueError, match='no .*/nowhere'):
        build(folder / 'nowhere')


def test_a_twin_without_its_scenes_names_the_tool_that_draws_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r'no data/scenes/.*/nowhere.txt: draw .*make_scenes\.py'):
        build(Path('data/scenes/classification'), ann_file='nowhere.txt')


# -- class folders -------------------------------------------------------------------------------


def listed(dataset) -> list[tuple[str, int]]:
    """Paths below the data's folder, and labels."""
    samples = map(dataset.get_data_info, range(len(dataset)))
    return [(os.path.relpath(sample['img_path'], dataset.img_prefix), sample['gt_label'])
            for sample in samples]


def test_hidden_folders_and_empty_ones_do_not_shift_the_labels(folder, log):
    expected = listed(build(folder))
    assert expected == [(f'{name}/{i}.png', label)
                        for label, name in enumerate(('field', 'town')) for i in range(4)]
    for name in ('.ipynb_checkpoints', '@eaDir', '__MACOSX', 'lost+found'):
        (folder / name).mkdir()
        (folder / name / '0.png').write_bytes((folder / 'town/0.png').read_bytes())
    assert listed(build(folder)) == expected and log == []
    (folder / 'airport').mkdir()
    assert listed(build(folder)) == expected
    assert log == [f'Folders without an image are not classes: airport in {folder}/.']


def test_every_readable_type_in_any_case_is_an_image(folder):
    for number, suffix in enumerate(('.PNG', '.tiff', '.TIF', '.webp', '.gif', '.bmp', '.JPeG')):
        Image.new('RGB', (4, 4)).save(folder / f'field/x{number}{suffix}')
    (folder / 'field/deep').mkdir()
    Image.new('RGB', (4, 4)).save(folder / 'field/deep/0.png')
    (folder / 'field/._0.png').touch()
    (folder / 'field/Thumbs.db').touch()
    dataset = build(folder, test_mode=True)
    assert dataset.get_gt_labels().tolist() == [0] * 12 + [1] * 4
    assert [sample['data_samples'].gt_label.item() for sample in dataset] == [0] * 12 + [1] * 4


def test_a_split_without_a_class_keeps_the_labels_of_named_classes(folder, log):
    (folder / 'val').mkdir()
    (folder / 'town').rename(folder / 'val/town')
    val = build(folder / 'val', metainfo=dict(classes=('field', 'town')))
    assert listed(val) == [(f'town/{i}.png', 1) for i in range(4)]
    assert log == [f'{folder}/val/ has no image of field.']
    assert classes_of(val) == ('field', 'town')
    assert classes_of(build(folder / 'val')) == ('town', )  # not those of training: DataCheckHook


def test_the_order_of_named_classes_gives_the_labels(folder):
    assert listed(build(folder, classes=['town', 'field']))[::4] == [
        ('field/0.png', 1), ('town/0.png', 0)]


def test_a_folder_that_is_not_a_class_is_named(folder):
    with pytest.raises(ValueError, match=r'town in \S+ are not among the classes \(field, lake\): '
                                         'name the classes .* as their folders are named'):
        build(folder, metainfo=dict(classes=('field', 'lake')))
    with pytest.raises(ValueError, match='field/ has no folder with images: give a folder that has '
                                         'one for each class, or a list in ann_file'):
        build(folder / 'field')


def test_classes_of_lists_and_of_joined_data_sets(folder):
    dataset = build(folder, ann_file='split.txt')
    assert classes_of(dataset) is None
    assert classes_of(ConcatDataset([build(folder), build(folder)])) == ('field', 'town')


# -- lists ---------------------------------------------------------------------------------------


def test_a_list_may_have_names_of_classes_in_any_encoding(folder):
    (folder / 'names.txt').write_text('town\\1.png,town\r\n\r\n"field/2.png",field', 'utf-16')
    dataset = build(folder, ann_file='names.txt', metainfo=dict(classes=('field', 'town')))
    assert listed(dataset) == [('town/1.png', 1), ('field/2.png', 0)]
    with pytest.raises(ValueError, match="names.txt: line 1 has the label 'town', which is not"):
        build(folder, ann_file='names.txt')


@pytest.mark.parametrize('broken', [False, True])
def test_a_missing_image_is_an_error_in_a_test_and_left_out_in_training(folder, log, broken):
    (folder / 'town/1.png').unlink()
    if broken:
        (folder / 'town/1.png').symlink_to('nowhere')
    for options, where, total in ((dict(ann_file='split.txt'), f'{folder}/split.txt', 2),
                                  *([(dict(), f'{folder}/', 8)] if broken else [])):
        fault = f'1 of {total} images of {where} are missing: {folder}/town/1.png; '
        with pytest.raises(ValueError) as error:
            build(folder, test_mode=True, **options)
        assert str(error.value) == (
            f'{fault}a score would not be comparable: repair these files, or set data_root to the '
            'folder that holds them.')
        log.clear()
        assert len(build(folder, **options)) == total - 1
        assert log == [f'{fault}the others are used.']


def test_a_list_of_missing_images_is_an_error_in_training_too(folder):
    (folder / 'town').rename(folder / 'city')
    (folder / 'list.txt').write_text('town/0.png 0\ntown/1.png 0\n')
    with pytest.raises(ValueError, match='^2 of 2 images of .*list.txt are missing: .*; no image '
                                         'is left: repair these files, or set data_root'):
        build(folder, ann_file='list.txt')
    (folder / 'list.txt').write_bytes(b'gr\xfcn/0.png 0\n')
    with pytest.raises(ValueError, match=r'gr\\xfcn/0.png; .*not UTF-8, so save it as UTF-8, or'):
        build(folder, ann_file='list.txt')


def test_an_image_listed_twice_is_an_error_in_a_test_and_said_in_training(folder, log):
    (folder / 'list.txt').write_text('town/0.png 1\ntown/0.png 1\nfield/0.png 0\n')
    said = f'1 of 2 samples are listed more than once: {folder}/town/0.png; '
    with pytest.raises(ValueError, match=f'^{said}a score would not be .*: list each once'):
        build(folder, ann_file='list.txt', test_mode=True)
    assert len(build(folder, ann_file='list.txt')) == 3
    assert log == [f'{said}they are seen as often.']


def test_names_that_are_not_utf_8_are_read(folder):
    odd = os.fsencode(folder / 'town') + b'/\xe9.png'
    os.rename(folder / 'town/0.png', odd)
    (folder / 'list.txt').write_bytes(b'town/\xe9.png 1\n')
    for dataset in (build(folder, ann_file='list.txt'), build(folder)):
        assert odd in [os.fsencode(sample['data_samples'].img_path) for sample in dataset]


# -- names of classes ----------------------------------------------------------------------------


@pytest.mark.parametrize(('classes', 'fault'), [
    ('road', r"classes='road' is one text, not a list of names: name the classes .*, and a single "
             r"one with a comma, \('road', \)"),
    ((), r'classes=\(\) is empty'), ([], r'classes=\[\] is empty'), ('', "='' is one text"),
    (('a', 'b', 'a'), "holds 'a' twice"), (('a', 3), 'holds 3, which is not a name'),
    (('a', ' '), "holds ' ', which is not a name"), (('a', None), 'holds None, which'),
    (dict(a=0), 'is a dict, not a list of names'), (ConfigDict(a=0), 'is a ConfigDict, not'),
    ({'a'}, 'is a set, not a list'), (2, 'classes=2 is a int, not a list')])
def test_what_is_not_a_list_of_classes_is_named(folder, classes, fault):
    with pytest.raises(ValueError, match=fault):
        with_classes(dict(classes=classes))
    for options in (dict(metainfo=dict(classes=classes)), dict(classes=classes)):
        with pytest.raises(ValueError, match=fault):
            build(folder, **options)


def test_classes_may_be_needed_or_not():
    for metainfo in (None, {}, dict(classes=None)):
        assert with_classes(metainfo, needed=False) == {}
        with pytest.raises(ValueError, match='the data set has no classes: name the classes'):
            with_classes(metainfo)
    with pytest.raises(ValueError, match="metainfo='a,b' is not a dict: name the classes"):
        with_classes('a,b')


def test_classes_of_a_config_and_of_a_text_file(tmp_path):
    cfg = Config(dict(metainfo=dict(classes=['a', 'b'], palette=[[1, 2, 3], [4, 5, 6]])))
    assert with_classes(cfg.metainfo) == dict(
        classes=('a', 'b'), palette=[[1, 2, 3], [4, 5, 6]])
    (tmp_path / 'names.txt').write_text('old field \n\ntown\r\n', 'utf-8-sig')
    assert with_classes(dict(classes=str(tmp_path / 'names.txt'))) == dict(
        classes=('old field', 'town'))
