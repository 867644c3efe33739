"""pera_mm.load_backbone: one line from any checkpoint to features, with nothing lost on the way."""

import json
from pathlib import Path

import pytest
import torch
from made_data import TINY_ARCH
from safetensors.torch import save_file
from torch import Tensor

import pera_mm
from pera_mm import export
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.weights.backbone import load_backbone
from pera_mm.weights.layouts import HF, TIMM

SIZE, WIDTH = 64, TINY_ARCH['embed_dims']
IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
MODEL = """
model = dict(
    backbone=dict(arch=dict(embed_dims=32, feedforward_channels=64, num_heads=2, num_layers=4),
                  img_size=64, type='pera_mm.PerAViT'),
    data_preprocessor=dict(type='pera_mm.CropPreprocessor', mean=[1, 2.5, 3], std=(4, 5, 6)),
    type='pera_mm.PerA')
"""


@pytest.fixture(scope='module')
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    vit = PerAViT(arch=dict(TINY_ARCH), img_size=SIZE, patch_size=16)
    return {key: torch.randn_like(value) * .2 for key, value in vit.state_dict().items()}


def ours(state: dict[str, Tensor], config: str | None = MODEL) -> dict:
    """A checkpoint as MMEngine writes it, with another student."""
    weights = {f'teacher.backbone.{key}': value for key, value in state.items()}
    weights |= {f'student.backbone.{key}': value + 1 for key, value in state.items()}
    return dict(state_dict=weights, meta=dict(cfg=config, iter=6) if config else dict(iter=6))


def save(path: Path, checkpoint: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return path


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def expected_tokens(state: dict[str, Tensor], images: Tensor, mean: tuple, std: tuple,
                    **options) -> Tensor:
    """All tokens, by hand: [B, 1 + N, D]."""
    vit = PerAViT(arch=dict(TINY_ARCH), img_size=SIZE, patch_size=16, out_type='raw', **options)
    vit.load_state_dict(state)
    vit.eval()
    shifted = images.permute(0, 2, 3, 1) - torch.tensor(mean)
    with torch.no_grad():
        return vit((shifted / torch.tensor(std)).permute(0, 3, 1, 2))[-1]


def test_features_are_those_of_the_vit_on_normalized_images(state, tmp_path):
    images = pixels(2, 3, 48, 80)
    model = pera_mm.load_backbone(save(tmp_path / 'a.pth', ours(state)))
    with torch.no_grad():
        features = model(images)
    tokens = expected_tokens(state, images, (1, 2.5, 3), (4., 5, 6))
    torch.testing.assert_close(features.cls, tokens[:, 0])
    torch.testing.assert_close(features.mean, tokens[:, 1:].mean(dim=1))
    assert features.grid.shape == (2, WIDTH, 3, 5)
    torch.testing.assert_close(features.grid[1, :, 2, 3], tokens[1, 1 + 2 * 5 + 3])
    assert not model.training
    assert (model.width, model.patch_size, model.img_size) == (WIDTH, 16, SIZE)


def test_every_kind_of_file_gives_the_same_module(state, tmp_path):
    checkpoint = ours(state, MODEL.replace('mean=[1, 2.5, 3], std=(4, 5, 6)', ''))
    theirs = {f'teacher.backbone.{key}': value for key, value in TIMM.from_ours(state).items()}
    backbone = export.Backbone(state, 2, 'imagenet', {})
    paths = [save(tmp_path / 'run/iter_6.pth', checkpoint), tmp_path / 'run',
             tmp_path / 'hf', tmp_path / 'timm', tmp_path / 'timm/model.safetensors',
             tmp_path / 'own.safetensors', tmp_path / 'raw/pera.params']
    (tmp_path / 'run/last_checkpoint').write_text('/elsewhere/run/iter_6.pth')
    export.write_hf(backbone, tmp_path / 'hf')
    export.write_timm(backbone, tmp_path / 'timm')
    export.write_backbone(backbone, tmp_path / 'own.safetensors')
    save(paths[-1], dict(model=theirs, epoch=42))
    (tmp_path / 'raw/config.py').write_text(checkpoint['meta']['cfg'])
    models = [load_backbone(path) for path in paths]
    assert len({model.fingerprint() for model in models}) == 1
    images = pixels(1, 3, SIZE, SIZE)
    for model in models:
        torch.testing.assert_close(model(images).cls,
                                   expected_tokens(state, images, *IMAGENET)[:, 0])


def test_the_fingerprint_depends_on_all_that_changes_features(state, tmp_path):
    other = {**state, 'cls_token': state['cls_token'] + 1e-3}
    eps = MODEL.replace('img_size=64', "img_size=64, norm_cfg=dict(type='LN', eps=1e-5)")
    configs = [MODEL, eps, MODEL.replace('2.5', '2.'), MODEL.replace('num_heads=2', 'num_heads=4')]
    found = [load_backbone(save(tmp_path / f'{number}.pth', checkpoint)).fingerprint()
             for number, checkpoint in enumerate([ours(other), *(ours(state, c) for c in configs)])]
    assert len(set(found)) == 5


def test_the_configs_eps_is_used(state, tmp_path):
    config = MODEL.replace('img_size=64', "img_size=64, norm_cfg=dict(type='LN', eps=.5)")
    images = pixels(1, 3, SIZE, SIZE)
    model = load_backbone(save(tmp_path / 'a.pth', ours(state, config)))
    tokens = expected_tokens(state, images, (1, 2.5, 3), (4., 5, 6),
                             norm_cfg=dict(type='LN', eps=.5))
    torch.testing.assert_close(model(images).cls, tokens[:, 0])


def test_an_exported_file_brings_its_normalization(state, tmp_path):
    export.write_backbone(export.Backbone(state, 2, 'perascd', {}), tmp_path / 'a.safetensors')
    model = load_backbone(tmp_path / 'a.safetensors')
    mean, std = export.NORMALIZATIONS['perascd']
    torch.testing.assert_close(model.mean.flatten(), 255 * torch.tensor(mean))
    torch.testing.assert_close(model.std.flatten(), 255 * torch.tensor(std))


def test_the_heads_of_a_known_arch_need_no_config(tmp_path):
    vit = PerAViT(arch='tiny', img_size=32, patch_size=8)
    model = load_backbone(save(tmp_path / 'a.pth', ours(vit.state_dict(), None)))
    assert model.vit.layers[0].attn.num_heads == 3
    torch.testing.assert_close(model.mean.flatten(), torch.tensor(IMAGENET[0]))


def test_the_heads_of_two_known_archs_of_a_size_are_not_guessed(tmp_path):
    state = PerAViT(arch='demo', img_size=32, patch_size=8).state_dict()
    with pytest.raises(ValueError, match='the number of attention heads .* --heads N'):
        load_backbone(save(tmp_path / 'a.pth', ours(state, None)))


@pytest.mark.parametrize('config', [
    None, 'model = dict(', 'model = 3', 'model = dict(backbone=build())', '(' * 5000,
    MODEL.replace('num_layers=4', 'num_layers=5'),  # of another model
    MODEL.replace('num_heads=2', "num_heads='2'"), MODEL.replace('num_heads=2', 'num_heads=3')])
def test_unknown_heads_are_an_error_that_says_what_to_do(state, tmp_path, config):
    path = save(tmp_path / 'a.pth', ours(state, config))
    with pytest.raises(ValueError, match=r'a\.pth: the number of attention heads .* width 32 .*'
                       r'convert\.py --to backbone --heads N\.$'):
        load_backbone(path)


def test_a_config_is_read_and_never_run(state, tmp_path):
    trap = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    assert load_backbone(save(tmp_path / 'a.pth', ours(state, trap + MODEL))).width == WIDTH
    assert not (tmp_path / 'ran').exists()


def test_the_config_of_another_model_beside_the_file_is_passed_over(state, tmp_path):
    path = save(tmp_path / 'a.pth', ours(state, None))
    (tmp_path / 'b.py').write_text(MODEL.replace('embed_dims=32', 'embed_dims=48'))
    (tmp_path / 'c.py').write_text(MODEL)
    (tmp_path / 'd.py').write_text('print("not a config")')
    assert load_backbone(path).vit.layers[0].attn.num_heads == 2


@pytest.mark.parametrize(('images', 'found'), [
    (torch.zeros(1, 3, SIZE, SIZE), r'got float32 \[1, 3, 64, 64\]'),
    (pixels(1, SIZE, SIZE, 3), r'got uint8 \[1, 64, 64, 3\]'),
    (pixels(3, SIZE, SIZE), r'got uint8 \[3, 64, 64\]'),
    (pixels(1, 3, SIZE, 65), 'crop width 65 is not a multiple of the patch size 16; take 64 or 80'),
])
def test_images_of_another_kind_are_refused(state, tmp_path, images, found):
    model = load_backbone(save(tmp_path / 'a.pth', ours(state)))
    with pytest.raises(ValueError, match=found):
        model(images)


def test_paths_without_a_checkpoint_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'There is no checkpoint .*none\.pth'):
        load_backbone(tmp_path / 'none.pth')
    with pytest.raises(FileNotFoundError, match='neither last_checkpoint.*nor model.safetensors'):
        load_backbone(tmp_path)
    (tmp_path / 'iter_1').mkdir()
    (tmp_path / 'last_checkpoint').write_text('iter_1')
    with pytest.raises(ValueError, match='iter_1 is sharded'):
        load_backbone(tmp_path)


@pytest.mark.parametrize(('mean', 'reason'), [
    ('[0.5]', 'the mean of the images is .*must be three numbers'),
    ('[1, 2, NaN]', 'the mean of the images is .*must be three numbers'),
    ('3', 'its header is damaged'), ('[', 'its header is damaged')])
def test_a_header_with_a_senseless_mean_is_refused(state, tmp_path, mean, reason):
    header = dict(num_heads='2', mean=mean, std=json.dumps([1, 1, 1]))
    save_file(state, tmp_path / 'a.safetensors', header)
    with pytest.raises(ValueError, match=reason):
        load_backbone(tmp_path / 'a.safetensors')


def test_hugging_face_files_of_others_need_only_a_known_arch(tmp_path):
    state = PerAViT(arch='tiny', img_size=32, patch_size=8).state_dict()
    save_file({key: value.contiguous() for key, value in HF.from_ours(state).items()},
              tmp_path / 'model.safetensors')
    assert load_backbone(tmp_path).img_size == 32


def test_the_package_names_what_it_lacks():
    assert pera_mm.load_backbone is load_backbone
    with pytest.raises(AttributeError, match="'pera_mm' has no attribute 'load_spine'"):
        _ = pera_mm.load_spine
