"""A demo of pera_mm in minutes on two cores: draw scenes, pre-train PerA, probe the teacher.

    make demo
"""

import argparse
import io
import logging
import shutil
import sys
import time
import warnings
from contextlib import redirect_stdout
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

warnings.filterwarnings('ignore')  # deprecation notes of the toolboxes; ours go to the log

import torch  # noqa: E402
from analysis.report import draw_report, read_scalars, verdict_on  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import (  # noqa: E402
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table  # noqa: E402

import pera_mm  # noqa: E402, F401  activates the bridges
from pera_mm.errors import UserError  # noqa: E402
from pera_mm.files import LOCK, Claim  # noqa: E402
from pera_mm.launch import errors_in_one_sentence  # noqa: E402
from pera_mm.options import whole_number  # noqa: E402
from pera_mm.scenes.drawing import draw_scene  # noqa: E402
from pera_mm.scenes.folders import write_scenes  # noqa: E402
from pera_mm.scenes.plans.land_uses import LAND_USES  # noqa: E402
from pera_mm.stopping import stopped_in_one_line  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / 'configs/pera/pera_tiny_scenes.py'
UNLABELED, LABELLED, SIZE = 1600, 1200, 128  # drawn images, and their side in pixels
SHOWN_SEED = 10**6  # of the scenes in the report, which are in neither folder
SEEDS = 2**32  # that NumPy takes
MARKER = '.demo'  # an empty file in the folder of a demo
KEPT = {MARKER, LOCK}  # by the next demo; the claim is a lock on the second

console = Console()


def main() -> None:
    """Draw, train, compare, report."""
    args = parse_args()
    start = time.time()
    console.rule('pera_mm: PerA pre-training on drawn scenes')
    with stopped_in_one_line(), errors_in_one_sentence():
        check_folder(args.work_dir)
        with Claim(args.work_dir):
            draw_scenes()
            model = pretrain(args.work_dir, args.seed)
            console.print(probe_table(args.work_dir))
            verdict = verdict_on(args.work_dir, Config.fromfile(CONFIG))
            report = draw_report(args.work_dir, model, shown_images(model), verdict=verdict)
    console.print(f'Losses, probe, reconstructions and attention: [bold]{report}[/]\n'
                  f'Log and checkpoints: {args.work_dir}\n'
                  f'Took {(time.time() - start) / 60:.1f} minutes.')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'),
                        help='an earlier demo there is replaced')
    parser.add_argument('--seed', type=whole_number(0), default=10)
    args = parser.parse_args()
    if args.seed >= SEEDS:
        parser.error(f'argument --seed: expected a number below {SEEDS}, got {args.seed}')
    return args


def draw_scenes() -> None:
    """Fill data/scenes, a folder on each of two cores; scenes of an earlier start stay."""
    unlabeled, labelled = (Path('data/scenes') / kind for kind in ('unlabeled', 'classification'))
    with Pool(1) as other, progress() as bars:  # a Pool ends its process at Ctrl-C
        done = other.apply_async(write_scenes, (unlabeled, unlabeled.name, UNLABELED, SIZE))
        write_scenes(labelled, labelled.name, LABELLED, SIZE,
                     track=partial(bars.track, description='drawing scenes'))
        done.get()


def pretrain(work_dir: Path, seed: int) -> torch.nn.Module:
    """Run the config and return the trained model."""
    cfg = Config.fromfile(CONFIG)
    cfg.work_dir = str(work_dir)
    cfg.randomness.seed = seed
    remove_earlier_demo(work_dir)
    runner = build_quietly(cfg)
    with progress() as bars:
        runner.register_hook(ProgressHook(bars), priority='LOWEST')
        return runner.train()


def check_folder(work_dir: Path) -> None:
    """Check that a folder is missing, empty or that of an earlier demo.

    Raises:
        UserError: if it holds anything else.
    """
    held = {path.name for path in work_dir.iterdir()} if work_dir.exists() else set()
    if MARKER not in held and held - KEPT:
        raise UserError(f'{work_dir} has no {MARKER}, so it may hold something other than a demo: '
                        'if it is that of an older version, delete it yourself, else choose '
                        'another --work-dir.')


def remove_earlier_demo(work_dir: Path) -> None:
    """Empty the folder of an earlier demo, and never any other, for the next one."""
    check_folder(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / MARKER).touch()
    for path in work_dir.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in KEPT:
            path.unlink()


def build_quietly(cfg: Config) -> Runner:
    """Build a runner whose log goes to its file; the terminal shows progress and errors."""
    with redirect_stdout(io.StringIO()):  # MMEngine prints machine and config while it builds
        runner = Runner.from_cfg(cfg)
    for handler in runner.logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setStream(sys.stderr)
            handler.setLevel(logging.ERROR)
    return runner


class ProgressHook(Hook):
    """A progress bar over all iterations, with the remaining time and the losses."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars

    def before_train(self, runner: Runner) -> None:
        self.task = self.bars.add_task('pre-training', total=runner.max_iters)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        losses = ' '.join(f'{name[5:]} {value.item():.2f}'
                          for name, value in (outputs or {}).items() if name.startswith('loss_'))
        self.bars.update(self.task, advance=1, description=f'pre-training ({losses})')


def progress() -> Progress:
    return Progress(TextColumn('{task.description}'), BarColumn(), TaskProgressColumn(),
                    TimeElapsedColumn(), TextColumn('left'), TimeRemainingColumn(),
                    console=console)


def probe_table(work_dir: Path) -> Table:
    """Make a table of the probe's first and last values."""
    scalars = read_scalars(work_dir)
    table = Table(title=f'Accuracy on {LABELLED // 2} unseen scenes, {len(LAND_USES)} land uses')
    for column in ('', 'random teacher', 'trained teacher', 'gain'):
        table.add_column(column, justify='left' if not column else 'right')
    for name, title in (('probe/knn', 'kNN, k = 10'), ('probe/linear', 'linear')):
        before, after = scalars[name].values[0], scalars[name].values[-1]
        table.add_row(title, f'{before:.1f} %', f'{after:.1f} %', f'{after - before:+.1f}')
    before, after = (100 * scalars['painting/explained'].values[at] for at in (0, -1))
    table.add_row('hidden pixels: variance explained', f'{before:.1f} %', f'{after:.1f} %',
                  f'{after - before:+.1f}')
    return table


def shown_images(model: torch.nn.Module) -> torch.Tensor:
    """Draw scenes that neither training nor probe has seen: uint8 ``[B, S, S, 3]``."""
    size = model.student.backbone.img_size[0]
    scenes = [draw_scene(name, SHOWN_SEED, size).image for name in LAND_USES[::2]]
    return torch.stack([torch.from_numpy(scene) for scene in scenes])


if __name__ == '__main__':
    main()
