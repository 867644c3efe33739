"""DINOv2: DINO, masked patches (iBOT) and spread features (KoLeo).

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2023.
Shapes: n crops of one size, B images, N patches of a crop, M masked patches of all crops, D
embedding width, K prototypes.
"""

import torch
from torch import Tensor, nn

from pera_mm.errors import UserError
from pera_mm.models.selfsup.dino import DINO
from pera_mm.models.selfsup.self_distillation import Answer
from pera_mm.patches import PatchSplit, patch_grid
from pera_mm.registry import MODELS
from pera_mm.structures import CropViews


@MODELS.register_module()
class DINOv2(DINO):
    """A DINO whose student also answers for patches that are hidden from it in global crops.

    The pipeline has :class:`BlockMask` in place of the disjoint mask. From the first layer on, a
    learnable mask token replaces the embedding of a hidden patch.

    Args:
        backbone, projector, distillation, data_preprocessor: as :class:`DINO`.
        ibot: config of the :class:`IBOTLoss`, or None for no mask and no loss on patches
            (Table 11); ``patch_projector`` is not built then.
        patch_projector: config of the :class:`PrototypeHead` of the patches, in both networks;
            None: they share ``projector`` (DINOv2's default).
        koleo: config of the :class:`KoLeoLoss` on the student's global crops, or None.
        koleo_on: what KoLeo spreads: ``'scores'``, the outputs of the projector (the PerA authors'
            DINOv2), or ``'features'``, [cls] before the projector (DINOv2 itself).

    Raises:
        ValueError: if ``koleo_on`` has another value.
    """

    def __init__(self,
                 backbone: dict,
                 projector: dict,
                 distillation: dict,
                 ibot: dict | None = None,
                 patch_projector: dict | None = None,
                 koleo: dict | None = None,
                 koleo_on: str = 'scores',
                 data_preprocessor: dict | None = None) -> None:
        super().__init__(backbone, projector, distillation, data_preprocessor)
        if koleo_on not in ('scores', 'features'):
            raise UserError("koleo_on must be 'scores' (of the projector) or 'features' ([cls] "
                            f"before it), got '{koleo_on}'.")
        self.koleo = MODELS.build(koleo) if koleo is not None else None
        self.koleo_on = koleo_on
        self.ibot: nn.Module | None = None
        if ibot is not None:
            self.global_outputs = None
            width = self.student.backbone.embed_dims
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
            if patch_projector is not None:
                for network in (self.student, self.teacher):
                    network.patch_projector = MODELS.build(
                        dict(patch_projector, in_channels=width))
                self.teacher.requires_grad_(False)
                self._start_teacher()
            head = self._patch_head(self.student)
            self.ibot = MODELS.build(
                dict(ibot, num_prototypes=head.last_layer.weight_g.shape[0]))

    @staticmethod
    def _patch_head(network: nn.Module) -> nn.Module:
        return getattr(network, 'patch_projector', network.projector)

    def _mask(self, tokens: Tensor, views: CropViews) -> Tensor:
        """Put mask token + position in the place of the hidden patches."""
        if self.ibot is None:
            return tokens
        grid = patch_grid(*views.student_view.shape[-2:], self.patch_size)
        every = views.split.student.flatten(0, 1)[:1]  # each row has all patches, in order
        hidden = self.mask_token + self.student.backbone.positions(every, grid)  # [1, N, D]
        mask = views.split.masked.flatten(0, 1).unsqueeze(2)  # [n * B, N, 1]
        return torch.cat([tokens[:, :1], torch.where(mask, hidden, tokens[:, 1:])], dim=1)

    def losses(self, student: Answer, teacher: Answer,
               crops: list[CropViews]) -> dict[str, Tensor]:
        """Compute ``loss_cls``, and ``loss_ibot`` and ``loss_koleo`` if they are on."""
        losses = super().losses(student, teacher, crops)
        if self.ibot is not None:
            losses['loss_ibot'] = self._ibot_loss(student, teacher, crops[0])
        if self.koleo is not None:
            spread = student.scores[0] if self.koleo_on == 'scores' else student.features
            losses['loss_koleo'] = self.koleo(spread)
        return losses

    def _ibot_loss(self, student: Answer, teacher: Answer, views: CropViews) -> Tensor:
        assert self.ibot is not None and student.tokens is not None and teacher.tokens is not None
        mask = views.split.masked.flatten(0, 1)
        crop, patch = mask.nonzero(as_tuple=True)  # [M] each; the step's only device wait
        with torch.no_grad():
            wanted = self._patch_scores(self.teacher, teacher.tokens[crop, 1 + patch])
        given = self._patch_scores(self.student, student.tokens[crop, 1 + patch])
        return self.ibot(given, wanted, self._scheduled('teacher_temp'), crop, len(mask))

    def _patch_scores(self, network: nn.Module, tokens: Tensor) -> Tensor:
        """Map tokens ``[M, D]`` before the final norm to scores ``[M, K]``."""
        tokens, = network.backbone.apply_final_norm([tokens])
        return self._patch_head(network)(tokens)

    def accumulate(self) -> None:
        """Accumulate for both centers, that of [cls] and that of the patches."""
        super().accumulate()
        if self.ibot is not None:
            self.ibot.center.accumulate()

    def advance(self) -> None:
        """Move the teacher and both centers."""
        super().advance()
        if self.ibot is not None:
            self.ibot.center.update()

    def check_batch_size(self, batch_size: int) -> None:
        """Raise ValueError for one image per device with KoLeo."""
        if self.koleo is not None:
            self.koleo.check_batch_size(batch_size)

    def check_split(self, height: int, width: int, split: PatchSplit) -> None:
        """Raise ValueError also if iBOT is on and the pipeline has no mask for it."""
        super().check_split(height, width, split)
        if self.ibot is not None and split.masked.shape[-1] == 0:
            raise UserError('iBOT needs masked patches; put BlockMask in the place of '
                            'DisjointMask in the pipeline, or set model.ibot=None.')
