"""The probe of the comparison: its features, its scores and its choice of a token."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from pera_mm.evaluation.block_split import block_split
from pera_mm.evaluation.features import read_labelled_folder
from pera_mm.evaluation.knn import knn_accuracy
from pera_mm.models.backbones.pera_vit import PerAViT

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools/benchmarks'))
import probe  # noqa: E402

SMALL = Path(__file__).parents[2] / 'configs/small'


@pytest.mark.parametrize('config', [f'{method}{start}' for start in ('', '_short')
                                    for method in ('pera', 'dino', 'dinov2', 'mae', 'mocov3')])
def test_the_probes_vit_is_that_of_the_config(config):
    cfg = Config.fromfile(SMALL / f'{config}.py')
    vit = probe.vit_config(cfg, Path('x.pth'))
    arch = cfg.model.backbone.arch
    assert vit['arch'] == (PerAViT.arch_zoo[arch] if isinstance(arch, str) else arch)
    assert vit['img_size'] == cfg.model.backbone.img_size
    assert vit['init_cfg']['checkpoint'] == 'x.pth'
    assert probe.vit_config(cfg, None)['init_cfg'] is None


def test_the_random_vit_starts_as_that_of_the_config():
    vit = probe.vit_config(Config.fromfile(SMALL / 'pera_short.py'), None)
    assert vit['sine_positions'] == .25
    assert vit['mimetic'] == dict(query_key=1., value_output=.2)


def test_an_arch_by_name_is_that_of_its_own_vit():
    cfg = Config.fromfile(SMALL.parent / 'baselines/mocov3_vitb_tov-100k.py')
    assert probe.vit_config(cfg, None)['arch'] == dict(
        embed_dims=768, num_layers=12, num_heads=12, feedforward_channels=3072)


def test_cls_and_the_mean_patch_token_are_those_of_the_dense_vit():
    init_default_scope('mmpretrain')
    vit = probe.vit_config(Config.fromfile(SMALL / 'pera.py'), None) | dict(
        arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64), img_size=64)
    images = torch.randn(9, 3, 64, 64)
    torch.manual_seed(3)
    features = probe.vit_features(vit, images)
    torch.manual_seed(3)
    backbone = probe.MODELS.build(dict(vit, out_type='featmap'))
    backbone.init_weights()
    backbone.eval()
    assert torch.allclose(features['patch'], backbone(images)[-1].mean(dim=(2, 3)), atol=1e-5)
    backbone.out_type = 'cls_token'
    assert torch.allclose(features['cls'], backbone(images)[-1], atol=1e-5)


def test_validation_and_not_the_test_chooses_the_token():
    labels = torch.arange(2).repeat_interleave(80)
    split = block_split(labels)
    rng = torch.Generator().manual_seed(0)
    good = torch.nn.functional.one_hot(labels, 2).float()
    noise = torch.randn(160, 2, generator=rng)
    checked = split.train[block_split(labels[split.train], every=4).test]
    early, late = good.clone(), good.clone()
    early[split.test] = noise[split.test]  # fails in the test
    late[checked] = noise[checked]  # fails in the validation, and is best in the test
    found, validation = probe.frozen_outcomes(dict(cls=late, patch=early), labels, split, seed=1)
    assert validation == dict(knn_validation=100.)
    assert np.array_equal(found['knn'], found['knn_patch'])
    assert np.array_equal(found['linear'], found['linear_patch'])
    assert found['knn'].mean() < 0.75 < found['knn_cls'].mean()
    assert set(found) == {'knn', 'knn_cls', 'knn_patch', 'linear', 'linear_cls', 'linear_patch',
                          'labels1', 'labels5', 'labels10', 'labels25'}
    assert all(right.shape == (80, ) for right in found.values())
    alone, _ = probe.frozen_outcomes(dict(bands=good), labels, split, seed=1)
    assert 'knn_bands' not in alone and alone['labels1'].mean() == 1


def test_few_labels_are_a_share_of_each_class_of_the_training_half():
    labels = torch.tensor([0] * 80 + [1] * 20)
    train = torch.arange(0, 100, 2)  # 40 and 10
    drawn = probe.some_labels(labels, train, 25, seed=1)
    assert labels[drawn].bincount().tolist() == [10, 2] and len(set(drawn.tolist())) == 12
    assert set(drawn.tolist()) <= set(train.tolist())
    assert labels[probe.some_labels(labels, train, 1, seed=1)].tolist() == [0, 1]
    assert not torch.equal(drawn, probe.some_labels(labels, train, 25, seed=2))


def test_floors_are_standardized_by_the_training_half():
    images = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    train = torch.arange(6)
    for kind, width in (('bands', 6), ('convolutions', 512)):
        features = probe.floor_features(kind, images, train, seed=1)[kind]
        assert features.shape == (12, width)
        assert torch.allclose(features[train].mean(dim=0), torch.zeros(width), atol=1e-4)
        assert not torch.allclose(features.mean(dim=0), torch.zeros(width), atol=1e-2)


def test_an_unreadable_image_is_named(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        (tmp_path / f'{name}/1.png').write_bytes(b'no image')
    cfg = Config.fromfile(SMALL / 'pera.py')
    with pytest.raises(ValueError, match=r'a/1.png cannot be read'):
        probe.read_images(read_labelled_folder(str(tmp_path)), cfg, 32)


@pytest.mark.slow
def test_the_band_statistics_of_rsscn7_have_the_accuracy_of_the_docs(shared_data):
    folder = read_labelled_folder(str(shared_data / 'rsscn7'))
    images = probe.read_images(folder, Config.fromfile(SMALL / 'pera.py'), 112)
    split = block_split(folder.labels)
    features = probe.floor_features('bands', images, split.train, 0)['bands']
    assert knn_accuracy(features[split.train], folder.labels[split.train], features[split.test],
                        folder.labels[split.test]) == pytest.approx(51.6, abs=0.1)
