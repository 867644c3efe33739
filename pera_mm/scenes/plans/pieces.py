"""Pieces that several plans share; all lengths are in meters."""

from math import pi

import numpy as np
from numpy.typing import NDArray

from pera_mm.scenes.canvas import Canvas


def straight(c: Canvas, y: float) -> NDArray:
    """A line [24, 2] along x through the whole picture, fine enough for the plan's bend."""
    x = np.linspace(-c.reach, c.reach, 24)
    return np.stack([x, np.full_like(x, y)], axis=1)


def upright(c: Canvas, x: float) -> NDArray:
    """A line [3, 2] along y through the whole picture."""
    return np.array([(x, -c.reach), (x, 0), (x, c.reach)])


def curve(c: Canvas, swing: float, wavelength: float) -> NDArray:
    """A line [48, 2] that winds through the picture."""
    x = np.linspace(-c.reach, c.reach, 48)
    phase, shift = c.layout.uniform(0, 2 * pi), c.layout.uniform(-0.3, 0.3) * c.half
    y = shift + swing * (np.sin(x / wavelength + phase) + 0.4 * np.sin(2.3 * x / wavelength))
    return np.stack([x, y], axis=1)


def steps(c: Canvas, pitch: float) -> NDArray:
    """The places [n] every ``pitch`` meters from edge to edge, with a random start."""
    return np.arange(-c.reach - pitch * c.layout.random(), c.reach + pitch, pitch)


def split(c: Canvas, corners: NDArray, target: float) -> list[NDArray]:
    """Cut a quadrilateral across its longer sides into pieces about ``target`` meters wide."""
    a, b, d, e = corners
    if np.hypot(*(b - a)) < np.hypot(*(d - b)):
        a, b, d, e = b, d, e, a
    if np.hypot(*(b - a)) < target * c.layout.uniform(0.8, 1.7):
        return [corners]
    first, second = c.layout.uniform(0.35, 0.65) + c.layout.normal(0, 0.04, 2)
    top, bottom = a + (b - a) * first, e + (d - e) * second
    halves = np.array([a, top, bottom, e]), np.array([top, b, d, bottom])
    return [piece for half in halves for piece in split(c, half, target)]
