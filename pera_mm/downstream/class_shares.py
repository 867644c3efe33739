"""The share of each class in the labels of a data set, and weights for the loss if one is rare."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pera_mm.datasets.masks import UNLABELLED
from pera_mm.errors import UserError

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
        is_named: Whether the data set names its classes; otherwise they are as many as its labels.
    """

    unit: str
    names: tuple[str, ...]
    counts: NDArray[np.float64]
    seen: int
    total: int
    is_named: bool = True


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
        """Count the label of an image, or of each of its boxes.

        Raises:
            ValueError: if a label is not a class.
        """
        labels = [box['bbox_label'] for box in sample.get('instances', ())
                  if not box['ignore_flag']]
        if 'gt_label' in sample:
            self._unit = 'images'
            labels = np.atleast_1d(sample['gt_label']).tolist()
        for label in labels:
            if label < 0 or self.names and label >= len(self.names):
                raise UserError(f'{sample["img_path"]} has the label {label}, which is not a '
                                f'class: {self._allowed()}.')
        self._labels += labels

    def add_mask(self, mask: NDArray[np.uint8], path: str) -> None:
        """Count the pixels of a mask ``[H, W]``: class ids, 255 where not labelled.

        Raises:
            ValueError: if a value is not a class.
        """
        self.add_values(np.bincount(mask.reshape(-1), minlength=len(self._values)), path)

    def add_values(self, values: NDArray[np.int64], path: str) -> None:
        """Count the pixels ``[256]`` of each value of a mask.

        Raises:
            ValueError: as :meth:`add_mask`.
        """
        unknown = np.flatnonzero(values[:UNLABELLED]) if self.names else np.empty(0, int)
        unknown = unknown[unknown >= len(self.names)]
        if unknown.size:
            raise UserError(f'{path} has the label {unknown[0]}, which is not a class: '
                            f'{self._allowed()}, and {UNLABELLED} where not labelled.')
        self._values += values
        self._masks += 1

    def _allowed(self) -> str:
        last = f' to {len(self.names) - 1}, as metainfo.classes names them' if self.names else ''
        return f'labels count from 0{last}'

    def result(self) -> ClassCounts | None:
        """Return the counts; None if there are no labels."""
        if self._masks:
            values = self._values * (self.total / self._masks)
            names = self.names or _numbered(np.flatnonzero(values[:UNLABELLED]))
            counts = np.append(values[:len(names)], values[UNLABELLED])
            return ClassCounts('pixels', names, counts, self._masks, self.total, bool(self.names))
        if not self._labels:
            return None
        names = self.names or _numbered(self._labels)
        counts = np.bincount(self._labels, minlength=len(names) + 1).astype(float)
        return ClassCounts(self._unit, names, counts, self.total, self.total, bool(self.names))


def _numbered(labels: Sequence[int] | NDArray) -> tuple[str, ...]:
    return tuple(f'class {index}' for index in range(max(labels, default=-1) + 1))


def join(parts: Sequence[ClassCounts | None]) -> ClassCounts | None:
    """Add the counts of the parts of a data set; None if there are none or the classes differ."""
    found = [part for part in parts if part is not None]
    if len({(part.unit, part.is_named and part.names) for part in found}) != 1:
        return None
    names = max((part.names for part in found), key=len)
    counts = np.zeros(len(names) + 1)
    for part in found:
        counts[:len(part.names)] += part.counts[:-1]
        counts[-1] += part.counts[-1]
    return found[0]._replace(
        names=names, counts=counts, seen=sum(part.seen for part in found),
        total=sum(part.total for part in found))


def shares_line(counts: ClassCounts, split: str) -> str:
    """Write the share of each class in one line for the log.

    Args:
        counts: The labels of the split.
        split: Its name.
    """
    shares = ', '.join(f'{name} {share}' for name, share in percentages(counts).items())
    files = 'masks' if counts.unit == 'pixels' else 'images'
    number = 'all' if counts.seen == counts.total else f'{counts.seen} of'
    unlabelled = not_labelled(counts)
    rest = f'; {unlabelled} of all pixels are not labelled' if unlabelled else ''
    return (f'Classes of the {split} set by their share of the {counts.unit}, from {number} '
            f'{counts.total} {files}: {shares}{rest}.')


def percentages(counts: ClassCounts) -> dict[str, str]:
    """Return the share of each class in what is labelled, as texts like '3.1 %'."""
    return dict(zip(counts.names, map(_percent, _shares(counts))))


def not_labelled(counts: ClassCounts) -> str | None:
    """Return the share of what is not labelled in all, such as '50 %'; None if there is none."""
    return _percent(counts.counts[-1] / counts.counts.sum()) if counts.counts[-1] else None


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
