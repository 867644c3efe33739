r"""Run the robustness campaign, or parts of it, and print one table of counts in Markdown.

    python tests/campaign/run.py                       # all parts
    python tests/campaign/run.py checkpoints images --seed 1 --minutes 5

Exit code 1 if any outcome is wrong; what went wrong is listed below the table.
"""

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from report import RIGHT, Result, table

PARTS = ('checkpoints', 'archives', 'images')  # modules beside this file


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
    parser.add_argument('--seed', type=int, default=0, help='of every random number (default: 0)')
    parser.add_argument(
        '--minutes',
        type=float,
        default=10,
        metavar='M',
        help='after which a part is stopped (default: 10)',
    )
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f'no such part: {", ".join(sorted(unknown))}; there are {", ".join(PARTS)}')
    return args


def run(part: str, seed: int, minutes: float) -> list[Result]:
    """All results of a part, or those it has when its time is up."""
    results: list[Result] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f'campaign-{part}-') as folder:
        for result in importlib.import_module(part).cases(Path(folder), seed):
            results.append(result)
            if time.monotonic() - start > 60 * minutes:
                print(f'{part}: stopped after {minutes:g} minutes', file=sys.stderr)
                break
    seconds = time.monotonic() - start
    print(f'{part}: {len(results):,} cases in {seconds:.0f} s', file=sys.stderr)
    return results


def main() -> None:
    args = parse_args()
    results = {part: run(part, args.seed, args.minutes) for part in args.parts}
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
