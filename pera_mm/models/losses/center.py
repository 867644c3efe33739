"""The center of the teacher's prototype scores (paper eq. 7).

Shapes: R rows (crops x images, or masked patches), K prototypes.
"""

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn


class Center(nn.Module):
    """The running mean of the teacher's scores: ``value <- n * value + (1 - n) * batch mean``.

    A loss calls :meth:`remember` in ``forward``; only :meth:`accumulate` and :meth:`update` count
    it. So a loss that is computed twice has the same value twice and counts once.

    Args:
        num_prototypes: K.
        momentum: n of eq. 7, the fraction of the OLD center.

    Attributes:
        value: the center, float32 ``[1, K]``; it starts at 0.
    """

    value: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer('value', torch.zeros(1, num_prototypes))
        # [K + 1]: column sums of teacher rows and their number, of the last batch / since the
        # last update
        self._last_batch: Tensor | None = None
        self._pending: Tensor | None = None

    def targets(self, teacher: Tensor, teacher_temp: float) -> Tensor:
        """Return the teacher's distribution over prototypes, ``H((t - c) / tpt_t)`` of eq. 5 and 6.

        Returns:
            float32, of the shape of ``teacher``, ``[..., K]``.
        """
        return (teacher.float() - self.value).div_(teacher_temp).softmax(-1)

    def remember(self, *teacher: Tensor) -> None:
        """Keep the sum of this batch's teacher rows, parts ``[R, K]``, for :meth:`accumulate`."""
        sums = torch.stack([rows.sum(0, dtype=torch.float) for rows in teacher]).sum(0)
        self._last_batch = F.pad(sums, (0, 1), value=sum(len(rows) for rows in teacher))

    def accumulate(self) -> None:
        """Count the last batch in the next :meth:`update`."""
        if self._last_batch is not None:
            batch = self._last_batch
            self._pending = batch if self._pending is None else self._pending + batch
            self._last_batch = None

    def update(self) -> None:
        """Move the center towards the mean of all counted teacher rows of all ranks (eq. 7)."""
        if self._pending is None:
            return
        all_reduce(self._pending)
        number = self._pending[-1]
        mean = self._pending[:-1] / number.clamp(min=1)
        # without rows, as in a batch without a masked patch, the center stays
        self.value.lerp_(mean.unsqueeze(0), (1 - self.momentum) * (number > 0))
        self._pending = None
