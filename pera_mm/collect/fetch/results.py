"""What is known of every point: from the journal of earlier starts, and from this one."""

import asyncio
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from pera_mm.collect.common.tables import Journal, log
from pera_mm.collect.fetch.dates import safe_dates
from pera_mm.errors import UserError
from pera_mm.files import write_whole

FIRST_IMAGES = 100  # images that a source may refuse by status before it gives the first one
IMAGES_PER_FOLDER = 10_000
PILLOW_FORMATS = {'jpg': 'JPEG', 'png': 'PNG'}
NO_GROUP = NO_ZOOM = -1


class FetchedImage(NamedTuple):
    """An image before it is encoded, with its resolution (m per pixel), zoom and dates."""

    image: Image.Image
    gsd: float
    zoom: int | None
    date: str


class Results:
    """The result of every point: in memory as columns, 60 bytes a point; on disk as a journal.

    The journal has three kinds of rows: the settings of a start, an image, and the reason why there
    is no image. An image counts if its point is unchanged, its file exists, and no later row has
    written that file.

    Args:
        folder: The work folder.
        points: Its points.csv.
        journal: Rows of earlier starts; new ones are appended.
        format, quality: Of the images.

    Attributes:
        has_images: Whether the folder has any image, perhaps of other points.
        failed: Positions without an image that the next start tries again.
        advance: Called with 1 for every point that is finished.
    """

    def __init__(self, folder: Path, points: pd.DataFrame, journal: Journal, format: str,
                 quality: int) -> None:
        self.folder, self.journal, self.format = folder, journal, format
        self.options = {'quality': quality} if format == 'jpg' else {}
        self.ids = points['id'].tolist()
        self.lon, self.lat, self.requested_gsd = (points[name].to_numpy(float)
                                                  for name in ('lon', 'lat', 'gsd'))
        count = len(points)
        self.group = np.full(count, NO_GROUP, np.int32)  # the image is in tiles/GROUP
        self.gsd = np.zeros(count)
        self.zoom = np.full(count, NO_ZOOM, np.int8)
        self.date = [''] * count
        self.sha256 = np.zeros((count, 32), np.uint8)
        self.reason = [''] * count  # why there is no image
        self.refused: list[int] = []  # positions, of earlier starts
        self.unsure: list[int] = []  # refused by status before there was any image
        self.failed: set[int] = set()
        self.has_images = False
        self.settings: dict[str, Any] = {}
        self.where: Any = None
        self.advance: Callable[[int], None] = lambda items: None
        self._read_journal()

    # -- earlier starts ------------------------------------------------------------------------

    def _read_journal(self) -> None:
        """Read all rows in one pass: there may be gigabytes."""
        if size := self.journal.path.stat().st_size:
            log.info('fetch: reading the journal (%.1f MB)', size / 1e6)
        positions = {name: position for position, name in enumerate(self.ids)}
        for row in self.journal:
            if 'settings' in row:
                self.settings, self.where = row['settings'], row.get('where')
                self._forget_refusals()
                continue
            self.has_images |= 'sha256' in row
            position = positions.get(row.get('id', ''))
            if position is None:
                continue
            is_same = row['point'] == self.point(position)
            if 'reason' in row:
                if is_same:
                    self.reason[position] = sys.intern(row['reason'])
                    self.refused.append(position)
            elif is_same and 'sha256' in row:
                self._fill(position, row)
            elif self.group[position] == row['group']:
                self.group[position] = NO_GROUP  # another image has replaced its file
        self._forget_lost_images()

    def _forget_lost_images(self) -> None:
        """Forget the images without a file, by one listing per folder: single checks are slow."""
        for group in np.unique(self.group[self.group >= 0]).tolist():
            try:
                files = set(os.listdir(self.folder / _group_folder(group)))
            except FileNotFoundError:
                files = set()
            for position in np.flatnonzero(self.group == group).tolist():
                if f'{self.ids[position]}.{self.format}' not in files:
                    self.group[position] = NO_GROUP

    def _fill(self, position: int, row: dict[str, Any]) -> None:
        self.group[position] = row['group']
        self.gsd[position] = row['gsd']
        self.zoom[position] = NO_ZOOM if row['zoom'] is None else row['zoom']
        self.date[position] = sys.intern(safe_dates(row['date']))
        self.sha256[position] = np.frombuffer(bytes.fromhex(row['sha256']), np.uint8)
        self.reason[position] = ''

    def _forget_refusals(self) -> None:
        while self.refused:
            self.reason[self.refused.pop()] = ''

    def begin(self, settings: dict[str, Any], where: Any) -> None:
        """Begin or continue the folder.

        Args:
            settings: The settings that decide about pixels. They must be the same again once the
                folder has an image.
            where: The place of the source. At a new place, refused images are requested again, and
                no image is made from tiles of two places.

        Raises:
            UserError: if the folder has images made with other settings.
        """
        begun = self.settings
        if begun not in ({}, settings) and self.has_images:
            differs = next(name for name in begun | settings
                           if begun.get(name) != settings.get(name))
            raise UserError(f'{self.folder} was begun with {differs}={begun.get(differs)!r}, and '
                            f'the config says {settings.get(differs)!r}; take another work '
                            f'folder, or delete {self.journal.path} to begin anew.')
        if (begun, self.where) != (settings, where):
            shutil.rmtree(self.folder / 'arriving', ignore_errors=True)  # another source's
            self.journal.add(dict(settings=settings, where=where))
            self._forget_refusals()

    def point(self, position: int) -> list[float]:
        """Return longitude and latitude in degrees and the requested resolution in m per pixel."""
        return [self.lon.item(position), self.lat.item(position),
                self.requested_gsd.item(position)]

    def file(self, position: int, group: int) -> str:
        """Return the path of an image's file, relative to the work folder."""
        return f'{_group_folder(group)}/{self.ids[position]}.{self.format}'

    def open_points(self) -> list[int]:
        """List the positions that have no image and are not refused."""
        refused = np.array([reason != '' for reason in self.reason], bool)
        return np.flatnonzero((self.group < 0) & ~refused).tolist()

    # -- this start ----------------------------------------------------------------------------

    def refuse(self, position: int, reason: str) -> None:
        """Record that an image does not exist; later starts do not request it."""
        self.reason[position] = reason
        self._record(position, reason=reason)
        self.advance(1)

    def refuse_by_status(self, position: int, reason: str) -> None:
        """Record that the server refuses an image; before the first image the URL may be wrong.

        Raises:
            UserError: if the first 100 images are refused.
        """
        if self.has_images:
            return self.refuse(position, reason)
        self.fail(position, reason)
        self.unsure.append(position)
        if len(self.unsure) == FIRST_IMAGES:
            raise UserError(f'The source has refused the first {FIRST_IMAGES} images, the last '
                            f'reason: {reason}; look at url, zooms and key, or take points where '
                            'it has imagery.')

    def fail(self, position: int, reason: str) -> None:
        """Note that an image was not available this time; the next start tries it again."""
        self.reason[position] = reason
        self.failed.add(position)
        self.advance(1)

    async def store(self, position: int, make: Callable[[], FetchedImage]) -> None:
        """Make an image, write its file, then its row in the journal.

        Args:
            position: Of the point.
            make: Called in a thread.

        Raises:
            OSError: if the file cannot be written.
        """
        group = position // IMAGES_PER_FOLDER
        if (self.folder / self.file(position, group)).exists():
            self._record(position, group=group)  # the file is about to be replaced
        row = await asyncio.to_thread(self._write, position, group, make)
        self._record(position, **row)
        self._fill(position, row)
        if not self.has_images:
            self.has_images = True
            for refused in self.unsure:  # the source works: its refusals are final
                self._record(refused, reason=self.reason[refused])
                self.failed.discard(refused)
        self.advance(1)

    def _write(self, position: int, group: int, make: Callable[[], FetchedImage]) -> dict[str, Any]:
        fetched = make()
        stream = io.BytesIO()
        fetched.image.save(stream, PILLOW_FORMATS[self.format], **self.options)
        data = stream.getvalue()
        write_whole(self.folder / self.file(position, group), data)
        return dict(group=group, gsd=round(fetched.gsd, 3), zoom=fetched.zoom, date=fetched.date,
                    sha256=hashlib.sha256(data).hexdigest())

    def _record(self, position: int, **columns: Any) -> None:
        self.journal.add(dict(id=self.ids[position], point=self.point(position), **columns))


def _group_folder(group: int) -> str:
    return f'tiles/{group:03d}'
