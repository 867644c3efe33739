"""The attention of [cls]: against plain loops, in any layer and shape, and where its mass lies."""

import math

import torch

from pera_mm.evaluation.attention import cls_attention, strongest


def test_it_equals_that_of_the_layer_computed_by_loops(model, images):
    backbone = model.teacher.backbone
    torch.nn.init.normal_(backbone.layers[-1].attn.qkv.weight, std=0.5)  # not uniform
    normalized = model.data_preprocessor.normalize(images)
    maps = cls_attention(backbone, normalized)[0]
    assert maps.shape == (2, 2, 4, 4)
    inputs = []
    handle = backbone.layers[-1].ln1.register_forward_hook(lambda m, a, out: inputs.append(out))
    model.teacher_features(normalized)
    handle.remove()
    tokens = inputs[0].reshape(2, 17, 32)
    weight, bias = backbone.layers[-1].attn.qkv.weight, backbone.layers[-1].attn.qkv.bias
    for image in range(2):
        for head in range(2):
            rows = slice(16 * head, 16 * head + 16)
            query = tokens[image, 0] @ weight[:32][rows].T + bias[:32][rows]
            scores = []
            for token in tokens[image]:
                key = token @ weight[32:64][rows].T + bias[32:64][rows]
                scores.append(math.exp(float(query @ key) / 4))  # sqrt(16 channels)
            expected = torch.tensor(scores[1:]) / sum(scores)
            torch.testing.assert_close(maps[image, head].flatten(), expected)


def test_layers_are_those_asked_for_in_their_order_and_nothing_stays_hooked(model):
    vit = model.teacher.backbone
    for layer in vit.layers:
        torch.nn.init.normal_(layer.attn.qkv.weight, std=0.5)
    normalized = torch.randn(3, 3, 32, 80)
    maps = cls_attention(vit, normalized, [3, 0, 1])
    assert maps.shape == (3, 3, 2, 2, 5)
    for number, layer in enumerate((3, 0, 1)):
        assert torch.equal(maps[number], cls_attention(vit, normalized, [layer])[0])
    assert torch.equal(maps[0], cls_attention(vit, normalized)[0])
    assert not torch.allclose(maps[1], maps[2])
    assert not any(layer.attn.qkv._forward_hooks for layer in vit.layers)


def test_the_strongest_are_as_few_as_hold_the_share():
    attention = torch.tensor([[0.1, 0.4], [0.2, 0.3]])
    assert strongest(attention, 0.4).tolist() == [[False, True], [False, False]]
    assert strongest(attention, 0.41).tolist() == [[False, True], [False, True]]
    assert strongest(attention, 0.71).tolist() == [[False, True], [True, True]]
    assert strongest(attention, 1.).all()


def test_the_strongest_are_dinos_for_every_map():
    """DINO drops the weakest as long as their sum is at most 1 - share."""
    maps = torch.rand(4, 3, 6, 5).double()
    for attention, chosen in zip(maps.flatten(0, 1), strongest(maps, 0.6).flatten(0, 1)):
        total, dropped = attention.sum(), 0.
        for value, index in zip(*attention.flatten().sort()):
            dropped += value / total
            assert bool(chosen.flatten()[index]) == bool(dropped > 0.4)
