"""One scene and what is made of it, in strips, each predicted and written by itself.

A strip's content depends on the model, the scene and the options alone. So a run that is continued,
and one on several processes, gives the bytes of a single one.
"""

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

import pera_mm
from pera_mm.datasets.reading import Scale
from pera_mm.datasets.scene import Scene
from pera_mm.datasets.scene_grids import URL, files_of
from pera_mm.errors import UserError
from pera_mm.files import LOCK, Claim, check_signature, write_whole
from pera_mm.mapping.blending import RollingSum
from pera_mm.mapping.rasters import NODATA, MapInfo, Part, join, join_scores, write_part
from pera_mm.mapping.styles import write_style
from pera_mm.mapping.windows import Band, Windows

ROWS_AT_A_TIME = 64  # that become classes
READ_AHEAD = 2  # batches
RECIPE = 'recipe.json'
RECIPE_TAG = 'RECIPE_SHA256'

T = TypeVar('T')
Strip = tuple[int, int]  # band and row of windows
Writer = Callable[[], None]


@dataclass(frozen=True)
class Options:
    """How scenes are predicted.

    Attributes:
        before: the older date of every scene, for a model of change; a folder holds dates with the
            names of the scenes.
        aoi: only inside the polygons of this file.
        gsd: meters per pixel to which scenes are resampled.
        bands: 1-based bands of the scenes; default: those tagged red, green, blue, else the first.
        scale: the values of other than 8-bit pixels that become 0 and 255.
        blend, overlap: as in :class:`~pera_mm.mapping.windows.Windows`.
        tta: as in :class:`~pera_mm.mapping.predictor.Predictor`.
        scores: also write the probability of each class.
        vectors: also write polygons, in this format: gpkg, parquet, fgb or geojson.
        min_area, simplify: of polygons, as in :func:`~pera_mm.mapping.vectors.vectorize`.
        memory: GiB for the sums of windows; a scene that is too wide for it is predicted in bands
            of columns.
        batch_size: windows at a time; default: 512² px on a CPU, 8 times as many on a GPU.
        resume: continue an earlier run.
    """

    before: str | None = None
    aoi: str | Path | None = None
    gsd: float | None = None
    bands: tuple[int, ...] | None = None
    scale: Scale = 'auto'
    blend: str = 'hann'
    overlap: float = 1 / 3
    tta: str = 'none'
    scores: bool = False
    vectors: str | None = None
    min_area: float = 0.
    simplify: float = 0.
    memory: float = 1.
    batch_size: int | None = None
    resume: bool = False


class Batch(NamedTuple):
    """Windows of one row.

    Attributes:
        row: of windows.
        columns: (slot, column) of each window; none at the end of the row.
        pixels: ``[slots, channels, size, size]``.
        wanted: ``[slots, size, size]``.
    """

    row: int
    columns: list[tuple[int, int]]
    pixels: NDArray = np.zeros(0)
    wanted: NDArray[np.bool_] = np.zeros(0, bool)


class Job:
    """A scene, its output, and the strips between them.

    Args:
        place: of the scene.
        output: a file.
        predictor: the model.
        options: how.
        recipe: what the strips depend on besides the scene.
        config: name of the config.
    """

    suffixes: tuple[str, ...] = ('.tif', '.tiff')  # of outputs; a scene in a folder has the first

    def __init__(self, place: str, output: Path, predictor: Any, options: Options,
                 recipe: Mapping[str, Any], config: str) -> None:
        self.place, self.output, self.predictor, self.options = place, output, predictor, options
        self.work = output.parent / f'.{output.stem}.parts'
        self.recipe, self.config = dict(recipe), config
        self.claim: Claim | None = None
        self.error: str | None = None
        self.done = False  # by an earlier run
        self.pixel_area: float | None = None
        self.overlap = 1.
        self.windows: Windows
        self.bands: list[Band]

    @property
    def inputs(self) -> list[tuple[str, Path]]:
        """What is read, and the files of this machine that hold it."""
        rasters = [('its scene', self.place), ('its older date', self._before())]
        files = [(what, path) for what, place in rasters if place is not None
                 for path in files_of(place)]
        if self.options.aoi is not None:
            files.append(('the polygons', Path(self.options.aoi)))
        return files

    @property
    def outputs(self) -> list[Path]:
        """The files that are written."""
        raise NotImplementedError

    @property
    def is_open(self) -> bool:
        """Whether there is something left to do."""
        return self.error is None and not self.done

    def try_to(self, step: Callable[[], None]) -> None:
        """Take a step; an error that a user can correct ends this scene, but not the others."""
        if self.is_open:
            try:
                step()
            except UserError as error:
                self.error = str(error)

    def look(self) -> None:
        """Read the head of the scene, and plan its windows."""
        predictor = self.predictor
        with self._scene() as scene:
            self.windows = self._windows(scene)
            self.info = MapInfo(scene.height, scene.width, scene.crs, scene.transform,
                                predictor.classes, predictor.palette, {})
            self.pixel_area, self.overlap = scene.pixel_area(), scene.overlap
        self.bands = self._bands()
        before = self._before()
        self.recipe.update(scene=_identity(self.place),
                           before=None if before is None else _identity(before))
        whole = dict(self.recipe, vectors=self.options.vectors, min_area=self.options.min_area,
                     simplify=self.options.simplify)  # no strip depends on them
        digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
        self.info = self.info._replace(tags={
            'TIFFTAG_SOFTWARE': f'pera_mm {pera_mm.__version__}', 'CONFIG': self.config,
            'CHECKPOINT_SHA256': self.recipe['checkpoint'],
            'CLASS_NAMES': json.dumps(list(predictor.classes)), RECIPE_TAG: digest})

    def begin(self) -> None:
        """Claim the folder of the strips, or find the map finished.

        Raises:
            UserError: if another run works in the folder, or it cannot be written to. That strips
                of another recipe cannot be continued is an error of this scene alone.
        """
        if not self.is_open:
            return
        if self.options.resume and self._is_finished():
            self.done = True
            return
        self.claim = Claim(self.work, 'give another OUT')
        if self.options.resume and any(self.work.glob('*-*')):  # strips
            self.try_to(lambda: check_signature(self.work, RECIPE, self.recipe,
                                                'leave out --resume to begin anew'))
        else:
            self._empty()
            write_whole(self.work / RECIPE, json.dumps(self.recipe).encode())

    def release(self) -> None:
        """Let other runs work in the folder of the strips."""
        if self.claim is not None:
            self.claim.release()

    def clear(self) -> None:
        """Delete the strips of a finished output, and let other runs work in their folder."""
        if self.is_open:
            self._empty()
        self.release()  # before the lock is deleted: NFS keeps open files
        if self.is_open:
            shutil.rmtree(self.work, ignore_errors=True)  # it may be another run's by now

    def _empty(self) -> None:
        """Delete what is in the folder of the strips, but for the lock."""
        for path in self.work.iterdir():
            if path.name != LOCK:
                path.unlink()

    def missing(self) -> list[Strip]:
        """List the strips that are still to be predicted."""
        return [strip for strip in self._strips() if not self._part(*strip).path.exists()
                ] if self.is_open else []

    def pixels(self, strip: Strip) -> int:
        """Return the number of pixels of a strip."""
        (top, bottom), band = self.windows.strip(strip[1]), self.bands[strip[0]]
        return (bottom - top) * (band.right - band.left)

    def predict_strips(self, strips: Sequence[Strip], advance: Callable[[int], None]) -> None:
        """Predict strips, as :meth:`try_to`.

        Args:
            strips: in the order of :meth:`missing`.
            advance: called with the number of pixels after each strip.
        """
        if strips:
            self.try_to(lambda: self._predict(strips, advance))

    def _predict(self, strips: Sequence[Strip], advance: Callable[[int], None]) -> None:
        with self._scene() as scene, ThreadPoolExecutor(1) as writer:
            written: Future | None = None
            for band, group in groupby(strips, key=lambda strip: strip[0]):
                for rows in _runs([row for _, row in group]):
                    with closing(self._predict_rows(scene, band, rows)) as predicted:
                        for row, write in predicted:
                            if written is not None:
                                written.result()
                            written = writer.submit(write)
                            advance(self.pixels((band, row)))
            if written is not None:
                written.result()

    def _predict_rows(self, scene: Scene, band: int,
                      rows: range) -> Generator[tuple[int, Writer], None, None]:
        """Predict the strips of neighboring rows; yield each row and what writes its strip."""
        raise NotImplementedError

    def finish(self) -> None:
        """Join the strips to the output."""
        raise NotImplementedError

    def _windows(self, scene: Scene) -> Windows:
        return Windows(scene.height, scene.width, self.predictor.window, self.options.blend,
                       self.options.overlap)

    def _bands(self) -> list[Band]:
        """Divide the columns of the scene."""
        return self.windows.bands(self.windows.width)

    def _before(self) -> str | None:
        """Return the path or URL of the older date."""
        before = self.options.before
        if before is None:
            return None
        return str(Path(before) / Path(self.place).name if Path(before).is_dir() else before)

    def _scene(self) -> Scene:
        return Scene(self.place, self.predictor.reading, self._before(), self.options.gsd,
                     self.options.aoi)

    def _is_finished(self) -> bool:
        """Whether an earlier run with this recipe wrote the output and what belongs to it."""
        if self.work.exists() or not self.output.exists():
            return False
        try:
            with rasterio.open(self.output) as file:
                return file.tags().get(RECIPE_TAG) == self.info.tags[RECIPE_TAG]
        except RasterioError:
            return False

    def _strips(self) -> list[Strip]:
        return [(band, row) for band in range(len(self.bands))
                for row in range(len(self.windows.tops))]

    def _part(self, band: int, row: int) -> Part:
        top, bottom = self.windows.strip(row)
        left, right = self.bands[band].left, self.bands[band].right
        return Part(self.work / f'{band:03d}-{row:06d}.tif', top, left, bottom - top, right - left)

    def _batches(self, scene: Scene, band: Band, rows: range) -> Iterator[Batch]:
        """Read windows while the model predicts; each row of windows ends with an empty batch.

        A window has the same slot in the same batch whichever others are skipped, because a batch
        of another size, or another slot, may change the last digits of a logit.
        """
        side, left = self.predictor.window, self.windows.lefts[band.first]
        width = self.windows.lefts[band.last - 1] + side - left
        count = band.last - band.first
        batches = -(-count // (self.options.batch_size or 1))
        size = -(-count // batches)  # as equal as can be: an empty slot costs as much as a window
        for row in rows:
            if scene.may_have_pixels(self.windows.tops[row], left, side, width):
                for begin in range(band.first, band.last, size):
                    batch = self._read(scene, row, range(begin, min(begin + size, band.last)), size)
                    if batch.columns:
                        yield batch
            yield Batch(row, [])

    def _read(self, scene: Scene, row: int, columns: range, slots: int) -> Batch:
        """Read the windows of columns that have wanted pixels."""
        side, top = self.predictor.window, self.windows.tops[row]
        batch = Batch(row, [], wanted=np.zeros((slots, side, side), bool))
        for slot, column in enumerate(columns):
            left = self.windows.lefts[column]
            if not scene.may_have_pixels(top, left, side, side):
                continue
            pixels, wanted = scene.read(top, left, side)
            if not wanted.any():
                continue
            if not batch.columns:
                batch = batch._replace(pixels=np.zeros((slots, *pixels.shape), pixels.dtype))
            batch.pixels[slot], batch.wanted[slot] = pixels, wanted
            batch.columns.append((slot, column))
        return batch


class MapJob(Job):
    """A map of a class for each pixel."""

    def finish(self) -> None:
        """Join the strips, and write what was asked for besides the map."""
        parts = [self._part(*strip) for strip in self._strips()]
        scores = None
        if self.options.scores:
            scores = self._score_file
            join_scores(parts, scores, self.info, self.work, self.info.classes)
        elif self.options.vectors:
            scores = self.work / 'score.tif'
            join_scores(parts, scores, self.info, self.work, ['score'])
        join(parts, self.output, self.info, self.work)
        write_style(self._style_file, self.info.classes, self.info.palette)
        if self.options.vectors:
            from pera_mm.mapping.vectors import vectorize

            vectorize(self.output, self._vector_file, self.info.classes, self.options.min_area,
                      self.options.simplify, scores)

    @property
    def outputs(self) -> list[Path]:
        """The map and what was asked for besides it."""
        files = [self.output, self._style_file]
        if self.options.scores:
            files.append(self._score_file)
        if self.options.vectors:
            files.append(self._vector_file)
        return files

    @property
    def _style_file(self) -> Path:
        return self.output.with_suffix('.qml')

    @property
    def _score_file(self) -> Path:
        return self.output.with_name(f'{self.output.stem}_scores.tif')

    @property
    def _vector_file(self) -> Path:
        return self.output.with_suffix(f'.{self.options.vectors}')

    @property
    def _score_bands(self) -> int:
        """Bands of scores in a strip: of each class, of the pixel's own, or none."""
        return len(self.predictor.classes) if self.options.scores else int(
            self.options.vectors is not None)

    def _bands(self) -> list[Band]:
        """Divide the columns so that the sums of a band fit into the memory."""
        size, classes = self.predictor.window, self.predictor.number_of_classes
        column = RollingSum.bytes_per_column(size, classes) + 2 * size * (1 + self._score_bands)
        return self.windows.bands(int(self.options.memory * 2**30 / column))

    def _predict_rows(self, scene: Scene, band: int,
                      rows: range) -> Generator[tuple[int, Writer], None, None]:
        rolling = RollingSum(self.windows, self.bands[band], self.predictor.number_of_classes)
        for row in self._add_rows(rolling, scene, rows):
            part = self._part(band, row)
            yield row, partial(write_part, part.path, *self._take(rolling, part))

    def _add_rows(self, rolling: RollingSum, scene: Scene, rows: range) -> Iterator[int]:
        """Add the windows of rows; yield each row when its strip is complete."""
        first = self.windows.first_row(rows[0])
        read = self._batches(scene, rolling.band, range(first, rows[-1] + 1))
        with closing(ahead(read, READ_AHEAD)) as batches:
            for row, columns, pixels, wanted in batches:
                if columns:
                    logits = self.predictor(pixels)
                    for slot, column in columns:
                        rolling.add(row, column, logits[slot], wanted[slot])
                elif row in rows:
                    yield row
                else:
                    top, bottom = self.windows.strip(row)
                    rolling.drop(top, bottom - top)

    def _take(self, rolling: RollingSum, part: Part) -> tuple[NDArray, NDArray | None]:
        """Take a strip out of the sums: classes ``[H, W]`` and scores ``[bands, H, W]``."""
        classes = np.full((part.height, part.width), NODATA, np.uint8)
        scores = np.zeros((self._score_bands, *classes.shape), np.uint8)
        for begin in range(0, part.height, ROWS_AT_A_TIME):
            rows = slice(begin, min(begin + ROWS_AT_A_TIME, part.height))
            taken = rolling.take(part.top + begin, rows.stop - begin)
            if taken is None:
                continue
            logits, wanted = taken
            classes[rows] = np.where(wanted, logits.argmax(axis=0), NODATA)
            if len(scores):
                scores[:, rows] = as_bytes(_softmax(logits), len(scores)) * wanted
        return classes, scores if len(scores) else None


def as_bytes(shares: NDArray, bands: int) -> NDArray[np.uint8]:
    """Return probabilities ``[C, ...]`` as 0 to 255, of all classes or (one band) the largest."""
    if bands == 1:
        shares = shares.max(axis=0, keepdims=True)
    return np.rint(255 * shares).astype(np.uint8)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute probabilities from ``[C, H, W]``."""
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def _runs(rows: Sequence[int]) -> list[range]:
    """Group rising numbers into runs without a gap."""
    runs: list[range] = []
    for row in rows:
        if runs and runs[-1].stop == row:
            runs[-1] = range(runs[-1].start, row + 1)
        else:
            runs.append(range(row, row + 1))
    return runs


def ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Iterate while a thread prepares the next items, which are never None."""
    with ThreadPoolExecutor(1) as reader:
        waiting = deque(reader.submit(next, items, None) for _ in range(depth))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(reader.submit(next, items, None))
            yield item


def _identity(place: str) -> list:
    """Say which file a place is: its path, and size and time of a local one."""
    if URL.match(place):
        return [place]
    status = os.stat(place)
    return [os.path.abspath(place), status.st_size, status.st_mtime_ns]


