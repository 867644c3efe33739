"""Merged boxes against a plain loop and torchvision, and boxes on a map."""

import numpy as np
import pyogrio
import pytest
import shapely
import torch
from affine import Affine
from torchvision.ops import batched_nms

from pera_mm.errors import UserError
from pera_mm.mapping.boxes import merge_boxes, write_boxes


def random_boxes(rng: np.random.Generator, number: int, sides: tuple[float, float],
                 extent: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    corner = rng.uniform(-extent, extent, (number, 2))
    sides_of_each = rng.uniform(*sides, (number, 2)) if sides[1] > sides[0] else sides[0]
    boxes = np.concatenate([corner, corner + sides_of_each], axis=1)
    return boxes, rng.choice(number, number) / number, rng.integers(0, 3, number)


def plain_merge(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray,
                iou: float) -> list[int]:
    kept: list[int] = []
    for index in np.argsort(-scores, kind='stable'):
        x1, y1, x2, y2 = boxes[index]
        for other in kept:
            shared = max(min(x2, boxes[other, 2]) - max(x1, boxes[other, 0]), 0) * max(
                min(y2, boxes[other, 3]) - max(y1, boxes[other, 1]), 0)
            area, others = (x2 - x1) * (y2 - y1), np.prod(boxes[other, 2:] - boxes[other, :2])
            if labels[index] == labels[other] and (
                    shared / (area + others - shared) > iou or shared / area >= 0.8):
                break
        else:
            kept.append(index)
    return kept


@pytest.mark.parametrize('iou', [0.1, 0.5, 0.9])
def test_equals_a_plain_loop(iou):
    rng = np.random.default_rng(0)
    for sides in ((1, 2), (1, 100), (30, 31)):
        boxes, scores, labels = random_boxes(rng, 150, sides, 60)
        assert merge_boxes(boxes, scores, labels, iou).tolist() == plain_merge(
            boxes, scores, labels, iou)


def test_boxes_of_one_size_are_merged_as_torchvision_does():
    """Of two such boxes, one covers 80 % of the other only if their IoU is above 0.66."""
    boxes, scores, labels = random_boxes(np.random.default_rng(1), 2000, (8, 8), 60)
    scores = np.random.default_rng(2).permutation(2000) / 2000  # torchvision has no order of ties
    kept = batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), iou_threshold=0.5)
    assert merge_boxes(boxes, scores, labels).tolist() == kept.tolist()
    assert 500 < len(kept) < 1800


def test_a_box_cut_by_a_windows_border_is_dropped():
    whole, cut, wider, beside = (0, 0, 100, 40), (0, 0, 30, 40), (0, -5, 30, 40), (90, 0, 120, 40)
    boxes, scores = np.array([whole, cut, wider, beside]), np.array([0.9, 0.8, 0.7, 0.6])
    assert merge_boxes(boxes, scores, np.zeros(4, int)).tolist() == [0, 3]
    assert merge_boxes(boxes, scores, np.array([0, 1, 1, 0])).tolist() == [0, 1, 3]
    # With the better score, the part keeps its place, and so does the whole.
    assert merge_boxes(boxes[:2], scores[:2][::-1], np.zeros(2, int)).tolist() == [1, 0]


def test_no_boxes_and_boxes_without_an_area():
    assert merge_boxes(np.empty((0, 4)), np.empty(0), np.empty(0)).dtype == np.int64
    boxes = np.array([(0, 0, 0, 5), (3, 3, 2, 2), (0, 0, np.nan, 1), (0, 0, 1, 1)])
    assert merge_boxes(boxes, np.ones(4), np.zeros(4, int)).tolist() == [3]


def test_an_overlap_of_zero_is_one_sentence():
    with pytest.raises(UserError, match='not 0'):
        merge_boxes(np.ones((1, 4)), np.ones(1), np.ones(1), iou=0)


def test_boxes_turn_with_their_map(tmp_path):
    turned = Affine(3, 4, 1000, 4, -3, 2000)  # a turned map of 5 m
    boxes = np.array([(0, 0, 10, 2), (150_000.25, 7, 150_001.25, 9)])
    number = write_boxes(tmp_path / 'b.gpkg', boxes, np.array([0.5, 1]), np.array([1, 0]),
                         ['car', 'ship'], turned, 'EPSG:32632')
    meta, _, shapes, columns = pyogrio.raw.read(tmp_path / 'b.gpkg')
    assert number == 2 and meta['crs'] == 'EPSG:32632'
    assert meta['fields'].tolist() == ['class', 'name', 'score']
    assert [column.tolist() for column in columns] == [[1, 0], ['ship', 'car'], [0.5, 1]]
    first, second = shapely.from_wkb(shapes)
    assert first.equals(shapely.Polygon([(1000, 2000), (1030, 2040), (1038, 2034), (1008, 1994)]))
    assert second.area == pytest.approx(2 * 25)


def test_no_boxes_are_an_empty_layer(tmp_path):
    assert write_boxes(tmp_path / 'b.fgb', np.empty((0, 4)), np.empty(0), np.empty(0, int),
                       ['car'], Affine.identity(), None) == 0
    assert len(pyogrio.raw.read(tmp_path / 'b.fgb')[2]) == 0


def test_a_class_without_a_name_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match='has the class 1, and only the classes 0 to 0'):
        write_boxes(tmp_path / 'b.gpkg', np.ones((1, 4)), np.ones(1), np.ones(1, int), ['car'],
                    Affine.identity(), None)
