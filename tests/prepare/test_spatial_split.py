"""No tile of the training touches one of the validation, whatever the tiles."""

import numpy as np
import pytest

from pera_mm.prepare.spatial_split import GAP, TRAIN, VAL, spatial_split

pytest.importorskip('shapely')


def grid(rows: int, columns: int, size: float = 1.) -> np.ndarray:
    """Tiles row by row from the upper left corner: left, bottom, right, top."""
    y, x = np.mgrid[:rows, :columns].reshape(2, -1) * size
    return np.stack([x, -y - size, x + size, -y], axis=1)


def everywhere(boxes: np.ndarray) -> np.ndarray:
    return np.ones((len(boxes), 1), bool)


def distances(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Between the edges of two boxes, along the axis where they are farther apart."""
    one, two = boxes[:, None], others[None]
    apart = np.maximum(one[..., :2] - two[..., 2:], two[..., :2] - one[..., 2:])
    return np.maximum(apart, 0).max(-1)


def test_one_corner_of_a_small_scene_validates():
    boxes = grid(10, 10, size=512.)
    part = spatial_split(boxes, everywhere(boxes), 0.2).reshape(10, 10)
    expected = np.full((10, 10), TRAIN)
    expected[:5, :5] = GAP
    expected[:4, :4] = VAL
    np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize(('rows', 'columns', 'share'), [
    (2, 3, .2), (1, 20, .2), (7, 5, .3), (40, 30, .2), (33, 21, .5)])
def test_parts_are_apart_and_the_share_is_met(rows, columns, share):
    boxes = grid(rows, columns)
    part = spatial_split(boxes, everywhere(boxes), share)
    apart = distances(boxes[part == TRAIN], boxes[part == VAL])
    assert apart.min() >= .5 and apart.size
    gap = boxes[part == GAP]  # and nothing is left out without need
    assert (distances(gap, boxes[part == VAL]).min(1) < .5).all()
    block = min(64, share * len(boxes))
    assert abs((part == VAL).sum() - share * len(boxes)) <= block / 2 + 1


def test_tiles_that_overlap_or_lie_anywhere_are_apart_too():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 20, (300, 2))
    boxes = np.hstack([corners, corners + 1])
    part = spatial_split(boxes, everywhere(boxes), .2)
    assert distances(boxes[part == TRAIN], boxes[part == VAL]).min() >= .5 - 1e-6
    assert 40 <= (part == VAL).sum() <= 80


def test_a_large_scene_has_several_blocks_and_loses_few_tiles():
    boxes = grid(64, 64)
    part = spatial_split(boxes, everywhere(boxes), .2)
    assert (part == VAL).mean() == pytest.approx(.2, abs=.01)
    assert (part == GAP).mean() < .1


def test_both_parts_have_every_class_that_lies_in_two_places():
    boxes, present = grid(12, 12), np.zeros((144, 3), bool)
    present[:, 0] = True
    rare = np.zeros((12, 12), bool)
    rare[5, 5] = rare[10, 2] = True
    present[:, 1] = rare.reshape(-1)
    present[77, 2] = True  # in one place: for training
    part = spatial_split(boxes, present, .15)
    assert present[part == TRAIN].any(0).tolist() == [True, True, True]
    assert present[part == VAL].any(0).tolist() == [True, True, False]


@pytest.mark.parametrize('boxes', [grid(1, 1), grid(1, 2), grid(2, 2)])
def test_too_few_tiles_are_refused(boxes):
    with pytest.raises(ValueError, match=f'^{len(boxes)} tiles with labels are too few, or too '
                       'near each other, .*: choose smaller tiles, or give more scenes.$'):
        spatial_split(boxes, everywhere(boxes), .2)


@pytest.mark.parametrize('share', [0, 1, -.1])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match='must lie between 0 and 1'):
        spatial_split(grid(9, 9), everywhere(grid(9, 9)), share)
