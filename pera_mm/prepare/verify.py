"""The verification of prepared files: numbers, published numbers, and problems."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pera_mm.datasets.masks import read_mask
from pera_mm.datasets.reading import UnreadableImage, read_image
from pera_mm.prepare.jobs import Progress, in_threads, quiet

WORKERS = 4
LARGE = 4096  # pixels; images with a longer side are decoded one at a time, to save memory
STRIP = 1 << 20  # pixels counted at once: bincount needs 8 bytes for each
OK, FEWER, WRONG, OPEN = 'ok', 'fewer', 'WRONG', '-'
NAMED = 5  # a sentence names this many files; verification.txt names all


class Row(NamedTuple):
    """A line of the table."""

    what: str
    expected: str
    found: str
    verdict: str  # OK, FEWER (accepted), WRONG or OPEN (nothing published to compare with)


class Problem(NamedTuple):
    """A fault of some files, which becomes one sentence."""

    what: str  # 'images cannot be read'
    names: tuple[str, ...]
    advice: str

    def sentence(self, named: int | None = NAMED) -> str:
        """Write the sentence; it names at most ``named`` files (None: all)."""
        shown = self.names[:named]
        rest = len(self.names) - len(shown)
        what = self.what[0].upper() + self.what[1:]
        return (f'{what} ({len(self.names)}): {", ".join(shown)}'
                f'{f" and {rest} more" if rest else ""}. {self.advice}').strip()


@dataclass
class Report:
    """The result of verification.

    Args:
        root: The prepared folder; files are named from there.
        partial: Fewer files than published are accepted.
    """

    root: Path
    partial: bool = False
    progress: Progress = quiet
    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    shares: dict[str, dict[str, float]] = field(default_factory=dict)  # split → class → 0..1

    def count(self, what: str, found: int, *published: int, says: str = '') -> None:
        """Compare a number with the published one (or ones, where they differ).

        More than published is wrong in any case; ``says`` words the published numbers.
        """
        verdict = OK if found in published else WRONG
        if self.partial and found < min(published):
            verdict = FEWER
        self.rows.append(Row(what, says or f'{published[0]:,}', f'{found:,}', verdict))

    def note(self, what: str, found: str) -> None:
        """Report a number or remark that is not compared."""
        self.rows.append(Row(what, 'not compared', found, OPEN))

    def blame(self, what: str, names: Iterable[str], advice: str = '') -> None:
        """Report a problem with some files, if there are any."""
        names = tuple(names)
        if names:
            self.problems.append(Problem(what, names, advice))

    @property
    def ok(self) -> bool:
        """Tell whether everything is as published."""
        return not self.problems and all(row.verdict != WRONG for row in self.rows)

    def text(self) -> str:
        """Write the whole report with the name of every file, for verification.txt."""
        lines = [f'{row.verdict:6}{row.what}: {row.found} (published: {row.expected})'
                 for row in self.rows]
        lines += [f'{share:7.2%} {split}: {name}'
                  for split, shares in self.shares.items() for name, share in shares.items()]
        lines += [problem.sentence(named=None) for problem in self.problems]
        return '\n'.join([*lines, 'all is well' if self.ok else 'something is wrong', ''])

    def name(self, path: Path) -> str:
        """Name a prepared file for sentences: its path below the root."""
        return path.relative_to(self.root).as_posix()


class Look(NamedTuple):
    """The properties of one decoded file."""

    size: tuple[int, int] | None = None  # width, height
    counts: NDArray[np.int64] | None = None  # pixels of every label [256]
    error: str = ''


def look_at_image(path: Path) -> Look:
    """Decode an image."""
    try:
        height, width, _ = read_image(str(path)).shape
    except UnreadableImage as error:
        return Look(error=str(error))
    return Look((width, height))


def look_at_mask(path: Path) -> Look:
    """Decode a mask and count its labels."""
    try:
        mask = read_mask(path).values
    except UnreadableImage as error:
        return Look(error=str(error))
    if mask.ndim != 2 or mask.dtype != np.uint8:
        return Look(error=f'a mask has one 8-bit channel, this is {mask.dtype} {mask.shape}')
    strips = np.array_split(mask, 1 + mask.size // STRIP)
    counts = [np.bincount(strip.ravel(), minlength=256) for strip in strips]
    return Look(mask.shape[::-1], np.sum(counts, axis=0))


def files(folder: Path, suffix: str = '.png') -> list[Path]:
    """List the finished files of a folder, sorted; a missing folder has none."""
    return sorted(path for path in folder.glob('*')
                  if path.suffix.lower() == suffix and not path.name.startswith('.'))


def check_images(report: Report, what: str, paths: Sequence[Path], size: int,
                 slack: int = 0) -> None:
    """Decode images; blame those that are unreadable or not ``size`` x ``size`` pixels.

    Args:
        report: Where problems are reported.
        what: Name of the images in the report.
        paths: The images.
        size: Expected side in pixels.
        slack: Accepted difference of a side in pixels; such images are only counted.
    """
    looks = in_threads(look_at_image, list(paths), _workers(size))
    seen = list(zip(paths, list(report.progress(looks, f'checking {what}', len(paths)))))
    _blame_unreadable(report, what, seen)
    _blame_sizes(report, what, seen, size, slack)


def check_masks(report: Report, folder: Path, size: int,
                classes: dict[int, str]) -> NDArray[np.int64]:
    """Decode a folder's masks; blame the unreadable, those of another size, and unknown labels.

    The shares of the classes go into the report under the folder's name.

    Args:
        report: Where problems and shares are reported.
        folder: Folder of the masks.
        size: Side in pixels.
        classes: Label → name.

    Returns:
        Number of pixels of every label ``[256]``.
    """
    paths, what = files(folder), f'masks in {report.name(folder)}'
    looks = in_threads(look_at_mask, paths, _workers(size))
    seen = list(zip(paths, list(report.progress(looks, f'checking {what}', len(paths)))))
    _blame_unreadable(report, what, seen)
    _blame_sizes(report, what, seen, size, slack=0)
    known = list(classes)
    total, unknown = np.zeros(256, np.int64), []
    for path, look in seen:
        if look.counts is None:
            continue
        total += look.counts
        strange = [label for label in np.flatnonzero(look.counts) if label not in classes]
        if strange:
            labels = ', '.join(map(str, strange[:NAMED]))
            unknown.append(f'{report.name(path)} ({labels} in '
                           f'{look.counts[strange].sum():,} pixels)')
    report.blame(f'{what} have unknown labels', unknown,
                 f'Known labels are {", ".join(map(str, known))}.')
    if total[known].any():
        report.shares[report.name(folder)] = {
            classes[label]: float(total[label] / total[known].sum()) for label in known}
    return total


def check_pairs(report: Report, folders: Collection[Path]) -> None:
    """Blame files that have no namesake in each of the other folders."""
    names = {folder: {path.name for path in files(folder)} for folder in folders}
    for folder, there in names.items():
        missing = sorted(set().union(*names.values()) - there)
        others = ' and '.join(report.name(other) for other in names if other != folder)
        report.blame(f'files of {others} have no counterpart in {report.name(folder)}', missing)


def _workers(size: int) -> int:
    return 1 if size > LARGE else WORKERS


def _blame_unreadable(report: Report, what: str, seen: list[tuple[Path, Look]]) -> None:
    broken = [f'{report.name(path)} ({look.error})' for path, look in seen if look.error]
    report.blame(f'{what} cannot be read', broken,
                 'Remove them, download their archive again and repeat the command.')


def _blame_sizes(report: Report, what: str, seen: list[tuple[Path, Look]], size: int,
                 slack: int) -> None:
    odd = [(path, look.size) for path, look in seen if look.size and look.size != (size, size)]
    wrong = [f'{report.name(path)} ({width} x {height})' for path, (width, height) in odd
             if max(abs(width - size), abs(height - size)) > slack]
    report.blame(f'{what} are not {size} x {size} pixels', wrong)
    if slack:
        report.note(f'{what} a few pixels off {size} x {size} (known, accepted)',
                    f'{len(odd) - len(wrong):,}')
