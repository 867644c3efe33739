"""A class raster, such as a land cover, as labels of a scene."""

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window

from pera_mm.datasets.scene_grids import on_grid_of, open_raster
from pera_mm.errors import UserError
from pera_mm.prepare.dated_scene import DatedScene, Tile
from pera_mm.prepare.polygons import CHANGED_NAME

SUFFIXES = ('.tif', '.tiff', '.vrt', '.img')
BLOCK = 1024  # side in pixels of what is read at a time to find the classes


def is_raster(source: str) -> bool:
    """Tell a class raster from a layer of polygons by the suffix of its file."""
    return source.lower().endswith(SUFFIXES)


class ClassRaster:
    """A class raster on the grid of a scene, each pixel with the class at its center.

    Args:
        source: A raster with one band of whole numbers; nodata has no label.
        scene: The scene.
        is_change: Whether all values but 0 are the class 'changed'; else each value is the name
            of a class.
        stack: It closes the file.

    Attributes:
        names: Of the classes in the scene.

    Raises:
        ValueError: if the file cannot be read, has several bands, other numbers, or no place.
    """

    def __init__(self, source: str, scene: DatedScene, is_change: bool, stack: ExitStack) -> None:
        raster = stack.enter_context(open_raster(source))
        if raster.count > 1 or np.dtype(raster.dtypes[0]).kind not in 'iu':
            raise UserError(f'{source} has {raster.count} bands of {raster.dtypes[0]}: classes '
                            'need one band of whole numbers.')
        if raster.crs is None:
            raise UserError(f'{source} has no coordinate reference system: give it the one that it '
                            'was made in with "gdal_translate -a_srs EPSG:...".')
        self._grid = stack.enter_context(on_grid_of(scene.newer, raster, Resampling.nearest))
        self._is_change = is_change
        self.names = sorted({self._name(value) for value in self._values()
                             if value or not is_change})

    def draw(self, mask: NDArray[np.uint8], ids: dict[str, int], tile: Tile) -> None:
        """Write the ids of the classes into the mask of a tile, ``[side, side]``."""
        values, valid = self._read(tile.x, tile.y, *mask.shape)
        for value in np.unique(values[valid]):
            if value or not self._is_change:
                mask[valid & (values == value)] = ids[self._name(value)]

    def _values(self) -> list[int]:
        """List all values in the scene."""
        height, width = self._grid.shape
        found: set[int] = set()
        for y in range(0, height, BLOCK):
            for x in range(0, width, BLOCK):
                values, valid = self._read(x, y, min(BLOCK, height - y), min(BLOCK, width - x))
                found.update(np.unique(values[valid]).tolist())
        return sorted(found)

    def _read(self, x: int, y: int, height: int, width: int) -> tuple[NDArray, NDArray[np.bool_]]:
        window = Window(x, y, width, height)
        return self._grid.read(1, window=window), self._grid.read_masks(1, window=window) > 0

    def _name(self, value: int) -> str:
        return CHANGED_NAME if self._is_change else str(value)
