"""The networks of student and teacher, and the update of the teacher (fig. 2a, eq. 10)."""

import torch
from mmengine.model import BaseModule
from torch import Tensor

from pera_mm.registry import MODELS


class Network(BaseModule):
    """The network of student and teacher alike: an encoder f and its projector g.

    Args:
        backbone: config of a :class:`PerAViT`.
        projector: config of a :class:`PrototypeHead`; ``in_channels`` comes from the backbone.
    """

    def __init__(self, backbone: dict, projector: dict) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.projector = MODELS.build(dict(projector, in_channels=self.backbone.embed_dims))

    def project(self, groups: list[Tensor], shapes: list[tuple[int, int]]) -> list[Tensor]:
        """Compute the prototype scores of the [cls] tokens, in one call for all crops.

        Args:
            groups: encoded tokens ``[n_g * B, L_g, D]`` of each crop size g.
            shapes: ``(n_g, B)`` of each.

        Returns:
            Scores ``[n_g, B, K]`` of each.
        """
        scores = self.projector(torch.cat([tokens[:, 0] for tokens in groups]))
        parts = scores.split([n * batch for n, batch in shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, shapes)]


@torch.no_grad()
def ema_update(teacher: torch.nn.Module, student: torch.nn.Module, momentum: float) -> None:
    """Update in place: ``teacher <- momentum * teacher + (1 - momentum) * student`` (eq. 10).

    Args:
        momentum: fraction of the OLD teacher kept, in [0, 1]. MMEngine's EMA means the opposite.
    """
    old, new = list(teacher.parameters()), list(student.parameters())
    torch._foreach_mul_(old, momentum)
    torch._foreach_add_(old, new, alpha=1 - momentum)
