"""Tiles and masks from scenes and labels, in the layout that docs/adding_a_dataset.md describes.

Three kinds of data sets, by what is given:

* one scene and its classes: ``img_dir/{train,val}`` and ``ann_dir/{train,val}``. A mask has the ids
  of the classes, and 255 where no polygon is, or the id of the background.
* two dates and a layer of changes: ``{train,val}/{A,B,label}``, as LEVIR-CD. A mask has 0 and 255,
  or with a field the ids of the kinds of change: 0 unchanged, 1, 2 ...
* two dates and their classes: as before, and the kinds of change are 'forest to field' ...; 255
  where a date has no class.

Pixels without a value in a scene have no label. A tile has the bands, the type and the place of its
scene (GeoTIFF), so that a map program shows it under its polygons; of two dates, it has both on the
newer one's grid, and a pixel that one lacks is empty in both.

Labels are polygons or a class raster. A pixel belongs to the polygon that covers its center, of
several to the last one of the file; or it has the class that the raster has at its center.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pera_mm.datasets.masks import CHANGED, UNLABELLED
from pera_mm.errors import UserError
from pera_mm.files import sign_folder, write_whole
from pera_mm.prepare.class_raster import ClassRaster, is_raster
from pera_mm.prepare.dated_scene import DatedScene, Tile, check_bands, common_scale
from pera_mm.prepare.jobs import Progress, quiet
from pera_mm.prepare.polygons import CHANGED_NAME, Polygons, read_polygons
from pera_mm.prepare.spatial_split import GAP, TRAIN, VAL, spatial_split
from pera_mm.prepare.tiles import png

UNCHANGED_NAME = 'unchanged'
BINARY = [UNCHANGED_NAME, CHANGED_NAME]
MAX_CLASSES = UNLABELLED  # ids 0 to 254
SIGNATURE = '.rasterize.json'
CLASSES = 'classes.txt'
SPLITS = {TRAIN: 'train', VAL: 'val'}


@dataclass(frozen=True)
class Request:
    """What becomes a data set.

    Attributes:
        scenes: Rasters that GDAL reads, of one number and type of bands.
        labels: A file of polygons that OGR reads; ``file|layername=x`` names one of its layers.
            Or a raster of classes. With ``before`` it has the changes, or the newer date's classes.
        out: The folder of the data set.
        field: The field of the classes; None: all polygons are changes. A raster has none.
        before: For each scene an older one.
        before_labels: The classes of the older date.
        background: The class of pixels without a polygon; None: they have no label.
        tile: The side of a tile in pixels.
        val: The share of the tiles for validation.
    """

    scenes: Sequence[Path]
    labels: str
    out: Path
    field: str | None = None
    before: Sequence[Path] = ()
    before_labels: str | None = None
    background: str | None = None
    tile: int = 512
    val: float = 0.2

    def __post_init__(self) -> None:
        if self.before and len(self.before) != len(self.scenes):
            raise UserError(f'there are {len(self.scenes)} scenes and {len(self.before)} older '
                            'ones: give an older one for each, in the same order.')
        if self.before_labels and not self.before:
            raise UserError('classes of an older date need its scenes: give them with --before.')
        if self.field is None and (self.before_labels or not self.before) and not (
                is_raster(self.labels) and is_raster(self.before_labels or self.labels)):
            raise UserError('the field with the classes is missing: name it with --field.')
        if self.background is not None and self.before and not self.before_labels:
            raise UserError('a layer of changes has no background, since all around its polygons '
                            'is unchanged: leave --background out.')
        stems = [path.stem for path in self.scenes]
        twice = {stem for stem in stems if stems.count(stem) > 1}
        if twice:
            raise UserError(f'two scenes are called {min(twice)}, and their tiles would have the '
                            'same names: rename one.')


class Summary(NamedTuple):
    """What was written.

    Attributes:
        classes: Their order gives the ids in the masks.
        tiles: Number of tiles of each split, and of those left out between them.
        pixels: Labelled pixels of each class, ``[C]`` for each split.
        empty: Number of tiles without a pixel that has a value.
        unlabelled: Number of other tiles without a label.
        scale: What becomes 0 and 255 of pixels that are not 8-bit, for the training and the map.
    """

    classes: tuple[str, ...]
    tiles: dict[str, int]
    pixels: dict[str, NDArray[np.int64]]
    empty: int
    unlabelled: int
    scale: tuple[float, float] | None


def rasterize_scenes(request: Request, progress: Progress = quiet) -> Summary:
    """Write the tiles and masks of a data set; existing files of the same request are kept.

    First all masks are made and counted, which decides the split and the ids; then the tiles are
    written, each whole or not at all. ``classes.txt`` comes last.

    Raises:
        ValueError: if the files do not fit each other, a field or a CRS is missing, the folder has
            other files, or the tiles are too few for a split.
    """
    side = request.tile
    olders: Sequence[Path | None] = request.before or [None] * len(request.scenes)
    with ExitStack() as stack:
        scenes = [DatedScene(*paths, stack) for paths in zip(request.scenes, olders)]
        check_bands(scenes)
        masks = _read_masks(request, scenes, stack)
        tiles = [tile for number, scene in enumerate(scenes) for tile in scene.tiles(number, side)]
        sign_folder(request.out, SIGNATURE, _recipe(request),
                    'remove it, or choose another folder')
        has_value = np.zeros(len(tiles), bool)
        counts = np.zeros((len(tiles), UNLABELLED + 1), np.int64)
        for index, tile in progress(list(enumerate(tiles)), 'looking at labels', len(tiles)):
            valid = scenes[tile.scene].valid(tile, side)
            if valid.any():
                has_value[index] = True
                codes = masks.codes(tile, side, valid)
                counts[index] = np.bincount(codes.reshape(-1), minlength=UNLABELLED + 1)
        masks.keep_found(counts.sum(0))
        labelled = np.flatnonzero(counts[:, :UNLABELLED].any(1))
        if not len(labelled):
            raise UserError(f'no pixel of the scenes has both a value and a label of '
                            f'{request.labels}: choose polygons of this area.')
        pixels = counts[labelled][:, masks.found]
        boxes = np.array([scenes[tiles[index].scene].tile_bounds(tiles[index], side, scenes[0].crs)
                          for index in labelled])
        part = spatial_split(boxes, pixels > 0, request.val)
        chosen = [(tiles[index], SPLITS[which]) for index, which in zip(labelled, part)
                  if which != GAP]
        scale = common_scale(scenes)
        for tile, split in progress(chosen, 'writing tiles', len(chosen)):
            _write_tile(request, scenes[tile.scene], masks, tile, split)
        write_whole(request.out / CLASSES, ''.join(f'{name}\n' for name in masks.classes).encode())
    return Summary(
        masks.classes,
        {name: int((part == which).sum()) for which, name in {**SPLITS, GAP: 'gap'}.items()},
        {name: pixels[part == which].sum(0) for which, name in SPLITS.items()},
        int((~has_value).sum()), int(has_value.sum()) - len(labelled), scale)


# -- masks ---------------------------------------------------------------------------------------


@dataclass
class Masks:
    """The masks of all tiles.

    First every pixel has a code; then ids are given to the codes that count as classes.

    Attributes:
        scenes: The scenes.
        layers: For each date, the older first, the labels of each scene.
        names: Of the classes in the layers.
        fill: The code of a pixel without a polygon.
        kind: 'classes', 'changes' (a layer of them), or 'transitions' (between two layers).
        found: The codes that are classes of the data set; their places are its ids.
    """

    scenes: list[DatedScene]
    layers: list[list[Polygons | ClassRaster]]
    names: list[str]
    fill: int
    kind: str
    found: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.found = list(range(len(self.names)))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; their order gives the ids."""
        if self.kind != 'transitions':
            return tuple(self.names)
        pairs = [divmod(code, len(self.names)) for code in self.found[1:]]
        return (UNCHANGED_NAME, *(f'{self.names[old]} to {self.names[new]}' for old, new in pairs))

    def codes(self, tile: Tile, side: int, valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Draw the mask of a tile in codes; 255 where there is no label or no value."""
        dates = [self._draw(date, tile, side) for date in range(len(self.layers))]
        codes = dates[-1]
        if self.kind == 'transitions':
            old, new = (date.astype(np.int64) for date in dates)
            codes = (old * len(self.names) + new).astype(np.uint8)
            codes[old == new] = 0  # and 0 stands for the first class that stays, too
            codes[(old == UNLABELLED) | (new == UNLABELLED)] = UNLABELLED
        codes[~valid] = UNLABELLED
        return codes

    def keep_found(self, counts: NDArray[np.int64]) -> None:
        """Of all possible transitions, make classes of those that there are."""
        if self.kind == 'transitions':
            self.found = [0, *(code for code in range(1, UNLABELLED) if counts[code])]

    def mask(self, tile: Tile, side: int, valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Draw the mask of a tile as its file has it, ``[side, side]``."""
        codes = self.codes(tile, side, valid)
        if self.kind == 'changes' and self.names == BINARY:
            return np.where(codes == 1, np.uint8(CHANGED), np.uint8(0))
        ids = np.full(UNLABELLED + 1, UNLABELLED, np.uint8)
        ids[self.found] = np.arange(len(self.found))
        return ids[codes]

    def _draw(self, date: int, tile: Tile, side: int) -> NDArray[np.uint8]:
        mask = np.full((side, side), self.fill, np.uint8)
        ids = {name: code for code, name in enumerate(self.names)}
        self.layers[date][tile.scene].draw(mask, ids, tile)
        return mask


def _read_masks(request: Request, scenes: list[DatedScene], stack: ExitStack) -> Masks:
    """Read all labels and number their classes."""
    sources = [source for source in (request.before_labels, request.labels) if source]
    is_change = bool(request.before and not request.before_labels)
    layers: list[list[Polygons | ClassRaster]] = [
        [ClassRaster(source, scene, is_change, stack) if is_raster(source)
         else read_polygons(source, request.field, scene) for scene in scenes]
        for source in sources]
    for source, layer in zip(sources, layers):
        _check_overlap(source, layer, scenes,
                       is_background=request.background is not None or is_change)
    names = _in_order({name for layer in layers for labels in layer for name in labels.names
                       if name is not None})
    if is_change:
        names = BINARY if request.field is None else _first(UNCHANGED_NAME, names)
        masks = Masks(scenes, layers, names, 0, 'changes')
    else:
        if request.background is not None:
            names = _first(request.background, names)
        masks = Masks(scenes, layers, names, UNLABELLED if request.background is None else 0,
                      'transitions' if request.before else 'classes')
    most = math.isqrt(MAX_CLASSES) if masks.kind == 'transitions' else MAX_CLASSES
    if not 2 <= len(masks.names) <= most:
        what = request.labels if request.field is None else \
            f'the field {request.field} of {request.labels}'
        if len(masks.names) > most:
            raise UserError(f'{what} has {len(masks.names)} classes, and masks here can tell '
                            f'{most} apart: group them in a field of their own.')
        raise UserError(f'{what} has fewer than two classes in the scenes '
                        f'({", ".join(masks.names) or "none"}): name the class of all other pixels '
                        'with --background.')
    return masks


def _first(name: str, names: list[str]) -> list[str]:
    """Put a name, which may be among the names, before the others."""
    return [name, *(each for each in names if each != name)]


def _in_order(names: set[str]) -> list[str]:
    """Sort the names of classes: by number if all are numbers."""
    try:
        return sorted(names, key=float)
    except ValueError:
        return sorted(names)


def _check_overlap(source: str, layer: list[Polygons | ClassRaster], scenes: list[DatedScene],
                   is_background: bool) -> None:
    """Refuse a scene without labels; with a background, only if all are."""
    without = [scene.path for scene, labels in zip(scenes, layer) if not labels.names]
    if without and (not is_background or len(without) == len(scenes)):
        what = 'label' if is_raster(source) else 'polygon'
        raise UserError(f'{source} has no {what} in {without[0]}: check that both lie in one area '
                        'and that their coordinate reference systems are right.')


# -- files ---------------------------------------------------------------------------------------


def _write_tile(request: Request, scene: DatedScene, masks: Masks, tile: Tile, split: str) -> None:
    """Write the images and the mask of a tile, unless all are there."""
    folders = [f'{split}/A', f'{split}/B', f'{split}/label'] if request.before else \
        [f'img_dir/{split}', f'ann_dir/{split}']
    *images, mask = (request.out / folder / tile.name for folder in folders)
    paths = [*(Path(f'{path}.tif') for path in images), Path(f'{mask}.png')]
    if all(path.exists() for path in paths):
        return
    valid = scene.valid(tile, request.tile)
    contents = [*scene.images(tile, valid), png(masks.mask(tile, request.tile, valid))]
    for path, content in zip(paths, contents):
        write_whole(path, content)


def _recipe(request: Request) -> dict[str, Any]:
    """Collect what the files of the data set depend on."""
    sources = [*request.scenes, *request.before]
    sources += [Path(source.partition('|')[0]) for source in
                (request.labels, request.before_labels) if source]
    return dict(
        files=[[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in sources],
        labels=request.labels, before_labels=request.before_labels, field=request.field,
        background=request.background, tile=request.tile, val=request.val)
