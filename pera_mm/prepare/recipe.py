"""The interface of a data set's recipe, and the way from an archive to a verdict."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pera_mm.errors import UserError
from pera_mm.files import write_whole
from pera_mm.prepare.archives import Source, list_source
from pera_mm.prepare.jobs import Job, Progress, quiet, run_jobs
from pera_mm.prepare.verify import Report

VERDICT = 'verification.txt'


class Plan(NamedTuple):
    """The work on a source."""

    jobs: list[Job]
    missing: list[str]  # archives of which the source has no file


class Recipe(ABC):
    """The preparation of one data set."""

    workers = 4

    @abstractmethod
    def plan(self, source: Source, root: Path) -> Plan:
        """Find the data set's files in the source."""

    @abstractmethod
    def finish(self, source: Source, report: Report) -> None:
        """Write the splits and verify what lies in ``report.root``."""


def prepare(recipe: Recipe, source: Path, root: Path, partial: bool = False,
            progress: Progress = quiet) -> Report:
    """Prepare a data set and verify it; existing files are kept.

    Args:
        recipe: The recipe of the data set.
        source: A folder with the official archives or their contents, or one archive. It is
            never changed.
        root: Folder of the prepared data set, which does not need the source afterwards.
        partial: Accept fewer files than published; everything else is checked as usual.
        progress: Shows the progress of the long loops.

    Returns:
        The numbers and the problems found; also written to ``verification.txt``.

    Raises:
        ValueError: if the source cannot be used at all; nothing has been written then.
    """
    source, root = source.resolve(), root.resolve()
    if root == source or source in root.parents:
        raise UserError(f'{root} lies in the source {source}, which is never changed: choose '
                        'another folder.')
    listing = list_source(source)
    jobs, missing = recipe.plan(listing, root)
    if not jobs or (missing and not partial):
        raise UserError(_nothing(source, missing, listing, any_found=bool(jobs)))
    failures = run_jobs(jobs, recipe.workers, progress)
    report = Report(root, partial, progress)
    report.blame('files of the source could not be used',
                 [f'{name} {reason}' for name, reason in failures.items()])
    with warnings.catch_warnings():  # in all threads; the reader's own filter holds for one
        warnings.filterwarnings('ignore', 'Dataset has no geotransform')
        recipe.finish(listing, report)
    write_whole(root / VERDICT, report.text().encode())
    return report


def _nothing(source: Path, missing: Iterable[str], listing: Source, any_found: bool) -> str:
    sentences = [f'{source} holds nothing of {" nor of ".join(missing)}.']
    if listing.unopened:
        rest = len(listing.unopened) - 3
        sentences.append(f'Not opened, because of another kind or within an archive: '
                         f'{", ".join(listing.unopened[:3])}'
                         f'{f" and {rest} more" if rest > 0 else ""}; unpack what is needed first.')
    elif not any_found and listing.entries:
        sentences.append(f'It holds {len(listing.entries)} other files, e.g. '
                         f'{listing.entries[0].path}.')
    if any_found:
        sentences.append('--partial accepts this.')
    return ' '.join(sentences)
