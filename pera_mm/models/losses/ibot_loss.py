"""iBOT: agreement on the prototypes of masked patches (Zhou et al. 2022, eq. 2).

Shapes: M masked patches of all crops, K prototypes.
"""

import torch
from torch import Tensor, nn

from pera_mm.models.losses.center import Center
from pera_mm.models.losses.soft_cross_entropy import soft_cross_entropy
from pera_mm.registry import MODELS


@MODELS.register_module()
class IBOTLoss(nn.Module):
    """The cross-entropy of the student's masked patches with the same patches of the teacher.

    As in DINOv2 (loss/ibot_patch_loss.py), it is the mean over the masked patches of a crop, then
    the mean over ALL global crops; a crop without a mask counts 0. The center is the mean over the
    masked patches of all ranks; DINOv2 takes the mean of the ranks' means.

    Args:
        num_prototypes: K; the model gives that of the patches' head.
        student_temp: temperature of the student, constant.
        center_momentum: momentum of the :class:`Center`.
        loss_weight: factor of the loss.
    """

    def __init__(self, num_prototypes: int, student_temp: float = 0.1,
                 center_momentum: float = 0.9, loss_weight: float = 1.) -> None:
        super().__init__()
        self.center = Center(num_prototypes, center_momentum)
        self.student_temp = student_temp
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor, teacher_temp: float, crop: Tensor,
                num_crops: int) -> Tensor:
        """Compute the weighted scalar.

        Args:
            student, teacher: scores ``[M, K]`` of the masked patches.
            teacher_temp: temperature of the teacher.
            crop: the crop that each patch belongs to, int64 ``[M]``.
            num_crops: number of global crops of all images, with and without a mask.
        """
        teacher = teacher.detach()
        self.center.remember(teacher)
        masked = crop.new_zeros(num_crops).index_add(0, crop, torch.ones_like(crop))
        share = 1 / masked[crop].unsqueeze(1)  # [M, 1]: cross-entropy is linear in its targets
        loss = soft_cross_entropy(
            student, lambda part: share[part] * self.center.targets(teacher[part], teacher_temp),
            self.student_temp)
        return self.loss_weight / num_crops * loss
