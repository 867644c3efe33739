"""Sampling by gathers, the form that exported graphs have: the same numbers as grid_sample."""

import pytest
import torch
from torch import Tensor

from pera_mm.models.backbones.deform_attn import (
    DeformableAttention,
    sample_levels,
    sample_levels_by_gathers,
)

SHAPES = {'square': [(8, 8)], 'three levels': [(16, 12), (8, 6), (4, 3)], 'rows': [(1, 7), (5, 1)]}
TOLERANCE = dict(rtol=0, atol=1e-5)


def inputs(shapes: list[tuple[int, int]], low: float, high: float) -> list[Tensor]:
    """Values, locations between ``low`` and ``high``, and weights of 2 images, 3 heads, 5 points.

    The places of the last two queries are exact: on corners, centers and edges of pixels.
    """
    generator = torch.Generator().manual_seed(0)
    size = sum(height * width for height, width in shapes)
    value = torch.randn(2, size, 3, 4, generator=generator)
    locations = torch.empty(2, 9, 3, len(shapes), 5, 2).uniform_(low, high, generator=generator)
    locations[:, -1], locations[:, -2] = 0.5, torch.tensor([0., 1.])
    weights = torch.rand(2, 9, 3, len(shapes), 5, generator=generator)
    return [x.requires_grad_() for x in (value, locations, weights / weights.sum((3, 4), True))]


@pytest.mark.parametrize('shapes', SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(('low', 'high'), [(0, 1), (-0.3, 1.3), (-1e6, 1e6)])
def test_values_and_gradients_are_those_of_grid_sample(shapes, low, high):
    results = []
    for sample in (sample_levels, sample_levels_by_gathers):
        tensors = inputs(shapes, low, high)
        out = sample(tensors[0], shapes, *tensors[1:])
        grads = torch.autograd.grad(out.square().sum(), tensors)
        results.append((out, *grads))
    for expected, found in zip(*results):
        scale = expected.abs().max().clamp(min=1)  # gradients of a location: times a level's side
        torch.testing.assert_close(found / scale, expected / scale, **TOLERANCE)


def test_outside_is_zero_and_a_center_is_its_token():
    value = torch.arange(1., 5).reshape(1, 4, 1, 1)  # 1 2 / 3 4
    places = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5], [0., 0.], [2., 0]])
    found = sample_levels_by_gathers(value, [(2, 2)], places.reshape(1, 6, 1, 1, 1, 2),
                                     torch.ones(1, 6, 1, 1, 1))
    assert found.flatten().tolist() == [1, 2, 3, 2.5, 0.25, 0]


def attention() -> DeformableAttention:
    torch.manual_seed(0)
    module = DeformableAttention(8, num_heads=2, num_levels=2, value_ratio=0.5)
    torch.nn.init.normal_(module.sampling_offsets.weight)
    return module.eval()


def test_a_module_that_samples_by_gathers_gives_the_same():
    module, shapes = attention(), [(4, 6), (2, 3)]
    arguments = torch.randn(2, 5, 8), torch.rand(5, 2), torch.randn(2, 30, 8), shapes
    expected = module(*arguments)
    module.by_gathers = True
    torch.testing.assert_close(module(*arguments), expected, **TOLERANCE)


@pytest.mark.parametrize('by_gathers', [True, False])
def test_only_gathers_leave_no_grid_sample_in_an_exported_graph(by_gathers):
    module, shapes = attention(), ((4, 6), (2, 3))
    module.by_gathers = by_gathers
    arguments = torch.randn(2, 5, 8), torch.rand(5, 2), torch.randn(2, 30, 8), shapes
    batch = torch.export.Dim('batch')
    program = torch.export.export(module, arguments, dynamic_shapes=(
        {0: batch}, None, {0: batch}, ((None, None), (None, None))))
    targets = {str(node.target) for node in program.graph.nodes}
    assert ('aten.grid_sampler.default' in targets) is not by_gathers
    three = torch.randn(3, 5, 8), arguments[1], torch.randn(3, 30, 8), shapes
    torch.testing.assert_close(program.module()(*three), module(*three), **TOLERANCE)
