"""Labelled polygons of a layer, as they lie in a scene."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pera_mm.datasets.masks import UNLABELLED
from pera_mm.errors import UserError, needs_extra
from pera_mm.prepare.dated_scene import DatedScene, Tile

CHANGED_NAME = 'changed'  # the class of all polygons without a field
STEPS = 64  # a straight edge across the scene is reprojected at this many places


@dataclass
class Polygons:
    """The polygons of a layer that lie in a scene, in its CRS and in the order of the file."""

    scene: DatedScene
    shapes: NDArray  # of shapely geometries
    names: list[str | None]  # of their classes; None: without a class

    @cached_property
    def _tree(self) -> Any:
        from shapely import STRtree

        return STRtree(self.shapes)

    def draw(self, mask: NDArray[np.uint8], ids: dict[str, int], tile: Tile) -> None:
        """Draw the ids of the classes into the mask of a tile, ``[side, side]``; 255: no class."""
        from rasterio.features import rasterize
        from shapely import box

        side = len(mask)
        area = box(*self.scene.tile_bounds(tile, side, self.scene.crs))
        here = np.sort(self._tree.query(area))  # in the order of the file
        if len(here):
            rasterize([(self.shapes[i], ids.get(self.names[i] or '', UNLABELLED)) for i in here],
                      out=mask, transform=self.scene.tile_transform(tile, side))


def read_polygons(source: str, field: str | None, scene: DatedScene) -> Polygons:
    """Read the polygons of a layer that lie in a scene, into the scene's CRS.

    Args:
        source: A file that OGR reads, or ``file|layername=x``.
        field: The field of the classes; None: all polygons are of the class 'changed'.
        scene: The scene.

    Raises:
        ValueError: if the file cannot be read, has several layers of which none is named, no such
            field, no CRS, or other shapes than polygons.
    """
    with needs_extra('geo', 'reading polygons'):
        import geopandas  # noqa: F401  pyogrio's frames are its
        import pyogrio
        from pyogrio.errors import DataLayerError, DataSourceError
    from rasterio.crs import CRS

    path, _, layer = source.partition('|layername=')
    try:
        layers = pyogrio.list_layers(path)[:, 0].tolist()
        if not layer and len(layers) > 1:
            raise UserError(f'{path} has the layers {", ".join(layers)}: name one, such as '
                            f"'{path}|layername={layers[0]}'.")
        info = pyogrio.read_info(path, layer=layer or None)
    except (DataSourceError, DataLayerError) as error:
        raise UserError(f'{source} cannot be read as a layer of polygons: {error}.') from None
    fields = info['fields'].tolist()
    if field is not None and field not in fields:
        raise UserError(f'{source} has no field {field!r}; it has '
                        f'{", ".join(map(repr, fields)) or "none"}.')
    if not info['crs']:
        raise UserError(f'{source} has no coordinate reference system: assign the one that it was '
                        'drawn in, with "ogr2ogr -a_srs EPSG:... NEW OLD" or in QGIS.')
    crs, to = CRS.from_user_input(info['crs']), scene.crs
    left, bottom, right, top = scene.bounds(crs)
    frame = pyogrio.read_dataframe(
        path, layer=layer or None, bbox=(left, bottom, right, top), fid_as_index=True,
        columns=[] if field is None else [field]).sort_index()
    frame = frame[frame.geometry.notna()]
    others = set(frame.geometry.geom_type) - {'Polygon', 'MultiPolygon'}
    if others:
        raise UserError(f'{source} has shapes that are not polygons ({min(others)}), which have no '
                        'area to label: turn them into polygons, such as with a buffer in QGIS.')
    if crs != to:  # cut off what may have no place in the other CRS; give straight edges their bend
        step = max(right - left, top - bottom) / STEPS
        shapes = frame.geometry.clip_by_rect(
            left - step, bottom - step, right + step, top + step).segmentize(step)
        frame = frame.set_geometry(shapes)[~shapes.is_empty].to_crs(to.to_wkt())
    values = [CHANGED_NAME] * len(frame) if field is None else frame[field].tolist()
    return Polygons(scene, frame.geometry.to_numpy(), [_name_of(value) for value in values])


def _name_of(value: Any) -> str | None:
    """Name a class by its value in the table; None for an empty one."""
    if value is None or value != value or not str(value).strip():
        return None
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if is_whole else value).strip()
