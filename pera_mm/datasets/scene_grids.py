"""Rasters opened by path or URL, and what shares their grid: another date, polygons."""

import math
import re
import warnings
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points
from rasterio.windows import Window

from pera_mm.datasets.reading import reason_of
from pera_mm.errors import FileError, MissingFileError, UserError, needs_extra

URL = re.compile(r'https?://|/vsi')
METERS_PER_DEGREE = 111_320.  # of latitude, and of longitude on the equator
OVERLAP_SAMPLES = 200  # points along each side of a scene
MAX_GSD_RATIO = 2.  # between the pixels of a scene and of the training data
# GDAL's settings: patience with servers, and bytes of decoded blocks (rasterio knows no MB here):
# two rows of tiles of 512 px in RGB, 80,000 px wide.
PATIENCE = dict(GDAL_HTTP_MAX_RETRY=3, GDAL_HTTP_RETRY_DELAY=1, GDAL_HTTP_CONNECTTIMEOUT=20,
                GDAL_HTTP_TIMEOUT=120)
SETTINGS = dict(PATIENCE, GDAL_CACHEMAX=256 * 2**20)


def open_raster(place: str) -> Any:
    """Open a raster.

    Args:
        place: path or URL of a raster that GDAL reads.

    Returns:
        The dataset of rasterio, which the caller closes.

    Raises:
        FileError: if it cannot be opened, or has no bands.
        UserError: if its pixels are complex numbers.
    """
    # A server has no list of the files beside this one.
    options = dict(GDAL_DISABLE_READDIR_ON_OPEN='EMPTY_DIR') if URL.match(place) else {}
    with warnings.catch_warnings(), rasterio.Env(**options):
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        try:
            file = rasterio.open(place)
        except RasterioError as error:
            raise FileError(f'{place} cannot be opened as a raster '
                            f'({reason_of(error.__cause__ or error)}): check the file.') from None
    if not file.count:
        raise FileError(f'{place} has no bands of its own: name one of its subdatasets.')
    if any(dtype.startswith('complex') for dtype in file.dtypes):
        raise UserError(f'{place} has complex pixels, which no model takes: convert them to '
                        'amplitudes.')
    return file


def files_of(place: str) -> list[Path]:
    """List the files of a raster: itself and, of a mosaic (VRT), its sources.

    A URL has none on this machine; what cannot be opened is a single file.
    """
    if URL.match(place):
        return []
    try:
        with closing(open_raster(place)) as file:
            paths = [place, *file.files]
    except UserError:
        paths = [place]
    return [Path(path) for path in paths if not URL.match(path)]


def has_grid(file: Any) -> bool:
    """Return whether a raster has a place on the Earth."""
    return file.crs is not None and file.transform != Affine.identity()


def pixel_sides(file: Any) -> tuple[float, float] | None:
    """Compute width and height of a pixel in the middle of a raster, in m; None without a CRS."""
    if file.crs is None:
        return None
    a, b, _, d, e, _ = file.transform[:6]
    sides = math.hypot(a, d), math.hypot(b, e)
    if not file.crs.is_geographic:
        unit = file.crs.linear_units_factor[1]
        return sides[0] * unit, sides[1] * unit
    _, latitude = _moved(file.transform, file.width / 2, file.height / 2)
    return (sides[0] * METERS_PER_DEGREE * max(math.cos(math.radians(latitude)), 1e-6),
            sides[1] * METERS_PER_DEGREE)


def _moved(transform: Affine, x: Any, y: Any) -> tuple[Any, Any]:
    """Return where a transform moves points."""
    a, b, c, d, e, f = transform[:6]
    return a * x + b * y + c, d * x + e * y + f


def resampled(file: Any, gsd: float) -> WarpedVRT:
    """View a raster in pixels of ``gsd`` meters: averaged to larger ones, bilinear to smaller ones.

    Raises:
        UserError: if gsd is not above 0, or the size of the raster's pixels is unknown.
    """
    if gsd <= 0:
        raise UserError(f'--gsd is the size of a pixel in meters, above 0, not {gsd:g}.')
    sides = pixel_sides(file) if has_grid(file) else None
    if sides is None:
        raise UserError(f'{file.name} has no georeference, so the size of its pixels is unknown: '
                        'resample it yourself and leave out --gsd.')
    shape = [max(1, round(number * side / gsd)) for number, side in
             zip((file.width, file.height), sides)]
    x, y = file.width / shape[0], file.height / shape[1]
    a, b, c, d, e, f = file.transform[:6]
    transform = Affine(a * x, b * y, c, d * x, e * y, f)
    shrinks = gsd > math.sqrt(sides[0] * sides[1])
    return _warped(file, file.crs, transform, shape[0], shape[1],
                   Resampling.average if shrinks else Resampling.bilinear)


def on_grid_of(newer: Any, older: Any,
               resampling: Resampling = Resampling.bilinear) -> AbstractContextManager[Any]:
    """View a raster on the grid of a newer one, without a value where it has no pixel.

    Rasters without a georeference have one grid already. Of a palette the nearest pixel is taken.
    """
    if not has_grid(newer):
        return nullcontext(older)
    return _warped(older, newer.crs, newer.transform, newer.width, newer.height, resampling)


def _warped(file: Any, crs: Any, transform: Affine, width: int, height: int,
            resampling: Resampling) -> WarpedVRT:
    options: dict[str, Any] = {}
    if ColorInterp.alpha in file.colorinterp:
        options['src_alpha'] = file.colorinterp.index(ColorInterp.alpha) + 1
    elif file.nodata is None:
        options['add_alpha'] = True  # outside of the file nothing is valid
    if file.colorinterp[0] == ColorInterp.palette:
        resampling = Resampling.nearest  # between two numbers of colors lies another color
    return WarpedVRT(file, src_crs=file.crs, crs=crs, transform=transform, width=width,
                     height=height, resampling=resampling, **options)


def overlap(older: Any, newer: Any) -> float:
    """Compute the share of the newer scene's grid that the older one covers.

    Raises:
        UserError: if it covers nothing, or only one has a georeference.
    """
    if has_grid(older) != has_grid(newer):
        bare = older if has_grid(newer) else newer
        raise UserError(f'{bare.name} has no georeference, and the other date has one: both dates '
                        'need one, or neither.')
    if not has_grid(newer):
        if older.shape != newer.shape:
            raise UserError(
                f'{older.name} is {older.width} x {older.height} and {newer.name} is {newer.width} '
                f'x {newer.height} pixels: dates without a georeference must have one size.')
        return 1.
    middles = (np.arange(OVERLAP_SAMPLES) + 0.5) / OVERLAP_SAMPLES
    columns, rows = np.meshgrid(middles * newer.width, middles * newer.height)
    points = transform_points(newer.crs, older.crs,
                              *_moved(newer.transform, columns.ravel(), rows.ravel()))
    columns, rows = _moved(~older.transform, *map(np.array, points))
    inside = (columns >= 0) & (columns < older.width) & (rows >= 0) & (rows < older.height)
    if not inside.any():
        raise UserError(f'{older.name} and {newer.name} do not overlap: give two dates of one '
                        'place.')
    return float(inside.mean())


def check_gsd(file: Any, wanted: float | None, resampled: float | None) -> None:
    """Check that the pixels of a raster are near those of the training data.

    Args:
        file: the raster.
        wanted: meters per pixel that the config names, if it does.
        resampled: meters per pixel that the user chose.

    Raises:
        UserError: if they are more than twice or less than half as large, and the user chose
            nothing.
    """
    sides = pixel_sides(file) if wanted and resampled is None and has_grid(file) else None
    if not sides or not wanted:
        return
    found = math.sqrt(sides[0] * sides[1])
    if not 1 / MAX_GSD_RATIO <= found / wanted <= MAX_GSD_RATIO:
        raise UserError(f'{file.name} has pixels of {found:.3g} m, and the config says that the '
                        f'model learned from {wanted:.3g} m: resample with --gsd {wanted:g}, or '
                        f'say --gsd {found:.3g} to take the scene as it is.')


class Areas:
    """The polygons of a file on the grid of a raster.

    Args:
        path: any vector file that GDAL reads.
        file: the raster.

    Raises:
        UserError: if the file cannot be read, has no polygon or no CRS, or misses the raster.
    """

    def __init__(self, path: str | Path, file: Any) -> None:
        with needs_extra('geo', 'reading polygons (--aoi)'):
            import pyogrio
            import shapely
            from pyproj import Transformer

        if not Path(path).exists():
            raise MissingFileError(f'There are no polygons {path}: check the path.')
        try:
            meta, _, shapes, _ = pyogrio.raw.read(path, columns=[])
        except pyogrio.errors.DataSourceError as error:
            raise FileError(f'{path} cannot be read as polygons ({error}).') from None
        areas = shapely.from_wkb(shapes)
        areas = areas[shapely.get_dimensions(areas) == 2]
        if not len(areas):
            raise UserError(f'{path} has no polygon: --aoi needs polygons.')
        if file.crs is None:
            raise UserError(f'{file.name} has no georeference, so the polygons of {path} have no '
                            'place in it: leave out --aoi.')
        if not meta['crs']:
            raise UserError(f'{path} has no CRS: write it again with one.')
        to_scene = Transformer.from_crs(meta['crs'], file.crs.to_wkt(), always_xy=True)

        def project(points: NDArray) -> NDArray:
            xy = to_scene.transform(points[:, 0], points[:, 1])
            return np.stack(_moved(~file.transform, *xy), axis=1)

        self.areas = shapely.transform(areas, project)  # in pixels: column, row
        self.tree = shapely.STRtree(self.areas)
        self.box = shapely.box
        if not self.touch(Window(0, 0, file.width, file.height)):
            raise UserError(f'No polygon of {path} touches {file.name}.')

    def touch(self, window: Window) -> bool:
        """Return whether a polygon has a point in the window."""
        return len(self._meeting(window)) > 0

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Return the pixels of a window whose centers are in a polygon."""
        from rasterio.features import rasterize

        shape = window.height, window.width
        meeting = self._meeting(window)
        if not len(meeting):
            return np.zeros(shape, bool)
        return rasterize(self.areas[meeting], shape, dtype='uint8', transform=Affine.translation(
            window.col_off, window.row_off)).astype(bool)

    def _meeting(self, window: Window) -> NDArray[np.int64]:
        box = self.box(window.col_off, window.row_off, window.col_off + window.width,
                       window.row_off + window.height)
        return self.tree.query(box, predicate='intersects')
