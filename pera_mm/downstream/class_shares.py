"""The share of each class in the labels of a data set, and weights for the loss if one is rare."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pera_mm.downstream.metrics import UNLABELLED

RARE = 0.05  # a class with a smaller share is rare
# The place of the loss in our configs, and a loss with weights. The mean weight of a label is 1, so
# no loss needs to be divided by the sum of the weights. MMSegmentation 1.2.2 does this, looks up
# the weight of 255 (not labelled) for it, and fails (mmsegmentation#3734); with reduction='none'
# the model takes the plain mean.
LOSSES = dict(
    pixels="decode_head=dict(loss_decode=dict(_delete_=True, type='mmseg.CrossEntropyLoss', "
           "reduction='none', class_weight={weights}))",
    images="head=dict(loss=dict(_delete_=True, type='mmpretrain.CrossEntropyLoss', "
           'class_weight={weights}))')


class ClassCounts(NamedTuple):
    """The number of labels of each class.

    Attributes:
        unit: What has a label: 'pixels', 'images' or 'boxes'.
        names: The C classes.
        counts: float ``[C + 1]``; the last counts what is not labelled. Counts of a sample are
            enlarged to the whole data set.
        seen: The number of files whose labels were counted.
        total: The number of files.
    """

    unit: str
    names: tuple[str, ...]
    counts: NDArray[np.float64]
    seen: int
    total: int


class LabelCounter:
    """A counter of the labels of a data set of MMSegmentation, MMPretrain or MMDetection.

    Labels of images and boxes are known without a file; of masks, some are loaded and added.
    Boxes that are ignored in training ('difficult') do not count.

    Args:
        dataset: The data set. If it names no classes, they are called 'class 0', 'class 1' ...
    """

    def __init__(self, dataset: Any) -> None:
        self.names = tuple((dataset.metainfo or {}).get('classes') or ())
        self.total = len(dataset)
        self._unit = 'boxes'
        self._labels: list[int] = []
        self._values = np.zeros(UNLABELLED + 1, np.int64)  # pixels of each value
        self._masks = 0

    def add_sample(self, sample: dict) -> None:
        """Count the label of an image, or of each of its boxes."""
        if 'gt_label' in sample:
            self._unit = 'images'
            self._labels += np.atleast_1d(sample['gt_label']).tolist()
        self._labels += [box['bbox_label'] for box in sample.get('instances', ())
                         if not box['ignore_flag']]

    def add_mask(self, mask: NDArray[np.uint8]) -> None:
        """Count the pixels of a mask ``[H, W]``: class ids, 255 where not labelled."""
        self._values += np.bincount(mask.reshape(-1), minlength=len(self._values))
        self._masks += 1

    def result(self) -> ClassCounts | None:
        """Return the counts; None if there are no labels."""
        if self._masks:
            values = self._values * (self.total / self._masks)
            counts = np.append(values[:len(self.names)], values[UNLABELLED])
            return ClassCounts('pixels', self.names, counts, self._masks, self.total)
        if not self._labels:
            return None
        number = max(len(self.names), max(self._labels) + 1)
        names = self.names + tuple(f'class {i}' for i in range(len(self.names), number))
        counts = np.bincount(self._labels, minlength=number + 1).astype(float)
        return ClassCounts(self._unit, names, counts, self.total, self.total)


def join(parts: Sequence[ClassCounts | None]) -> ClassCounts | None:
    """Add the counts of the parts of a data set; None if there are none or the classes differ."""
    found = [part for part in parts if part is not None]
    if len({(part.unit, part.names) for part in found}) != 1:
        return None
    return found[0]._replace(
        counts=np.sum([part.counts for part in found], axis=0),
        seen=sum(part.seen for part in found), total=sum(part.total for part in found))


def shares_line(counts: ClassCounts, split: str) -> str:
    """Write the share of each class in one line for the log.

    Args:
        counts: The labels of the split.
        split: Its name.
    """
    shares = ', '.join(f'{name} {_percent(share)}'
                       for name, share in zip(counts.names, _shares(counts)))
    files = 'masks' if counts.unit == 'pixels' else 'images'
    number = 'all' if counts.seen == counts.total else f'{counts.seen} of'
    unlabelled = counts.counts[-1] / counts.counts.sum()
    rest = f'; {_percent(unlabelled)} of all pixels are not labelled' if unlabelled else ''
    return (f'Classes of the {split} set by their share of the {counts.unit}, from {number} '
            f'{counts.total} {files}: {shares}{rest}.')


def weights_advice(counts: ClassCounts) -> str | None:
    """Name the rare classes and the line of the config that weighs the classes.

    See :func:`class_weights` for the weights.

    Args:
        counts: The labels of the train set.

    Returns:
        Two lines; None if no class is rare, or the labels are of boxes.
    """
    shares = _shares(counts)
    rare = [f'{name} ({_percent(share)})' for name, share in zip(counts.names, shares)
            if share < RARE]
    if not rare or counts.unit not in LOSSES:
        return None
    weights = [float(f'{weight:.3g}') for weight in class_weights(shares)]
    return (f'Below {100 * RARE:.0f} % of the {counts.unit}: {", ".join(rare)}. This line in the '
            'config weighs each class by the inverse square root of its share:\n'
            f'model = dict({LOSSES[counts.unit].format(weights=weights)})')


def class_weights(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the weight of each class: the inverse square root of its share, scaled.

    This is the smoothed form of the inverse share: square-root sampling of Mahajan et al.,
    "Exploring the Limits of Weakly Supervised Pretraining" (ECCV 2018), as weights of a loss in Cui
    et al., "Class-Balanced Loss" (CVPR 2019), introduction. A class of 0.1 % weighs thirty times
    one of 90 %; the inverse share would make it 900 times, and single pixels would rule a step. The
    scale makes the mean weight of all labels 1, which leaves the size of the loss as it is.

    Args:
        shares: ``[C]``, sum 1.

    Returns:
        Weights ``[C]``; 1 for a class that does not occur.
    """
    weights = np.ones(len(shares))
    present = shares > 0
    weights[present] = 1 / (np.sqrt(shares[present]) * np.sqrt(shares).sum())
    return weights


def _shares(counts: ClassCounts) -> NDArray[np.float64]:
    """Compute the share of each class in what is labelled; 0 if nothing is."""
    return counts.counts[:-1] / max(counts.counts[:-1].sum(), 1)


def _percent(share: float) -> str:
    return f'{100 * share:.3g} %'
