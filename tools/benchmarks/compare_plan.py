"""What compare.py runs: the rows of the table, and the commands of each seed."""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.config import Config
from pretrain import stretch, training_images
from probe import labelled_split, validation_split
from runs import ROOT, Step, TrainingJob

from pera_mm.errors import UserError
from pera_mm.evaluation.features import read_labelled_folder
from pera_mm.files import write_whole
from pera_mm.launch import load_config
from pera_mm.options import add_cfg_options
from pera_mm.patches import patch_grid

BENCHMARKS = ROOT / 'tools/benchmarks'
BANDS, CONVOLUTIONS = 'band statistics', 'random convolutional features'
RANDOM, SUPERVISED = 'random weights', 'supervised from scratch'
FLOORS = {BANDS: 'bands', CONVOLUTIONS: 'convolutions', RANDOM: 'vit'}  # --features of probe.py
CALIBRATION = 20  # steps
LEAST = 4  # steps of a budget
SEARCH = 0.2  # of the budget, for each learning rate of the grid
LR = 'optim_wrapper.optimizer.lr'


class Row(NamedTuple):
    """A row of the table."""

    name: str
    config: Path  # its ViT and, if it is pre-trained, all its settings
    options: tuple[str, ...] = ()  # KEY=VALUE
    data: str = ''  # to pre-train on; empty for floors and supervised training

    @property
    def trains(self) -> bool:
        return self.name not in FLOORS

    @property
    def folder(self) -> str:
        return self.name.replace(', ', '_').replace(' ', '_')


class Run(NamedTuple):
    """A row with one seed and one learning rate (None: the config's), in its own folder.

    It counts for the table, or is a short one of the search for a learning rate.
    """

    row: Row
    seed: int
    lr: float | None
    folder: Path
    steps: int  # of pre-training; 0 for a floor
    counts: bool
    job: TrainingJob

    def result(self) -> dict | None:
        """Return scores in percent and the cost of training; None if it is not finished."""
        if self.job.next_step() is not None:
            return None
        return {key: value for step in self.job.steps
                for key, value in json.loads(step.result.read_text()).items()}

    def outcomes(self) -> dict[str, np.ndarray]:
        """Return for each score whether each test image is right, ``[M]``."""
        with np.load(self.folder / 'probe.npz') as file:
            return dict(file)


def table_rows(args: argparse.Namespace) -> list[Row]:
    """List the rows: configs, variants of the first one, and what they are compared with.

    Raises:
        SystemExit: if the arguments do not fit together.
        ValueError: if a folder is missing or has too few images.
    """
    if len(args.data) > 1 and args.probe_data is None:
        raise SystemExit('Several --data: name the images to score on with --probe-data.')
    args.probe_data = args.probe_data or args.data[0]
    settings = [(path.stem, path, ()) for path in args.configs]
    settings += [(name, args.configs[0], tuple(options)) for name, *options in args.variant]
    for name, *options in args.variant:
        if not options or any('=' not in option for option in options):
            raise SystemExit(f'--variant {name}: expected NAME KEY=VALUE ...')
    folders = [Path(data).resolve().name for data in args.data]
    for kind, names in (('rows', [name for name, *_ in settings] + [*FLOORS, SUPERVISED]),
                        ('--data folders', folders)):
        if len(set(names)) < len(names):
            raise SystemExit(f'Two {kind} have the same name, which is their row in the table: '
                             f'{", ".join(names)}.')
    labels = read_labelled_folder(args.probe_data).labels
    share = 1. if args.train_share is None else args.train_share
    for seed in args.seeds:  # raises now and not in an hour
        validation_split(labels, labelled_split(labels, share, seed))
    for folder in args.data:
        training_images(folder, args.probe_data)
    rows = [Row(name if len(args.data) == 1 else f'{name}, {folder}', config, options, data)
            for name, config, options in settings for data, folder in zip(args.data, folders)]
    for row in rows:
        cfg = resolved(args, row, args.seeds[0])
        if args.size:
            patch_grid(args.size, args.size, cfg.model.backbone.get('patch_size', 16))
    return [*rows, *(Row(name, args.configs[0]) for name in (SUPERVISED, *FLOORS))]


def known_rates(args: argparse.Namespace, rows: list[Row]) -> dict[Row, float | None]:
    """Return the learning rate of each row in --lr; None is the config's.

    Raises:
        SystemExit: if a rate is of a row that does not train, or that the table does not have.
    """
    rates = dict(args.lr)
    names = [row.name for row in rows if row.trains]
    for name in rates:
        if name not in names:
            raise SystemExit(f'--lr {name}={rates[name]:g}: expected one of {", ".join(names)}.')
    return {row: rates.get(row.name) for row in rows}


def resolved(args: argparse.Namespace, row: Row, seed: int, lr: float | None = None) -> Config:
    """Load the config of a row with its options, as pretrain.py does."""
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    parsed = parser.parse_args(['--cfg-options', *cfg_options(args, row, seed, lr)])
    return load_config(argparse.Namespace(config=str(row.config), work_dir='', launcher='none',
                                          local_rank=0, cfg_options=parsed.cfg_options))


def cfg_options(args: argparse.Namespace, row: Row, seed: int, lr: float | None) -> list[str]:
    rate = [] if lr is None else [f'{LR}={lr:g}']
    return [f'randomness.seed={seed}', *args.cfg_options, *row.options, *rate]


def calibration(args: argparse.Namespace, row: Row) -> TrainingJob:
    """Plan the short measured run that turns CPU seconds into steps."""
    folder = args.work_dir / row.folder / 'calibration'
    write_config(args, row, args.seeds[0], None, folder, CALIBRATION)
    step = train_step(args, row, args.seeds[0], None, folder, CALIBRATION)
    return TrainingJob(f'{row.name}, calibration', folder / 'output.txt', (step, ))


def budget_steps(args: argparse.Namespace, row: Row) -> int:
    """Return the steps of a row's budget; that in CPU seconds needs its calibration.

    Supervised training has the budget of the first config, in steps of that config's batch.

    Raises:
        ValueError: if the budget is less than a few steps.
    """
    cfg = resolved(args, row, args.seeds[0])
    batch_size = cfg.train_dataloader.batch_size
    if args.budget_cpu_seconds:
        cost = json.loads((args.work_dir / row.folder / 'calibration/training.json').read_text())
        images = args.budget_cpu_seconds / cost['cpu_seconds'] * cost['images']
    elif args.budget_images:
        images = args.budget_images
    else:
        count = len(training_images(row.data or args.data[0], args.probe_data))
        images = (args.epochs or cfg.train_cfg.max_epochs) * count
    steps = int(images // batch_size)
    if steps < LEAST:
        raise UserError(f'the budget is {steps} steps of {batch_size} images for {row.name}: give '
                        f'it {LEAST} or more.')
    return steps


def plan_run(args: argparse.Namespace, row: Row, seed: int, lr: float | None = None) -> Run:
    """Plan the training of a row with the whole budget, if it trains, and its probe.

    Raises:
        SystemExit: if the folder holds a run with other settings.
    """
    steps = budget_steps(args, row) if row.trains else 0
    return plan(args, row, seed, lr, args.work_dir / row.folder / f'seed{seed}', steps)


def plan_search(args: argparse.Namespace, row: Row, lr: float) -> Run:
    """Plan a short training of the first seed that shows what a learning rate is worth."""
    steps = max(LEAST, int(SEARCH * budget_steps(args, row)))
    folder = args.work_dir / row.folder / f'search_lr{lr:g}'
    return plan(args, row, args.seeds[0], lr, folder, steps, counts=False)


def plan(args: argparse.Namespace, row: Row, seed: int, lr: float | None, folder: Path, steps: int,
         counts: bool = True) -> Run:
    config = write_config(args, row, seed, lr, folder, steps)
    commands, checkpoint = [], None
    if row.trains:
        checkpoint = folder / 'train' if row.data else folder / 'train/backbone.pth'
        commands.append(train_step(args, row, seed, lr, folder, steps, hold_out=not counts))
    # The name of a pre-training's checkpoint is not known before, so the probe gets the folder.
    commands.append(Step(
        (sys.executable, str(BENCHMARKS / 'probe.py'), str(config),
         *([] if checkpoint is None else [str(checkpoint)]), '--data', args.probe_data,
         *share_option(args), *size_option(args), '--features', FLOORS.get(row.name, 'vit'),
         '--epochs', str(args.finetune_epochs if counts else 0), '--seed', str(seed),
         '--json', str(folder / 'probe.json')), folder / 'probe.json'))
    name = f'{row.name}, ' + (f'seed {seed}' if counts else f'learning rate {lr:g}')
    return Run(row, seed, lr, folder, steps, counts,
               TrainingJob(name, folder / 'output.txt', tuple(commands)))


def train_step(args: argparse.Namespace, row: Row, seed: int, lr: float | None, folder: Path,
               steps: int, hold_out: bool = False) -> Step:
    """Plan a training in ``folder``, which has a config.json and will have a training.json.

    With ``hold_out`` no label of the validation blocks is learned.
    """
    result = folder / 'training.json'
    where = ('--work-dir', str(folder / 'train'), '--json', str(result))
    if row.data:
        return Step((sys.executable, str(BENCHMARKS / 'pretrain.py'), str(row.config), *where,
                     '--data', row.data, '--probe-data', args.probe_data, '--steps', str(steps),
                     '--cfg-options', *cfg_options(args, row, seed, lr)), result)
    images = steps * resolved(args, row, seed).train_dataloader.batch_size
    rate = [] if lr is None else ['--lr', f'{lr:g}']
    return Step((sys.executable, str(BENCHMARKS / 'supervised.py'), str(folder / 'config.json'),
                 *where, '--data', args.probe_data, '--images', str(images), *share_option(args),
                 *size_option(args), '--seed', str(seed), *rate,
                 *(['--hold-out'] if hold_out else [])), result)


def size_option(args: argparse.Namespace) -> list[str]:
    return ['--size', str(args.size)] if args.size else []


def share_option(args: argparse.Namespace) -> list[str]:
    return ['--train-share', f'{args.train_share:g}'] if args.train_share else []


def write_config(args: argparse.Namespace, row: Row, seed: int, lr: float | None, folder: Path,
                 steps: int) -> Path:
    """Write the settings of a run, and refuse a folder with other settings.

    They hold no path of this machine, so that a work folder may be moved to another one.
    """
    cfg = resolved(args, row, seed, lr)
    if row.data:
        stretch(cfg, steps)
    settings = dict(cfg.to_dict(), comparison=dict(
        data=row.data, probe_data=args.probe_data, size=args.size, steps=steps, lr=lr,
        finetune_epochs=args.finetune_epochs,
        **(dict(train_share=args.train_share) if args.train_share else {})))
    path, text = folder / 'config.json', json.dumps(settings, indent=1, default=str)
    if path.exists() and path.read_text() != text:
        raise SystemExit(f'{folder} holds a run with other settings (see {path}): delete it, or '
                         'give another --work-dir.')
    write_whole(path, text.encode())
    return path


def best_learning_rates(runs: list[Run]) -> dict[Row, float | None]:
    """Choose for each row the learning rate of the best kNN on the validation blocks.

    Those blocks are a quarter of the training half, so the test has no say. Rows without a
    finished search are left out.
    """
    best: dict[Row, Run] = {}
    for run in runs:
        if not run.counts and run.result() is not None and (
                run.row not in best or validation(run) > validation(best[run.row])):
            best[run.row] = run
    return {row: run.lr for row, run in best.items()}


def validation(run: Run) -> float:
    return json.loads((run.folder / 'probe.json').read_text())['knn_validation']
