r"""Collect a pre-training data set as RSRSD-5m was collected (paper §3.1), step by step.

    python tools/data/rsrsd.py sample configs/collect/rsrsd-5m.py   # points, balanced by land cover
    python tools/data/rsrsd.py fetch  configs/collect/rsrsd-5m.py   # an image at every point
    python tools/data/rsrsd.py filter configs/collect/rsrsd-5m.py   # leave out what teaches nothing
    python tools/data/rsrsd.py pack   configs/collect/rsrsd-5m.py   # shards, LMDB or a folder

    python tools/data/rsrsd.py stats  data/rsrsd-5m        # of any data set: Table 1, mean, std
    python tools/data/rsrsd.py verify data/rsrsd-5m        # every image by its hash
    python tools/data/rsrsd.py subset data/tov-rs data/tov-rs-100k.txt --count 100000

CONFIG says everything that can be set. A step reads what the one before wrote into the work folder
and writes its own tables, a log (logs/STEP.log) and a summary (STEP.json) there. Stopped at any
time and started again, it goes on where it was. docs/rsrsd.md has an example that needs no network.
"""

import argparse
import errno
import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from pera_mm.datasets.writing import write_whole
from pera_mm.launch import merge_options, sigterm_as_interrupt

try:
    from pera_mm.collect.describing import describe
    from pera_mm.collect.fetching import fetch
    from pera_mm.collect.filtering import filter_tiles
    from pera_mm.collect.packing import pack, subset, verify
    from pera_mm.collect.sampling import sample
    from pera_mm.collect.tables import log
except ModuleNotFoundError as missing:
    sys.exit(f'rsrsd: the package {missing.name} is not installed: pip install -e .[collect]')

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
        command.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action=DictAction,
                             default={})
        if name == 'fetch':
            command.add_argument('--accept-terms', metavar='SOURCE', default='',
                                 help="the source's name: its terms were read and are kept")
    command = commands.add_parser('stats', help='describe any data set: Table 1, mean and std')
    command.add_argument('data', metavar='DATA', help='a folder, list, shards or LMDB')
    command.add_argument('--out', metavar='DIR', type=Path,
                         help='for the contact sheet and stats.json')
    command.add_argument('--count', type=int, help='look at so many images only, chosen by --seed')
    command.add_argument('--seed', type=int, default=0)
    command = commands.add_parser('verify', help='every image of a packed data set by its hash')
    command.add_argument('data', metavar='DATA', type=Path, help='the folder with manifest.csv')
    command = commands.add_parser('subset', help='write a list of images chosen at random')
    command.add_argument('data', metavar='DATA', help='a folder or list of images')
    command.add_argument('out', metavar='LIST', type=Path)
    command.add_argument('--count', type=int, required=True)
    command.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def summary_line(step: Callable) -> str:
    return (inspect.getdoc(step) or '').partition('\n')[0].rstrip('.')


# The steps ---------------------------------------------------------------------------------------


def run_step(args: argparse.Namespace) -> None:
    """Run one step with its settings of the config, logged; print and keep its summary."""
    cfg = Config.fromfile(args.config)
    merge_options(cfg, args.cfg_options)
    folder = args.work_dir or Path('work_dirs/collect') / args.config.stem
    settings = settings_of(cfg, args.command, args.config)
    if args.command == 'fetch':
        settings['accept_terms'] = args.accept_terms
    with logged(folder / 'logs' / f'{args.command}.log'):
        summary = STEPS[args.command](folder, **settings)
        log.info('%s: done', args.command)
    write_whole(folder / f'{args.command}.json', json.dumps(summary, indent=1).encode())
    show(summary)


def settings_of(cfg: Config, command: str, path: Path) -> dict[str, Any]:
    """The config's dict for a step, whose keys are the step's arguments."""
    if command not in cfg:
        raise ValueError(f'{path} has no dict {command} = dict(...) for this step.')
    settings = cfg[command].to_dict()
    known = inspect.signature(STEPS[command]).parameters
    names = [name for name in known if name not in ('folder', 'accept_terms')]
    unknown = [name for name in settings if name not in names]
    missing = [name for name in names
               if known[name].default is inspect.Parameter.empty and name not in settings]
    if unknown:
        raise ValueError(f'{path}: {command} has no setting {unknown[0]!r}; it has '
                         f'{", ".join(names)}.')
    if missing:
        raise ValueError(f'{path}: {command} needs the setting {missing[0]!r}.')
    return settings


@contextmanager
def logged(file: Path) -> Iterator[None]:
    """What the step logs goes to the terminal and, appended, to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(file, encoding='utf-8')
    to_file.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
    to_terminal = RichHandler(show_time=False, show_path=False, markup=False)
    log.setLevel(logging.INFO)
    for handler in (to_file, to_terminal):
        log.addHandler(handler)
    try:
        yield
    except BaseException as error:
        log.removeHandler(to_terminal)  # there main() says it
        log.info('stopped by %s: %s', type(error).__name__, error)
        raise
    finally:
        for handler in (to_file, to_terminal):
            log.removeHandler(handler)
        to_file.close()


def show(summary: dict[str, Any]) -> None:
    """Print names and values, a line each; a list of dicts is a table."""
    console = Console()
    for name, value in summary.items():
        if not isinstance(value, list):
            console.print(f'{name}: {text(value)}', soft_wrap=True, markup=False, highlight=False)
        elif value:
            table = Table(*map(str, value[0]), title=name, title_justify='left')
            for row in value:
                table.add_row(*(text(cell) for cell in row.values()))
            console.print(table)


def text(value: Any) -> str:
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return f'{value:,}' if isinstance(value, int) else \
        f'{value:,.4g}' if isinstance(value, float) else str(value)


# Looking at data sets ----------------------------------------------------------------------------


def run_other(args: argparse.Namespace) -> None:
    if args.command == 'stats':
        summary = describe(args.data, folder=args.out, count=args.count, seed=args.seed)
        if args.out is not None:
            write_whole(args.out / 'stats.json', json.dumps(summary, indent=1).encode())
        show(summary)
    elif args.command == 'subset':
        show(subset(args.data, args.out, args.count, args.seed))
    else:
        found = verify(args.data)
        show(found)
        if not found['ok']:
            raise ValueError(f'{args.data} is not as its manifest says.')


def main() -> None:
    args = parse_args()
    try:
        with sigterm_as_interrupt():
            if args.command in STEPS:
                run_step(args)
            else:
                run_other(args)
    except KeyboardInterrupt:
        sys.exit('rsrsd: stopped; the same command goes on.')
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            sys.exit(f'rsrsd: {error}')
        sys.exit('rsrsd: the disk is full; nothing finished is lost: free some space, and the '
                 'same command goes on.')
    except ValueError as error:
        sys.exit(f'rsrsd: {error}')


if __name__ == '__main__':
    main()
