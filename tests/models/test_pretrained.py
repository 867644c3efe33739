"""A backbone starts from a checkpoint with every tensor, or not at all."""

import io
import logging
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from ranges import serve_folder
from torch import Tensor, nn

from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.models.backbones.pretrained import PretrainedBackbone
from pera_mm.models.backbones.vit_adapter import ViTAdapter
from pera_mm.registry import MODELS
from pera_mm.weights.layouts import TIMM
from pera_mm.weights.names import pera_to_reference
from pera_mm.weights.resizing import resample_patches
from pera_mm.weights.sources import REMEDIES

ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_cfg: dict) -> Path:
    """A PerA whose student and teacher differ in every tensor."""
    model = MODELS.build(tiny_cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'pera.pth')
    return tmp_path / 'pera.pth'


def network(checkpoint: Path, name: str) -> dict[str, Tensor]:
    state, prefix = torch.load(checkpoint)['state_dict'], f'{name}.backbone.'
    return {key.removeprefix(prefix): value for key, value in state.items()
            if key.startswith(prefix)}


def start(checkpoint: Path | str, size: int = 64, **kwargs) -> PerAViT:
    arch = kwargs.pop('arch', ARCH)
    init = dict(type='pera_mm.PretrainedBackbone', checkpoint=str(checkpoint), **kwargs)
    vit = MODELS.build(dict(type='pera_mm.PerAViT', arch=arch, img_size=size, init_cfg=init))
    vit.init_weights()
    return vit


def assert_same(vit: PerAViT, expected: dict[str, Tensor]) -> None:
    assert set(vit.state_dict()) == set(expected)
    for name, value in vit.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_teacher_by_default_the_student_on_request(checkpoint):
    assert_same(start(checkpoint), network(checkpoint, 'teacher'))
    assert_same(start(checkpoint, network='student'), network(checkpoint, 'student'))


@pytest.mark.parametrize('spell', [
    lambda cfg: dict(cfg, type=PretrainedBackbone),
    lambda cfg: [dict(cfg, type='pera_mm.PretrainedBackbone')]])
def test_however_it_is_spelled_nothing_is_drawn_over_it(checkpoint, spell):
    vit = PerAViT(ARCH, 64, init_cfg=spell(dict(checkpoint=str(checkpoint))))
    vit.init_weights()
    assert_same(vit, network(checkpoint, 'teacher'))


def test_the_authors_raw_file_and_exported_backbones(checkpoint, tmp_path):
    state, teacher = torch.load(checkpoint), network(checkpoint, 'teacher')
    for name, content in dict(raw=dict(model=pera_to_reference(state), epoch=42),
                              bare=teacher, timm=TIMM.from_ours(teacher)).items():
        torch.save(content, tmp_path / f'{name}.pth')
        assert_same(start(tmp_path / f'{name}.pth'), teacher)


def test_a_url_is_downloaded_once_and_read_as_data(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    monkeypatch.setattr(torch, 'load', None)  # which would unpickle
    monkeypatch.setattr(pickle, 'Unpickler', None)
    (tmp_path / 'served').mkdir()
    served = shutil.copy(checkpoint, tmp_path / 'served')
    with serve_folder(tmp_path / 'served') as address:
        vit = start(f'{address}/pera.pth')
    Path(served).unlink()
    again = start(f'{address}/pera.pth')  # nobody serves it now
    monkeypatch.undo()
    assert_same(vit, network(checkpoint, 'teacher'))
    assert_same(again, network(checkpoint, 'teacher'))


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    with serve_folder(tmp_path) as address, pytest.raises(ValueError) as caught:
        start(f'{address}/none.pth')
    assert str(caught.value) == (
        f'{address}/none.pth could not be downloaded: HTTP Error 404: File not found. Download it '
        'by other means and give the path of the file.')


@pytest.mark.parametrize('size', [32, 96, (64, 128)])
def test_another_size_resizes_the_position_embedding_only(checkpoint, size):
    vit, teacher = start(checkpoint, size), network(checkpoint, 'teacher')
    grid = vit.patch_resolution
    assert vit.pos_embed.shape[1] == 1 + grid[0] * grid[1]
    assert torch.equal(vit.pos_embed[:, 0], teacher['pos_embed'][:, 0])
    planes = teacher['pos_embed'][:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    planes = torch.nn.functional.interpolate(planes, tuple(grid), mode='bicubic')
    torch.testing.assert_close(vit.pos_embed[:, 1:], planes.flatten(2).transpose(1, 2))
    teacher['pos_embed'] = vit.pos_embed
    assert_same(vit, teacher)


def test_it_says_what_was_loaded(checkpoint):
    logger, stream = MMLogger.get_current_instance(), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    start(checkpoint, 96)
    logger.removeHandler(handler)
    said = stream.getvalue()
    assert 'all 54 tensors of the teacher backbone loaded (depth 4, width 32)' in said
    assert 'resized from (4, 4) to (6, 6) patches' in said


@pytest.mark.parametrize('toolbox, model', [
    ('mmpretrain', lambda backbone: dict(
        type='ImageClassifier', backbone=backbone,
        head=dict(type='LinearClsHead', num_classes=3, in_channels=32))),
    ('mmseg', lambda backbone: dict(
        type='EncoderDecoder', backbone=dict(type='pera_mm.ViTAdapter', vit=backbone),
        decode_head=dict(type='FCNHead', in_channels=32, in_index=0, channels=8, num_classes=3),
        test_cfg=dict(mode='whole'))),
])
def test_the_toolboxes_initialization_leaves_it_alone(checkpoint, toolbox, model):
    registry = pytest.importorskip(f'{toolbox}.registry')
    __import__(f'{toolbox}.models')
    init_default_scope(toolbox)  # an earlier test may have left another
    init = dict(type='pera_mm.PretrainedBackbone', checkpoint=str(checkpoint))
    built = registry.MODELS.build(model(
        dict(type='pera_mm.PerAViT', arch=ARCH, img_size=64, init_cfg=init)))
    built.init_weights()
    assert_same(getattr(built.backbone, 'vit', built.backbone), network(checkpoint, 'teacher'))


def test_the_adapter_is_initialized_around_it(checkpoint):
    init = dict(type='pera_mm.PretrainedBackbone', checkpoint=str(checkpoint))
    adapter = ViTAdapter(vit=dict(type='pera_mm.PerAViT', arch=ARCH, img_size=64, init_cfg=init))
    adapter.init_weights()
    assert adapter.level_embed.any() and not adapter.injectors[0].gamma.any()
    attention = adapter.injectors[0].attention
    assert not attention.sampling_offsets.weight.any() and attention.sampling_offsets.bias.any()


def mae() -> nn.Module:
    from mmpretrain.models import MAE
    return MAE(
        backbone=dict(type='MAEViT', arch=ARCH, img_size=64, patch_size=16, mask_ratio=.75),
        neck=dict(type='MAEPretrainDecoder', num_patches=16, patch_size=16, embed_dim=32,
                  decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2),
        head=dict(type='MAEPretrainHead', patch_size=16, loss=dict(type='PixelReconstructionLoss',
                                                                   criterion='L2')))


def mocov3() -> nn.Module:
    from mmpretrain.models import MoCoV3
    neck = dict(type='NonLinearNeck', hid_channels=16, out_channels=8, num_layers=2)
    return MoCoV3(
        backbone=dict(type='MoCoV3ViT', arch=ARCH, img_size=64, patch_size=16),
        neck=dict(neck, in_channels=32),
        head=dict(type='MoCoV3Head', predictor=dict(neck, in_channels=8),
                  loss=dict(type='CrossEntropyLoss')))


@pytest.mark.parametrize('method', [mae, mocov3])
def test_mmpretrains_self_supervised_checkpoints(tmp_path, method):
    init_default_scope('mmpretrain')
    model = method()
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'theirs.pth')
    vit = start(tmp_path / 'theirs.pth')
    assert_same(vit, model.backbone.state_dict())
    image = torch.randn(1, 3, 64, 64)
    options = dict(mask=None) if method is mae else {}
    tokens = model.eval().backbone(image, **options)[-1]
    expected = tokens[:, 0] if method is mae else tokens
    torch.testing.assert_close(vit(image)[-1], expected)


def test_a_vit_without_qkv_bias_gets_zeros(tmp_path):
    vit = PerAViT(ARCH, 64, qkv_bias=False)
    torch.nn.init.normal_(vit.layers[0].attn.qkv.weight)
    assert not any('qkv.bias' in name for name in vit.state_dict())
    for name, state in dict(ours=vit.state_dict(), timm={
            key: value for key, value in TIMM.from_ours(
                vit.state_dict() | {f'layers.{i}.attn.qkv.bias': torch.zeros(96)
                                    for i in range(4)}).items() if 'qkv.bias' not in key}).items():
        torch.save({f'teacher.backbone.{key}': value for key, value in state.items()},
                   tmp_path / f'{name}.pth')
        loaded = start(tmp_path / f'{name}.pth')
        assert not any(layer.attn.qkv.bias.any() for layer in loaded.layers)
        image = torch.randn(1, 3, 64, 64)
        assert torch.equal(loaded(image)[-1], vit(image)[-1])


def test_layer_scale_is_multiplied_into_the_layer_before_it(tmp_path):
    vit = PerAViT(ARCH, 64, layer_scale_init_value=1e-5)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            parameter.normal_(std=0.5 if 'gamma' in name else 0.2)
    torch.save({f'teacher.backbone.{key}': value for key, value in vit.state_dict().items()},
               tmp_path / 'scaled.pth')
    loaded, image = start(tmp_path / 'scaled.pth'), torch.randn(1, 3, 64, 64)
    assert not any('gamma' in name for name, _ in loaded.named_parameters())
    expected = vit(image)[-1]
    torch.testing.assert_close(loaded(image)[-1], expected, rtol=1e-5, atol=1e-5)
    torch.nn.init.zeros_(vit.layers[2].ffn.gamma2.weight)
    assert not torch.allclose(vit(image)[-1], expected, atol=1e-3)  # the scales matter here


def test_a_public_vit_of_another_patch_size_starts_a_fine_tuning(tmp_path):
    vits = pytest.importorskip('timm.models.vision_transformer', reason='timm is not installed')
    theirs = vits.VisionTransformer(img_size=64, patch_size=8, embed_dim=32, depth=4, num_heads=2,
                                    mlp_ratio=2., num_classes=5, reg_tokens=2)
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    logger, stream = MMLogger.get_current_instance(), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    vit = start(tmp_path / 'timm.pth')
    logger.removeHandler(handler)
    weight = theirs.patch_embed.proj.weight.detach()
    assert torch.equal(vit.patch_embed.projection.weight, resample_patches(weight, 16))
    assert vit.pos_embed.shape == (1, 17, 32)
    assert stream.getvalue().endswith(
        'timm.pth: all 54 tensors of the teacher backbone loaded (depth 4, width 32), patch '
        'embedding resampled from 8 to 16 pixels, position embedding resized from (8, 8) to (4, 4) '
        'patches; left out: reg_token (1), head.weight (1), head.bias (1); without its 2 '
        'registers, its features change somewhat.\n')


def test_a_folder_of_hugging_face_must_fit_the_config(tmp_path):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    sizes = dict(hidden_size=32, num_hidden_layers=4, intermediate_size=64, image_size=64)
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(
        **sizes, num_attention_heads=2, patch_size=16))
    model.save_pretrained(tmp_path)
    init = dict(type='pera_mm.PretrainedBackbone', checkpoint=str(tmp_path))
    options = dict(arch=ARCH, img_size=64, init_cfg=init, norm_cfg=dict(type='LN', eps=1e-5))
    with pytest.raises(ValueError, match=r'2 without a place \(first pre_norm.weight\)'):
        PerAViT(**options).init_weights()
    with pytest.raises(ValueError, match='its activation is quick_gelu, that of the config gelu: '
                       r"give the ViT layer_cfgs=dict\(act_cfg=dict\(type='mmpretrain.QuickGELU'"):
        PerAViT(**options, pre_norm=True).init_weights()
    PerAViT(**options, pre_norm=True,
            layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU'))).init_weights()
    heads = dict(options, arch=dict(ARCH, num_heads=4))
    with pytest.raises(ValueError, match='its attention has 2 heads, that of the config 4'):
        PerAViT(**heads, pre_norm=True).init_weights()


# Refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('change, words', [
    (dict(arch=dict(ARCH, embed_dims=64)), 'depth 4, width 32 and patch 16, the config has '
     'depth 4, width 64 and patch 16: .* misshaped'),
    (dict(arch=dict(ARCH, num_layers=5)), 'the config has depth 5, .*: 12 missing'),
    (dict(arch=dict(ARCH, num_layers=3)), 'the config has depth 3, .*: 12 without a place'),
    (dict(network='pupil'), "network must be 'teacher' or 'student'"),
])
def test_a_checkpoint_of_another_backbone(checkpoint, change, words):
    with pytest.raises(ValueError, match=words):
        start(checkpoint, **change)


def test_a_half_right_checkpoint_is_an_error(checkpoint, tmp_path):
    half = network(checkpoint, 'teacher')
    del half['layers.2.attn.qkv.weight']
    torch.save(half, tmp_path / 'half.pth')
    with pytest.raises(ValueError, match=r'half.pth.* 1 missing .first layers.2.attn.qkv.weight'):
        start(tmp_path / 'half.pth')


def test_a_file_of_which_nothing_matches(tmp_path):
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.zeros(1)}), tmp_path / 'resnet.pth')
    with pytest.raises(ValueError, match='resnet.pth: There is no teacher backbone'):
        start(tmp_path / 'resnet.pth')


@pytest.mark.parametrize('path, words', [
    ('nowhere.pth', 'There is no pretrained checkpoint nowhere.pth: make it .*tools/weights/convert'
     '.py CHECKPOINT checkpoints/NAME.safetensors --to backbone"; or give another with'),
    ('work_dirs/demo/iter_9.pth', 'There is no pretrained checkpoint .*iter_9.pth: make it from a'),
    ('s3://bucket/a.pth', 's3://bucket/a.pth: .* a local file, http:// or https:// only'),
])
def test_a_path_that_cannot_be_read(path, words):
    with pytest.raises(ValueError, match=words):
        start(path)


@pytest.mark.parametrize('name, remedy', REMEDIES.items())
def test_a_missing_file_of_our_configs_comes_with_its_command(tmp_path, name, remedy):
    with pytest.raises(ValueError) as caught:
        start(tmp_path / name)
    assert f'{name}: {remedy}; or give another' in str(caught.value)


def test_it_belongs_on_the_vit(checkpoint):
    init = dict(type='pera_mm.PretrainedBackbone', checkpoint=str(checkpoint))
    adapter = ViTAdapter(vit=dict(type='pera_mm.PerAViT', arch=ARCH, img_size=64), init_cfg=init)
    with pytest.raises(ValueError, match='in a ViTAdapter set it inside vit'):
        adapter.init_weights()


def test_a_missing_qkv_bias_of_one_layer_is_an_error(checkpoint, tmp_path):
    half = network(checkpoint, 'teacher')
    del half['layers.2.attn.qkv.bias']
    torch.save(half, tmp_path / 'half.pth')
    with pytest.raises(ValueError, match=r'half.pth.* 1 missing .first layers.2.attn.qkv.bias[)]'):
        start(tmp_path / 'half.pth')
