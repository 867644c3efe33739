"""Train a healthy run and each ill one of docs/health.md, and draw their curves.

    python tools/analysis/health_examples.py --data data/rsscn7 --work-dir work_dirs/health

Roughly 20 minutes on a free core, one run after the other; what is finished is not trained again.
A work folder is for one folder of images. It gets health.png; a table of the numbers and all
verdicts are printed.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from mmengine.config import Config

from pera_mm.errors import RunError
from pera_mm.evaluation.features import read_labelled_folder
from pera_mm.evaluation.verdict import late
from pera_mm.files import sign_folder
from pera_mm.launch import errors_in_one_sentence
from pera_mm.stopping import stopped_in_one_line

ROOT = Path(__file__).resolve().parents[2]
SIGNATURE = '.health.json'  # the images of the runs in a work folder
sys.path.insert(0, str(ROOT / 'tools'))

from analysis.report import Curve, read_scalars, verdict_on  # noqa: E402

# The loss of the pixels is a sum over a patch; its weight makes up for the number of values.
PATCH_8, PATCH_16 = (
    (f'model.backbone.patch_size={side}', f'model.pixel.loss_weight={weight}',
     f'train_dataloader.dataset.pipeline.mask.patch_size={side}')
    for side, weight in ((8, 0.04), (16, 0.01)))
# Half a batch, and a learning rate that rises in 20 steps, because most runs have one epoch.
SHORT = ('train_dataloader.batch_size=16',
         *(f'param_scheduler.{index}.{key}' for index, end in ((0, 'end'), (1, 'begin'))
           for key in ('by_epoch=False', 'convert_to_iter_based=False', f'{end}=20')))
WARM_TEACHER = tuple(f'default_hooks.schedule.teacher_temp.{end}=1.0' for end in ('start', 'end'))

IMAGES = 1400  # of an epoch
FIRST = 50  # images, where the probe of the random teacher is drawn
# Panels that are computed from two logged numbers.
GAIN = 'probe/knn - probe/knn_color'
SHARE = 'loss_pixel / (loss_pixel + loss_cls)'
PANELS = ('loss_cls', SHARE, 'grad_norm', GAIN, 'health/teacher_entropy', 'health/prototype_use',
          'health/nearest_distance', 'health/feature_rank')
COLUMNS = (*PANELS[:3], *PANELS[4:], 'health/feature_std', 'health/alignment', 'health/uniformity',
           'probe/color_share')  # of the table, before the gain


class Case(NamedTuple):
    """A run of configs/small/pera.py with a few changes."""

    name: str
    epochs: int  # of 1,400 images
    options: tuple[str, ...]


CASES = (
    Case('healthy', 8, PATCH_8),
    Case('constant', 1, (*PATCH_8, *SHORT, 'model.distillation.center_momentum=1.0',
                         'model.koleo=None')),
    Case('uniform', 1, (*PATCH_8, *SHORT, *WARM_TEACHER)),
    Case('diverging', 1, (*PATCH_8, *SHORT, 'optim_wrapper.optimizer.lr=0.1')),
    Case('pixels dominate', 1, (*PATCH_8, *SHORT, 'model.pixel.loss_weight=40.0')),
    Case('too few tokens', 2, (*PATCH_16, *SHORT)),
    Case('color shortcut', 3, (*PATCH_8, *SHORT)),
)


def train(case: Case, data: str, folder: Path) -> None:
    """Train a case on one thread; a run that stops itself is a result, too.

    Raises:
        RunError: if it was killed or logged nothing.
    """
    ended = folder / 'ended'
    if ended.exists():
        return
    probe = dict(type='pera_mm.ProbeHook', data_root=data, size=112, interval=1)
    options = [f'train_dataloader.dataset.source={data}', f'train_cfg.max_epochs={case.epochs}',
               'default_hooks.logger.interval=5', 'default_hooks.health.interval=5',
               *(f'+default_hooks.probe.{key}={value}' for key, value in probe.items()),
               *case.options]
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(ROOT / 'configs/small/pera.py'),
               '--work-dir', str(folder), '--cfg-options', *options]
    folder.mkdir(parents=True, exist_ok=True)
    before = logs_of(folder)  # of starts that were stopped
    with open(folder / 'output.txt', 'w') as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False,
                              env=os.environ | {'OMP_NUM_THREADS': '1'}).returncode
    if code not in (0, 1) or logs_of(folder) == before:
        raise RunError(f'the training {case.name!r} failed (exit code {code}): {folder}/output.txt '
                       'says why; remove the cause, and the same command continues here.')
    ended.write_text(f'{code}\n')


def logs_of(folder: Path) -> set[Path]:
    """List the files of numbers that all starts of a run have logged."""
    return set(folder.glob('*/vis_data/scalars.json'))


class Run(NamedTuple):
    """A finished case: its config and its curves, by the names in scalars.json."""

    case: Case
    folder: Path
    cfg: Config
    curves: dict[str, Curve]


def read_run(case: Case, folder: Path) -> Run:
    """Read the config and the scalars of a case."""
    curves = read_scalars(folder)
    curves[SHARE] = _combine(curves, 'loss_pixel', 'loss_cls', lambda pixel, cls: pixel / (
        pixel + cls))
    curves[GAIN] = _combine(curves, 'probe/knn', 'probe/knn_color', lambda knn, floor: knn - floor)
    return Run(case, folder, Config.fromfile(next(folder.glob('*.py'))), curves)


def _combine(curves: dict[str, Curve], one: str, two: str,
             how: Callable[[float, float], float]) -> Curve:
    first, second = curves.get(one, Curve([], [])), curves.get(two, Curve([], []))
    values = [how(*pair) for pair in zip(first.values, second.values)]
    return Curve(first.steps[:len(values)], values)


def draw(runs: Sequence[Run], out: Path) -> None:
    """Draw a panel per number, a line per run, over the images seen."""
    figure = Figure(figsize=(12, 6), layout='constrained')
    lines = {}
    for axes, name in zip(figure.subplots(2, 4).flat, PANELS):
        for index, run in enumerate(runs):
            steps, values = run.curves.get(name, Curve([], []))
            epoch_or_step = IMAGES if name == GAIN else run.cfg.train_dataloader.batch_size
            seen = [max(step * epoch_or_step, FIRST) for step in steps]
            lines[run.case.name], = axes.plot(
                seen, values, marker='o' if name == GAIN else '', markersize=3,
                color=f'C{index}' if index else 'black', linewidth=1.2 if index else 2)
        axes.set_xscale('log')
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if name == 'grad_norm':
            axes.set_yscale('log')
    figure.supxlabel('images seen', fontsize=9)
    figure.legend(lines.values(), lines.keys(), loc='outside upper center', ncols=len(lines),
                  fontsize=9)
    figure.savefig(out, dpi=80)


def print_table(runs: Sequence[Run]) -> None:
    """Print medians of the last quarter of a run, by which it is judged, and the last probe."""
    print('| number |', ' | '.join(run.case.name for run in runs), '|')
    print('|---' + '|--:' * len(runs) + '|')
    for name in (*COLUMNS, GAIN):
        curves = [run.curves.get(name, Curve([], [])).values for run in runs]
        values = [late(each[-1:] if 'probe' in name else each) for each in curves]
        print(f'| {name} |', ' | '.join(f'{value:.3g}' for value in values), '|')


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, then draw, tabulate and judge all."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default='data/rsscn7', help='folder of class folders')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/health'))
    args = parser.parse_args(argv)
    read_labelled_folder(args.data)  # raises if it is none
    sign_folder(args.work_dir, SIGNATURE, dict(data=os.path.realpath(args.data)),
                'give another --work-dir')
    folders = {case: args.work_dir / case.name.replace(' ', '_') for case in CASES}
    for case, folder in folders.items():
        train(case, args.data, folder)
    runs = [read_run(case, folder) for case, folder in folders.items()]
    draw(runs, args.work_dir / 'health.png')
    print_table(runs)
    for run in runs:
        print(f'\n{run.case.name}\n{verdict_on(run.folder, run.cfg)}')


if __name__ == '__main__':
    with stopped_in_one_line(), errors_in_one_sentence():
        main()
