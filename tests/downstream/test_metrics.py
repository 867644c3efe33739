"""The metric against plain loops, and the cases in which counts are zero."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dist import get_rank
from mmengine.logging import MMLogger

from pera_mm.downstream.metrics import ConfusionMetric, confusion, erode
from pera_mm.registry import METRICS

sys.path.insert(0, str(Path(__file__).parents[1] / 'engine'))
from training_runs import on_ranks  # noqa: E402

SIX = {
    '6-class': {},
    '5-class': dict(average=[0, 1, 2, 3, 4]),
    '5-class-ignore': dict(average=[0, 1, 2, 3, 4], ignore=[5]),
    '5-class-ignore-eroded': dict(average=[0, 1, 2, 3, 4], ignore=[5], border=3),
    'building': dict(average=[1]),
}


def blobs(rng, classes: int, size=(40, 52)) -> np.ndarray:
    """Patches of classes, 4 x 4 pixels each."""
    small = rng.integers(0, classes, (size[0] // 4, size[1] // 4))
    return np.kron(small, np.ones((4, 4), int)).astype(np.uint8)


def samples(number: int, classes: int = 6) -> list[dict]:
    rng = np.random.default_rng(0)
    out = []
    for index in range(number):
        truth, predicted = blobs(rng, classes), blobs(rng, classes)
        predicted = np.where(rng.random(truth.shape) < 0.6, truth, predicted)
        truth[rng.random(truth.shape) < 0.02] = 255
        out.append(sample(truth, predicted, img_path=f'{index}.png'))
    return out


def sample(truth, predicted, **fields) -> dict:
    def wrap(array):
        return dict(data=torch.as_tensor(np.asarray(array)).long()[None])

    return dict(gt_sem_seg=wrap(truth), pred_sem_seg=wrap(predicted), **fields)


def evaluate(protocols: dict, data: list[dict], classes: int = 6) -> dict:
    metric = METRICS.build(dict(type='pera_mm.ConfusionMetric', protocols=protocols))
    metric.dataset_meta = dict(classes=tuple(f'class {index}' for index in range(classes)))
    metric.process({}, data)
    return metric.evaluate(len(data))


def slow_scores(data: list[dict], average, ignore=(), border=0) -> dict[str, float]:
    """Pixel by pixel, class by class."""
    tp, fp, fn = (dict.fromkeys(range(6), 0) for _ in range(3))
    right = counted = 0
    for item in data:
        truth, predicted = (item[key]['data'][0].tolist() for key in
                            ('gt_sem_seg', 'pred_sem_seg'))
        height, width = len(truth), len(truth[0])
        for y in range(height):
            for x in range(width):
                true = truth[y][x]
                near = {truth[v][u]
                        for v in range(max(y - border, 0), min(y + border + 1, height))
                        for u in range(max(x - border, 0), min(x + border + 1, width))
                        if (v - y) ** 2 + (u - x) ** 2 <= border ** 2}
                if true == 255 or true in ignore or near - {true, 255}:
                    continue
                counted += 1
                if predicted[y][x] == true:
                    right += 1
                    tp[true] += 1
                else:
                    fn[true] += 1
                    fp[predicted[y][x]] += 1
    f1 = [2 * tp[c] / (2 * tp[c] + fp[c] + fn[c]) for c in average]
    iou = [tp[c] / (tp[c] + fp[c] + fn[c]) for c in average]
    return dict(mF1=100 * sum(f1) / len(f1), mIoU=100 * sum(iou) / len(iou),
                OA=100 * right / counted, precision=[tp[c] / (tp[c] + fp[c]) for c in average],
                recall=[tp[c] / (tp[c] + fn[c]) for c in average])


def test_protocols_equal_the_loops():
    data = samples(3)
    scores = evaluate(SIX, data)
    for name, fields in SIX.items():
        slow = slow_scores(data, **{'average': range(6), **fields})
        expected = {'mF1': slow['mF1'], 'mIoU': slow['mIoU'], 'OA': slow['OA']}
        if name == 'building':
            expected = {'F1': slow['mF1'], 'IoU': slow['mIoU'],
                        'precision': 100 * slow['precision'][0], 'recall': 100 * slow['recall'][0]}
        found = {key.split('/')[1]: scores.pop(key) for key in list(scores)
                 if key.startswith(f'{name}/')}
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected, abs=0.006)  # rounded to two places
    assert not scores


@pytest.mark.parametrize('border', [1, 3, 5])
def test_erosion_takes_a_disc(border):
    truth = np.zeros((21, 21), np.uint8)
    truth[10, 10] = 1
    y, x = np.mgrid[-10:11, -10:11]
    np.testing.assert_array_equal(erode(truth, border) == 255, x ** 2 + y ** 2 <= border ** 2)


def test_the_edge_and_unlabelled_pixels_are_no_border():
    truth = np.full((12, 12), 2, np.uint8)
    truth[4:6, 4:6] = 255
    np.testing.assert_array_equal(erode(truth, 3), truth)
    assert (erode(np.full((5, 5), 255, np.uint8), 3) == 255).all()


def test_a_class_that_occurs_nowhere_has_no_score_and_one_only_predicted_scores_0():
    truth = np.zeros((4, 4), np.uint8)
    assert evaluate({'all': {}}, [sample(truth, truth)])['all/mF1'] == 100  # 1-5 left out
    predicted = truth.copy()
    predicted[:2] = 3
    scores = evaluate({'all': {}, 'three': dict(average=[3]), 'four': dict(average=[4])},
                      [sample(truth, predicted)])
    assert scores['all/mF1'] == pytest.approx((2 / 3 * 100 + 0) / 2, abs=0.01)
    assert scores['all/mIoU'] == 25
    assert scores['three/F1'] == scores['three/IoU'] == scores['three/precision'] == 0
    assert math.isnan(scores['three/recall'])
    assert all(math.isnan(scores[f'four/{key}']) for key in ('F1', 'IoU', 'precision', 'recall'))


def test_nothing_counted_gives_nan_and_no_warning(recwarn):
    truth = np.full((4, 4), 5, np.uint8)
    scores = evaluate({'none': dict(average=[0, 1], ignore=[5])}, [sample(truth, truth)])
    assert all(math.isnan(value) for value in scores.values())
    assert not recwarn.list


def test_the_sum_of_all_images_is_scored_not_the_mean_of_scores():
    half = np.zeros((2, 2), np.uint8)
    wrong, right = sample(half, half + 1), sample(np.ones((8, 8), int), np.ones((8, 8), int))
    assert evaluate({'all': {}}, [wrong, right])['all/OA'] == pytest.approx(100 * 64 / 68, abs=.01)


def test_the_classes_scores_are_logged(tmp_path):
    log = tmp_path / 'log'
    MMLogger.get_instance('classes', log_file=str(log))
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    evaluate({'all': {}, 'a name that is long': dict(ignore=[1])},
             [sample(truth, [[0, 0, 0, 1]])], classes=2)
    rows = [line for line in log.read_text().splitlines() if line.startswith('class ')]
    assert rows[0].split() == ['class', '0', '80.00', '/', '66.67', '100.00', '/', '100.00']
    assert rows[1].split() == ['class', '1', '66.67', '/', '50.00', 'ignored']
    assert len(rows[0]) == len(rows[1])


@pytest.mark.parametrize(('protocols', 'message'), [
    ({}, 'at least one protocol'),
    ({'x': dict(averge=[1])}, "Protocol 'x' has no field 'averge'; it takes average"),
])
def test_a_wrong_protocol_is_refused_when_built(protocols, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMetric(protocols)


@pytest.mark.parametrize(('data', 'message'), [
    (sample([[0]], [[6]], img_path='a.png'), 'a.png: there is a class 6, but only 0 to 5'),
    (sample([[7]], [[0]], seg_map_path='b.png'), 'b.png: there is a class 7, but only 0 to 5'),
    (sample([[0, 0]], [[0]], img_path='a.png'),
     'a.png: the ground truth has 2 x 1 pixels, the prediction 1 x 1'),
    (dict(pred_sem_seg=dict(data=torch.zeros(1, 2, 2)), img_path='a.png'),
     'a.png has no ground truth'),
])
def test_a_wrong_sample_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        evaluate(SIX, [data])


def test_a_class_id_out_of_range_is_named():
    with pytest.raises(ValueError, match="'x' names class 6, but the data set has 6 classes"):
        evaluate({'x': dict(ignore=[6])}, samples(1))


def test_confusion_counts_rows_as_truth():
    truth = np.array([[0, 0, 255], [1, 1, 1]], np.uint8)
    predicted = np.array([[0, 1, 1], [1, 1, 0]])
    assert confusion(truth, predicted, 2).tolist() == [[1, 1], [1, 2]]


def _evaluate_share(number: int, folder: Path) -> None:
    """Every rank scores its share; a sampler repeats the first sample to make shares equal."""
    metric = ConfusionMetric(SIX)
    metric.dataset_meta = dict(classes=tuple('abcdef'))
    data = samples(number)
    metric.process({}, (data + data[:1])[get_rank()::2])
    (folder / str(get_rank())).write_text(repr(metric.evaluate(number)))


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_equal_one(tmp_path):
    assert on_ranks(_evaluate_share, 3, tmp_path) == [0, 0]
    expected = repr(evaluate(SIX, samples(3)))
    assert [(tmp_path / rank).read_text() for rank in '01'] == [expected] * 2
