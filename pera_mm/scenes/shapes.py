"""Outlines and polylines as points; lengths in meters, angles in radians."""

from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray

# Outlines in units of length and width; the bow points to +x.
BOX = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
HULL = np.array([(-0.5, -0.42), (0.15, -0.5), (0.36, -0.3), (0.5, 0), (0.36, 0.3), (0.15, 0.5),
                  (-0.5, 0.42)])  # fmt: skip
FUSELAGE = np.array([(0.5, 0), (0.44, 0.045), (0.3, 0.055), (-0.3, 0.05), (-0.5, 0.015)])
WING = np.array([(0.12, 0.04), (-0.13, 0.47), (-0.19, 0.47), (-0.09, 0.04)])
TAIL = np.array([(-0.36, 0.03), (-0.46, 0.18), (-0.5, 0.18), (-0.47, 0.02)])
ENGINE = BOX * (0.11, 0.045) + (0.03, 0.17)


def rectangle(x: float, y: float, width: float, depth: float, angle: float = 0) -> NDArray:
    """Return the corners [4, 2] of a rectangle centered at (x, y), turned by ``angle`` radians."""
    ax, ay = width / 2 * cos(angle), width / 2 * sin(angle)
    bx, by = -depth / 2 * sin(angle), depth / 2 * cos(angle)
    return np.array([(x - ax - bx, y - ay - by), (x + ax - bx, y + ay - by),
                     (x + ax + bx, y + ay + by), (x - ax + bx, y - ay + by)])  # fmt: skip


def disc(x: float, y: float, radius: float) -> NDArray:
    """Return a circle as a polygon [24, 2]."""
    angle = np.linspace(0, 2 * pi, 24, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


def closed(points: NDArray) -> NDArray:
    """Return the polyline [n + 1, 2] around a polygon [n, 2]."""
    return np.concatenate([points, points[:1]])


def along(points: NDArray, offset: float, length: float, gap: float) -> tuple[NDArray, NDArray]:
    """Return starts and ends [n, 2] of dashes of ``length`` meters beside a polyline.

    ``gap`` meters lie between two dashes, ``offset`` meters between dashes and polyline.
    """
    steps = np.hypot(*np.diff(points, axis=0).T)
    traveled = np.concatenate([[0], np.cumsum(steps)])
    tangent = np.gradient(points, axis=0)
    tangent /= np.maximum(np.hypot(*tangent.T)[:, None], 1e-6)
    beside = points + offset * np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    start = np.arange(0, max(traveled[-1] - length, 0), length + gap)

    def at(distance: NDArray) -> NDArray:
        return np.stack([np.interp(distance, traveled, beside[:, axis]) for axis in (0, 1)], 1)

    return at(start), at(start + length)


def shrink(corners: NDArray, margin: float) -> NDArray:
    """Move the corners [n, 2] of a polygon ``margin`` meters towards its middle."""
    middle = corners.mean(0)
    far = np.hypot(*(corners - middle).T)[:, None]
    return middle + (corners - middle) * np.maximum(far - margin, 1) / far
