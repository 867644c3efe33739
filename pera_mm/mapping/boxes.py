"""The boxes of a scene's windows: one for each object, and as polygons in map coordinates."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pera_mm.errors import UserError
from pera_mm.mapping.vector_files import require_geo, write_features

COVERED = 0.8  # share of a box that a better one covers, from which it is a part of that object
PIECE = 2**16  # boxes that are written at a time

Box = tuple[float, float, float, float]  # x1, y1, x2, y2


def merge_boxes(boxes: NDArray[np.float64], scores: NDArray, labels: NDArray,
                iou: float = 0.5) -> NDArray[np.int64]:
    """Choose one box for each object that several windows have found.

    The boxes come from the highest score to the lowest. A box is dropped if a kept box of its class

    * has a larger intersection over union with it than ``iou``: the object was found twice;
    * covers at least 80 % of it: a window's border has cut the object, and the next window has
      found the whole of it.

    So a small object in a better box of its class is taken for a part. A part with a better score
    than the whole is kept beside it. Boxes without an area are dropped.

    The kept boxes lie in a grid, so a box meets only those around it: one million boxes of a scene
    take less than a minute and some hundreds of MB. The boxes of one place meet each other, which
    is slow where many thousands of kept boxes overlap.

    Args:
        boxes: x1, y1, x2, y2 in pixels, ``[N, 4]``.
        scores: ``[N]``.
        labels: class indices, ``[N]``.
        iou: in (0, 1].

    Returns:
        The indices of the kept boxes, from the highest score to the lowest; among equal scores
        the first box comes first.

    Raises:
        UserError: if ``iou`` has another value.
    """
    if not 0 < iou <= 1:
        raise UserError(f'boxes are duplicates from an overlap in (0, 1] on, not {iou}.')
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    usable = np.all(np.isfinite(boxes), axis=1) & np.all(sides > 0, axis=1)
    order = np.argsort(-np.asarray(scores), kind='stable')
    order = order[usable[order]]
    kept = _Kept(iou)
    return np.array([index for index, box, label in zip(
        order.tolist(), map(tuple, boxes[order].tolist()), np.asarray(labels)[order].tolist())
        if kept.add(box, label)], dtype=np.int64)


class _Kept:
    """Kept boxes by class and size, in grids whose cells are larger than their boxes."""

    def __init__(self, iou: float) -> None:
        self._iou = iou
        # class -> side of the cells, a power of two -> column and row of a cell -> its boxes
        self._grids: dict[int, dict[float, dict[tuple[int, int], list[Box]]]] = defaultdict(dict)

    def add(self, box: Box, label: int) -> bool:
        """Keep a box, unless it is that of a kept one; whether it was kept."""
        grids = self._grids[label]
        side = max(box[2] - box[0], box[3] - box[1])
        for cell_side, cells in grids.items():
            # Shorter than this share of the box, another can neither overlap nor cover it enough.
            if cell_side > min(self._iou, COVERED) * side and any(
                    self._is_same(box, other) for cell in _cells(box, cell_side)
                    for other in cells.get(cell, ())):
                return False
        cell_side = 2. ** np.frexp(side)[1]
        for cell in _cells(box, cell_side):
            grids.setdefault(cell_side, {}).setdefault(cell, []).append(box)
        return True

    def _is_same(self, box: Box, kept: Box) -> bool:
        width = min(box[2], kept[2]) - max(box[0], kept[0])
        height = min(box[3], kept[3]) - max(box[1], kept[1])
        if width <= 0 or height <= 0:
            return False
        shared, area = width * height, _area(box)
        return shared > self._iou * (area + _area(kept) - shared) or shared >= COVERED * area


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _cells(box: Box, side: float) -> Iterator[tuple[int, int]]:
    """Iterate over the column and row of each cell that a box touches."""
    return product(range(int(box[0] // side), int(box[2] // side) + 1),
                   range(int(box[1] // side), int(box[3] // side) + 1))


def write_boxes(output: Path, boxes_px: NDArray[np.float64], scores: NDArray, labels: NDArray,
                classes: Sequence[str], transform: Any, crs: Any) -> int:
    """Write boxes as polygons in map coordinates, with class, name and score.

    Args:
        output: as for :func:`~pera_mm.mapping.vector_files.write_features`.
        boxes_px: x1, y1, x2, y2 in pixels of the scene, ``[N, 4]``; (0, 0) is its upper left
            corner.
        scores: in [0, 1], ``[N]``.
        labels: class indices, ``[N]``.
        classes: the names of the classes.
        transform: the affine transform of the scene, which may rotate.
        crs: of the scene, or None.

    Returns:
        The number of boxes.

    Raises:
        UserError: if a class has no name, the output has another suffix, or a package is missing.
    """
    require_geo('writing boxes')
    labels = np.asarray(labels)
    if len(labels) and labels.max() >= len(classes):
        raise UserError(f'a box has the class {labels.max()}, and only the classes 0 to '
                        f'{len(classes) - 1} have a name: name them all.')
    corners = np.asarray(boxes_px).reshape(-1, 4)[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    names = np.array(classes, dtype=object)

    def pieces() -> Iterator[dict[str, Any]]:
        import shapely

        a, b, c, d, e, f = transform[:6]
        for start in range(0, len(corners), PIECE):
            some = slice(start, start + PIECE)
            x, y = corners[some, :, 0], corners[some, :, 1]
            points = np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)  # [n, 4, 2]
            yield {'geometry': shapely.polygons(points), 'class': labels[some],
                   'name': names[labels[some]], 'score': np.asarray(scores)[some]}

    columns = {'class': 'int32', 'name': 'string', 'score': 'float'}
    return write_features(output, columns, pieces(), crs)
