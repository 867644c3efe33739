"""The disjoint mask of every crop, which says which network sees which patch (paper eq. 1-3)."""

import torch
from mmcv.transforms import BaseTransform

from pera_mm.errors import UserError
from pera_mm.patches import PatchSplit, patch_grid, split_counts, split_patches, whole_crop
from pera_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class DisjointMask(BaseTransform):
    """Split the patches of every crop into three disjoint parts: student, learnable, teacher.

    Each crop has its own permutation, which its student and teacher views share. The default
    shares are those of the reference's configs; the paper's text says 0.3 / 0.2 / 0.5
    (pera_reference.md §2.1).

    Required Keys:
    - crops (from :class:`AlignedCrops`)
    - rng (numpy Generator)

    Added Keys:
    - split: dict of group name to :class:`~pera_mm.patches.PatchSplit`, int64 ``[n, k]``

    Args:
        patch_size: side of a patch in pixels; must divide the crop sizes.
        student: the share of the patches that the student sees.
        learnable: the share that the student predicts from mask tokens; 0: no pixel prediction.
        teacher: the share that the teacher sees.
        disjoint: False: both networks see every patch (Table 11), and the shares have no effect.

    Raises:
        ValueError: at build if the shares do not sum to 1 or one is empty; at the first sample if
            ``patch_size`` does not divide a crop, or a crop is too small for the shares.
    """

    def __init__(self,
                 patch_size: int = 16,
                 student: float = 0.2,
                 learnable: float = 0.2,
                 teacher: float = 0.6,
                 disjoint: bool = True) -> None:
        if patch_size < 1:
            raise UserError(f'patch_size must be >= 1 pixel, got {patch_size}.')
        self.patch_size = patch_size
        self.shares = (student, learnable, teacher)
        self.disjoint = disjoint
        split_counts(10**6, *self.shares)  # refuse bad shares here, before any crop is seen

    def transform(self, results: dict) -> dict:
        """Add ``split``."""
        generator = torch.Generator().manual_seed(int(results['rng'].integers(2**63)))
        results['split'] = {name: self._split(name, crops.shape[1], crops.shape[2], generator)
                            for name, crops in results['crops'].items()}
        return results

    def _split(self, name: str, num_crops: int, size: int,
               generator: torch.Generator) -> PatchSplit:
        try:
            rows, columns = patch_grid(size, size, self.patch_size)
            if not self.disjoint:
                return whole_crop(num_crops, rows * columns)
            return split_patches(num_crops, split_counts(rows * columns, *self.shares), generator)
        except UserError as error:
            raise UserError(f'{name} crops of {size} pixels: {error}') from None
