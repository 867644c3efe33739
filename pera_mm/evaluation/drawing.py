"""Figures for a publication: sheets of pictures, maps of classes, curves above a table.

They are written as vector PDF and as PNG. Colors are those of Okabe and Ito (2008), which people
with any color vision tell apart, and inferno; classes beyond seven differ in their marker as well.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from pera_mm.files import write_whole

COLORS = ('#0072B2', '#E69F00', '#009E73', '#D55E00', '#56B4E9', '#CC79A7', '#4D4D4D')
MARKERS = 'os^Dv*P'
DASHES = ('-', '--', '-.', ':')
ATTENTION_COLORS = 'inferno'
STYLE = {'font.size': 8, 'axes.titlesize': 9, 'axes.spines.top': False, 'axes.spines.right': False,
         'axes.linewidth': 0.6, 'pdf.fonttype': 42, 'legend.frameon': False}
DPI = 200
MARGIN, GAP, GROUP_GAP = 0.06, 0.05, 0.14  # inches
TITLE, CAPTION = 0.17, 0.15  # inches, of a line above and below a picture
LETTERS = 7  # points, of titles and captions
LETTER_WIDTH = 0.58  # of a letter's size, about
PANEL = 3.1  # inches
LEGEND_LETTERS = 26  # a column of the legend for so many of a class's name, per PANEL


class Tile(NamedTuple):
    """A picture of a sheet."""

    picture: np.ndarray  # uint8 [H, W, 3], or a map float [h, w]
    title: str = ''
    caption: str = ''


class Scatter(NamedTuple):
    """The map of one checkpoint: title, points ``[N, 2]`` and the lines below."""

    title: str
    points: np.ndarray
    footer: str


class Panel(NamedTuple):
    """A panel of curves: x and y of each checkpoint by its name."""

    title: str
    x: str
    y: str
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    steps: bool = False
    log: bool = False


def sheet(rows: Sequence[Sequence[Tile | None]], height: float = 1.1) -> Figure:
    """Lay pictures out in rows of one height, each as wide as its proportions ask for.

    Args:
        rows: pictures from left to right; None is a gap between groups.
        height: of a picture, inches.
    """
    widths = [sum(_width(tile, height) + GAP for tile in row) - GAP for row in rows]
    above = [TITLE * any(tile.title for tile in row if tile) for row in rows]
    below = [CAPTION * any(tile.caption for tile in row if tile) for row in rows]
    size = max(widths) + 2 * MARGIN, sum(above) + sum(below) + 2 * MARGIN + (
        len(rows) * (height + GAP) - GAP)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        top = size[1] - MARGIN
        for row, title, caption in zip(rows, above, below):
            left, bottom = MARGIN, top - title - height
            for tile in row:
                width = _width(tile, height)
                if tile is not None:
                    axes = figure.add_axes((left / size[0], bottom / size[1], width / size[0],
                                            height / size[1]))
                    _draw_tile(axes, tile, width)
                left += width + GAP
            top = bottom - caption - GAP
    return figure


def _width(tile: Tile | None, height: float) -> float:
    return GROUP_GAP - GAP if tile is None else height * (
        tile.picture.shape[1] / tile.picture.shape[0])


def _draw_tile(axes: Axes, tile: Tile, width: float) -> None:
    axes.imshow(tile.picture, cmap=ATTENTION_COLORS, interpolation='nearest', aspect='auto')
    axes.set_axis_off()
    axes.set_title(tile.title, fontsize=_fitting(tile.title, width), pad=2.5)
    axes.text(0.5, -0.02, tile.caption, fontsize=_fitting(tile.caption, width), ha='center',
              va='top', transform=axes.transAxes)


def _fitting(text: str, width: float) -> float:
    """Return the size of letters, points, with which a text is at most ``width`` inches wide."""
    return min(LETTERS, 72 * width / (LETTER_WIDTH * max(len(text), 1)))


def faded(image: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Show an image ``[H, W, 3]`` in the patches of ``chosen``, bool ``[h, w]``; the rest is pale.

    H and W are multiples of h and w.
    """
    p = image.shape[0] // chosen.shape[0]
    inside = chosen.repeat(p, axis=0).repeat(p, axis=1)[..., None]
    pale = 200 + image.mean(axis=2, keepdims=True) * 0.2
    return np.where(inside, image, pale).astype(np.uint8)


def scatter_figure(rows: Sequence[Sequence[Scatter]], labels: np.ndarray,
                   classes: Sequence[str]) -> Figure:
    """Draw maps of the same images: a row per method, a column per checkpoint, one legend.

    Args:
        rows: the maps.
        labels: int ``[N]``, indices into ``classes``.
        classes: their names.
    """
    columns = len(rows[0])
    longest = max(map(len, classes)) + 3
    in_a_row = min(max(LEGEND_LETTERS * columns // longest * 2, 1), len(classes))
    lines = -(-len(classes) // in_a_row)
    styles = [(COLORS[number % len(COLORS)], MARKERS[number // len(COLORS) % len(MARKERS)])
              for number in range(len(classes))]
    size = min(max(3000 / len(labels), 2.5), 16)  # points^2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PANEL * columns, (PANEL + 0.45) * len(rows) + 0.17 * lines),
                        layout='constrained')
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes, panel in zip(grid.flat, [panel for row in rows for panel in row]):
            for number, (color, marker) in enumerate(styles):
                axes.scatter(*panel.points[labels == number].T, s=size, c=color, marker=marker,
                             linewidths=0, alpha=0.8)
            axes.set_title(panel.title)
            axes.set_xlabel(panel.footer, fontsize=7)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
        handles = [Line2D([], [], linestyle='', marker=marker, color=color, markersize=5,
                          markeredgewidth=0, label=name)
                   for (color, marker), name in zip(styles, classes)]
        figure.legend(handles=handles, loc='outside lower center', ncols=in_a_row, fontsize=7,
                      handletextpad=0.1, columnspacing=1)
    return figure


def curves_figure(panels: Sequence[Panel], header: Sequence[str],
                  table: Mapping[str, Sequence[str]]) -> Figure:
    """Draw panels side by side, above a table with a row per checkpoint.

    Args:
        panels: with the same checkpoints.
        header: names of the table's columns.
        table: the cells of each checkpoint by its name.
    """
    looks: dict[str, dict[str, Any]] = {
        name: dict(color=color, linestyle=dash)
        for name, color, dash in zip(table, cycle(COLORS), cycle(DASHES))}
    height = 0.2 * (len(table) + 1) + 0.1  # of the table, inches
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PANEL * len(panels) + 0.4, 2.5 + height), layout='constrained')
        grid = figure.add_gridspec(2, len(panels), height_ratios=(2.5, height))
        for column, panel in enumerate(panels):
            axes = figure.add_subplot(grid[0, column])
            for name, (x, y) in panel.curves.items():
                axes.plot(x, y, linewidth=1.1, label=name, **looks[name],
                          drawstyle='steps-mid' if panel.steps else 'default')
            axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
            if panel.log:
                axes.set_yscale('log')
            else:
                axes.set_ylim(bottom=0)
            if column == 0:
                axes.legend(fontsize=7)
        _draw_table(figure.add_subplot(grid[1, :]), header, table)
    return figure


def _draw_table(axes: Axes, header: Sequence[str], table: Mapping[str, Sequence[str]]) -> None:
    axes.set_axis_off()
    drawn = axes.table([list(cells) for cells in table.values()], rowLabels=list(table),
                       colLabels=list(header), cellLoc='center', rowLoc='left', edges='horizontal',
                       bbox=Bbox.from_bounds(0.14, 0, 0.86, 1))
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7)
    for cell in drawn.get_celld().values():
        cell.set_linewidth(0.4)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``folder/name.pdf`` and ``folder/name.png``; each appears when it is whole."""
    paths = []
    for kind in ('pdf', 'png'):
        data = BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(data, format=kind, dpi=DPI)
        paths.append(folder / f'{name}.{kind}')
        write_whole(paths[-1], data.getvalue())
    return paths
