"""Pre-train several configs on the same images and compare what they learned: Tables 8, 9, 11-13.

    python tools/benchmarks/compare.py configs/small/{pera,dino,dinov2,mae,mocov3}.py \
        --data data/rsscn7 --seeds 10 11 12 --budget-cpu-seconds 1800 --lr-grid 3e-4 1e-3 3e-3 \
        --work-dir work_dirs/compare/table9

Rows are the configs, the variants of the first one (--variant patch8 model.backbone.patch_size=8
train_dataloader.dataset.pipeline.mask.patch_size=8), its ViT trained from scratch with all labels,
and what needs no training: its random weights, mean and deviation of the bands, and random
convolutional features. Each is trained with every seed and scored by tools/benchmarks/probe.py on
--probe-data (default: --data; a folder with one folder of images per class): half of each class is
for training, the other for the test. No pre-training sees an image of the test, nor any label. With
--train-share, classifiers and fine-tuning learn from a share of the training half, drawn by seed.

Every training gets the same budget: --epochs over its images, --budget-images, or
--budget-cpu-seconds. A budget in CPU seconds (of the process and its workers, start not counted) is
turned into steps by a run of 20 steps before; so the schedule ends with the run, and the seconds
that were really used are in the table. Schedules are stretched or shortened to the budget.

With --lr-grid every learning rate first gets a fifth of the budget with the first seed; the best
kNN on a quarter of the training half decides, and all seeds have that rate. The search for
supervised training does not learn the labels of that quarter. --lr gives rates that
are known from an earlier search (--lr mae=3e-4 'supervised from scratch=3e-4').

Whenever a run ends, it writes results.json, table.md and plot.png into the work folder. Stop it at
any time: the next start skips what is finished and continues what was interrupted. A run that fails
is named with its log and does not stop the others; the exit code is then 1.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compare_plan import (
    Run,
    best_learning_rates,
    calibration,
    known_rates,
    plan_run,
    plan_search,
    table_rows,
)
from compare_plot import plot
from compare_table import collect, table
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from runs import TrainingJob, check_unique, logged_scalars, run_all

from pera_mm.files import write_whole
from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import positive_number, whole_number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', type=Path, metavar='CONFIG')
    parser.add_argument('--data', nargs='+', required=True, metavar='DIR',
                        help='images to pre-train on')
    parser.add_argument('--probe-data', metavar='DIR',
                        help='images to score on; needed if --data names several folders')
    parser.add_argument('--variant', nargs='+', action='append', default=[],
                        metavar=('NAME', 'KEY=VALUE'),
                        help='a row more: the first config with these options; may be repeated')
    parser.add_argument('--seeds', nargs='+', type=whole_number(0), default=[10, 11, 12])
    parser.add_argument('--jobs', type=whole_number(1), default=2,
                        help='runs at a time, one thread each')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare'))
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument('--epochs', type=whole_number(1),
                        help="of every training; the config's by default")
    budget.add_argument('--budget-images', type=whole_number(1), help='that every training sees')
    budget.add_argument('--budget-cpu-seconds', type=positive_number,
                        help='that every training takes')
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument('--lr-grid', nargs='+', type=positive_number, default=[], metavar='LR',
                       help='learning rates of which each row gets its best')
    rates.add_argument('--lr', nargs='+', type=learning_rate, default=[], metavar='ROW=LR',
                       help="learning rates of rows; the config's for the others")
    parser.add_argument('--size', type=whole_number(1),
                        help="side of the probed images, px; each config's own crops' by default")
    parser.add_argument('--train-share', type=float, metavar='S',
                        help='of the labelled training half of each class, for all that learns '
                             'from labels; 0.4 is AID with 20 %% for training')
    parser.add_argument('--finetune-epochs', type=whole_number(0), default=10)
    parser.add_argument('--title', default='', help='of the table and the plot')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
                        help='for every pre-training')
    args = parser.parse_args()
    check_unique('--seeds', args.seeds)
    check_unique('--lr-grid', args.lr_grid)
    check_unique('--lr', [name for name, _ in args.lr])
    return args


def learning_rate(text: str) -> tuple[str, float]:
    """Parse ``ROW=LR``."""
    name, _, rate = text.rpartition('=')
    return name, positive_number(rate)


class Comparison:
    """The runs of a comparison, in stages: calibration, learning rates, first seed, other seeds."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rows = table_rows(args)
        self.runs: list[Run] = []
        self.chosen = known_rates(args, self.rows)
        self.failed: list[TrainingJob] = []

    def run(self) -> None:
        """Run what is not done yet."""
        if self.args.budget_cpu_seconds:
            jobs = [calibration(self.args, row) for row in self.rows if row.trains]
            self.failed += run_all(jobs, self.args.jobs)
            for job in self.failed:
                print(f'{job.name}: failed, see {job.log}')
            broken = {job.log.parents[1].name for job in self.failed}
            self.rows = [row for row in self.rows if row.folder not in broken]
            self.chosen = {row: self.chosen[row] for row in self.rows}
        if self.args.lr_grid:
            self.stage(self.search())
            self.choose()
        self.stage(self.first_seed())
        self.stage(self.other_seeds())

    def search(self) -> list[Run]:
        """Plan the short runs that choose a learning rate for each row that trains."""
        return [plan_search(self.args, row, rate) for row in self.rows if row.trains
                for rate in self.args.lr_grid]

    def choose(self) -> None:
        """Choose learning rates; a row without a search that worked is left out of what follows."""
        best = best_learning_rates(self.runs)
        self.chosen = {row: best.get(row) for row in self.rows if row in best or not row.trains}

    def first_seed(self) -> list[Run]:
        return [plan_run(self.args, row, self.args.seeds[0], rate)
                for row, rate in self.chosen.items()]

    def other_seeds(self) -> list[Run]:
        """Plan the other seeds, one by one; a row whose first seed failed gets no more."""
        worked = {run.row for run in self.runs if run.counts and run.result() is not None}
        return [plan_run(self.args, row, seed, rate) for seed in self.args.seeds[1:]
                for row, rate in self.chosen.items() if row in worked]

    def stage(self, runs: list[Run]) -> None:
        """Run a part of the runs, and write the outputs whenever one ends."""
        self.runs += runs
        with progress(runs) as show:
            def ended(running: list[TrainingJob], now: list[TrainingJob]) -> None:
                self.failed += [job for job in now if job.next_step() is not None]
                if now:
                    self.write()
                show(now)

            run_all([run.job for run in runs], self.args.jobs, ended)

    def write(self) -> None:
        write_outputs(collect(self.args, self.runs, self.failed), self.args.work_dir)


def steps_done(run: Run) -> int:
    if run.job.steps[0].result.exists():
        return run.steps
    lines = [line['step'] for line in logged_scalars(run.folder / 'train') if 'step' in line]
    return min(max(lines, default=0), run.steps)


@contextmanager
def progress(runs: list[Run]) -> Iterator[Any]:
    """Show a bar over the steps of all runs, and print a line when a run ends."""
    by_job = {run.job: run for run in runs}
    columns = ('{task.description}', BarColumn(), MofNCompleteColumn(), TextColumn('steps'),
               TimeElapsedColumn(), TextColumn('left:'), TimeRemainingColumn())
    with Progress(*columns, refresh_per_second=2, speed_estimate_period=600) as bar:
        total = bar.add_task('', total=sum(run.steps for run in runs),
                             completed=sum(map(steps_done, runs)))

        def show(ended: list[TrainingJob]) -> None:
            for job in ended:
                scores = by_job[job].result()
                text = f'failed: see {job.log}' if scores is None else ', '.join(
                    f'{key} {value:.1f}' for key, value in scores.items())
                bar.console.print(f'{job.name}: {text}', highlight=False, soft_wrap=True)
            finished = sum(run.job.next_step() is None for run in runs)
            bar.update(total, completed=sum(map(steps_done, runs)),
                       description=f'{finished} of {len(runs)} runs')

        yield show


def write_outputs(results: dict, folder: Path) -> None:
    write_whole(folder / 'results.json', json.dumps(results, indent=2).encode())
    write_whole(folder / 'table.md', table(results).encode())
    if any(row['intervals'] for row in results['rows']):
        plot(results, folder / 'plot.png')


def main() -> None:
    args = parse_args()
    comparison = Comparison(args)
    try:
        comparison.run()
    except KeyboardInterrupt:
        raise SystemExit(f'Stopped. The same command continues in {args.work_dir}.') from None
    print((args.work_dir / 'table.md').read_text())
    if comparison.failed:
        raise SystemExit(f'{len(comparison.failed)} runs failed: see the end of the table.')


if __name__ == '__main__':
    with errors_in_one_sentence():
        main()
