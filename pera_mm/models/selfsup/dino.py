"""DINO: a student recognises in every crop what the teacher sees in the global ones.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021.
Shapes: n crops of one size, B images, N patches of a crop, D embedding width, K prototypes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pera_mm.models.selfsup.self_distillation import SelfDistillation
from pera_mm.registry import MODELS
from pera_mm.structures import CropViews


class Answer(NamedTuple):
    """What a network says of a batch of crops."""

    scores: list[Tensor]  # prototype scores [n_g, B, K] of each crop size g
    features: Tensor  # [cls] of the global crops, [n, B, D]
    tokens: Tensor  # of the global crops before the final norm, [n * B, 1 (iBOT: 1 + N), D]


@MODELS.register_module()
class DINO(SelfDistillation):
    """The student's crops agree with the teacher's other global crops on prototypes.

    Both networks see every patch of a crop: ``DisjointMask(disjoint=False)``. They see the same
    colours: ``CropPreprocessor(teacher=None)``. All crops share the linear layers and the
    stochastic depth of PerA.

    Args:
        backbone, projector, data_preprocessor: as :class:`SelfDistillation`.
        distillation: config of the :class:`CrossCropLoss`.
    """

    global_outputs: int | None = 0  # tokens of a global crop that are read beside [cls]; None: all

    def loss(self, inputs: dict[str, CropViews],
             data_samples: list | None = None) -> dict[str, Tensor]:
        """Weighted ``loss_cls``.

        Args:
            inputs: the crops of each size; the teacher sees those of ``'global'``.

        Raises:
            ValueError: if the pipeline hides patches, or its patches are not the backbone's.
        """
        crops = [inputs[name] for name in sorted(inputs)]  # 'global' before 'local'
        for views in crops:
            counts = [part.shape[-1] for part in (views.student, views.learnable, views.teacher)]
            self.check_split(*views.student_view.shape[-2:], counts)
        teacher = self.teach(crops[0])
        student = self.study(crops)
        losses = self.losses(student, teacher, crops[0])
        if self.watch:
            observed = dict(teacher_logits=teacher.scores[0], student_logits=student.scores[0],
                            teacher_features=teacher.features)
            self.observed = {name: tensor.detach() for name, tensor in observed.items()}
        return losses

    @torch.no_grad()
    def teach(self, views: CropViews) -> Answer:
        """The teacher's answer to the global crops."""
        tokens = self.teacher.backbone.embed(views.teacher_view.flatten(0, 1),
                                             views.teacher.flatten(0, 1))
        return self._answer(self.teacher, [tokens], [views])

    def study(self, crops: list[CropViews]) -> Answer:
        """The student's answer to all crops."""
        groups = [
            self.student.backbone.embed(views.student_view.flatten(0, 1),
                                        views.student.flatten(0, 1)) for views in crops
        ]
        return self._answer(self.student, [self._mask(groups[0], crops[0]), *groups[1:]], crops)

    def _mask(self, tokens: Tensor, views: CropViews) -> Tensor:
        """Hide patches of the student's embedded global crops; DINO hides none."""
        return tokens

    def _answer(self, network: nn.Module, groups: list[Tensor],
                crops: list[CropViews]) -> Answer:
        shapes = [tuple(views.student_view.shape[:2]) for views in crops]
        outputs = [self.global_outputs] + [0] * (len(groups) - 1)
        groups = network.backbone.encode(groups, outputs=outputs)
        cls = network.backbone.final([tokens[:, :1] for tokens in groups])
        features = cls[0][:, 0].unflatten(0, shapes[0])
        return Answer(network.project(cls, shapes), features, groups[0])

    def losses(self, student: Answer, teacher: Answer, views: CropViews) -> dict[str, Tensor]:
        """The terms of the loss, each already weighted; ``views`` are the global crops."""
        temperature = self._clocked('teacher_temp')
        return dict(loss_cls=self.distillation(student.scores, teacher.scores, temperature))

    def check_split(self, height: int, width: int, counts: Sequence[int]) -> None:
        """Raise ValueError unless both networks see every patch of the crop."""
        student, learnable, teacher = counts
        if student != teacher or learnable not in (0, student):  # BlockMask: a flag per patch
            raise ValueError(f'{type(self).__name__} shows every patch to student and teacher, but '
                             f'the pipeline shows them {student} and {teacher}; set '
                             'disjoint=False in DisjointMask, or put BlockMask in its place.')
        super().check_split(height, width, (student, 0, teacher))
