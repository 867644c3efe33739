"""A split of labelled images that keeps neighbors in the listing together."""

import torch
from torch import Tensor

from pera_mm.errors import UserError
from pera_mm.evaluation.features import Split

BLOCK = 10  # images


def index_blocks(labels: Tensor, block: int = BLOCK) -> Tensor:
    """Number the index blocks: runs of ``block`` images that follow each other in a class.

    Scenes are often numbered as they were cut, so that neighbors show the same place or the same
    season. In RSSCN7 (numbers 1-100, 101-200 ... of a class are its four zoom levels) the colors
    of images n and n + 1 differ 1.24 deviations, those of n and n + 20 or more of the same zoom
    level 1.96, those of n and n + 100 2.00: neighbors are alike, and the zoom levels do not show
    the same places. So a block of ten lies within one zoom level.

    Args:
        labels: int64 ``[N]``, classes in the order of the listing.
        block: images of a block, >= 1. A class of fewer than four blocks has smaller ones, a
            quarter of it; its last block holds what is left.

    Returns:
        The number of the block, int64 ``[N]``, from 0 and different between classes.
    """
    numbers = torch.empty_like(labels)
    first = 0
    for label in labels.unique():
        members = torch.where(labels == label)[0]
        size = min(block, max(len(members) // 4, 1))
        numbers[members] = first + torch.arange(len(members)) // size
        first = int(numbers[members].max()) + 1
    return numbers


def block_split(labels: Tensor, every: int = 2, block: int = BLOCK) -> Split:
    """Give whole index blocks to the test: of each class the last of every ``every`` blocks.

    With blocks of ten and ``every`` = 2 the first ten images of a class are for training, the next
    ten for testing, and so on. It has no seed.

    Args:
        labels: int64 ``[N]``, classes in the order of the listing.
        every: >= 2; 2 halves each class.
        block: as in :func:`index_blocks`.

    Raises:
        ValueError: if ``every`` < 2, or a class has too few images for one block of each part.
    """
    if every < 2:
        raise UserError(f'every must be at least 2, got {every}.')
    numbers, test = index_blocks(labels, block), torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = labels == label
        test[members] = (numbers[members] - numbers[members].min()) % every == every - 1
        if not test[members].any():
            raise UserError(f'class number {int(label)} has {int(members.sum())} image(s), but a '
                            f'split into every {every} index blocks needs at least {every}.')
    return Split(torch.where(~test)[0], torch.where(test)[0])
