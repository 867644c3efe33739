"""Class folders and split lists; files that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pera_mm.registry import DATASETS

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


def test_an_unreadable_image_is_an_error_in_a_test(folder):
    (folder / 'town/1.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match=r'town/1.png cannot be read .* repair it'):
        build(folder, ann_file='split.txt', test_mode=True)[0]


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
