"""Check the data sets of a config, before anything is trained on them.

    python tools/data/check.py CONFIG [--images N] [--work-dir DIR] [--cfg-options KEY=VALUE ...]

CONFIG is that of tools/train.py, of any of the four tasks or of pre-training; no weights are needed
and no model is built. The heads of all files are read, and the pixels of up to N samples of each
split, spread evenly. (Of pre-training, which may have millions of images, only these N.)

A table shows samples, sizes, types and the shares of the classes. Then one sentence names each
thing that is wrong: files that cannot be read, are missing or have no partner, sizes that differ,
labels that are not classes, a head with another number of classes, masks of one class only, and
images with equal bytes in training and test. The exit code is 1 if there is any, else 0.
WORK_DIR/check.png shows samples of each split with their labels drawn on them: look at it.
"""

import argparse
import os
import sys
import warnings
from io import BytesIO
from pathlib import Path

from rasterio.errors import NotGeoreferencedWarning
from rich.console import Console
from rich.progress import track
from rich.table import Table

import pera_mm  # noqa: F401  before any toolbox
from pera_mm.downstream.class_shares import not_labelled, percentages
from pera_mm.downstream.contact_sheet import draw_sheet
from pera_mm.downstream.data_report import Report, Settings, SplitReport, check_data, commonest
from pera_mm.errors import UserError, printable
from pera_mm.files import check_writable, write_whole
from pera_mm.launch import errors_in_one_sentence, load_config, make_parser

IMAGES = 2000  # decoded of each split
THREADS = 8  # at most


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument('--images', metavar='N', type=int, default=IMAGES,
                        help='decode so many samples of each split, evenly spread, 0 for all; '
                             f'default: {IMAGES}')
    return parser.parse_args()


def show(report: Report, console: Console) -> None:
    """Print the tables, the notes and what is wrong."""
    table = Table('', *(split.name for split in report.splits))
    rows = {
        'samples': [f'{split.samples:,}' for split in report.splits],
        'pixels read of': [f'{split.decoded:,}' for split in report.splits],
        'cannot be read': [f'{len(split.unreadable):,}' for split in report.splits],
        'sizes': [commonest(split.sizes, lambda size: f'{size[0]} x {size[1]}')
                  for split in report.splits],
        'types': [commonest(split.kinds) for split in report.splits],
    }
    if len(report.splits) > 1:
        rows['images that train has, too'] = [
            '' if split.name.startswith('train') else f'{report.duplicates.get(split.name, 0):,}'
            for split in report.splits]
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)
    if labelled := _labelled(report):
        console.print(_classes(labelled))
    for text in report.notes:
        console.print(f'Note: {printable(text)}', markup=False, highlight=False, soft_wrap=True)
    for text in report.faults:
        console.print(f'Wrong: {printable(text)}', markup=False, highlight=False, soft_wrap=True)


def _labelled(report: Report) -> list[SplitReport]:
    return [split for split in report.splits if split.counts is not None]


def _classes(splits: list[SplitReport]) -> Table:
    """Lay out the share of each class in each split."""
    counts = [split.counts for split in splits if split.counts is not None]
    units = dict.fromkeys(found.unit for found in counts)
    table = Table(f'class, share of {" or ".join(units)}', *(split.name for split in splits))
    shares = [percentages(found) for found in counts]
    for name in dict.fromkeys(name for column in shares for name in column):
        table.add_row(printable(name), *(column.get(name, '-') for column in shares))
    rest = [not_labelled(found) or '-' for found in counts]
    if set(rest) != {'-'}:
        table.add_row('not labelled, of all', *rest)
    return table


def main() -> None:
    """Check the data of a config."""
    args = parse_args()
    if args.images < 0:
        raise UserError(f'--images is {args.images}: give a number of samples, or 0 for all.')
    cfg = load_config(args)
    check_writable(Path(cfg.work_dir))
    warnings.simplefilter('ignore', NotGeoreferencedWarning)
    console = Console()
    threads = min(THREADS, os.cpu_count() or 1)
    report = check_data(cfg, Settings(args.images or None, threads, track))
    show(report, console)
    classes = max((split.classes for split in report.splits), key=len)
    pictures = {split.name: split.pictures for split in report.splits if split.pictures}
    if pictures:
        png = BytesIO()
        draw_sheet(pictures, classes).save(png, 'png')
        sheet = Path(cfg.work_dir) / 'check.png'
        write_whole(sheet, png.getvalue())
        question = ': are the labels where they belong?' * bool(_labelled(report))
        console.print(f'{sheet}{question}', markup=False, highlight=False, soft_wrap=True)
    if report.faults:
        sys.exit(1)
    console.print('Nothing is wrong.')


if __name__ == '__main__':
    try:
        with errors_in_one_sentence('check'):
            main()
    except KeyboardInterrupt:
        sys.exit('check: stopped.')
