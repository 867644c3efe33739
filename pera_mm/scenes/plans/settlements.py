"""Plans of what people built: houses, works, traffic and sport."""

from math import pi

import numpy as np
from numpy.typing import NDArray

from pera_mm.scenes.canvas import BARE, GRASS, IMPERVIOUS, WATER, WHITE, Canvas
from pera_mm.scenes.plans.pieces import curve, steps, straight, upright
from pera_mm.scenes.shapes import along, closed, disc, rectangle


def airport(c: Canvas) -> None:
    """A runway and a taxiway in the grass, an apron of slabs with parked aircraft."""
    c.ground('grass')
    edge = c.layout.uniform(-0.7, 0.3) * c.half
    slab = c.tone('concrete')
    c.fill(rectangle(0, edge + c.reach, 2 * c.reach, 2 * c.reach), slab, IMPERVIOUS)
    for at in steps(c, c.layout.uniform(6, 9)):
        c.line(np.array([(at, edge), (at, 2 * c.reach)]), 0.4, slab * 0.8)
        if at > edge:
            c.line(straight(c, at), 0.4, slab * 0.8)
    runway, width = edge - c.layout.uniform(28, 55), c.layout.uniform(22, 34)
    c.line(straight(c, runway), width, c.tone('asphalt'), IMPERVIOUS)
    c.dashes(straight(c, runway), 0, 12, 9)
    for side in (-1, 1):
        c.line(straight(c, runway + side * (width / 2 - 1.5)), 0.6, WHITE)
    start, has_threshold = c.layout.uniform(-0.6, 0.6) * c.half, c.layout.random() < 0.5
    for y in np.arange(3 - width / 2, width / 2 - 2, 3) if has_threshold else ():
        c.fill(rectangle(start, runway + y, 18, 1.6), WHITE)
    link = c.layout.uniform(-0.5, 0.5) * c.half
    c.line(np.array([(link, runway), (link, edge + 2)]), 11, c.tone('asphalt'), IMPERVIOUS)
    size = c.layout.uniform(14, 34)
    c.line(straight(c, edge + size * 0.55), 0.5, (205, 170, 60))
    heading, rows = pi / 2 + c.layout.choice([0, pi, 0.5]), c.layout.integers(1, 4)
    x, row = np.meshgrid(steps(c, size * 1.15), edge + size * (1.2 + 1.35 * np.arange(rows)))
    poses = np.stack([x, row, np.full(x.shape, heading)], -1).reshape(-1, 3)
    c.airplanes(poses[c.paint.random(len(poses)) < 0.72], size)
    if c.paint.random() < 0.5:
        c.airplanes(np.array([(c.paint.uniform(-0.8, 0.8) * c.half, runway, 0)]), size * 1.1)
    c.building(c.layout.uniform(-20, 20), edge + size * 5.6, 90, 24, 0, 12, 'flat')
    x = c.paint.uniform(-1, 1, 6) * c.half
    c.cars(np.stack([x, np.full(6, edge + size * 0.3), np.zeros(6)], 1), length=7, width=2.5)


def dense_residential(c: Canvas) -> None:
    """A grid of streets with back-to-back lots, a house on each, and cars at the curb."""
    c.ground('grass')
    c.bend, c.bend_length = c.layout.uniform(0, 9), c.layout.uniform(40, 70)
    lot, depth, street = c.layout.uniform((12, 20, 6), (17, 26, 9)).tolist()
    count = int(c.layout.integers(5, 9))
    columns, rows = steps(c, lot * count + street), steps(c, 2 * depth + street)
    share, roof = c.layout.uniform(0.62, 0.85), c.layout.choice(['gable', 'hip', 'flat'])
    gardens = []
    for left in columns:
        for low in rows:
            for x in left + street / 2 + lot * (np.arange(count) + 0.5):
                for front, out in ((low + street / 2, 1), (low + street / 2 + 2 * depth, -1)):
                    if c.visible(x, front + out * depth / 2, depth):
                        gardens.append(_lot(c, float(x), front, out, lot, depth, share, roof))
    streets = [straight(c, y) for y in rows]
    c.roads([upright(c, x) for x in columns] + streets, street)
    for line in streets:
        c.traffic(line, street / 2 - 1.1, 7)
        c.traffic(line, 1.1 - street / 2, 7, reverse=True)
    trees = np.concatenate(gardens)
    c.trees(trees, c.layout.uniform(1.2, 3, len(trees)))


def _lot(
    c: Canvas, x: float, front: float, out: int, lot: float, depth: float, share: float, roof: str
) -> NDArray:
    """Draw house, lawn, drive and shed on the lot behind ``front``; return its trees [n, 2]."""
    c.fill(rectangle(x, front + out * depth / 2, lot - 0.5, depth - 0.5), c.tone('grass', 0.14))
    deep, setback, shed, beside = c.layout.uniform((8, 3, 0, -1), (12, 6, 1, 1)).tolist()
    drive = x + (lot - 3.5) / 2 * np.sign(beside)
    c.fill(rectangle(drive, front + out * 5, 3, 10), c.tone('concrete'), IMPERVIOUS)
    c.building(x, front + out * (setback + deep / 2), lot * share, deep, 0, 6, roof)
    if shed < 0.3:
        c.building(x - lot / 3, front + out * (depth - 3), 3, 3, 0, 2.5)
    spots = c.layout.uniform((-0.45, 0.72), (0.45, 0.95), (c.layout.integers(0, 3), 2))
    return np.array([x, front]) + spots * (lot, out * depth)


def industrial(c: Canvas) -> None:
    """A grid of yards with large flat halls, service roads, and trucks at the docks."""
    c.ground(c.layout.choice(['asphalt', 'concrete']))
    cell = c.layout.uniform((55, 45), (85, 65))
    columns, rows = steps(c, cell[0]), steps(c, cell[1])
    for x in columns:
        for y in rows:
            if c.visible(x, y, 0.75 * cell[0]):
                _yard(c, float(x), float(y), *cell.tolist())
    lines = [upright(c, x) for x in columns[::2] - cell[0] / 2]
    lines += [straight(c, y) for y in rows[::2] - cell[1] / 2]
    c.roads(lines, 8, curb=2)
    for line in lines:
        c.traffic(line, 2, 25)
    c.wood(90, 1.5, 3, keep_off=(IMPERVIOUS,))


def _yard(c: Canvas, x: float, y: float, cell_x: float, cell_y: float) -> None:
    """Draw one or two halls, a lawn, and trucks along one wall."""
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


def parking(c: Canvas) -> None:
    """A car park: double rows of slots, aisles, islands with trees, a lawn and a shop."""
    c.ground('asphalt')
    slot, stall, aisle = c.layout.uniform((2.5, 4.8, 6), (2.9, 5.4, 7.5)).tolist()
    pitch, edge = 2 * stall + aisle, c.layout.uniform(0.2, 1.2) * c.half
    rows = steps(c, pitch)
    rows = rows[rows < edge - stall - 3]
    every, full, marks = c.layout.integers(9, 16), c.paint.uniform(0.1, 0.95), c.tone('concrete')
    islands, poses = [np.zeros((0, 2))], []
    x = np.arange(-c.reach, c.reach, slot)
    for y in rows:
        seen = [float(at) for at in x[np.arange(len(x)) % every == 0] if c.visible(at, y, 6)]
        for at in seen:
            c.fill(rectangle(at, y, slot, 2 * stall), c.tone('grass'), GRASS)
            islands.append(np.array([(at, y - stall / 2), (at, y + stall / 2)]))
        c.line(straight(c, y), 0.3, marks)
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
        islands.append(straight(c, edge + 3))
    trees = np.concatenate(islands)
    c.trees(trees, c.layout.uniform(1.3, 2.6, len(trees)))


def port(c: Canvas) -> None:
    """A quay with piers into the water and boats moored on both sides."""
    c.ground('water')
    quay = c.layout.uniform(-0.9, 0.1) * c.half
    land = rectangle(0, quay - c.reach, 3 * c.reach, 2 * c.reach)
    c.cast(land, 2)
    c.fill(land, c.tone('concrete'), IMPERVIOUS)
    boat, reach = c.layout.uniform(7, 15), c.layout.uniform(0.9, 1.8) * c.half
    wood, poses = c.tone('concrete', 0.15), []
    for x in steps(c, 2.6 * boat + c.layout.uniform(6, 12)):
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
    c.roads([straight(c, quay - 8)], 6, curb=0)
    c.traffic(straight(c, quay - 8), 1.5, 10)
    for x in steps(c, 28):
        width = c.layout.uniform(12, 22)
        c.building(float(x), quay - 28, width, 14, 0, 7, c.layout.choice(['flat', 'gable']))
    slots = steps(c, 2.8)
    slots = slots[c.paint.random(len(slots)) < 0.5]
    c.cars(np.stack([slots, np.full_like(slots, quay - 15), np.full_like(slots, pi / 2)], 1))


def sparse_residential(c: Canvas) -> None:
    """A winding lane with a few houses far apart, lawns and clumps of trees."""
    c.ground('grass')
    lane = curve(c, c.layout.uniform(5, 14), c.layout.uniform(25, 45))
    start, end = along(lane, 0, 1, c.layout.uniform(24, 42))
    heading = np.arctan2(*(end - start).T[::-1])
    side = np.where(np.arange(len(start)) % 2, 1, -1) * c.layout.uniform(17, 30, len(start))
    houses = start + np.stack([-np.sin(heading), np.cos(heading)], 1) * side[:, None]
    for door, house in zip(start, houses):
        c.line(np.array([door, house]), 3, c.tone('concrete'), IMPERVIOUS)
    c.roads([lane], c.layout.uniform(5, 7), curb=0)
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


def sports(c: Canvas) -> None:
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
    line = straight(c, middle[1] + 118 * c.layout.choice([-1, 1]))
    c.roads([line], 7)
    c.traffic(line, 1.8, 10)
    oval = middle + np.stack([np.linspace(-25, 25, 9), np.zeros(9)], 1)
    c.wood(int(c.layout.integers(40, 160)), 1.5, 3.5, (IMPERVIOUS, BARE), oval, clearance=35)


def _track(c: Canvas, x: float, y: float) -> None:
    """Draw a small running track: straights of about 40 m, bends of about 28 m radius."""
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
    """Draw a row of tennis courts within one fence."""
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
    """Draw a baseball field: a fan of grass with an infield of bare ground."""
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


def storage_tanks(c: Canvas) -> None:
    """A tank farm: round tanks in walled groups, pipes between them, a service road."""
    c.ground(c.layout.choice(['soil', 'concrete', 'grass']))
    radius = c.layout.uniform(6, 15)
    pitch = radius * c.layout.uniform(2.5, 3.3, 2)
    group = c.layout.integers(1, 4, 2)
    cell = pitch * group + 9
    columns, rows = steps(c, cell[0]), steps(c, cell[1])
    wall, pipe = c.tone('concrete'), c.tone('hall')
    lines = [upright(c, x - cell[0] / 2) for x in columns[:: c.layout.integers(1, 4)]]
    c.roads(lines, 6, curb=0)
    for line in lines:
        c.traffic(line, 1.8, 30)
    inner = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in group)), -1).reshape(-1, 2)
    for x in columns:
        for y in rows:
            used, lawn, size = c.layout.uniform((0, 0, 0.6), (1, 1, 1.05)).tolist()
            empty = used > 0.85 and np.hypot(x, y) > cell.max()  # not the middle one
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


def viaduct(c: Canvas) -> None:
    """A crossing of two motorways on two levels, with ramps and loops."""
    c.ground('grass')
    width, bow, tilt = c.layout.uniform((15, -0.12 * c.half, -0.5), (22, 0.12 * c.half, 0.5))
    x = np.linspace(-c.reach, c.reach, 40)
    low = np.stack([x, bow * np.cos(x / c.half)], 1)
    high = np.stack([x * np.sin(tilt) + bow, x * np.cos(tilt)], 1)
    ramps = [_ramp(c, width, np.array(corner)) for corner in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    ramps = [ramp for ramp in ramps if c.layout.random() < 0.75]
    c.roads(ramps, 7, curb=1)
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
    """Draw two carriageways with a central reserve, lane markings and traffic."""
    c.line(line, width, c.tone('asphalt', 0.04), IMPERVIOUS)
    c.line(line, 1.4, c.tone('concrete'), IMPERVIOUS)
    lane = (width - 3) / 4
    for side in (-1, 1):
        c.dashes(line, side * (0.9 + lane), 4, 8)
        for number in (0.5, 1.5):
            c.traffic(line, side * (0.9 + lane * number), 16, reverse=side < 0)
