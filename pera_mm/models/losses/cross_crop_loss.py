"""The agreement of DINO on prototypes across crops (Caron et al. 2021, algorithm 1).

Shapes: G global crops, n crops of one size, B images, K prototypes.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from pera_mm.errors import UserError
from pera_mm.models.losses.distillation_loss import DistillationLoss
from pera_mm.models.losses.soft_cross_entropy import soft_cross_entropy
from pera_mm.registry import MODELS


@MODELS.register_module()
class CrossCropLoss(DistillationLoss):
    """The cross-entropy of every student crop with every OTHER global crop of the teacher.

    ``L = mean over pairs of mean_b H(t_b, s_b)``::

        for t in teacher's global crops:
            for s in student's crops:
                if s is not t:          # 18 pairs of 2 global and 8 local crops
                    loss -= sum(q[t] * log(p[s])) / (pairs * B)

    Cross-entropy is linear in its targets, so the pairs of a student crop are one cross-entropy
    with the sum of their targets, and each softmax is computed once.

    Arguments as :class:`DistillationLoss`.
    """

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
                teacher_temp: float) -> Tensor:
        """Compute the weighted scalar.

        Args:
            student: scores ``[n, B, K]`` of each crop size, the global crops first.
            teacher: one item, the scores ``[G, B, K]`` of the same global crops.
            teacher_temp: temperature of the teacher.

        Raises:
            ValueError: if there is a single crop, which has no other to agree with.
        """
        scores, = teacher
        num_crops, batch_size = len(scores), scores.shape[1]
        pairs = num_crops * (sum(len(group) for group in student) - 1)
        if pairs == 0:
            raise UserError('DINO compares different crops of an image, but there is only one; '
                            'raise the number of global or local crops in AlignedCrops.')
        self.center.remember(scores.detach().float().flatten(0, 1))
        targets = self.center.targets(scores.detach().float(), teacher_temp)
        others = [torch.cat([targets[:i], targets[i + 1:]]).sum(0) for i in range(num_crops)]
        locals_ = [targets.sum(0)] * sum(len(group) for group in student[1:])
        loss = sum(soft_cross_entropy(crop, target.__getitem__, self.student_temp)
                   for crop, target in zip(chain(*student), others + locals_))
        return self.loss_weight / (pairs * batch_size) * loss
