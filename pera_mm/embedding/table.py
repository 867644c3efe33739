"""A table of vectors: Parquet, or GeoParquet where places are known.

A row has ``index`` (number of the picture in its source), ``path``, ``row`` and ``column`` (the
upper left pixel in the file), ``date``, ``geometry`` (a polygon as WKB, longitude and latitude,
WGS 84) and ``vector``, float16 or float32 ``[D]``. The number of a row in the file is its id.
What all rows share is in the file's metadata, as JSON under the key ``pera_mm``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pera_mm.datasets.reading import Scale
from pera_mm.embedding.pictures import Picture
from pera_mm.errors import MissingFileError, UserError, needs_extra

KEY = b'pera_mm'  # of the facts, in the metadata
SKIPPED = b'skipped'  # of a piece: JSON, a list of [path, reason]
DTYPES = ('float16', 'float32')
LON_LAT = 'EPSG:4326'
# GeoParquet's default CRS is longitude and latitude on WGS 84.
GEO = json.dumps(dict(version='1.1.0', primary_column='geometry', columns=dict(
    geometry=dict(encoding='WKB', geometry_types=['Polygon']))))
CORNERS = ((0, 1), (0, 3), (2, 3), (2, 1), (0, 1))  # of a box, a closed ring
Ids = Sequence[int] | np.ndarray
TINY = 1e-12  # length of a vector that has no direction


def geo_package(name: str) -> Any:
    """Import a package of the extra ``geo``.

    Raises:
        ValueError: if it is not installed.
    """
    with needs_extra('geo', 'a table of vectors'):
        return import_module(name)


# Writing -----------------------------------------------------------------------------------------


def make_table(pictures: Sequence[Picture], rows: Sequence[tuple[int, np.ndarray]],
               vectors: np.ndarray) -> Any:
    """Make a table of pyarrow.

    Args:
        pictures: n of them.
        rows: for each row, which picture, and its box in the picture's file, float ``[4]``.
        vectors: ``[len(rows), D]``.
    """
    pa = geo_package('pyarrow')
    seen = [pictures[number] for number, _ in rows]
    boxes = np.array([box for _, box in rows], np.float64).reshape(-1, 4)
    # That no number is missing makes reading twice as fast.
    number = pa.field('element', pa.from_numpy_dtype(vectors.dtype), nullable=False)
    kind = pa.list_(number, vectors.shape[1])
    schema = pa.schema(dict(index=pa.int64(), path=pa.string(), row=pa.int32(), column=pa.int32(),
                            date=pa.date32(), geometry=pa.binary()))
    schema = schema.append(pa.field('vector', kind, nullable=False))
    corners = np.round(boxes[:, :2]).astype(np.int32)
    return pa.Table.from_arrays([
        pa.array([picture.number for picture in seen], pa.int64()),
        pa.array([_text(picture.path) for picture in seen], pa.string()),
        pa.array(corners[:, 1]),
        pa.array(corners[:, 0]),
        pa.array([picture.frame.date for picture in seen], pa.date32()),
        pa.array(_polygons(seen, boxes), pa.binary()),
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind)], schema=schema)


def _text(path: str) -> str:
    """Make a path that is not UTF-8 fit for a table."""
    return path.encode('utf-8', 'backslashreplace').decode()


def _polygons(pictures: Sequence[Picture], boxes: np.ndarray) -> list[bytes | None]:
    """Return the boxes as polygons of longitude and latitude, within their files."""
    from rasterio.warp import transform

    shapely = geo_package('shapely')
    polygons: list[bytes | None] = [None] * len(boxes)
    # Rows of one file lie together, and one call of PROJ is for all of them.
    starts = [number for number in range(len(pictures))
              if number == 0 or pictures[number].frame is not pictures[number - 1].frame]
    for start, stop in zip(starts, [*starts[1:], len(pictures)]):
        frame = pictures[start].frame
        if frame.crs is None:
            continue
        corners = boxes[start:stop][:, CORNERS]  # [n, 5, 2], x and y in pixels
        corners = np.clip(corners, 0, (frame.width, frame.height))
        a, b, c, d, e, f = frame.transform[:6]
        x, y = corners[..., 0].reshape(-1), corners[..., 1].reshape(-1)
        lon, lat = transform(frame.crs, LON_LAT, a * x + b * y + c, d * x + e * y + f)
        rings = np.stack([lon, lat], axis=1).reshape(-1, 5, 2)
        finite = np.isfinite(rings).all(axis=(1, 2))  # beyond the projection's reach: no polygon
        for number, ring in zip(np.arange(start, stop)[finite], rings[finite]):
            polygons[number] = shapely.to_wkb(shapely.Polygon(ring))
    return polygons


def write_piece(file: Path, table: Any, skipped: Sequence[tuple[str, str]]) -> None:
    """Write a piece of a table, with the pictures that could not be read."""
    parquet = geo_package('pyarrow.parquet')
    noted = [(_text(path), reason) for path, reason in skipped]
    parquet.write_table(table.replace_schema_metadata({SKIPPED: json.dumps(noted)}), file)


def join_pieces(pieces: Sequence[Path], file: Path, facts: Mapping[str, Any]) -> int:
    """Write one table of many pieces, each as a row group; return the number of its rows.

    The column ``geometry`` is left out where no row has a place.
    """
    parquet = geo_package('pyarrow.parquet')
    placed = any(_has_place(piece) for piece in pieces)
    metadata = {KEY: json.dumps(facts)} | ({b'geo': GEO} if placed else {})
    schema = parquet.read_schema(pieces[0])
    if not placed:
        schema = schema.remove(schema.get_field_index('geometry'))
    others = [name for name in schema.names if name != 'vector']  # vectors do not compress
    with parquet.ParquetWriter(file, schema.with_metadata(metadata), use_dictionary=['path'],
                               compression=dict.fromkeys(others, 'zstd')) as writer:
        rows = 0
        for piece in pieces:
            table = parquet.ParquetFile(piece).read(schema.names)
            if len(table):
                writer.write_table(table.replace_schema_metadata(metadata),
                                   row_group_size=len(table))
            rows += len(table)
    return rows


def _has_place(piece: Path) -> bool:
    column = geo_package('pyarrow.parquet').ParquetFile(piece).read(['geometry'])['geometry']
    return column.null_count < len(column)


def skipped_in(piece: Path) -> list[tuple[str, str]]:
    """Return path and reason of the pictures of a piece that could not be read."""
    metadata = geo_package('pyarrow.parquet').read_schema(piece).metadata
    return [(path, reason) for path, reason in json.loads(metadata[SKIPPED])]


# Reading -----------------------------------------------------------------------------------------


class Vectors:
    """A table of vectors on the disk, read block by block.

    Args:
        path: a file of ``tools/embed.py``.

    Raises:
        ValueError: if there is no such file, or it is something else.
    """

    def __init__(self, path: str | Path) -> None:
        parquet = geo_package('pyarrow.parquet')
        self.path = Path(path)
        if not self.path.is_file():
            raise MissingFileError(f'There is no table {path}: check the path.')
        try:
            self.file = parquet.ParquetFile(self.path)
        except geo_package('pyarrow').ArrowException as error:
            raise UserError(f'{path} is not a Parquet file ({str(error).splitlines()[0]}): give a '
                            'table of tools/embed.py.') from None
        schema = self.file.schema_arrow
        metadata = schema.metadata or {}
        if KEY not in metadata or 'vector' not in schema.names:
            raise UserError(f'{path} has no vectors of tools/embed.py: give such a table.')
        self.facts: dict[str, Any] = json.loads(metadata[KEY])
        self.has_places = 'geometry' in schema.names
        self.width: int = schema.field('vector').type.list_size

    def __len__(self) -> int:
        return self.file.metadata.num_rows

    @property
    def rule(self) -> tuple[tuple[int, ...] | None, Scale]:
        """The bands and the scale of rasters, see :mod:`pera_mm.datasets.reading`."""
        bands, scale = self.facts['bands'], self.facts['scale']
        return bands and tuple(bands), scale if scale == 'auto' else tuple(scale)

    @cached_property
    def ends(self) -> np.ndarray:
        """The ids after the last of each row group."""
        metadata = self.file.metadata
        return np.cumsum([metadata.row_group(number).num_rows
                          for number in range(metadata.num_row_groups)])

    def blocks(self, rows: int, stop: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Read the vectors in blocks, each of length 1 (or 0 where a vector has no direction).

        Args:
            rows: the most of a block.
            stop: the id to end before.

        Yields:
            The id of the first row, and float32 ``[n, D]``.
        """
        start, stop = 0, len(self) if stop is None else stop
        for table in self._tables(['vector'], rows):
            if start >= stop:
                return
            vectors = self._unit(table['vector'])[:stop - start]
            yield start, vectors
            start += len(vectors)

    def places(self, rows: int) -> Iterator[tuple[int, Any, Tensor]]:
        """Read as :meth:`blocks`, with the polygons in the middle, WKB."""
        start = 0
        for table in self._tables(['geometry', 'vector'], rows):
            yield start, table['geometry'].to_numpy(), self._unit(table['vector'])
            start += len(table)

    def _tables(self, columns: list[str], rows: int) -> Iterator[Any]:
        """Read tables of exactly ``rows``, but the last; Arrow's own batches take twice as long."""
        pa = geo_package('pyarrow')
        waiting: list[Any] = []
        for group in range(len(self.ends)):
            waiting.append(self.file.read_row_group(group, columns))
            while sum(map(len, waiting)) >= rows:
                whole = pa.concat_tables(waiting)
                yield whole.slice(0, rows)
                waiting = [whole.slice(rows)]
        if sum(map(len, waiting)):
            yield pa.concat_tables(waiting)

    def _unit(self, column: Any) -> Tensor:
        values = column.combine_chunks().flatten().to_numpy().copy()  # Arrow's is read-only
        vectors = torch.from_numpy(values).view(-1, self.width).float()
        return vectors.div_(vectors.norm(dim=1, keepdim=True).clamp_min(TINY))

    def vectors_of(self, ids: Ids) -> Tensor:
        """Read some vectors as :meth:`blocks` gives them: float32 ``[len(ids), D]``."""
        return self._unit(self._take(ids, ['vector'])['vector'])

    def rows(self, ids: Ids) -> list[dict[str, Any]]:
        """Read some rows without their vectors, each with its ``id``."""
        columns = [name for name in self.file.schema_arrow.names if name != 'vector']
        found = self._take(ids, columns).to_pylist()
        return [dict(id=int(number), **row) for number, row in zip(ids, found)]

    def _take(self, ids: Ids, columns: list[str]) -> Any:
        """Read rows in the order of ``ids``; only their row groups are read, one at a time."""
        pa = geo_package('pyarrow')
        numbers = np.asarray(ids, np.int64)
        groups = np.searchsorted(self.ends, numbers, side='right')
        tables, places = [], []
        for group in np.unique(groups):
            here = np.flatnonzero(groups == group)
            table = self.file.read_row_group(int(group), columns=columns)
            tables.append(table.take(numbers[here] - (self.ends[group] - len(table))))
            places.append(here)
        if not tables:
            return self.file.schema_arrow.empty_table().select(columns)
        return pa.concat_tables(tables).take(np.argsort(np.concatenate(places)))
