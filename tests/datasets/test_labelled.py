"""Class folders and split lists; files that cannot be read."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from mmengine.dataset import pseudo_collate
from PIL import Image
from rasterio.transform import Affine
from torch.utils.data import DataLoader

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
