"""A start of attention that a small ViT learns faster from than from small random weights.

Shapes: D embedding width, h heads of d = D / h channels.
"""

import math
from typing import Any

import torch
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.selfsup import MAEViT, MoCoV3ViT
from mmpretrain.models.utils import MultiheadAttention
from torch import nn

from pera_mm.errors import UserError
from pera_mm.registry import MODELS

STRENGTHS = {'query_key', 'value_output'}


def check_mimetic(strengths: dict[str, float]) -> None:
    """Check the arguments of :func:`start_mimetically`.

    Raises:
        ValueError: unless both are there, finite and above 0.
    """
    if set(strengths) != STRENGTHS:
        raise UserError(f'mimetic is a dict with {" and ".join(sorted(STRENGTHS))}, not '
                        f'{strengths}.')
    for name, strength in strengths.items():
        if not 0 < strength < math.inf:
            raise UserError(f'mimetic: {name} is a strength above 0, not {strength}; leave mimetic '
                            'out for small random weights.')


@torch.no_grad()
def start_mimetically(attention: MultiheadAttention, query_key: float,
                      value_output: float) -> None:
    """Let tokens attend to those like themselves, and subtract a share of what they find.

    Trained ViTs look like that (Trockman and Kolter 2023, Mimetic initialization of self-attention
    layers, section 3, here without its random part). In every head, with orthonormal rows R of its
    own::

        W_query = W_key = sqrt(query_key) * R              [d, D]
        W_value = sqrt(value_output) * O                   [D, D], O orthogonal
        W_output = -sqrt(value_output) * O^T               so that W_output W_value = -value_output

    With positions as large as the content (``sine_positions``), tokens like oneself are those
    nearby. Biases stay as they are.

    Args:
        attention: of a layer; its weights are overwritten.
        query_key: strength of the first product.
        value_output: strength of the second.
    """
    query, key, value = attention.qkv.weight.chunk(3)
    for rows in range(0, attention.embed_dims, attention.head_dims):
        head = slice(rows, rows + attention.head_dims)
        nn.init.orthogonal_(query[head], query_key**.5)
        key[head] = query[head]
    nn.init.orthogonal_(value, value_output**.5)
    attention.proj.weight.copy_(-value.T)


class MimeticStart(VisionTransformer):
    """A ViT of MMPretrain with the attention of :func:`start_mimetically`.

    Its subclasses are the baselines of a PerA whose attention starts so.

    Args:
        mimetic: the strengths ``query_key`` and ``value_output``.
        **kwargs: arguments of MMPretrain's class.

    Raises:
        ValueError: as :func:`check_mimetic`.
    """

    def __init__(self, mimetic: dict[str, float], **kwargs: Any) -> None:
        check_mimetic(mimetic)
        super().__init__(**kwargs)
        self.mimetic = mimetic

    def init_weights(self) -> None:
        """Draw all weights as MMPretrain's class, then those of the attention anew."""
        super().init_weights()
        for layer in self.layers:
            start_mimetically(layer.attn, **self.mimetic)


@MODELS.register_module()
class MimeticMoCoV3ViT(MimeticStart, MoCoV3ViT):
    """The ViT of MoCo v3 with the start of :class:`MimeticStart`."""


@MODELS.register_module()
class MimeticMAEViT(MimeticStart, MAEViT):
    """The encoder of MAE with the start of :class:`MimeticStart`."""
