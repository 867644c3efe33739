"""The painter and the pair of a pre-training file: the model that was trained, bit by bit."""

import pytest
import torch

from pera_mm.evaluation.painting import reconstruct
from pera_mm.registry import MODELS
from pera_mm.weights.names import pera_to_reference
from pera_mm.weights.pretraining import MaskRatios, load_painter, load_pair, mask_ratios

CONFIG = """
custom_hooks = [dict(type='NotInstalled')]
model = dict(
    backbone=dict(arch=dict(embed_dims=32, feedforward_channels=64, num_heads=2, num_layers=4),
                  img_size=64, type='pera_mm.PerAViT'),
    data_preprocessor=dict(mean=[100, 110, 120], std=[50, 60, 70],
                           type='pera_mm.CropPreprocessor'),
    type='pera_mm.PerA')
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='pera_mm.AlignedCrops'),
    dict(type='pera_mm.DisjointMask', student=0.3, learnable=0.25, teacher=0.45)]))
"""


@pytest.fixture
def tiny_cfg(tiny_cfg) -> dict:
    tiny_cfg['data_preprocessor'].update(mean=[100, 110, 120], std=[50, 60, 70])
    return tiny_cfg


@pytest.fixture
def model(model):
    """The tiny PerA, with networks that differ, and a mean and deviation of its own."""
    for value in model.teacher.parameters():
        value.data += torch.randn_like(value) * 0.02
    return model


def test_the_painter_of_our_and_of_the_authors_file_paints_as_the_model(tmp_path, model, images):
    expected = reconstruct(model, images)
    (tmp_path / 'run').mkdir()
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=CONFIG)), tmp_path / 'run/a.pth')
    (tmp_path / 'run/last_checkpoint').write_text('/moved/a.pth')
    raw = tmp_path / 'pera.params'
    torch.save(dict(model=pera_to_reference(model.state_dict()), epoch=42), raw)
    (tmp_path / 'config.py').write_text(CONFIG)  # beside the authors' file, for mean and std
    for path in (tmp_path / 'run', tmp_path / 'run/a.pth', raw):
        painter = load_painter(path)
        found = reconstruct(painter, images)
        assert (found.predicted == expected.predicted).all() and found.errors == expected.errors
        assert not painter.training and not any(p.requires_grad for p in painter.parameters())
        assert not any(value.is_meta for value in painter.state_dict().values())
        assert mask_ratios(path) == MaskRatios(0.3, 0.25)


def test_the_painter_of_a_plain_head_is_found_by_its_tensors(tmp_path, tiny_cfg, images):
    tiny_cfg['predictor'] = dict(type='pera_mm.MLPPixelHead', hidden_channels=24)
    model = MODELS.build(tiny_cfg)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=CONFIG)), tmp_path / 'a.pth')
    found = reconstruct(load_painter(tmp_path / 'a.pth'), images)
    assert (found.predicted == reconstruct(model, images).predicted).all()
    with pytest.raises(ValueError, match="which the authors' code does not have: convert its teac"):
        pera_to_reference(model.state_dict())


def test_weights_that_cannot_paint_are_a_sentence(tmp_path, tiny_cfg, model):
    state = model.state_dict()
    no_predictor = {key: value for key, value in state.items() if 'predictor' not in key}
    backbone = model.teacher.backbone.state_dict()
    for number, part in enumerate((no_predictor, backbone)):
        torch.save(dict(state_dict=part, meta=dict(cfg=CONFIG)), tmp_path / f'{number}.pth')
        with pytest.raises(ValueError, match=f'{number}.pth has no predictor, so it can paint no'):
            load_painter(tmp_path / f'{number}.pth')
    state.pop('student.projector.mlp.0.bias')
    torch.save(dict(state_dict=state, meta=dict(cfg=CONFIG)), tmp_path / 'cut.pth')
    with pytest.raises(ValueError, match='cut.pth: Not every tensor.*student.projector.mlp.0.bias'):
        load_painter(tmp_path / 'cut.pth')


def test_the_pair_has_the_weights_of_both_networks(tmp_path, model):
    state = model.state_dict()
    own = dict(state_dict=state, meta=dict(cfg=CONFIG))
    (tmp_path / 'config.py').write_text(CONFIG)  # the heads of the authors' file
    student = {f'backbone.{k}': v for k, v in model.student.backbone.state_dict().items()}
    moco = {f'momentum_encoder.module.0.{k}': v
            for k, v in model.teacher.backbone.state_dict().items()}
    moco |= {'momentum_encoder.steps': torch.tensor(3), 'momentum_encoder.module.1.fc0.weight':
             torch.zeros(2), 'neck.fc0.weight': torch.zeros(2)}
    torch.save(own, tmp_path / 'pera.pth')
    torch.save(dict(state_dict=student | moco, meta=dict(cfg=CONFIG)), tmp_path / 'moco.pth')
    torch.save(dict(model=pera_to_reference(state)), tmp_path / 'raw.params')
    for name in ('pera.pth', 'moco.pth', 'raw.params'):
        pair = load_pair(tmp_path / name)
        for network, expected in zip(pair, (model.student, model.teacher)):
            for key, value in expected.backbone.state_dict().items():
                assert torch.equal(network.vit.state_dict()[key], value), (name, key)
    torch.save(dict(state_dict=student, meta=dict(cfg=CONFIG)), tmp_path / 'mae.pth')
    with pytest.raises(ValueError, match='mae.pth does not hold a student and a teacher'):
        load_pair(tmp_path / 'mae.pth')


def test_ratios_are_read_as_data_and_missing_ones_are_none(tmp_path):
    assert mask_ratios(tmp_path) is None
    (tmp_path / 'a.py').write_text('import os; os.remove("x")  # (')
    assert mask_ratios(tmp_path) is None
    (tmp_path / 'b.py').write_text("p = [{'type': 'DisjointMask', 'student': 0.4}]")
    assert mask_ratios(tmp_path) == MaskRatios(0.4, 0.2)
    (tmp_path / 'a.py').write_text('x = (')
    assert mask_ratios(tmp_path) == MaskRatios(0.4, 0.2)
    torch.save(dict(state_dict={}, meta={}), tmp_path / 'old.pth')
    assert mask_ratios(tmp_path / 'old.pth') == MaskRatios(0.4, 0.2)
