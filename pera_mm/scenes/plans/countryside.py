"""Plans of open land: fields, woods, grass, bare ground and water."""

from math import pi

import cv2
import numpy as np

from pera_mm.scenes.canvas import ANCHORS, BARE, GRASS, TREE, WATER, Canvas
from pera_mm.scenes.noise import fractal_noise
from pera_mm.scenes.plans.pieces import curve, split, steps, straight, upright
from pera_mm.scenes.shapes import rectangle, shrink


def bare_land(c: Canvas) -> None:
    """A quarry or building site: terraces, gullies, heaps and wheel tracks."""
    c.ground('soil')
    height = fractal_noise(c.layout, c.size, c.layout.uniform(45, 90) / c.gsd, 3)
    rough = fractal_noise(c.layout, c.size, 12 / c.gsd, 5)
    terraces = (height + 0.12 * rough) * c.layout.uniform(1, 2.2)
    level, rise = np.floor(terraces), terraces % 1
    c.relief += (level + np.clip(rise * 5 - 4, 0, 1)) * c.layout.uniform(1, 4) / c.gsd
    c.relief += rough * (c.layout.uniform(0.3, 1.1) / c.gsd)
    for sign in (-1, 1):
        c.area((sign * height - 0.9) * 8, c.tone('soil', 0.15), BARE)
    c.area(np.where(rise > 0.8, rough * 0.5, -1), c.tone('soil') * 0.8, BARE)
    for _ in range(c.layout.integers(1, 4)):
        track = curve(c, c.layout.uniform(5, 25), c.layout.uniform(20, 40))
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


def farmland(c: Canvas) -> None:
    """The parcels, each with its own crop, furrows and direction; tracks and hedges between."""
    c.ground('grass')
    parcels = split(c, rectangle(0, 0, 2.4 * c.reach, 2.4 * c.reach), c.layout.uniform(40, 80))
    hedges = [np.zeros((0, 2))]
    for corners in parcels:
        margin, period, tramlines, hedge = c.layout.uniform((1.5, 1.5, 0, 0), (4, 5, 1, 1)).tolist()
        field = shrink(corners, margin)
        edge = field[1] - field[0]
        angle = np.arctan2(edge[1], edge[0]) + c.layout.choice([0, pi / 2])
        if not c.visible(*corners.mean(0), np.hypot(*(corners[2] - corners[0])) / 2 + 2):
            continue
        crop = 'soil' if c.paint.random() < 0.3 else 'crop'
        color = (c.paint.choice(ANCHORS[crop]) + c.tone(crop, 0.15)) / 2
        c.rows(field, (color, color * c.paint.uniform(0.7, 0.94)), angle, period)
        for share in np.arange(0.12, 0.95, 0.19) if tramlines < 0.5 else ():
            for wheel in (0, 0.02):  # the sprayer's wheels
                ends = [field[0] + edge * (share + wheel),
                        field[3] + (field[2] - field[3]) * (share + wheel)]  # fmt: skip
                c.line(np.array(ends), 0.5, color * 0.65)
        count = int(np.hypot(*edge) / 4)
        places = corners[0] + (corners[1] - corners[0]) * c.layout.random((count, 1))
        if hedge < 0.3:
            hedges.append(places)
    if c.layout.random() < 0.6:
        c.line(straight(c, parcels[len(parcels) // 2][0][1]), 3.5, c.tone('soil'), BARE)
    trees = np.concatenate(hedges)
    c.trees(trees, c.layout.uniform(1.2, 2.6, len(trees)))


def forest(c: Canvas) -> None:
    """A closed canopy of uneven crowns, sometimes with a clearing or a track."""
    c.ground('grass')
    spacing = c.layout.uniform(3.5, 7)
    side = int(2 * c.reach / spacing)
    cells = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    points = (cells + c.layout.uniform(-0.4, 1.4, cells.shape)) * spacing - c.reach
    if c.layout.random() < 0.4:
        track = curve(c, 10, c.layout.uniform(20, 40))
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


def meadow(c: Canvas) -> None:
    """An open meadow with patches, mowing lines, footpaths and scattered bushes."""
    c.ground('grass')
    if c.layout.random() < 0.5:
        color, field = c.tone('grass'), rectangle(0, 0, 3 * c.reach, 3 * c.reach)
        c.rows(field, (color, color * 0.94), 0, c.layout.uniform(3, 9))
    for _ in range(c.layout.integers(1, 5)):
        patch = fractal_noise(c.layout, c.size, c.layout.uniform(8, 40) / c.gsd, 3)
        c.area(patch * 2 - c.layout.uniform(1, 2.4), c.tone('grass', 0.14), GRASS)
    for _ in range(c.layout.integers(0, 3)):
        path = curve(c, c.layout.uniform(4, 16), c.layout.uniform(18, 45))
        c.line(path, c.layout.uniform(0.6, 2), c.tone('soil'), BARE)
    c.wood(int(c.layout.integers(0, 30)), 0.6, 3.5)


def orchard(c: Canvas) -> None:
    """A regular grid of trees, in blocks with tracks between."""
    c.ground(c.layout.choice(['grass', 'soil']))
    step, row = c.layout.uniform((4.5, 5), (8, 9))
    radius = 0.5 * min(step, row) * c.layout.uniform(0.6, 0.95)
    x, y = np.meshgrid(steps(c, step), steps(c, row))
    x = x + c.layout.choice([0, 0.5]) * step * (np.arange(len(y)) % 2)[:, None]
    tint = c.tone('grass')
    for height in y[:, 0]:
        c.line(straight(c, height), radius * 1.1, tint, GRASS)
    points = np.stack([x, y], -1).reshape(-1, 2)
    gap = c.layout.uniform(0.2, 1, 2) * c.half
    if c.layout.random() < 0.75:
        c.line(upright(c, gap[0]), 4, c.tone('soil'), BARE)
        points = points[np.abs(points[:, 0] - gap[0]) > 4]
    if c.layout.random() < 0.4:
        c.line(straight(c, -gap[1]), 4, c.tone('soil'), BARE)
        points = points[np.abs(points[:, 1] + gap[1]) > 4]
    points = points[c.layout.random(len(points)) > 0.05]
    points = points + c.layout.normal(0, 0.05 * step, points.shape)
    c.trees(points, radius * c.layout.normal(1, 0.1, len(points)))


def river(c: Canvas) -> None:
    """A meandering river with sandy banks and trees, sometimes with a bridge."""
    c.ground('grass')
    middle = curve(c, c.layout.uniform(6, 24), c.layout.uniform(22, 50))
    width = c.layout.uniform(0.16, 0.42) * c.half
    east, north = c.plan_grid
    center = np.interp(east, *middle.T).astype(np.float32)
    slope = np.interp(east, middle[:, 0], np.gradient(middle[:, 1], middle[:, 0]))
    uneven = fractal_noise(c.layout, c.size, 18 / c.gsd, 4) * c.layout.uniform(1, 3)
    inside = width - np.abs(north - center) / np.hypot(1, slope).astype(np.float32) + uneven
    c.area(inside + uneven + c.layout.uniform(2, 6), c.tone('soil'), BARE)
    c.area(inside, c.tone('water') * 1.12, WATER)
    c.area(inside - 4, c.tone('water', 0.04), WATER)
    bar = fractal_noise(c.layout, c.size, 30 / c.gsd, 3) * 6 - 7
    if c.layout.random() < 0.3:
        c.area(np.minimum(bar, inside - 4), c.tone('soil'), BARE)
    c.wood(int(c.layout.integers(60, 420)), 1.5, 4, keep_off=(WATER, BARE))
    line = upright(c, c.layout.uniform(-0.6, 0.6) * c.half)
    road = c.layout.uniform(6, 10)
    if c.layout.random() < 0.35:
        c.bridge(line, road, 4)
        c.traffic(line, 1.8, 10)
    x, off = c.paint.uniform((-c.half, -width / 2), (c.half, width / 2), (2, 2)).T
    y = np.interp(x, *middle.T) + off
    boats = np.stack([x, y, c.paint.uniform(-0.4, 0.4, 2)], 1)[: c.paint.integers(0, 3)]
    c.ships(boats, c.paint.uniform(6, 16))
