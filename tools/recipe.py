"""Work out the settings of a PerA run for your own number of images, and write its config.

    python tools/recipe.py --images 20000 --data data/my_tiles -o configs/pera/my_tiles.py
    python tools/recipe.py --images 1400 --side 256 --model demo --gpus 1 --budget 40 epochs
    python tools/recipe.py --images 50000 --budget 24 hours --images-per-second 900

The authors' settings are those of five million images and 200 epochs, and for these the tool gives
them back. For fewer images it keeps what is a share of the run a share of the run. Each setting is
printed with its reason and its source: "authors" is Configs/pera_vitb.yaml (pera_vitg.yaml for
giant), "measured" is docs/measurements.md, "Settings that follow the data".

--images-per-second is that of all GPUs together; tools/benchmarks/resources.py measures it.
"""

import argparse
import math
import os
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from pera_mm.errors import UserError
from pera_mm.files import write_whole
from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import positive_number, whole_number

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
BATCH = 192  # the paper's
LEAST_STEPS = {'epoch': 40, 'run': 400}
SHORTEST = 20  # steps of a run; a tenth of them warms up
PROTOTYPES = 131072  # the authors'
MEMORY = 20  # the teacher remembers, at its start, this part of the run: a twentieth
LEAST_MEMORY = 10  # steps
SHORT = 5000  # steps; in a run of fewer the whole pixel loss takes too much from [cls]
CROP_SHARE = 7 / 8  # of the side of an image: 448 of 512 px
LOCAL_GRID = 6  # patches along a local crop: 96 px in patches of 16
# Patches along a global crop, and their side in pixels, from the most wanted on.
GRIDS = ((28, 16), (28, 8), (28, 4), (14, 4))
SMALL_GRIDS = ((14, 8), (14, 4))  # of the demo's ViT: the least that still works, for a CPU


class Model(NamedTuple):
    """What depends on the size of the ViT."""

    base: str  # config that the recipe inherits from
    width: int
    momentum: float  # share of the old teacher that stays, in the authors' run
    temperature: tuple[float, float]  # of the teacher, at the start and after its warm-up
    grids: tuple[tuple[int, int], ...] = GRIDS
    short_pixels: float = 0.1  # share of the pixel weight that a short run has


MODELS = {
    # Its student paints from the first steps on, so that the pixel loss is worth more.
    'demo': Model('small/pera_short.py', 128, 0.992, (0.03, 0.05), SMALL_GRIDS, short_pixels=0.5),
    'small': Model('pera/pera_vits_rsrsd.py', 384, 0.992, (0.03, 0.05)),
    'base': Model('pera/pera_vitb_rsrsd.py', 768, 0.992, (0.03, 0.05)),
    'giant': Model('pera/pera_vitg_rsrsd.py', 1024, 0.998, (0.02, 0.03)),
}


class Recipe(NamedTuple):
    """The settings of a run."""

    model: str
    batch: int  # of all GPUs together
    batch_reason: str
    gpus: int
    epochs: int
    steps: int
    crop: int  # sides in pixels
    local_crop: int
    patch: int
    prototypes: int
    warmup: float  # epochs of the learning rate
    temperature_warmup: float  # epochs
    momentum: float
    pixel_weight: float


def main() -> None:
    args = parse_args()
    with errors_in_one_sentence('recipe'):
        if args.output and args.output.exists():
            raise UserError(f'{args.output} exists and may hold changes of yours: delete it, or '
                            'give another -o.')
        recipe = work_out(args)
        Console().print(explain(recipe, args.images))
        if args.output:
            write_whole(args.output, config_text(recipe, args).encode())
            print(f'Written: {args.output}\nStart it with: '
                  f'{"python tools/train.py" if args.gpus == 1 else "tools/dist_train.sh"} '
                  f'{args.output}{"" if args.gpus == 1 else f" {args.gpus}"}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=whole_number(1), required=True,
                        help='number of your images')
    parser.add_argument('--side', type=whole_number(1), default=512, help='of the images, px')
    parser.add_argument('--budget', nargs=2, default=('200', 'epochs'),
                        metavar=('N', '{epochs,steps,hours}'), help="the paper's 200 epochs")
    parser.add_argument('--images-per-second', type=positive_number, help='for a budget in hours')
    parser.add_argument('--model', choices=MODELS, default='base')
    parser.add_argument('--gpus', type=whole_number(1), default=8)
    parser.add_argument('--data', default='data/my_tiles', help='folder of the images')
    parser.add_argument('-o', '--output', type=Path, help='config to write')
    return parser.parse_args()


def work_out(args: argparse.Namespace) -> Recipe:
    """Derive all settings from the number of images, their side, and the budget.

    Raises:
        ValueError: for images that are too few or too small, or a budget that is not one.
    """
    if args.images < 2 * args.gpus:
        raise UserError(f'--images {args.images} on --gpus {args.gpus} is less than two images a '
                        'step for each GPU: give it more images or fewer GPUs.')
    model = MODELS[args.model]
    batch, batch_reason = batch_size(args)
    epoch = args.images // batch
    epochs = budget_epochs(args, epoch, batch)
    steps = epochs * epoch
    if steps < SHORTEST:
        raise UserError(f'The budget gives {steps} steps: a schedule needs {SHORTEST} or more.')
    crop, local_crop, patch = sides(args)
    return Recipe(
        model=args.model, batch=batch, batch_reason=batch_reason, gpus=args.gpus, epochs=epochs,
        steps=steps, crop=crop, local_crop=local_crop, patch=patch,
        prototypes=prototypes(args.images),
        warmup=epochs / 10, temperature_warmup=3 * epochs / 20, momentum=momentum(model, steps),
        pixel_weight=pixel_weight(model, patch, steps))


def batch_size(args: argparse.Namespace) -> tuple[int, str]:
    """Return the paper's 192, or less where an epoch or the run would have too few steps; and why.

    Each GPU has the same number of images, at least two.
    """
    number, unit = budget(args)
    wanted = min(BATCH, args.images / LEAST_STEPS['epoch'])
    if unit != 'steps':
        seen = number * (args.images if unit == 'epochs' else 3600 * args.images_per_second)
        wanted = min(wanted, seen / LEAST_STEPS['run'])
    if wanted / args.gpus < 2:
        return 2 * args.gpus, 'two for each GPU, the least that KoLeo can compare'
    if wanted == BATCH:
        total = args.gpus * round(BATCH / args.gpus)
        return total, "the paper's 192" + ('' if total == BATCH else ', in equal parts')
    per_gpu = int(wanted / args.gpus)
    total = args.gpus * (per_gpu if per_gpu < 8 else per_gpu // 8 * 8)
    return total, f'{args.images // total} steps an epoch: few images give more in more steps'


def budget(args: argparse.Namespace) -> tuple[float, str]:
    """Return the budget as a number and its unit.

    Raises:
        ValueError: for a number that is not positive, an unknown unit, or hours without a speed.
    """
    text, unit = args.budget
    try:
        number = float(text)
    except ValueError:
        number = 0.
    if not 0 < number < math.inf or unit not in ('epochs', 'steps', 'hours'):
        raise UserError(f'--budget {text} {unit}: expected a positive number and epochs, steps or '
                        'hours.')
    if unit == 'hours' and not (args.images_per_second or 0) > 0:
        raise UserError('A budget in hours needs --images-per-second, that of all GPUs together; '
                        'tools/benchmarks/resources.py measures it.')
    return number, unit


def budget_epochs(args: argparse.Namespace, steps_per_epoch: int, batch: int) -> int:
    """Turn the budget into whole epochs, without exceeding it.

    Raises:
        ValueError: for a budget of less than one epoch.
    """
    number, unit = budget(args)
    per_hour = 3600 * (args.images_per_second or 0) / batch  # steps
    epochs = {'epochs': number, 'steps': number / steps_per_epoch,
              'hours': number * per_hour / steps_per_epoch}[unit]
    if epochs < 1:
        raise UserError(f'--budget {" ".join(args.budget)} is less than one pass over '
                        f'{args.images:,} images ({steps_per_epoch:,} steps of {batch}): raise it, '
                        'or train on a part of the images.')
    return int(epochs)


def sides(args: argparse.Namespace) -> tuple[int, int, int]:
    """Return the sides of a global crop, a local crop and a patch, in pixels.

    The paper's crops of 448 and 96 px have 28 x 28 and 6 x 6 patches of 16 px. Smaller images keep
    these numbers with smaller patches as long as a crop has at most 7/8 of an image's side.

    Raises:
        ValueError: for images that are too small for the least number of patches.
    """
    for grid, patch in MODELS[args.model].grids:
        if grid * patch <= CROP_SHARE * args.side:
            return grid * patch, LOCAL_GRID * patch, patch
    least = math.ceil(grid * patch / CROP_SHARE)
    raise UserError(f'--side {args.side} px is too small: a crop needs {grid} x {grid} patches of '
                    f'{patch} px, so images of {least} px or more.')


def prototypes(images: int) -> int:
    """Return about as many prototypes as images, a power of two, at most the paper's 131,072."""
    return min(PROTOTYPES, max(2**math.ceil(math.log2(images)), 64))


def momentum(model: Model, steps: int) -> float:
    """Return the share of the old teacher that stays, so that it remembers a part of the run."""
    memory = min(1 / (1 - model.momentum), max(steps / MEMORY, LEAST_MEMORY))  # steps
    return round(1 - 1 / memory, 4)


def pixel_weight(model: Model, patch: int, steps: int) -> float:
    """Return the authors' weight per value of a patch, and a part of it in a short run."""
    return 0.01 * (16 / patch)**2 * (model.short_pixels if steps < SHORT else 1)


def explain(recipe: Recipe, images: int) -> Table:
    """Make a table of every setting with its reason and its source."""
    model = MODELS[recipe.model]
    table = Table(title=f'PerA ({recipe.model}) on {images:,} images: {recipe.epochs} epochs, '
                        f'{recipe.steps:,} steps, {recipe.steps * recipe.batch:,} images seen')
    for column in ('setting', 'value', 'reason', 'source'):
        table.add_column(column)
    for row in reasons(recipe, model):
        table.add_row(*row)
    return table


def reasons(recipe: Recipe, model: Model) -> list[tuple[str, str, str, str]]:
    """Say for every setting where its value comes from."""
    measured = 'measured'
    start, end = model.temperature
    grid, local = recipe.crop // recipe.patch, recipe.local_crop // recipe.patch
    memory = round(1 / (1 - recipe.momentum))  # steps
    return [
        ('batch', f'{recipe.batch} ({recipe.gpus} x {recipe.batch // recipe.gpus})',
         recipe.batch_reason, source(recipe.batch == BATCH, measured)),
        ('learning rate', '0.001', 'the peak; three times as much is no better', 'authors'),
        ('its warm-up', f'{recipe.warmup:g} epochs', 'a tenth of the run', 'authors'),
        ('global crop', f'{recipe.crop} px', f'{grid} x {grid} patches, at most 7/8 of the side',
         source((grid, recipe.patch) == GRIDS[0], measured)),
        ('local crop', f'{recipe.local_crop} px', f'{local} x {local} patches', 'authors'),
        ('patch', f'{recipe.patch} px', 'the number of tokens counts, not their pixels', source(
            recipe.patch == GRIDS[0][1], measured)),
        ('prototypes', f'{recipe.prototypes}', 'as many as images, to a power of two, and at '
         f'most {PROTOTYPES}', source(recipe.prototypes == PROTOTYPES, measured)),
        ('teacher momentum', f'{recipe.momentum:g}, rising to 1',
         f'it remembers {memory} steps' + (
             ", as the authors'" if recipe.momentum == model.momentum else
             f', about 1/{MEMORY} of the run' if memory > LEAST_MEMORY else ', the least'),
         source(recipe.momentum == model.momentum, measured)),
        ('teacher temperature', f'{start:g} to {end:g}', "the authors' for this ViT", 'authors'),
        ('its warm-up', f'{recipe.temperature_warmup:g} epochs', '15 % of the run', 'authors'),
        ('pixel weight', f'{recipe.pixel_weight:g}',
         f'0.01 per patch of 768 values (here {3 * recipe.patch**2})' + (
             f', times {model.short_pixels:g} below {SHORT:,} steps'
             if recipe.steps < SHORT else ''),
         source(recipe.steps >= SHORT, measured)),
    ]


def source(authors: bool, other: str) -> str:
    return 'authors' if authors else other


def config_text(recipe: Recipe, args: argparse.Namespace) -> str:
    """Write a config of 15 lines that inherits from ours."""
    model = MODELS[recipe.model]
    base = os.path.relpath(CONFIGS / model.base, args.output.absolute().parent)
    start, end = model.temperature
    return f'''"""PerA on {args.images:,} images of {args.side} px, by tools/recipe.py."""
_base_ = {base!r}
crops = dict(global_crops=dict(size={recipe.crop}), local_crops=dict(size={recipe.local_crop}))
pipeline = dict(crops=crops, mask=dict(patch_size={recipe.patch}))
dataset = dict(source={args.data!r}, pipeline=pipeline)
train_dataloader = dict(batch_size={recipe.batch // recipe.gpus}, dataset=dataset)
backbone = dict(img_size={recipe.crop}, patch_size={recipe.patch})
model = dict(backbone=backbone, projector=dict(num_prototypes={recipe.prototypes}),
             pixel=dict(loss_weight={recipe.pixel_weight:g}))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = param_scheduler[1].begin = {recipe.warmup:g}  # epochs
teacher_temp = dict(start={start:g}, end={end:g}, warmup_epochs={recipe.temperature_warmup:g})
momentum = dict(start={recipe.momentum:g}, end=1.0)
default_hooks = dict(schedule=dict(teacher_temp=teacher_temp, momentum=momentum))
train_cfg = dict(max_epochs={recipe.epochs})
'''


if __name__ == '__main__':
    main()
