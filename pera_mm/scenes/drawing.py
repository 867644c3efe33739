"""The way from a plan to a drawn scene: image, mask, boxes and change.

A scene is a plan drawn in meters and photographed at two dates. The land uses differ in shape and
texture, but their colors overlap. A scene is a pure function of (land use, seed, size).

The mask's ids 1-5 are those of ISPRS Potsdam; 0 (no data) never occurs, so that
``reduce_zero_label`` works as with the real sets.
"""

import zlib
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pera_mm.errors import UserError
from pera_mm.scenes.canvas import BARE, BUILDING, GRASS, IMPERVIOUS, TREE, WATER, Canvas
from pera_mm.scenes.noise import fractal_noise, smooth_noise, white_noise
from pera_mm.scenes.plans.land_uses import LAND_USES, PLANS

# The names of a mask's values. Tanks count as buildings, ships and aircraft as vehicles, fields
# (ploughed ones too) as low vegetation.
LAND_COVER = ('no data', 'impervious', 'building', 'low vegetation', 'tree', 'vehicle', 'water',
              'bare')  # fmt: skip
# The names of boxes, in DIOR's spelling.
OBJECTS = ('airplane', 'baseballfield', 'groundtrackfield', 'ship', 'storagetank', 'tenniscourt',
           'vehicle')  # fmt: skip
MIN_SIZE = 32  # pixels, of a scene
MIN_SIDE = 3  # pixels, of a box
MIN_INSIDE = 0.5  # of an object's area lies in the picture
MIN_VISIBLE = 0.35  # of an object's outline still shows its land cover

# Texture strength by land cover: grain of a pixel or two, clumps of 3 m, patches of 25 m.
_TEXTURE = np.zeros((8, 3), np.float32)
_TEXTURE[IMPERVIOUS] = 0.03, 0.025, 0.05
_TEXTURE[BUILDING] = 0.02, 0.02, 0.03
_TEXTURE[GRASS] = 0.06, 0.06, 0.08
_TEXTURE[TREE] = 0.12, 0.07, 0.06
_TEXTURE[WATER] = 0.02, 0.02, 0.05
_TEXTURE[BARE] = 0.06, 0.06, 0.09


class Scene(NamedTuple):
    """A drawn scene of S x S pixels with every label the downstream tasks need."""

    image: NDArray[np.uint8]  # RGB [S, S, 3], first date
    mask: NDArray[np.uint8]  # land cover of the first date [S, S], indices of LAND_COVER
    boxes: NDArray[np.float32]  # objects of the first date, xyxy in pixels [n, 4]
    labels: tuple[str, ...]  # n names out of OBJECTS
    second_image: NDArray[np.uint8]  # RGB [S, S, 3], the same place at another date
    change: NDArray[np.uint8]  # 255 where a building came or went, else 0 [S, S]


def draw_date(land_use: str, seed: int, size: int, date: int) -> tuple[Canvas, NDArray[np.uint8]]:
    """Draw a scene at one of its two dates, 0 or 1.

    Returns:
        The canvas after drawing, and its image, RGB [S, S, 3].
    """
    plan, zoom = PLANS[land_use]
    canvas = Canvas([zlib.crc32(land_use.encode()), seed], size, zoom, date)
    plan(canvas)
    return canvas, photograph(canvas)


def draw_scene(land_use: str, seed: int, size: int = 256) -> Scene:
    """Draw one scene at its two dates; the same arguments give the same bytes.

    Args:
        land_use: One of LAND_USES.
        seed: A number of at least 0; scenes of neighboring seeds are unrelated.
        size: Side of the picture in pixels. At 256 a pixel is 0.3-1.2 m wide; smaller pictures
            are coarser and larger ones finer, both by the root of the ratio.

    Raises:
        ValueError: Unknown land use, negative seed, or a size below 32.
    """
    if land_use not in PLANS:
        raise UserError(f'unknown land use {land_use!r}: choose one of {", ".join(LAND_USES)}')
    check_number('seed', seed, 0)
    check_number('size', size, MIN_SIZE)
    canvas, image = draw_date(land_use, seed, size, date=0)
    later, second_image = draw_date(land_use, seed, size, date=1)
    change = ((canvas.cover == BUILDING) != (later.cover == BUILDING)).astype(np.uint8) * 255
    boxes, labels = find_objects(canvas)
    return Scene(image, canvas.cover, boxes, labels, second_image, change)


def find_objects(canvas: Canvas) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Find the objects that are at least half in the picture and not hidden.

    Returns:
        Boxes, xyxy in pixels [n, 4], and their n names out of OBJECTS.
    """
    names, boxes = [], []
    for name, pixels, cover in canvas.objects:
        low, high = pixels.min(0), pixels.max(0)
        start, end = low.clip(0, canvas.size), high.clip(0, canvas.size)
        whole = (high - low).prod()
        if (end - start).min() < MIN_SIDE or (end - start).prod() < MIN_INSIDE * whole:
            continue
        if cover:
            (x, y), (right, bottom) = np.floor(start).astype(int), np.ceil(end).astype(int)
            share = cv2.contourArea(cv2.convexHull(pixels.astype(np.float32))) / whole
            if np.mean(canvas.cover[y:bottom, x:right] == cover) < MIN_VISIBLE * share:
                continue
        names.append(name)
        boxes.append(np.concatenate([start, end]))
    return np.array(boxes, np.float32).reshape(-1, 4), tuple(names)


def check_number(name: str, value: int, least: int) -> None:
    """Check a number that a user gives.

    Raises:
        UserError: If it is below ``least``.
    """
    if value < least:
        raise UserError(f'{name} is {value}, but must be at least {least}')


def photograph(canvas: Canvas) -> NDArray[np.uint8]:
    """Turn the painted ground into an RGB image [S, S, 3]: light, texture, haze and sensor."""
    rng, size = canvas.paint, canvas.size
    grain, clumps, patches = np.moveaxis(_TEXTURE[canvas.cover], -1, 0)
    light = 1 + grain * smooth_noise(rng, size, 1.4)
    light += clumps * fractal_noise(rng, size, max(2, 3 / canvas.gsd), 2)
    light += patches * fractal_noise(canvas.layout, size, max(3, 25 / canvas.gsd), 3)
    if canvas.relief.any():
        height = cv2.GaussianBlur(canvas.relief, (0, 0), 0.6)
        slope = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=canvas.away[0] / 8)
        slope += cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=canvas.away[1] / 8)
        light *= 1 + 0.42 * np.clip(slope, -1.4, 1.4)
    light *= 1 - canvas.shadow * np.float32(rng.uniform(0.4, 0.62) / 255)
    return _sensor(canvas.color * np.clip(light, 0.1, 2)[..., None], rng)


def _sensor(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply blur, saturation, exposure, haze and noise, so that the mean color tells little."""
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.95))
    mean = image.mean((0, 1))
    saturation = rng.uniform(0.55, 1.15)
    # Exposure nearly reaches a random brightness. White balance stops part of the way to gray, with
    # a random tint: a full balance would turn woods pink.
    balance = (mean / mean.mean()) ** -0.2 * (1 + 0.03 * rng.standard_normal(3))
    gain = balance * np.clip((rng.uniform(85, 130) / mean.mean()) ** 0.7, 0.5, 2)
    contrast, haze = rng.uniform(0.85, 1.15), rng.beta(1, 4) * 0.35
    # All of it is one linear map of the colors.
    mix = saturation * np.eye(3) + (1 - saturation) / 3
    mix = np.diag(gain * contrast * (1 - haze)) @ mix
    offset = gain * (1 - contrast) * (1 - haze) * mean + haze * np.array([168, 178, 190])
    image = cv2.transform(image, np.column_stack([mix, offset]).astype(np.float32))
    noise = white_noise(rng, image.shape[0]) * np.float32(rng.uniform(0.5, 5))
    for channel in range(3):  # the channels share one field, shifted: drawing three is slower
        image[..., channel] += np.roll(noise, 17 * channel, axis=(0, 1))
    return image.clip(0, 255).astype(np.uint8)
