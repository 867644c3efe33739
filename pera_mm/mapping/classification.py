"""Classes of the windows of whole scenes as a coarse grid, and of images as a table."""

import csv
import io
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from rasterio.transform import Affine

from pera_mm.datasets.reading import reason_of
from pera_mm.datasets.scene import Scene
from pera_mm.errors import UserError
from pera_mm.files import check_writable, write_whole
from pera_mm.mapping.job import READ_AHEAD, MapJob, Writer, ahead, as_bytes
from pera_mm.mapping.predictor import Classifier, pipeline_of
from pera_mm.mapping.ranks import Ranks
from pera_mm.mapping.rasters import NODATA, Part, write_part
from pera_mm.mapping.windows import Band, Grid, Windows

HEADER = ('path', 'class', 'name', 'score')

Row = tuple[str, int, str, str]


class GridJob(MapJob):
    """A map with one pixel for each window."""

    def look(self) -> None:
        """Read the head of the scene, and plan its windows."""
        super().look()
        a, b, c, d, e, f = self.info.transform[:6]
        size = self.predictor.window
        self.info = self.info._replace(
            height=len(self.windows.tops), width=len(self.windows.lefts),
            transform=Affine(a * size, b * size, c, d * size, e * size, f))

    def _windows(self, scene: Scene) -> Windows:
        return Grid(scene.height, scene.width, self.predictor.window)

    def _bands(self) -> list[Band]:
        return self.windows.bands(self.windows.width)

    def _part(self, band: int, row: int) -> Part:
        return super()._part(band, row)._replace(top=row, left=0, height=1, width=self.info.width)

    def _predict_rows(self, scene: Scene, band: int,
                      rows: range) -> Generator[tuple[int, Writer], None, None]:
        classes, scores = self._nothing()
        with closing(ahead(self._batches(scene, self.bands[band], rows), READ_AHEAD)) as batches:
            for row, columns, pixels, _ in batches:
                if not columns:
                    yield row, partial(write_part, self._part(band, row).path, classes,
                                       scores if len(scores) else None)
                    classes, scores = self._nothing()
                    continue
                shares = self.predictor(pixels).T  # [C, slots]
                for slot, column in columns:
                    classes[0, column] = shares[:, slot].argmax()
                    if len(scores):
                        scores[:, 0, column] = as_bytes(shares, len(scores))[:, slot]

    def _nothing(self) -> tuple[np.ndarray, np.ndarray]:
        """Return a row of windows without a class."""
        return (np.full((1, self.info.width), NODATA, np.uint8),
                np.zeros((self._score_bands, 1, self.info.width), np.uint8))


def write_table(model: Classifier, cfg: Config, places: Sequence[str], output: Path,
                ranks: Ranks, batch_size: int = 1) -> dict[str, str]:
    """Write the class of each image, taken whole as in the model's test: path, class, name, score.

    Until all are done, the rows so far are in a file ``<output>.<rank>.part`` of each process.

    Args:
        model: the classifier.
        cfg: its config, whose test pipeline reads the images.
        places: of the images.
        output: ``.csv``.
        ranks: the processes that share the images.
        batch_size: images at a time.

    Returns:
        Why images have no class, by path.

    Raises:
        UserError: if there are scenes of another kind, or the folder cannot be written to.
    """
    check_writable(output.parent, 'give another OUT')
    rows: list[Row] = []
    errors: dict[str, str] = {}
    images = _images(Compose(pipeline_of(cfg)), places[ranks.rank::ranks.world], errors)
    part = output.with_name(f'{output.name}.{ranks.rank}.part')
    with part.open('w', encoding='utf-8', errors='surrogateescape', newline='') as file:
        table = csv.writer(file)
        table.writerow(HEADER)
        for row in _rows(model, images, batch_size):
            rows.append(row)
            table.writerow(row)
            file.flush()
    found = ranks.from_all((rows, errors))
    if ranks.is_first:
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(HEADER)
        table.writerows(sorted(row for rows, _ in found for row in rows))
        write_whole(output, text.getvalue().encode('utf-8', 'surrogateescape'))
    part.unlink()
    return {place: reason for _, errors in found for place, reason in errors.items()}


def _images(pipeline: Compose, places: Sequence[str],
            errors: dict[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    """Read images ``[channels, H, W]``; add why one cannot be read to ``errors``."""
    for place in places:
        try:
            sample = dict(img_path=place, skipped=[])
            packed = pipeline(sample)
            if packed is None:
                raise UserError(sample['skipped'][0][1])
        except Exception as error:  # decoders raise anything on broken bytes
            reason = str(error) if isinstance(error, UserError) else reason_of(error)
            errors[place] = f'{place} cannot be read ({reason}).'
            continue
        yield place, packed['inputs'].numpy()


def _rows(model: Classifier, images: Iterator[tuple[str, np.ndarray]],
          batch_size: int) -> Iterator[Row]:
    """Classify images, in batches of one size."""
    for _, alike in groupby(images, key=lambda image: image[1].shape):
        while batch := list(islice(alike, batch_size)):
            places, pixels = zip(*batch)
            for place, shares in zip(places, model(np.stack(pixels))):
                best = int(shares.argmax())
                yield place, best, model.classes[best], f'{shares[best]:.4f}'
