"""Two dates and a mask: found, read, moved alike, and through one backbone."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from programs import run

import pera_mm  # noqa: F401  before mmseg: it supplies the operators of mmcv
from pera_mm.downstream.change import (
    ChangePairs,
    LoadPair,
    SiameseEncoderDecoder,
    SwapDates,
)
from pera_mm.downstream.sample_check import check_sizes, read_heads
from pera_mm.registry import MODELS
from pera_mm.scenes.folders import write_scenes

ROOT = Path(__file__).parents[2]
PREFIX = dict(img_path='A', img_path2='B', seg_map_path='label')


@pytest.fixture(autouse=True)
def mmseg_scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Six pairs of 48 x 40 px; the first date is red, the second green where the mask is set."""
    rng = np.random.default_rng(0)
    for folder in PREFIX.values():
        (tmp_path / folder).mkdir()
    for index in range(6):
        mask = np.zeros((40, 48), np.uint8)
        y, x = rng.integers(4, 20, 2)
        mask[y:y + 13, x:x + 17] = 255
        for folder, channel in (('A', 2), ('B', 1), ('label', None)):
            image = mask if channel is None else np.zeros((40, 48, 3), np.uint8)
            if channel is not None:
                image[..., channel] = mask
            assert cv2.imwrite(str(tmp_path / folder / f'{index}.png'), image)
    return tmp_path


def dataset(root: Path, **options) -> ChangePairs:
    return ChangePairs(data_root=str(root), data_prefix=PREFIX, **options)


def names(pairs: ChangePairs) -> list[str]:
    """The names of the first dates."""
    return [Path(pairs.get_data_info(i)['img_path']).name for i in range(len(pairs))]


def load(root: Path, index: int = 0) -> dict | None:
    sample = dataset(root).get_data_info(index)
    return LoadPair().transform(sample | dict(skipped=[]))


def test_bands_and_scale_of_a_config_are_those_of_both_dates(tmp_path):
    for folder, value in (('A', 100), ('B', 200), ('label', None)):
        (tmp_path / folder).mkdir()
        pixels = np.zeros((1, 4, 4), np.uint8) if value is None else np.stack(
            [np.full((4, 4), value + band, np.uint16) for band in range(4)])
        with rasterio.open(tmp_path / folder / 'x.tif', 'w', driver='GTiff', width=4, height=4,
                           count=len(pixels), dtype=pixels.dtype) as file:
            file.write(pixels)
    sample = ChangePairs(data_root=str(tmp_path), data_prefix=PREFIX, img_suffix='.tif',
                         seg_map_suffix='.tif').get_data_info(0)
    image = LoadPair(bands=[4, 1, 2], scale=[0, 255]).transform(sample | dict(skipped=[]))['img']
    assert image[0, 0].tolist() == [103, 100, 101, 203, 200, 201]


def tiny_model(config: str, size: int = 64) -> Config:
    """The model of a config with the smallest ViT."""
    model = Config.fromfile(ROOT / 'configs' / config).model
    arch = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)
    model.backbone.vit.update(arch=arch, img_size=size, init_cfg=None)
    model.neck.in_channels = 32
    model.test_cfg.update(crop_size=(size, size), stride=(size, size))
    return model


# -- finding -------------------------------------------------------------------------------------


def test_a_pair_is_three_files_of_one_name(pairs):
    found = dataset(pairs)
    assert names(found) == [f'{i}.png' for i in range(6)]
    sample = found.get_data_info(3)
    assert {key: sample[key] for key in PREFIX} == {
        key: str(pairs / folder / '3.png') for key, folder in PREFIX.items()}
    assert found.metainfo['classes'] == ('unchanged', 'changed')
    assert found.metainfo['palette'][0] == [225, 225, 225]  # gray in a map


def test_a_list_of_names_chooses_pairs(pairs):
    (pairs / 'some.txt').write_text('4\n1\n')
    assert names(dataset(pairs, ann_file='some.txt')) == ['1.png', '4.png']
    (pairs / 'other.txt').write_text('A/4.png\r\n\r\n"1.png" \r\n', 'utf-16')
    assert names(dataset(pairs, ann_file='other.txt', test_mode=True)) == ['1.png', '4.png']


@pytest.mark.parametrize('folder, what', [
    ('A', 'first date'), ('B', 'second date'), ('label', 'mask')])
def test_missing_files_are_an_error_in_a_test_and_counted_and_named_in_training(
        pairs, log, folder, what):
    for index in (1, 2, 3, 5):
        (pairs / folder / f'{index}.png').unlink()
    fault = f'4 of 6 samples have no {what} in {pairs}/{folder}: 1, 2, 3, 5; '
    with pytest.raises(ValueError) as error:
        dataset(pairs, test_mode=True)
    assert str(error.value) == (
        f'{fault}a score would not be comparable: repair these files or their names, which are the '
        'same for all files of a sample.')
    assert names(dataset(pairs)) == ['0.png', '4.png']
    assert log == [f'{fault}the others are used.']
    for index in (0, 4):
        (pairs / folder / f'{index}.png').unlink()
    said = 'No images in .*/A: prepare' if folder == 'A' else (
        f'6 of 6 samples have no {what} .*; no sample is left: ')
    with pytest.raises(ValueError, match=said):
        dataset(pairs)


def test_files_of_a_pair_may_have_any_readable_type(pairs):
    for folder, index, suffix in (('A', 1, '.PNG'), ('B', 1, '.tif'), ('label', 2, '.bmp'),
                                  ('A', 3, '.webp'), ('label', 4, '.TIFF')):
        (pairs / folder / f'{index}.png').rename(pairs / folder / f'{index}{suffix}')
    found = dataset(pairs, test_mode=True)
    assert names(found) == ['0.png', '1.PNG', '2.png', '3.webp', '4.png', '5.png']
    assert Path(found.get_data_info(1)['img_path2']).name == '1.tif'
    assert Path(found.get_data_info(2)['seg_map_path']).name == '2.bmp'


def test_pairs_are_sorted_by_their_names(pairs):
    for folder in PREFIX.values():
        for index, name in enumerate(('x', 'x-1', 'x_2', 'x10', 'x2')):
            (pairs / folder / f'{index}.png').rename(pairs / folder / f'{name}.png')
    assert names(dataset(pairs)) == [
        f'{name}.png' for name in ('5', 'x', 'x-1', 'x10', 'x2', 'x_2')]


def test_a_missing_folder_and_an_empty_one_are_named(pairs):
    with pytest.raises(ValueError, match='There is no folder .*/nowhere/A: prepare'):
        dataset(pairs / 'nowhere')
    with pytest.raises(ValueError, match=r'No images \*\.tif in .*/A'):
        dataset(pairs, img_suffix='.tif', seg_map_suffix='.tif')


@pytest.mark.parametrize(('options', 'message'), [
    (dict(threshold=0), 'ChangePairs has no threshold and no reduce_zero_label: its masks hold 0'),
    (dict(reduce_zero_label=True), 'no reduce_zero_label'),
    (dict(metainfo=dict(classes='road')), "classes='road' is one text, not a list of names"),
    (dict(ann_file='nowhere.txt'), r'There is no \S+/nowhere.txt: prepare'),
])
def test_wrong_pairs_are_refused_when_built(pairs, options, message):
    with pytest.raises(ValueError, match=message):
        dataset(pairs, **options)
    with pytest.raises(ValueError, match='data_prefix of ChangePairs lacks img_path2: name three'):
        ChangePairs(data_prefix=dict(img_path='A', seg_map_path='label'), data_root=str(pairs))


def test_without_classes_there_are_two(pairs):
    for metainfo in (None, {}, dict(classes=None)):
        found = dataset(pairs, metainfo=metainfo)
        assert not found.has_kinds and found.metainfo['classes'] == ('unchanged', 'changed')


def test_a_twin_without_its_scenes_names_the_tool_that_draws_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='data/scenes/change/A: draw the .*make_scenes.py'):
        dataset(Path('data/scenes/change'))


# -- reading -------------------------------------------------------------------------------------


def test_a_pair_is_six_channels_rgb_first_date_first(pairs):
    sample = load(pairs)
    mask = cv2.imread(str(pairs / 'label' / '0.png'), 0)
    expected = np.zeros((40, 48, 6), np.uint8)
    expected[..., 0] = expected[..., 4] = mask
    np.testing.assert_array_equal(sample['img'], expected)
    np.testing.assert_array_equal(sample['gt_seg_map'], mask == 255)
    assert sample['gt_seg_map'].dtype == np.uint8
    assert sample['img_shape'] == sample['ori_shape'] == (40, 48)


@pytest.mark.parametrize('values, named', [
    ([0, 1], '1'), ([0, 1, 255], '1'), ([0, 254, 128, 255], '128, 254')])
def test_a_mask_of_other_values_is_refused(pairs, values, named):
    path = pairs / 'label' / '0.png'
    cv2.imwrite(str(path), np.resize(np.array(values, np.uint8), (40, 48)))
    with pytest.raises(ValueError) as error:
        load(pairs)
    assert str(error.value) == (
        f'the mask {path} has pixels of value {named}; only 0 (unchanged) and 255 (changed) are '
        'allowed: convert the masks.')


@pytest.mark.parametrize('value', [0, 255])
def test_a_mask_of_one_value_is_fine(pairs, value):
    cv2.imwrite(str(pairs / 'label' / '0.png'), np.full((40, 48), value, np.uint8))
    assert (load(pairs)['gt_seg_map'] == value // 255).all()


def test_kinds_of_change_are_class_ids(pairs):
    mask = np.resize(np.array([0, 1, 2, 255], np.uint8), (40, 48))
    cv2.imwrite(str(pairs / 'label' / '0.png'), mask)
    kinds = dataset(pairs, metainfo=dict(classes=('unchanged', 'a to b', 'b to a')))
    sample = LoadPair().transform(kinds.get_data_info(0) | dict(skipped=[]))
    np.testing.assert_array_equal(sample['gt_seg_map'], mask)
    assert sample['img'].shape == (40, 48, 6) and sample['seg_fields'] == ['gt_seg_map']
    two = dataset(pairs, metainfo=dict(classes=('unchanged', 'a to b')))
    with pytest.raises(ValueError, match='label/0.png has the label 2; allowed are the classes 0 '
                       'to 1, and 255'):
        LoadPair().transform(two.get_data_info(0) | dict(skipped=[]))


@pytest.mark.parametrize('folder', ['A', 'B', 'label'])
def test_files_of_different_sizes_are_refused_here_and_before_training(pairs, folder):
    path = pairs / folder / '0.png'
    cv2.imwrite(str(path), np.zeros((40, 47), np.uint8))
    with pytest.raises(ValueError, match=f'one size: .*{path} is 47 x 40.*pixels'):
        load(pairs)
    with pytest.raises(ValueError, match=f'one size: .*{path} is 47 x 40.*pixels'):
        check_sizes(read_heads(dataset(pairs).get_data_info(0))[0], None)


@pytest.mark.parametrize('folder', ['A', 'B', 'label'])
def test_an_unreadable_pair_is_replaced_in_training_and_an_error_in_a_test(pairs, folder):
    path = pairs / folder / '0.png'
    path.write_bytes(path.read_bytes()[:60])
    keys = ('img_path', 'skipped')
    pipeline = [dict(type='pera_mm.LoadPair'), dict(type='PackSegInputs', meta_keys=keys)]
    sample = dataset(pairs, pipeline=pipeline)[0]['data_samples']
    assert sample.img_path != str(pairs / 'A' / '0.png')
    assert {name for name, _ in sample.skipped} == {str(path)}
    with pytest.raises(ValueError, match=f'1 of 6 test samples cannot be read: {path} '):
        dataset(pairs, pipeline=pipeline, test_mode=True)[0]


# -- moving --------------------------------------------------------------------------------------


def test_both_dates_and_the_mask_move_alike_and_keep_their_colors(pairs):
    cfg = Config.fromfile(ROOT / 'configs/levircd_bit_pera.py')
    steps = cfg.train_pipeline
    steps[1].scale = 32
    steps[4].prob = 0
    data, corners = dataset(pairs, pipeline=steps), set()
    for index in list(range(6)) * 8:
        sample = data[index]
        pixels, mask = sample['inputs'].numpy(), sample['data_samples'].gt_sem_seg.data[0].numpy()
        assert pixels.shape == (6, 32, 32) and mask.shape == (32, 32)
        np.testing.assert_array_equal(pixels[0], pixels[4])  # red before, green after
        assert not pixels[[1, 2, 3, 5]].any()
        # The mask has hard edges, the images soft ones; what lies beyond the crop is unknown.
        kernel, known = np.ones((7, 7), np.uint8), (slice(4, -4), slice(4, -4))
        inside = cv2.erode(mask.astype(np.uint8), kernel)[known] > 0
        outside = cv2.dilate(mask.astype(np.uint8), kernel)[known] == 0
        red = pixels[0][known]
        assert (red[inside] == 255).all() and not red[outside].any()
        corners.add(tuple(np.argwhere(mask)[0]) if mask.any() else None)
    assert len(corners) > 20  # and it did move


def test_swapped_dates_keep_their_mask_and_their_share(pairs):
    sample = load(pairs)
    before, mask = sample['img'].copy(), sample['gt_seg_map'].copy()
    np.random.seed(0)
    swapped = 0
    for _ in range(2000):
        after = SwapDates(prob=.1).transform(dict(sample))['img']
        if (after != before).any():
            swapped += 1
            np.testing.assert_array_equal(after[..., :3], before[..., 3:])
            np.testing.assert_array_equal(after[..., 3:], before[..., :3])
    assert swapped == pytest.approx(200, abs=45)  # three standard deviations
    np.testing.assert_array_equal(sample['gt_seg_map'], mask)
    with pytest.raises(ValueError, match=r'prob is a probability in \[0, 1\], got 10'):
        SwapDates(prob=10)


def test_kinds_of_change_keep_the_order_of_their_dates(pairs):
    sample = load(pairs) | dict(num_classes=3)
    before = sample['img'].copy()
    np.testing.assert_array_equal(SwapDates(prob=1).transform(sample)['img'], before)


# -- computing -----------------------------------------------------------------------------------


def test_the_backbone_sees_each_date_alone_and_the_neck_joins_them_in_order():
    model = MODELS.build(tiny_model('levircd_bit_pera.py')).eval()
    pair = torch.randn(2, 6, 64, 64)
    maps = [model.backbone(date) for date in (pair[:, :3], pair[:, 3:])]
    joined, = model.extract_feat(pair)
    assert joined.shape == (2, 512, 16, 16)
    for half, date in zip(joined.chunk(2, dim=1), maps):
        torch.testing.assert_close(half, model.neck(date, date)[0][:, :256])
    assert model(pair).shape == (2, 2, 64, 64)


def test_sizes_that_no_stride_divides_come_out_whole():
    model = MODELS.build(tiny_model('levircd_bit_pera.py')).eval()
    model.test_cfg = Config(dict(mode='whole'))
    result, = model.predict(torch.randn(1, 6, 67, 83))
    assert result.pred_sem_seg.data.shape == (1, 67, 83)


def test_windows_that_do_not_overlap_are_tiles():
    model = MODELS.build(tiny_model('levircd_bit_pera.py')).eval()
    pair = torch.randn(1, 6, 128, 64)
    whole, = model.predict(pair)
    tiles = [model.predict(tile)[0].seg_logits.data for tile in pair.split(64, dim=2)]
    torch.testing.assert_close(whole.seg_logits.data, torch.cat(tiles, dim=1))


def test_without_a_neck_it_says_what_is_missing():
    model = tiny_model('levircd_bit_pera.py')
    del model['neck']
    with pytest.raises(ValueError, match='needs a neck that joins'):
        SiameseEncoderDecoder(**{key: value for key, value in model.items() if key != 'type'})


def test_every_parameter_of_the_whole_model_gets_a_gradient():
    model = MODELS.build(tiny_model('levircd_bit_pera.py')).train()
    for name, parameter in model.named_parameters():
        if name.endswith('gamma'):  # injectors begin at zero
            torch.nn.init.ones_(parameter)
    model(torch.randn(4, 6, 64, 64)).square().mean().backward()
    without = [name for name, parameter in model.named_parameters()
               if parameter.requires_grad and parameter.grad is None]
    assert without == []


def test_settings_of_the_paper():
    cfg = Config.fromfile(ROOT / 'configs/levircd_bit_pera.py')
    assert (cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size) == (500, 8)
    assert (cfg.optim_wrapper.optimizer.lr, cfg.param_scheduler[-1].eta_min) == (1e-4, 1e-6)
    assert cfg.model.backbone.vit.drop_path_rate == 0.2
    assert cfg.train_pipeline[1].scale == 512
    assert not [step.type for step in cfg.train_pipeline if 'Distortion' in step.type]


@pytest.mark.parametrize('config, width', [
    ('levircd_bit_pera.py', 1024), ('change_detection/levircd_bit_pera_vitb.py', 768),
    ('scenes/levircd_bit_pera_scenes.py', 128)])
def test_each_config_builds(config, width):
    cfg = Config.fromfile(ROOT / 'configs' / config)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert model.backbone.embed_dims == model.neck.laterals[0].in_channels == width


def test_a_crop_of_another_size_is_not_filled_up():
    from mmseg.structures import SegDataSample

    cfg = Config.fromfile(ROOT / 'configs/levircd_bit_pera.py')
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.ones(1, 32, 64, dtype=torch.long)))
    batch = dict(inputs=[torch.zeros(6, 32, 64, dtype=torch.uint8)], data_samples=[sample])
    data = MODELS.build(cfg.model.data_preprocessor)(batch, training=True)
    assert data['inputs'].shape == (1, 6, 32, 64)


# -- real data and real runs ---------------------------------------------------------------------


def test_the_real_samples_load(shared_data):
    steps = Config.fromfile(ROOT / 'configs/levircd_bit_pera.py').test_pipeline
    data = dataset(shared_data / 'levircd', pipeline=steps, test_mode=True)
    assert len(data) == 8
    masks = []
    for sample in data:
        assert sample['inputs'].shape == (6, 256, 256)
        assert sample['inputs'][:3].ne(sample['inputs'][3:]).any()
        masks.append(sample['data_samples'].gt_sem_seg.data)
        check_sizes(read_heads(data.get_data_info(len(masks) - 1))[0], (256, 256))
    assert torch.stack(masks).unique().tolist() == [0, 1]


def scenes_options(tmp_path: Path) -> list[str]:
    """What makes a scenes config run in seconds: few scenes, a random ViT, two epochs."""
    write_scenes(tmp_path / 'scenes', 'change', 20, size=64)
    return [
        *[f'{part}_dataloader.dataset.data_root={tmp_path / "scenes"}'
          for part in ('train', 'val', 'test')],
        'train_dataloader.batch_size=4', 'model.backbone.vit.init_cfg=None',
        'train_cfg.max_epochs=2', 'train_cfg.val_interval=1',
        'default_hooks.checkpoint.interval=1', 'default_hooks.logger.interval=1']


def epochs(said: str) -> set[int]:
    """The epochs that a log tells of."""
    return {int(number) for number in re.findall(r'Epoch\(train\) +\[(\d+)\]', said)}


@pytest.mark.slow
def test_it_trains_validates_resumes_and_tests_through_mim(tmp_path):
    config, options = 'configs/scenes/levircd_bit_pera_scenes.py', scenes_options(tmp_path)
    work_dir = tmp_path / 'run'
    train = ['-m', 'mim', 'train', 'mmseg', config, '--work-dir', work_dir, '--cfg-options']
    options.append('train_cfg.max_epochs=3')
    said = run(*train, *options).output
    assert 'change/F1' in said and (work_dir / 'epoch_2.pth').exists()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    said = run(*train, *options, '--resume').output
    assert epochs(said) == {3}
    said = run('tools/test.py', config, work_dir / 'epoch_3.pth', '--work-dir', tmp_path / 'test',
               '--cfg-options', *options).output
    assert 'change/F1' in said


@pytest.mark.slow
def test_a_pair_of_different_sizes_ends_in_one_sentence_before_training(tmp_path):
    options = scenes_options(tmp_path)
    path = sorted((tmp_path / 'scenes/train/B').iterdir())[-1]
    cv2.imwrite(str(path), np.zeros((64, 60, 3), np.uint8))
    done = run('tools/train.py', 'configs/scenes/levircd_bit_pera_scenes.py', '--work-dir',
               tmp_path / 'run', '--cfg-options', *options, code=1)
    assert 'Epoch(train)' not in done.stdout
    assert f'{path} is 60 x 64' in done.stderr and 'Traceback' not in done.stderr
