"""Draw a map beside its scene, with a legend and the outlines of its polygons, as one picture.

    python tools/analysis/map_picture.py scene.tif maps/scene.tif -o picture.png
    python tools/analysis/map_picture.py new.tif maps/new.tif --before old.tif \
        --vectors maps/new.gpkg -o picture.png

The map is one of tools/predict.py: it names its classes and has their colors. Of large scenes the
overviews are drawn.
"""

import argparse
import json
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

from pera_mm.datasets.reading import PERCENTILES, to_uint8
from pera_mm.datasets.scene_grids import on_grid_of, open_raster, overlap
from pera_mm.errors import UserError
from pera_mm.launch import errors_in_one_sentence
from pera_mm.mapping.rasters import NODATA
from pera_mm.mapping.vector_files import require_geo
from pera_mm.options import whole_number

LONGEST = 800  # pixels of a panel's longer side
PANEL = 3.2  # inches


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('scene', metavar='SCENE', help='the raster that was predicted')
    parser.add_argument('map', metavar='MAP', help='its map')
    parser.add_argument('--before', metavar='OLD', help='the older date of a change map')
    parser.add_argument('--truth', metavar='RASTER',
                        help='a raster of the true classes, numbered as in the map')
    parser.add_argument('--vectors', metavar='POLYGONS', help='outlines to draw over the scene')
    parser.add_argument('--bands', type=whole_number(1), nargs=3, default=[1, 2, 3], metavar='BAND',
                        help='of the scene for red, green and blue (default: 1 2 3)')
    parser.add_argument('--out', '-o', type=Path, required=True, metavar='PNG')
    return parser.parse_args()


def small_shape(file: Any) -> tuple[int, int]:
    factor = max(1, max(file.shape) / LONGEST)
    return round(file.height / factor), round(file.width / factor)


def read_scene(path: str, bands: list[int], newer: str | None = None) -> NDArray[np.uint8]:
    """Read a small scene, ``[H, W, 3]``, on the grid of the newer one if there is one.

    Pixels without a value are white.
    """
    with ExitStack() as files:
        file = files.enter_context(open_raster(path))
        if max(bands) > file.count:
            raise UserError(f'{path} has {file.count} bands: choose others with --bands.')
        if newer is not None:
            grid = files.enter_context(open_raster(newer))
            overlap(file, grid)  # checks that both dates are of one place
            file = files.enter_context(on_grid_of(grid, file))
        shape = small_shape(file)
        values = file.read(bands, out_shape=(3, *shape))
        valid = file.read_masks(bands, out_shape=(3, *shape)).min(axis=0) > 0
    if not valid.any():
        raise UserError(f'{path} has no pixel with a value in the bands '
                        f'{" ".join(map(str, bands))}: choose others with --bands.')
    if values.dtype != np.uint8:
        values = np.concatenate([
            to_uint8(band[None], valid, tuple(np.percentile(band[valid], PERCENTILES)))
            for band in values])
    return np.where(valid, values, 255).astype(np.uint8).transpose(1, 2, 0)


def read_map(path: str) -> tuple[NDArray[np.uint8], dict[int, tuple[str, tuple[float, ...]]]]:
    """Read a small map ``[H, W]``, and name and color of each class."""
    with open_raster(path) as file:
        names = json.loads(file.tags().get('CLASS_NAMES', '[]'))
        if not names:
            raise UserError(f'{path} is not a map of tools/predict.py: it names no classes.')
        colors = file.colormap(1)
        classes = file.read(1, out_shape=small_shape(file))
    return classes, {number: (name, tuple(part / 255 for part in colors[number][:3]))
                     for number, name in enumerate(names)}


def colored(classes: NDArray[np.uint8], legend: dict[int, tuple[str, tuple[float, ...]]],
            ) -> NDArray[np.float64]:
    """Return the RGB of each pixel, ``[H, W, 3]`` in [0, 1]; nodata is white."""
    table = np.ones((NODATA + 1, 3))
    for number, (_, color) in legend.items():
        table[number] = color
    return table[classes]


def draw_outlines(axis: Any, path: str, scene: str) -> None:
    """Draw the outlines of polygons over a panel of the scene."""
    require_geo('drawing outlines')
    import geopandas
    import shapely

    read = geopandas.read_parquet if path.endswith('.parquet') else geopandas.read_file
    try:
        polygons = read(path).geometry
    except Exception as error:  # GDAL and Arrow raise anything
        raise UserError(f'{path} cannot be read as polygons ({str(error).splitlines()[0]}): check '
                        'the file.') from None
    with open_raster(scene) as file:
        if file.crs is not None and polygons.crs is not None:
            polygons = polygons.to_crs(file.crs.to_wkt())
        to_pixels = ~file.transform
        factor = small_shape(file)[1] / file.width
    axis.autoscale(False)  # the panel stays that of the scene
    for ring in shapely.get_rings(shapely.get_parts(polygons.to_numpy())):
        x, y = to_pixels * shapely.get_coordinates(ring).T
        axis.plot(x * factor - .5, y * factor - .5, color='yellow', linewidth=.5)  # pixel centers


def check_suffix(out: Path) -> None:
    """Check that Matplotlib draws such files.

    Raises:
        UserError: if it does not.
    """
    kinds = sorted(f'.{kind}' for kind in Figure().canvas.get_supported_filetypes())
    if out.suffix.lower() not in kinds:
        raise UserError(f'{out} is not a picture: give a file that ends in {", ".join(kinds)}.')


def draw(args: argparse.Namespace) -> None:
    check_suffix(args.out)
    classes, legend = read_map(args.map)
    panels: dict[str, NDArray] = {'scene': read_scene(args.scene, args.bands)}
    if args.before:
        panels = {'before': read_scene(args.before, args.bands, args.scene),
                  'after': panels['scene']}
    drawn = [classes]
    if args.truth:
        with open_raster(args.truth) as file:
            drawn.append(file.read(1, out_shape=classes.shape))
        panels['labels'] = colored(drawn[-1], legend)
    panels['map'] = colored(classes, legend)
    aspect = classes.shape[0] / classes.shape[1]
    figure = Figure(figsize=(PANEL * len(panels), PANEL * aspect + .7), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, pixels) in zip(axes, panels.items()):
        axis.imshow(pixels, interpolation='nearest')
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    if args.vectors:
        draw_outlines(axes[1 if args.before else 0], args.vectors, args.scene)
    shown = [legend[number] for number in np.unique(drawn) if number in legend]
    figure.legend(handles=[Patch(color=color, label=name) for name, color in shown],
                  loc='outside lower center', ncols=min(len(shown), 5), fontsize=8, frameon=False)
    figure.savefig(args.out, dpi=110)
    print(args.out)


if __name__ == '__main__':
    warnings.simplefilter('ignore', NotGeoreferencedWarning)
    with errors_in_one_sentence():
        draw(parse_args())
