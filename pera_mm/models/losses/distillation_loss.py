"""Agreement of student and teacher on the prototypes of [cls] (paper eq. 5-7).

Shapes: n crops of one size, B images, K prototypes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn

from pera_mm.models.losses.soft_cross_entropy import soft_cross_entropy
from pera_mm.registry import MODELS


@MODELS.register_module()
class DistillationLoss(nn.Module):
    """Cross-entropy between the teacher's centred and the student's prototype distribution.

    Pairing is strictly crop by crop, ``L = mean_i mean_b H(t_ib, s_ib)``::

        for i in crops:                 # student crop i with teacher crop i, no other
            for b in images:
                q = softmax((teacher[i][b] - center) / teacher_temp)
                p = softmax(student[i][b] / student_temp)
                loss -= sum(q * log(p)) / (len(crops) * B)

    The centre is moved by :meth:`accumulate` and :meth:`update_center`, never by ``forward``: a
    loss that is computed twice is the same twice.

    Args:
        num_prototypes: K; the model gives its projector's.
        student_temp: temperature of the student, constant.
        center_momentum: n of eq. 7, the fraction of the OLD centre.
        loss_weight: C1 of eq. 9.
    """

    center: Tensor

    def __init__(self, num_prototypes: int, student_temp: float = 0.1,
                 center_momentum: float = 0.9, loss_weight: float = 1.) -> None:
        super().__init__()
        self.student_temp = student_temp
        self.center_momentum = center_momentum
        self.loss_weight = loss_weight
        self.register_buffer('center', torch.zeros(1, num_prototypes))
        # [K + 1]: column sums of teacher rows and their number, of the last batch / since the
        # last update
        self._last_batch: Tensor | None = None
        self._pending: Tensor | None = None

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
                teacher_temp: float) -> Tensor:
        """Scores ``[n_g, B, K]`` for each crop size g; returns the weighted scalar."""
        pairs = [(s.flatten(0, 1), t.flatten(0, 1).detach()) for s, t in zip(student, teacher)]
        self.remember(*(t for _, t in pairs))

        def agreement(student: Tensor, teacher: Tensor) -> Tensor:
            return soft_cross_entropy(
                student, lambda rows: self.targets(teacher[rows], teacher_temp), self.student_temp)

        total = sum(agreement(s, t) for s, t in pairs)
        return self.loss_weight / sum(len(s) for s, _ in pairs) * total

    def targets(self, teacher: Tensor, teacher_temp: float) -> Tensor:
        """The teacher's distribution over prototypes (eq. 6), float32, shape of ``teacher``."""
        return (teacher.float() - self.center).div_(teacher_temp).softmax(-1)

    def remember(self, *teacher: Tensor) -> None:
        """Keep the sum of this batch's teacher rows, parts ``[R, K]``, for :meth:`accumulate`."""
        sums = torch.stack([rows.sum(0, dtype=torch.float) for rows in teacher]).sum(0)
        self._last_batch = F.pad(sums, (0, 1), value=sum(len(rows) for rows in teacher))

    def accumulate(self) -> None:
        """Remember the last batch for the next :meth:`update_center`."""
        if self._last_batch is not None:
            batch = self._last_batch
            self._pending = batch if self._pending is None else self._pending + batch
            self._last_batch = None

    def update_center(self) -> None:
        """Move the centre to the mean of all remembered teacher rows of all ranks (eq. 7)."""
        if self._pending is None:
            return
        all_reduce(self._pending)
        number = self._pending[-1]
        mean = self._pending[:-1] / number.clamp(min=1)
        # no rows, as of a batch without a masked patch: the centre stays
        self.center.lerp_(mean.unsqueeze(0), (1 - self.center_momentum) * (number > 0))
        self._pending = None
