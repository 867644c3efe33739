"""The random crops that student and teacher share pixel by pixel (spatial alignment)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from torch.nn.functional import interpolate

from pera_mm.errors import UserError
from pera_mm.registry import TRANSFORMS


class CropSpec(NamedTuple):
    """The crops of one group: their number, side in pixels, and share of the image's area."""

    number: int
    size: int
    scale: tuple[float, float]


GLOBAL_CROPS = CropSpec(number=2, size=448, scale=(0.4, 1.0))
LOCAL_CROPS = CropSpec(number=8, size=96, scale=(0.05, 0.4))


class Box(NamedTuple):
    """A window of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


@TRANSFORMS.register_module()
class AlignedCrops(BaseTransform):
    """Cut global and local crops: random box, resize to a square, random flips.

    A crop is cut **once**; the student and the teacher view of it differ in color only, and the
    preprocessor makes that difference on the device. Defaults as the reference
    (augmentation.py L309-362, pera_reference.md §1.3). Every draw comes from ``results['rng']``.

    Required Keys:
    - img (uint8 RGB ``[H, W, 3]``, any size)
    - rng (numpy Generator)

    Added Keys:
    - crops: dict of group name (``'global'``, ``'local'``) to uint8 ``[V, n, S, S, 3]``, V = 1, or
      2 (student, teacher) without alignment. A group of 0 crops is absent.

    Args:
        global_crops: ``number`` (>= 1), ``size`` (side in pixels) and ``scale`` (smallest and
            largest share of the image's area). A missing key keeps its default.
        local_crops: the same for the local crops; ``number`` may be 0.
        ratio: smallest and largest width / height of the box.
        aligned: False: student and teacher each draw their own geometry for each crop
            (the ablation of spatial alignment, paper Table 11).
        horizontal_flip: probability of each flip.
        vertical_flip: probability of each flip.
        interpolation: ``'bilinear'`` (the reference), or ``'bicubic'`` as MAE.

    Raises:
        ValueError: for a number, size, scale, ratio or probability out of range, or an unknown
            interpolation.
    """

    def __init__(self,
                 global_crops: Mapping[str, Any] = GLOBAL_CROPS._asdict(),
                 local_crops: Mapping[str, Any] = LOCAL_CROPS._asdict(),
                 ratio: Sequence[float] = (0.75, 1.33),
                 aligned: bool = True,
                 horizontal_flip: float = 0.5,
                 vertical_flip: float = 0.5,
                 interpolation: str = 'bilinear') -> None:
        self.specs = {'global': _crop_spec('global_crops', global_crops, GLOBAL_CROPS, 1),
                      'local': _crop_spec('local_crops', local_crops, LOCAL_CROPS, 0)}
        self.ratio = _ordered_pair('ratio', ratio, math.inf)
        self.num_views = 1 if aligned else 2
        self.flips = (horizontal_flip, vertical_flip)
        if not all(0 <= probability <= 1 for probability in self.flips):
            raise UserError('horizontal_flip and vertical_flip are probabilities in [0, 1], got '
                            f'{horizontal_flip} and {vertical_flip}.')
        if interpolation not in ('bilinear', 'bicubic'):
            raise UserError("interpolation must be 'bilinear' or 'bicubic', got "
                            f'{interpolation!r}.')
        self.interpolation = interpolation

    def transform(self, results: dict) -> dict:
        """Add ``crops``."""
        image = results['img']
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f'AlignedCrops needs a uint8 RGB image [H, W, 3], got {image.dtype} '
                            f'{list(image.shape)} from {results.get("img_path")}.')
        results['crops'] = {name: self._cut(image, spec, results['rng'])
                            for name, spec in self.specs.items() if spec.number}
        return results

    def _cut(self, image: np.ndarray, spec: CropSpec, rng: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        crops = np.empty((self.num_views, spec.number, spec.size, spec.size, 3), np.uint8)
        for index in np.ndindex(self.num_views, spec.number):
            box = random_box(height, width, spec.scale, self.ratio, rng)
            flip_x, flip_y = rng.random(2) < self.flips
            resized = resize_box(image, box, spec.size, self.interpolation)
            flip_into(crops[index], resized, flip_x, flip_y)
        return crops


def random_box(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float],
               rng: np.random.Generator) -> Box:
    """Draw a box as torchvision's ``RandomResizedCrop`` does.

    The area is uniform in ``scale``, and the aspect ratio is log-uniform in ``ratio``. If none of
    ten boxes fits, the result is the largest central box whose aspect ratio is within ``ratio``.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(round(height * aspect), 1)), min(height, max(round(width / aspect), 1))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def resize_box(image: np.ndarray, box: Box, size: int,
               interpolation: str = 'bilinear') -> np.ndarray:
    """Resize a window of ``image`` to ``[size, size, 3]``, antialiased when shrinking.

    PyTorch's uint8 kernel: within one gray level of Pillow (which the reference uses) for any
    mixture of shrinking and growing sides, at a sixth of its time. OpenCV has no antialiased
    bilinear: INTER_AREA differs from Pillow by up to 35 levels and is five times slower.
    """
    window = image[box.top:box.top + box.height, box.left:box.left + box.width]
    # Batch axis first, then channels_last strides: the kernel reads the window without a copy.
    pixels = torch.from_numpy(window).unsqueeze(0).permute(0, 3, 1, 2)
    resized = interpolate(pixels, (size, size), mode=interpolation, antialias=True)
    return resized.permute(0, 2, 3, 1)[0].numpy()


def flip_into(target: np.ndarray, image: np.ndarray, flip_x: bool, flip_y: bool) -> None:
    """Copy ``image`` into ``target``, mirrored left-right (x) and upside down (y)."""
    if flip_x or flip_y:
        # Forty times faster than assigning a view with negative strides.
        cv2.flip(image, -1 if flip_x and flip_y else int(flip_x), dst=target)
    else:
        target[...] = image


def _crop_spec(name: str, given: Mapping[str, Any], default: CropSpec, least: int) -> CropSpec:
    unknown = sorted(set(given) - set(CropSpec._fields))
    if unknown:
        raise UserError(f'{name} has the unknown key(s) {", ".join(unknown)}; '
                        f'it takes {", ".join(CropSpec._fields)}.')
    spec = default._replace(**given)
    if spec.number < least:
        raise UserError(f'{name}: number must be >= {least}, got {spec.number}.')
    if spec.size < 1:
        raise UserError(f'{name}: size must be >= 1 pixel, got {spec.size}.')
    return spec._replace(scale=_ordered_pair(f'{name}: scale', spec.scale, 1))


def _ordered_pair(name: str, pair: Sequence[float], most: float) -> tuple[float, float]:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
        limit = '' if most == math.inf else f' <= {most:g}'
        raise UserError(f'{name} must be two numbers, 0 < smallest <= largest{limit}, '
                        f'got {tuple(pair)}.')
    return float(pair[0]), float(pair[1])
