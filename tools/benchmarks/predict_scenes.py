"""Measure what predicting whole scenes costs: speed, parts, memory, and beside geoai.

    python tools/benchmarks/predict_scenes.py
    python tools/benchmarks/predict_scenes.py --peer PYTHON     # of an environment with geoai-py

Scenes are drawn, and models have random weights. 'demo' is the ViT of `make demo` with patches of 8
and windows of 128 px, 'vitb' is ViT-B with patches of 16 and windows of 512 px, both with
ViT-Adapter and UPerNet. 'thin' is a U-Net of two levels and four channels with windows of 512 px:
it costs little, and leaves all the rest. Every measurement has its own process, and they take
turns; of the repeats, the one of median time counts. Seconds are those of prediction, without the
imports and the loading of the model. Memory is the most that the process has held, with the
imports. Threads of OpenMP sleep while they wait, because other programs may use the cores.

Reading, predicting and the writing of strips overlap in three threads. The share of a part is the
wall time in it over that of the whole, so the shares of all threads sum to more than 1; those of
the main thread sum to 1. The last number is CPU time of that thread, for the model without torch's
other threads.

With --peer, both programs run one file of torch.export, with the same windows, overlap and batch,
and write a class map with deflate; pera_mm's is a COG with overviews. geoai holds the sums of a
whole scene as float64, so it is stopped where it takes more than --limit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rasterio
import torch
from predict_parts import PARTS, Task, measure, measure_imports, write_model, write_scene
from processes import in_new_process
from rich.progress import Progress

from pera_mm.errors import RunError
from pera_mm.files import check_writable
from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import positive_number, whole_number
from pera_mm.stopping import stopped_in_one_line

HEIGHT = 1194  # pixels; three rows of windows


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--demo-side', type=whole_number(0), default=1000,
                        help='px of its scene; 0: none')
    parser.add_argument('--vitb-side', type=whole_number(0), default=853,
                        help='px of its scene; 0: none')
    parser.add_argument('--widths', type=whole_number(1), nargs='*', default=[10_000, 40_000],
                        help=f'px of the scenes of the memory, which are {HEIGHT} px high')
    parser.add_argument('--memory', type=positive_number, default=0.25,
                        help='GiB, measured beside the default of tools/predict.py')
    parser.add_argument('--peer', type=Path, metavar='PYTHON',
                        help='with geoai-py and the same torch')
    parser.add_argument('--peer-sides', type=whole_number(1), nargs='*', default=[4000, 6000],
                        help='px of the scenes beside the peer, of the thin model')
    parser.add_argument('--limit', type=positive_number, default=10., help='GiB for the peer')
    parser.add_argument('--repeats', type=whole_number(1), default=3,
                        help='turns of every measurement')
    parser.add_argument('--threads', type=whole_number(1), default=2)
    parser.add_argument('--gsd', type=positive_number, default=0.3, help='meters, for km²/h')
    parser.add_argument('--folder', type=Path, help='for temporary files')
    parser.add_argument('--json', type=Path, help='write all figures here')
    return parser.parse_args()


def tasks_of(args: argparse.Namespace) -> list[Task]:
    """List the measurements in the order of their turns."""
    sides = dict(demo=args.demo_side, vitb=args.vitb_side)
    tasks = [Task('speed', model, side, side) for model, side in sides.items() if side]
    tasks += [Task('memory', 'thin', HEIGHT, width, memory)
              for width in args.widths for memory in (1., args.memory)]
    if args.peer is not None:
        pairs = [('demo', args.demo_side)] * (args.demo_side > 0)
        pairs += [('thin', side) for side in args.peer_sides]
        tasks += [Task('peer', model, side, side, program=program)
                  for model, side in pairs for program in ('pera_mm', 'geoai')]
    return tasks


def measure_peer(task: Task, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Predict a scene with the peer's Python; return what it says of itself."""
    order = json.loads((folder / f'{task.model}.json').read_text()) | dict(
        scene=str(task.scene(folder)), output=str(task.output(folder)), threads=args.threads,
        program=str(folder / f'{task.model}.pt2'), limit_gib=args.limit)
    done = subprocess.run(
        [args.peer, Path(__file__).with_name('predict_peer.py'), json.dumps(order)],
        capture_output=True, text=True)
    if done.returncode:
        raise RunError((done.stderr.strip() or f'exit code {done.returncode}').splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def equal_share(one: Path, other: Path) -> float:
    """Compute the share of pixels that two maps have in common."""
    with rasterio.open(one) as first, rasterio.open(other) as second:
        return float((first.read(1) == second.read(1)).mean())


def measure_all(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Draw scenes and models, and measure; the tasks take turns."""
    tasks = tasks_of(args)
    for task in tasks:
        if not task.scene(folder).exists():
            write_scene(task.scene(folder), task.height, task.width, args.gsd)
    exported = {task.model for task in tasks if task.table == 'peer'}
    for model in sorted({'thin', *(task.model for task in tasks)}):
        in_new_process(write_model, folder, model, model in exported)
    result: dict[str, Any] = dict(
        torch=torch.__version__, threads=args.threads, repeats=args.repeats, gsd=args.gsd,
        load_before=os.getloadavg()[0], imports_gib=in_new_process(measure_imports, folder, 'thin'))
    turns: dict[Task, list[dict]] = {task: [] for task in tasks}
    failures: dict[Task, str] = {}
    with Progress(transient=True) as progress:
        for task in progress.track(tasks * args.repeats):
            if task not in failures:
                try:
                    turns[task].append(measure_peer(task, folder, args) if task.program == 'geoai'
                                       else in_new_process(measure, task, folder, args.threads))
                except Exception as error:  # also BrokenProcessPool, of a killed process
                    failures[task] = str(error)
    rows = [dict(task._asdict(), mpx=task.height * task.width / 1e6, failed=failures.get(task),
                 **median_turn(turns[task])) for task in tasks]
    for task, row in zip(tasks, rows):
        ours = task._replace(program='pera_mm')
        if task.program == 'geoai' and task not in failures and ours not in failures:
            row['equal'] = equal_share(ours.output(folder), task.output(folder))
    return dict(result, load_after=os.getloadavg()[0], rows=rows)


def median_turn(turns: Sequence[dict]) -> dict[str, Any]:
    """Return the turn of median time, and the seconds of all."""
    if not turns:
        return {}
    middle = sorted(turns, key=lambda turn: turn['seconds'])[len(turns) // 2]
    return dict(middle, all_seconds=[turn['seconds'] for turn in turns])


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a table; a row may be shorter."""
    lines = ['| ' + ' | '.join([*cells, *[''] * (len(head) - len(cells))]) + ' |'
             for cells in (head, *rows)]
    return [lines[0], '|---' + '|--:' * (len(head) - 1) + '|', *lines[1:], '']


def to_markdown(result: dict[str, Any]) -> str:
    """Write the three tables, those that have rows, and what the machine did."""
    of: dict[str, list[dict]] = {}
    for row in result['rows']:
        of.setdefault(row['table'], []).append(row)
    lines = [f'Threads: {result["threads"]}; torch {result["torch"]}; load of the machine: '
             f'{result["load_before"]:.1f} before, {result["load_after"]:.1f} after. The turn of '
             f'median time of {result["repeats"]} (fastest-slowest).', '']
    for table, write in dict(speed=speed_table, memory=memory_table, peer=peer_table).items():
        if table in of:
            lines += write(of[table], result)
    return '\n'.join(lines)


def scene_of(row: dict) -> str:
    return f'{row["model"]}, {row["width"]:,} x {row["height"]:,} px'


def seconds_of(row: dict) -> str:
    spread = row['all_seconds']
    return f'{row["seconds"]:.1f} ({min(spread):.1f}-{max(spread):.1f})'


def failure_of(row: dict) -> list[str]:
    return [] if row['failed'] is None else ['failed: ' + row['failed'].replace('|', '/')]


def speed_table(rows: Sequence[dict], result: dict) -> list[str]:
    cells = [[scene_of(row), *(failure_of(row) or [
        f'{row["windows"]:,}', seconds_of(row), f'{row["mpx"] / row["seconds"]:.3f}',
        f'{row["mpx"] / row["cpu_seconds"]:.3f}',
        f'{3600 * result["gsd"]**2 * row["mpx"] / row["seconds"]:.1f}',  # 1 Mpx of 1 m is 1 km²
        f'{row["polygons"]:,}', f'{row["peak_gib"]:.2f}'])] for row in rows]
    lines = table_of(['model and scene', 'windows', 's', 'Mpx/s', 'Mpx per CPU s',
                      f'km²/h at {result["gsd"]:g} m', 'polygons', 'peak, GiB'], cells)
    done = [row for row in rows if row['failed'] is None]
    cells = [[part, thread, *(share_of(row, part) for row in done)]
             for part, (thread, *_) in PARTS.items()]
    cells.append(['rest', 'main', *(f'{rest_of(row) / row["seconds"]:.1%}' for row in done)])
    return lines + table_of(['share of the time (s; CPU s)', 'thread',
                             *(scene_of(row) for row in done)], cells)


def share_of(row: dict, part: str) -> str:
    used = row['parts'].get(part)
    return '–' if used is None else (f'{used["seconds"] / row["seconds"]:.1%} '
                                     f'({used["seconds"]:.2f}; {used["cpu_seconds"]:.2f})')


def rest_of(row: dict) -> float:
    """Return the seconds of the main thread that no part has: waiting for the writer, and other."""
    return row['seconds'] - sum(used['seconds'] for part, used in row['parts'].items()
                                if PARTS[part][0] == 'main')


def memory_table(rows: Sequence[dict], result: dict) -> list[str]:
    cells = [[scene_of(row), f'{row["memory"]:g}', *(failure_of(row) or [
        f'{row["bands"]}', f'{row["windows"]:,}', seconds_of(row), f'{row["peak_gib"]:.2f}',
        f'{row["peak_gib"] - result["imports_gib"]:.2f}'])] for row in rows]
    return [f'The imports and the model alone take {result["imports_gib"]:.2f} GiB.', '', *table_of(
        ['scene', '--memory, GiB', 'bands', 'windows computed', 's', 'peak, GiB',
         'above the imports'], cells)]


def peer_table(rows: Sequence[dict], result: dict) -> list[str]:
    cells = []
    for ours, peer in zip(rows[::2], rows[1::2]):
        for row in (ours, peer):
            name = f'geoai {row["version"]}' if 'version' in row else row['program']
            cells.append([scene_of(row), name, *(failure_of(row) or [
                seconds_of(row), ratio(row, ours, 'seconds'), f'{row["cpu_seconds"]:.1f}',
                ratio(row, ours, 'cpu_seconds'), f'{row["seconds"] - row["model_seconds"]:.1f}',
                f'{row["peak_gib"]:.2f}', ratio(row, ours, 'peak_gib'),
                f'{row["equal"]:.1%}' if 'equal' in row else ''])])
    return table_of(['model and scene', 'program', 's', 'x', 'CPU s', 'x',
                     'without the model, s', 'peak, GiB', 'x', 'equal pixels'], cells)


def ratio(row: dict, base: dict, key: str) -> str:
    return f'{row[key] / base[key]:.2f}' if key in base else ''


def main() -> None:
    args = parse_args()
    if args.json is not None:
        check_writable(args.json.parent, 'give another --json')
    os.environ |= dict(OMP_WAIT_POLICY='PASSIVE', PYTHONWARNINGS='ignore')  # of the processes
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = measure_all(args, Path(folder))
    print(to_markdown(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + '\n')
    if failed := [row for row in result['rows'] if row['failed'] is not None]:
        sys.exit(f'{len(failed)} of {len(result["rows"])} measurements failed.')


if __name__ == '__main__':
    with stopped_in_one_line(), errors_in_one_sentence():
        main()
