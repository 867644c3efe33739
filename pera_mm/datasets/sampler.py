"""The order of the images in training: a pure function of (seed, epoch, position)."""

from collections.abc import Iterator, Sized
from typing import NamedTuple

import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from pera_mm.errors import UserError
from pera_mm.registry import DATA_SAMPLERS
from pera_mm.seeds import hash_seed


class Draw(NamedTuple):
    """A sample to make: the number of its image, and the seed of all its randomness."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    seed: int  # 63 bits


@DATA_SAMPLERS.register_module()
class DrawSampler(Sampler):
    """A sampler of :class:`Draw`, independent of the world size, the workers and a resume.

    Rank r takes the positions r, r + W, r + 2W … of the epoch's order. One step of W ranks thus
    draws the same images as one step of a single process with the W-fold batch. The epoch is cut
    to a multiple of W, never padded.

    Args:
        dataset: If it has ``epoch_order(generator) -> LongTensor``, that is the order of an
            epoch; otherwise a permutation of its indices.
        seed: The key of the order and of every draw; None: one random seed for all ranks.
        shuffle: False: the indices in ascending order in every epoch.

    Attributes:
        start: Samples of this rank to leave out at the beginning of the next pass (resume).
            That pass resets it to 0.

    Raises:
        ValueError: if there are fewer images than ranks.
    """

    def __init__(self, dataset: Sized, seed: int | None = 0, shuffle: bool = True) -> None:
        self.rank, self.world_size = get_dist_info()
        if len(dataset) < self.world_size:
            raise UserError(f'the data set has {len(dataset)} images, fewer than the '
                            f'{self.world_size} processes: add images or use fewer processes.')
        self.dataset = dataset
        self.seed = sync_random_seed() if seed is None else seed
        self.shuffle = shuffle
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next pass draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        """The number of samples per rank and epoch, independent of ``start``."""
        return len(self.dataset) // self.world_size

    def __iter__(self) -> Iterator[Draw]:
        epoch, start = self.epoch, self.start
        self.start = 0
        order = self._order(epoch).numpy()
        for step in range(start, len(self)):
            position = step * self.world_size + self.rank
            yield Draw(int(order[position]), hash_seed(self.seed, epoch, position))

    def _order(self, epoch: int) -> torch.Tensor:
        """The indices of one epoch over all ranks, int64 ``[len(dataset)]``."""
        if not self.shuffle:
            return torch.arange(len(self.dataset))
        generator = torch.Generator().manual_seed(hash_seed(self.seed, epoch))
        if hasattr(self.dataset, 'epoch_order'):
            return self.dataset.epoch_order(generator)
        return torch.randperm(len(self.dataset), generator=generator)
