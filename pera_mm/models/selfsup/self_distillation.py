"""The base of PerA, DINO and DINOv2: a student, a teacher that follows it, [cls] agreement.

Shapes: n crops of one size, B images, k patches, D embedding width, K prototypes.
"""

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from pera_mm.errors import RunError, UserError
from pera_mm.models.selfsup.teacher import Network, ema_update
from pera_mm.patches import PatchSplit, patch_grid
from pera_mm.registry import MODELS
from pera_mm.structures import GROUPS, CropViews


class Answer(NamedTuple):
    """The outputs of a network for a batch of crops."""

    scores: list[Tensor]  # prototype scores [n_g, B, K] of each crop size g
    features: Tensor  # [cls] of the global crops, [n, B, D]
    pixels: Tensor | None = None  # PerA's student: painted global patches, [n * B, k, p*p*3]
    # DINO: the global crops before the final norm, [n * B, 1 (iBOT: 1 + N), D]
    tokens: Tensor | None = None


class SelfDistillation(BaseModel):
    """The base of the self-distillation methods: they :meth:`teach`, :meth:`study` and compare.

    The model knows no iteration: hooks set :attr:`teacher_temp` and :attr:`momentum` before an
    iteration and call :meth:`accumulate` and :meth:`advance` after it, so :meth:`loss` can be
    repeated and gradients accumulated.

    Args:
        backbone: config of the encoder of both networks; stochastic depth and recomputation
            are the student's alone.
        projector: config of the :class:`PrototypeHead` of both networks.
        distillation: config of the :class:`DistillationLoss`.
        data_preprocessor: config of the :class:`CropPreprocessor`.

    Attributes:
        teacher_temp: temperature of the teacher's distribution, set by ``ScheduleHook``.
        momentum: fraction of the OLD teacher kept at an update, set by ``ScheduleHook``.
        watch: if True, the next :meth:`loss` leaves detached tensors in :attr:`observed`.
    """

    def __init__(self, backbone: dict, projector: dict, distillation: dict,
                 data_preprocessor: dict | None = None) -> None:
        super().__init__(data_preprocessor)
        self.student = Network(backbone, projector)
        self.teacher = Network(dict(backbone, drop_path_rate=0., with_cp=False), projector)
        self.teacher.requires_grad_(False)
        num_prototypes = self.student.projector.last_layer.weight_g.shape[0]
        self.distillation = MODELS.build(dict(distillation, num_prototypes=num_prototypes))
        self.patch_size = self.student.backbone.patch_size
        self.teacher_temp = math.nan
        self.momentum = math.nan
        self.watch = False
        self.observed: dict[str, Tensor] = {}
        self._start_teacher()

    def init_weights(self) -> None:
        """Initialize the student; the teacher starts as its copy."""
        super().init_weights()
        self._start_teacher()

    def _start_teacher(self) -> None:
        self.teacher.load_state_dict(self.student.state_dict())

    def train(self, mode: bool = True) -> 'SelfDistillation':
        """Train or evaluate the student; the teacher always evaluates."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, inputs: Any, data_samples: list | None = None, mode: str = 'tensor') -> Any:
        """Compute losses of crops (``mode='loss'``) or teacher features (``'tensor'``)."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'tensor':
            return self.teacher_features(inputs)
        raise UserError(f"{type(self).__name__} has the modes 'loss' and 'tensor', not '{mode}'.")

    def loss(self, inputs: dict[str, CropViews],
             data_samples: list | None = None) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch; a second call gives the same.

        Args:
            inputs: the crops of each size, by their name in :data:`GROUPS`.

        Raises:
            ValueError: as :meth:`check_split`.
        """
        crops = self.ordered(inputs)
        teacher = self.teach(crops)
        student = self.study(crops)
        losses = self.losses(student, teacher, crops)
        if self.watch:
            self.observe(student, teacher, crops)
        return losses

    def ordered(self, inputs: dict[str, CropViews]) -> list[CropViews]:
        """Check the crops of each size and list them, the global ones first."""
        crops = [inputs[name] for name in sorted(inputs, key=GROUPS.index)]
        for views in crops:
            self.check_split(*views.student_view.shape[-2:], views.split)
        return crops

    @abstractmethod
    def teach(self, crops: list[CropViews]) -> Answer:
        """Return the teacher's answer, without a gradient."""

    @abstractmethod
    def study(self, crops: list[CropViews]) -> Answer:
        """Return the student's answer."""

    @abstractmethod
    def losses(self, student: Answer, teacher: Answer,
               crops: list[CropViews]) -> dict[str, Tensor]:
        """Compute the terms of the loss, each already weighted."""

    def observe(self, student: Answer, teacher: Answer, crops: list[CropViews]) -> None:
        """Leave in :attr:`observed` the outputs for the global crops, detached."""
        self.observed = dict(teacher_logits=teacher.scores[0].detach(),
                             student_logits=student.scores[0].detach(),
                             teacher_features=teacher.features.detach())

    @staticmethod
    def _answer(network: nn.Module, groups: list[Tensor], crops: list[CropViews]) -> Answer:
        """Compute scores and features of groups after the final norm, [cls] first."""
        shapes = [tuple(views.student_view.shape[:2]) for views in crops]
        features = groups[0][:, 0].unflatten(0, shapes[0])
        return Answer(network.project(groups, shapes), features)

    @torch.no_grad()
    def teacher_features(self, images: Tensor) -> Tensor:
        """Return the teacher's [cls] ``[B, D]`` of whole normalized images ``[B, 3, H, W]``."""
        return self.teacher.backbone(images)[-1]

    def accumulate(self) -> None:
        """Count the teacher's outputs for the center; called after every iteration."""
        self.distillation.center.accumulate()

    def advance(self) -> None:
        """Move the teacher (eq. 10) and the center (eq. 7); called after an optimizer step."""
        ema_update(self.teacher, self.student, self._scheduled('momentum'))
        self.distillation.center.update()

    def check_batch_size(self, batch_size: int) -> None:
        """Raise ValueError if a loss cannot work on ``batch_size`` images per device."""

    def check_split(self, height: int, width: int, split: PatchSplit) -> None:
        """Raise ValueError unless the split covers a crop's patch grid exactly once.

        It does not if the patch size of the pipeline differs from that of the backbone.

        Args:
            height, width: of the crop, pixels.
            split: of its patches.
        """
        h, w = patch_grid(height, width, self.patch_size)
        counts = split.counts()
        covered = [sum(counts)]
        if counts.learnable == 0 and counts.student == counts.teacher:  # halves, or both see all
            covered.append(counts.student)
        if h * w not in covered:
            raise UserError(
                f'a {height} x {width} crop has {h * w} patches of {self.patch_size} px, but the '
                f'pipeline splits {covered[-1]}; give DisjointMask (or BlockMask) the patch_size '
                'of the backbone.')

    def _scheduled(self, name: str) -> float:
        value = getattr(self, name)
        if math.isnan(value):
            raise RunError(f"{name} is not set; add dict(type='pera_mm.ScheduleHook', ...) to "
                           'custom_hooks, or set it on the model.')
        return value
