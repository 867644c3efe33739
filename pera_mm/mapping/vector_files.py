"""Files of polygons with columns: GeoPackage, FlatGeobuf, GeoJSON and GeoParquet.

They are written piece by piece. The same features give the same bytes.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pera_mm.errors import FileError, UserError, needs_extra

DRIVERS = {'.gpkg': 'GPKG', '.fgb': 'FlatGeobuf', '.geojson': 'GeoJSON', '.parquet': 'Parquet'}
PROBE_BYTES = 2**20  # that must find room after the last feature
NO_DATE = '2000-01-01T00:00:00.000Z'  # of a GeoPackage's last change


def require_geo(what: str) -> None:
    """Check that the packages of the extra ``geo`` are installed.

    Raises:
        UserError: if one is missing.
    """
    with needs_extra('geo', what):
        import pyarrow.parquet  # noqa: F401
        import pyogrio  # noqa: F401
        import pyproj  # noqa: F401
        import shapely  # noqa: F401


def write_features(output: Path, columns: dict[str, str], pieces: Iterable[dict[str, Any]],
                   crs: Any) -> int:
    """Write features piece by piece, beside the file and then in its place.

    Args:
        output: ``.gpkg``, ``.fgb``, ``.parquet`` (GeoParquet), or ``.geojson``, which is always in
            EPSG:4326 (RFC 7946). An existing file is replaced.
        columns: the names of the columns and their types in Arrow.
        pieces: ``geometry`` (polygons of shapely) and the columns, each ``[n]``.
        crs: of rasterio or pyproj; None: coordinates without one.

    Returns:
        The number of features.

    Raises:
        UserError: on another suffix, or without a CRS for GeoJSON.
    """
    if output.suffix not in DRIVERS:
        raise UserError(f'{output} has the suffix {output.suffix or "of no format"}: name a file '
                        f'in {", ".join(DRIVERS)}.')
    if geod_of(crs) is None and output.suffix == '.geojson':
        raise UserError(f'{output} needs longitudes and latitudes, and the raster has no CRS: '
                        'choose .gpkg, .fgb or .parquet.')
    import pyarrow as pa

    part = output.with_name(f'.{output.name}.part')  # a folder: SQLite keeps files beside its own
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    stream = _Stream(columns, pieces)
    reader = pa.RecordBatchReader.from_batches(stream.schema, stream.batches())
    try:
        if output.suffix == '.parquet':
            _write_parquet(part / output.name, reader, crs)
        else:
            _write_gdal(part / output.name, reader, crs)
        if stream.error is not None:
            raise stream.error
        (part / 'room').write_bytes(bytes(PROBE_BYTES))  # GDAL's last buffer may fail unnoticed
        os.replace(part / output.name, output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return stream.written


class _Stream:
    """Features as batches of Arrow, for a writer in C, which would lose an exception's class."""

    def __init__(self, columns: dict[str, str], pieces: Iterable[dict[str, Any]]) -> None:
        import pyarrow as pa

        self.schema = pa.schema([('geometry', pa.binary()), *(
            (name, pa.type_for_alias(kind)) for name, kind in columns.items())])
        self.error: BaseException | None = None
        self.written = 0
        self._pieces = pieces

    def batches(self) -> Iterator[Any]:
        """Yield the pieces; an error ends them and is kept."""
        import pyarrow as pa
        import shapely

        try:
            for piece in self._pieces:
                arrays = [pa.array(shapely.to_wkb(piece['geometry']), pa.binary())]
                arrays += [pa.array(piece[field.name]).cast(field.type)
                           for field in list(self.schema)[1:]]
                self.written += len(arrays[0])
                yield pa.record_batch(arrays, schema=self.schema)
        except BaseException as error:
            self.error = error


def _write_gdal(path: Path, reader: Any, crs: Any) -> None:
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError
    from pyproj import CRS

    options = {'RFC7946': 'YES'} if path.suffix == '.geojson' else {}
    with warnings.catch_warnings(), _written_at(NO_DATE):
        warnings.filterwarnings('ignore', "'crs' was not provided")
        try:
            pyogrio.write_arrow(reader, path, layer=path.stem, driver=DRIVERS[path.suffix],
                                geometry_name='geometry', geometry_type='Polygon',
                                crs=None if crs is None else CRS.from_user_input(crs).to_wkt(),
                                layer_options=options)
        except (DataLayerError, DataSourceError, FeatureError) as error:
            raise FileError(f'{path.name} cannot be written to {path.parents[1]} ({error}): make '
                            'room on its disk.') from error


@contextmanager
def _written_at(date: str) -> Iterator[None]:
    """Let a GeoPackage have this date as that of its last change, so that its bytes repeat."""
    from pyogrio import get_gdal_config_option, set_gdal_config_options

    before = get_gdal_config_option('OGR_CURRENT_DATE')
    set_gdal_config_options({'OGR_CURRENT_DATE': date})
    try:
        yield
    finally:
        set_gdal_config_options({'OGR_CURRENT_DATE': before})


def _write_parquet(path: Path, reader: Any, crs: Any) -> None:
    """Write GeoParquet 1.1, which has the CRS as PROJJSON."""
    import pyarrow.parquet as pq
    from pyproj import CRS

    column = {'encoding': 'WKB', 'geometry_types': ['Polygon'],
              'crs': None if crs is None else CRS.from_user_input(crs).to_json_dict()}
    geo = {'version': '1.1.0', 'primary_column': 'geometry', 'columns': {'geometry': column}}
    schema = reader.schema.with_metadata({'geo': json.dumps(geo)})
    with pq.ParquetWriter(path, schema, compression='zstd') as writer:
        for batch in reader:
            writer.write_batch(batch)


def geod_of(crs: Any) -> Any:
    """Return the ellipsoid of a CRS, or None without one."""
    from pyproj import CRS

    return None if crs is None else CRS.from_user_input(crs).get_geod()
