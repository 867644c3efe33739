"""Projector and predictor."""

import copy
import io
import math

import pytest
import torch
from reference import paper

from pera_mm.models.heads.pixel_head import MLPPixelHead, PixelHead
from pera_mm.models.heads.prototype_head import PrototypeHead
from pera_mm.registry import MODELS


def prototype_head() -> PrototypeHead:
    head = PrototypeHead(32, num_prototypes=64, hidden_channels=48, bottleneck_channels=24)
    with torch.no_grad():  # lengths other than 1, biases other than 0
        for name, parameter in head.named_parameters():
            if name.endswith(('weight_g', 'bias')):
                parameter.normal_(std=0.5)
    return head


def pixel_head() -> PixelHead:
    return PixelHead(32, patch_size=14, hidden_channels=48, bottleneck_channels=24)


def oracle(head: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return paper.head(tokens, dict(head.named_parameters()), 'mlp', 'last_layer')


def num_parameters(head: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in head.parameters())


@pytest.mark.parametrize('make', [prototype_head, pixel_head])
def test_output_and_gradients_equal_the_oracle(make):
    head, tokens = make(), torch.randn(2, 5, 32)
    parameters = list(head.parameters())
    ours = head(tokens)
    expected = oracle(head, tokens)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(ours)
    gradients = torch.autograd.grad((ours * weight).sum(), parameters)
    wanted = torch.autograd.grad((expected * weight).sum(), parameters)
    for (name, _), gradient, want in zip(head.named_parameters(), gradients, wanted):
        assert (gradient - want).norm() <= 1e-5 * want.norm(), name


def test_shapes():
    assert prototype_head()(torch.randn(7, 32)).shape == (7, 64)
    assert prototype_head()(torch.randn(2, 7, 32)).shape == (2, 7, 64)
    assert pixel_head()(torch.randn(2, 7, 32)).shape == (2, 7, 14 * 14 * 3)


def test_scores_are_cosines_times_g():
    head = pixel_head()
    with torch.no_grad():
        assert head(100 * torch.randn(50, 32)).abs().max() <= 1 + 1e-6
        head.last_layer.weight_g.fill_(3.)
        v = head.last_layer.weight_v
        embedding = torch.nn.functional.normalize(head.mlp(torch.ones(1, 32)), dim=-1)
        along = torch.nn.functional.cosine_similarity(embedding, v, dim=-1)
        torch.testing.assert_close(head(torch.ones(1, 32))[0], 3 * along, rtol=1e-5, atol=1e-6)


def test_the_length_of_v_does_not_matter():
    head, tokens = prototype_head(), torch.randn(4, 32)
    before = head(tokens)
    with torch.no_grad():
        head.last_layer.weight_v.mul_(torch.rand(64, 1) * 10 + 0.1)
    torch.testing.assert_close(head(tokens), before, rtol=1e-5, atol=1e-6)


def test_initial_values_are_the_reference_ones():
    head = PrototypeHead(64, num_prototypes=512, hidden_channels=256, bottleneck_channels=100)
    for layer in (0, 2, 4):
        assert head.mlp[layer].weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not head.mlp[layer].bias.any()
    v, g = head.last_layer.weight_v, head.last_layer.weight_g
    assert v.abs().max() <= 1 / math.sqrt(100)
    assert v.std().item() == pytest.approx(1 / math.sqrt(300), rel=0.05)  # uniform
    assert g.shape == (512, 1) and (g == 1).all() and g.requires_grad


def test_state_dict_names():
    names = {f'mlp.{layer}.{kind}' for layer in (0, 2, 4) for kind in ('weight', 'bias')}
    names |= {'last_layer.weight_v', 'last_layer.weight_g'}
    assert set(prototype_head().state_dict()) == names
    assert set(pixel_head().state_dict()) == names


@pytest.mark.parametrize('after_forward', [False, True])
def test_copies_work(after_forward):
    head, tokens = prototype_head(), torch.randn(3, 32)
    if after_forward:
        head(tokens).sum().backward()
    saved = io.BytesIO()
    torch.save(head, saved)
    saved.seek(0)
    for twin in (copy.deepcopy(head), torch.load(saved, weights_only=False)):
        assert torch.equal(twin(tokens), head(tokens))
        with torch.no_grad():
            twin.last_layer.weight_g.zero_()
        assert head(tokens).any()


@pytest.mark.parametrize(('dim', 'count'), [(768, 57_020_800), (1024, 57_545_088)])
def test_prototype_head_has_the_parameters_of_the_reference(dim, count):
    with torch.device('meta'):
        assert num_parameters(PrototypeHead(dim)) == count


@pytest.mark.parametrize(('dim', 'count'), [(768, 6_853_760), (1024, 7_378_048)])
def test_pixel_head_has_the_parameters_of_the_reference(dim, count):
    with torch.device('meta'):
        assert num_parameters(PixelHead(dim, patch_size=16)) == count


def test_autocast_keeps_scores_in_float():
    head, tokens = prototype_head(), torch.randn(4, 32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        scores = head(tokens)
    assert scores.isfinite().all()
    torch.testing.assert_close(scores.float(), head(tokens), rtol=0.1, atol=0.05)


def test_the_plain_head_reaches_any_pixel():
    head = MLPPixelHead(32, patch_size=4, hidden_channels=24)
    tokens, target = torch.randn(2, 7, 32), 3 * torch.randn(48)
    with torch.no_grad():
        hidden = torch.nn.functional.gelu(tokens @ head.hidden.weight.T + head.hidden.bias)
        expected = hidden @ head.output.weight.T + head.output.bias
        torch.testing.assert_close(head(tokens), expected)
        head.output.weight.zero_()
        head.output.bias.copy_(target)
    assert torch.equal(head(tokens), target.expand(2, 7, 48))


@pytest.mark.parametrize('name', ['PrototypeHead', 'PixelHead', 'MLPPixelHead'])
def test_registered(name):
    assert MODELS.get(f'pera_mm.{name}').__name__ == name
