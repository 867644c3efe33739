"""Random windows of an image and its mask, which MMSegmentation and Open-CD lack."""

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from numpy.typing import NDArray

from pera_mm.datasets.transforms.aligned_crops import Box, random_box, resize_box
from pera_mm.errors import UserError
from pera_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandomResizedCrop(BaseTransform):
    """Cut one random window out of an image and its masks and resize it to a square.

    The window is drawn as torchvision's ``RandomResizedCrop`` draws it, from an image of any size.
    Images are resized bilinearly, antialiased where they shrink. Of a mask each pixel takes the
    label at its center. Names and meanings of the arguments are those of MMPretrain's transform.

    Required Keys:
    - img (uint8 ``[H, W, C]``, or a list of such images of one size, as Open-CD has them)
    - seg_fields (the keys of the masks, ``[H, W]``)

    Modified Keys:
    - img, the masks, img_shape

    Args:
        scale: side of the square in pixels.
        crop_ratio_range: smallest and largest share of the image's area.
        aspect_ratio_range: smallest and largest width / height of the window.

    Raises:
        ValueError: for a side or a range that is none.
    """

    def __init__(self, scale: int, crop_ratio_range: Sequence[float] = (0.4, 1.0),
                 aspect_ratio_range: Sequence[float] = (0.75, 1.33)) -> None:
        if not (isinstance(scale, int) and scale >= 1):
            raise UserError('RandomResizedCrop: scale is the side of a square in pixels, one '
                            f'number >= 1, got {scale!r}.')
        self.scale = scale
        self.areas = _range('crop_ratio_range', crop_ratio_range)
        self.aspects = _range('aspect_ratio_range', aspect_ratio_range)
        if self.areas[1] > 1:
            raise UserError('RandomResizedCrop: crop_ratio_range has shares of the area, at most '
                            f'1, got {self.areas}.')

    def transform(self, results: dict) -> dict:
        """Cut out and resize the image and every mask."""
        image = results['img']
        images = image if isinstance(image, list) else [image]
        # The seed comes from the state that MMEngine seeds in each worker.
        rng = np.random.default_rng(np.random.randint(2**31))
        box = random_box(*images[0].shape[:2], self.areas, self.aspects, rng)
        resized = [resize_box(each, box, self.scale) for each in images]
        results['img'] = resized if isinstance(image, list) else resized[0]
        results['img_shape'] = (self.scale, self.scale)
        for key in results['seg_fields']:
            results[key] = resize_labels(results[key], box, self.scale)
        return results


def resize_labels(mask: NDArray, box: Box, size: int) -> NDArray:
    """Resize a window of a mask ``[H, W]`` to ``[size, size]``: the labels at pixel centers."""
    centers = np.arange(size) + 0.5
    rows = box.top + (centers * box.height / size).astype(int)
    columns = box.left + (centers * box.width / size).astype(int)
    return mask[np.ix_(rows, columns)]


def _range(name: str, pair: Sequence[float]) -> tuple[float, float]:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
        raise UserError(f'RandomResizedCrop: {name} must be two numbers, 0 < smallest <= largest, '
                        f'got {tuple(pair)}.')
    return pair[0], pair[1]
