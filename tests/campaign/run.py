r"""Run the robustness campaign, or parts of it, and print one table of counts in Markdown.

    python tests/campaign/run.py                       # all parts
    python tests/campaign/run.py checkpoints images --seed 1 --minutes 5

The exit code is 1 if any outcome is wrong; the table is followed by what went wrong.
"""

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from report import RIGHT, Result, table

# Modules beside this file; the last three start programs and have a short form.
PARTS = ('checkpoints', 'archives', 'images', 'kills', 'tile_server', 'mistakes')
LONG = PARTS[3:]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'parts',
        nargs='*',
        metavar='PART',
        default=PARTS,
        help=f'of {", ".join(PARTS)} (default: all)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of all random numbers (default: 0)')
    parser.add_argument(
        '--minutes',
        type=float,
        default=10,
        metavar='M',
        help='a part is stopped after M minutes (default: 10)',
    )
    parser.add_argument(
        '--quick', action='store_true', help=f'a tenth of the cases of {", ".join(LONG)}'
    )
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f'no such part: {", ".join(sorted(unknown))}; there are {", ".join(PARTS)}')
    return args


def run(part: str, seed: int, minutes: float, quick: bool) -> list[Result]:
    """Collect the results of a part, or those it has when its time is up."""
    results: list[Result] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f'campaign-{part}-') as folder:
        options = dict(quick=True) if quick and part in LONG else {}
        for result in importlib.import_module(part).cases(Path(folder), seed, **options):
            results.append(result)
            if time.monotonic() - start > 60 * minutes:
                print(f'{part}: stopped after {minutes:g} minutes', file=sys.stderr)
                break
    seconds = time.monotonic() - start
    print(f'{part}: {len(results):,} cases in {seconds:.0f} s', file=sys.stderr)
    return results


def main() -> None:
    args = parse_args()
    results = {part: run(part, args.seed, args.minutes, args.quick) for part in args.parts}
    print(table(results))
    wrong = [
        (part, result)
        for part, found in results.items()
        for result in found
        if result.outcome not in RIGHT
    ]
    for part, result in wrong:
        print(f'- {part}, {result.kind}, {result.name}: {result.outcome}: {result.detail}')
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    main()
