"""Change the colors of many crops at once, each row with its own factors.

The formulas are torchvision's (``transforms.v2.functional``) on float RGB in [0, 1].

Shapes: R rows (crops x images, crop-major), images ``[R, 3, H, W]``, factors ``[R]``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from pera_mm.errors import UserError

BLUR_KERNEL = 9  # pixels; with the sigma, DINOv2's GaussianBlur
BLUR_SIGMA = (0.1, 2.0)  # pixels, lowest and highest
SOLARIZE_THRESHOLD = 128 / 255  # DINOv2's RandomSolarize
LUMA = (0.2989, 0.587, 0.114)  # weights of red, green and blue, ITU-R 601
SUM_TOLERANCE = 1e-6  # of two probabilities that must not sum to more than 1


@dataclass(frozen=True)
class ColorRecipe:
    """A recipe that says how often and how strongly the colors of a crop change.

    Attributes:
        jitter: probability of brightness, contrast, saturation and hue changes, in random order.
        gray: probability of gray.
        exclusive: True (reference PerA): a crop is jittered *or* gray; False (DINOv2): the two
            are drawn independently.
        brightness: the factor is uniform in 1 +- this, as for contrast and saturation.
        contrast: in [0, 1].
        saturation: in [0, 1].
        hue: the hue moves by a share of the color circle uniform in +- this, in [0, 0.5].
        blur: probability of a Gaussian blur, sigma uniform in 0.1-2 pixels.
        solarize: probability of inverting the values from 128/255 up.

    Raises:
        ValueError: for a value out of range, or jitter + gray > 1 when exclusive.
    """

    jitter: float = 0.0
    gray: float = 0.0
    exclusive: bool = True
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    blur: float = 0.0
    solarize: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            most = 0.5 if name == 'hue' else 1.0
            if not 0 <= value <= most:
                raise UserError(f'color recipe: {name} must be in [0, {most:g}], got {value}.')
        if self.exclusive and self.jitter + self.gray > 1 + SUM_TOLERANCE:
            raise UserError(f'color recipe: jitter {self.jitter:g} and gray {self.gray:g} '
                            'exclude each other, so they must not sum to more than 1; lower one, '
                            'or set exclusive=False.')


class ColorDraw(NamedTuple):
    """The drawn changes of each row."""

    jitter: Tensor  # bool [R]
    factors: Tensor  # float [4, R]: brightness, contrast, saturation, hue
    order: Tensor  # int64 [4, R]: which of the four comes first, second, ...
    gray: Tensor  # bool [R]
    blur: Tensor  # bool [R]
    sigma: Tensor  # float [R], pixels
    solarize: Tensor  # bool [R]


def draw_colors(recipes: Sequence[ColorRecipe], batch_size: int) -> ColorDraw:
    """Draw for ``len(recipes)`` crops of ``batch_size`` images: R rows, crop-major.

    PyTorch's default generator draws on the CPU, whatever the device of the images. So CPU and GPU
    runs agree, and finding the rows to change needs no device synchronization.
    """
    num_rows = len(recipes) * batch_size

    def column(name: str) -> Tensor:
        values = torch.tensor([float(getattr(recipe, name)) for recipe in recipes])
        return values.repeat_interleave(batch_size)

    chance = torch.rand(4, num_rows)
    jitter = chance[0] < column('jitter')
    gray = torch.where(column('exclusive').bool(),
                       ~jitter & (chance[0] < column('jitter') + column('gray')),
                       chance[1] < column('gray'))
    strength = torch.stack([column(name) for name in ('brightness', 'contrast', 'saturation',
                                                      'hue')])
    neutral = torch.tensor([[1.], [1.], [1.], [0.]])
    low, high = BLUR_SIGMA
    return ColorDraw(
        jitter=jitter,
        factors=neutral + strength * (2 * torch.rand(4, num_rows) - 1),
        order=torch.rand(4, num_rows).argsort(dim=0),
        gray=gray,
        blur=chance[2] < column('blur'),
        sigma=low + (high - low) * torch.rand(num_rows),
        solarize=chance[3] < column('solarize'))


def recolor_(images: Tensor, draw: ColorDraw) -> Tensor:
    """Carry out a draw, in place; rows without a drawn change stay as they are."""
    for step in draw.order:
        for number, adjust in enumerate(JITTER_STEPS):
            _edit_rows_(images, draw.jitter & (step == number), adjust, draw.factors[number])
    _edit_rows_(images, draw.gray, to_gray)
    _edit_rows_(images, draw.blur, gaussian_blur, draw.sigma)
    _edit_rows_(images, draw.solarize, solarize)
    return images


def _edit_rows_(images: Tensor, chosen: Tensor, edit: Callable[..., Tensor],
                *values: Tensor) -> None:
    rows = chosen.nonzero().squeeze(1)
    if len(rows):
        # non_blocking: otherwise each of these small copies waits for the device
        on_device = rows.to(images.device, non_blocking=True)
        images[on_device] = edit(images[on_device],
                                 *(v[rows].to(images, non_blocking=True) for v in values))


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by ``factor`` >= 0."""
    return (images * _per_row(factor)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean gray of the crop: 0 is flat, 1 unchanged."""
    return _blend(images, _luma(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray crop: 0 is gray, 1 unchanged."""
    return _blend(images, _luma(images), factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` in [-0.5, 0.5] of the color circle (through HSV)."""
    red, green, blue = images.unbind(1)
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    divisor = torch.where(chroma == 0, 1, chroma)  # gray has no hue: any will do
    sextant = torch.where(
        value == red, (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4))
    sextant += 6 * shift.view(-1, 1, 1)
    # Each channel falls from the value by the chroma, as its distance on the circle grows.
    channels = []
    for offset in (5, 3, 1):
        angle = (sextant + offset).remainder_(6)
        fall = torch.minimum(angle, 4 - angle).clamp_(0, 1)
        channels.append(value - chroma * fall)
    return torch.stack(channels, dim=1)


def to_gray(images: Tensor) -> Tensor:
    """Set all three channels to gray (ITU-R 601 luma)."""
    return _luma(images).expand_as(images)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur with a ``BLUR_KERNEL`` wide Gaussian of ``sigma`` pixels; borders are reflected."""
    rows, channels, height, width = images.shape
    radius = BLUR_KERNEL // 2
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = (-0.5 * (offsets / sigma.unsqueeze(1)).square()).softmax(dim=1)
    kernel = kernel.repeat_interleave(channels, dim=0).unsqueeze(1)  # [R * 3, 1, BLUR_KERNEL]
    # One group per row and channel: every row meets its own kernel.
    planes = pad(images, [radius] * 4, mode='reflect').flatten(0, 1).unsqueeze(0)
    # MMEngine prepares the batch inside the autocast of the step, which would halve the precision.
    with torch.autocast(images.device.type, enabled=False):
        planes = conv2d(planes, kernel.unsqueeze(2), groups=rows * channels)
        planes = conv2d(planes, kernel.unsqueeze(3), groups=rows * channels)
    return planes.view(rows, channels, height, width)


def solarize(images: Tensor) -> Tensor:
    """Invert every value from ``SOLARIZE_THRESHOLD`` up."""
    return torch.where(images >= SOLARIZE_THRESHOLD, 1 - images, images)


JITTER_STEPS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def _per_row(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)


def _blend(images: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    weight = _per_row(factor)
    return (images * weight + others * (1 - weight)).clamp_(0, 1)
