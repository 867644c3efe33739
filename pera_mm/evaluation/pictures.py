"""The pictures of figure 4: images of any size, and how they lie on a sheet."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pera_mm.datasets.reading import UnreadableImage, read_image
from pera_mm.errors import UserError
from pera_mm.evaluation.drawing import Tile, faded
from pera_mm.evaluation.features import evenly, fitted, images_below

HEADS = 7  # maps in a row of the file of an image, besides the image


class Picture(NamedTuple):
    """An image to draw."""

    name: str  # for the names of files
    path: str
    pixels: np.ndarray  # uint8 [H, W, 3], sides multiples of the patch size


def read_pictures(places: Sequence[str], number: int, side: int, patch_size: int) -> list[Picture]:
    """Read files, and ``number`` images spread evenly over each folder.

    Raises:
        ValueError: if a file cannot be read, or a folder has no image.
    """
    if number < 1 or side < 1:
        raise UserError(f'--number and --size must be at least 1, got {number} and {side}.')
    paths = []
    for place in places:
        found = images_below(place) if Path(place).is_dir() else [place]
        if not found:
            raise UserError(f'there is no image in {place}: check --images.')
        paths += evenly(found, number)
    pictures = []
    for index, path in enumerate(paths, 1):
        try:
            pixels = fitted(read_image(path), side, patch_size)
        except UnreadableImage as error:
            raise UserError(f'{path} cannot be read ({error}): choose other --images.') from None
        stem = re.sub(r'[^\w-]+', '_', Path(path).stem)
        pictures.append(Picture(f'{index:02}_{stem}', path, pixels))
    return pictures


def in_rows(groups: Sequence[Sequence[Tile]], number: int) -> list[list[Tile | None]]:
    """Put ``number`` groups of pictures into a row, with gaps between."""
    rows: list[list[Tile | None]] = []
    for index, group in enumerate(groups):
        if index % number:
            rows[-1] += [None, *group]
        else:
            rows.append([*group])
    return rows


def attention_rows(picture: Picture, maps: Tensor, chosen: Tensor, layers: Sequence[int],
                   mass: float) -> list[list[Tile | None]]:
    """Lay out the mean and all heads of an image, each above the image where its mass lies.

    Args:
        picture: the image.
        maps: float ``[L, 1 + heads, h, w]``, the mean first.
        chosen: bool, likewise.
        layers: their numbers.
        mass: the share of the attention that ``chosen`` holds.
    """
    rows: list[list[Tile | None]] = []
    blank = Tile(np.full_like(picture.pixels, 255))
    for layer, layer_maps, layer_chosen in zip(layers, maps.numpy(), chosen.numpy()):
        names = ['mean of heads', *(f'head {n}' for n in range(1, len(layer_maps)))]
        tiles = list(zip(names, layer_maps, layer_chosen))
        for start in range(0, len(tiles), HEADS):
            part = tiles[start:start + HEADS]
            first = Tile(picture.pixels, f'layer {layer}') if start == 0 else blank
            rows.append([first, None, *(Tile(map_, name) for name, map_, _ in part)])
            rows.append([blank, None, *(Tile(faded(picture.pixels, where), caption=(
                f'{mass:.0%} on {where.mean():.0%} of patches')) for _, _, where in part)])
    return rows
