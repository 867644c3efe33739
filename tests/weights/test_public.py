"""Public ViTs: every layout gives the function that its own library computes, or a sentence."""

import json
import re
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pera_mm.export import NORMALIZATIONS
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.weights.backbone import NormalizedViT, load_backbone
from pera_mm.weights.layouts import HF_CLIP, OPEN_CLIP, OURS, TIMM
from pera_mm.weights.loading import load_checkpoint
from pera_mm.weights.public import find_backbone

SIZE, PATCH, WIDTH, DEPTH, HEADS = 32, 8, 32, 2, 4
HF_SIZES: dict[str, Any] = dict(hidden_size=WIDTH, num_hidden_layers=DEPTH,
                                num_attention_heads=HEADS, image_size=SIZE, patch_size=PATCH)
ARCH = dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=64)


def drawn(model: nn.Module) -> nn.Module:
    """The model with numbers that matter in every tensor, LayerScale and registers too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=.3)
            if 'norm' in name and name.endswith('weight'):
                parameter += 1
    return model.eval()


def timm_vit(**options: Any) -> nn.Module:
    vits = pytest.importorskip('timm.models.vision_transformer', reason='timm is not installed')
    sizes = dict(img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
                 mlp_ratio=2.)
    return drawn(vits.VisionTransformer(**{**sizes, **options}))


def save_timm(folder: Path, vit: nn.Module, architecture: str = 'vit_base_patch16_224') -> Path:
    """Write a folder as timm's ``save_for_hf`` does."""
    save_file({key: value.contiguous() for key, value in vit.state_dict().items()},
              folder / 'model.safetensors')
    config = dict(architecture=architecture, num_features=WIDTH,
                  model_args=dict(num_heads=HEADS),
                  pretrained_cfg=dict(mean=[.5, .5, .5], std=[.25, .25, .25]))
    (folder / 'config.json').write_text(json.dumps(config))
    return folder


def hugging_face(name: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    sizes = dict(HF_SIZES, **(dict(mlp_ratio=2) if 'Dinov2' in name
                              else dict(intermediate_size=64)))
    config = getattr(transformers, f'{re.sub("(Model|For).*", "", name)}Config')
    torch.manual_seed(0)
    return drawn(getattr(transformers, name)(config(**{**sizes, **options})))


def pixels() -> Tensor:
    return torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same(model: NormalizedViT, reference: Callable[[Tensor], Tensor],
                normalization: str = 'imagenet') -> None:
    """All tokens agree to 1e-5 of their size, on images normalized by the model itself."""
    mean, std = (255 * torch.tensor(values).view(3, 1, 1)
                 for values in NORMALIZATIONS[normalization])
    torch.testing.assert_close(model.mean, mean, atol=1e-3, rtol=0)
    torch.testing.assert_close(model.std, std, atol=1e-3, rtol=0)
    expected = reference((pixels() - model.mean) / model.std)
    features = model(pixels())
    found = torch.cat([features.cls[:, None], features.grid.flatten(2).transpose(1, 2)], dim=1)
    assert (found - expected).abs().max() <= 1e-5 * expected.square().mean().sqrt()


# The function stays ------------------------------------------------------------------------------


@pytest.mark.parametrize('options', [
    dict(num_classes=7), dict(num_classes=0, qkv_bias=False), dict(init_values=.1),
    dict(init_values=.1, no_embed_class=True)],
    ids=['classifier', 'no qkv bias', 'DINOv2', 'DeiT III'])
def test_timm(tmp_path, options):
    vit = timm_vit(**options)
    torch.save(vit.state_dict(), tmp_path / 'bare.pth')
    (tmp_path / 'config.json').write_text('{"architecture": "vit", "model_args": {"num_heads": 4}}')
    assert_same(load_backbone(tmp_path / 'bare.pth'), vit.forward_features)


def test_a_folder_of_timm_brings_heads_and_normalization(tmp_path):
    model = load_backbone(save_timm(tmp_path, timm_vit()))
    assert model.vit.layers[0].attn.num_heads == HEADS
    assert model.mean.flatten().tolist() == [127.5] * 3
    assert model.std.flatten().tolist() == [63.75] * 3


@pytest.mark.parametrize('name, normalization', [
    ('ViTModel', 'half'), ('ViTForImageClassification', 'half'), ('ViTMAEForPreTraining', None),
    ('Dinov2Model', None), ('Dinov2ForImageClassification', None)])
def test_hugging_face(tmp_path, name, normalization):
    decoder = dict(decoder_hidden_size=16, decoder_num_hidden_layers=1,
                   decoder_num_attention_heads=2, decoder_intermediate_size=16, mask_ratio=0.)
    model = hugging_face(name, **decoder if 'MAE' in name else {})
    model.save_pretrained(tmp_path)
    if normalization:
        statistics = dict(zip(('image_mean', 'image_std'), NORMALIZATIONS[normalization]))
        (tmp_path / 'preprocessor_config.json').write_text(json.dumps(statistics))
    inner = getattr(model, model.base_model_prefix, model)

    def tokens(images):
        if 'MAE' not in name:
            return inner(images).last_hidden_state
        noise = torch.arange(16.).repeat(2, 1)  # which keeps the order of the patches
        return inner(images, noise=noise).last_hidden_state

    loaded = load_backbone(tmp_path)
    assert_same(loaded, tokens, normalization or 'imagenet')
    assert loaded.vit.ln1.eps == model.config.layer_norm_eps


@pytest.mark.parametrize('registers', [0, 4])
def test_registers_are_left_out_of_timms_and_of_hugging_faces(tmp_path, registers):
    """What is left is the same ViT without them."""
    kind = 'Dinov2WithRegisters' if registers else 'Dinov2'
    options = dict(num_register_tokens=registers) if registers else {}
    model = hugging_face(f'{kind}Model', **options)
    model.save_pretrained(tmp_path)
    plain = hugging_face('Dinov2Model')
    plain.load_state_dict(model.state_dict(), strict=False)
    assert_same(load_backbone(tmp_path), lambda images: plain(images).last_hidden_state)
    for no_class in (False, True):
        vit = timm_vit(reg_tokens=registers, no_embed_class=no_class)
        found = find_backbone(vit.state_dict())
        assert found.state['pos_embed'].shape == (1, 17, WIDTH)
        assert torch.equal(found.state['pos_embed'][:, 1:], vit.pos_embed[:, -16:])
        said = f'without its {registers} registers, its features change somewhat'
        assert (said in found.changes) == bool(registers)


@pytest.mark.parametrize('activation', ['gelu', 'quick_gelu'])
def test_clip_of_timm_and_hugging_face(tmp_path, activation):
    for folder in ('hf', 'timm'):
        (tmp_path / folder).mkdir()
    model = hugging_face('CLIPVisionModel', hidden_act=activation)
    model.save_pretrained(tmp_path / 'hf')
    inner = getattr(model, 'vision_model', model)

    def tokens(images):
        return inner.post_layernorm(model(images).last_hidden_state)

    loaded = load_backbone(tmp_path / 'hf')
    assert_same(loaded, tokens, 'clip')
    with torch.no_grad():  # the sparse forward, on all patches
        images = torch.randn(2, 3, SIZE, SIZE)
        vit = loaded.vit
        groups = vit.encode([vit.embed(images, torch.arange(16).repeat(2, 1))])
        torch.testing.assert_close(vit.apply_final_norm(groups)[0], vit(images)[-1])
    vit = timm_vit(pre_norm=True, act_layer=activation, norm_layer=partial(nn.LayerNorm, eps=1e-5))
    name = 'vit_base_patch16_clip_quickgelu_224' if 'quick' in activation else (
        'vit_base_patch16_clip_224')
    loaded = load_backbone(save_timm(tmp_path / 'timm', vit, name))
    loaded.mean.fill_(127.5)
    with torch.no_grad():
        found = loaded.vit((pixels() - loaded.mean) / loaded.std)[-1]
        torch.testing.assert_close(found, vit.forward_features(
            (pixels() - loaded.mean) / loaded.std), rtol=1e-5, atol=1e-5)


def test_the_clip_of_open_clip_is_that_of_hugging_face(tmp_path):
    """Its names are those of OpenAI's own files, heads and activation come from its config."""
    model = hugging_face('CLIPVisionModel')
    state = {key.removeprefix('vision_model.'): value for key, value in model.state_dict().items()}
    state[HF_CLIP.cls] = state[HF_CLIP.cls].view(1, 1, WIDTH)
    state[HF_CLIP.positions] = state[HF_CLIP.positions][None]
    state = {key: value for key, value in state.items() if 'position_ids' not in key}
    theirs = OPEN_CLIP.from_ours(HF_CLIP.to_ours(state))
    assert theirs['transformer.resblocks.1.attn.in_proj_weight'].shape == (96, WIDTH)
    theirs['class_embedding'] = theirs['class_embedding'].flatten()
    theirs['positional_embedding'] = theirs['positional_embedding'][0]
    file = {f'visual.{key}': value for key, value in theirs.items()}
    file |= {'visual.proj': torch.zeros(WIDTH, 16), 'logit_scale': torch.zeros(()),
             'transformer.resblocks.0.ln_1.weight': torch.zeros(8)}
    torch.save(dict(state_dict={f'module.{key}': value for key, value in file.items()}),
               tmp_path / 'clip.pt')
    with pytest.raises(ValueError, match='the number of attention heads'):
        load_backbone(tmp_path / 'clip.pt')
    config = dict(model_cfg=dict(vision_cfg=dict(layers=DEPTH, width=WIDTH, head_width=8),
                                 quick_gelu=True))
    (tmp_path / 'open_clip_config.json').write_text(json.dumps(config))
    inner = getattr(model, 'vision_model', model)
    assert_same(load_backbone(tmp_path / 'clip.pt'),
                lambda images: inner.post_layernorm(model(images).last_hidden_state), 'clip')
    assert sorted(find_backbone(load_checkpoint(tmp_path / 'clip.pt')).left) == [
        'logit_scale (1)', 'transformer.resblocks (1)', 'visual.proj (1)']


def test_a_clip_of_unknown_activation_is_a_sentence(tmp_path):
    vit = PerAViT('tiny', SIZE, PATCH, pre_norm=True)
    torch.save(vit.state_dict(), tmp_path / 'clip.pth')
    with pytest.raises(ValueError, match=r'the activation of this CLIP, .* --activation NAME\.$'):
        load_backbone(tmp_path / 'clip.pth')


# Files as their authors publish them -------------------------------------------------------------


@pytest.fixture
def plain() -> dict[str, Tensor]:
    torch.manual_seed(0)
    vit = PerAViT(ARCH, SIZE, PATCH)
    return {key: torch.randn_like(value) for key, value in vit.state_dict().items()}


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key]) for key in expected)


def test_dinos_training_file_has_two_networks_and_its_arguments(tmp_path, plain):
    timm = TIMM.from_ours(plain)
    other = {key: value + 1 for key, value in timm.items()}
    torch.save(dict(
        teacher={f'backbone.{key}': value for key, value in timm.items()} | {
            'head.mlp.0.weight': torch.zeros(2)},
        student={f'module.backbone.{key}': value for key, value in other.items()},
        epoch=3, args=Namespace(arch='vit_base', lr=1e-3, blocks=[1, 2])), tmp_path / 'dino.pth')
    checkpoint = load_checkpoint(tmp_path / 'dino.pth')
    assert checkpoint['args'] == dict(arch='vit_base', lr=1e-3, blocks=[1, 2])
    found = find_backbone(checkpoint)
    assert equal(found.state, plain)
    assert (found.left, found.beside) == (['head.mlp (1)'], ['student', 'epoch', 'args'])
    assert equal(find_backbone(checkpoint, 'student').state, OURS.to_ours(
        {key: value + 1 for key, value in plain.items()}))


def test_dinov2s_training_file_names_the_layers_by_chunks(plain):
    timm = {re.sub(r'blocks\.(\d+)', r'blocks.0.\1', key): value
            for key, value in TIMM.from_ours(plain).items()}
    timm['mask_token'] = torch.zeros(1, WIDTH)
    timm |= {f'blocks.0.{i}.ls{j}.gamma': torch.ones(WIDTH) for i in range(DEPTH) for j in (1, 2)}
    found = find_backbone(dict(teacher={f'backbone.{key}': value for key, value in timm.items()}))
    assert equal(found.state, plain)
    assert found.report() == ['left out: backbone.mask_token (1)',
                              'LayerScale multiplied into the layers before it']


@pytest.mark.parametrize('with_decoder', [False, True])
def test_maes_file_with_and_without_its_decoder(plain, with_decoder):
    model = TIMM.from_ours(plain)
    if with_decoder:
        model |= {'mask_token': torch.zeros(1), 'decoder_pos_embed': torch.zeros(1),
                  'decoder_blocks.0.norm1.weight': torch.zeros(1)}
    found = find_backbone(dict(model=model, optimizer={}))
    assert equal(found.state, plain)
    assert len(found.left) == 3 * with_decoder and found.beside == ['optimizer']


def test_the_configs_heads_are_not_those_of_another_vit(tmp_path):
    vit = PerAViT('tiny', SIZE, PATCH)  # of 3 heads
    torch.save(vit.state_dict(), tmp_path / 'a.pth')
    for config in (dict(model_type='vit', hidden_size=64, num_attention_heads=8), [], 'text',
                   dict(model_type='vit', hidden_size=192, num_hidden_layers=5),
                   dict(architecture='vit', num_features=64, model_args=dict(num_heads=8))):
        (tmp_path / 'config.json').write_text(json.dumps(config))
        assert load_backbone(tmp_path / 'a.pth').vit.layers[0].attn.num_heads == 3


# Refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('name, what', [
    ('vit_small_patch16_dinov3', 'a DINOv3 ViT, with rotary positions'),
    ('vit_small_patch16_dinov3_qkvb', 'a DINOv3 ViT, with rotary positions'),
    ('vit_giant_patch14_dinov2', 'a ViT with SwiGLU layers, as DINOv2 giant'),
    ('vit_base_patch16_siglip_224', 'a ViT without [cls], as SigLIP or I-JEPA'),
    ('vit_base_patch16_gap_224', 'a ViT without [cls], as SigLIP or I-JEPA'),
    ('beit_base_patch16_224', 'a ViT with relative positions, as BEiT, data2vec or Swin'),
    ('eva02_tiny_patch14_224', 'an EVA ViT, with rotary positions or without a bias of the keys'),
    ('deit_tiny_distilled_patch16_224', 'a distilled DeiT, with a second token beside [cls]')])
def test_what_a_pera_vit_cannot_express_is_refused_by_name(name, what):
    timm = pytest.importorskip('timm', reason='timm is not installed')
    with torch.device('meta'):
        state = timm.create_model(name, depth=1).state_dict()
    with pytest.raises(ValueError) as error:
        find_backbone(state)
    assert str(error.value) == (
        f'It is {what}, which PerAViT cannot express: take a plain ViT with [cls] and position '
        'embeddings, such as a ViT or DINO, DINOv2, MAE or CLIP.')


@pytest.mark.parametrize('options, what', [
    (dict(global_pool='avg', fc_norm=True), 'normalizes the mean of the patches (fc_norm)'),
    (dict(qk_norm=True), 'normalizes queries and keys')])
def test_timms_vits_with_other_norms_are_refused(options, what):
    with pytest.raises(ValueError, match=re.escape(what)):
        find_backbone(timm_vit(**options).state_dict())


@pytest.mark.parametrize('name, options, what', [
    ('DINOv3ViTModel', {}, 'a DINOv3 ViT, with rotary positions'),
    ('Dinov2Model', dict(use_swiglu_ffn=True), 'a ViT with SwiGLU layers'),
    ('BeitModel', {}, 'a ViT with relative positions'),
    ('SiglipVisionModel', {}, 'a ViT without [cls]'), ('IJepaModel', {}, 'a ViT without [cls]'),
    ('ViTModel', dict(hidden_act='relu'), 'its activation is relu, and PerAViT has gelu and')])
def test_hugging_faces_others_are_refused_by_name(tmp_path, name, options, what):
    hugging_face(name, **options).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r'model\.safetensors: .*' + re.escape(what)) as error:
        load_backbone(tmp_path)
    assert '\n' not in str(error.value)


def test_metas_dinov3_file(plain):
    state = TIMM.from_ours(plain)
    del state['pos_embed']
    state |= {'storage_tokens': torch.zeros(1, 4, WIDTH), 'rope_embed.periods': torch.zeros(4)}
    with pytest.raises(ValueError, match='It is a DINOv3 ViT, with rotary positions'):
        find_backbone(state)


@pytest.mark.parametrize('spoil, words', [
    (lambda state: state.pop('embeddings.patch_embeddings.projection.bias'),
     r'the Hugging Face DINOv2 .* 1 missing \(first embeddings.patch_embeddings.projection.bias'),
    (lambda state: state.pop('encoder.layer.1.attention.attention.key.bias'), '1 missing'),
    (lambda state: state.pop('encoder.layer.1.mlp.fc2.weight'), r'1 missing .*mlp.fc2.weight\)'),
    (lambda state: state.update({'encoder.layer.0.adapter.weight': torch.zeros(1)}),
     '1 without a place'),
    (lambda state: state.update({'embeddings.position_embeddings': torch.zeros(1, 13, WIDTH)}),
     'only a square grid')])
def test_a_half_complete_file_is_a_report(tmp_path, spoil, words):
    hugging_face('Dinov2Model').save_pretrained(tmp_path)
    state = load_checkpoint(tmp_path / 'model.safetensors')
    spoil(state)
    save_file(state, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match=words) as error:
        load_backbone(tmp_path)
    assert '\n' not in str(error.value)
