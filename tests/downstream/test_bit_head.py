"""BIT against the same equations as loops over tokens and pixels."""

import pytest
import torch
from mmengine.registry import init_default_scope
from torch import Tensor
from torch.nn import functional as F

import pera_mm  # noqa: F401  before mmseg: it supplies the operators of mmcv
from pera_mm.downstream.bit_head import BITHead, PairNeck

TOKENS, CHANNELS, HEADS = 3, 8, 2


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope('mmseg')


@pytest.fixture
def head(scope: None) -> BITHead:
    head = BITHead(in_channels=5, channels=CHANNELS, token_len=TOKENS, embed_dims=6, enc_depth=2,
                   dec_depth=2, num_heads=HEADS, num_classes=2, dropout_ratio=0)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head.double().eval()


def slow_attention(layer: torch.nn.Module, queries: list[Tensor],
                   sources: list[Tensor]) -> list[Tensor]:
    """One query, one head, one source at a time."""
    out = []
    for query in queries:
        heads = []
        for q, keys, values in zip(
                layer.to_q(query).chunk(HEADS),
                zip(*[layer.to_k(source).chunk(HEADS) for source in sources]),
                zip(*[layer.to_v(source).chunk(HEADS) for source in sources])):
            weights = [torch.exp((q * k).sum() / CHANNELS**0.5) for k in keys]
            heads.append(sum(w * v for w, v in zip(weights, values)) / sum(weights))
        out.append(layer.fc_out(torch.cat(heads)))
    return out


def slow_layer(layer: torch.nn.Module, queries: list[Tensor], sources: list[Tensor]
               ) -> list[Tensor]:
    attended = slow_attention(layer.attn, [layer.norm1(query) for query in queries], sources)
    queries = [query + change for query, change in zip(queries, attended)]
    return [query + layer.ff(layer.norm2(query)) for query in queries]


def slow_bit(head: BITHead, before: Tensor, after: Tensor) -> Tensor:
    """``[in, h, w]`` of one pair to ``[classes, 4h, 4w]``."""
    pixels, tokens = [], []
    for date in (before, after):
        map_ = F.conv2d(date[None], head.pre_process[1].conv.weight, head.pre_process[1].conv.bias,
                        padding=1)[0].relu()
        places = [map_[:, y, x] for y in range(map_.shape[1]) for x in range(map_.shape[2])]
        conv = head.conv_att.conv
        for token in range(TOKENS):
            scores = [(conv.weight[token, :, 0, 0] @ place + conv.bias[token]).relu().exp()
                      for place in places]
            tokens.append(sum(s * place for s, place in zip(scores, places)) / sum(scores))
        pixels.append(places)
    tokens = [token + place for token, place in zip(tokens, head.enc_pos_embedding[0])]
    for layer in head.encoder:
        tokens = slow_layer(layer, tokens, [layer.norm1(token) for token in tokens])
    for layer in head.decoder:
        own = [[layer.norm1_(token) for token in part]
               for part in (tokens[:TOKENS], tokens[TOKENS:])]
        pixels = [slow_layer(layer, places, part) for places, part in zip(pixels, own)]
    first, second = (torch.stack(places, dim=1).view(CHANNELS, *before.shape[1:])
                     for places in pixels)
    difference = F.interpolate((first - second).abs()[None], scale_factor=4, mode='bilinear')
    return F.conv2d(difference, head.conv_seg.weight, head.conv_seg.bias)[0]


def test_head_is_the_paper_written_as_loops(head):
    maps = torch.randn(2, 10, 3, 4, dtype=torch.float64)
    expected = torch.stack([slow_bit(head, *pair.chunk(2)) for pair in maps])
    assert expected.std() > 0.1
    torch.testing.assert_close(head((maps,)), expected)


def test_pre_upsample_enlarges_the_map_before_bit(head):
    maps = torch.randn(1, 10, 3, 4, dtype=torch.float64)
    head.pre_process[0].scale_factor = 2.0
    enlarged = F.interpolate(maps, scale_factor=2, mode='bilinear')
    expected = slow_bit(head, *enlarged[0].chunk(2))
    torch.testing.assert_close(head((maps,))[0], expected)


def test_exchanged_dates_with_exchanged_position_embedding_give_the_same_map(head):
    before, after = torch.randn(2, 1, 5, 4, 4, dtype=torch.float64)
    forth = head((torch.cat([before, after], 1),))
    with torch.no_grad():
        head.enc_pos_embedding.copy_(head.enc_pos_embedding.roll(TOKENS, 1))
    torch.testing.assert_close(head((torch.cat([after, before], 1),)), forth)
    assert (head((torch.cat([before, after], 1),)) - forth).abs().max() > 1e-3


def test_without_a_difference_there_is_no_change_wherever_the_dates_look_alike(head):
    same = torch.randn(1, 5, 4, 4, dtype=torch.float64).repeat(1, 2, 1, 1)
    assert head((same,)).std() > 1e-3  # the position embedding tells the dates apart
    with torch.no_grad():
        head.enc_pos_embedding[:, TOKENS:] = head.enc_pos_embedding[:, :TOKENS]
    expected = head.conv_seg.bias[:, None, None].expand(2, 16, 16)
    torch.testing.assert_close(head((same,))[0], expected)


def test_every_parameter_of_head_and_neck_gets_a_gradient():
    neck = PairNeck(in_channels=6, out_channels=16)
    head = BITHead(in_channels=16, num_classes=2, dropout_ratio=0)
    dates = [tuple(torch.randn(2, 6, 16 // s, 16 // s) for s in (1, 2, 4, 8)) for _ in range(2)]
    head(neck(*dates)).square().mean().backward()
    without = [name for module in (neck, head) for name, parameter in module.named_parameters()
               if parameter.grad is None or not parameter.grad.abs().max() > 0]
    assert without == []


def test_neck_is_one_convolution_over_the_resized_and_joined_maps():
    neck = PairNeck(in_channels=3, out_channels=4).double()
    before, after = [tuple(torch.randn(2, 3, h, w, dtype=torch.float64)
                           for h, w in ((9, 13), (5, 7), (3, 4), (2, 2))) for _ in range(2)]
    joined, = neck(before, after)
    weight = torch.cat([lateral.weight for lateral in neck.laterals], dim=1)
    bias = sum(lateral.bias for lateral in neck.laterals)
    for half, maps in zip(joined.chunk(2, dim=1), (before, after)):
        resized = torch.cat([F.interpolate(x, (9, 13), mode='bilinear') for x in maps], dim=1)
        torch.testing.assert_close(half, F.conv2d(resized, weight, bias))
