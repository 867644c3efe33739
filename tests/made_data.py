"""Data that tests of several folders make."""

from pathlib import Path

import cv2
import numpy as np

# The ViT that most tests share.
TINY_ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)


def noise_classes(root: Path, number: int, side: int, **levels: tuple[int, int]) -> Path:
    """Write ``number`` PNG files of noise per class, with levels from low to below high."""
    rng = np.random.default_rng(0)
    for name, (low, high) in levels.items():
        (root / name).mkdir(parents=True)
        for index in range(number):
            image = rng.integers(low, high, (side, side, 3), dtype=np.uint8)
            assert cv2.imwrite(str(root / name / f'{index}.png'), image)
    return root


def voc_xml(*boxes: tuple, size: tuple[int, int] = (20, 10)) -> str:
    """Annotate boxes: name, xmin, ymin, xmax, ymax, and more tags if there are any."""
    objects = ''.join(
        f'<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>'
        f'<ymax>{d}</ymax></bndbox>{more}</object>' for name, a, b, c, d, more in
        [(*box, '')[:6] for box in boxes])
    width, height = size
    return (f'<annotation><size><width>{width}</width><height>{height}</height></size>{objects}'
            '</annotation>')
