r"""Cut scenes and their labels into tiles and masks: a data set to train on.

Segmentation, each polygon with its class in a field of its table:
    python tools/data/rasterize.py scene.tif labels.gpkg --field class -o data/mine

Segmentation, with a class raster (land cover), whose values become the names of the classes:
    python tools/data/rasterize.py scene.tif landcover.tif -o data/mine

Change, two dates and the polygons of what changed (with --field: how it changed):
    python tools/data/rasterize.py new.tif changes.gpkg --before old.tif -o data/mine

Change, two dates and the classes of each:
    python tools/data/rasterize.py new.tif new.gpkg --before old.tif --before-labels old.gpkg \
        --field class -o data/mine

The last argument before the options is the file of labels; all others are scenes. One layer of a
file with several is 'labels.gpkg|layername=roofs'. Labels may be in another coordinate reference
system than the scenes. What has no label there has none in the masks (255), unless --background
names a class for it. In a raster of changes 0 is unchanged and all else is changed. Whole blocks of
tiles validate, with a gap of a tile around them. For pixels that are not 8-bit it prints a scale,
with which training and maps see the same. If the command is stopped, repeat it to continue.
docs/adding_a_dataset.md has configs for the result.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import whole_number
from pera_mm.prepare.rasterize import Request, Summary, rasterize_scenes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('scenes', metavar='SCENE', type=Path, nargs='+', help='a raster of GDAL')
    parser.add_argument('labels', metavar='LABELS',
                        help='a layer of polygons that OGR reads, or a class raster (.tif, .vrt, '
                             '.img)')
    parser.add_argument('-o', '--out', metavar='DIR', type=Path, required=True,
                        help='the folder to create')
    parser.add_argument('--field', help="the field of the polygons' classes")
    parser.add_argument('--background', metavar='NAME', help='the class of all other pixels')
    parser.add_argument('--before', metavar='SCENE', type=Path, nargs='+', default=(),
                        help='for each scene an older one')
    parser.add_argument('--before-labels', metavar='LABELS', help='the classes of the older date')
    parser.add_argument('--tile', type=whole_number(1), default=512,
                        help='side in pixels, default: 512')
    parser.add_argument('--val', type=float, default=0.2,
                        help='share of the tiles that validate, default: 0.2')
    return parser.parse_args()


def show(summary: Summary, out: Path, console: Console) -> None:
    """Print the number of tiles, the share of each class, and what a config needs of it."""
    totals = {split: max(pixels.sum(), 1) for split, pixels in summary.pixels.items()}
    table = Table('class', *(f'{split}, % of pixels' for split in totals))
    for index, name in enumerate(summary.classes):
        table.add_row(name, *(f'{100 * summary.pixels[split][index] / total:.3g}'
                              for split, total in totals.items()))
    console.print(table)
    tiles = summary.tiles
    lines = [
        f'{out}: {tiles["train"]} tiles train, {tiles["val"]} validate, {tiles["gap"]} between '
        f'them are left out, as are {summary.unlabelled} without a label and {summary.empty} '
        'without a value.',
        'For the config (docs/adding_a_dataset.md):',
        f'classes = {summary.classes!r}']
    if summary.scale is not None:
        low, high = (f'{value:.7g}' for value in summary.scale)
        lines += [f'scale = ({low}, {high})',
                  f'tools/predict.py has it from the config, or with --scale {low} {high}.']
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    args = parse_args()
    try:
        with errors_in_one_sentence('rasterize'):
            summary = rasterize_scenes(Request(**vars(args)), track)
    except KeyboardInterrupt:
        sys.exit('rasterize: stopped; repeat the command to continue.')
    show(summary, args.out, Console())


if __name__ == '__main__':
    main()
