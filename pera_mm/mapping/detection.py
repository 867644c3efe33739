"""Objects in whole scenes: the boxes of all windows, each object once."""

import io
from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from pera_mm.datasets.scene import Scene
from pera_mm.files import write_whole
from pera_mm.mapping.boxes import merge_boxes, write_boxes
from pera_mm.mapping.job import READ_AHEAD, RECIPE_TAG, Job, Writer, ahead
from pera_mm.mapping.rasters import Part


class BoxJob(Job):
    """The boxes of the objects in a scene, in map coordinates."""

    suffixes = ('.gpkg', '.parquet', '.fgb', '.geojson')

    def finish(self) -> None:
        """Join the boxes of all rows of windows; of the boxes of one object keep the best."""
        found = np.concatenate([np.load(self._part(*strip).path) for strip in self._strips()])
        boxes, scores, labels = found[:, :4], found[:, 4], found[:, 5].astype(np.int64)
        kept = merge_boxes(boxes, scores, labels)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        write_boxes(self.output, boxes[kept], scores[kept], labels[kept], self.info.classes,
                    self.info.transform, self.info.crs)
        write_whole(self._note, self.info.tags[RECIPE_TAG].encode())

    @property
    def outputs(self) -> list[Path]:
        """The boxes and their note."""
        return [self.output, self._note]

    @property
    def _note(self) -> Path:
        """The file that says from which recipe the boxes are; a raster has a tag for it."""
        return self.output.with_name(f'.{self.output.name}.recipe')

    def _is_finished(self) -> bool:
        return not self.work.exists() and self.output.exists() and self._note.exists() and (
            self._note.read_text() == self.info.tags[RECIPE_TAG])

    def _part(self, band: int, row: int) -> Part:
        part = super()._part(band, row)
        return part._replace(path=part.path.with_suffix('.npy'))

    def _predict_rows(self, scene: Scene, band: int,
                      rows: range) -> Generator[tuple[int, Writer], None, None]:
        found = [np.zeros((0, 6))]
        with closing(ahead(self._batches(scene, self.bands[band], rows), READ_AHEAD)) as batches:
            for row, columns, pixels, wanted in batches:
                if not columns:
                    yield row, partial(write_whole, self._part(band, row).path,
                                       _as_file(np.concatenate(found)))
                    found = found[:1]
                    continue
                boxes = self.predictor(pixels)
                corner = self.windows.tops[row]
                for slot, column in columns:
                    x, y = _middles(boxes[slot], wanted.shape[1])
                    inside = boxes[slot][wanted[slot, y, x]]
                    left = self.windows.lefts[column]
                    found.append(inside + [left, corner, left, corner, 0, 0])


def _middles(boxes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels in the middles of boxes ``[N, 6]``: columns and rows."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    return tuple(np.clip(values, 0, size - 1).astype(np.int64) for values in (x, y))


def _as_file(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
