"""Random fields for the uneven land, crowns and sensors of drawn pictures."""

from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray


def white_noise(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Draw uniform noise [size, size] of mean 0 and deviation 1; bytes are the fastest to draw."""
    noise = rng.integers(0, 256, (size, size), dtype=np.uint8).astype(np.float32)
    return (noise - np.float32(127.5)) * np.float32(1 / 73.9)


def smooth_noise(rng: np.random.Generator, size: int, cell: float) -> NDArray[np.float32]:
    """Draw noise [size, size] of about unit deviation with features ``cell`` pixels wide."""
    start = rng.random(2) * 2
    coarse = white_noise(rng, ceil(size / cell) + 4)
    grid = np.array([[1 / cell, 0, start[0]], [0, 1 / cell, start[1]]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(coarse, grid, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT)


def fractal_noise(rng: np.random.Generator, size: int, cell: float,
                  octaves: int = 4) -> NDArray[np.float32]:
    """Draw noise [size, size] of about unit deviation with detail from ``cell`` pixels down."""
    field = smooth_noise(rng, size, cell)
    for octave in range(1, octaves):
        field += 0.55**octave * smooth_noise(rng, size, max(cell / 2**octave, 1.3))
    return field * np.float32(0.85)


# Not merged with ``fractal_noise``: their random numbers and interpolation differ, so pixels would.
def relief_noise(rng: np.random.Generator, size: int, cell: float,
                 octaves: int = 4) -> NDArray[np.float32]:
    """Draw the noise of a planet: [size, size], detail from ``cell`` pixels down."""
    field = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        points = min(max(int(size * 2**octave / cell), 3), size)
        coarse = np.float32(0.55**octave) * rng.standard_normal((points, points), np.float32)
        field += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    return field
