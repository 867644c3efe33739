"""Measure the gain of pre-training: all downstream tasks on drawn scenes, teacher or random start.

    make demo
    python tools/benchmarks/transfer.py

It draws the scenes that are missing, trains the scenes config of every task from the demo's teacher
and from random weights with several seeds, and prints the metric after the last epoch as a table.
Stop it at any time: the next start skips what is done and continues what was interrupted.
"""

import argparse
import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.progress import Progress
from runs import ROOT, Step, TrainingJob, check_unique, logged_scalars, run_all, train_command

from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import whole_number
from pera_mm.scenes.folders import write_scenes

STARTS = ('random', 'teacher')


class Task(NamedTuple):
    """A scenes config, the metric that counts, and the key of its ViT."""

    config: str
    metric: str
    title: str
    vit: str = 'model.backbone.vit'


TASKS = {
    'linear': Task('scenes/aid_pera_linear_scenes', 'accuracy/top1', 'classification, linear: OA',
                   'model.backbone'),
    'aid': Task('scenes/aid_pera_scenes', 'accuracy/top1', 'classification, fine-tuned: OA',
                'model.backbone'),
    'potsdam': Task('scenes/potsdam_upernet_pera_scenes', '7-class/mF1',
                    'segmentation, UPerNet: mF1'),
    'levircd': Task('scenes/levircd_bit_pera_scenes', 'change/F1', 'change detection, BIT: F1'),
    'dior': Task('scenes/dior_faster_rcnn_pera_scenes', 'pascal_voc/AP50',
                 'detection, Faster R-CNN: AP50'),
}
# As in the headers of the scenes configs: kind, count, size in pixels.
SCENES = (('classification', 1200, 128), ('segmentation', 250, 256), ('change', 600, 256),
          ('detection', 900, 160))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    parser.add_argument('--seeds', nargs='+', type=whole_number(0), default=[10, 11, 12])
    parser.add_argument('--jobs', type=whole_number(1), default=2,
                        help='trainings at a time, one core each')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/transfer'),
                        help='use another folder for another teacher')
    parser.add_argument('--teacher', type=Path, default=Path('work_dirs/demo/iter_400.pth'))
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_unique('--seeds', args.seeds)
    if not args.teacher.is_file():
        raise SystemExit(f'There is no teacher {args.teacher}: run make demo first.')
    draw_scenes()
    jobs = {(name, start, seed): job(args, name, start, seed)
            for name in args.tasks for seed in args.seeds for start in STARTS}
    try:
        with Progress() as progress:
            bar = progress.add_task('training', total=len(jobs))
            failed = run_all(list(jobs.values()), args.jobs,
                             lambda running, ended: progress.advance(bar, len(ended)))
    except KeyboardInterrupt:
        raise SystemExit(f'Stopped. The same command continues in {args.work_dir}.') from None
    scores = {run: json.loads(job.steps[0].result.read_text()) for run, job in jobs.items()
              if job not in failed}
    finished = [name for name in args.tasks
                if all((name, start, seed) in scores for start in STARTS for seed in args.seeds)]
    print(table(finished, args.seeds, scores))
    if failed:
        raise SystemExit('Failed, and their tasks are not in the table; see '
                         + ', '.join(str(job.log) for job in failed) + '.')


def draw_scenes() -> None:
    for kind, count, size in SCENES:
        write_scenes(Path('data/scenes') / kind, kind, count, size)
    splits = Path('data/scenes/classification/splits')
    if not (splits / 'tr50_train.txt').exists():
        subprocess.run([sys.executable, ROOT / 'tools/data/make_splits.py', splits.parent,
                        splits / 'tr50', '--share', '0.5'], check=True, stdout=subprocess.DEVNULL)


def job(args: argparse.Namespace, name: str, start: str, seed: int) -> TrainingJob:
    """Plan a training whose result is the metric after the last epoch."""
    task, work_dir = TASKS[name], args.work_dir / f'{name}_{start}_{seed}'
    init = f'{task.vit}.init_cfg=None' if start == 'random' else (
        f'{task.vit}.init_cfg.checkpoint={args.teacher}')
    command = train_command(ROOT / f'configs/{task.config}.py', work_dir,
                            f'randomness.seed={seed}', init)
    return TrainingJob(work_dir.name, work_dir / 'output.txt',
               (Step(command, work_dir / 'score.json',
                     partial(last_value, work_dir, task.metric)), ))


def last_value(work_dir: Path, metric: str) -> float:
    """Return the metric of the last validation, in percent."""
    value = [line[metric] for line in logged_scalars(work_dir) if metric in line][-1]
    return value * 100 if metric.startswith('pascal_voc') else value


def table(tasks: list[str], seeds: list[int], scores: dict[tuple[str, str, int], float]) -> str:
    """Write Markdown: the mean of the seeds and the single values."""
    lines = [f'| task, metric in percent (seeds {", ".join(map(str, seeds))}) | random | teacher '
             '| gain |', '|---|---|---|---|']
    for name in tasks:
        values = {start: [scores[name, start, seed] for seed in seeds] for start in STARTS}
        means = {start: statistics.mean(values[start]) for start in STARTS}
        cells = [f'{means[start]:.1f} ({", ".join(f"{v:.1f}" for v in values[start])})'
                 for start in STARTS]
        gain = means['teacher'] - means['random']
        lines.append(f'| {TASKS[name].title} | {cells[0]} | {cells[1]} | {gain:+.1f} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    with errors_in_one_sentence():
        main()
