"""PerA: perfectly aligned, spatially disjoint pairs (paper section 3.2, fig. 2).

Shapes: n crops of one size, B images, k patches of one part, D embedding width, K prototypes.
"""

import torch
from torch import Tensor, nn

from pera_mm.errors import UserError
from pera_mm.models.selfsup.self_distillation import Answer, SelfDistillation
from pera_mm.patches import PatchSplit, flatten_patches, gather_patches, patch_grid
from pera_mm.registry import MODELS
from pera_mm.structures import CropViews


@MODELS.register_module()
class PerA(SelfDistillation):
    """A model whose networks see disjoint patches of a crop and agree on its prototypes.

    Half-way through the student's layers, learnable mask tokens join the global crops. From them
    the predictor paints the pixels that neither network saw.

    Args:
        backbone, projector, distillation, data_preprocessor: as :class:`SelfDistillation`.
        predictor: config of the :class:`PixelHead`, or None for no pixel prediction (Table
            11); then no mask token joins.
        pixel: config of the :class:`PixelLoss`, given exactly when ``predictor`` is.
        koleo: config of the :class:`KoLeoLoss` on the student's global scores, or None.

    Raises:
        ValueError: if only one of ``predictor`` and ``pixel`` is given.
    """

    def __init__(self,
                 backbone: dict,
                 projector: dict,
                 distillation: dict,
                 predictor: dict | None = None,
                 pixel: dict | None = None,
                 koleo: dict | None = None,
                 data_preprocessor: dict | None = None) -> None:
        super().__init__(backbone, projector, distillation, data_preprocessor)
        if (predictor is None) != (pixel is None):
            raise UserError('pixel prediction needs both predictor and pixel (the head and its '
                            'loss); set both, or both to None.')
        width = self.student.backbone.embed_dims
        self.predictor: nn.Module | None = None
        if predictor is not None:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
            nn.init.normal_(self.mask_token, std=.02)
            self.predictor = MODELS.build(
                dict(predictor, in_channels=width, patch_size=self.patch_size))
            self.pixel = MODELS.build(pixel)
        self.koleo = MODELS.build(koleo) if koleo is not None else None

    @torch.no_grad()
    def teach(self, crops: list[CropViews]) -> Answer:
        """Return the teacher's answer, from the patches of part t alone (eq. 2)."""
        backbone = self.teacher.backbone
        groups = [
            backbone.embed(views.teacher_view.flatten(0, 1), views.split.teacher.flatten(0, 1))
            for views in crops
        ]
        groups = backbone.encode(groups, outputs=[0] * len(groups))  # [cls] alone
        return self._answer(self.teacher, backbone.apply_final_norm(groups), crops)

    def study(self, crops: list[CropViews]) -> Answer:
        """Return the student's answer, from part s; mask tokens of part l join at L/2 (eq. 1)."""
        backbone = self.student.backbone
        middle = backbone.num_layers // 2
        groups = [
            backbone.embed(views.student_view.flatten(0, 1), views.split.student.flatten(0, 1))
            for views in crops
        ]
        groups = backbone.encode(groups, stop=middle)
        hidden = 0
        if self.predictor is not None:
            groups = [torch.cat([groups[0], self._mask_tokens(crops[0])], dim=1), *groups[1:]]
            hidden = crops[0].split.learnable.shape[-1]
        wanted = [hidden] + [0] * (len(groups) - 1)
        groups = backbone.apply_final_norm(backbone.encode(groups, start=middle, outputs=wanted))
        answer = self._answer(self.student, groups, crops)
        if self.predictor is None:
            return answer
        # Not _replace: torch.compile does not know it.
        return Answer(answer.scores, answer.features, self.predictor(groups[0][:, -hidden:]))

    def _mask_tokens(self, views: CropViews) -> Tensor:
        """Return mask token + position for every patch of part l: ``[n * B, k, D]``.

        They are appended, not interleaved: attention does not see the order of tokens.
        """
        grid = patch_grid(*views.student_view.shape[-2:], self.patch_size)
        positions = self.student.backbone.positions(views.split.learnable.flatten(0, 1), grid)
        return self.mask_token + positions

    def pixel_target(self, views: CropViews) -> Tensor:
        """Return the normalized pixels of part l in the student's view: ``[n * B, k, p*p*3]``."""
        patches = gather_patches(views.student_view.flatten(0, 1),
                                 views.split.learnable.flatten(0, 1), self.patch_size)
        return flatten_patches(patches)

    def losses(self, student: Answer, teacher: Answer,
               crops: list[CropViews]) -> dict[str, Tensor]:
        """Compute ``loss_cls``, and ``loss_pixel`` and ``loss_koleo`` if they are on (eq. 9)."""
        temperature = self._scheduled('teacher_temp')
        losses = dict(loss_cls=self.distillation(student.scores, teacher.scores, temperature))
        if student.pixels is not None:
            losses['loss_pixel'] = self.pixel(student.pixels, self.pixel_target(crops[0]))
        if self.koleo is not None:
            losses['loss_koleo'] = self.koleo(student.scores[0])
        return losses

    def observe(self, student: Answer, teacher: Answer, crops: list[CropViews]) -> None:
        """Keep also the pixels that the predictor painted, and the true ones."""
        super().observe(student, teacher, crops)
        if student.pixels is not None:
            self.observed.update(pixel_prediction=student.pixels.detach(),
                                 pixel_target=self.pixel_target(crops[0]))

    def check_split(self, height: int, width: int, split: PatchSplit) -> None:
        """Raise ValueError for a split that leaves nothing to predict, or does not fit."""
        super().check_split(height, width, split)
        if split.masked.shape[-1]:
            raise UserError('PerA hides no patch by BlockMask; put DisjointMask in its place in '
                            'the pipeline.')
        if self.predictor is not None and split.counts().learnable == 0:
            raise UserError('the learnable part is empty, so the predictor has no pixels to learn '
                            'from; raise the learnable ratio of DisjointMask, or set '
                            'model.predictor=None and model.pixel=None.')

    def check_batch_size(self, batch_size: int) -> None:
        """Raise ValueError for one image per device with KoLeo."""
        if self.koleo is not None:
            self.koleo.check_batch_size(batch_size)
