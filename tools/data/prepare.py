r"""Turn a downloaded data set into what the configs read, and verify it.

Downstream: from the archives to folders, with splits.
    python tools/data/prepare.py aid ~/Downloads/aid data/aid
    python tools/data/prepare.py potsdam ~/Downloads/potsdam data/potsdam

Pre-training: every image is read; a list of unpacked ones (SRC is DST), or tar shards.
    python tools/data/prepare.py tov-rs data/tov-rs data/tov-rs --subset 100000
    python tools/data/prepare.py million-aid ~/Downloads/million-aid data/million-aid

SRC holds the official archives or their contents, in any folders. The command never changes SRC,
and you may delete it afterwards, unless it is DST. If the command is stopped, repeat it to
continue. docs/datasets.md lists the archives, where to get them, and the checks.

Exit code 0: everything is as published. 1: a sentence names each difference.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from pera_mm.errors import needs_extra
from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import whole_number
from pera_mm.prepare.classification import aid, ucm
from pera_mm.prepare.dior import Dior
from pera_mm.prepare.levircd import LevirCD
from pera_mm.prepare.loveda import LoveDA
from pera_mm.prepare.potsdam import Potsdam
from pera_mm.prepare.pretraining import (
    SETS,
    folder_of_check,
    list_of,
    list_of_subset,
    prepare_images,
)
from pera_mm.prepare.recipe import VERDICT, Recipe, prepare
from pera_mm.prepare.verify import FEWER, OK, OPEN, WRONG, Report

RECIPES: dict[str, Recipe] = dict(
    aid=aid, ucm=ucm, potsdam=Potsdam(), loveda=LoveDA(), levircd=LevirCD(), dior=Dior())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dataset', choices=(*RECIPES, *SETS))
    parser.add_argument('source', metavar='SRC', type=Path, help='the download')
    parser.add_argument('root', metavar='DST', type=Path, help='the folder to create')
    parser.add_argument('--partial', action='store_true',
                        help='accept fewer files than published; the rest is checked as usual')
    parser.add_argument('--subset', type=whole_number(1), metavar='N',
                        help='pre-training: also list N images, drawn by --seed, e.g. in '
                             'data/tov-rs-100k.txt; those in shards are copied beside the list')
    parser.add_argument('--seed', type=int, default=0, help='of the subset (default: 0)')
    args = parser.parse_args()
    if args.subset is not None and args.dataset not in SETS:
        parser.error(f'--subset is for {", ".join(SETS)}; the splits of {args.dataset} are made '
                     'by tools/data/make_splits.py')
    if args.subset is not None and args.subset > (most := SETS[args.dataset].images):
        parser.error(f'--subset {args.subset}: {args.dataset} has {most} images')
    return args


def draw_subset(args: argparse.Namespace) -> str:
    """Write the list of a subset beside the data set; return its path."""
    with needs_extra('collect', '--subset'):
        from pera_mm.collect.pack.subset import subset
    out = list_of_subset(SETS[args.dataset], args.root, args.subset)
    index = list_of(args.root)
    return subset(str(args.root), out, args.subset, args.seed,
                  str(index) if index.exists() else None)['list']


def show(report: Report, console: Console) -> None:
    """Print the report: a table, the class shares, and a sentence for each problem."""
    colors = {OK: 'green', FEWER: 'yellow', WRONG: 'red', OPEN: 'white'}
    table = Table('what', 'published', 'found', '')
    for row in report.rows:
        table.add_row(row.what, row.expected, row.found,
                      f'[{colors[row.verdict]}]{row.verdict}[/]')
    console.print(table)
    if report.shares:
        names = list(dict.fromkeys(name for shares in report.shares.values() for name in shares))
        table = Table('class shares (not compared)', *report.shares)
        for name in names:
            table.add_row(name, *(f'{shares.get(name, 0):.2%}'
                                  for shares in report.shares.values()))
        console.print(table)
    for problem in report.problems:
        console.print(problem.sentence(), markup=False, highlight=False, soft_wrap=True)


def run(args: argparse.Namespace, console: Console) -> tuple[Report, Path]:
    """Prepare the data set, and show what was found; return that and the file it is written to."""
    if args.dataset in SETS:
        report = prepare_images(SETS[args.dataset], args.source, args.root, args.partial, track)
        verdict = folder_of_check(args.root) / VERDICT
    else:
        report = prepare(RECIPES[args.dataset], args.source, args.root, args.partial, track)
        verdict = args.root / VERDICT
    show(report, console)
    if args.subset is not None:
        print(f'{draw_subset(args)}: {args.subset:,} images, seed {args.seed}')
    return report, verdict


def main() -> None:
    args = parse_args()
    try:
        with errors_in_one_sentence('prepare'):
            report, verdict = run(args, Console())
    except KeyboardInterrupt:
        sys.exit('prepare: stopped; repeat the command to continue.')
    if not report.ok:
        sys.exit(f'prepare: {args.root} is not as published; {verdict} names every file '
                 'concerned.')
    print(f'{args.root}: all is well')


if __name__ == '__main__':
    main()
