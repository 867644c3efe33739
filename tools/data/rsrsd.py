r"""Collect a pre-training data set as RSRSD-5m was collected (paper §3.1), step by step.

    python tools/data/rsrsd.py sample configs/collect/rsrsd-5m.py   # points, balanced by land cover
    python tools/data/rsrsd.py fetch  configs/collect/rsrsd-5m.py   # an image at every point
    python tools/data/rsrsd.py filter configs/collect/rsrsd-5m.py   # drop useless images
    python tools/data/rsrsd.py pack   configs/collect/rsrsd-5m.py   # shards, LMDB or a folder

    python tools/data/rsrsd.py stats  data/rsrsd-5m        # any data set: Table 1, mean, std
    python tools/data/rsrsd.py verify data/rsrsd-5m        # check every image by its hash
    python tools/data/rsrsd.py subset data/tov-rs data/tov-rs-100k.txt --count 100000

CONFIG has all settings. A step reads the tables that the previous step wrote into the work folder.
It writes its own tables, a log (logs/STEP.log) and a summary (STEP.json) there. To continue a step
that was stopped, run the same command again. docs/rsrsd.md has an example that needs no network.
"""

import argparse
import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Column, Table

from pera_mm.errors import UserError
from pera_mm.files import WORK_FOLDER_MARKER, Claim, write_whole
from pera_mm.launch import errors_in_one_sentence, merge_options, read_config
from pera_mm.options import add_cfg_options
from pera_mm.stopping import sigterm_as_interrupt

try:
    import pandas as pd

    from pera_mm.collect.common.tables import log, write_table
    from pera_mm.collect.fetch.step import fetch
    from pera_mm.collect.filter.step import filter_tiles
    from pera_mm.collect.pack.step import MANIFEST, pack
    from pera_mm.collect.pack.subset import subset
    from pera_mm.collect.pack.verify import verify
    from pera_mm.collect.sample.step import sample
    from pera_mm.collect.stats import describe
except ModuleNotFoundError as missing:
    sys.exit(f'rsrsd: the package {missing.name} is not installed: pip install -e .[collect]')

MAX_PRINTED = 20  # problems
MAX_WIDTH = 10_000  # characters of a line that does not go to a terminal

STEPS: dict[str, Callable[..., dict[str, Any]]] = dict(
    sample=sample, fetch=fetch, filter=filter_tiles, pack=pack)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, step in STEPS.items():
        command = commands.add_parser(name, help=summary_line(step), description=step.__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_argument('config', metavar='CONFIG', type=Path)
        command.add_argument('--work-dir', metavar='DIR', type=Path,
                             help='default: work_dirs/collect/<name of the config>')
        add_cfg_options(command)
        if name == 'fetch':
            command.add_argument('--accept-terms', metavar='SOURCE', default='',
                                 help='the name of the source whose terms you have read and accept')
    command = commands.add_parser('stats', help='describe any data set: Table 1, mean and std')
    command.add_argument('data', metavar='DATA', help='a folder, list, shards or LMDB')
    command.add_argument('--out', metavar='DIR', type=Path,
                         help='for the contact sheet and stats.json')
    command.add_argument('--count', type=int, help='read only COUNT images, drawn by --seed')
    command.add_argument('--seed', type=int, default=0)
    command.add_argument('--bands', type=int, nargs='+', metavar='BAND',
                         help='one or three bands of a raster, 1-based (default: the first three)')
    command.add_argument('--scale', type=float, nargs=2, metavar=('LOW', 'HIGH'),
                         help='the values that become 0 and 255 if pixels are not 8-bit '
                              '(default: percentiles of each image)')
    command.add_argument('--data-root', metavar='DIR',
                         help="the folder that a list's paths are relative to (default: its own)")
    command.add_argument('--index-file', metavar='FILE',
                         help="where to keep the list of a folder's images, or the index of shards")
    command = commands.add_parser('verify', help='check all images of a packed data set by hash')
    command.add_argument('data', metavar='DATA', type=Path, help='the folder with manifest.csv')
    command.add_argument('--out', metavar='FILE.csv', type=Path,
                         help=f'a table of all problems; {MAX_PRINTED} are printed')
    command = commands.add_parser('subset', help='write a list of images drawn at random')
    command.add_argument('data', metavar='DATA', help='a folder, list, shards or LMDB')
    command.add_argument('out', metavar='LIST', type=Path)
    command.add_argument('--count', type=int, required=True)
    command.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def summary_line(step: Callable) -> str:
    return (inspect.getdoc(step) or '').partition('\n')[0].rstrip('.')


# The steps ---------------------------------------------------------------------------------------


def run_step(args: argparse.Namespace) -> None:
    """Run one step with its settings from the config; print and keep its summary."""
    cfg = read_config(str(args.config))
    merge_options(cfg, args.cfg_options)
    folder = args.work_dir or Path('work_dirs/collect') / args.config.stem
    settings = settings_of(cfg, args.command, args.config)
    if args.command == 'fetch':
        settings['accept_terms'] = args.accept_terms
    with Claim(folder), logging_to(folder / 'logs' / f'{args.command}.log'):
        (folder / WORK_FOLDER_MARKER).touch()
        summary = STEPS[args.command](folder, **settings)
        write_whole(folder / f'{args.command}.json', json.dumps(summary, indent=1).encode())
        log.info('%s: done', args.command)
    show(summary)


def settings_of(cfg: Config, command: str, path: Path) -> dict[str, Any]:
    """Return the config's dict for a step, whose keys are the step's arguments."""
    if command not in cfg:
        raise UserError(f'{path} has no dict {command} = dict(...) for this step.')
    if not isinstance(cfg[command], dict):
        raise UserError(f'{path}: {command} is {cfg[command]!r}, but must be the dict of the '
                        f"step's settings: {command} = dict(...).")
    settings = cfg[command].to_dict()
    known = inspect.signature(STEPS[command]).parameters
    names = [name for name in known if name not in ('folder', 'accept_terms')]
    unknown = [name for name in settings if name not in names]
    missing = [name for name in names
               if known[name].default is inspect.Parameter.empty and name not in settings]
    if unknown:
        raise UserError(f'{path}: {command} has no setting {unknown[0]!r}; it has '
                        f'{", ".join(names)}.')
    if missing:
        raise UserError(f'{path}: {command} needs the setting {missing[0]!r}.')
    return settings


class LogFile(logging.FileHandler):
    """A log file that ignores a full disk, because the step stops with a better message."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Print nothing; the default prints a traceback for every line."""

    def close(self) -> None:
        """Close the file; lines that are not yet written may be lost."""
        with suppress(OSError):
            super().close()


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """Send the log of the step to the terminal and append it to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    to_file = LogFile(file, encoding='utf-8')
    to_file.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
    to_terminal = RichHandler(show_time=False, show_path=False, markup=False)
    log.setLevel(logging.INFO)
    for handler in (to_file, to_terminal):
        log.addHandler(handler)
    try:
        yield
    except BaseException as error:
        log.removeHandler(to_terminal)  # main() prints the error there
        log.info('stopped by %s: %s', type(error).__name__, error)
        raise
    finally:
        for handler in (to_file, to_terminal):
            log.removeHandler(handler)
        to_file.close()


def show(summary: dict[str, Any]) -> None:
    """Print each name and value on a line; a list of dicts becomes a table."""
    # In a file or pipe each row is one line; a terminal folds long cells.
    console = Console(width=None if sys.stdout.isatty() else MAX_WIDTH)
    for name, value in summary.items():
        if not isinstance(value, list):
            console.print(f'{name}: {as_text(value)}', soft_wrap=True, markup=False,
                          highlight=False)
        elif value:
            table = Table(*(Column(str(key), overflow='fold') for key in value[0]), title=name,
                          title_justify='left')
            for row in value:
                table.add_row(*(as_text(cell) for cell in row.values()))
            console.print(table)


def as_text(value: Any) -> str:
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return f'{value:,}' if isinstance(value, int) else \
        f'{value:,.4g}' if isinstance(value, float) else str(value)


# Data sets ----------------------------------------------------------------------------


def run_data_command(args: argparse.Namespace) -> None:
    if args.command == 'stats':
        show(describe(args.data, folder=args.out, count=args.count, seed=args.seed,
                      data_root=args.data_root, index_file=args.index_file, bands=args.bands,
                      scale='auto' if args.scale is None else tuple(args.scale)))
    elif args.command == 'subset':
        show(subset(args.data, args.out, args.count, args.seed))
    else:
        if args.out is not None and args.out.resolve() == (args.data / MANIFEST).resolve():
            raise UserError(f'--out {args.out} would replace what is verified: give another name.')
        show_problems(verify(args.data), args.data, args.out)


def show_problems(found: dict[str, Any], data: Path, out: Path | None) -> None:
    """Print what ``verify`` found, with the first problems; write all problems to a file."""
    problems = found['problems']
    if out is not None:
        write_table(out, pd.DataFrame(problems, columns=['file', 'problem']))
    show(found | dict(problems=problems[:MAX_PRINTED]))
    if not found['ok']:
        rest = f' {len(problems)} problems, of which {MAX_PRINTED} are shown: --out FILE.csv has ' \
               'all.' if len(problems) > MAX_PRINTED and out is None else ''
        raise UserError(f'{data} is not as its manifest says.{rest}')


def main() -> None:
    args = parse_args()
    try:
        with sigterm_as_interrupt(), errors_in_one_sentence('rsrsd'):
            if args.command in STEPS:
                run_step(args)
            else:
                run_data_command(args)
    except KeyboardInterrupt:
        sys.exit('rsrsd: stopped; run the same command again to continue.')


if __name__ == '__main__':
    main()
