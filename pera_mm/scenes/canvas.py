"""The ground that plans draw on: coordinates in meters, strokes, buildings, trees and vehicles.

A canvas has two random generators for what is drawn. ``layout`` is the same at both dates of a
scene: whatever stays (roads, walls, trunks) draws from it, and never inside a branch that depends
on the date. ``paint`` differs between the dates: season, light, sensor, cars, ships.
"""

from functools import cached_property
from math import ceil, cos, hypot, pi, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from pera_mm.scenes.noise import smooth_noise
from pera_mm.scenes.shapes import BOX, ENGINE, FUSELAGE, HULL, TAIL, WING, along, disc, rectangle

# The land cover of a scene's mask; 0 is no data.
IMPERVIOUS, BUILDING, GRASS, TREE, VEHICLE, WATER, BARE = range(1, 8)

Color = NDArray | tuple[float, ...]  # RGB, 0-255

_SUBPIXEL = 4  # fractional bits of OpenCV's drawing coordinates
_TRUCK = 7  # m; a vehicle this long has a cab

# Anchor colors (RGB) of each material; a scene mixes them at random.
_SEASONAL = {
    'grass': ((78, 104, 52), (112, 122, 70), (152, 140, 96), (104, 100, 76), (66, 92, 60)),
    'crop': ((70, 108, 48), (170, 152, 98), (118, 100, 78), (128, 132, 74), (92, 78, 64)),
    'leaf': ((44, 70, 38), (70, 88, 50), (96, 88, 62), (52, 68, 46), (84, 84, 46)),
    'soil': ((150, 122, 92), (176, 156, 124), (120, 98, 80), (196, 184, 164), (140, 130, 118)),
    'water': ((40, 58, 64), (62, 84, 74), (94, 100, 78), (30, 40, 46), (70, 104, 112)),
}
_LASTING = {
    'asphalt': ((84, 84, 86), (110, 108, 104), (138, 134, 128), (70, 74, 82), (126, 118, 110)),
    'concrete': ((168, 164, 156), (190, 188, 182), (150, 148, 142), (178, 168, 150)),
    'roof': ((160, 88, 64), (120, 92, 78), (92, 94, 100), (176, 172, 166), (134, 120, 104)),
    'hall': ((190, 192, 194), (96, 108, 134), (140, 140, 140), (222, 220, 214), (120, 104, 92)),
    'track': ((168, 86, 66), (72, 96, 140), (120, 70, 60)),
}
ANCHORS = {name: np.array(colors, float) for name, colors in (_SEASONAL | _LASTING).items()}
WHITE = np.array((226.0, 226, 222))
_CAR_COLORS = np.array([(235, 235, 232), (200, 202, 205), (150, 154, 160), (52, 54, 58),
                        (30, 30, 34), (150, 40, 36), (40, 62, 110), (110, 96, 76)], float)


def _ink(value: Color | int) -> tuple[float, ...] | int:
    return value.tolist() if isinstance(value, np.ndarray) else value


class Canvas:
    """A square of ground under the camera at one date; plans draw on it in meters.

    The origin is the picture's middle and the axes are turned by a random angle. Later strokes
    cover earlier ones, in color, land cover and shadow alike.

    Args:
        seed: Numbers that name the scene; the same numbers give the same scene.
        size: Side of the picture in pixels.
        zoom: Distance of the camera relative to the usual one.
        date: First (0) or second (1) date.
    """

    def __init__(self, seed: list[int], size: int, zoom: float, date: int) -> None:
        self.layout = np.random.default_rng([*seed, 0])
        self.paint = np.random.default_rng([*seed, 1 + date])
        self.fate = np.random.default_rng([*seed, 3])  # which buildings come and go
        self.date, self.size = date, size
        # Small pictures are coarser, so that a plan still fits in: 0.45-0.9 m per pixel at 256.
        self.gsd = zoom * 0.45 * 2 ** self.layout.random() * (256 / size) ** 0.5
        self.angle = self.layout.uniform(0, 2 * pi)
        self.half = size * self.gsd / 2
        self.reach = self.half * 1.45  # meters from the middle that a plan has to cover
        self.bend, self.bend_length = 0.0, 1.0  # a gentle wave in y, to curve streets
        self._turn = np.array([(cos(self.angle), sin(self.angle)),
                               (-sin(self.angle), cos(self.angle))]) / self.gsd  # fmt: skip
        self._arrival = self.fate.choice([0, 0.15, 0.35])
        self._loss = self.fate.choice([0, 0.05, 0.15])

        self.color = np.zeros((size, size, 3), np.uint8)
        self.cover = np.full((size, size), GRASS, np.uint8)
        self.shadow = np.zeros((size, size), np.uint8)
        self.built = np.zeros((size, size), np.uint8)  # where a building stands at either date
        self.relief = np.zeros((size, size), np.float32)  # height in pixels, only to be shaded
        self.objects: list[tuple[str, NDArray, int]] = []

        sun = self.paint.uniform(0, 2 * pi)
        self.away = np.array([cos(sun), sin(sun)])  # from the sun, in the picture
        self._away_in_plan = self._turn @ self.away * self.gsd
        self.shadow_length = self.paint.uniform(0.35, 1.3)  # meters of shadow per meter of height
        self.materials = {name: self._mix(name, self.paint) for name in _SEASONAL}
        self.materials |= {name: self._mix(name, self.layout) for name in _LASTING}

    def _mix(self, material: str, rng: np.random.Generator) -> NDArray:
        anchors = ANCHORS[material]
        return rng.dirichlet(np.full(len(anchors), 0.6)) @ anchors * rng.uniform(0.8, 1.2)

    def tone(self, material: str, spread: float = 0.08) -> NDArray:
        """Vary the date's color of a material a little; RGB [3], about 0-255."""
        variation = self.paint.standard_normal(4) * spread
        return self.materials[material] * (1 + variation[0] + variation[1:] / 3)

    def to_pixels(self, points: NDArray) -> NDArray:
        """Convert points [..., 2] from meters of the plan to pixels of the picture."""
        if self.bend:
            points = points.astype(float)
            points[..., 1] += self.bend * np.sin(points[..., 0] / self.bend_length)
        return points @ self._turn + self.size / 2

    @cached_property
    def plan_grid(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The plan's x and y in meters at every pixel (without the bend), two of [S, S]."""
        line = (np.arange(self.size, dtype=np.float32) + 0.5 - self.size / 2) * self.gsd
        along_x, along_y = line * cos(self.angle), line * sin(self.angle)
        return along_x + along_y[:, None], along_x[:, None] - along_y

    def visible(self, x: float, y: float, radius: float) -> bool:
        """Tell whether something within ``radius`` meters of (x, y) may lie in the picture."""
        if self.bend:
            y = y + self.bend * sin(x / self.bend_length)
        column = x * cos(self.angle) - y * sin(self.angle)
        row = x * sin(self.angle) + y * cos(self.angle)
        return max(abs(column), abs(row)) < self.half + radius

    def look_up(self, layer: NDArray, points: NDArray) -> NDArray:
        """Read the layer's values [n] under ``points`` [n, 2]; outside, those of the border."""
        column, row = np.clip(self.to_pixels(points).astype(int), 0, self.size - 1).T
        return layer[row, column]

    # -- strokes ---------------------------------------------------------------------------------

    def _fixed(self, pixels: NDArray) -> NDArray[np.int32]:
        # OpenCV's coordinates name pixel centers, ours the corners.
        return np.rint(pixels * 2**_SUBPIXEL - 2 ** (_SUBPIXEL - 1)).astype(np.int32)

    def ground(self, material: str) -> None:
        """Start with grass, soil, water, asphalt or concrete everywhere."""
        self.color[:] = np.clip(self.tone(material), 0, 255)
        covers = {'grass': GRASS, 'soil': BARE, 'water': WATER}
        self.cover[:] = covers.get(material, IMPERVIOUS)

    def fill(self, points: NDArray, color: Color, cover: int | None = None) -> None:
        """Paint a convex polygon [n, 2]; ``cover`` None keeps the land cover below it."""
        fixed = self._fixed(self.to_pixels(points))
        cv2.fillConvexPoly(self.color, fixed, _ink(color), cv2.LINE_AA, _SUBPIXEL)
        if cover is not None:
            cv2.fillConvexPoly(self.cover, fixed, cover, cv2.LINE_8, _SUBPIXEL)

    def cast(self, points: NDArray, height: float) -> None:
        """Cast the shadow of a convex prism ``height`` meters high; its own top stays lit."""
        pixels = self.to_pixels(points).astype(np.float32)
        step = (self.away * (height * self.shadow_length / self.gsd)).astype(np.float32)
        hull = cv2.convexHull(np.concatenate([pixels, pixels + step]))[:, 0]
        cv2.fillConvexPoly(self.shadow, self._fixed(hull), 255, cv2.LINE_AA, _SUBPIXEL)
        cv2.fillConvexPoly(self.shadow, self._fixed(pixels), 0, cv2.LINE_8, _SUBPIXEL)

    def line(self, points: NDArray, width: float, color: Color,
             cover: int | None = None) -> None:
        """Draw a stroke of ``width`` meters along the polyline ``points`` [n, 2]."""
        if width < self.gsd:  # thinner than a pixel: paler instead
            column, row = self.to_pixels(points[len(points) // 2]).tolist()
            last = self.size - 1
            below = self.color[int(min(max(row, 0), last)), int(min(max(column, 0), last))]
            color = below + (np.asarray(color) - below) * (width / self.gsd)
        fixed = [self._fixed(self.to_pixels(points))]
        thick = max(1, round(width / self.gsd))
        cv2.polylines(self.color, fixed, False, _ink(color), thick, cv2.LINE_AA, _SUBPIXEL)
        if cover is not None:
            cv2.polylines(self.cover, fixed, False, cover, thick, cv2.LINE_8, _SUBPIXEL)

    def dashes(self, points: NDArray, offset: float, length: float, gap: float) -> None:
        """Draw broken white markings ``offset`` meters beside a polyline."""
        for ends in zip(*along(points, offset, length, gap)):
            if self.visible(*ends[0], length):
                self.line(np.array(ends), 0.3, WHITE)

    def roads(self, lines: list[NDArray], width: float, curb: float = 1.5) -> None:
        """Draw roads that merge where they cross: all curbs first, then all carriageways."""
        asphalt, side = self.tone('asphalt'), self.tone('concrete')
        for line in lines:
            if curb:
                self.line(line, width + 2 * curb, side, IMPERVIOUS)
        for line in lines:
            self.line(line, width, asphalt, IMPERVIOUS)
        if self.layout.random() < 0.6:
            for line in lines:
                self.dashes(line, 0, 3, 5)

    def bridge(self, line: NDArray, width: float, height: float) -> None:
        """Draw a road on piers, which casts its shadow on what it crosses."""
        thick = max(1, round(width / self.gsd))
        pixels = self.to_pixels(line)
        step = self.away * (height * self.shadow_length / self.gsd)
        for share, value in ((1, 255), (0.5, 255), (0, 0)):
            fixed = [self._fixed(pixels + step * share)]
            cv2.polylines(self.shadow, fixed, False, value, thick, cv2.LINE_AA, _SUBPIXEL)
        self.line(line, width, self.tone('concrete'), IMPERVIOUS)
        self.line(line, width - 1.4, self.tone('asphalt'), IMPERVIOUS)

    def area(self, inside: NDArray, color: Color, cover: int) -> None:
        """Paint where ``inside`` [S, S], the meters to the edge, is positive."""
        alpha = np.clip(inside / self.gsd + 0.5, 0, 1)[..., None]
        self._blend(alpha, np.asarray(color, np.float32))
        self.cover[inside > 0] = cover

    def _blend(self, alpha: NDArray, color: NDArray) -> None:
        self.color = (self.color + (color - self.color) * alpha).clip(0, 255).astype(np.uint8)

    def rows(self, corners: NDArray, colors: tuple[NDArray, NDArray], angle: float,
             period: float) -> None:
        """Fill a field with rows of two colors (crop lines, furrows) ``period`` meters apart."""
        alpha = np.zeros((self.size, self.size), np.uint8)
        fixed = self._fixed(self.to_pixels(corners))
        cv2.fillConvexPoly(alpha, fixed, 255, cv2.LINE_AA, _SUBPIXEL)
        x, y, width, height = cv2.boundingRect(alpha)
        if not width:
            return
        box = np.s_[y : y + height, x : x + width]
        east, north = (axis[box] for axis in self.plan_grid)
        period = max(period, 2.6 * self.gsd)  # finer rows would alias
        wave = np.sin((east * sin(angle) - north * cos(angle)) * (2 * pi / period)) * 0.5 + 0.5
        low, high = np.asarray(colors, np.float32)
        texture = low + (high - low) * wave[..., None]
        share = alpha[box][..., None] * np.float32(1 / 255)
        self.color[box] = self.color[box] * (1 - share) + texture.clip(0, 255) * share
        self.cover[box][alpha[box] > 127] = GRASS

    # -- round things ----------------------------------------------------------------------------

    def _domes(self, points: NDArray, radius: NDArray | float,
               rough: float) -> tuple[NDArray, NDArray, NDArray] | None:
        """Shape round heaps at ``points`` [n, 2]; neighbors meet halfway.

        One distance transform shapes any number of them, as it also gives the nearest center.

        Returns:
            Pixels to the edge (positive inside), height in pixels, and the number of the dome
            that a pixel belongs to, three of [S, S]; None if all lie outside the picture.
        """
        points = np.asarray(points, float).reshape(-1, 2)
        radius = np.broadcast_to(np.asarray(radius, float) / self.gsd, len(points))
        pad = ceil(radius.max(initial=1)) + 1
        side = self.size + 2 * pad
        column, row = np.floor(self.to_pixels(points)).astype(int).T + pad
        lumps = smooth_noise(self.layout, side, max(1.6, 1.6 / self.gsd))
        lumps += smooth_noise(self.layout, side, max(1.6, 4 / self.gsd))
        seen = (column >= 0) & (column < side) & (row >= 0) & (row < side)
        if not seen.any():
            return None
        column, row = column[seen], row[seen]
        empty = np.ones((side, side), np.uint8)
        empty[row, column] = 0
        distance, nearest = cv2.distanceTransformWithLabels(
            empty, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
        number = nearest[row, column]
        reach = np.ones(number.max() + 1, np.float32)
        reach[number] = radius[seen]
        inner = np.s_[pad : pad + self.size, pad : pad + self.size]
        nearest, distance, lumps = nearest[inner], distance[inner], lumps[inner]
        reach = reach[nearest]
        bumps = np.float32(rough) * lumps * np.minimum(reach, 2.5 / self.gsd)
        edge = reach + 0.6 * bumps - distance
        height = np.sqrt(np.maximum(1 - (distance / reach) ** 2, 0.02)) * reach * 0.8 + bumps
        return edge, height, nearest

    def trees(self, points: NDArray, radius: NDArray | float, tall: float = 1.5) -> None:
        """Draw crowns of ``radius`` meters at ``points`` [n, 2], each ``tall`` radii high."""
        domes = self._domes(points, radius, rough=0.35)
        if domes is None:
            return
        edge, height, nearest = domes
        variation = self.paint.normal(1, (0.13, 0.04, 0.04, 0.04), (nearest.max() + 1, 4))
        leaf = (variation[:, :1] * variation[:, 1:] * self.materials['leaf']).astype(np.float32)
        self._blend(np.clip(edge + 0.5, 0, 1)[..., None], leaf[nearest])
        crown = edge > 0
        self.cover[crown] = TREE
        np.add(self.relief, height, out=self.relief, where=crown)
        length = float(np.mean(radius)) / self.gsd * tall * self.shadow_length
        source = crown.view(np.uint8) * 255
        for share in (0.35, 0.7, 1):
            dx, dy = self.away * length * share
            fallen = cv2.warpAffine(source, np.array([[1, 0, dx], [0, 1, dy]]), source.shape)
            np.maximum(self.shadow, fallen, out=self.shadow)
        self.shadow[crown] = 0

    def wood(self, count: int, low: float, high: float, keep_off: tuple[int, ...] = (),
             clear_of: NDArray | None = None, clearance: float = 0) -> None:
        """Draw ``count`` trees at random places, with crowns of ``low`` to ``high`` meters.

        A tree is left out where a building stands at either date, on the covers ``keep_off``,
        and within ``clearance`` meters of the points ``clear_of`` [n, 2].
        """
        points = self.layout.uniform(-self.reach, self.reach, (count, 2))
        radius = self.layout.uniform(low, high, count)
        keep = self.look_up(self.built, points) == 0
        if keep_off:  # vehicles, too: one stands on such a cover, at one date only
            keep &= ~np.isin(self.look_up(self.cover, points), (*keep_off, VEHICLE))
        if clear_of is not None:
            gap = points[:, None] - clear_of
            keep &= np.hypot(gap[..., 0], gap[..., 1]).min(1) > clearance
        self.trees(points[keep], radius[keep])

    def heaps(self, points: NDArray, radius: NDArray, color: Color) -> None:
        """Draw mounds of bare ground at ``points`` [n, 2] with ``radius`` [n] in meters."""
        domes = self._domes(points, radius, rough=0.12)
        if domes is None:
            return
        self.area(domes[0] * self.gsd, color, BARE)
        np.add(self.relief, domes[1] * 1.3, out=self.relief, where=domes[0] > 0)

    # -- buildings -------------------------------------------------------------------------------

    def _stands(self, plot: NDArray) -> bool:
        """Decide whether the next building exists at this date: the only source of true change."""
        cv2.fillConvexPoly(self.built, self._fixed(self.to_pixels(plot)), 1, cv2.LINE_8, _SUBPIXEL)
        chance = self.fate.random()
        if chance < self._arrival:
            return self.date == 1
        return chance < 1 - self._loss or self.date == 0

    def building(self, x: float, y: float, width: float, depth: float, angle: float = 0,
                 height: float = 6, roof: str = 'gable') -> None:
        """Draw a building with its shadow if it stands at this date, else its plot.

        Lengths are in meters, the angle in radians; ``roof`` is 'gable', 'hip' or 'flat'.
        """
        if not self.visible(x, y, max(width, depth) + 3 * height):
            return
        detail = self.layout.random(16)  # drawn at both dates, used where it stands
        plot = rectangle(x, y, width + 2, depth + 2, angle)
        if not self._stands(plot):
            if detail[0] < 0.5:
                self.fill(plot, self.tone('soil'), BARE)
            return
        material = 'hall' if roof == 'flat' else 'roof'
        other = ANCHORS[material][int(detail[2] * len(ANCHORS[material]))]
        color = (self.materials[material] if detail[1] < 0.6 else other) * (0.85 + 0.3 * detail[3])
        outline = rectangle(x, y, width, depth, angle)
        self.cast(outline, height)
        self.fill(outline, color, BUILDING)
        if roof == 'flat':
            self._flat_roof(x, y, width, depth, angle, color, detail)
        else:
            self._pitched_roof(outline, color, 0.5 if roof == 'hip' else 0)

    def _pitched_roof(self, outline: NDArray, color: NDArray, hip: float) -> None:
        """Draw two or four facets; one that faces the sun is brighter."""
        a, b, c, d = outline
        if hypot(*(b - a)) < hypot(*(c - b)):
            a, b, c, d = b, c, d, a  # now a-b is the long side, the ridge runs along it
        left, right = (a + d) / 2, (b + c) / 2
        inset = (right - left) * (hip * hypot(*(d - a)) / hypot(*(b - a)))
        left, right = left + inset, right - inset
        facets: list[tuple[tuple[NDArray, ...], NDArray]] = [
            ((a, b, right, left), a - d),
            ((c, d, left, right), d - a),
        ]
        if hip:
            facets += [((b, c, right), b - a), ((d, a, left), a - b)]
        for corners, outward in facets:
            facing = -(outward @ self._away_in_plan) / hypot(*outward)
            self.fill(np.array(corners), color * (1 + 0.28 * facing))

    def _flat_roof(self, x: float, y: float, width: float, depth: float, angle: float,
                   color: NDArray, detail: NDArray) -> None:
        """Draw a parapet, seams or skylights, and some machinery."""
        turn = np.array([[cos(angle), sin(angle)], [-sin(angle), cos(angle)]])
        self.fill(rectangle(x, y, width - 1.6, depth - 1.6, angle), color * 0.9)
        if detail[4] < 0.6:
            step, light = 4 + 5 * detail[5], color * (0.75 if detail[6] < 0.5 else 1.15)
            for offset in np.arange(-width / 2 + step, width / 2 - 1, step):
                ends = np.array([[offset, 1.5 - depth / 2], [offset, depth / 2 - 1.5]])
                self.line(ends @ turn + (x, y), 0.6, light)
        for number in range(min(3, int(width * depth / 250))):
            across, up, size = detail[7 + 3 * number : 10 + 3 * number]
            at = ((np.array([across, up]) - 0.5) * 0.8 * (width, depth)) @ turn + (x, y)
            unit = rectangle(*at, 1.5 + 3 * size, 3.5 - 2 * size, angle)
            self.cast(unit, 1.5)
            self.fill(unit, self.materials['concrete'])

    def tank(self, x: float, y: float, radius: float) -> None:
        """Draw a storage tank with rim, cone and shadow if it stands at this date."""
        if not self.visible(x, y, radius * 2.5):
            return
        height, light = self.layout.uniform(0.5, 1.1) * radius, self.layout.uniform(0.85, 1.1)
        outline = disc(x, y, radius)
        if not self._stands(outline):
            return
        self.cast(outline, height)
        color = (self.materials['hall'] * 0.5 + 105) * light
        self.fill(outline, color, BUILDING)
        self.fill(disc(x, y, radius * 0.92), color * 0.92)
        lit = np.array([x, y]) + self._away_in_plan * radius * 0.1
        self.fill(disc(*lit, radius * 0.8), color * 0.97)
        self.fill(disc(*(lit + self._away_in_plan * radius * 0.15), radius * 0.55), color * 1.03)
        self.note('storagetank', outline, BUILDING)

    # -- vehicles --------------------------------------------------------------------------------

    def _stamp(self, shape: NDArray, poses: NDArray, scale: NDArray) -> NDArray:
        """Put ``shape`` [k, 2] times ``scale`` [n, 2] at ``poses`` [n, 3]; return [n, k, 2]."""
        x, y, heading = poses.T
        c, s = np.cos(heading)[:, None], np.sin(heading)[:, None]
        long, wide = shape[:, 0] * scale[:, :1], shape[:, 1] * scale[:, 1:]
        return np.stack([long * c - wide * s + x[:, None], long * s + wide * c + y[:, None]], -1)

    def _fill_all(self, polygons: NDArray, colors: NDArray, cover: int | None = None) -> None:
        for fixed, color in zip(self._fixed(self.to_pixels(polygons)), colors.tolist()):
            cv2.fillConvexPoly(self.color, fixed, color, cv2.LINE_AA, _SUBPIXEL)
            if cover is not None:
                cv2.fillConvexPoly(self.cover, fixed, cover, cv2.LINE_8, _SUBPIXEL)

    def _cast_all(self, polygons: NDArray, height: float) -> None:
        pixels = self.to_pixels(polygons)
        step = self.away * (height * self.shadow_length / self.gsd)
        for fixed in self._fixed(np.concatenate([pixels + step / 2, pixels + step])):
            cv2.fillConvexPoly(self.shadow, fixed, 255, cv2.LINE_AA, _SUBPIXEL)
        for fixed in self._fixed(pixels):
            cv2.fillConvexPoly(self.shadow, fixed, 0, cv2.LINE_8, _SUBPIXEL)

    def _seen(self, poses: NDArray, length: float) -> NDArray:
        poses = np.asarray(poses, float).reshape(-1, 3)
        middle = np.abs(self.to_pixels(poses[:, :2]) - self.size / 2).max(1, initial=0)
        return poses[middle < (self.half + length) / self.gsd]

    def cars(self, poses: NDArray, length: float = 4.5, width: float = 1.9) -> None:
        """Draw vehicles at ``poses`` [n, 3] of x, y and heading, but not on buildings.

        Vehicles of ``_TRUCK`` meters and more are trucks.
        """
        poses = self._seen(poses, length)
        scale = self.paint.uniform(0.9, 1.1, (len(poses), 2)) * (length, width)
        bodies = self._stamp(BOX, poses, scale)
        free = self.look_up(self.built, bodies.reshape(-1, 2)).reshape(-1, 4).max(1, initial=0) == 0
        poses, scale, bodies = poses[free], scale[free], bodies[free]
        pick = self.paint.integers(len(_CAR_COLORS), size=len(poses))
        colors = _CAR_COLORS[pick] * self.paint.uniform(0.85, 1.05, (len(poses), 1))
        self._cast_all(bodies, 1.3 if length < _TRUCK else 3)
        self._fill_all(bodies, colors, VEHICLE)
        if length >= _TRUCK:
            cab = self._stamp(BOX * (0.18, 1) + (0.4, 0), poses, scale)
            self._fill_all(cab, colors * 0.5)
        elif self.gsd < 0.9:
            glass = self._stamp(BOX * (0.2, 0.8) + (0.12, 0), poses, scale)
            self._fill_all(glass, np.full((len(poses), 3), 48.0))
        for body in bodies:
            self.note('vehicle', body, VEHICLE)

    def traffic(self, line: NDArray, offset: float, spacing: float, reverse: bool = False) -> None:
        """Draw cars and a few trucks on one lane, about every ``spacing`` meters."""
        start, end = along(line, offset, 4.5, spacing * self.paint.uniform(0.6, 1.5))
        heading = np.arctan2(*(end - start).T[::-1]) + pi * reverse
        poses = np.column_stack([(start + end) / 2, heading])
        poses = poses[self.paint.random(len(poses)) < 0.6]
        trucks = self.paint.random(len(poses)) < 0.06
        self.cars(poses[~trucks & ~np.roll(trucks, 1)])
        self.cars(poses[trucks], length=self.paint.uniform(8, 12), width=2.5)

    def ships(self, poses: NDArray, length: NDArray | float) -> None:
        """Draw hulls with a pointed bow, a deck and a cabin at ``poses`` [n, 3]."""
        scale = np.outer(np.broadcast_to(length, len(poses)), (1, 0.28))
        middle = np.abs(self.to_pixels(poses[:, :2]) - self.size / 2).max(1, initial=0)
        seen = middle < self.size / 2 + scale[:, 0] / self.gsd
        poses, scale = poses[seen], scale[seen]
        scale *= self.paint.uniform(0.9, 1.1, scale.shape)
        hulls = self._stamp(HULL, poses, scale)
        pick = self.paint.integers(len(_CAR_COLORS), size=(len(poses), 2))
        colors = _CAR_COLORS[np.where(self.paint.random(len(poses)) < 0.7, 0, pick[:, 0])]
        self._cast_all(hulls, 1.5)
        self._fill_all(hulls, colors * 0.95, VEHICLE)
        self._fill_all(self._stamp(HULL * 0.7, poses, scale), colors * 0.8)
        cabin = BOX * (0.24, 0.55) - (0.12, 0)
        self._fill_all(self._stamp(cabin, poses, scale), _CAR_COLORS[pick[:, 1] % 4])
        for hull in hulls:
            self.note('ship', hull, VEHICLE)

    def airplanes(self, poses: NDArray, length: float) -> None:
        """Draw fuselage, swept wings, tail and two engines at ``poses`` [n, 3]."""
        poses = self._seen(poses, length)
        scale = np.repeat(length * self.paint.uniform(0.9, 1.08, (len(poses), 1)), 2, axis=1)
        mirror = np.array([1, -1])
        body = np.concatenate([FUSELAGE, FUSELAGE[::-1] * mirror])
        shapes = [WING, WING * mirror, TAIL, TAIL * mirror, ENGINE, ENGINE * mirror, body]
        parts = [self._stamp(shape, poses, scale) for shape in shapes]
        colors = np.outer(self.paint.uniform(180, 243, len(poses)), (1, 1, 0.99))
        for part in parts:
            self._cast_all(part, length * 0.07)
        for part, shade in zip(parts, (0.92, 0.92, 0.9, 0.9, 0.7, 0.7, 1)):
            for fixed in self._fixed(self.to_pixels(part)):
                cv2.fillConvexPoly(self.shadow, fixed, 0, cv2.LINE_8, _SUBPIXEL)
            self._fill_all(part, colors * shade, VEHICLE)
        for outline in np.concatenate(parts, axis=1):
            self.note('airplane', outline, VEHICLE)

    # -- what comes out --------------------------------------------------------------------------

    def note(self, name: str, points: NDArray, cover: int = 0) -> None:
        """Remember an object for the boxes; it is hidden where its ``cover`` does not show."""
        self.objects.append((name, self.to_pixels(points), cover))
