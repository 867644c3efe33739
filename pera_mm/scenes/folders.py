"""Drawn remote-sensing scenes: what the demo and the tests learn from where no data set is at hand.

A scene is a plan drawn in metres and photographed at two dates. The land uses differ in shape and
texture; their colours are made to overlap. A scene is a pure function of (land use, seed, size).

The mask's ids 1-5 are those of ISPRS Potsdam; 0 (no data) never occurs, so that
``reduce_zero_label`` works as with the real sets.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from math import pi
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.typing import NDArray

from pera_mm.errors import UserError
from pera_mm.files import write_whole
from pera_mm.scenes.canvas import (
    ANCHORS,
    BARE,
    BUILDING,
    GRASS,
    IMPERVIOUS,
    TREE,
    WATER,
    WHITE,
    Canvas,
    along,
    closed,
    disc,
    fractal_noise,
    rectangle,
)

# What a mask's value means. Tanks count as buildings, ships and aircraft as vehicles, fields
# (ploughed ones too) as low vegetation.
LAND_COVER = ('no data', 'impervious', 'building', 'low vegetation', 'tree', 'vehicle', 'water',
              'bare')  # fmt: skip
# What the boxes hold, in DIOR's spelling.
OBJECTS = ('airplane', 'baseballfield', 'groundtrackfield', 'ship', 'storagetank', 'tenniscourt',
           'vehicle')  # fmt: skip
# What ``write_scenes`` writes, and how a folder's scenes are dealt out to splits.
_SPLITS = {
    'unlabeled': ('train',),
    'classification': ('train',),
    'segmentation': ('train', 'train', 'train', 'train', 'val'),
    'change': ('train', 'train', 'train', 'val', 'test'),
    'detection': ('train', 'train', 'val', 'test'),
}
KINDS = tuple(_SPLITS)

_CHANGE_USES = ('dense_residential', 'industrial', 'sparse_residential', 'storage_tanks')
_DIOR_BOXES = 'Annotations/Horizontal Bounding Boxes'
_MIN_SIZE = 32
_DRAWING = 2  # raise it when the pictures change: a folder begun before is then not continued


class Scene(NamedTuple):
    """One drawn scene of S x S pixels with every label the downstream tasks need."""

    image: NDArray[np.uint8]  # RGB [S, S, 3], first date
    mask: NDArray[np.uint8]  # land cover of the first date [S, S], indices of LAND_COVER
    boxes: NDArray[np.float32]  # objects of the first date, xyxy in pixels [n, 4]
    labels: tuple[str, ...]  # n names out of OBJECTS
    second_image: NDArray[np.uint8]  # RGB [S, S, 3], the same place at another date
    change: NDArray[np.uint8]  # 255 where a building came or went, else 0 [S, S]


# -- pieces of plans -----------------------------------------------------------------------------


def _straight(c: Canvas, y: float) -> NDArray:
    """A line along x through the whole picture, fine enough to follow the plan's bend."""
    x = np.linspace(-c.reach, c.reach, 24)
    return np.stack([x, np.full_like(x, y)], axis=1)


def _upright(c: Canvas, x: float) -> NDArray:
    return np.array([(x, -c.reach), (x, 0), (x, c.reach)])


def _curve(c: Canvas, swing: float, wavelength: float) -> NDArray:
    """A line that winds through the picture."""
    x = np.linspace(-c.reach, c.reach, 48)
    phase, shift = c.layout.uniform(0, 2 * pi), c.layout.uniform(-0.3, 0.3) * c.half
    y = shift + swing * (np.sin(x / wavelength + phase) + 0.4 * np.sin(2.3 * x / wavelength))
    return np.stack([x, y], axis=1)


def _steps(c: Canvas, pitch: float) -> NDArray:
    """Places every ``pitch`` metres from edge to edge, with a random start."""
    return np.arange(-c.reach - pitch * c.layout.random(), c.reach + pitch, pitch)


def _split(c: Canvas, corners: NDArray, target: float) -> list[NDArray]:
    """Cut a quadrilateral across its longer sides into pieces about ``target`` metres wide."""
    a, b, d, e = corners
    if np.hypot(*(b - a)) < np.hypot(*(d - b)):
        a, b, d, e = b, d, e, a
    if np.hypot(*(b - a)) < target * c.layout.uniform(0.8, 1.7):
        return [corners]
    first, second = c.layout.uniform(0.35, 0.65) + c.layout.normal(0, 0.04, 2)
    top, bottom = a + (b - a) * first, e + (d - e) * second
    halves = np.array([a, top, bottom, e]), np.array([top, b, d, bottom])
    return [piece for half in halves for piece in _split(c, half, target)]


def _shrink(corners: NDArray, margin: float) -> NDArray:
    middle = corners.mean(0)
    far = np.hypot(*(corners - middle).T)[:, None]
    return middle + (corners - middle) * np.maximum(far - margin, 1) / far


# -- the land uses: one plan each ----------------------------------------------------------------


def _airport(c: Canvas) -> None:
    """Runway and taxiway in the grass, an apron of slabs with parked aircraft."""
    c.ground('grass')
    edge = c.layout.uniform(-0.7, 0.3) * c.half
    slab = c.tone('concrete')
    c.fill(rectangle(0, edge + c.reach, 2 * c.reach, 2 * c.reach), slab, IMPERVIOUS)
    for at in _steps(c, c.layout.uniform(6, 9)):
        c.line(np.array([(at, edge), (at, 2 * c.reach)]), 0.4, slab * 0.8)
        if at > edge:
            c.line(_straight(c, at), 0.4, slab * 0.8)
    runway, width = edge - c.layout.uniform(28, 55), c.layout.uniform(22, 34)
    c.line(_straight(c, runway), width, c.tone('asphalt'), IMPERVIOUS)
    c.dashes(_straight(c, runway), 0, 12, 9)
    for side in (-1, 1):
        c.line(_straight(c, runway + side * (width / 2 - 1.5)), 0.6, WHITE)
    start, has_threshold = c.layout.uniform(-0.6, 0.6) * c.half, c.layout.random() < 0.5
    for y in np.arange(3 - width / 2, width / 2 - 2, 3) if has_threshold else ():
        c.fill(rectangle(start, runway + y, 18, 1.6), WHITE)
    link = c.layout.uniform(-0.5, 0.5) * c.half
    c.line(np.array([(link, runway), (link, edge + 2)]), 11, c.tone('asphalt'), IMPERVIOUS)
    size = c.layout.uniform(14, 34)
    c.line(_straight(c, edge + size * 0.55), 0.5, (205, 170, 60))
    heading, rows = pi / 2 + c.layout.choice([0, pi, 0.5]), c.layout.integers(1, 4)
    x, row = np.meshgrid(_steps(c, size * 1.15), edge + size * (1.2 + 1.35 * np.arange(rows)))
    poses = np.stack([x, row, np.full(x.shape, heading)], -1).reshape(-1, 3)
    c.airplanes(poses[c.paint.random(len(poses)) < 0.72], size)
    if c.paint.random() < 0.5:
        c.airplanes(np.array([(c.paint.uniform(-0.8, 0.8) * c.half, runway, 0)]), size * 1.1)
    c.building(c.layout.uniform(-20, 20), edge + size * 5.6, 90, 24, 0, 12, 'flat')
    x = c.paint.uniform(-1, 1, 6) * c.half
    c.cars(np.stack([x, np.full(6, edge + size * 0.3), np.zeros(6)], 1), length=7, width=2.5)


def _bare_land(c: Canvas) -> None:
    """A quarry or building site: terraces, gullies, heaps and wheel tracks."""
    c.ground('soil')
    height = fractal_noise(c.layout, c.size, c.layout.uniform(45, 90) / c.gsd, 3)
    rough = fractal_noise(c.layout, c.size, 12 / c.gsd, 5)
    steps = (height + 0.12 * rough) * c.layout.uniform(1, 2.2)
    level, rise = np.floor(steps), steps % 1
    c.relief += (level + np.clip(rise * 5 - 4, 0, 1)) * c.layout.uniform(1, 4) / c.gsd
    c.relief += rough * (c.layout.uniform(0.3, 1.1) / c.gsd)
    for sign in (-1, 1):
        c.area((sign * height - 0.9) * 8, c.tone('soil', 0.15), BARE)
    c.area(np.where(rise > 0.8, rough * 0.5, -1), c.tone('soil') * 0.8, BARE)
    for _ in range(c.layout.integers(1, 4)):
        track = _curve(c, c.layout.uniform(5, 25), c.layout.uniform(20, 40))
        c.line(track, 3.5, c.tone('soil', 0.04))
        for wheel in (-1, 1):
            c.line(track + (0, wheel), 0.6, c.tone('soil', 0.04) * 0.8)
    count = c.layout.integers(0, 9)
    middle = c.layout.uniform(-0.8, 0.8, 2) * c.half
    spots = middle + c.layout.normal(0, 14, (count, 2))
    c.heaps(spots, c.layout.uniform(2, 7, count), c.tone('soil', 0.15))
    trucks = c.paint.uniform(-1, 1, (c.paint.integers(0, 5), 3)) * (c.half, c.half, pi)
    c.cars(trucks, length=8, width=3)
    c.wood(int(c.layout.integers(0, 14)), 0.8, 2)


def _dense_residential(c: Canvas) -> None:
    """Streets in a grid, back-to-back lots, one house per lot, cars at the kerb."""
    c.ground('grass')
    c.bend, c.bend_length = c.layout.uniform(0, 9), c.layout.uniform(40, 70)
    lot, depth, street = c.layout.uniform((12, 20, 6), (17, 26, 9)).tolist()
    count = int(c.layout.integers(5, 9))
    columns, rows = _steps(c, lot * count + street), _steps(c, 2 * depth + street)
    share, roof = c.layout.uniform(0.62, 0.85), c.layout.choice(['gable', 'hip', 'flat'])
    gardens = []
    for left in columns:
        for low in rows:
            for x in left + street / 2 + lot * (np.arange(count) + 0.5):
                for front, out in ((low + street / 2, 1), (low + street / 2 + 2 * depth, -1)):
                    if c.visible(x, front + out * depth / 2, depth):
                        gardens.append(_lot(c, float(x), front, out, lot, depth, share, roof))
    streets = [_straight(c, y) for y in rows]
    c.roads([_upright(c, x) for x in columns] + streets, street)
    for line in streets:
        c.traffic(line, street / 2 - 1.1, 7)
        c.traffic(line, 1.1 - street / 2, 7, reverse=True)
    trees = np.concatenate(gardens)
    c.trees(trees, c.layout.uniform(1.2, 3, len(trees)))


def _lot(
    c: Canvas, x: float, front: float, out: int, lot: float, depth: float, share: float, roof: str
) -> NDArray:
    """A house with lawn, drive and shed on the lot beyond its ``front``; returns its trees."""
    c.fill(rectangle(x, front + out * depth / 2, lot - 0.5, depth - 0.5), c.tone('grass', 0.14))
    deep, setback, shed, beside = c.layout.uniform((8, 3, 0, -1), (12, 6, 1, 1)).tolist()
    drive = x + (lot - 3.5) / 2 * np.sign(beside)
    c.fill(rectangle(drive, front + out * 5, 3, 10), c.tone('concrete'), IMPERVIOUS)
    c.building(x, front + out * (setback + deep / 2), lot * share, deep, 0, 6, roof)
    if shed < 0.3:
        c.building(x - lot / 3, front + out * (depth - 3), 3, 3, 0, 2.5)
    spots = c.layout.uniform((-0.45, 0.72), (0.45, 0.95), (c.layout.integers(0, 3), 2))
    return np.array([x, front]) + spots * (lot, out * depth)


def _farmland(c: Canvas) -> None:
    """Parcels with their own crop, furrows and direction; tracks and hedges between."""
    c.ground('grass')
    parcels = _split(c, rectangle(0, 0, 2.4 * c.reach, 2.4 * c.reach), c.layout.uniform(40, 80))
    hedges = [np.zeros((0, 2))]
    for corners in parcels:
        margin, period, tramlines, hedge = c.layout.uniform((1.5, 1.5, 0, 0), (4, 5, 1, 1)).tolist()
        field = _shrink(corners, margin)
        edge = field[1] - field[0]
        angle = np.arctan2(edge[1], edge[0]) + c.layout.choice([0, pi / 2])
        if not c.visible(*corners.mean(0), np.hypot(*(corners[2] - corners[0])) / 2 + 2):
            continue
        crop = 'soil' if c.paint.random() < 0.3 else 'crop'
        colour = (c.paint.choice(ANCHORS[crop]) + c.tone(crop, 0.15)) / 2
        c.rows(field, (colour, colour * c.paint.uniform(0.7, 0.94)), angle, period)
        for share in np.arange(0.12, 0.95, 0.19) if tramlines < 0.5 else ():
            for wheel in (0, 0.02):  # the sprayer's wheels
                ends = [field[0] + edge * (share + wheel),
                        field[3] + (field[2] - field[3]) * (share + wheel)]  # fmt: skip
                c.line(np.array(ends), 0.5, colour * 0.65)
        count = int(np.hypot(*edge) / 4)
        places = corners[0] + (corners[1] - corners[0]) * c.layout.random((count, 1))
        if hedge < 0.3:
            hedges.append(places)
    if c.layout.random() < 0.6:
        c.line(_straight(c, parcels[len(parcels) // 2][0][1]), 3.5, c.tone('soil'), BARE)
    trees = np.concatenate(hedges)
    c.trees(trees, c.layout.uniform(1.2, 2.6, len(trees)))


def _forest(c: Canvas) -> None:
    """Closed canopy of uneven crowns, sometimes a clearing or a track."""
    c.ground('grass')
    spacing = c.layout.uniform(3.5, 7)
    side = int(2 * c.reach / spacing)
    cells = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    points = (cells + c.layout.uniform(-0.4, 1.4, cells.shape)) * spacing - c.reach
    if c.layout.random() < 0.4:
        track = _curve(c, 10, c.layout.uniform(20, 40))
        c.line(track, 3, c.tone('soil'), BARE)
        gap = points[:, None] - track
        points = points[np.hypot(gap[..., 0], gap[..., 1]).min(1) > 5]
    if c.layout.random() < 0.35:
        glade = points - c.layout.uniform(-1, 1, 2) * c.half
        points = points[np.hypot(*glade.T) > c.layout.uniform(10, 25)]
    c.trees(points, spacing * c.layout.uniform(0.4, 1, len(points)), tall=0.9)
    # The dark gaps between crowns belong to the wood.
    gap = np.ones((2 * round(2 / c.gsd) + 1,) * 2, np.uint8)
    canopy = cv2.morphologyEx((c.cover == TREE).view(np.uint8), cv2.MORPH_CLOSE, gap)
    c.cover[(canopy > 0) & (c.cover == GRASS)] = TREE


def _industrial(c: Canvas) -> None:
    """Large flat halls in yards, service roads, trucks at the docks."""
    c.ground(c.layout.choice(['asphalt', 'concrete']))
    cell = c.layout.uniform((55, 45), (85, 65))
    columns, rows = _steps(c, cell[0]), _steps(c, cell[1])
    for x in columns:
        for y in rows:
            if c.visible(x, y, 0.75 * cell[0]):
                _yard(c, float(x), float(y), *cell.tolist())
    lines = [_upright(c, x) for x in columns[::2] - cell[0] / 2]
    lines += [_straight(c, y) for y in rows[::2] - cell[1] / 2]
    c.roads(lines, 8, kerb=2)
    for line in lines:
        c.traffic(line, 2, 25)
    c.wood(90, 1.5, 3, keep_off=(IMPERVIOUS,))


def _yard(c: Canvas, x: float, y: float, cell_x: float, cell_y: float) -> None:
    """One hall or two, a lawn, and trucks along one wall."""
    c.fill(rectangle(x, y - cell_y * 0.43, cell_x * 0.9, cell_y * 0.1), c.tone('grass'), GRASS)
    width, depth, height, kind = c.layout.uniform((0.5, 0.5, 7, 0), (0.74, 0.7, 12, 1)).tolist()
    width, depth = width * cell_x, depth * cell_y
    if kind < 0.55:
        c.building(x, y, width, depth, 0, height, 'flat')
    elif kind < 0.8:
        for part in (-1, 1):
            c.building(x + part * width / 3.6, y, width / 2, depth, 0, height, 'gable')
    else:
        c.building(x - width / 4, y, width / 2, depth, 0, height, 'flat')
        c.building(x + width / 4, y - depth / 5, width / 2, depth / 2, 0, height / 2, 'flat')
    docks = np.arange(x - width / 2, x + width / 2, 4)
    docks = docks[c.paint.random(len(docks)) < 0.35]
    poses = [np.stack([docks, np.full_like(docks, y + depth / 2 + 7), np.full_like(docks, pi / 2)])]
    c.cars(poses[0].T, length=10, width=2.5)


def _meadow(c: Canvas) -> None:
    """Open grass with patches, mowing lines, footpaths and scattered bushes."""
    c.ground('grass')
    if c.layout.random() < 0.5:
        colour, field = c.tone('grass'), rectangle(0, 0, 3 * c.reach, 3 * c.reach)
        c.rows(field, (colour, colour * 0.94), 0, c.layout.uniform(3, 9))
    for _ in range(c.layout.integers(1, 5)):
        patch = fractal_noise(c.layout, c.size, c.layout.uniform(8, 40) / c.gsd, 3)
        c.area(patch * 2 - c.layout.uniform(1, 2.4), c.tone('grass', 0.14), GRASS)
    for _ in range(c.layout.integers(0, 3)):
        path = _curve(c, c.layout.uniform(4, 16), c.layout.uniform(18, 45))
        c.line(path, c.layout.uniform(0.6, 2), c.tone('soil'), BARE)
    c.wood(int(c.layout.integers(0, 30)), 0.6, 3.5)


def _orchard(c: Canvas) -> None:
    """Trees on a regular grid, in blocks with tracks between."""
    c.ground(c.layout.choice(['grass', 'soil']))
    step, row = c.layout.uniform((4.5, 5), (8, 9))
    radius = 0.5 * min(step, row) * c.layout.uniform(0.6, 0.95)
    x, y = np.meshgrid(_steps(c, step), _steps(c, row))
    x = x + c.layout.choice([0, 0.5]) * step * (np.arange(len(y)) % 2)[:, None]
    tint = c.tone('grass')
    for height in y[:, 0]:
        c.line(_straight(c, height), radius * 1.1, tint, GRASS)
    points = np.stack([x, y], -1).reshape(-1, 2)
    gap = c.layout.uniform(0.2, 1, 2) * c.half
    if c.layout.random() < 0.75:
        c.line(_upright(c, gap[0]), 4, c.tone('soil'), BARE)
        points = points[np.abs(points[:, 0] - gap[0]) > 4]
    if c.layout.random() < 0.4:
        c.line(_straight(c, -gap[1]), 4, c.tone('soil'), BARE)
        points = points[np.abs(points[:, 1] + gap[1]) > 4]
    points = points[c.layout.random(len(points)) > 0.05]
    points = points + c.layout.normal(0, 0.05 * step, points.shape)
    c.trees(points, radius * c.layout.normal(1, 0.1, len(points)))


def _parking(c: Canvas) -> None:
    """Rows of slots nose to nose, aisles between, islands with trees, a lawn or shop beyond."""
    c.ground('asphalt')
    slot, stall, aisle = c.layout.uniform((2.5, 4.8, 6), (2.9, 5.4, 7.5)).tolist()
    pitch, edge = 2 * stall + aisle, c.layout.uniform(0.2, 1.2) * c.half
    rows = _steps(c, pitch)
    rows = rows[rows < edge - stall - 3]
    every, full, marks = c.layout.integers(9, 16), c.paint.uniform(0.1, 0.95), c.tone('concrete')
    islands, poses = [np.zeros((0, 2))], []
    x = np.arange(-c.reach, c.reach, slot)
    for y in rows:
        seen = [float(at) for at in x[np.arange(len(x)) % every == 0] if c.visible(at, y, 6)]
        for at in seen:
            c.fill(rectangle(at, y, slot, 2 * stall), c.tone('grass'), GRASS)
            islands.append(np.array([(at, y - stall / 2), (at, y + stall / 2)]))
        c.line(_straight(c, y), 0.3, marks)
        free = x[np.arange(len(x)) % every != 0]
        for at in free:
            if c.visible(at, y, 6):
                left = at - slot / 2
                c.line(np.array([(left, y - stall), (left, y + stall)]), 0.25, marks)
        for side in (-1, 1):
            poses.append(np.stack([free, np.full_like(free, y + side * stall / 2),
                                   np.full_like(free, pi / 2 * side)], 1))  # fmt: skip
    cars = np.concatenate(poses)
    cars = cars[c.paint.random(len(cars)) < full]
    c.cars(cars + c.paint.normal(0, 0.15, cars.shape) * (1, 1, 0.1))
    c.fill(rectangle(0, edge + c.reach, 2 * c.reach, 2 * c.reach), c.tone('grass'), GRASS)
    if c.layout.random() < 0.6:
        c.building(c.layout.uniform(-20, 20), edge + 22, 50, 30, 0, 9, 'flat')
    if c.layout.random() < 0.7:
        islands.append(_straight(c, edge + 3))
    trees = np.concatenate(islands)
    c.trees(trees, c.layout.uniform(1.3, 2.6, len(trees)))


def _port(c: Canvas) -> None:
    """A quay, piers into the water, boats moored on both sides."""
    c.ground('water')
    quay = c.layout.uniform(-0.9, 0.1) * c.half
    land = rectangle(0, quay - c.reach, 3 * c.reach, 2 * c.reach)
    c.cast(land, 2)
    c.fill(land, c.tone('concrete'), IMPERVIOUS)
    boat, reach = c.layout.uniform(7, 15), c.layout.uniform(0.9, 1.8) * c.half
    wood, poses = c.tone('concrete', 0.15), []
    for x in _steps(c, 2.6 * boat + c.layout.uniform(6, 12)):
        pier = rectangle(x, quay + reach / 2, 2.2, reach)
        c.cast(pier, 1)
        c.fill(pier, wood, IMPERVIOUS)
        y = np.arange(quay + 5, quay + reach - 2, 0.36 * boat + 0.8)
        for side, heading in ((1, 0), (-1, pi)):
            out = np.full_like(y, x + side * (1.8 + boat / 2))
            poses.append(np.stack([out, y, np.full_like(y, heading)], 1))
    moored = np.concatenate(poses)
    moored = moored[c.paint.random(len(moored)) < 0.78]
    c.ships(moored + c.paint.normal(0, 0.03, moored.shape), boat * 0.95)
    count = c.paint.integers(0, 3)
    under_way = c.paint.uniform((-c.half, 6, 0), (c.half, 30, 2 * pi), (count, 3))
    c.ships(under_way + (0, quay + reach, 0), boat * c.paint.uniform(1, 2.4, count))
    c.roads([_straight(c, quay - 8)], 6, kerb=0)
    c.traffic(_straight(c, quay - 8), 1.5, 10)
    for x in _steps(c, 28):
        width = c.layout.uniform(12, 22)
        c.building(float(x), quay - 28, width, 14, 0, 7, c.layout.choice(['flat', 'gable']))
    slots = _steps(c, 2.8)
    slots = slots[c.paint.random(len(slots)) < 0.5]
    c.cars(np.stack([slots, np.full_like(slots, quay - 15), np.full_like(slots, pi / 2)], 1))


def _river(c: Canvas) -> None:
    """A meandering water body with sandy banks, trees along it, sometimes a bridge."""
    c.ground('grass')
    middle = _curve(c, c.layout.uniform(6, 24), c.layout.uniform(22, 50))
    width = c.layout.uniform(0.16, 0.42) * c.half
    east, north = c.plan_grid
    centre = np.interp(east, *middle.T).astype(np.float32)
    slope = np.interp(east, middle[:, 0], np.gradient(middle[:, 1], middle[:, 0]))
    uneven = fractal_noise(c.layout, c.size, 18 / c.gsd, 4) * c.layout.uniform(1, 3)
    inside = width - np.abs(north - centre) / np.hypot(1, slope).astype(np.float32) + uneven
    c.area(inside + uneven + c.layout.uniform(2, 6), c.tone('soil'), BARE)
    c.area(inside, c.tone('water') * 1.12, WATER)
    c.area(inside - 4, c.tone('water', 0.04), WATER)
    bar = fractal_noise(c.layout, c.size, 30 / c.gsd, 3) * 6 - 7
    if c.layout.random() < 0.3:
        c.area(np.minimum(bar, inside - 4), c.tone('soil'), BARE)
    c.wood(int(c.layout.integers(60, 420)), 1.5, 4, keep_off=(WATER, BARE))
    line = _upright(c, c.layout.uniform(-0.6, 0.6) * c.half)
    road = c.layout.uniform(6, 10)
    if c.layout.random() < 0.35:
        c.bridge(line, road, 4)
        c.traffic(line, 1.8, 10)
    x, off = c.paint.uniform((-c.half, -width / 2), (c.half, width / 2), (2, 2)).T
    y = np.interp(x, *middle.T) + off
    boats = np.stack([x, y, c.paint.uniform(-0.4, 0.4, 2)], 1)[: c.paint.integers(0, 3)]
    c.ships(boats, c.paint.uniform(6, 16))


def _sparse_residential(c: Canvas) -> None:
    """A winding lane, a few houses far apart, lawns and clumps of trees."""
    c.ground('grass')
    lane = _curve(c, c.layout.uniform(5, 14), c.layout.uniform(25, 45))
    start, end = along(lane, 0, 1, c.layout.uniform(24, 42))
    heading = np.arctan2(*(end - start).T[::-1])
    side = np.where(np.arange(len(start)) % 2, 1, -1) * c.layout.uniform(17, 30, len(start))
    houses = start + np.stack([-np.sin(heading), np.cos(heading)], 1) * side[:, None]
    for door, house in zip(start, houses):
        c.line(np.array([door, house]), 3, c.tone('concrete'), IMPERVIOUS)
    c.roads([lane], c.layout.uniform(5, 7), kerb=0)
    for (x, y), angle in zip(houses.tolist(), heading + c.layout.normal(0, 0.25, len(heading))):
        width, depth, wing, pool = c.layout.uniform((12, 8, 0, 0), (19, 12, 1, 1)).tolist()
        lawn = rectangle(x, y, width + 14, depth + 16, angle)
        c.fill(lawn, c.tone('grass', 0.12), GRASS)
        c.building(x, y, width, depth, angle, 6, 'hip')
        if wing < 0.5:
            c.building(x + 6 * np.cos(angle + 1), y + 6 * np.sin(angle + 1), 8, 9, angle)
        if pool < 0.35:
            basin = rectangle(x - 14 * np.sin(angle), y + 14 * np.cos(angle), 9, 5, angle)
            c.fill(basin, (92, 170, 190), WATER)
    c.cars(np.column_stack([(start + houses) / 2, heading + pi / 2]))
    clumps = c.layout.uniform(-c.reach, c.reach, (22, 2)).repeat(8, 0)
    trees = clumps + c.layout.normal(0, 7, clumps.shape)
    radius = c.layout.uniform(1.8, 4.5, len(trees))
    keep = (c.look_up(c.built, trees) == 0) & (c.look_up(c.cover, trees) == GRASS)
    for middle in houses:
        keep &= np.hypot(*(trees - middle).T) > 12
    gap = trees[:, None] - lane
    keep &= np.hypot(gap[..., 0], gap[..., 1]).min(1) > 5
    c.trees(trees[keep], radius[keep])


def _sports(c: Canvas) -> None:
    """A running track around a pitch, tennis courts, a baseball field, lawns and trees."""
    c.ground('grass')
    middle = c.layout.uniform(-0.4, 0.4, 2) * c.half
    _track(c, *middle.tolist())
    for x, y in ((78, 0), (-78, 0), (0, 62), (0, -62), (78, 62), (-78, -62), (78, -62), (-78, 62)):
        (x, y), kind = middle + (x, y), c.layout.random()
        if not c.visible(x, y, 30):
            continue
        if kind < 0.4:
            _courts(c, float(x), float(y))
        elif kind < 0.65:
            _diamond(c, float(x), float(y))
        elif kind < 0.8:
            c.building(float(x), float(y), 36, 22, 0, 9, 'flat')
    line = _straight(c, middle[1] + 118 * c.layout.choice([-1, 1]))
    c.roads([line], 7)
    c.traffic(line, 1.8, 10)
    oval = middle + np.stack([np.linspace(-25, 25, 9), np.zeros(9)], 1)
    c.wood(int(c.layout.integers(40, 160)), 1.5, 3.5, (IMPERVIOUS, BARE), oval, clearance=35)


def _track(c: Canvas, x: float, y: float) -> None:
    """A small running track: straights of 40 m, bends of about 28 m radius."""
    turn = np.linspace(-pi / 2, pi / 2, 16)
    arc = np.stack([np.cos(turn), np.sin(turn)], 1)
    half, outer, lanes = c.layout.uniform((18, 26, 6), (24, 31, 8)).tolist()

    def oval(radius: float) -> NDArray:
        return np.concatenate([arc * radius + (half, 0), -arc * radius - (half, 0)]) + (x, y)

    c.fill(oval(outer), c.tone('track'), IMPERVIOUS)
    for radius in np.linspace(outer - lanes, outer, 5)[:-1]:
        c.line(closed(oval(radius)), 0.3, WHITE)
    pitch = c.tone('grass', 0.12) * (0.9, 1.05, 0.85)
    c.fill(oval(outer - lanes), pitch, GRASS)
    length, width = 2 * half + 12, 2 * (outer - lanes) - 8
    for band in np.linspace(-length / 2, length / 2, 9)[:-1:2]:
        c.fill(rectangle(x + band + length / 16, y, length / 8, width), pitch * 1.12)
    c.line(closed(rectangle(x, y, length, width)), 0.4, WHITE)
    c.line(np.array([(x, y - width / 2), (x, y + width / 2)]), 0.4, WHITE)
    c.line(closed(disc(x, y, 5)), 0.4, WHITE)
    c.note('groundtrackfield', oval(outer))


def _courts(c: Canvas, x: float, y: float) -> None:
    """A row of tennis courts, fenced together."""
    count = int(c.layout.integers(1, 4))
    surround, court = c.tone('track', 0.1), c.tone('grass', 0.2)
    for middle in x + 17 * (np.arange(count) - (count - 1) / 2):
        c.fill(rectangle(middle, y, 17, 35), surround, IMPERVIOUS)
        c.fill(rectangle(middle, y, 11, 23.8), court)
        for width, depth in ((11, 23.8), (8.2, 23.8), (8.2, 12.8)):
            c.line(closed(rectangle(middle, y, width, depth)), 0.25, WHITE)
        c.line(np.array([(middle - 6, y), (middle + 6, y)]), 0.3, (60, 60, 60))
        c.note('tenniscourt', rectangle(middle, y, 17, 35))


def _diamond(c: Canvas, x: float, y: float) -> None:
    """A baseball field: a grass fan with the infield of bare ground."""
    turn = c.layout.choice([0, pi / 2, pi])
    fan = np.linspace(turn, turn + pi / 2, 14)
    arc = np.stack([np.cos(fan), np.sin(fan)], 1)
    axis = np.array([np.cos(turn + pi / 4), np.sin(turn + pi / 4)])
    home = np.array([x, y]) - 17 * axis
    field = np.concatenate([home[None], home + arc * 44])
    c.fill(field, c.tone('grass', 0.15), GRASS)
    c.fill(np.concatenate([home[None], home + arc * 24]), c.tone('soil'), BARE)
    c.fill(rectangle(*(home + 12 * axis), 13, 13, turn), c.tone('grass', 0.1), GRASS)
    c.note('baseballfield', field)


def _storage_tanks(c: Canvas) -> None:
    """Round tanks in a few walled groups, pipes between them, a service road."""
    c.ground(c.layout.choice(['soil', 'concrete', 'grass']))
    radius = c.layout.uniform(6, 15)
    pitch = radius * c.layout.uniform(2.5, 3.3, 2)
    group = c.layout.integers(1, 4, 2)
    cell = pitch * group + 9
    columns, rows = _steps(c, cell[0]), _steps(c, cell[1])
    wall, pipe = c.tone('concrete'), c.tone('hall')
    lines = [_upright(c, x - cell[0] / 2) for x in columns[:: c.layout.integers(1, 4)]]
    c.roads(lines, 6, kerb=0)
    for line in lines:
        c.traffic(line, 1.8, 30)
    inner = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in group)), -1).reshape(-1, 2)
    for x in columns:
        for y in rows:
            used, lawn, size = c.layout.uniform((0, 0, 0.6), (1, 1, 1.05)).tolist()
            empty = used > 0.85 and np.hypot(x, y) > cell.max()  # never all of the picture
            if empty or not c.visible(x, y, cell.max()):
                continue
            basin = rectangle(x, y, *(cell - 8))
            if lawn < 0.5:
                c.fill(basin, c.tone('grass'), GRASS)
            c.line(closed(basin), 1, wall, IMPERVIOUS)
            c.line(np.array([(x - cell[0] / 2, y), (x + cell[0] / 2, y)]), 0.8, pipe)
            c.line(np.array([(x, y), (x, y + cell[1] / 2)]), 0.8, pipe)
            for at in inner * pitch + (x, y) + c.layout.normal(0, 0.03 * radius, inner.shape):
                c.tank(*at.tolist(), radius * size)
    c.wood(int(c.layout.integers(0, 40)), 1.2, 3, keep_off=(IMPERVIOUS, BARE))


def _viaduct(c: Canvas) -> None:
    """Two motorways crossing on two levels, with ramps and loops."""
    c.ground('grass')
    width, bow, tilt = c.layout.uniform((15, -0.12 * c.half, -0.5), (22, 0.12 * c.half, 0.5))
    x = np.linspace(-c.reach, c.reach, 40)
    low = np.stack([x, bow * np.cos(x / c.half)], 1)
    high = np.stack([x * np.sin(tilt) + bow, x * np.cos(tilt)], 1)
    ramps = [_ramp(c, width, np.array(corner)) for corner in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    ramps = [ramp for ramp in ramps if c.layout.random() < 0.75]
    c.roads(ramps, 7, kerb=1)
    for ramp in ramps:
        c.traffic(ramp, 0, 18)
    _motorway(c, low, width)
    c.wood(int(c.layout.integers(20, 200)), 1.5, 3.5, (IMPERVIOUS,), high, clearance=width / 2 + 4)
    c.bridge(high, width + 2, 7)
    _motorway(c, high, width)


def _ramp(c: Canvas, width: float, corner: NDArray) -> NDArray:
    """A loop inside the corner of a crossing, or a curve around it."""
    radius, kind = c.layout.uniform((0.3 * c.half, 0), (0.5 * c.half, 1)).tolist()
    if kind < 0.5:
        middle = corner * (radius + width * 0.4)
        return closed(disc(*middle.tolist(), radius))
    turn, far = np.linspace(0, pi / 2, 16), radius * 2.2 + width
    arc = far * np.stack([1 - np.sin(turn), 1 - np.cos(turn)], 1)
    return np.concatenate([[(far * 2.5, 0)], arc, [(0, far * 2.5)]]) * corner


def _motorway(c: Canvas, line: NDArray, width: float) -> None:
    """Two carriageways with a central reserve, lane markings and traffic."""
    c.line(line, width, c.tone('asphalt', 0.04), IMPERVIOUS)
    c.line(line, 1.4, c.tone('concrete'), IMPERVIOUS)
    lane = (width - 3) / 4
    for side in (-1, 1):
        c.dashes(line, side * (0.9 + lane), 4, 8)
        for number in (0.5, 1.5):
            c.traffic(line, side * (0.9 + lane * number), 16, reverse=side < 0)


# Each plan with its zoom: what needs more room is seen from further away.
_PLANS: dict[str, tuple[Callable[[Canvas], None], float]] = {
    'airport': (_airport, 1.3),
    'bare_land': (_bare_land, 1.0),
    'dense_residential': (_dense_residential, 1.0),
    'farmland': (_farmland, 1.2),
    'forest': (_forest, 0.9),
    'industrial': (_industrial, 1.2),
    'meadow': (_meadow, 0.9),
    'orchard': (_orchard, 0.9),
    'parking': (_parking, 0.7),
    'port': (_port, 1.0),
    'river': (_river, 1.2),
    'sparse_residential': (_sparse_residential, 0.9),
    'sports': (_sports, 1.0),
    'storage_tanks': (_storage_tanks, 1.0),
    'viaduct': (_viaduct, 1.2),
}
LAND_USES = tuple(_PLANS)


def _draw(land_use: str, seed: int, size: int, date: int) -> tuple[Canvas, NDArray[np.uint8]]:
    plan, zoom = _PLANS[land_use]
    canvas = Canvas([zlib.crc32(land_use.encode()), seed], size, zoom, date)
    plan(canvas)
    return canvas, canvas.photograph()


def draw_scene(land_use: str, seed: int, size: int = 256) -> Scene:
    """Draw one scene at its two dates; the same arguments give the same bytes.

    Args:
        land_use: One of LAND_USES.
        seed: Any number from 0 on; neighbours are unrelated.
        size: Side of the picture in pixels. At 256 a pixel is 0.3-1.2 m wide; smaller pictures
            are coarser and larger ones finer, both by the root of the ratio.

    Raises:
        ValueError: Unknown land use, negative seed, or a size below 32.
    """
    if land_use not in _PLANS:
        raise UserError(f'unknown land use {land_use!r}: choose one of {", ".join(LAND_USES)}')
    _check_number('seed', seed, 0)
    _check_number('size', size, _MIN_SIZE)
    canvas, image = _draw(land_use, seed, size, date=0)
    later, second_image = _draw(land_use, seed, size, date=1)
    change = ((canvas.cover == BUILDING) != (later.cover == BUILDING)).astype(np.uint8) * 255
    boxes, labels = _objects(canvas)
    return Scene(image, canvas.cover, boxes, labels, second_image, change)


def _objects(canvas: Canvas) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    found = list(canvas.boxes())
    boxes = np.array([box for _, box in found], np.float32).reshape(-1, 4)
    return boxes, tuple(name for name, _ in found)


def _check_number(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f'{name} is {value}, but must be at least {least}')


# -- folders in the layouts of the real data sets ------------------------------------------------


class _Place(NamedTuple):
    """One scene of a folder."""

    number: int  # from 1 on
    land_use: str
    seed: int
    split: str


def _places(kind: str, count: int, seed: int) -> list[_Place]:
    """Every scene of a folder; a longer folder begins with the shorter one."""
    uses = _CHANGE_USES if kind == 'change' else LAND_USES
    places = []
    for index in range(count):
        turn, use = divmod(index, len(uses))
        split = _SPLITS[kind][(turn + use) % len(_SPLITS[kind])]
        # The kind is part of the seed: what a model was pre-trained on never turns up in a probe.
        words = np.random.SeedSequence([seed, zlib.crc32(kind.encode()), index])
        own = int(words.generate_state(1, np.uint64)[0] >> np.uint64(1))
        places.append(_Place(index + 1, uses[use], own, split))
    return places


def _paths(kind: str, place: _Place) -> list[str]:
    """The files of one scene below the folder, labels before images."""
    number, split = place.number, place.split
    if kind == 'unlabeled':
        return [f'scene_{number:06d}.jpg']
    if kind == 'classification':
        folder = place.land_use.title().replace('_', '')
        return [f'{folder}/{folder.lower()}_{(number - 1) // len(LAND_USES) + 1:04d}.jpg']
    if kind == 'segmentation':
        return [f'{part}/{split}/scene_{number:05d}.png' for part in ('ann_dir', 'img_dir')]
    if kind == 'change':
        return [f'{split}/{part}/{split}_{number}.png' for part in ('label', 'A', 'B')]
    images = 'JPEGImages-test' if split == 'test' else 'JPEGImages-trainval'
    return [f'{_DIOR_BOXES}/{number:05d}.xml', f'{images}/{number:05d}.jpg']


def _contents(kind: str, place: _Place, size: int) -> list[bytes]:
    """What goes into the files of ``_paths``."""
    if kind == 'change':
        scene = draw_scene(place.land_use, place.seed, size)
        return [_encode(part, '.png') for part in (scene.change, scene.image, scene.second_image)]
    canvas, image = _draw(place.land_use, place.seed, size, date=0)
    if kind == 'segmentation':
        return [_encode(canvas.cover, '.png'), _encode(image, '.png')]
    picture = _encode(image, '.jpg')
    if kind == 'detection':
        return [_annotation(f'{place.number:05d}.jpg', canvas), picture]
    return [picture]


def _encode(image: NDArray[np.uint8], suffix: str) -> bytes:
    pixels = image[..., ::-1] if image.ndim == 3 else image
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix == '.jpg' else []
    written, data = cv2.imencode(suffix, pixels, options)
    assert written
    return data.tobytes()


def _annotation(filename: str, canvas: Canvas) -> bytes:
    """Pascal VOC XML as in DIOR's release; pixels count from 1, both ends inside the object."""
    top = ElementTree.Element('annotation')

    def add(parent: ElementTree.Element, **children: object) -> None:
        for name, value in children.items():
            ElementTree.SubElement(parent, name).text = str(value)

    add(top, filename=filename)
    add(ElementTree.SubElement(top, 'source'), database='drawn scenes')
    add(ElementTree.SubElement(top, 'size'), width=canvas.size, height=canvas.size, depth=3)
    add(top, segmented=0)
    for box, label in zip(*_objects(canvas)):
        thing = ElementTree.SubElement(top, 'object')
        add(thing, name=label, pose='Unspecified')
        left, upper = (int(edge) + 1 for edge in np.floor(box[:2]))
        right, lower = (int(edge) for edge in np.ceil(box[2:]))
        corners = {'xmin': left, 'ymin': upper, 'xmax': right, 'ymax': lower}
        add(ElementTree.SubElement(thing, 'bndbox'), **corners)
    ElementTree.indent(top, '\t')
    return ElementTree.tostring(top)


def _claim(root: Path, recipe: dict[str, object]) -> None:
    """Sign an empty folder with the recipe of its scenes, or find the same signature there.

    Raises:
        ValueError: The folder holds something else.
    """
    signature = root / 'scenes.json'
    if not signature.exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UserError(f'{root} is not an empty folder: choose another for the scenes')
        write_whole(signature, json.dumps(recipe).encode())
        return
    try:
        found = json.loads(signature.read_text())
    except ValueError:
        found = 'something unreadable'
    if found != recipe:
        raise UserError(
            f'{root} was begun with {found}, now {recipe} is asked for: choose another folder'
        )


def write_scenes(
    root: str | Path,
    kind: str,
    count: int,
    size: int = 256,
    seed: int = 0,
    track: Callable[[Sequence], Iterable] = iter,
) -> int:
    """Fill a folder with scenes in a real data set's layout; the same arguments continue it.

    ========================  =================================================================
    kind                      layout
    ========================  =================================================================
    ``unlabeled``             ``scene_000001.jpg`` …
    ``classification``        as AID: ``Airport/airport_0001.jpg`` …
    ``segmentation``          as MMSeg's Potsdam and LoveDA: ``img_dir/{train,val}`` and
                              ``ann_dir/{train,val}``, PNG; labels index LAND_COVER
    ``change``                as LEVIR-CD: ``{train,val,test}/{A,B,label}``, PNG; labels 0, 255
    ``detection``             as DIOR: ``JPEGImages-trainval``, ``JPEGImages-test``,
                              ``Annotations/Horizontal Bounding Boxes``, ``ImageSets/Main``
    ========================  =================================================================

    Args:
        root: A new or empty folder, or one that this function began with the same arguments
            (``count`` may have grown). Files that are there are kept.
        kind: One of KINDS.
        count: Scenes in the finished folder, over all land uses and splits.
        size: Side of a picture in pixels.
        seed: Folders of another seed or kind share no scene.
        track: Wraps the scenes to be walked through, for a progress bar.

    Returns:
        How many scenes were drawn now; the rest was there.

    Raises:
        ValueError: Unknown kind, a number out of range, or a folder with something else in it.
    """
    if kind not in KINDS:
        raise UserError(f'unknown kind {kind!r}: choose one of {", ".join(KINDS)}')
    _check_number('count', count, len(_SPLITS[kind]))
    _check_number('size', size, _MIN_SIZE)
    _check_number('seed', seed, 0)
    root = Path(root)
    _claim(root, {'kind': kind, 'size': size, 'seed': seed, 'drawing': _DRAWING})
    places, drawn = _places(kind, count, seed), 0
    for place in track(places):
        paths = [root / path for path in _paths(kind, place)]
        if all(path.exists() for path in paths):
            continue
        for path, data in zip(paths, _contents(kind, place, size)):
            write_whole(path, data)
        drawn += 1
    if kind == 'detection':
        for split in sorted(set(_SPLITS[kind])):
            names = [f'{place.number:05d}\n' for place in places if place.split == split]
            write_whole(root / 'ImageSets' / 'Main' / f'{split}.txt', ''.join(names).encode())
    return drawn
