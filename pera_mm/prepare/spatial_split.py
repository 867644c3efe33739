"""A split of tiles into training and validation by place: no tile of one touches one of the other.

Neighboring tiles show the same fields, roofs and shadows. If one trains and the other validates,
the score says how well the model remembers.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pera_mm.errors import UserError

TRAIN, VAL, GAP = 0, 1, 2
MAX_BLOCK = 8  # tiles along a side of a block; the gap around a larger one is hardly narrower
NEAR = 0.5  # tiles; what is nearer than this is a neighbor


class _Cost(NamedTuple):
    """What a block costs if it becomes part of the validation; the smallest is taken."""

    classes_lost: int  # to the training
    classes_found: int  # for the validation, negative
    tiles_lost: float  # to the gap, per tile of the block
    number: int


def spatial_split(boxes: NDArray[np.float64], present: NDArray[np.bool_],
                  share: float) -> NDArray[np.int8]:
    """Split tiles by square blocks of tiles, with a gap between the two parts.

    Blocks have at most 8 x 8 tiles, fewer where the share has fewer. One after another, that block
    becomes part of the validation which takes no class away from the training, brings classes that
    the validation lacks, and loses the fewest tiles to the gap; so blocks lie at edges where the
    classes allow it. There are no random numbers.

    Args:
        boxes: ``[N, 4]``, left, bottom, right and top of each tile in one coordinate system. Tiles
            may overlap.
        present: ``[N, C]``, whether a tile shows a class.
        share: of the tiles for validation, above 0 and below 1; it is met to half a block.

    Returns:
        For each tile TRAIN, VAL, or GAP: it is neither, since it lies less than half a tile away
        from a tile of the validation. ``[N]``

    Raises:
        ValueError: if the share is out of range, or the tiles are too few or too near.
    """
    if not 0 < share < 1:
        raise UserError(f'the share of the validation is {share}, but must lie between 0 and 1.')
    blocks = _blocks(boxes, share)
    members = [np.flatnonzero(blocks == block) for block in range(blocks.max() + 1)]
    reach = _reach(boxes, blocks, len(members))
    part = np.full(len(boxes), TRAIN, np.int8)
    free = set(range(len(members)))
    while free:
        costs = [cost for block in sorted(free)
                 if (cost := _cost(block, members, reach, part, present)) is not None]
        if not costs:
            break
        block = min(costs).number
        found = (part == VAL).sum()
        if found and found + len(members[block]) / 2 > share * len(boxes):
            break
        free.remove(block)
        part[reach[block][part[reach[block]] == TRAIN]] = GAP
        part[members[block]] = VAL
    if not (part == VAL).any():
        raise UserError(f'{len(boxes)} tiles with labels are too few, or too near each other, for '
                        'a training and a validation with a gap of a tile between them: choose '
                        'smaller tiles, or give more scenes.')
    return part


def _blocks(boxes: NDArray[np.float64], share: float) -> NDArray[np.int64]:
    """Number the blocks of a square grid; ``[N]``, from 0 without a gap."""
    side = int(np.clip(np.sqrt(len(boxes) * share), 1, MAX_BLOCK))
    size = np.median(boxes[:, 2:] - boxes[:, :2], axis=0) * side
    centers = (boxes[:, 2:] + boxes[:, :2]) / 2
    # From the upper left corner, as the tiles of a scene are cut.
    corner = np.array([boxes[:, 0].min(), boxes[:, 3].max()])
    cells = np.floor((centers - corner) / size * (1, -1)).astype(np.int64)
    return np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)


def _reach(boxes: NDArray[np.float64], blocks: NDArray[np.int64],
           number: int) -> list[NDArray[np.int64]]:
    """List for each block its tiles and those near them."""
    from shapely import STRtree, box

    margin = (boxes[:, 2:] - boxes[:, :2]) * NEAR * (1 - 1e-6)
    grown = np.hstack([boxes[:, :2] - margin, boxes[:, 2:] + margin])
    one, other = STRtree(box(*boxes.T)).query(box(*grown.T), predicate='intersects')
    return [np.unique(other[blocks[one] == block]) for block in range(number)]


def _cost(block: int, members: list[NDArray], reach: list[NDArray], part: NDArray[np.int8],
          present: NDArray[np.bool_]) -> _Cost | None:
    """Compute what a block costs; None if no tile would be left for training."""
    before = part == TRAIN
    after = before.copy()
    after[reach[block]] = False
    if not after.any():
        return None
    lost = present[before].any(0) & ~present[after].any(0)
    found = present[members[block]].any(0) & ~present[part == VAL].any(0)
    tiles = before.sum() - after.sum() - before[members[block]].sum()
    return _Cost(int(lost.sum()), -int(found.sum()), float(tiles) / len(members[block]), block)
