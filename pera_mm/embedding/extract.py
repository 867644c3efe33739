"""From a backbone and pictures to a table of vectors or a map, piece by piece.

Every piece is a file in a folder beside the output. A run that was killed finds the whole ones and
makes the others, so that the output is the same.
"""

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pera_mm.datasets.reading import UnreadableImage
from pera_mm.embedding.grid_map import make_strip, windows_by_row, write_map
from pera_mm.embedding.pictures import Picture, Pictures, Scenes
from pera_mm.embedding.table import join_pieces, make_table, skipped_in, write_piece
from pera_mm.errors import UserError
from pera_mm.export import whole
from pera_mm.files import Claim, sign_folder
from pera_mm.weights.backbone import NormalizedViT

TOKENS = ('cls', 'patch', 'grid')
MAP_SUFFIXES = ('.tif', '.tiff')
PIECE_PICTURES = 1024  # at most; a kill loses the work of one piece
PIECE_ROWS = 16_384  # about, of a table of patches
MAX_READERS = 8  # threads
BATCHES_AHEAD = 2  # that are read while the model computes one
NO_PIXELS = np.empty(0, np.uint8)

Skipped = list[tuple[str, str]]  # path and reason of each


class Summary(NamedTuple):
    """What a run wrote."""

    rows: int  # of the table, or pixels of the map
    pictures: int  # that there were
    skipped: Skipped  # those that could not be read


class Extractor:
    """A backbone at work on pictures.

    Args:
        model: the backbone, on the device to compute on.
        pictures: what to embed.
        token: 'cls', 'patch' (the mean of the patch tokens) or 'grid' (every patch token).
        dtype: 'float16' or 'float32', of the vectors in a table; a map has float32.
        batch_size: pictures per forward pass.
    """

    def __init__(self, model: NormalizedViT, pictures: Pictures | Scenes, token: str, dtype: str,
                 batch_size: int) -> None:
        self.model, self.pictures, self.token = model, pictures, token
        self.dtype, self.batch_size = np.dtype(dtype), batch_size

    def write(self, out: Path, facts: dict[str, Any],
              progress: Callable[[int], None] = lambda pictures: None) -> Summary:
        """Write all vectors to ``out``: a table, or a map if it ends with .tif.

        A killed run is continued from the pieces in the folder ``<out>.pieces``.

        Args:
            out: the file; it appears when it is whole.
            facts: what the vectors depend on; written into the file.
            progress: is called with the number of pictures that are done.

        Raises:
            ValueError: if no picture can be read, or pieces of other facts are there.
        """
        as_map = out.suffix.lower() in MAP_SUFFIXES
        spans = self._spans_of_map() if as_map else self._spans()
        folder = out.with_name(f'{out.name}.pieces')
        sign_folder(folder, 'recipe.json', facts, 'give the same arguments, or delete this folder '
                    'of unfinished work')
        pieces = [folder / f'{number:07}.{"npz" if as_map else "parquet"}'
                  for number in range(len(spans))]
        make = self._make_strip if as_map else self._make_table
        with Claim(folder), ThreadPoolExecutor(min(cpu_count() or 1, MAX_READERS)) as readers:
            for number, (span, piece) in enumerate(zip(spans, pieces)):
                if not piece.exists():
                    with whole(piece) as part:
                        make(number, span, readers, part)
                progress(len(span))
            summary = self._join_map(out, folder, pieces, facts) if as_map else self._join(
                out, pieces, facts)
        shutil.rmtree(folder)
        if not summary.rows:
            out.unlink()  # it holds nothing
            first = [f'; the first is {path} ({reason})' for path, reason in summary.skipped[:1]]
            raise UserError(f'none of the {summary.pictures} pictures has a pixel to embed, and '
                            f'{len(summary.skipped)} could not be read{"".join(first)}.')
        return summary

    # A table --------------------------------------------------------------------------------

    def _spans(self) -> list[range]:
        """Divide the pictures among the pieces."""
        patches = (self.pictures.size // self.model.patch_size)**2 if self.token == 'grid' else 1
        number = max(min(PIECE_PICTURES, PIECE_ROWS // patches), 1)
        return [range(start, min(start + number, len(self.pictures)))
                for start in range(0, len(self.pictures), number)]

    def _make_table(self, number: int, span: range, readers: ThreadPoolExecutor,
                    part: Path) -> None:
        skipped: Skipped = []
        pictures: list[Picture] = []  # without their pixels
        rows: list[tuple[int, np.ndarray]] = []
        vectors = [np.empty((0, self.model.width), self.dtype)]
        for picture, features in self._features(span, readers, skipped):
            if self.token == 'grid':
                inside = np.nonzero(picture.keep)
                boxes = _boxes_of_patches(picture)[inside]
                features = features[:, inside[0], inside[1]].T
            else:
                boxes, features = np.array([picture.box]), features[None]
            rows += [(len(pictures), box) for box in boxes]
            vectors.append(features.astype(self.dtype))
            pictures.append(picture._replace(pixels=NO_PIXELS))
        write_piece(part, make_table(pictures, rows, np.concatenate(vectors)), skipped)

    def _join(self, out: Path, pieces: list[Path], facts: dict[str, Any]) -> Summary:
        skipped = [*self.pictures.unreadable,
                   *(entry for piece in pieces for entry in skipped_in(piece))]
        with whole(out) as part:
            rows = join_pieces(pieces, part, dict(facts, skipped=len(skipped)))
        return Summary(rows, len(self.pictures), skipped)

    # A map ----------------------------------------------------------------------------------

    def _spans_of_map(self) -> list[range]:
        scenes = self.pictures
        if self.token != 'grid' or not isinstance(scenes, Scenes) or len(scenes.paths) != 1:
            raise UserError('a map (-o *.tif) is of the patches of one scene: give a scene and '
                            '--token grid, or write a table (-o *.parquet).')
        return windows_by_row(scenes)

    def _make_strip(self, number: int, span: range, readers: ThreadPoolExecutor,
                    part: Path) -> None:
        assert isinstance(self.pictures, Scenes)
        skipped: Skipped = []
        strip = make_strip(self.pictures, number, self.model.width,
                           self._features(span, readers, skipped))
        with part.open('wb') as file:
            np.savez(file, strip=strip, skipped=json.dumps(skipped))

    def _join_map(self, out: Path, folder: Path, pieces: list[Path],
                  facts: dict[str, Any]) -> Summary:
        assert isinstance(self.pictures, Scenes)
        skipped = [(path, reason) for piece in pieces
                   for path, reason in json.loads(str(_load(piece, 'skipped')))]
        with whole(out) as part:
            pixels = write_map(part, folder / 'map.part', self.pictures,
                               (_load(piece, 'strip') for piece in pieces), self.model.width,
                               dict(facts, skipped=len(skipped)))
        return Summary(pixels, len(self.pictures), skipped)

    # Both -----------------------------------------------------------------------------------

    def _features(self, span: range, readers: ThreadPoolExecutor,
                  skipped: Skipped) -> Iterator[tuple[Picture, np.ndarray]]:
        """Yield the pictures with valid pixels in their order, with ``[D]`` or ``[D, h, w]``."""
        batch: list[Picture] = []
        for picture in self._read(span, readers, skipped):
            batch.append(picture)
            if len(batch) == self.batch_size:
                yield from zip(batch, self._encode(batch))
                batch = []
        if batch:
            yield from zip(batch, self._encode(batch))

    def _encode(self, batch: list[Picture]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack([picture.pixels for picture in batch]))
        return encode(self.model, pixels.permute(0, 3, 1, 2), self.token).numpy()

    def _read(self, span: range, readers: ThreadPoolExecutor,
              skipped: Skipped) -> Iterator[Picture]:
        """Read the pictures of a span some way ahead."""
        waiting: deque[tuple[int, Future]] = deque()
        ahead = BATCHES_AHEAD * self.batch_size
        for index in [*span, *[None] * ahead]:
            if index is not None:
                waiting.append((index, readers.submit(self.pictures.read, index)))
            if waiting and (index is None or len(waiting) > ahead):
                number, future = waiting.popleft()
                try:
                    picture = future.result()
                except UnreadableImage as error:
                    skipped.append((self.pictures.name(number), str(error)))
                    continue
                if picture is not None and picture.keep.any():
                    yield picture


def encode(model: NormalizedViT, images: Tensor, token: str) -> Tensor:
    """Return one of the :data:`TOKENS` of uint8 images ``[B, 3, S, S]``, float32 on the CPU."""
    with torch.inference_mode():
        features = model(images.to(model.mean.device))
    chosen = dict(cls=features.cls, patch=features.mean, grid=features.grid)[token]
    return chosen.float().cpu()


def _boxes_of_patches(picture: Picture) -> np.ndarray:
    """Compute the boxes of the patches in the file: ``[h, w, 4]``."""
    left, top, right, bottom = picture.box
    rows, columns = picture.keep.shape
    y, x = np.linspace(top, bottom, rows + 1), np.linspace(left, right, columns + 1)
    lefts, tops = np.meshgrid(x[:-1], y[:-1])
    rights, bottoms = np.meshgrid(x[1:], y[1:])
    return np.stack([lefts, tops, rights, bottoms], axis=-1)


def _load(piece: Path, name: str) -> np.ndarray:
    with np.load(piece) as arrays:
        return arrays[name]
