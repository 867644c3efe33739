"""The weighted sums of windows, for as many pixel rows as one window has."""

import numpy as np
from numpy.typing import NDArray

from pera_mm.mapping.windows import Band, Windows


class RollingSum:
    """The sums of one band of a scene, and which of its pixels are wanted.

    Rows of windows are added from top to bottom. Rows of pixels that no later window reaches are
    taken out, and their place is used again: row r of the scene lies in row r modulo the window's
    size.

    Args:
        windows: of the scene.
        band: of its columns.
        classes: C.
    """

    def __init__(self, windows: Windows, band: Band, classes: int) -> None:
        self.windows, self.band = windows, band
        width = band.right - band.left
        self.sums = np.zeros((classes, windows.size, width), np.float32)
        self.wanted = np.zeros((windows.size, width), bool)
        self.touched = np.zeros(windows.size, bool)  # rows that a window has been added to

    @staticmethod
    def bytes_per_column(size: int, classes: int) -> int:
        """Compute the memory of one column of pixels."""
        return size * (4 * classes + 1)

    def add(self, row: int, column: int, logits: NDArray[np.float32],
            wanted: NDArray[np.bool_]) -> None:
        """Add a window.

        Args:
            row: of the window.
            column: of the window.
            logits: ``[C, size, size]``.
            wanted: ``[size, size]``.
        """
        size, band = self.windows.size, self.band
        top, left = self.windows.tops[row], self.windows.lefts[column]
        begin, end = max(band.left, left), min(band.right, left + size)
        inside, place = slice(begin - left, end - left), slice(begin - band.left, end - band.left)
        weights = (self.windows.row_weights[row][:, None]
                   * self.windows.column_weights[column][None, inside])
        for source, target in self._pieces(top, size):
            self.sums[:, target, place] += logits[:, source, inside] * weights[source]
            self.wanted[target, place] |= wanted[source, inside]
        self.touched[:] = True

    def take(self, top: int, rows: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        """Take pixel rows out.

        Args:
            top: the first row in the scene.
            rows: their number, at most the window's size.

        Returns:
            The sums ``[C, rows, columns of the band]`` and the wanted pixels ``[rows, columns]``;
            None if no window has been added there.
        """
        pieces = self._pieces(top, rows)
        if not any(self.touched[target].any() for _, target in pieces):
            return None
        sums = np.empty((len(self.sums), rows, self.sums.shape[2]), np.float32)
        wanted = np.empty((rows, self.wanted.shape[1]), bool)
        for source, target in pieces:
            sums[:, source], wanted[source] = self.sums[:, target], self.wanted[target]
        self.drop(top, rows)
        return sums, wanted

    def drop(self, top: int, rows: int) -> None:
        """Forget pixel rows."""
        for _, target in self._pieces(top, rows):
            self.sums[:, target], self.wanted[target], self.touched[target] = 0, False, False

    def _pieces(self, top: int, rows: int) -> list[tuple[slice, slice]]:
        """Split rows where the buffer ends: (slice of the rows, slice of the buffer)."""
        begin = top % self.windows.size
        first = min(rows, self.windows.size - begin)
        return [(slice(0, first), slice(begin, begin + first)),
                (slice(first, rows), slice(0, rows - first))]
