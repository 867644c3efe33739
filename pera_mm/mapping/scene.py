"""Scenes of any size, read in windows as a model takes them.

The rule is that of :mod:`pera_mm.datasets.reading`: 8-bit pixels stay as they are, others are
mapped linearly to 0..255; pixels without a value (nodata, masked, transparent, NaN) are 0. Only
``scale='auto'`` differs: the 2nd and 98th percentile are those of the whole scene, so that all
windows are mapped alike; they are taken from about a million pixels of it.
"""

import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points
from rasterio.windows import Window

from pera_mm.datasets.reading import PERCENTILES, SUFFIXES, Scale, reason_of, to_uint8
from pera_mm.errors import FileError, MissingFileError, UserError

URL = re.compile(r'https?://|/vsi')
SAMPLE_SIDE = 1024  # pixels; the percentiles of a scene come from so many rows and columns
METERS_PER_DEGREE = 111_320.  # of latitude, and of longitude on the equator
OVERLAP_SAMPLES = 200  # points along each side of a scene
MAX_GSD_RATIO = 2.  # between the pixels of a scene and of the training data
# GDAL's: MB of decoded blocks (two rows of tiles of 512 px in RGB, 80,000 px wide), and patience
# with servers.
SETTINGS = dict(GDAL_CACHEMAX=256, GDAL_HTTP_MAX_RETRY=3, GDAL_HTTP_RETRY_DELAY=1,
                GDAL_HTTP_CONNECTTIMEOUT=20, GDAL_HTTP_TIMEOUT=120)


class Reading(NamedTuple):
    """The pixels that a model takes from each date of a scene.

    Attributes:
        bands: 1-based; one band is repeated ``channels`` times.
        channels: of the model's input, for one date.
        scale: as in :mod:`pera_mm.datasets.reading`; None: the values stay as they are, as float32.
        is_bgr: the channels are passed in reverse order.
        gsd: meters per pixel of the training data, if the config says so.
    """

    bands: tuple[int, ...] = (1, 2, 3)
    channels: int = 3
    scale: Scale | None = 'auto'
    is_bgr: bool = False
    gsd: float | None = None


class Scene:
    """A scene of one or two dates on one grid of pixels, open for reading by one thread at a time.

    Args:
        place: path or URL of a raster that GDAL reads; of two dates the newer one, whose grid it
            is.
        reading: what the model takes.
        before: the older date; it is resampled to the grid of the newer one (bilinear), and only
            pixels that are valid in both are valid.
        gsd: meters per pixel to which the scene is resampled: averaged to larger pixels,
            bilinear to smaller ones.
        aoi: only pixels whose centers lie in polygons of this file are wanted.

    Raises:
        UserError: if a file cannot be opened, does not fit the reading, has no georeference where
            one is needed, or the dates or the polygons do not meet the scene.
    """

    def __init__(self, place: str, reading: Reading, before: str | None = None,
                 gsd: float | None = None, aoi: 'str | Path | None' = None) -> None:
        self.place = place
        self._files = ExitStack()
        try:
            newer = self._files.enter_context(_opened(place))
            if gsd is not None:
                newer = self._files.enter_context(_resampled(newer, gsd))
            self.height, self.width = newer.height, newer.width
            self.transform, self.crs = newer.transform, newer.crs
            _check_gsd(newer, reading.gsd, gsd)
            self.overlap = 1.
            dates = [newer]
            if before is not None:
                older = self._files.enter_context(_opened(before))
                self.overlap = _overlap(older, newer)
                dates.insert(0, self._files.enter_context(_regridded(older, newer)))
            self._dates = [_Date(file, reading, place) for file, place in
                           zip(dates, [place] if before is None else [before, place])]
            self._areas = None if aoi is None else _Areas(aoi, newer)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self) -> 'Scene':
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def pixel_area(self) -> float | None:
        """Compute the area of a pixel in the middle of the scene, in m²; None without a CRS."""
        sides = pixel_sides(self)
        return None if sides is None else sides[0] * sides[1]

    def may_have_pixels(self, top: int, left: int, height: int, width: int) -> bool:
        """Return False for a part that has no wanted pixel for sure, without reading it."""
        window = Window(left, top, width, height)
        return all(date.covers(window) for date in self._dates) and (
            self._areas is None or self._areas.touch(window))

    def read(self, top: int, left: int, size: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """Read a square window; beyond the scene's end it is filled with the mirrored scene.

        Args:
            top: its first row.
            left: its first column.
            size: its side in pixels.

        Returns:
            Pixels ``[dates * channels, size, size]``, uint8 or float32, 0 where they are not
            valid; and ``[size, size]``, which pixels are wanted: valid in every date, inside the
            polygons.

        Raises:
            FileError: if the file cannot be read there.
        """
        window = Window(left, top, min(size, self.width - left), min(size, self.height - top))
        parts = [date.read(window) for date in self._dates]
        pixels = np.concatenate([part[0] for part in parts])
        wanted = np.logical_and.reduce([part[1] for part in parts])
        if self._areas is not None and wanted.any():
            wanted &= self._areas.mask(window)
        missing = size - window.height, size - window.width
        if any(missing):
            sides = [(0, number) for number in missing]
            pixels = np.pad(pixels, [(0, 0), *sides], mode='symmetric')
            wanted = np.pad(wanted, sides)
        return pixels, wanted


def list_scenes(places: Sequence[str | Path]) -> list[str]:
    """List the rasters that places name.

    Args:
        places: files, URLs, folders (their rasters, sorted), and ``.txt`` files with one of these
            on each line.

    Raises:
        UserError: if a place does not exist or has no raster.
    """
    found: list[str] = []
    for place in map(str, places):
        path = Path(place)
        if URL.match(place):
            found.append(place)
        elif path.is_dir():
            suffixes = {*(suffix.decode() for suffix in SUFFIXES), '.vrt'}
            files = sorted(str(each) for each in path.iterdir() if each.is_file()
                           and each.suffix.lower() in suffixes and not each.name.startswith('.'))
            if not files:
                raise UserError(f'No raster in the folder {place}: it needs files that end in '
                                f'{", ".join(sorted(suffixes))}.')
            found += files
        elif path.suffix == '.txt' and path.is_file():
            lines = [line.strip() for line in path.read_text().splitlines()]
            found += list_scenes([line for line in lines if line])
        elif path.exists():
            found.append(place)
        else:
            raise MissingFileError(f'There is no scene {place}: give a raster, a folder, a list '
                                   '(.txt) or a URL.')
    return found


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


# -- dates ---------------------------------------------------------------------------------------


class _Date:
    """One date of a scene: an open raster, and how its pixels become a model's."""

    def __init__(self, file: Any, reading: Reading, place: str) -> None:
        self.file, self.reading, self.place = file, reading, place
        self.colors = _color_table(file, reading)
        self.bands = (1,) if self.colors is not None else reading.bands
        _check_bands(file, self.bands, place)
        flags = [file.mask_flag_enums[band - 1] for band in self.bands]
        takes_alpha = any(file.colorinterp[band - 1] == ColorInterp.alpha for band in self.bands)
        self.has_mask = not takes_alpha and any(
            MaskFlags.all_valid not in each for each in flags)
        self.is_float = np.dtype(file.dtypes[self.bands[0] - 1]).kind == 'f'
        self.rectangles = _source_rectangles(file, self.bands) if self.has_mask else None

    def covers(self, window: Window) -> bool:
        """Return False if a VRT has no source in the window."""
        if self.rectangles is None:
            return True
        left, top, right, bottom = self.rectangles
        return bool(np.any((left < window.col_off + window.width) & (right > window.col_off)
                           & (top < window.row_off + window.height) & (bottom > window.row_off)))

    def read(self, window: Window) -> tuple[NDArray, NDArray[np.bool_]]:
        """Read ``[channels, H, W]``, and the valid pixels ``[H, W]``."""
        try:
            values = self.file.read(self.bands, window=window)
            valid = self._valid(values, window=window)
        except RasterioError as error:
            raise FileError(
                f'{self.place} cannot be read at rows {window.row_off} to '
                f'{window.row_off + window.height}, columns {window.col_off} to '
                f'{window.col_off + window.width} ({reason_of(error.__cause__ or error)}): repair '
                'or replace the file.') from None
        return self._as_input(values, valid), valid

    def _valid(self, values: NDArray, **where: Any) -> NDArray[np.bool_]:
        valid = np.ones(values.shape[1:], bool)
        if self.has_mask:
            valid = self.file.read_masks(self.bands, **where).max(axis=0) > 0
        if self.is_float:
            valid &= np.isfinite(values).all(axis=0)
        return valid

    def _as_input(self, values: NDArray, valid: NDArray[np.bool_]) -> NDArray:
        if self.colors is not None:
            values = self.colors[values[0]].transpose(2, 0, 1)
        elif self.reading.scale is None:
            values = values.astype(np.float32)
        elif values.dtype != np.uint8:
            values = np.stack([
                to_uint8(value[None], valid, limit)[0] if limit[0] < limit[1]
                else np.zeros(value.shape, np.uint8) for value, limit in zip(values, self.limits)])
        values = np.where(valid, values, values.dtype.type(0))
        if len(values) == 1:
            values = np.repeat(values, self.reading.channels, axis=0)
        return values[::-1] if self.reading.is_bgr else values

    @cached_property
    def limits(self) -> list[tuple[float, float]]:
        """Return the values of each band that become 0 and 255; none for 8-bit pixels."""
        scale, dtypes = self.reading.scale, {self.file.dtypes[band - 1] for band in self.bands}
        if scale is None or dtypes == {'uint8'}:
            return []
        if any(dtype.startswith('complex') for dtype in dtypes):
            raise UserError(f'{self.place} has complex pixels, which no model takes: convert them '
                            'to amplitudes.')
        if scale != 'auto':
            return [scale] * len(self.bands)
        values, valid = self._sample()
        return [tuple(np.percentile(value[valid], PERCENTILES)) for value in values]

    def _sample(self) -> tuple[NDArray, NDArray[np.bool_]]:
        sides = [min(side, SAMPLE_SIDE) for side in self.file.shape]
        try:
            values = self.file.read(self.bands, out_shape=(len(self.bands), *sides))
            valid = self._valid(values, out_shape=(len(self.bands), *sides))
        except RasterioError as error:
            raise FileError(f'{self.place} cannot be read ({reason_of(error.__cause__ or error)}): '
                            'repair or replace the file.') from None
        if not valid.any():
            raise UserError(f'{self.place} has no valid pixel among {valid.size:,}, so what '
                            'becomes 0 and 255 is unknown: say so with --scale LOW HIGH.')
        return values, valid


def _check_bands(file: Any, bands: tuple[int, ...], place: str) -> None:
    """Raise a UserError if the file lacks one of the bands."""
    first = bands == tuple(range(1, len(bands) + 1))  # alpha counts only where it is named
    has = sum(not (first and color == ColorInterp.alpha) for color in file.colorinterp)
    if has < max(bands):
        numbers = ', '.join(map(str, bands))
        raise UserError(f'{place} has {has} band{"s" if has > 1 else ""}, and the model takes the '
                        f'bands {numbers}: give another scene, or name its bands with --bands.')


def _color_table(file: Any, reading: Reading) -> NDArray[np.uint8] | None:
    """Return the RGB of each value ``[256, 3]`` of a file with a palette, else None."""
    if file.colorinterp[0] != ColorInterp.palette or reading.channels != 3 or (
            file.dtypes[0] != 'uint8'):
        return None
    table = np.zeros((256, 3), np.uint8)
    for value, color in file.colormap(1).items():
        table[value] = color[:3]
    return table


def _source_rectangles(file: Any, bands: tuple[int, ...]) -> NDArray | None:
    """List where a VRT has sources; elsewhere nothing is valid.

    Returns:
        Left, top, right and bottom of each source in pixels ``[4, sources]``; None if pixels may
        be valid anywhere.
    """
    if file.driver != 'VRT' or isinstance(file, WarpedVRT):
        return None
    try:
        root = ET.fromstring(file.tags(ns='xml:VRT')['xml:VRT'])
    except (KeyError, ET.ParseError):
        return None
    if root.get('subClass') or root.find('MaskBand') is not None:
        return None
    rectangles = {(0., 0., 0., 0.)}
    for number, band in enumerate(root.findall('VRTRasterBand'), 1):
        if number not in bands:
            continue
        if band.get('subClass') or band.find('NoDataValue') is None:
            return None
        for source in band:
            if not source.tag.endswith('Source'):
                continue
            place = source.find('DstRect')
            if place is None:
                return None
            left, top, width, height = (
                float(place.get(key, 0)) for key in ('xOff', 'yOff', 'xSize', 'ySize'))
            rectangles.add((left, top, left + width, top + height))
    return np.array(sorted(rectangles)).T


# -- files and grids -----------------------------------------------------------------------------


@contextmanager
def _opened(place: str) -> Iterator[Any]:
    # A server has no list of the files beside this one.
    options = dict(GDAL_DISABLE_READDIR_ON_OPEN='EMPTY_DIR') if URL.match(place) else {}
    with warnings.catch_warnings(), rasterio.Env(**options):
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        try:
            file = rasterio.open(place)
        except RasterioError as error:
            raise FileError(f'{place} cannot be opened as a raster '
                            f'({reason_of(error.__cause__ or error)}): check the file.') from None
    with file:
        if not file.count:
            raise FileError(f'{place} has no bands of its own: name one of its subdatasets.')
        yield file


def _moved(transform: Affine, x: Any, y: Any) -> tuple[Any, Any]:
    """Return where a transform moves points."""
    a, b, c, d, e, f = transform[:6]
    return a * x + b * y + c, d * x + e * y + f


def _has_grid(file: Any) -> bool:
    return file.crs is not None and file.transform != Affine.identity()


def _resampled(file: Any, gsd: float) -> WarpedVRT:
    """View a raster in pixels of ``gsd`` meters."""
    if gsd <= 0:
        raise UserError(f'--gsd is the size of a pixel in meters, above 0, not {gsd:g}.')
    sides = pixel_sides(file) if _has_grid(file) else None
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


def _regridded(older: Any, newer: Any) -> Any:
    """View the older date on the grid of the newer one."""
    if not _has_grid(newer):
        return _same(older)
    return _warped(older, newer.crs, newer.transform, newer.width, newer.height,
                   Resampling.bilinear)


@contextmanager
def _same(file: Any) -> Iterator[Any]:
    yield file


def _warped(file: Any, crs: Any, transform: Affine, width: int, height: int,
            resampling: Resampling) -> WarpedVRT:
    options: dict[str, Any] = {}
    if ColorInterp.alpha in file.colorinterp:
        options['src_alpha'] = file.colorinterp.index(ColorInterp.alpha) + 1
    elif file.nodata is None:
        options['add_alpha'] = True  # outside of the file nothing is valid
    return WarpedVRT(file, src_crs=file.crs, crs=crs, transform=transform, width=width,
                     height=height, resampling=resampling, **options)


def _overlap(older: Any, newer: Any) -> float:
    """Compute the share of the newer scene's grid that the older one covers.

    Raises:
        UserError: if it covers nothing, or only one has a georeference.
    """
    if _has_grid(older) != _has_grid(newer):
        bare = older if _has_grid(newer) else newer
        raise UserError(f'{bare.name} has no georeference, and the other date has one: both dates '
                        'need one, or neither.')
    if not _has_grid(newer):
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


def _check_gsd(file: Any, wanted: float | None, resampled: float | None) -> None:
    """Raise a UserError if a scene's pixels are far from those that the config names."""
    sides = pixel_sides(file) if wanted and resampled is None and _has_grid(file) else None
    if not sides or not wanted:
        return
    found = math.sqrt(sides[0] * sides[1])
    if not 1 / MAX_GSD_RATIO <= found / wanted <= MAX_GSD_RATIO:
        raise UserError(f'{file.name} has pixels of {found:.3g} m, and the config says that the '
                        f'model learned from {wanted:.3g} m: resample with --gsd {wanted:g}, or '
                        f'say --gsd {found:.3g} to take the scene as it is.')


# -- polygons ------------------------------------------------------------------------------------


class _Areas:
    """The polygons of a file on the grid of a raster.

    Args:
        path: any vector file that GDAL reads.
        file: the raster.

    Raises:
        UserError: if the file cannot be read, has no polygon or no CRS, or misses the raster.
    """

    def __init__(self, path: str | Path, file: Any) -> None:
        from pera_mm.mapping.vector_files import require_geo

        require_geo('polygons (--aoi)')
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
