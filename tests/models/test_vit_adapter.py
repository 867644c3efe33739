"""Figure 2d: the ViT as a backbone of dense tasks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttention,
    multi_scale_deformable_attn_pytorch,
)
from torch import Tensor, nn

from pera_mm.models.backbones.adapter_layers import make_token_grid, to_maps, to_tokens
from pera_mm.models.backbones.deform_attn import DeformableAttention, sample_levels
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.models.backbones.vit_adapter import ViTAdapter, ViTPyramid, divide_layers
from pera_mm.registry import MODELS

ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)
BACKBONES = [ViTAdapter, ViTPyramid]


def randomised(module: nn.Module) -> nn.Module:
    """No parameter is 0 or 1, so that none can be left out unseen."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if 'sampling_offsets' not in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def make(kind: type = ViTAdapter, vit: dict | None = None, **kwargs):
    vit = dict(type='pera_mm.PerAViT', arch=ARCH, img_size=64, **(vit or {}))
    if kind is ViTAdapter:
        kwargs.setdefault('prior_channels', 8)
    backbone = randomised(kind(vit=vit, **kwargs))
    backbone.train(False)
    return backbone


def deform_inputs(shapes: list, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    heads, queries, points = 2, 5, 3
    value = torch.randn(2, sum(h * w for h, w in shapes), heads, 4, dtype=dtype)
    # also outside of the map
    locations = torch.rand(2, queries, heads, len(shapes), points, 2, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(2, queries, heads, len(shapes), points, dtype=dtype)
    return value, locations, weights


# Deformable attention ---------------------------------------------------------------------------


def slow_bilinear(plane: Tensor, x: float, y: float) -> Tensor:
    """``plane [H, W, d]`` at x, y in 0-1, zeros outside."""
    height, width = plane.shape[:2]
    column, row = x * width - 0.5, y * height - 0.5
    total = torch.zeros_like(plane[0, 0])
    for i in range(height):
        for j in range(width):
            total += max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j)) * plane[i, j]
    return total


def test_samples_equal_a_slow_loop():
    shapes = [(3, 4), (2, 2)]
    value, locations, weights = deform_inputs(shapes)
    result = sample_levels(value, shapes, locations, weights).unflatten(2, (2, 4))
    levels = value.split([12, 4], dim=1)
    for b in range(2):
        for q in range(5):
            for head in range(2):
                expected = sum(
                    weights[b, q, head, i, p] * slow_bilinear(
                        level[b, :, head].unflatten(0, shape),
                        *locations[b, q, head, i, p].tolist())
                    for i, (level, shape) in enumerate(zip(levels, shapes)) for p in range(3))
                torch.testing.assert_close(result[b, q, head], expected)


def test_samples_and_gradients_equal_mmcvs():
    shapes = [(6, 5), (3, 4), (2, 1)]
    inputs = [x.requires_grad_() for x in deform_inputs(shapes)]
    theirs = multi_scale_deformable_attn_pytorch(inputs[0], torch.tensor(shapes), *inputs[1:])
    ours = sample_levels(inputs[0], shapes, *inputs[1:])
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours.square().sum(), inputs),
                    torch.autograd.grad(theirs.square().sum(), inputs)):
        torch.testing.assert_close(a, b)


def test_the_module_equals_mmcvs_with_the_same_weights():
    shapes = [(6, 4), (3, 2), (2, 1)]
    theirs = MultiScaleDeformableAttention(32, 4, 3, 4, batch_first=True, dropout=0.)
    theirs.init_weights()
    ours = DeformableAttention(32, 4, 3, 4)
    torch.testing.assert_close(ours.sampling_offsets.bias, theirs.sampling_offsets.bias)
    ours.load_state_dict(randomised(theirs).state_dict())
    queries, tokens = torch.randn(2, 8, 32), torch.randn(2, 32, 32)
    places = make_token_grid([(4, 2)], queries.device).places
    expected = theirs(queries, value=tokens, identity=torch.zeros_like(queries),
                      reference_points=places[None, :, None].expand(2, -1, 3, -1),
                      spatial_shapes=torch.tensor(shapes),
                      level_start_index=torch.tensor([0, 24, 30]))
    torch.testing.assert_close(ours(queries, places, tokens, shapes), expected, rtol=1e-5,
                               atol=1e-6)


def test_an_attention_without_offsets_reads_its_own_place():
    """One point, offset zero, on the query's own grid: the token itself."""
    attention = DeformableAttention(8, 2, 1, 1)
    nn.init.zeros_(attention.sampling_offsets.bias)
    for layer in (attention.value_proj, attention.output_proj):
        nn.init.eye_(layer.weight)
    tokens = torch.randn(1, 15, 8)
    grid = make_token_grid([(3, 5)], tokens.device)
    out = attention(torch.randn(1, 15, 8), grid.places, tokens, grid.shapes)
    torch.testing.assert_close(out, tokens)


def test_places_are_centers_x_first_in_raster_order():
    places = make_token_grid([(2, 3), (1, 1)], torch.device('cpu')).places
    expected = [(1 / 6, 1 / 4), (1 / 2, 1 / 4), (5 / 6, 1 / 4), (1 / 6, 3 / 4), (1 / 2, 3 / 4),
                (5 / 6, 3 / 4), (1 / 2, 1 / 2)]
    torch.testing.assert_close(places, torch.tensor(expected))


def test_tokens_and_maps_are_inverse():
    maps = [torch.randn(2, 4, 3, 5), torch.randn(2, 4, 2, 1)]
    for x, back in zip(maps, to_maps(to_tokens(maps), [(3, 5), (2, 1)])):
        assert torch.equal(x, back)


# Shapes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', BACKBONES)
@pytest.mark.parametrize('size', [(64, 64), (96, 32), (100, 131), (33, 31), (1, 200)])
def test_four_maps_for_any_size(kind, size):
    maps = make(kind)(torch.randn(1, 3, *size))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (32, -(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 32)]


@pytest.mark.parametrize('size', [512, 800, 1024])
@pytest.mark.parametrize('arch', ['base', pytest.param('pera-g', marks=pytest.mark.slow)])
def test_the_papers_sizes(arch, size):
    with torch.device('meta'):
        backbone = ViTAdapter(vit=dict(type='pera_mm.PerAViT', arch=arch, img_size=512))
        maps = backbone(torch.empty(2, 3, size, size))
    dims = dict(base=768).get(arch, 1024)
    assert [tuple(x.shape) for x in maps] == [(2, dims, size // s, size // s)
                                              for s in (4, 8, 16, 32)]


@pytest.mark.parametrize('kind', BACKBONES)
@pytest.mark.parametrize('patch_size', [8, 14, 32])
def test_other_patch_sizes(kind, patch_size):
    backbone = kind(vit=dict(type='pera_mm.PerAViT', arch=ARCH, img_size=4 * patch_size,
                             patch_size=patch_size))
    backbone.train(False)
    assert [x.shape[-1] for x in backbone(torch.randn(1, 3, 64, 64))] == [16, 8, 4, 2]


@pytest.mark.parametrize('kind', BACKBONES)
def test_the_rim_is_zeros_and_cut_off(kind):
    backbone, images = make(kind), torch.randn(1, 3, 70, 50)
    padded = backbone(F.pad(images, (0, 14, 0, 26)))
    for x, whole in zip(backbone(images), padded):
        assert torch.equal(x, whole[..., :x.shape[2], :x.shape[3]])


@pytest.mark.parametrize('norm', [dict(type='GN', num_groups=4), dict(type='SyncBN')])
def test_any_norm(norm):
    assert len(make(norm_cfg=norm)(torch.randn(2, 3, 64, 64))) == 4


# What the adapter does to the ViT ---------------------------------------------------------------


def vit_stream(backbone: ViTAdapter, images: Tensor) -> list[Tensor]:
    finest, *maps = backbone.prior(images)
    grid = make_token_grid([x.shape[-2:] for x in maps], images.device)
    return backbone._interact(images, to_tokens(maps), grid)[1]


def zero_gammas(backbone: ViTAdapter) -> ViTAdapter:
    with torch.no_grad():
        for injector in backbone.injectors:
            injector.gamma.zero_()
    return backbone


def test_without_injection_the_vit_is_a_plain_vit():
    backbone = zero_gammas(make())
    plain = PerAViT(ARCH, 64, out_indices=[0, 1, 2, 3], out_type='featmap')
    plain.load_state_dict(backbone.vit.state_dict())
    plain.train(False)
    images = torch.randn(2, 3, 64, 96)
    for a, b in zip(vit_stream(backbone, images), plain(images)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_new_adapter_injects_nothing_yet():
    backbone = ViTAdapter(vit=dict(type='pera_mm.PerAViT', arch=ARCH, img_size=64))
    assert not any(injector.gamma.any() for injector in backbone.injectors)


def test_convolutions_start_with_the_variance_of_their_own_fan_out():
    """2 / fan-out, where a depthwise channel feeds one channel through 9 weights."""
    adapter = ViTAdapter(vit=dict(type='pera_mm.PerAViT', arch=dict(ARCH, embed_dims=256),
                                  img_size=64), ffn_ratio=1.)
    adapter.init_weights()
    depthwise = adapter.extractors[0][0].ffn.depthwise
    assert depthwise.groups == 256
    assert depthwise.weight.std().item() == pytest.approx((2 / 9)**0.5, rel=0.05)
    assert adapter.up.weight.std().item() == pytest.approx((2 / (4 * 256))**0.5, rel=0.05)
    projection = adapter.prior.projections[0].weight
    assert projection.std().item() == pytest.approx((2 / 256)**0.5, rel=0.05)


@pytest.mark.parametrize('uniform', [True, False])
def test_extractors_drop_their_mlp_at_the_full_rate(uniform):
    adapter = ViTAdapter(vit=dict(type='pera_mm.PerAViT', arch=ARCH, img_size=64,
                                  drop_path_rate=0.2, drop_path_uniform=uniform))
    rates = {extractor.drop_path.drop_prob for group in adapter.extractors for extractor in group}
    assert rates == {0.2}


def test_an_injection_changes_the_vit():
    backbone, images = make(), torch.randn(1, 3, 64, 64)
    before = vit_stream(backbone, images)
    for a, b in zip(before, vit_stream(zero_gammas(backbone), images)):
        assert not torch.allclose(a, b, atol=1e-4)


def test_vit_feature_stages_adds_each_map_and_last_the_last_one():
    stages, last = make(vit_feature='stages'), make(vit_feature='last')
    last.load_state_dict(stages.state_dict())
    for backbone in (stages, last):
        backbone.norms = nn.ModuleList(nn.Identity() for _ in range(4))
    images = torch.randn(1, 3, 64, 64)
    vit_maps = vit_stream_with_levels(stages, images)
    for a, b, vit_map in zip(stages(images), last(images), vit_maps):
        difference = F.interpolate(vit_map - vit_maps[-1], a.shape[-2:], mode='bilinear')
        torch.testing.assert_close(a - b, difference, rtol=1e-4, atol=1e-5)


def vit_stream_with_levels(backbone: ViTAdapter, images: Tensor) -> list[Tensor]:
    finest, *maps = backbone.prior(images)
    grid = make_token_grid([x.shape[-2:] for x in maps], images.device)
    tokens = to_tokens([x + level[:, None, None] for x, level in zip(maps, backbone.level_embed)])
    return backbone._interact(images, tokens, grid)[1]


# Options: what the sources differ in --------------------------------------------------------------


@pytest.mark.parametrize(('ratio', 'width'), [(1., 32), (.5, 16), (.25, 8)])
def test_deform_ratio_is_the_width_of_the_sampled_values(ratio, width):
    attentions = [module for module in make(deform_ratio=ratio).modules()
                  if isinstance(module, DeformableAttention)]
    assert len(attentions) == 4 + 6
    assert {module.value_proj.weight.shape for module in attentions} == {(width, 32)}
    assert {module.output_proj.weight.shape for module in attentions} == {(32, width)}


def test_the_shared_norm_is_one_module_and_no_other_is_left():
    backbone = make(shared_norm=True)
    norms = [module for module in backbone.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * 4 + 1 and norms == [
        module for module in backbone.vit.modules() if isinstance(module, nn.LayerNorm)]
    calls = []
    backbone.vit.ln1.register_forward_hook(lambda *_: calls.append(1))
    backbone(torch.randn(1, 3, 64, 64))
    assert len(calls) == 4 * 2 + 6 * 3  # injectors: queries, tokens; extractors: their MLP, too
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        twin.vit.ln1.weight.zero_()
        twin.vit.ln1.bias.zero_()
    images = torch.randn(1, 3, 64, 64)
    assert not torch.equal(twin(images)[3], backbone(images)[3])


def test_the_shared_norm_equals_copies_of_it_and_no_norm_of_the_vits_maps():
    shared, own = make(shared_norm=True), make()
    left_out = own.load_state_dict(shared.state_dict(), strict=False)
    assert not left_out.unexpected_keys
    assert len(left_out.missing_keys) == 2 * (4 * 2 + 6 * 3)  # a weight and a bias each
    for layer in (*own.injectors, *(x for group in own.extractors for x in group)):
        for name in ('query_norm', 'token_norm', 'ffn_norm'):
            if hasattr(layer, name):
                getattr(layer, name).load_state_dict(shared.vit.ln1.state_dict())
    own.vit.ln1 = nn.Identity()
    images = torch.randn(2, 3, 64, 96)
    for a, b in zip(shared(images), own(images)):
        assert torch.equal(a, b)


def test_a_state_dict_fits_one_kind_of_norm_only():
    shared, own = make(shared_norm=True), make()
    for a, b in ((shared, own), (own, shared)):
        with pytest.raises(RuntimeError, match='injectors.0.query_norm.weight'):
            a.load_state_dict(b.state_dict())


def test_the_defaults_still_take_older_checkpoints():
    """Names and shapes of the adapter, apart from its ViT, as they always were."""
    tensors = {name: tuple(value.shape) for name, value in make().state_dict().items()
               if not name.startswith('vit.')}
    injector = {key: shape for key, shape in tensors.items() if key.startswith('injectors.0')}
    assert injector == {f'injectors.0.{key}': shape for key, shape in {
        'gamma': (32, ), 'query_norm.weight': (32, ), 'query_norm.bias': (32, ),
        'token_norm.weight': (32, ), 'token_norm.bias': (32, ),
        'attention.sampling_offsets.weight': (48, 32), 'attention.sampling_offsets.bias': (48, ),
        'attention.attention_weights.weight': (24, 32), 'attention.attention_weights.bias': (24, ),
        'attention.value_proj.weight': (16, 32), 'attention.value_proj.bias': (16, ),
        'attention.output_proj.weight': (32, 16), 'attention.output_proj.bias': (32, )}.items()}
    extractor = {key.removeprefix('extractors.3.2.').rpartition('.')[0] for key in tensors
                 if key.startswith('extractors.3.2')}
    assert extractor == {
        'query_norm', 'token_norm', 'ffn_norm', 'ffn.fc1', 'ffn.depthwise', 'ffn.fc2',
        *(f'attention.{name}' for name in ('sampling_offsets', 'attention_weights', 'value_proj',
                                           'output_proj'))}


@pytest.mark.parametrize('options', [
    dict(), dict(vit_feature='last'), dict(shared_norm=True, deform_ratio=1.)])
def test_every_parameter_of_the_adapter_gets_a_gradient(options):
    backbone = make(**options, vit=dict(drop_path_rate=0.1))
    backbone.train()
    sum(x.square().sum() for x in backbone(torch.randn(4, 3, 64, 64))).backward()
    lacking = [name for name, p in backbone.named_parameters()
               if p.grad is None or not p.grad.any()]
    assert not lacking


def test_every_parameter_of_the_pyramid_gets_a_gradient():
    backbone = make(ViTPyramid)
    backbone.train()
    # Squares alone would cancel what a norm divides out again.
    sum((x * torch.randn_like(x)).sum() for x in backbone(torch.randn(4, 3, 64, 64))).backward()
    assert not [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize('shared', [False, True])
def test_recomputation_changes_no_gradient(shared):
    backbone = make(norm_cfg=dict(type='GN', num_groups=4), vit=dict(drop_path_rate=0.3),
                    shared_norm=shared)
    twin = copy.deepcopy(backbone)
    twin.with_cp = True
    for layer in twin.vit.layers:
        layer.with_cp = True
    images, gradients = torch.randn(2, 3, 64, 64), []
    for model in (backbone, twin):
        model.train()
        torch.manual_seed(3)
        sum(x.square().sum() for x in model(images)).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize('kind', BACKBONES)
def test_with_cp_reaches_the_vit(kind):
    assert all(layer.with_cp for layer in make(kind, with_cp=True).vit.layers)
    assert not any(layer.with_cp for layer in make(kind).vit.layers)


def test_bfloat16_samples_in_float32():
    attention = randomised(DeformableAttention(32, 2, 1, 4))
    grid = make_token_grid([(64, 64)], torch.device('cpu'))
    tokens = torch.randn(1, 64 * 64, 32)
    exact = attention(tokens, grid.places, tokens, grid.shapes)
    with torch.autocast('cpu', torch.bfloat16):
        half = attention(tokens, grid.places, tokens, grid.shapes)
    assert (half.float() - exact).abs().mean() < 0.01 * exact.abs().mean()


@pytest.mark.slow
@pytest.mark.parametrize('shared', [False, True])
def test_it_exports(shared):
    backbone = make(shared_norm=shared)
    images = torch.randn(1, 3, 64, 96)
    program = torch.export.export(backbone, (images,))
    for a, b in zip(program.module()(images), backbone(images)):
        torch.testing.assert_close(a, b)


# Depth, and what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(('depth', 'groups'), [
    (12, [(0, 2), (3, 5), (6, 8), (9, 11)]),
    (40, [(0, 9), (10, 19), (20, 29), (30, 39)]),
    (4, [(0, 0), (1, 1), (2, 2), (3, 3)]),
])
def test_groups_from_the_depth(depth, groups):
    assert divide_layers(None, depth) == groups
    assert divide_layers([list(group) for group in groups], depth) == groups


def test_groups_of_an_uneven_depth_cover_every_layer():
    groups = divide_layers(None, 14)
    assert [i for first, last in groups for i in range(first, last + 1)] == list(range(14))


@pytest.mark.parametrize('indexes', [
    [[0, 2], [3, 5], [6, 8], [9, 10]], [[0, 2], [3, 5], [6, 11]], [[0, 2], [4, 5], [6, 8], [9, 11]],
    [[0, 5], [6, 5], [6, 8], [9, 11]]])
def test_groups_with_holes_are_refused(indexes):
    with pytest.raises(ValueError, match='follow each other over the 12 layers'):
        divide_layers(indexes, 12)


@pytest.mark.parametrize(('kwargs', 'words'), [
    (dict(vit_feature='first'), "must be 'stages' .* or 'last'"),
    (dict(deform_heads=3), 'not divisible by 3 heads'),
    (dict(deform_ratio=1.5), 'ratio 1.5 must be above 0 and at most 1; change deform_ratio'),
    (dict(deform_ratio=0), 'ratio 0 must be above 0 and at most 1; change deform_ratio'),
    (dict(deform_ratio=.01), '32 x value ratio 0.01 = 0 is not divisible by 2 heads'),
    (dict(vit=dict(type='mmpretrain.VisionTransformer')), 'must be a pera_mm.PerAViT'),
])
def test_bad_settings_fail_with_a_sentence(kwargs, words):
    kwargs = dict(vit=dict(type='pera_mm.PerAViT', arch=ARCH, img_size=64)) | kwargs
    with pytest.raises(ValueError, match=words):
        ViTAdapter(**kwargs)


@pytest.mark.parametrize('toolbox', ['mmpretrain', 'mmseg', 'mmdet', 'opencd'])
@pytest.mark.parametrize('kind', BACKBONES)
def test_every_toolbox_builds_it_by_name(toolbox, kind):
    registry = pytest.importorskip(f'{toolbox}.registry', reason=f'{toolbox} is not installed')
    vit = dict(type='pera_mm.PerAViT', arch=ARCH, img_size=64)
    backbone = registry.MODELS.build(dict(type=f'pera_mm.{kind.__name__}', vit=vit))
    assert isinstance(backbone, kind)
    assert MODELS.get(f'pera_mm.{kind.__name__}') is kind
