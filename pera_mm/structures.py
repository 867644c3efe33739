"""The data that travel from the worker to the model: one structure per crop size.

Shapes: B images, V views (1 when student and teacher share geometry, else 2), n crops of this
size per image, S crop side in pixels, k patches of one part, N patches of a crop.
"""

from typing import NamedTuple

from torch import Tensor

from pera_mm.patches import PatchSplit

GROUPS = ('global', 'local')  # the crop sizes, in the order in which a model takes them


class CropGroup(NamedTuple):
    """The crops of one size as the worker packs them; ``collate`` puts B in front.

    A named tuple, so that MMEngine's ``default_collate``, torch's ``pin_memory`` and
    ``cast_data`` know how to handle it.
    """

    pixels: Tensor  # uint8 RGB [B, V, n, S, S, 3]: an aligned pair travels once
    split: PatchSplit  # indices [B, n, k], mask [B, n, N] or [B, n, 0]


class CropViews(NamedTuple):
    """The crops of one size as the model sees them: two color views, normalized."""

    student_view: Tensor  # float [n, B, 3, S, S]
    teacher_view: Tensor  # float [n, B, 3, S, S]
    split: PatchSplit  # indices [n, B, k], mask [n, B, N] or [n, B, 0]
