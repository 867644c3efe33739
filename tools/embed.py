r"""Embed images, or windows of scenes: a table of vectors, or a map of patch tokens.

MODEL is any checkpoint of PerA or an exported backbone. DATA is a folder of images, a text list,
tar shards or an LMDB, whose images are resized to squares; or a scene (.tif, .vrt, .jp2, or the URL
of a COG), or with --windows a folder or list of scenes, which are cut into windows at their own
resolution.

The table is Parquet, with places GeoParquet. If the command is killed, the same command continues.

Examples (docs/embedding.md):
    python tools/embed.py work_dirs/demo data/rsscn7 -o rsscn7.parquet
    python tools/embed.py work_dirs/demo naip.tif -o naip.parquet
    python tools/embed.py work_dirs/demo naip.tif --token grid -o naip_grid.tif
"""

import argparse
from pathlib import Path
from typing import Any

import rasterio
from rich.progress import MofNCompleteColumn, Progress

import pera_mm
from pera_mm.datasets.matching import first_few
from pera_mm.datasets.scene_grids import PATIENCE, URL
from pera_mm.embedding.extract import MAP_SUFFIXES, TOKENS, Extractor, Summary
from pera_mm.embedding.pictures import Scenes, open_pictures
from pera_mm.embedding.table import DTYPES, geo_package
from pera_mm.errors import UserError, printable
from pera_mm.files import write_whole
from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import add_device, whole_number
from pera_mm.stopping import stopped_in_one_line
from pera_mm.weights.backbone import NormalizedViT, load_backbone


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', metavar='MODEL', help='a checkpoint, or a work folder with one')
    parser.add_argument('data', metavar='DATA', help='images or a scene')
    parser.add_argument('-o', '--out', required=True, type=Path, metavar='OUT',
                        help='.parquet; with --token grid and one scene also .tif')
    parser.add_argument('--token', choices=TOKENS, default='cls',
                        help='[cls], the mean patch token, or every patch token (default: cls)')
    parser.add_argument('--windows', action='store_true',
                        help='the images of DATA are scenes: cut each into windows')
    parser.add_argument('--size', type=whole_number(1), metavar='PX',
                        help="side of the images or windows (default: that of the model's crops)")
    parser.add_argument('--bands', type=int, nargs='+', metavar='BAND',
                        help='red, green and blue of rasters, from 1 (default: 1 2 3)')
    parser.add_argument('--scale', type=float, nargs=2, metavar=('LOW', 'HIGH'),
                        help='what becomes 0 and 255 of rasters that are not 8-bit (default: the '
                             '2nd and 98th percentile of each image or scene)')
    parser.add_argument('--dtype', choices=DTYPES, default=DTYPES[0],
                        help='of the vectors in a table (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=32, metavar='N')
    add_device(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_output(args)
    model = load_backbone(args.model).to(args.device)
    scale: Any = 'auto' if args.scale is None else tuple(args.scale)
    size = args.size or model.img_size
    pictures = open_pictures(args.data, size, model.patch_size, args.windows, args.bands, scale)
    facts = dict(
        model=str(Path(args.model).resolve()), model_sha256=model.fingerprint(),
        source=args.data if URL.match(args.data) else str(Path(args.data).resolve()),
        pictures=len(pictures),
        windows=isinstance(pictures, Scenes), token=args.token, size=size,
        patch_size=model.patch_size, bands=args.bands, scale=scale, dtype=args.dtype,
        pera_mm=pera_mm.__version__)
    extractor = Extractor(model, pictures, args.token, args.dtype, args.batch_size)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as bar:
        task = bar.add_task('embedding', total=len(pictures))
        summary = extractor.write(args.out, facts, lambda done: bar.advance(task, done))
    report(args.out, summary, model)


def check_output(args: argparse.Namespace) -> None:
    """Raise for an output that cannot be written, before any work."""
    suffix = args.out.suffix.lower()
    if suffix not in ('.parquet', *MAP_SUFFIXES):
        raise UserError(f'-o must end with .parquet, or .tif for a map, not {args.out}.')
    if suffix == '.parquet':
        for package in ('pyarrow', 'shapely'):
            geo_package(package)
    if args.batch_size < 1:
        raise UserError(f'--batch-size is {args.batch_size}, but must be at least 1.')
    if args.out.exists():
        raise UserError(f'{args.out} exists: delete it, or give another -o.')


def report(out: Path, summary: Summary, model: NormalizedViT) -> None:
    what = 'pixels' if out.suffix.lower() in MAP_SUFFIXES else 'vectors'
    print(f'{out}: {summary.rows:,} {what} of {model.width} numbers, from '
          f'{summary.pictures:,} pictures')
    if summary.skipped:
        lines = [f'{path}\t{reason}\n' for path, reason in summary.skipped]
        file = out.with_name(f'{out.name}.skipped.txt')
        write_whole(file, ''.join(lines).encode('utf-8', 'backslashreplace'))
        few = first_few([f'{printable(path)} ({reason})' for path, reason in summary.skipped])
        print(f'{len(summary.skipped):,} could not be read and are left out ({file}): {few}')


if __name__ == '__main__':
    with errors_in_one_sentence('embed'), stopped_in_one_line(), rasterio.Env(**PATIENCE):
        main()
