"""What travels from the worker to the model: one structure per crop size.

Shapes: B images, V views (1 when student and teacher share geometry, else 2), n crops of this
size per image, S crop side in pixels, k patches of one part, N patches of a crop.
"""

from typing import NamedTuple

from torch import Tensor


class CropGroup(NamedTuple):
    """The crops of one size as the worker packs them; ``collate`` puts B in front.

    A named tuple, so that MMEngine's ``default_collate``, torch's ``pin_memory`` and
    ``cast_data`` know how to handle it.
    """

    pixels: Tensor  # uint8 RGB [B, V, n, S, S, 3]: an aligned pair travels once
    student: Tensor  # int64 [B, n, k]
    # int64 [B, n, k], k may be 0; from BlockMask, where every patch is seen, bool [B, n, N]: True
    # where it is hidden from DINOv2's student
    learnable: Tensor
    teacher: Tensor  # int64 [B, n, k]


class CropViews(NamedTuple):
    """The crops of one size as the model sees them: two colour views, normalised."""

    student_view: Tensor  # float [n, B, 3, S, S]
    teacher_view: Tensor  # float [n, B, 3, S, S]
    student: Tensor  # int64 [n, B, k]
    learnable: Tensor  # int64 [n, B, k], or bool [n, B, N] as in CropGroup
    teacher: Tensor  # int64 [n, B, k]
