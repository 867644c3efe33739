"""The windows that cover a scene, and how much each of them counts at a pixel.

A scene of H x W pixels is covered by rows of windows, and each row by windows from left to right.
The row k of windows completes the pixels from its own start to that of the next row: a *strip*.
A scene that is too wide for the memory is predicted in *bands* of columns, one after the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pera_mm.errors import UserError

BLENDS = ('hann', 'trim', 'none')
MAX_OVERLAP = 0.9


class Band(NamedTuple):
    """The columns ``left`` to ``right`` of a scene, and the windows that they need."""

    left: int
    right: int
    first: int  # windows first to last - 1 of each row
    last: int


class Windows:
    """The square windows over a scene.

    Args:
        height: of the scene in pixels.
        width: of the scene in pixels.
        size: of a window in pixels.
        blend: ``'hann'``: windows are averaged with weights that fall to their edges as a Hann
            window does; ``'trim'``: each pixel is that of the window whose middle is nearest;
            ``'none'``: the same, without overlap.
        overlap: of neighboring windows, as a share of ``size``, 0 to 0.9; the last window of a row
            or column is moved back into the scene and overlaps more.

    Raises:
        UserError: on an overlap or a blend that there is not.
    """

    def __init__(self, height: int, width: int, size: int, blend: str = 'hann',
                 overlap: float = 1 / 3) -> None:
        if blend not in BLENDS:
            raise UserError(f'blend must be one of {", ".join(BLENDS)}, not {blend!r}.')
        if not 0 <= overlap <= MAX_OVERLAP:
            raise UserError(f'The overlap of windows is a share from 0 to {MAX_OVERLAP}, not '
                            f'{overlap:g}.')
        stride = max(1, round(size * (1 - (0 if blend == 'none' else overlap))))
        self.height, self.width, self.size = height, width, size
        self.tops, self.lefts = starts(height, size, stride), starts(width, size, stride)
        self.row_weights = weights(self.tops, height, size, blend)  # [rows, size]
        self.column_weights = weights(self.lefts, width, size, blend)  # [columns, size]

    def strip(self, row: int) -> tuple[int, int]:
        """Return the first pixel row that the row of windows completes, and the one after them."""
        last = row + 1 == len(self.tops)
        return self.tops[row], self.height if last else self.tops[row + 1]

    def first_row(self, row: int) -> int:
        """Return the first row of windows that a strip needs."""
        return _first_over(self.tops, self.size, self.tops[row])

    def bands(self, max_width: int) -> list[Band]:
        """Divide the columns into bands of at most ``max_width`` pixels, or of one window."""
        bands, begin = [], 0
        ends = [*self.lefts[1:], self.width]  # of the columns that each window completes
        while begin < len(ends):
            left, end = self.lefts[begin], begin + 1
            while end < len(ends) and ends[end] - left <= max_width:
                end += 1
            bands.append(Band(left, ends[end - 1], _first_over(self.lefts, self.size, left), end))
            begin = end
        return bands


class Grid(Windows):
    """Windows side by side; the last ones reach beyond the scene.

    Args:
        height: of the scene in pixels.
        width: of the scene in pixels.
        size: of a window in pixels.
    """

    def __init__(self, height: int, width: int, size: int) -> None:
        super().__init__(height, width, size, 'none')
        self.tops, self.lefts = list(range(0, height, size)), list(range(0, width, size))


def _first_over(begins: Sequence[int], size: int, position: int) -> int:
    """Return the first window that reaches beyond a position."""
    return next(index for index, begin in enumerate(begins) if begin + size > position)


def starts(length: int, size: int, stride: int) -> list[int]:
    """List where windows start along a side: every ``stride``, the last one at the side's end.

    A side shorter than a window has one window, which starts at 0 and reaches beyond it.
    """
    return [*range(0, length - size, stride), max(length - size, 0)]


def weights(begins: Sequence[int], length: int, size: int, blend: str) -> NDArray[np.float32]:
    """Compute the weight of each window at each of its positions along a side.

    At each pixel of the side the weights sum to 1, also at its ends. Two sides multiply.

    Returns:
        ``[windows, size]``; beyond the side 0.
    """
    shares = np.zeros((len(begins), size))
    if blend == 'hann':
        shares[:] = np.sin(np.pi * (np.arange(size) + 0.5) / size)**2  # never 0
    else:
        middles = [(begin + size + following) // 2  # of the overlap
                   for begin, following in zip(begins, begins[1:])]
        for share, begin, low, high in zip(shares, begins, [0, *middles], [*middles, length]):
            share[low - begin:high - begin] = 1
    total = np.zeros(max(length, size))
    for share, begin in zip(shares, begins):
        total[begin:begin + size] += share
    for share, begin in zip(shares, begins):
        share /= np.maximum(total[begin:begin + size], np.finfo(float).tiny)
        share[max(length - begin, 0):] = 0
    return shares.astype(np.float32)
