"""The computed peak memory of a training step, from fake tensors: no model is too large for it.

Fake tensors have a shape, a dtype and a lifetime, but no numbers. Every one of a forward and a
backward pass is counted from its birth to its death, so the peak has weights, gradients, what
autograd keeps for the backward pass and what an operator needs for a moment.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOMENTS = 2  # tensors that AdamW keeps for every weight


class LiveBytes(TorchDispatchMode):
    """Count the bytes of the tensors that live, ``now`` and at most (``peak``)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        """Run the operator, and count what it made; a view shares the bytes of its base."""
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._alive:
            return
        self._alive.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, address, size)

    def _remove(self, address: int, size: int) -> None:
        self._alive.discard(address)
        self.now -= size


def training_peak(build: Callable[[], nn.Module], loss: Callable[[nn.Module], Tensor],
                  bf16: bool) -> float:
    """Compute the most bytes that live at once in a step with AdamW, in GB (1e9 bytes).

    Not in it: what the allocator wastes, workspaces of cuDNN and cuBLAS, CUDA's context (about
    0.5 GB) and the buckets of DDP (as large as the gradients).

    Args:
        build: makes the model.
        loss: computes a loss of the model.
        bf16: autocast to bfloat16, as training does on a GPU.
    """
    with FakeTensorMode(), LiveBytes() as live:
        model = build()
        weights = live.now
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            value = loss(model)
        value.backward()
        trained = sum(p.numel() * p.element_size() for p in model.parameters()
                      if p.grad is not None)
        # AdamW takes a copy of every weight's second moment for its root.
        update = weights + 2 * trained
        return (max(live.peak, update) + MOMENTS * trained) / 1e9
