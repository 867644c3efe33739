"""A config and a checkpoint become a function on windows, with what the config says of pixels."""

import copy

import numpy as np
import pytest
import torch
from map_models import CHANGE, SEGMENTATION, SIDE, save
from mmengine.config import Config

from pera_mm.errors import UserError
from pera_mm.mapping.predictor import Predictor

pytest.importorskip('mmseg')

SCENE_CLASSES = ['impervious', 'building', 'low vegetation', 'tree', 'vehicle', 'water', 'bare']

META = dict(change=dict(classes=('unchanged', 'changed')))


@pytest.fixture(scope='module')
def models(tmp_path_factory) -> dict[str, tuple[Config, str]]:
    folder = tmp_path_factory.mktemp('models')
    found = {}
    for name, config in (('segmentation', SEGMENTATION), ('change', CHANGE)):
        path, checkpoint = save(folder, config, name, **META.get(name, {}))
        found[name] = Config.fromfile(path), checkpoint
    return found


def windows(channels: int, number: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, channels, SIDE, SIDE), dtype=np.uint8)


def test_a_segmentor_gives_the_logits_of_its_own_test(models):
    cfg, checkpoint = models['segmentation']
    predictor = Predictor(cfg, checkpoint)
    pixels = windows(3)
    logits = predictor(pixels)
    assert logits.shape == (2, 7, SIDE, SIDE) and logits.dtype == np.float32
    data = dict(inputs=[torch.from_numpy(image) for image in pixels])
    expected = predictor.model.test_step(data)
    for found, sample in zip(logits, expected):
        np.testing.assert_allclose(found, sample.seg_logits.data.detach(), rtol=1e-4, atol=1e-4)


def test_what_the_config_says(models):
    predictor = Predictor(*models['segmentation'])
    assert (predictor.window, predictor.dates) == (SIDE, 1)
    reading = predictor.reading
    assert (reading.bands, reading.channels, reading.scale, reading.is_bgr) == (
        None, 3, 'auto', False)  # no bands are named: by the tags of the scene
    assert predictor.classes == SCENE_CLASSES and len(predictor.palette) == 7
    assert len({tuple(color) for color in predictor.palette}) == 7


def test_without_a_window_of_the_test_it_is_the_crop_of_the_training(models):
    cfg, checkpoint = models['segmentation']
    cfg = copy.deepcopy(cfg)
    cfg.model.test_cfg = dict(mode='whole')
    cfg.train_dataloader.dataset.pipeline[2].scale = 48
    assert Predictor(cfg, checkpoint).window == 48


def test_bands_and_scale_are_those_of_the_configs_loader(models):
    cfg, checkpoint = models['segmentation']
    cfg = copy.deepcopy(cfg)
    cfg.test_dataloader.dataset.pipeline[0].update(bands=[4, 3, 2], scale=[0, 3000])
    reading = Predictor(cfg, checkpoint).reading
    assert (reading.bands, reading.scale) == ((4, 3, 2), (0, 3000))
    cfg.test_dataloader.dataset.pipeline[0].bands = [0, 1, 2]
    with pytest.raises(ValueError, match='1-based'):
        Predictor(cfg, checkpoint)


def test_change_takes_two_dates(models):
    predictor = Predictor(*models['change'])
    assert (predictor.window, predictor.dates) == (SIDE, 2)
    assert (predictor.reading.channels, predictor.reading.bands) == (3, None)
    assert predictor.classes == ['unchanged', 'changed']
    assert predictor(windows(6)).shape == (2, 2, SIDE, SIDE)


def test_the_checkpoint_names_the_classes_first(tmp_path, models):
    cfg, path = models['change']
    checkpoint = torch.load(path) | dict(meta=dict(dataset_meta=dict(
        classes=('same', 'new'), palette=[[1, 2, 3], [4, 5, 6]])))
    torch.save(checkpoint, tmp_path / 'a.pth')
    predictor = Predictor(cfg, tmp_path / 'a.pth')
    assert predictor.classes == ['same', 'new'] and predictor.palette == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize('tta, orientations', [
    ('flips', [(0, False), (0, True), (2, False), (2, True)]),
    ('rotations', [(turns, mirror) for turns in range(4) for mirror in (False, True)])])
def test_tta_is_the_mean_over_orientations(models, tta, orientations):
    pixels = windows(3, 1)
    plain = Predictor(*models['segmentation'])
    expected = []
    for turns, mirror in orientations:
        turned = np.rot90(pixels, turns, (2, 3))
        logits = plain(turned[..., ::-1] if mirror else turned)
        logits = logits[..., ::-1] if mirror else logits
        expected.append(np.rot90(logits, -turns, (2, 3)))
    found = Predictor(*models['segmentation'], tta=tta)(pixels)
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-4, atol=1e-4)
    assert np.abs(found - plain(pixels)).max() > .01


def test_a_loader_of_bgr_gets_bgr(models):
    cfg, checkpoint = models['segmentation']
    cfg = copy.deepcopy(cfg)
    cfg.test_dataloader.dataset.pipeline[0] = dict(type='LoadImageFromFile')
    assert Predictor(cfg, checkpoint).reading.is_bgr


def test_one_logit_becomes_two_classes(tmp_path):
    config = SEGMENTATION.replace('output_channels=8)', 'output_channels=8, num_classes=2, '
                                  'out_channels=1, threshold=.2)')
    path, checkpoint = save(tmp_path, config)
    predictor = Predictor(Config.fromfile(path), checkpoint)
    pixels = windows(3)
    logits = predictor(pixels)
    samples = predictor.model.test_step(dict(inputs=[torch.from_numpy(one) for one in pixels]))
    assert logits.shape[1] == predictor.number_of_classes == 2
    for found, sample in zip(logits, samples):
        np.testing.assert_array_equal(found.argmax(0), sample.pred_sem_seg.data[0])


def test_a_foreign_checkpoint_is_refused(tmp_path, models):
    cfg = models['segmentation'][0]
    with pytest.raises(UserError, match=r'change.pth does not fit the model of \S*segmentation.py: '
                                        r'.*missing .*take the config that it was trained with'):
        Predictor(cfg, models['change'][1])
    checkpoint = torch.load(models['segmentation'][1])
    checkpoint['state_dict']['decode_head.conv_seg.bias'][0] = float('nan')
    torch.save(checkpoint, tmp_path / 'nan.pth')
    with pytest.raises(UserError, match='holds inf or nan in 1 of its tensors'):
        Predictor(cfg, tmp_path / 'nan.pth')


def test_a_config_without_maps_and_an_unknown_tta_are_refused(models):
    cfg, checkpoint = models['segmentation']
    classifier = Config(dict(default_scope='mmpretrain', model=dict(
        type='ImageClassifier', backbone=dict(type='VisionTransformer', arch='deit-tiny'))))
    with pytest.raises(UserError, match='has a ImageClassifier, which makes no map'):
        Predictor(classifier, checkpoint)
    with pytest.raises(UserError, match="tta must be one of none, flips, rotations, not 'all'"):
        Predictor(cfg, checkpoint, tta='all')
