"""DINO: a student recognizes in every crop what the teacher sees in the global ones.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021.
Shapes: n crops of one size, B images, N patches of a crop, D embedding width, K prototypes.
"""

import torch
from torch import Tensor, nn

from pera_mm.errors import UserError
from pera_mm.models.selfsup.self_distillation import Answer, SelfDistillation
from pera_mm.patches import PatchSplit
from pera_mm.registry import MODELS
from pera_mm.structures import CropViews


@MODELS.register_module()
class DINO(SelfDistillation):
    """A model whose student agrees in every crop with the teacher's other global crops.

    Both networks see every patch of a crop: ``DisjointMask(disjoint=False)``. They see the same
    colors: ``CropPreprocessor(teacher=None)``. All crops share the linear layers and the
    stochastic depth of PerA.

    Args:
        backbone, projector, data_preprocessor: as :class:`SelfDistillation`.
        distillation: config of the :class:`CrossCropLoss`.
    """

    global_outputs: int | None = 0  # tokens of a global crop that are read beside [cls]; None: all

    @torch.no_grad()
    def teach(self, crops: list[CropViews]) -> Answer:
        """Return the teacher's answer to the global crops."""
        views = crops[0]
        tokens = self.teacher.backbone.embed(views.teacher_view.flatten(0, 1),
                                             views.split.teacher.flatten(0, 1))
        return self._encode(self.teacher, [tokens], [views])

    def study(self, crops: list[CropViews]) -> Answer:
        """Return the student's answer to all crops."""
        groups = [
            self.student.backbone.embed(views.student_view.flatten(0, 1),
                                        views.split.student.flatten(0, 1)) for views in crops
        ]
        return self._encode(self.student, [self._mask(groups[0], crops[0]), *groups[1:]], crops)

    def _mask(self, tokens: Tensor, views: CropViews) -> Tensor:
        """Hide patches of the student's embedded global crops; DINO hides none."""
        return tokens

    def _encode(self, network: nn.Module, groups: list[Tensor],
                crops: list[CropViews]) -> Answer:
        outputs = [self.global_outputs] + [0] * (len(groups) - 1)
        groups = network.backbone.encode(groups, outputs=outputs)
        cls = network.backbone.apply_final_norm([tokens[:, :1] for tokens in groups])
        return self._answer(network, cls, crops)._replace(tokens=groups[0])

    def losses(self, student: Answer, teacher: Answer,
               crops: list[CropViews]) -> dict[str, Tensor]:
        """Compute the weighted ``loss_cls``."""
        temperature = self._scheduled('teacher_temp')
        return dict(loss_cls=self.distillation(student.scores, teacher.scores, temperature))

    def check_split(self, height: int, width: int, split: PatchSplit) -> None:
        """Raise ValueError unless both networks see every patch of the crop."""
        student, learnable, teacher = split.counts()
        if student != teacher or learnable or split.masked.shape[-1] not in (0, student):
            raise UserError(f'{type(self).__name__} shows every patch to student and teacher, but '
                            f'the pipeline shows them {student} and {teacher}; set '
                            'disjoint=False in DisjointMask, or put BlockMask in its place.')
        super().check_split(height, width, split)
