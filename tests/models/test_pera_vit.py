"""Figure 2b: the sparse, packed ViT against MMPretrain's dense one and the oracle."""

import copy
import io
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from mmpretrain.models import VisionTransformer
from reference import paper
from torch import Tensor

from pera_mm.models.backbones.mimetic import MimeticMAEViT, MimeticMoCoV3ViT
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.registry import MODELS
from pera_mm.weights.layouts import TIMM

ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)


def make_vit(patch_size: int = 16, training: bool = False, **kwargs) -> PerAViT:
    """A ViT of 4 x 4 patches in which no parameter is 0 or 1."""
    kwargs = dict(dict(arch=ARCH, img_size=4 * patch_size, patch_size=patch_size,
                       drop_path_rate=0.), **kwargs)
    vit = PerAViT(**kwargs)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            parameter.normal_(std=0.2 if parameter.ndim > 1 else 0.1)
            if 'ln' in name and name.endswith('weight'):
                parameter.add_(1)
    vit.train(training)  # MMPretrain's train() returns None
    return vit


def oracle_blocks(vit: PerAViT, tokens: Tensor, layers: Sequence[int]) -> Tensor:
    """Rows ``[R, L, D]`` through the oracle's blocks, one sequence at a time."""
    weights = TIMM.from_ours(dict(vit.named_parameters()))
    rows = []
    for row in tokens:
        for i in layers:
            row = paper.block(row, weights, f'blocks.{i}', ARCH['num_heads'])
        rows.append(row)
    return torch.stack(rows)


def random_indices(rows: int, num_patches: int, k: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, num_patches, generator=generator).argsort(1)[:, :k].sort(1).values


# Dense ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('out_type', ['cls_token', 'raw', 'featmap', 'avg_featmap'])
@pytest.mark.parametrize('size', [64, 96])
def test_dense_forward_equals_mmpretrain(out_type, size):
    vit = make_vit(out_type=out_type, out_indices=[1, 3])
    theirs = VisionTransformer(arch=ARCH, img_size=64, patch_size=16, out_type=out_type,
                               out_indices=[1, 3])
    theirs.load_state_dict(vit.state_dict())  # strict: the names are the same
    images = torch.randn(2, 3, size, size)
    ours, expected = vit(images), theirs(images)
    assert len(ours) == len(expected) == 2
    for a, b in zip(ours, expected):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_dense_gradients_equal_mmpretrain():
    vit = make_vit()
    theirs = VisionTransformer(arch=ARCH, img_size=64, patch_size=16)
    theirs.load_state_dict(vit.state_dict())
    images, weight = torch.randn(2, 3, 64, 64), torch.randn(2, 32)
    for model in (vit, theirs):
        (model(images)[-1] * weight).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in vit.named_parameters():
        error = (parameter.grad - expected[name].grad).norm()
        assert error <= 1e-5 * expected[name].grad.norm(), name


def test_layer_depth_is_mmpretrains():
    vit, theirs = make_vit(), VisionTransformer(arch=ARCH, img_size=64, patch_size=16)
    for name in vit.state_dict():
        assert vit.get_layer_depth(name) == theirs.get_layer_depth(name), name


def test_weights_of_another_size_are_resized_on_load():
    small, large = make_vit(), make_vit(img_size=96)
    large.load_state_dict(small.state_dict())
    assert large.pos_embed.shape == (1, 37, 32)
    torch.testing.assert_close(large.pos_embed[:, 0], small.pos_embed[:, 0])


# Sparse -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('patch_size', [8, 14, 16])
def test_embedding_some_patches_equals_embedding_all(patch_size):
    vit = make_vit(patch_size)
    weights = {f'student.backbone.{name}': value
               for name, value in TIMM.from_ours(dict(vit.named_parameters())).items()}
    images = torch.randn(3, 3, 4 * patch_size, 4 * patch_size)
    indices = random_indices(3, 16, 5)
    tokens = vit.embed(images, indices)
    assert tokens.shape == (3, 6, 32)
    for row, image, chosen in zip(tokens, images, indices):
        patches = paper.embed_all(image, weights, 'student.backbone', patch_size)
        everything = torch.cat([vit.cls_token[0], patches]) + vit.pos_embed[0]
        torch.testing.assert_close(row[0], everything[0])
        torch.testing.assert_close(row[1:], everything[1:][chosen], rtol=1e-5, atol=1e-5)


def test_sparse_forward_on_all_patches_equals_the_dense_one():
    vit = make_vit(out_type='raw')
    images = torch.randn(2, 3, 64, 64)
    tokens, = vit.apply_final_norm(vit.encode([vit.embed(images, torch.arange(16).expand(2, -1))]))
    torch.testing.assert_close(tokens, vit(images)[-1], rtol=1e-5, atol=1e-5)


def test_encode_equals_the_oracle():
    vit = make_vit()
    groups = [torch.randn(3, 5, 32), torch.randn(2, 9, 32)]
    for ours, tokens in zip(vit.encode(groups, start=1, stop=3), groups):
        torch.testing.assert_close(ours, oracle_blocks(vit, tokens, (1, 2)), rtol=1e-5, atol=1e-5)


def test_two_halves_equal_the_whole():
    vit = make_vit()
    groups = [torch.randn(3, 5, 32), torch.randn(4, 2, 32)]
    halves = vit.encode(vit.encode(groups, stop=2), start=2)
    for half, whole in zip(halves, vit.encode(groups)):
        assert torch.equal(half, whole)


@pytest.mark.parametrize('qkv_bias', [True, False])
@pytest.mark.parametrize('drop_path_rate', [0., 0.3])
def test_wanted_outputs_equal_those_of_all_tokens(drop_path_rate, qkv_bias):
    """The last layer computes fewer tokens, with the same values, gradients and dropped rows."""
    vit = make_vit(training=True, drop_path_rate=drop_path_rate, qkv_bias=qkv_bias).double()
    groups = [torch.randn(*shape, 32, dtype=torch.double) for shape in ((6, 5), (9, 4), (3, 2))]
    results = []
    for outputs in (None, [2, 0, None]):
        torch.manual_seed(3)
        found = vit.encode(groups, outputs=outputs)
        if outputs is None:  # the plain way
            found = [found[0][:, [0, 3, 4]], found[1][:, :1], found[2]]
        vit.zero_grad()
        sum((x**3).sum() for x in found).backward()
        results.append([*found, *(p.grad.clone() for p in vit.layers.parameters())])
    for plain, fast in zip(*results):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


def test_groups_and_rows_do_not_see_each_other():
    vit = make_vit()
    first, second = torch.randn(3, 5, 32), torch.randn(4, 2, 32)
    together = vit.encode([first, second])
    for alone, packed in zip((first, second), together):
        torch.testing.assert_close(vit.encode([alone])[0], packed, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vit.encode([alone[1:2]])[0], packed[1:2], rtol=1e-5, atol=1e-5)


def test_the_order_of_tokens_does_not_matter():
    # what lets the mask tokens be appended instead of interleaved (Appendix A.3)
    vit, tokens = make_vit(), torch.randn(2, 7, 32)
    order = torch.tensor([0, 4, 2, 6, 1, 5, 3])
    torch.testing.assert_close(vit.encode([tokens[:, order]])[0], vit.encode([tokens])[0][:, order],
                               rtol=1e-5, atol=1e-5)


def test_hidden_pixels_change_nothing():
    vit = make_vit()
    images, indices = torch.randn(2, 3, 64, 64), random_indices(2, 16, 3)
    before = vit.encode([vit.embed(images, indices)])[0]
    for row, chosen in enumerate(indices.tolist()):
        for patch in set(range(16)) - set(chosen):
            top, left = patch // 4 * 16, patch % 4 * 16
            images[row, :, top:top + 16, left:left + 16] = torch.nan
    assert torch.equal(vit.encode([vit.embed(images, indices)])[0], before)


# Positions --------------------------------------------------------------------------------------


def test_positions_on_the_stored_grid_are_the_stored_ones():
    vit, indices = make_vit(), random_indices(3, 16, 4)
    expected = vit.pos_embed[0, 1:][indices]
    assert torch.equal(vit.positions(indices, (4, 4)), expected)


@pytest.mark.parametrize(('stored', 'grid'), [(28, 6), (4, 2), (4, 6)])
def test_positions_on_another_grid_are_the_references(stored, grid):
    vit = make_vit(img_size=16 * stored)
    everything = torch.arange(grid * grid).expand(1, -1)
    ours = vit.positions(everything, (grid, grid))[0]
    torch.testing.assert_close(ours, paper.positions(vit.pos_embed, grid)[1:], rtol=1e-5,
                               atol=1e-6)
    by_size = torch.nn.functional.interpolate(
        vit.pos_embed[:, 1:].unflatten(1, (stored, stored)).permute(0, 3, 1, 2),
        size=(grid, grid), mode='bicubic')[0].flatten(1).T
    assert (ours - by_size).abs().max() > 1e-3  # the +0.1 is not the size-based resize


def test_positions_of_a_rectangle():
    vit = make_vit()
    with torch.no_grad():  # a field of the column only: its rows must stay alike
        vit.pos_embed[0, 1:] = torch.arange(4.).repeat(4).unsqueeze(1)
    table = vit.positions(torch.arange(12).expand(1, -1), (2, 6))[0].reshape(2, 6, 32)
    torch.testing.assert_close(table[0], table[1])
    assert (table[0, :, 0].diff() > 0).all()


def test_positions_get_gradients_through_the_resize():
    vit = make_vit()
    vit.positions(torch.tensor([[0, 3]]), (2, 2)).sum().backward()
    assert vit.pos_embed.grad[0, 1:].any() and not vit.pos_embed.grad[0, 0].any()


# Stochastic depth -------------------------------------------------------------------------------


@pytest.mark.parametrize('branch', ['attn.proj', 'ffn.layers.1'])
@pytest.mark.parametrize(('rate', 'rows', 'kept'), [
    (0.3, 32, 22), (0.3, 128, 89), (0.3, 10, 7), (0.3, 2, 1), (0.3, 1, 1), (0.9, 4, 1)])
def test_stochastic_depth_runs_a_fixed_number_of_rows(branch, rate, rows, kept):
    vit = make_vit(arch=dict(ARCH, num_layers=1), drop_path_rate=rate)
    other = dict(zip(('attn.proj', 'ffn.layers.1'), ('ffn.layers.1', 'attn.proj')))[branch]
    with torch.no_grad():  # the other branch adds nothing
        layer = vit.layers[0].get_submodule(other)
        layer.weight.zero_()
        layer.bias.zero_()
    tokens = torch.randn(rows, 3, 32)
    update = vit.encode([tokens])[0] - tokens
    vit.train()
    dropped = vit.encode([tokens])[0] - tokens
    touched = dropped.flatten(1).any(1)
    assert touched.sum() == kept
    torch.testing.assert_close(dropped[touched], update[touched] * rows / kept, rtol=1e-4,
                               atol=1e-5)


def test_stochastic_depth_counts_in_each_group():
    vit = make_vit(arch=dict(ARCH, num_layers=1), drop_path_rate=0.3, training=True)
    with torch.no_grad():
        vit.layers[0].ffn.layers[1].weight.zero_()
        vit.layers[0].ffn.layers[1].bias.zero_()
    groups = [torch.randn(10, 3, 32), torch.randn(20, 2, 32)]
    touched = [int((after - before).flatten(1).any(1).sum())
               for before, after in zip(groups, vit.encode(groups))]
    assert touched == [7, 14]


def test_stochastic_depth_has_the_same_rate_in_every_layer():
    vit = make_vit(drop_path_rate=0.3, training=True)
    for layer in vit.layers:
        tokens = torch.randn(10, 3, 32)
        with torch.no_grad():
            layer.ffn.layers[1].weight.zero_()
            layer.ffn.layers[1].bias.zero_()
        after, = layer([tokens])
        assert (after - tokens).flatten(1).any(1).sum() == 7


def test_stochastic_depth_draws_anew():
    vit, tokens = make_vit(drop_path_rate=0.5, training=True), torch.randn(16, 3, 32)
    assert not torch.equal(vit.encode([tokens])[0], vit.encode([tokens])[0])


def test_no_stochastic_depth_in_evaluation():
    with_rate, without = make_vit(drop_path_rate=0.5), make_vit()
    without.load_state_dict(with_rate.state_dict())
    tokens = torch.randn(8, 3, 32)
    assert torch.equal(with_rate.encode([tokens])[0], without.encode([tokens])[0])


@pytest.mark.parametrize('branch', ['attn.proj', 'ffn.layers.1'])
def test_dense_stochastic_depth_drops_each_row_by_itself(branch):
    """A fixed count would drop one row of two at a rate of .1; here one of ten is dropped."""
    vit = make_vit(arch=dict(ARCH, num_layers=1), drop_path_rate=0.1)
    other = dict(zip(('attn.proj', 'ffn.layers.1'), ('ffn.layers.1', 'attn.proj')))[branch]
    with torch.no_grad():
        layer = vit.layers[0].get_submodule(other)
        layer.weight.zero_()
        layer.bias.zero_()
    tokens = torch.randn(2, 3, 32)
    update = vit.layers[0](tokens) - tokens
    vit.train()
    kept = 0
    for _ in range(300):
        dropped = vit.layers[0](tokens) - tokens
        touched = dropped.flatten(1).any(1)
        torch.testing.assert_close(dropped[touched], update[touched] / 0.9, rtol=1e-4, atol=1e-5)
        kept += int(touched.sum())
    assert 510 < kept < 570  # 540 expected, standard deviation 7.3


# Recomputation, copies, initial values, sizes ---------------------------------------------------


@pytest.mark.parametrize('drop_path_rate', [0., 0.3])
def test_recomputation_changes_no_gradient(drop_path_rate):
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(3)
        vit = make_vit(with_cp=with_cp, drop_path_rate=drop_path_rate, training=True)
        groups = [torch.randn(6, 5, 32, requires_grad=True), torch.randn(9, 2, 32)]
        sum((x**2).sum() for x in vit.encode(groups, outputs=[1, 0])).backward()
        gradients.append([groups[0].grad, *(p.grad for p in vit.layers.parameters())])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed)


def test_copies_are_independent():
    vit, images = make_vit(), torch.randn(1, 3, 64, 64)
    saved = io.BytesIO()
    torch.save(vit, saved)
    saved.seek(0)
    for twin in (copy.deepcopy(vit), torch.load(saved, weights_only=False)):
        assert torch.equal(twin(images)[-1], vit(images)[-1])
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr()
                                                               for p in vit.parameters()}


def test_initial_values_are_the_reference_ones():
    vit = PerAViT(arch=dict(embed_dims=128, num_layers=2, num_heads=2, feedforward_channels=256),
                  img_size=64)
    vit.init_weights()
    for name, parameter in vit.named_parameters():
        if name == 'cls_token':
            assert 0 < parameter.abs().max() < 1e-5
        elif name == 'pos_embed' or name.startswith('layers') and parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
        elif name == 'patch_embed.projection.weight':  # PyTorch's own: uniform, 1/sqrt(fan in)
            assert parameter.abs().max() <= 1 / 768**0.5
            assert parameter.std().item() == pytest.approx((3 * 768)**-0.5, rel=0.05)
        elif 'ln' in name and name.endswith('weight'):
            assert (parameter == 1).all(), name
        elif not name.startswith('patch_embed'):
            assert not parameter.any(), name


def test_positions_can_start_as_sines():
    vit = PerAViT(arch=ARCH, img_size=(64, 96), sine_positions=.25)
    vit.init_weights()
    assert vit.cls_token.abs().max() < 1e-5
    table = vit.pos_embed[0, 1:]
    assert table.std().item() == pytest.approx(.25, rel=1e-5) and vit.pos_embed.requires_grad
    planes = table.detach().unflatten(0, (4, 6))  # rows, columns
    halves = planes[..., :16], planes[..., 16:]  # of one axis each
    along = [[not torch.allclose(half.diff(dim=axis), torch.zeros(())) for half in halves]
             for axis in (0, 1)]
    assert sorted(along) == [[False, True], [True, False]]
    omega = 10000**(-torch.arange(8) / 8)
    columns = torch.arange(6)[:, None] * omega
    wanted = torch.cat([columns.sin(), columns.cos()], dim=1)
    found = next(half for half, moves in zip(halves, along[1]) if moves)[0]
    torch.testing.assert_close(found / found[0, 8], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', [
    PerAViT, MimeticMoCoV3ViT,
    partial(MimeticMAEViT, init_cfg=dict(type='Xavier', layer='Linear')),  # as MAE's model does
], ids=['PerA', 'MoCo v3', 'MAE'])
def test_attention_can_start_as_in_trained_vits(kind):
    vit = kind(arch=ARCH, img_size=64, patch_size=16, mimetic=dict(query_key=3., value_output=.2))
    vit.init_weights()
    x, y = torch.randn(2, 7, vit.embed_dims)
    for layer in vit.layers:
        attention = layer.attn
        assert not attention.qkv.bias.any() and not attention.proj.bias.any()
        queries, _, values = attention.qkv(x).chunk(3, dim=1)
        _, keys, _ = attention.qkv(y).chunk(3, dim=1)
        width = attention.head_dims
        found = []
        for head in range(attention.num_heads):
            rows = attention.qkv.weight[head * width:(head + 1) * width].detach()
            torch.testing.assert_close(rows @ rows.T, 3. * torch.eye(width))
            projection = rows.T @ rows  # 3 times that on the head's subspace
            logits = [z[:, head * width:(head + 1) * width] for z in (queries, keys)]
            torch.testing.assert_close(logits[0] @ logits[1].T, x @ projection @ y.T)
            found.append(projection)
        assert not torch.allclose(found[0], found[1])  # each head has its own
        torch.testing.assert_close(attention.proj(values), -.2 * x)
    assert not torch.allclose(vit.layers[0].attn.qkv.weight, vit.layers[1].attn.qkv.weight)


@pytest.mark.parametrize(('arch', 'layers', 'count'), [
    ('base', 12, 86_250_240), ('pera-g', 40, 505_443_328), ('tiny', 12, None), ('small', 12, None),
    ('large', 24, None)])
def test_sizes(arch, layers, count):
    with torch.device('meta'):
        vit = PerAViT(arch)
    dim, hidden = vit.embed_dims, 4 * vit.embed_dims
    norms, attention, mlp = 4 * dim, 4 * dim * (dim + 1), 2 * dim * hidden + hidden + dim
    embedding, final_norm = (768 + 1) * dim + (1 + 785) * dim, 2 * dim
    expected = layers * (norms + attention + mlp) + embedding + final_norm
    assert sum(p.numel() for p in vit.parameters()) == (count or expected) == expected
    assert len(vit.layers) == layers
    assert len(vit.state_dict()) == 12 * layers + 6
    assert vit.layers[0].attn.num_heads == dim // 64


@pytest.mark.parametrize(('kwargs', 'words'), [
    (dict(arch='huge-g'), ['huge-g', 'tiny', 'small', 'base', 'large', 'pera-g']),
    (dict(arch=dict(embed_dims=32, num_layers=2)), ['feedforward_channels', 'num_heads']),
    (dict(arch=dict(ARCH, num_heads=3)), ['32', '3', 'divisible']),
    (dict(arch=ARCH, img_size=96, patch_size=14), ['96', '14', '98']),
    (dict(arch=ARCH, drop_path_rate=1.), ['drop_path_rate', '[0, 1)']),
    (dict(arch=ARCH, drop_path_rate=-0.1), ['drop_path_rate', '-0.1']),
    (dict(arch=ARCH, sine_positions=0.), ['sine_positions', 'above 0', 'leave it out']),
    (dict(arch=dict(ARCH, embed_dims=30), sine_positions=.2), ['4 divides', 'embed_dims=30']),
    (dict(arch=ARCH, mimetic=dict(query_key=1.)), ['query_key and value_output', "{'query_key'"]),
    (dict(arch=ARCH, mimetic=dict(query_key=0., value_output=.2)),
     ['query_key', 'above 0', 'leave mimetic out']),
    (dict(arch=ARCH, drop_rate=0.1), ['drop_rate=0.1', 'no token dropout']),
    (dict(arch=ARCH, final_norm=False), ['final_norm=False', 'needs the final norm']),
    (dict(arch='base', frozen_stages=40), ['frozen_stages=40', '12 freezes the whole']),
    (dict(arch=ARCH, with_cls_token=False, out_type='raw'), ['with_cls_token=False', '[cls]']),
])
def test_bad_settings_fail_with_a_sentence(kwargs, words):
    with pytest.raises(ValueError) as error:
        PerAViT(**kwargs)
    for word in words:
        assert word in str(error.value)


def test_registered():
    assert MODELS.get('pera_mm.PerAViT') is PerAViT
