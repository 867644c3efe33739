"""Pre-train several configs on the same images and compare what they learned: Tables 8, 9, 11-13.

    python tools/benchmarks/compare.py configs/small/{pera,dino,dinov2,mae,mocov3}.py \
        --data data/rsscn7 --seeds 10 11 12 --work-dir work_dirs/compare/table9

Every config is pre-trained with every seed on all images of --data (a folder with one folder of
images per class; labels are not used). Then kNN, a linear classifier and a short fine-tuning learn
from half of each class and are scored on the other half (tools/benchmarks/probe.py). Random
weights are scored, too. With several --data (Table 8) all are scored on --probe-data.

Whenever a run ends, it writes results.json, table.md and plot.png into the work folder. Stop it at
any time: the next start skips what is finished and continues what was interrupted. A run that fails
is named with its log and does not stop the others; the exit code is then 1.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from mmengine.config import Config, DictAction
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from runs import ROOT, Step, TrainingJob, logged_scalars, run_all, train_command

from pera_mm.evaluation.features import read_labelled_folder, stratified_split
from pera_mm.files import write_whole
from pera_mm.launch import errors_in_one_sentence, load_config

PROBES = {'knn': 'kNN, k = 10', 'linear': 'linear', 'finetune': 'fine-tuned'}
RANDOM = 'random weights'


class Run(NamedTuple):
    """A pre-training (none for random weights) and its probe, in their own folder."""

    row: str  # of the table
    seed: int
    folder: Path
    cfg: Config
    job: TrainingJob
    epochs: int  # 0 for random weights

    def result(self) -> dict | None:
        """Return scores in percent and minutes of pre-training; None if it is not finished."""
        if self.job.next_step() is not None:
            return None
        return {key: value for step in self.job.steps
                for key, value in json.loads(step.result.read_text()).items()}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', type=Path, metavar='CONFIG')
    parser.add_argument('--data', nargs='+', required=True, metavar='DIR',
                        help='images to pre-train on')
    parser.add_argument('--probe-data', metavar='DIR',
                        help='images to score on; needed if --data names several folders')
    parser.add_argument('--seeds', nargs='+', type=int, default=[10, 11, 12])
    parser.add_argument('--jobs', type=int, default=2, help='runs at a time, one thread each')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare'))
    parser.add_argument('--epochs', type=int, help="of every pre-training; the config's by default")
    parser.add_argument('--size', type=int, default=112, help='side of the probed images, px')
    parser.add_argument('--finetune-epochs', type=int, default=10)
    parser.add_argument('--title', default='', help='of the table and the plot')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
                        help='for every pre-training')
    return parser.parse_args()


def plan(args: argparse.Namespace) -> list[Run]:
    """List all runs, seed by seed, so that the first table is complete early.

    Raises:
        SystemExit: if the arguments do not fit together or the work folder holds another
            comparison.
    """
    folders = [Path(path) for path in args.data]
    if len(folders) > 1 and args.probe_data is None:
        raise SystemExit('Several --data: name the images to score on with --probe-data.')
    for kind, names in (('configs', [path.stem for path in args.configs]),
                        ('--data folders', [path.resolve().name for path in folders])):
        if len(set(names)) < len(names):
            raise SystemExit(f'Two {kind} have the same name, which is their row in the table: '
                             f'{", ".join(names)}.')
    for path in {*args.data, args.probe_data or args.data[0]}:
        stratified_split(read_labelled_folder(path).labels)  # raises now and not in an hour
    runs = []
    for seed in args.seeds:
        for config in args.configs:
            for data in folders:
                runs.append(pretraining(args, config, data, seed))
        runs.append(random_start(args, runs[0].cfg, seed))
    return runs


def pretraining(args: argparse.Namespace, config: Path, data: Path, seed: int) -> Run:
    row = config.stem if len(args.data) == 1 else f'{config.stem}, {data.resolve().name}'
    folder = args.work_dir / row.replace(', ', '_') / f'seed{seed}'
    options = [f'randomness.seed={seed}', f'train_dataloader.dataset.source={data}']
    if args.epochs:
        options.append(f'train_cfg.max_epochs={args.epochs}')
    options += args.cfg_options
    cfg = resolved(config, options)
    path = write_config(folder, cfg, args)
    checkpoints = folder / 'train'
    train = Step(train_command(config, checkpoints, *options), folder / 'pretraining.json',
                 partial(pretraining_summary, checkpoints))
    # The name of the checkpoint is known only after the training, so the probe gets the folder.
    probe = Step(probe_command(args, path, seed, checkpoints), folder / 'probe.json')
    name = f'{row}, seed {seed}'
    return Run(row, seed, folder, cfg, TrainingJob(name, folder / 'output.txt', (train, probe)),
               cfg.train_cfg.max_epochs)


def random_start(args: argparse.Namespace, cfg: Config, seed: int) -> Run:
    """Plan the probe of the first config's ViT before training."""
    folder = args.work_dir / 'random' / f'seed{seed}'
    probe = Step(probe_command(args, write_config(folder, cfg, args), seed), folder / 'probe.json')
    return Run(RANDOM, seed, folder, cfg,
               TrainingJob(f'{RANDOM}, seed {seed}', folder / 'output.txt', (probe,)), 0)


def resolved(config: Path, options: list[str]) -> Config:
    """Load a config with its options, as tools/train.py does."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    parsed = parser.parse_args(['--cfg-options', *options])
    return load_config(argparse.Namespace(config=str(config), work_dir='', launcher='none',
                                          local_rank=0, cfg_options=parsed.cfg_options))


def write_config(folder: Path, cfg: Config, args: argparse.Namespace) -> Path:
    """Write the settings of a run, and refuse a folder with other settings."""
    path = folder / 'config.json'
    probe = dict(data=args.probe_data or args.data[0], size=args.size,
                 finetune_epochs=args.finetune_epochs)
    text = json.dumps(dict(cfg.to_dict(), probe=probe), indent=1, default=str)
    if path.exists() and path.read_text() != text:
        raise SystemExit(f'{folder} holds a run with other settings (see {path}): delete it, or '
                         'give another --work-dir.')
    write_whole(path, text.encode())
    return path


def probe_command(args: argparse.Namespace, config: Path, seed: int,
                  checkpoints: Path | None = None) -> tuple[str, ...]:
    return (sys.executable, str(ROOT / 'tools/benchmarks/probe.py'), str(config),
            *([] if checkpoints is None else [str(checkpoints)]),
            '--data', args.probe_data or args.data[0], '--size', str(args.size),
            '--epochs', str(args.finetune_epochs), '--seed', str(seed),
            '--json', str(config.with_name('probe.json')))


def pretraining_summary(work_dir: Path) -> dict[str, float]:
    """Return the minutes of the steps alone: their number times their median logged time."""
    lines = [line for line in logged_scalars(work_dir) if 'time' in line]
    steps = max(line['step'] for line in lines)
    return dict(minutes=steps * statistics.median(line['time'] for line in lines) / 60)


def epochs_done(run: Run) -> int:
    if run.job.steps[0].result.exists():
        return run.epochs
    lines = logged_scalars(run.folder / 'train')
    return max(lines[-1].get('epoch', 1) - 1, 0) if lines else 0


@contextmanager
def progress(args: argparse.Namespace, runs: list[Run]) -> Iterator[Any]:
    """Show a bar over all epochs; when a run ends, print a line and write table and plot."""
    by_job = {run.job: run for run in runs}
    failed: list[TrainingJob] = []
    columns = ('{task.description}', BarColumn(), MofNCompleteColumn(), TextColumn('epochs'),
               TimeElapsedColumn(), TextColumn('left:'), TimeRemainingColumn())
    with Progress(*columns, refresh_per_second=2, speed_estimate_period=600) as bar:
        done = sum(epochs_done(run) for run in runs)
        total = bar.add_task('', total=sum(run.epochs for run in runs), completed=done)

        def show(running: list[TrainingJob], ended: list[TrainingJob]) -> None:
            for job in ended:
                scores = by_job[job].result()
                if scores is None:
                    failed.append(job)
                text = f'failed: see {job.log}' if scores is None else ', '.join(
                    f'{key} {value:.1f}' for key, value in scores.items())
                bar.console.print(f'{job.name}: {text}', highlight=False, soft_wrap=True)
            if ended:
                write_outputs(collect(args, runs, failed), args.work_dir)
            finished = sum(run.job.next_step() is None for run in runs)
            bar.update(total, completed=sum(epochs_done(run) for run in runs),
                       description=f'{finished} of {len(runs)} runs')

        yield show


def collect(args: argparse.Namespace, runs: list[Run], failed: list[TrainingJob]) -> dict:
    """Collect what results.json holds; runs not finished and not failed are still to come."""
    rows: dict[str, dict] = {}
    for run in sorted(runs, key=lambda run: run.row == RANDOM):
        row = rows.setdefault(run.row, dict(name=run.row, seeds={}, failed={}, unfinished={}))
        scores = run.result()
        if scores is not None:
            row['seeds'][str(run.seed)] = scores
        else:
            state = 'failed' if run.job in failed else 'unfinished'
            row[state][str(run.seed)] = str(run.job.log)
    epochs = sorted({run.epochs for run in runs if run.epochs})
    return dict(
        title=args.title, seeds=args.seeds, epochs=epochs, data=args.data,
        probe_data=args.probe_data or args.data[0], size=args.size,
        finetune_epochs=args.finetune_epochs, configs=[str(path) for path in args.configs],
        cfg_options=args.cfg_options, rows=list(rows.values()))


def values(row: dict, key: str) -> list[float]:
    return [scores[key] for scores in row['seeds'].values() if key in scores]


def mean_and_deviation(found: list[float]) -> str:
    """Format as ``61.2 ± 0.8``; the deviation over seeds has n - 1, a single value has none."""
    mean = f'{statistics.mean(found):.1f}'
    return mean if len(found) < 2 else f'{mean} ± {statistics.stdev(found):.1f}'


def table(results: dict) -> str:
    """Write Markdown: mean ± standard deviation over the seeds, and the single values."""
    probes = [key for key in PROBES if any(values(row, key) for row in results['rows'])]
    epochs = ' / '.join(map(str, results['epochs']))
    lines = [f'# {results["title"]}', ''] if results['title'] else []
    lines += [
        f'Pre-training: {epochs} epochs on {", ".join(results["data"])}; accuracy in percent on '
        f'{results["probe_data"]} at {results["size"]} px, half of each class for training; mean ± '
        f'standard deviation over seeds {", ".join(map(str, results["seeds"]))}, and each of them.',
        '',
        '| | ' + ' | '.join([*(PROBES[key] for key in probes), 'minutes of pre-training']) + ' |',
        '|---' * (len(probes) + 2) + '|']
    for row in results['rows']:
        cells = []
        for key in probes:
            found = values(row, key)
            single = f' ({", ".join(f"{value:.1f}" for value in found)})'
            cells.append('–' if not found else
                         mean_and_deviation(found) + (single if len(found) > 1 else ''))
        minutes = values(row, 'minutes')
        cells.append(mean_and_deviation(minutes) if minutes else '–')
        lines.append(f'| {row["name"]} | ' + ' | '.join(cells) + ' |')
    failed = [f'- {row["name"]}, seed {seed}: failed, see {log}' for row in results['rows']
              for seed, log in row['failed'].items()]
    unfinished = sum(len(row['unfinished']) for row in results['rows'])
    if unfinished:
        failed.append(f'- {unfinished} runs are not finished')
    return '\n'.join([*lines, *(['', *failed] if failed else []), ''])


def plot(results: dict, path: Path) -> None:
    """Plot mean and standard deviation of every row, a panel per probe, a mark per seed."""
    rows = [row for row in results['rows'] if row['seeds']][::-1]  # the first on top
    probes = [key for key in PROBES if any(values(row, key) for row in rows)]
    figure = Figure(figsize=(2.2 + 3.2 * len(probes), 1.4 + 0.45 * len(rows)),
                    layout='constrained')
    panels = figure.subplots(1, len(probes), sharey=True, squeeze=False)[0]
    for panel, key in zip(panels, probes):
        for height, row in enumerate(rows):
            found = values(row, key)
            if not found:
                continue
            color = 'tab:gray' if row['name'] == RANDOM else 'tab:blue'
            mean = statistics.mean(found)
            if row['name'] == RANDOM:
                panel.axvline(mean, color=color, linestyle=':', linewidth=1, zorder=0)
            panel.errorbar(mean, height, xerr=statistics.stdev(found) if len(found) > 1 else None,
                           fmt='o', color=color, capsize=4)
            panel.plot(found, [height - 0.22] * len(found), '|', color=color, alpha=0.6)
            panel.annotate(f'{mean:.1f}', (mean, height), (0, 6), textcoords='offset points',
                           ha='center', fontsize=8,
                           bbox=dict(facecolor='white', edgecolor='none', pad=0.5))
        panel.set_title(PROBES[key], fontsize=10)
        panel.set_xlabel('accuracy, %')
        panel.grid(axis='x', alpha=0.3)
        panel.margins(x=0.12)
    panels[0].set_yticks(range(len(rows)), [row['name'] for row in rows])
    panels[0].set_ylim(-0.6, len(rows) - 0.3)
    if results['title']:
        figure.suptitle(results['title'], fontsize=11)
    figure.savefig(path, dpi=150)


def write_outputs(results: dict, folder: Path) -> None:
    write_whole(folder / 'results.json', json.dumps(results, indent=2).encode())
    write_whole(folder / 'table.md', table(results).encode())
    if any(row['seeds'] for row in results['rows']):
        plot(results, folder / 'plot.png')


def main() -> None:
    args = parse_args()
    runs = plan(args)
    try:
        with progress(args, runs) as show:
            failed = run_all([run.job for run in runs], args.jobs, show)
    except KeyboardInterrupt:
        raise SystemExit(f'Stopped. The same command continues in {args.work_dir}.') from None
    print((args.work_dir / 'table.md').read_text())
    if failed:
        raise SystemExit(f'{len(failed)} of {len(runs)} runs failed: see the end of the table.')


if __name__ == '__main__':
    with errors_in_one_sentence():
        main()
