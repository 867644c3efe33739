"""Maps written in strips, and joined to one cloud-optimized GeoTIFF (COG) at the end.

A strip is a small GeoTIFF of its own, whole or not there, so that a killed run can continue and
several processes can work on one map.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from pera_mm.datasets.reading import reason_of
from pera_mm.errors import FileError
from pera_mm.files import write_whole

NODATA = 255
MAX_CLASSES = 255
BLOCK = 512  # pixels, the side of a tile
COG = dict(driver='COG', COMPRESS='DEFLATE', BLOCKSIZE=BLOCK, OVERVIEW_RESAMPLING='NEAREST',
           BIGTIFF='IF_SAFER', SPARSE_OK='YES')


class Part(NamedTuple):
    """A strip of a map: its file, and its upper left corner and size in the map, in pixels."""

    path: Path
    top: int
    left: int
    height: int
    width: int

    @property
    def is_empty(self) -> bool:
        """Whether all of its pixels are nodata."""
        return self.path.stat().st_size == 0


def write_part(path: Path, classes: NDArray[np.uint8],
               scores: NDArray[np.uint8] | None = None) -> None:
    """Write a strip.

    Args:
        path: of its file, written whole or not at all.
        classes: ``[H, W]``, 255 where there is nothing.
        scores: ``[C, H, W]``, 0 to 255 for 0 to 1, or ``[1, H, W]``: of the pixel's class.
    """
    if (classes == NODATA).all():
        write_whole(path, b'')
        return
    bands = classes[None] if scores is None else np.concatenate([classes[None], scores])
    with MemoryFile() as memory:
        # Nothing is stored of tiles that are nodata; with scores these are the tiles of zeros.
        with memory.open(driver='GTiff', dtype='uint8', count=len(bands), height=classes.shape[0],
                         width=classes.shape[1], tiled=True, blockxsize=BLOCK, blockysize=BLOCK,
                         compress='deflate', interleave='band', sparse_ok=True,
                         nodata=NODATA if scores is None else None) as file:
            file.write(bands)
        write_whole(path, bytes(memory.getbuffer()))


class MapInfo(NamedTuple):
    """What a map says about itself.

    Attributes:
        height, width: in pixels.
        crs: of rasterio, or None.
        transform: from pixels to the CRS.
        classes: their names.
        palette: RGB of each class.
        tags: name → text.
    """

    height: int
    width: int
    crs: Any
    transform: Affine
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    tags: Mapping[str, str]


def join(parts: Sequence[Part], output: Path, info: MapInfo, work: Path) -> None:
    """Join strips to a class map, written beside its place and then moved there.

    Args:
        parts: They cover the map.
        output: ``.tif``.
        info: of the map.
        work: a folder on the same disk.
    """
    _join(output, info, work, [_class_band(parts, info, work)])


def join_scores(parts: Sequence[Part], output: Path, info: MapInfo, work: Path,
                names: Sequence[str]) -> None:
    """Join the scores of strips: one band for each name, 0 to 255 for 0 to 1, 0 outside."""
    bands = [_band(number, f'<Description>{escape(name)}</Description>',
                   _sources(parts, number + 1, work)) for number, name in enumerate(names, 1)]
    _join(output, info, work, bands)


def _join(output: Path, info: MapInfo, work: Path, bands: Sequence[str]) -> None:
    mosaic, whole = work / f'{output.stem}.vrt', work / output.name
    grid = ''
    if info.crs is not None:
        grid += f'<SRS>{escape(info.crs.to_wkt())}</SRS>'
    if info.transform != Affine.identity():
        grid += f'<GeoTransform>{", ".join(map(repr, info.transform.to_gdal()))}</GeoTransform>'
    tags = ''.join(f'<MDI key={quoteattr(key)}>{escape(text)}</MDI>'
                   for key, text in info.tags.items())
    mosaic.write_text(
        f'<VRTDataset rasterXSize="{info.width}" rasterYSize="{info.height}">{grid}'
        f'<Metadata>{tags}</Metadata>{"".join(bands)}</VRTDataset>', encoding='utf-8')
    try:
        rasterio.shutil.copy(mosaic, whole, **COG)
    except (RasterioError, CPLE_BaseError) as error:
        raise FileError(f'{output} could not be written ({reason_of(error.__cause__ or error)}): '
                        'free some space on its disk, and continue with --resume.') from None
    output.parent.mkdir(parents=True, exist_ok=True)
    os.replace(whole, output)


def _class_band(parts: Sequence[Part], info: MapInfo, work: Path) -> str:
    colors = {number: (*color, 255) for number, color in enumerate(info.palette)}
    entries = ''.join('<Entry c1="{}" c2="{}" c3="{}" c4="{}"/>'.format(
        *colors.get(value, (0, 0, 0, 0))) for value in range(256))
    return _band(1, f'<NoDataValue>{NODATA}</NoDataValue><ColorInterp>Palette</ColorInterp>'
                    f'<ColorTable>{entries}</ColorTable>', _sources(parts, 1, work))


def _band(number: int, head: str, sources: str) -> str:
    return f'<VRTRasterBand dataType="Byte" band="{number}">{head}{sources}</VRTRasterBand>'


def _sources(parts: Sequence[Part], band: int, work: Path) -> str:
    return ''.join(
        f'<SimpleSource><SourceFilename relativeToVRT="1">'
        f'{escape(os.path.relpath(part.path, work))}</SourceFilename>'
        f'<SourceBand>{band}</SourceBand>'
        f'<SourceProperties RasterXSize="{part.width}" RasterYSize="{part.height}" '
        f'DataType="Byte" BlockXSize="{BLOCK}" BlockYSize="{BLOCK}"/>'
        f'<SrcRect xOff="0" yOff="0" xSize="{part.width}" ySize="{part.height}"/>'
        f'<DstRect xOff="{part.left}" yOff="{part.top}" xSize="{part.width}" '
        f'ySize="{part.height}"/></SimpleSource>' for part in parts if not part.is_empty)
