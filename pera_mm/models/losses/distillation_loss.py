"""The agreement of student and teacher on the prototypes of [cls] (paper eq. 5-6).

Shapes: n crops of one size, B images, K prototypes.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from pera_mm.models.losses.center import Center
from pera_mm.models.losses.soft_cross_entropy import soft_cross_entropy
from pera_mm.registry import MODELS


@MODELS.register_module()
class DistillationLoss(nn.Module):
    """The cross-entropy of the student's prototype scores with the teacher's centered ones.

    Pairing is strictly crop by crop, ``L = mean_i mean_b H(t_ib, s_ib)``::

        for i in crops:                 # student crop i with teacher crop i, no other
            for b in images:
                q = softmax((teacher[i][b] - center) / teacher_temp)
                p = softmax(student[i][b] / student_temp)
                loss -= sum(q * log(p)) / (len(crops) * B)

    ``forward`` passes a batch to the :class:`Center` and never moves it.

    Args:
        num_prototypes: K; the model gives its projector's.
        student_temp: temperature of the student, constant.
        center_momentum: momentum of the :class:`Center`.
        loss_weight: C1 of eq. 9.
    """

    def __init__(self, num_prototypes: int, student_temp: float = 0.1,
                 center_momentum: float = 0.9, loss_weight: float = 1.) -> None:
        super().__init__()
        self.center = Center(num_prototypes, center_momentum)
        self.student_temp = student_temp
        self.loss_weight = loss_weight

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
                teacher_temp: float) -> Tensor:
        """Compute the weighted scalar from scores ``[n_g, B, K]`` for each crop size g."""
        pairs = [(s.flatten(0, 1), t.flatten(0, 1).detach()) for s, t in zip(student, teacher)]
        self.center.remember(*(t for _, t in pairs))

        def agreement(student: Tensor, teacher: Tensor) -> Tensor:
            return soft_cross_entropy(
                student, lambda rows: self.center.targets(teacher[rows], teacher_temp),
                self.student_temp)

        total = sum(agreement(s, t) for s, t in pairs)
        return self.loss_weight / sum(len(s) for s, _ in pairs) * total
