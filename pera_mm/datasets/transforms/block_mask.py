"""The patches that DINOv2's student does not see: rectangles in some of the global crops."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform

from pera_mm.errors import UserError
from pera_mm.patches import PatchSplit, patch_grid, whole_crop
from pera_mm.registry import TRANSFORMS

MIN_PATCHES = 4  # of a rectangle, unless fewer are still to be hidden
ASPECT = 0.3  # height / width of a rectangle, to 1 / 0.3
ATTEMPTS = 10  # to place a rectangle


@TRANSFORMS.register_module()
class BlockMask(BaseTransform):
    """Show every patch to both networks and mark those that iBOT hides from the student.

    Half of the global crops of an image (rounded up) are masked; the others and the local crops
    are not. The largest share of a crop to hide is uniform in ``ratio``. Rectangles, which may
    overlap, hide at most this share. Source: DINOv2's data/masking.py and data/collate.py, which
    chooses half of the crops of a whole batch and spreads the shares evenly over them.

    Required Keys:
    - crops (from :class:`AlignedCrops`)
    - rng (numpy Generator)

    Added Keys:
    - split: dict of group name to :class:`~pera_mm.patches.PatchSplit`: ``student`` and
      ``teacher`` name all N patches, int64 ``[n, N]``; ``masked`` is bool ``[n, N]``, True where
      a patch is hidden.

    Args:
        patch_size: side of a patch in pixels; must divide the crop sizes.
        ratio: smallest and largest share of a masked crop to hide, in (0, 1).

    Raises:
        ValueError: at build for a ratio out of range; at the first sample if ``patch_size`` does
            not divide a crop.
    """

    def __init__(self, patch_size: int = 16, ratio: Sequence[float] = (0.1, 0.5)) -> None:
        if patch_size < 1:
            raise UserError(f'patch_size must be >= 1 pixel, got {patch_size}.')
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1] < 1:
            raise UserError('BlockMask: ratio must be two shares, 0 < smallest <= largest < 1, '
                            f'got {tuple(ratio)}.')
        self.patch_size = patch_size
        self.least, self.most = ratio

    def transform(self, results: dict) -> dict:
        """Add ``split``."""
        results['split'] = {name: self._split(name, crops.shape[1], crops.shape[2], results['rng'])
                            for name, crops in results['crops'].items()}
        return results

    def _split(self, name: str, num_crops: int, size: int, rng: np.random.Generator) -> PatchSplit:
        try:
            grid = patch_grid(size, size, self.patch_size)
        except UserError as error:
            raise UserError(f'{name} crops of {size} pixels: {error}') from None
        mask = np.zeros((num_crops, *grid), bool)
        if name == 'global':
            for crop in rng.permutation(num_crops)[:(num_crops + 1) // 2]:
                budget = max(int(rng.uniform(self.least, self.most) * mask[crop].size), 1)
                hide_rectangles(mask[crop], budget, rng)
        return whole_crop(num_crops, grid[0] * grid[1])._replace(
            masked=torch.from_numpy(mask.reshape(num_crops, -1)))


def hide_rectangles(mask: np.ndarray, budget: int, rng: np.random.Generator) -> None:
    """Set rectangles of the bool grid ``mask`` True, in place, at most ``budget`` patches in all.

    Fewer are hidden if no further rectangle can be placed, but at least one is.
    """
    left = budget
    while left and (hidden := _hide_one(mask, left, rng)):
        left -= hidden
    if left == budget:
        mask.flat[rng.integers(mask.size)] = True


def _hide_one(mask: np.ndarray, most: int, rng: np.random.Generator) -> int:
    """Place a rectangle that hides 1 to ``most`` more patches; return how many it hides."""
    rows, columns = mask.shape
    for _ in range(ATTEMPTS):
        area = rng.uniform(min(MIN_PATCHES, most), most)
        aspect = math.exp(rng.uniform(math.log(ASPECT), -math.log(ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < rows and 0 < width < columns):
            continue
        top, side = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        block = mask[top:top + height, side:side + width]
        if 0 < (hidden := block.size - int(block.sum())) <= most:
            block[...] = True
            return hidden
    return 0
