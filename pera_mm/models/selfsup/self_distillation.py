"""What PerA, DINO and DINOv2 share: a student, a teacher that follows it, [cls] agreement.

Shapes: n crops of one size, B images, k patches, D embedding width, K prototypes.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor

from pera_mm.models.selfsup.teacher import Network, ema_update
from pera_mm.patches import patch_grid
from pera_mm.registry import MODELS
from pera_mm.structures import CropViews


class SelfDistillation(BaseModel):
    """Base of the self-distillation methods.

    There is no clock in here: hooks set :attr:`teacher_temp` and :attr:`momentum` before an
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
        watch: when True the next :meth:`loss` leaves detached tensors in :attr:`observed`.
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
        """Initialise the student; the teacher starts as its copy."""
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
        """``mode='loss'``: losses of a batch of crops; ``'tensor'``: teacher features of images."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'tensor':
            return self.teacher_features(inputs)
        raise ValueError(f"{type(self).__name__} has the modes 'loss' and 'tensor', not '{mode}'.")

    @abstractmethod
    def loss(self, inputs: dict[str, CropViews],
             data_samples: list | None = None) -> dict[str, Tensor]:
        """Weighted losses of a batch; changes nothing that a second call would notice."""

    @torch.no_grad()
    def teacher_features(self, images: Tensor) -> Tensor:
        """The teacher's [cls] ``[B, D]`` of whole normalised images ``[B, 3, H, W]``."""
        return self.teacher.backbone(images)[-1]

    def accumulate(self) -> None:
        """After every iteration: remember the teacher's outputs for the centre."""
        self.distillation.accumulate()

    def advance(self) -> None:
        """After an optimizer step: move the teacher (eq. 10) and the centre (eq. 7)."""
        ema_update(self.teacher, self.student, self._clocked('momentum'))
        self.distillation.update_center()

    def check_batch_size(self, batch_size: int) -> None:
        """Raise ValueError if a loss cannot work on ``batch_size`` images per device."""

    def check_split(self, height: int, width: int, counts: Sequence[int]) -> None:
        """Raise ValueError unless the split covers a crop's patch grid exactly once.

        It does not when the pipeline's patch size is not the backbone's.

        Args:
            height, width: of the crop, pixels.
            counts: patches of the student, learnable and teacher part.
        """
        h, w = patch_grid(height, width, self.patch_size)
        split = [sum(counts)]
        if counts[1] == 0 and counts[0] == counts[2]:  # two halves, or no mask: both see all
            split.append(counts[0])
        if h * w not in split:
            raise ValueError(
                f'a {height} x {width} crop has {h * w} patches of {self.patch_size} px, but the '
                f'pipeline splits {split[-1]}; give DisjointMask (or BlockMask) the patch_size of '
                'the backbone.')

    def _clocked(self, name: str) -> float:
        value = getattr(self, name)
        if math.isnan(value):
            raise RuntimeError(f"{name} is not set; add dict(type='pera_mm.ScheduleHook', ...) to "
                               'custom_hooks, or set it on the model.')
        return value
