r"""Reproduce tables of the paper: data, pre-training, fine-tuning, test, ours beside the paper's.

    python tools/reproduce.py 9 --dry-run                   # the commands that are left of Table 9
    python tools/reproduce.py 9 --rows MAE PerA             # run those of two rows
    python tools/reproduce.py 8 9 11 12 13 --gpus 4
    python tools/reproduce.py all --small --rows PerA       # on drawn scenes: minutes on two cores

Tables 2 to 7 are of the released ViT-G, Tables 8 and 9 and 11 to 13 of a ViT-B after 200 epochs on
100,000 images, Table 10 is the cost of a step. docs/reproduce.md lists every command with the
number that it should give, and says which data it needs.

Steps run one after the other; one that several rows need runs once. A step whose file is there is
not repeated, and a training that was stopped continues from its last checkpoint: the same command
continues after Ctrl-C, SIGTERM or a kill. After every step the work folder has results.json and
results.md for all tables so far.

--small takes configs/small and configs/scenes and a few drawn scenes. It shows that a chain works,
and its scores cannot be compared with the paper's.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reproduce_tables import TABLES, Data, Row, Run, Table, Training

from pera_mm.errors import RunError, UserError
from pera_mm.files import write_whole
from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import whole_number
from pera_mm.stopping import sigterm_as_interrupt

VERIFICATION, VERIFIED = 'verification.txt', 'all is well'  # prepare.py's file, and its last line
LINE = 97  # characters of a line of a listed command, unless one word is longer


class Step(NamedTuple):
    """A command and the file that exists when it is done."""

    command: tuple[str, ...]
    done: Path
    what: str  # for the progress
    given: bool = False  # by the user
    keep: str = ''  # the newest file of this pattern beside ``done`` becomes ``done``
    marked: bool = False  # ``done`` is written here, after the command

    def text(self) -> str:
        """Write the command for a shell, in several lines if it is long."""
        words = [*(['python'] if self.command[0].endswith('.py') else []),
                 *map(shlex.quote, self.command)]
        parts: list[str] = []  # an option stands with its first value
        for word in words:
            bare = parts and parts[-1].startswith('--') and ' ' not in parts[-1]
            if bare and not word.startswith('--'):
                parts[-1] += f' {word}'
            else:
                parts.append(word)
        lines = parts[:1]
        for part in parts[1:]:
            if len(lines[-1]) + len(part) > LINE:
                lines.append('   ')
            lines[-1] += f' {part}'
        return ' \\\n'.join(lines)


class Scale(NamedTuple):
    """How large, where and on how many GPUs a table is reproduced."""

    root: Path
    small: bool = False
    gpus: int = 1

    def run_of(self, row: Row) -> Run | None:
        return row.small if self.small else row.full


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('tables', nargs='+', metavar='TABLE', type=table_numbers,
                        help='2 to 13 (or table9), or all')
    parser.add_argument('--rows', nargs='+', metavar='NAME',
                        help='those with this name, or with this name before a comma; default: all')
    parser.add_argument('--dry-run', action='store_true', help='print the commands')
    parser.add_argument('--small', action='store_true', help='on drawn scenes, in minutes')
    parser.add_argument('--gpus', type=whole_number(1), default=1,
                        help='of this machine, for every training')
    parser.add_argument('--work-dir', type=Path,
                        help='default: work_dirs/reproduce, with --small work_dirs/reproduce_small')
    return parser.parse_args()


def table_numbers(text: str) -> list[int]:
    """Read a number, ``table9`` or ``all``."""
    number = text.lower().removeprefix('table')
    if number == 'all':
        return list(TABLES)
    if not number.isdecimal() or int(number) not in TABLES:
        raise argparse.ArgumentTypeError(f'expected 2 to 13 or all, got {text!r}')
    return [int(number)]


# -- the steps of a row ------------------------------------------------------------------------


def steps_of(table: Table, row: Row, scale: Scale) -> list[Step]:
    """List what is left to do for a row, in order; nothing if there is no such row at this scale.

    Of what a later step has already used nothing is left: pre-trained weights may be deleted after
    the fine-tuning.

    Raises:
        ValueError: if the images of a step cannot be shared by the GPUs.
    """
    if table.costs is not None:
        step = costs_step(table, scale)
        return [] if is_measured(step) else [step]
    run = scale.run_of(row)
    if run is None:
        return []
    scores = scores_step(run, scale)
    start = None if run.start is None else train_step(run.start, scale)
    tuning = train_step(run.tuning, scale, *(
        () if start is None else (f'{run.vit}.init_cfg.checkpoint={start.done}', )))
    steps = left(scores)
    if steps:
        steps = [*data_steps(run.tuning, scale), *left(tuning), *steps]
        if run.start is not None and start is not None and left(tuning) and left(start):
            steps = [*data_steps(run.start, scale), start, *steps]
    if run.submission:
        command = test_command(run.submission, tuning.done,
                               scale.root / Path(run.submission).stem, scale)
        steps += left(Step(command, Path('work_dirs/loveda_submission.zip'), 'submission'))
    return steps


def left(step: Step) -> list[Step]:
    return [] if step.done.exists() else [step]


def data_steps(training: Training, scale: Scale) -> list[Step]:
    """List what makes the data of a training, as far as they are missing or not as published."""
    steps: list[Step] = []
    for data in training.data:
        chain: list[Step] = []
        part: Data | None = data
        while part is not None and not is_there(step := data_step(part, scale)):
            chain.insert(0, step)
            part = part.source
        steps += chain
    return steps


def data_step(data: Data, scale: Scale) -> Step:
    path, command = (text.format(root=scale.root) for text in (data.path, data.command))
    return Step(tuple(command.split()), Path(path), f'data: {path}', data.given,
                marked=data.marked)


def is_there(step: Step) -> bool:
    """Tell whether data are there, and as published where prepare.py has verified them."""
    if step.done.name != VERIFICATION or not step.done.exists():
        return step.done.exists()
    return step.done.read_text().splitlines()[-1:] == [VERIFIED]


def train_step(training: Training, scale: Scale, *options: str) -> Step:
    folder = scale.root / training.folder
    if scale.gpus == 1:
        command: tuple[str, ...] = ('tools/train.py', training.config)
    elif training.batch % scale.gpus:
        raise UserError(f'{training.config} takes {training.batch} images a step, which '
                        f'{scale.gpus} GPUs cannot share evenly: give another --gpus.')
    else:
        command = ('tools/dist_train.sh', training.config, str(scale.gpus))
        options = (f'train_dataloader.batch_size={training.batch // scale.gpus}', *options)
    options = tuple(text.format(root=scale.root) for text in training.options) + options
    command += ('--resume', '--work-dir', str(folder),
                *(('--cfg-options', *options) if options else ()))
    return Step(command, folder / training.last, f'training: {training.folder}')


def scores_step(run: Run, scale: Scale) -> Step:
    folder = scale.root / run.tuning.folder
    options = [text.format(root=scale.root) for text in run.tuning.options]
    command = test_command(run.tuning.config, folder / run.tuning.last, folder / 'test', scale)
    return Step((*command, *(('--cfg-options', *options) if options else ())),
                folder / 'test/scores.json', f'test: {run.tuning.folder}', keep='*/*.json')


def costs_step(table: Table, scale: Scale) -> Step:
    costs = (table.costs or {})[scale.small]
    done = scale.root / f'table{table.number}.json'
    return Step(('tools/benchmarks/resources.py', *costs.configs, *costs.options, '--json',
                 str(done)), done, 'cost of a step')


def is_measured(step: Step) -> bool:
    """Tell whether the costs are there, and none has failed; a skipped one has not."""
    return step.done.exists() and all(
        row['failed'] is None for row in json.loads(step.done.read_text())['rows'])


def test_command(config: str, checkpoint: Path, folder: Path, scale: Scale) -> tuple[str, ...]:
    program = ('tools/test.py', config, str(checkpoint)) if scale.gpus == 1 else (
        'tools/dist_test.sh', config, str(checkpoint), str(scale.gpus))
    return *program, '--work-dir', str(folder)


# -- listing and running -----------------------------------------------------------------------


def plan(tables: Sequence[Table], scale: Scale, names: Sequence[str] | None = None,
         ) -> list[tuple[Table, Row, list[Step]]]:
    """Choose the rows and list what is left of each; a step stands in the first row that needs it.

    Raises:
        ValueError: if no row has one of the names, or as :func:`steps_of`.
    """
    every = [(table, row) for table in tables for row in table.rows]
    rows = [(table, row) for table, row in every
            if names is None or {row.name, row.name.partition(',')[0]} & set(names)]
    known = {name for _, row in rows for name in (row.name, row.name.partition(',')[0])}
    if unknown := [name for name in names or () if name not in known]:
        raise UserError(f'no row is called {" or ".join(unknown)}: take one of '
                        f'{", ".join(dict.fromkeys(row.name for _, row in every))}.')
    seen: set[Path] = set()
    chosen = []
    for table, row in rows:
        steps = {step.done: step for step in steps_of(table, row, scale) if step.done not in seen}
        seen |= set(steps)
        chosen.append((table, row, list(steps.values())))
    return chosen


def listing(chosen: Iterable[tuple[Table, Row, list[Step]]], scale: Scale) -> str:
    """Write what is left as a shell script with comments."""
    lines: list[str] = []
    number = 0
    for table, row, steps in chosen:
        if table.number != number:
            lines += [''] * bool(lines) + [f'# Table {table.number}. {table.title}']
            number = table.number
        lines.append(f'# {row_comment(table, row, steps, scale)}')
        lines += [f'# needs {need(step)}' if step.given else step.text() for step in steps]
    return '\n'.join(lines)


def row_comment(table: Table, row: Row, steps: Sequence[Step], scale: Scale) -> str:
    numbers = ', '.join(f'{value:g} {name}' for name, value in zip(table.columns, row.paper))
    text = f'{row.name}: in the paper {numbers}'
    run = scale.run_of(row)
    if table.costs is None and run is None:
        return f'{text}; not at the small scale'
    if not steps:
        state = 'the commands stand above' if steps_of(table, row, scale) else 'finished'
        return f'{text}; {state}'
    if run is None or run.start is None or scale.small:
        return text
    hours = run.start.gpu_hours
    return text if hours is None else (
        f'{text}; pre-training: {hours:.0f} hours on one A100 (computed from Table 10)')


def need(step: Step) -> str:
    """Say what is missing that only the user can supply, and what makes it."""
    verified = step.done.name == VERIFICATION
    where = 'docs/datasets.md' if step.command[0].endswith('.py') else 'docs/weights.md'
    return f'{step.done.parent if verified else step.done}: {step.text()} ({where})'


def check_given(steps: Iterable[Step]) -> None:
    """Stop before anything runs if something is left that the user has to supply.

    Raises:
        ValueError: if it is missing, or prepare.py found it not to be as published.
    """
    for step in steps:
        if step.given:
            wrong = 'not as published' if step.done.exists() else 'missing'
            what, _, how = need(step).partition(': ')
            raise UserError(f'{what} is {wrong}: {how}.')


def execute(step: Step, environment: dict[str, str]) -> None:
    """Run a command to its end. Ctrl-C and SIGTERM stop it once, so that it leaves a checkpoint.

    Raises:
        RuntimeError: if it fails, or does not leave its file.
        KeyboardInterrupt: if it was stopped.
    """
    program = [sys.executable] if step.command[0].endswith('.py') else []
    step.done.parent.mkdir(parents=True, exist_ok=True)
    with sigterm_as_interrupt():
        # In its own session, so that Ctrl-C reaches it through us alone.
        process = subprocess.Popen([*program, *step.command], env=environment,
                                   start_new_session=True)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        finally:
            if process.poll() is None:  # a second signal
                process.kill()
    if code:
        raise RunError(f'{step.what} failed (exit code {code}); remove the cause, and the same '
                       'command continues here.')
    if step.keep and (found := list(step.done.parent.glob(step.keep))):
        newest = max(found, key=lambda path: path.stat().st_mtime_ns)
        write_whole(step.done, newest.read_bytes())
    if step.marked:
        write_whole(step.done, step.text().encode())
    if not step.done.exists():
        raise RunError(f'{step.what} ended, but without {step.done}: the number of images or the '
                       "config's epochs are not the table's.")


def run_steps(steps: Sequence[Step], ended: Callable[[], None] = lambda: None) -> None:
    """Run steps one after the other; ``ended`` is called after each."""
    environment = dict(os.environ, PYTHON=sys.executable)
    for number, step in enumerate(steps, 1):
        print(f'\n[{number} of {len(steps)}] {step.what}\n{step.text()}', flush=True)
        execute(step, environment)
        ended()


# -- results -----------------------------------------------------------------------------------


def scores_of(table: Table, row: Row, scale: Scale) -> list[float] | None:
    """Read our numbers of a row from the files of its steps; None if they are not all there."""
    if table.costs is not None:
        return costs_of(table, row, scale)
    run = scale.run_of(row)
    if run is None or not (path := scores_step(run, scale).done).exists():
        return None
    metrics = json.loads(path.read_text())
    if run.score not in metrics:
        raise UserError(f'{path} has no {run.score}, but {", ".join(metrics)}: delete it to test '
                        'anew.')
    return [run.factor * metrics[run.score]]


def costs_of(table: Table, row: Row, scale: Scale) -> list[float] | None:
    path = costs_step(table, scale).done
    if not path.exists():
        return None
    found = json.loads(path.read_text())['rows'][table.rows.index(row)]
    if 'images_per_second' not in found:  # it has failed or was skipped
        return None
    return [found['images_per_second']['median'], found['gflops']['forward'],
            found['epoch_minutes'], found['peak_memory_gb']]


def results_of(tables: Iterable[Table], scale: Scale) -> dict[str, Any]:
    """Collect what results.json holds: every row with the paper's numbers and ours, if any."""
    return dict(small=scale.small, tables=[
        dict(table=table.number, title=table.title, columns=table.columns, rows=[
            dict(name=row.name, paper=row.paper, ours=scores_of(table, row, scale), note=row.note)
            for row in table.rows]) for table in tables])


def markdown(results: dict[str, Any]) -> str:
    """Write the tables: the paper's numbers, ours, and ours minus the paper's."""
    kinds: tuple[str, ...] = ('paper', 'ours', 'difference')
    lines = []
    if results['small']:
        kinds = kinds[:2]
        lines += ['Small scale, on drawn scenes: this shows that the chains work. Its scores '
                  "cannot be compared with the paper's.", '']
    for table in results['tables']:
        heads = [f'{column}: {kind}' for column in table['columns'] for kind in kinds]
        notes = list(dict.fromkeys(row['note'] for row in table['rows'] if row['note']))
        lines += [f'## Table {table["table"]}. {table["title"]}', '', f'| | {" | ".join(heads)} |',
                  '|---' * (len(heads) + 1) + '|']
        for row in table['rows']:
            cells = [cell for paper, ours in zip(row['paper'], row['ours'] or row['paper'])
                     for cell in cells_of(paper, ours if row['ours'] else None)[:len(kinds)]]
            mark = f' ({notes.index(row["note"]) + 1})' if row['note'] else ''
            lines.append(f'| {row["name"]}{mark} | {" | ".join(cells)} |')
        lines += ['', *(f'({number}) {note}.' for number, note in enumerate(notes, 1)),
                  *([''] if notes else [])]
    return '\n'.join(lines)


def cells_of(paper: float, ours: float | None) -> tuple[str, str, str]:
    if ours is None:
        return f'{paper:g}', '–', '–'
    return f'{paper:g}', f'{ours:.2f}', f'{ours - paper:+.2f}'


def write_results(scale: Scale) -> None:
    results = results_of(TABLES.values(), scale)
    write_whole(scale.root / 'results.json', json.dumps(results, indent=1).encode())
    write_whole(scale.root / 'results.md', markdown(results).encode())


def main() -> None:
    args = parse_args()
    tables = [TABLES[number] for number in dict.fromkeys(
        number for numbers in args.tables for number in numbers)]
    root = args.work_dir or Path(f'work_dirs/reproduce{"_small" if args.small else ""}')
    scale = Scale(root, args.small, args.gpus)
    chosen = plan(tables, scale, args.rows)
    if args.dry_run:
        print(listing(chosen, scale))
        return
    steps = [step for *_, steps in chosen for step in steps]
    check_given(steps)
    if steps and not Path('tools/train.py').exists():
        raise UserError('the commands start in the folder that holds tools/ and configs/: run this '
                        'one there, too.')
    try:
        run_steps(steps, lambda: write_results(scale))
    except KeyboardInterrupt:
        raise SystemExit('Stopped. The same command continues.') from None
    write_results(scale)
    print(markdown(results_of(tables, scale)))


if __name__ == '__main__':
    with errors_in_one_sentence():
        main()
