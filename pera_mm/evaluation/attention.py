"""What [cls] attends to (paper, figure 4a).

Shapes: B images, h x w patches of an image, L layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def cls_attention(vit: nn.Module, normalized: Tensor, layers: Sequence[int] = (-1, )) -> Tensor:
    """Compute the attention of [cls] to each patch.

    Args:
        vit: a :class:`~pera_mm.models.backbones.pera_vit.PerAViT`.
        normalized: float ``[B, 3, H, W]``, sides multiples of the patch size.
        layers: which, as indices of a list: 0 is the first layer, -1 the last.

    Returns:
        float ``[L, B, heads, h, w]``; a map sums to 1 minus the attention of [cls] to itself.
    """
    seen: dict[nn.Module, Tensor] = {}
    attentions = [vit.layers[layer].attn for layer in layers]
    hooks = [attention.qkv.register_forward_hook(
        lambda module, args, output: seen.update({module: output})) for attention in attentions]
    try:
        vit(normalized)
    finally:
        for hook in hooks:
            hook.remove()
    p = vit.patch_size
    grid = normalized.shape[-2] // p, normalized.shape[-1] // p
    maps = []
    for attention in attentions:
        qkv = seen[attention.qkv].reshape(len(normalized), -1, 3, attention.num_heads,
                                          attention.head_dims).float()
        query, key = qkv[:, 0, 0], qkv[:, :, 1]  # [B, heads, d], [B, 1 + N, heads, d]
        scores = torch.einsum('bhd,bnhd->bhn', query, key) * attention.head_dims**-0.5
        maps.append(scores.softmax(dim=-1)[..., 1:].unflatten(-1, grid))
    return torch.stack(maps).cpu()


def strongest(attention: Tensor, share: float = 0.6) -> Tensor:
    """Choose the fewest patches that together hold at least ``share`` of a map's attention.

    It is the mask that DINO draws (Caron et al. 2021, figure 1 and visualize_attention.py).

    Args:
        attention: float ``[..., h, w]``, not negative.
        share: in (0, 1].

    Returns:
        bool ``[..., h, w]``.
    """
    flat = attention.flatten(-2)
    values, order = flat.sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values  # what the stronger patches hold
    chosen = before < share * flat.sum(dim=-1, keepdim=True)
    return torch.zeros_like(chosen).scatter_(-1, order, chosen).unflatten(-1, attention.shape[-2:])
