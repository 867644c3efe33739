"""Figure 3 of the paper: a map of the points."""

import io
from typing import Any

import numpy as np
import pandas as pd

from pera_mm.collect.sample.continents import polygons

COLORS = {'urban': '#d7301f', 'farmland': '#e6ab02', 'wetland': '#1b9e77', 'forest': '#1a6b2a',
          'water': '#2171b5', 'desert': '#c49a6c', 'ice': '#8fd3ee', 'grassland': '#9ccc3c',
          'cloud': '#9e9e9e', 'shrubland': '#a6761d', 'moss': '#7570b3'}
OTHER_COLOR = '#444444'  # of a class in a user's own legend
MAX_SHOWN = 50_000  # points; more cover each other
FEW = 2000  # points that are drawn large
LABEL_REACH = 18.0, 7.0  # degrees from its middle that a continent's name covers
LABEL_STEP = 20.0, 9.0  # degrees between the places tried for a name
LABEL_STEPS = 3  # in each direction
WORLD = -180, 180, -58, 84  # degrees: west, east, south, north
REGION_MARGIN = 6  # degrees; points with a wider one around them are shown on the world


def draw_map(points: pd.DataFrame) -> bytes:
    """Draw the points on the continents, colored by class, as PNG.

    Args:
        points: Columns of ``tables.POINT``, in random order: of many, the first are drawn.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    figure = Figure(figsize=(14, 6.4))
    axes = figure.add_axes((0.05, 0.08, 0.94, 0.9))
    for name, land in polygons().items():
        for part in land.geoms:
            axes.fill(*part.exterior.xy, facecolor='#f3f1ec', edgecolor='#8a8a8a', linewidth=0.5)
        count = int((points['continent'] == name).sum())
        if count:
            axes.annotate(f'{name.title()}\n{count:,}', label_place(name, points), ha='center',
                          va='center', fontsize=11, fontweight='bold', zorder=3,
                          path_effects=[withStroke(linewidth=3, foreground='white')])
    shown = points.iloc[:MAX_SHOWN]
    size = 40 if len(shown) < FEW else 2
    # All classes at once, in the table's random order, so that none covers the others.
    colors = [COLORS.get(name, OTHER_COLOR) for name in shown['class']]
    axes.scatter(shown['lon'], shown['lat'], size, colors, linewidths=0, alpha=0.7, zorder=2)
    for name, count in points['class'].value_counts().items():
        axes.scatter([], [], size, COLORS.get(str(name), OTHER_COLOR), linewidths=0, alpha=0.7,
                     label=f'{name}  {count:,}')
    axes.legend(loc='lower left', title=f'{len(points):,} points', framealpha=0.9,
                markerscale=6 / size**0.5)
    _set_extent(axes, points)
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=110)
    return file.getvalue()


def label_place(continent: str, points: pd.DataFrame) -> tuple[float, float]:
    """Find where on the map a continent's name hides the fewest points, near its middle if equal.

    Args:
        continent: One of ``CONTINENTS``.
        points: As for :func:`draw_map`.

    Returns:
        Longitude and latitude, degrees.
    """
    land = max(polygons()[continent].geoms, key=lambda part: part.area)
    middle = land.representative_point()
    steps = np.arange(-LABEL_STEPS, LABEL_STEPS + 1)
    offsets = np.stack(np.meshgrid(steps * LABEL_STEP[0], steps * LABEL_STEP[1], indexing='ij'),
                       axis=-1).reshape(-1, 2)
    offsets = offsets[np.argsort(np.hypot(*offsets.T), kind='stable')]  # nearest first
    places = np.clip([middle.x, middle.y] + offsets, (-160, -50), (160, 78))
    shown = points.iloc[:MAX_SHOWN]
    hidden = [((np.abs(shown['lon'] - lon) < LABEL_REACH[0])
               & (np.abs(shown['lat'] - lat) < LABEL_REACH[1])).sum() for lon, lat in places]
    return tuple(places[np.argmin(hidden)])


def _set_extent(axes: Any, points: pd.DataFrame) -> None:
    """Show the world, or only the points' own region where that is small."""
    west, east = points['lon'].min(), points['lon'].max()
    south, north = points['lat'].min(), points['lat'].max()
    margin = 0.1 * max(east - west, north - south) + 0.01
    if margin > REGION_MARGIN:
        (west, east, south, north), margin = WORLD, 0
    axes.set_xlim(west - margin, east + margin)
    axes.set_ylim(south - margin, north + margin)
    axes.set_aspect(1 / np.cos(np.radians((south + north) / 2)))
    axes.set_xlabel('longitude, degrees')
    axes.set_ylabel('latitude, degrees')
