"""iBOT: agreement on the prototypes of masked patches (Zhou et al. 2022, eq. 2).

Shapes: M masked patches of all crops, K prototypes.
"""

import torch
from torch import Tensor

from pera_mm.models.losses.distillation_loss import DistillationLoss
from pera_mm.models.losses.soft_cross_entropy import soft_cross_entropy
from pera_mm.registry import MODELS


@MODELS.register_module()
class IBOTLoss(DistillationLoss):
    """Cross-entropy of the student's masked patches with the teacher's same, visible ones.

    As in DINOv2 (loss/ibot_patch_loss.py): the mean over the masked patches of a crop, then the
    mean over ALL global crops, those without a mask counting 0. The centre is the mean over the
    masked patches of all ranks; DINOv2 takes the mean of the ranks' means.

    Arguments, centre and temperatures as :class:`DistillationLoss`; of it this class uses
    ``student_temp``, ``loss_weight``, ``targets`` and ``remember``.
    """

    def forward(  # type: ignore[override]  # patches are one tensor, and belong to crops
            self, student: Tensor, teacher: Tensor, teacher_temp: float, crop: Tensor,
            num_crops: int) -> Tensor:
        """The weighted scalar.

        Args:
            student, teacher: scores ``[M, K]`` of the masked patches.
            teacher_temp: temperature of the teacher.
            crop: the crop that each patch belongs to, int64 ``[M]``.
            num_crops: number of global crops of all images, with and without a mask.
        """
        teacher = teacher.detach()
        self.remember(teacher)
        masked = crop.new_zeros(num_crops).index_add(0, crop, torch.ones_like(crop))
        share = 1 / masked[crop].unsqueeze(1)  # [M, 1]: cross-entropy is linear in its targets
        loss = soft_cross_entropy(
            student, lambda part: share[part] * self.targets(teacher[part], teacher_temp),
            self.student_temp)
        return self.loss_weight / num_crops * loss
