"""Predict whole scenes with a trained model: maps, boxes or classes (docs/mapping.md).

One process:        python tools/predict.py CONFIG CHECKPOINT SCENE... -o OUT
Several:            tools/dist_predict.sh CONFIG CHECKPOINT PROCESSES SCENE... -o OUT

A SCENE is a GeoTIFF or another raster that GDAL reads, a URL of one, a folder of them, or a list
(.txt). OUT is a folder, or for one scene a file that ends in .tif (boxes: .gpkg). With a
classifier and an OUT that ends in .csv, scenes are taken as images, one class each.
"""

import argparse
import sys
import warnings
from pathlib import Path

import pera_mm  # before any toolbox: it supplies the operators of mmcv.ops
from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import add_cfg_options, number_of_at_least, positive_number, whole_number
from pera_mm.stopping import is_first_rank, stopped_in_one_line


def parse_args() -> argparse.Namespace:
    """Parse the command line of prediction."""
    parser = argparse.ArgumentParser(
        description='Predict whole scenes with a trained model: maps, boxes or classes.')
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint file')
    parser.add_argument('scenes', metavar='SCENE', nargs='+',
                        help='raster, URL, folder of rasters, or list of them (.txt)')
    parser.add_argument('-o', '--output', metavar='OUT', required=True,
                        help='folder, or for one scene a file')
    parser.add_argument('--before', metavar='OLD',
                        help='the older date, for a model of change; or a folder of them, with the '
                             'names of the scenes')
    parser.add_argument('--aoi', metavar='POLYGONS', help='predict inside these polygons only')
    parser.add_argument('--gsd', type=positive_number, metavar='METERS',
                        help='resample the scenes to pixels of this size')
    parser.add_argument('--bands', type=whole_number(1), nargs='+', metavar='BAND',
                        help='bands of the scenes, from 1 on (default: those of the config, else '
                             'the first ones)')
    parser.add_argument('--scale', type=float, nargs=2, metavar=('LOW', 'HIGH'),
                        help='values that become 0 and 255, for pixels of more than 8 bits '
                             '(default: those of the config, else 2nd and 98th percentile of each '
                             'band)')
    parser.add_argument('--blend', choices=['hann', 'trim', 'none'], default='hann',
                        help='how overlapping windows are joined (default: %(default)s)')
    parser.add_argument('--overlap', type=float, default=1 / 3, metavar='SHARE',
                        help='of neighboring windows (default: 1/3)')
    parser.add_argument('--tta', choices=['none', 'flips', 'rotations'], default='none',
                        help='mean over 4 mirror images or 8 orientations (default: %(default)s)')
    parser.add_argument('--scores', action='store_true',
                        help='also write the probability of each class, OUT_scores.tif')
    parser.add_argument('--vectors', choices=['gpkg', 'parquet', 'fgb', 'geojson'],
                        help='also write the polygons of the map; boxes are written in this format')
    parser.add_argument('--min-area', type=number_of_at_least(0), default=0., metavar='M2',
                        help='smallest polygon')
    parser.add_argument('--simplify', type=number_of_at_least(0), default=0.,
                        metavar='TOLERANCE', help='of polygons, in units of the CRS')
    parser.add_argument('--memory', type=positive_number, default=1., metavar='GIB',
                        help='for the sums of windows; wider scenes are predicted in bands '
                             '(default: %(default)g)')
    parser.add_argument('--batch-size', type=whole_number(1), metavar='N',
                        help='windows at a time (default: 512 x 512 pixels of them on a CPU, 8 '
                             'times as many on a GPU)')
    parser.add_argument('--resume', action='store_true',
                        help='keep the strips and maps that an earlier run finished')
    add_cfg_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none',
                        help='how the processes were started; dist_predict.sh sets it')
    return parser.parse_args()


def main() -> None:
    """Predict, and name the scenes that failed."""
    args = vars(parse_args())
    warnings.filterwarnings('ignore')  # deprecation notes of the toolboxes
    if args['scale'] is None:
        args.pop('scale')
    output = Path(args.pop('output'))
    try:
        outcomes = pera_mm.predict(args.pop('config'), args.pop('checkpoint'), args.pop('scenes'),
                                   output, progress=True, **args)
    except SystemExit:  # by a signal
        if is_first_rank():
            print(about_stop(output), file=sys.stderr)
        raise
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if is_first_rank():
        for outcome in outcomes:
            if outcome.error is None:
                print(f'{outcome.output}{about_overlap(outcome.overlap, args["before"])}')
        for outcome in failed:
            print(f'Error: {outcome.error}', file=sys.stderr)
        if failed:
            print(f'{len(failed)} of {len(outcomes)} scenes failed: '
                  f'{", ".join(outcome.scene for outcome in failed)}.', file=sys.stderr)
    if failed:
        sys.exit(1)


def about_overlap(overlap: float, before: str | None) -> str:
    """Say which share of the scene the older date covers."""
    return '' if before is None else f': {overlap:.0%} of the scene is in the older date'


def about_stop(output: Path) -> str:
    """Say where the work of a stopped run is."""
    if output.suffix.lower() == '.csv':
        return f'Finished rows are kept in {output}.*.part.'
    return 'Finished strips are kept: the same command with --resume continues.'


if __name__ == '__main__':
    with stopped_in_one_line(), errors_in_one_sentence():
        main()
