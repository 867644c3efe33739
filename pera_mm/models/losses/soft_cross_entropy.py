"""The cross-entropy with soft targets over very many prototypes, without needless copies.

Shapes: R rows (crops x images), K prototypes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS_AT_ONCE = 32  # bounds the temporary memory: 16 MiB per tensor for 131,072 prototypes


@torch.compiler.disable  # its gradient, made in the forward pass, is lost in a compiled graph
def soft_cross_entropy(logits: Tensor, targets: Callable[[slice], Tensor],
                       temperature: float) -> Tensor:
    """Compute ``-sum_r sum_k targets[r, k] * log softmax(logits[r] / temperature)[k]``, in float32.

    The forward pass computes the gradient and keeps it alone for the backward pass. So nothing
    else of size R x K is created, neither targets nor log-probabilities.

    Args:
        logits: ``[R, K]``.
        targets: gives the float32 targets ``[r, K]`` of a slice of rows. They need not sum to
            one, and get no gradient.
        temperature: above 0.
    """
    return _SoftCrossEntropy.apply(logits, targets, temperature)


class _SoftCrossEntropy(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Callable[[slice], Tensor],
                temperature: float) -> Tensor:
        total = torch.zeros((), device=logits.device)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, len(logits), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            target = targets(rows)
            logs = (logits[rows].float() / temperature).log_softmax(1)
            total -= torch.dot(target.flatten(), logs.flatten())
            if gradient is not None:
                probability = logs.exp_().mul_(target.sum(1, keepdim=True))
                gradient[rows] = probability.sub_(target).div_(temperature)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        gradient, = ctx.saved_tensors
        return gradient * upstream, None, None
