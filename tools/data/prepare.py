r"""Turn the archives of a downstream data set into the folders that the configs read; verify them.

    python tools/data/prepare.py aid ~/Downloads/aid data/aid
    python tools/data/prepare.py potsdam ~/Downloads/potsdam data/potsdam

SRC holds the official archives or their contents, in any folders. The command never changes SRC,
and you may delete it afterwards. If the command is stopped, repeat it to continue.
docs/datasets.md lists the archives and the checks.

Exit code 0: everything is as published. 1: a sentence names each difference.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from pera_mm.launch import errors_in_one_sentence
from pera_mm.prepare.classification import aid, ucm
from pera_mm.prepare.dior import Dior
from pera_mm.prepare.levircd import LevirCD
from pera_mm.prepare.loveda import LoveDA
from pera_mm.prepare.potsdam import Potsdam
from pera_mm.prepare.recipe import VERDICT, Recipe, prepare
from pera_mm.prepare.verify import FEWER, OK, OPEN, WRONG, Report

RECIPES: dict[str, Recipe] = dict(
    aid=aid, ucm=ucm, potsdam=Potsdam(), loveda=LoveDA(), levircd=LevirCD(), dior=Dior())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dataset', choices=RECIPES)
    parser.add_argument('source', metavar='SRC', type=Path, help='the download')
    parser.add_argument('root', metavar='DST', type=Path, help='the folder to create')
    parser.add_argument('--partial', action='store_true',
                        help='accept fewer files than published; the rest is checked as usual')
    return parser.parse_args()


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


def main() -> None:
    args = parse_args()
    try:
        with errors_in_one_sentence('prepare'):
            report = prepare(RECIPES[args.dataset], args.source, args.root, args.partial, track)
    except KeyboardInterrupt:
        sys.exit('prepare: stopped; repeat the command to continue.')
    show(report, Console())
    if not report.ok:
        sys.exit(f'prepare: {args.root} is not as published; {args.root / VERDICT} names every '
                 'file concerned.')
    print(f'{args.root}: all is well')


if __name__ == '__main__':
    main()
