"""The scores of segmentation or change maps under named protocols, from one pass of the test.

Publications count in different ways: with or without clutter, with whole or with eroded borders.
Here every number has the name of its protocol.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from numpy.typing import NDArray

from pera_mm.datasets.masks import UNLABELLED  # such a pixel is never counted
from pera_mm.errors import UserError
from pera_mm.registry import METRICS

MIN_COLUMN_WIDTH = 15  # characters, of the table in the log


class Protocol(NamedTuple):
    """The pixels and classes that a score counts.

    Attributes:
        average: the class ids whose scores are averaged; empty: all.
        ignore: ground-truth pixels of these class ids are not counted. Predictions at these
            pixels do not matter; a prediction of these classes elsewhere is still wrong.
        border: the radius in pixels of a disc (3 in the eroded references of ISPRS).
            Ground-truth pixels with another class in this disc are not counted. Neither the edge
            of the image nor unlabelled pixels are a border.
    """

    average: Sequence[int] = ()
    ignore: Sequence[int] = ()
    border: int = 0


@METRICS.register_module()
class ConfusionMetric(BaseMetric):
    """A confusion matrix, scored under several named protocols, in percent.

    It reports ``<protocol>/mF1``, ``<protocol>/mIoU`` and ``<protocol>/OA``. If exactly one class
    is averaged, it reports ``<protocol>/F1``, ``/IoU``, ``/precision`` and ``/recall`` instead. The
    matrix is summed over all images before any score is computed. A class that occurs neither in
    the ground truth nor in the prediction has no score and is left out of the mean. A class that is
    only predicted scores 0. OA is the share of right pixels among all pixels that the protocol
    counts, also those of classes outside ``average``.

    It works on the data samples of MMSegmentation and Open-CD: ``pred_sem_seg`` and ``gt_sem_seg``
    with ``data`` [1, H, W]; 255 in the ground truth is never counted.

    Args:
        protocols: name to fields of :class:`Protocol`, such as
            ``{'5-class': dict(average=[0, 1, 2, 3, 4])}``.

    Raises:
        ValueError: on a protocol with unknown fields or class ids, and on a sample without ground
            truth, with an id that is not a class, or of another size than the prediction.
    """

    def __init__(self, protocols: Mapping[str, Mapping], collect_device: str = 'cpu') -> None:
        super().__init__(collect_device=collect_device)
        if not protocols:
            raise UserError('ConfusionMetric needs at least one protocol, such as '
                            "protocols={'all classes': {}}.")
        for name, fields in protocols.items():
            unknown = set(fields) - set(Protocol._fields)
            if unknown:
                raise UserError(f'Protocol {name!r} has no field {min(unknown)!r}; it takes '
                                f'{", ".join(Protocol._fields)}.')
        self.protocols = {name: Protocol(**fields) for name, fields in protocols.items()}
        self.borders = sorted({protocol.border for protocol in self.protocols.values()})

    @property
    def classes(self) -> Sequence[str]:
        """The data set's class names; their order gives the ids."""
        return self.dataset_meta['classes']

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Store one confusion matrix per border width of every sample."""
        for sample in data_samples:
            where = sample.get('seg_map_path') or sample.get('img_path', 'a sample')
            if 'gt_sem_seg' not in sample:
                raise UserError(f'{where} has no ground truth, so there is nothing to score.')
            truth = _map_of(sample['gt_sem_seg']).astype(np.uint8)
            predicted = _map_of(sample['pred_sem_seg'])
            try:
                self.results.append(np.stack([
                    confusion(erode(truth, border), predicted, len(self.classes))
                    for border in self.borders]))
            except UserError as error:
                raise UserError(f'{where}: {error}') from None

    def compute_metrics(self, results: list[NDArray[np.int64]]) -> dict[str, float]:
        """Score the sum of all matrices; log the scores of every class."""
        matrices = dict(zip(self.borders, np.sum(results, axis=0)))
        scores: dict[str, float] = {}
        classes: dict[str, dict[str, NDArray]] = {}
        for name, protocol in self.protocols.items():
            self._check_ids(name, protocol)
            matrix = matrices[protocol.border].copy()
            matrix[list(protocol.ignore)] = 0
            chosen = list(protocol.average) or list(range(len(matrix)))
            classes[name] = class_scores(matrix)
            scores.update({f'{name}/{key}': round(float(value), 2)
                           for key, value in _summary(matrix, classes[name], chosen).items()})
        print_log(f'F1 / IoU of each class:\n{self._table(classes)}', 'current')
        return scores

    def _check_ids(self, name: str, protocol: Protocol) -> None:
        wrong = {*protocol.average, *protocol.ignore} - set(range(len(self.classes)))
        if wrong:
            raise UserError(f'Protocol {name!r} names class {min(wrong)}, but the data set has '
                            f'{len(self.classes)} classes, 0 to {len(self.classes) - 1}.')

    def _table(self, scores: dict[str, dict[str, NDArray]]) -> str:
        widths = {name: max(MIN_COLUMN_WIDTH, len(name) + 2) for name in scores}
        longest = max(map(len, self.classes))
        lines = [' ' * longest + ''.join(f'{name:>{width}}' for name, width in widths.items())]
        for index, label in enumerate(self.classes):
            line = f'{label:<{longest}}'
            for name, of_classes in scores.items():
                cell = f'{of_classes["F1"][index]:.2f} / {of_classes["IoU"][index]:.2f}'
                counted = index not in self.protocols[name].ignore
                line += f'{cell if counted else "ignored":>{widths[name]}}'
            lines.append(line)
        return '\n'.join(lines)


def confusion(truth: NDArray[np.uint8], predicted: NDArray, classes: int) -> NDArray[np.int64]:
    """Count pixels: rows are the true classes, columns the predicted ones.

    Args:
        truth: class ids [H, W], 255 where nothing is counted.
        predicted: class ids [H, W].
        classes: the number of classes.

    Returns:
        counts [classes, classes].

    Raises:
        ValueError: on different sizes, or an id that is not a class.
    """
    if truth.shape != predicted.shape:
        raise UserError(f'the ground truth has {_size(truth)} pixels, the prediction '
                        f'{_size(predicted)}.')
    counted = truth != UNLABELLED
    truth, predicted = truth[counted].astype(np.int64), predicted[counted]
    if truth.size and max(truth.max(), predicted.max()) >= classes:
        raise UserError(f'there is a class {max(truth.max(), predicted.max())}, but only 0 to '
                        f'{classes - 1} and {UNLABELLED} (not labelled) exist.')
    counts = np.bincount(truth * classes + predicted, minlength=classes ** 2)
    return counts.reshape(classes, classes)


def erode(truth: NDArray[np.uint8], border: int) -> NDArray[np.uint8]:
    """Remove the labels of all pixels with another class within ``border`` pixels (a disc).

    Args:
        truth: class ids [H, W], 255 where not labelled; this is not a class and has no border.
        border: radius in pixels; 0 changes nothing.

    Returns:
        class ids [H, W], 255 also at the borders.
    """
    if border == 0:
        return truth
    offsets = np.arange(-border, border + 1) ** 2
    disc = (offsets[:, None] + offsets <= border ** 2).astype(np.uint8)
    # 255 + 1 = 0 in uint8: an unlabelled pixel changes neither the maximum nor the minimum.
    highest = cv2.dilate(truth + np.uint8(1), disc) - np.uint8(1)
    return np.where(highest == cv2.erode(truth, disc), truth, np.uint8(UNLABELLED))


def class_scores(matrix: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Compute F1, IoU, precision and recall of every class.

    Args:
        matrix: counts [classes, classes], rows are the true classes.

    Returns:
        score: percent [classes], nan where a class has no score.
    """
    right, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid='ignore'):
        return {'F1': 200 * right / (true + predicted),
                'IoU': 100 * right / (true + predicted - right),
                'precision': 100 * right / predicted,
                'recall': 100 * right / true}


def _summary(
    matrix: NDArray, classes: dict[str, NDArray], chosen: list[int],
) -> dict[str, float]:
    if len(chosen) == 1:
        return {name: values[chosen[0]] for name, values in classes.items()}
    total = matrix.sum()
    return {'mF1': _mean(classes['F1'][chosen]), 'mIoU': _mean(classes['IoU'][chosen]),
            'OA': 100 * matrix.trace() / total if total else np.nan}


def _mean(values: NDArray) -> float:
    values = values[~np.isnan(values)]
    return values.mean() if values.size else np.nan


def _map_of(field: Mapping) -> NDArray:
    return field['data'].squeeze(0).cpu().numpy()


def _size(image: NDArray) -> str:
    return f'{image.shape[1]} x {image.shape[0]}'
