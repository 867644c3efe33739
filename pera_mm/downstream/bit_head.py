"""BIT, the bitemporal image transformer (Chen, Qi, Shi 2021), and its neck for an adapter.

A few semantic tokens summarize each date. An encoder relates the tokens of both dates, and a
decoder writes them back into every pixel. The change is read from the absolute difference of the
two refined maps.

Shapes: B pairs, D channels of a backbone, C = 32 channels of BIT, L = 4 tokens of a date,
h x w pixels of a map at stride 4.
"""

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils.wrappers import Upsample
from torch import Tensor, nn
from torch.nn import functional as F

from pera_mm.registry import MODELS


@MODELS.register_module()
class PairNeck(BaseModule):
    """A neck that joins an adapter's maps of both dates into the one map that BIT takes.

    BIT reads one map of a ResNet with 256 channels; an adapter gives four maps of D. Every map
    passes a 1 x 1 convolution to 256 channels, and the results are summed at stride 4. The head
    stays as it is.
    Bilinear resizing commutes with a 1 x 1 convolution, so this equals one convolution over the
    four maps resized and concatenated, in a sixteenth of its memory for D = 1024.

    The toolboxes' own ``input_transform='resize_concat'`` cannot do this: both heads
    cut its result in two halves, which would then be two strides each, not one date each.

    Args:
        in_channels: D.
        out_channels: Channels of one date.
        num_maps: Maps of the backbone.
        init_cfg: As in every MMEngine module.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_maps: int = 4,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.laterals = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, 1) for _ in range(num_maps))

    def forward(self, before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Join the maps of both dates.

        Args:
            before: ``[B, D, h, w]`` at rising strides, of the first date.
            after: The same, of the second date.

        Returns:
            One map ``[B, 2 * out_channels, h, w]``, the first date's channels first.
        """
        return (torch.cat([self._merge(before), self._merge(after)], dim=1),)

    def _merge(self, maps: tuple[Tensor, ...]) -> Tensor:
        size = maps[0].shape[2:]
        merged = self.laterals[0](maps[0])
        for lateral, coarse in zip(self.laterals[1:], maps[1:]):
            merged = merged + F.interpolate(
                lateral(coarse), size, mode='bilinear', align_corners=False)
        return merged


class TokenAttention(nn.Module):
    """A multi-head attention of ``queries`` to ``sources``; it scales logits by ``C ** -0.5``.

    Args:
        channels: C of queries, sources and result.
        embed_dims: Channels of queries, keys and values, over all heads.
        num_heads: Heads.
    """

    def __init__(self, channels: int, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = channels**-0.5
        self.to_q = nn.Linear(channels, embed_dims, bias=False)
        self.to_k = nn.Linear(channels, embed_dims, bias=False)
        self.to_v = nn.Linear(channels, embed_dims, bias=False)
        self.fc_out = nn.Sequential(nn.Linear(embed_dims, channels))

    def forward(self, queries: Tensor, sources: Tensor) -> Tensor:
        """Map ``[B, N, C]`` and ``[B, M, C]`` to ``[B, N, C]``."""
        q, k, v = (
            project(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, N, d]
            for project, x in (
                (self.to_q, queries), (self.to_k, sources), (self.to_v, sources)))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.fc_out(mixed.transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    """A layer of attention and MLP, each after its norm."""

    def __init__(self, channels: int, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        self.attn = TokenAttention(channels, embed_dims, num_heads)
        # The identity keeps the numbering of Open-CD, which has a dropout there; BIT uses none.
        self.ff = nn.Sequential(
            nn.Linear(channels, embed_dims), nn.ReLU(), nn.Identity(),
            nn.Linear(embed_dims, channels))
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)

    def _attend(self, queries: Tensor, sources: Tensor) -> Tensor:
        """Attend to ``sources``, which are normed already."""
        queries = queries + self.attn(self.norm1(queries), sources)
        return queries + self.ff(self.norm2(queries))


class EncoderLayer(_Layer):
    """A layer in which the tokens of both dates attend to each other."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``[B, 2L, C]`` to the same shape."""
        return self._attend(tokens, self.norm1(tokens))


class DecoderLayer(_Layer):
    """A layer in which the pixels of a date attend to its tokens."""

    def __init__(self, channels: int, embed_dims: int, num_heads: int) -> None:
        super().__init__(channels, embed_dims, num_heads)
        self.norm1_ = nn.LayerNorm(channels)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Map ``[B, h*w, C]`` and ``[B, L, C]`` to ``[B, h*w, C]``."""
        return self._attend(pixels, self.norm1_(tokens))


@MODELS.register_module()
class BITHead(BaseDecodeHead):
    """The head of BIT, with the parameters of Open-CD's head of the same name.

    Names and shapes are Open-CD's, so one state dict loads strictly into both and gives the same
    maps. This decides all that the BIT paper leaves open or its authors' code does differently: a
    ReLU on the attention maps of the tokenizer, a bias and no normalization in the convolutions, 64
    and not 512 channels in the encoder's attention, and a 1 x 1 convolution as classifier.

    The difference is absolute, so an exchange of the dates changes the result only through the
    encoder's position embedding, whose first L rows belong to the first date. If its halves are
    exchanged as well, the map is the same.

    Args:
        in_channels: Channels of one date in the map of the neck.
        channels: C.
        token_len: L.
        embed_dims: Channels inside attention and MLP.
        enc_depth: Encoder layers.
        dec_depth: Decoder layers.
        num_heads: Heads.
        pre_upsample: The factor that enlarges the neck's map first. BIT works at stride 4 and
            doubles the stride-8 map of its ResNet; behind an adapter it is 1.
        upsample_size: The factor that enlarges the difference, here from stride 4 to the image.
        **kwargs: As in every MMSegmentation head: ``num_classes``, ``loss_decode`` ...
    """

    def __init__(
        self,
        in_channels: int = 256,
        channels: int = 32,
        token_len: int = 4,
        embed_dims: int = 64,
        enc_depth: int = 1,
        dec_depth: int = 8,
        num_heads: int = 8,
        pre_upsample: int = 1,
        upsample_size: int = 4,
        **kwargs: object,
    ) -> None:
        super().__init__(in_channels, channels, **kwargs)
        grow = dict(mode='bilinear', align_corners=self.align_corners)
        width = (channels, embed_dims, num_heads)
        self.pre_process = nn.Sequential(
            Upsample(scale_factor=pre_upsample, **grow),
            ConvModule(in_channels, channels, 3, padding=1))
        self.conv_att = ConvModule(channels, token_len, 1)
        self.enc_pos_embedding = nn.Parameter(torch.randn(1, 2 * token_len, channels))
        self.encoder = nn.ModuleList(EncoderLayer(*width) for _ in range(enc_depth))
        self.decoder = nn.ModuleList(DecoderLayer(*width) for _ in range(dec_depth))
        self.upsample = Upsample(scale_factor=upsample_size, **grow)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Compute the logits of change.

        Args:
            inputs: The neck's map ``[B, 2 * in_channels, h, w]``, the first date first.

        Returns:
            ``[B, num_classes, 4h, 4w]``.
        """
        dates = torch.cat(self._transform_inputs(inputs).chunk(2, dim=1))  # [2B, in, h, w]
        maps = self.pre_process(dates)  # [2B, C, h, w]
        tokens = self.encode_tokens(self.tokenize(maps))  # [2B, L, C]
        pixels = maps.flatten(2).transpose(1, 2)  # [2B, h*w, C]
        for layer in self.decoder:
            pixels = layer(pixels, tokens)
        before, after = pixels.transpose(1, 2).reshape(maps.shape).unflatten(0, (2, -1))
        return self.cls_seg(self.upsample((before - after).abs()))

    def tokenize(self, maps: Tensor) -> Tensor:
        """Average every map ``[2B, C, h, w]`` under L spatial attention maps: ``[2B, L, C]``."""
        attention = self.conv_att(maps).flatten(2).softmax(dim=2)  # [2B, L, h*w]
        return attention @ maps.flatten(2).transpose(1, 2)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Encode the 2L tokens of every pair: ``[2B, L, C]`` to the same shape."""
        both = torch.cat(tuple(tokens.unflatten(0, (2, -1))), dim=1)  # [B, 2L, C]
        both = both + self.enc_pos_embedding
        for layer in self.encoder:
            both = layer(both)
        return torch.cat(both.chunk(2, dim=1))
