"""Draw a pre-training run: losses, probe, health, reconstructions, attention.

    python tools/analysis/report.py work_dirs/pera_vitb_rsrsd --images data/AID

It writes ``report.png`` into the folder of the run, from its last checkpoint, and prints the
verdict on the run (docs/health.md). A sharded checkpoint cannot be drawn. Only a PerA with a
predictor has reconstructions. Files of weights alone are drawn by tools/analysis/figures.py.

Shapes: B images, S side in pixels, h x w patches.
"""

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from mmengine.config import Config
from torch import Tensor, nn

from pera_mm.errors import UserError
from pera_mm.evaluation.attention import cls_attention
from pera_mm.evaluation.features import read_evenly
from pera_mm.evaluation.painting import reconstruct
from pera_mm.evaluation.verdict import describe, judge_run, not_judged
from pera_mm.files import check_writable
from pera_mm.launch import errors_in_one_sentence
from pera_mm.models.selfsup.self_distillation import SelfDistillation
from pera_mm.options import whole_number
from pera_mm.registry import MODELS
from pera_mm.stopping import stopped_in_one_line
from pera_mm.weights.backbone import NormalizedViT, load_backbone
from pera_mm.weights.loading import load_checkpoint
from pera_mm.weights.pretraining import MaskRatios, mask_ratios

LOSSES = dict(loss_cls='agreement on prototypes', loss_pixel='pixel prediction',
              loss_ibot='agreement on hidden patches', loss_koleo='KoLeo')
ONLY_LOSS = dict(loss="the method's own")  # of MAE and MoCo v3
PROBES = {'probe/knn': 'kNN', 'probe/linear': 'linear', 'probe/knn_color': 'kNN of color alone'}
# The panels of health: title, unit of the x axis, and the names of the curves.
HEALTH = (
    ("spread of the teacher's answers", 'iteration',
     ('health/teacher_entropy', 'health/prototype_use', 'health/feature_std')),
    ('effective rank', 'iteration', ('health/feature_rank', )),
    ('two crops of an image, different images', 'iteration',
     ('health/alignment', 'health/uniformity')),
    ('variance: [cls] by color, painting', 'epoch',
     ('probe/color_share', 'painting/explained')))
VERDICT_WIDTH = 170  # characters of a line


class Curve(NamedTuple):
    """A logged number over iterations (train) or epochs (probe)."""

    steps: list[int]
    values: list[float]


def read_scalars(work_dir: str | Path) -> dict[str, Curve]:
    """Read all numbers that a run wrote to ``WORK_DIR/<time>/vis_data/scalars.json``.

    A resumed run writes a file of its own; where its steps overlap with those of an earlier
    start, the later start counts.

    Raises:
        ValueError: if the file does not exist.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not files:
        raise UserError(f"no */vis_data/scalars.json in '{work_dir}'; give the work folder of a "
                        'run whose visualizer has a LocalVisBackend.')
    curves: dict[str, Curve] = {}
    for file in files:
        for name, later in _read_file(file).items():
            earlier = curves.get(name, Curve([], []))
            kept = sum(step < later.steps[0] for step in earlier.steps)
            curves[name] = Curve(earlier.steps[:kept] + later.steps,
                                 earlier.values[:kept] + later.values)
    return curves


def _read_file(file: Path) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for line in file.read_text().splitlines():
        record = json.loads(line)
        step = record.pop('step')
        for name, value in record.items():
            curve = curves.setdefault(name, Curve([], []))
            curve.steps.append(step)
            curve.values.append(value)
    return curves


def verdict_on(work_dir: str | Path, cfg: Config) -> str:
    """Judge the run of ``work_dir`` by its scalars and its config, in lines of text."""
    scalars = {name: curve.values for name, curve in read_scalars(work_dir).items()}
    return describe(judge_run(scalars, cfg), not_judged(scalars))


def draw_report(work_dir: str | Path, model: nn.Module, images: Tensor,
                out: str | Path | None = None, verdict: str = '') -> Path:
    """Draw the run of ``work_dir`` and the outputs of its model for some images.

    Args:
        work_dir: of the run, with its scalars.
        model: trained: a :class:`SelfDistillation`, or a :class:`NormalizedViT`. Without a
            predictor the reconstructions are left out.
        images: uint8 RGB ``[B, S, S, 3]``, S a multiple of the patch size.
        out: PNG file; default ``WORK_DIR/report.png``.
        verdict: lines to write below the pictures.

    Returns:
        The file that was written.
    """
    curves = read_scalars(work_dir)
    out = Path(work_dir) / 'report.png' if out is None else Path(out)
    top = 2 if any(name in curves for _, _, names in HEALTH for name in names) else 1
    figure = Figure(figsize=(12, 3.2 * top + 2.6 * len(images)), layout='constrained')
    grid = GridSpec(top + len(images), 4, figure,
                    height_ratios=[1.15] * top + [1] * len(images))
    teacher = isinstance(model, SelfDistillation)
    method = f'{type(model).__name__} ' if teacher else ''
    figure.suptitle(f'{method}pre-training: {Path(work_dir).resolve().name}')
    lines = [line for each in verdict.splitlines() for line in textwrap.wrap(each, VERDICT_WIDTH)]
    figure.supxlabel('\n'.join(lines), x=0.01, ha='left', fontsize=9)
    _draw_curves(figure, grid, curves)
    _draw_health(figure, grid, curves)
    originals = images.cpu().numpy()
    columns: list[tuple[str, np.ndarray]] = [('original', originals)]
    if getattr(model, 'predictor', None) is not None:
        ratios = mask_ratios(work_dir) or MaskRatios()
        triplets = reconstruct(model, images, *ratios)
        columns = [('what the student sees', triplets.masked),
                   (f'what it paints: {triplets.explained:.0%} of the variance',
                    triplets.predicted), *columns]
    heads = last_attention(model, images).mean(dim=1)  # [B, h, w]
    for row in range(len(images)):
        for column, (title, pictures) in enumerate(columns):
            axes = figure.add_subplot(grid[top + row, column])
            axes.imshow(pictures[row])
            _bare(axes, title if row == 0 else '')
        axes = figure.add_subplot(grid[top + row, len(columns)])
        _draw_attention(axes, originals[row], heads[row].numpy())
        _bare(axes, f"attention of {'the teacher' if teacher else 'the encoder'}'s [cls]"
              if row == 0 else '')
    figure.savefig(out, dpi=100)
    return out


def last_attention(model: nn.Module, images: Tensor) -> Tensor:
    """Compute the attention of [cls] in the last layer, of the teacher where there is one.

    Args:
        model: a :class:`SelfDistillation`, or a :class:`NormalizedViT`.
        images: uint8 RGB ``[B, S, S, 3]``.

    Returns:
        As :func:`cls_attention`, ``[B, heads, h, w]``.
    """
    if isinstance(model, SelfDistillation):
        return cls_attention(model.teacher.backbone, model.data_preprocessor.normalize(images))[0]
    return cls_attention(model.vit, model.normalize(images.movedim(-1, 1)))[0]


def _draw_curves(figure: Figure, grid: GridSpec, curves: dict[str, Curve]) -> None:
    """Draw the losses, then the probe, from left to right."""
    named = LOSSES if any(name in curves for name in LOSSES) else ONLY_LOSS
    losses = [name for name in named if name in curves]
    for column, name in enumerate(losses):
        axes = figure.add_subplot(grid[0, column])
        axes.plot(*curves[name], color='tab:blue')
        _label(axes, f'{name}: {named[name]}', 'iteration')
    probes = [name for name in PROBES if name in curves]
    if not probes:
        return
    axes = figure.add_subplot(grid[0, len(losses)])
    for name, color in zip(PROBES, ('tab:orange', 'tab:green', 'tab:gray')):
        if name in curves:
            steps, values = curves[name]
            axes.plot(steps, values, 'o-', markersize=3, color=color,
                      label=f'{PROBES[name]}: {values[0]:.1f} → {values[-1]:.1f}')
    axes.legend(fontsize=8)
    _label(axes, 'probe of the teacher, accuracy in %', 'epoch')


def _draw_health(figure: Figure, grid: GridSpec, curves: dict[str, Curve]) -> None:
    """Draw the panels of :data:`HEALTH` for which the run has numbers, below the losses."""
    for column, (title, x, names) in enumerate(HEALTH):
        found = [name for name in names if name in curves]
        if not found:
            continue
        axes = figure.add_subplot(grid[1, column])
        for name in found:
            steps, values = curves[name]
            axes.plot(steps, values, label=f'{name.partition("/")[2]}: {values[-1]:.3g}')
        axes.legend(fontsize=8)
        _label(axes, title, x)


def _label(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def _draw_attention(axes: Axes, image: np.ndarray, attention: np.ndarray) -> None:
    """Draw the image in gray under its attention, stretched from the least to the most."""
    side = image.shape[0]
    axes.imshow(image.mean(axis=-1), cmap='gray', vmin=0, vmax=255)
    axes.imshow(attention, cmap='inferno', alpha=0.6, interpolation='bicubic',
                extent=(-0.5, side - 0.5, side - 0.5, -0.5))


def _bare(axes: Axes, title: str) -> None:
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)


# -- the command line -----------------------------------------------------------------------


def load_run(work_dir: str | Path) -> tuple[Config, nn.Module]:
    """Load the config of a run and its model with the last checkpoint, on the CPU.

    Returns:
        The config, and a :class:`SelfDistillation`; of another method the ViT as a
        :class:`NormalizedViT`.

    Raises:
        ValueError: if the folder has no config, or no checkpoint in one file.
    """
    work_dir = Path(work_dir)
    if work_dir.is_file():
        raise UserError(f"'{work_dir}' is a file, and the report is of a run: give its work folder,"
                        ' or draw these weights with tools/analysis/figures.py.')
    configs = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    pointer = work_dir / 'last_checkpoint'
    if not configs or not pointer.is_file():
        raise UserError(f"'{work_dir}' needs the config (*.py) and the file last_checkpoint that "
                        'a training run writes into its work folder.')
    checkpoint = work_dir / Path(pointer.read_text().strip()).name  # the folder may have moved
    if checkpoint.is_dir():
        raise UserError(f"'{checkpoint}' is sharded (FSDP or DeepSpeed); the report needs a "
                        'checkpoint in one file.')
    cfg = Config.fromfile(configs[-1])
    kind = MODELS.get(cfg.model['type'])
    if kind is None or not issubclass(kind, SelfDistillation):
        return cfg, load_backbone(checkpoint)
    model = MODELS.build(cfg.model)
    model.load_state_dict(load_checkpoint(checkpoint)['state_dict'])
    return cfg, model


def pick_images(folder: str, number: int, size: int) -> Tensor:
    """Read images spread evenly over a folder: uint8 RGB ``[B, size, size, 3]``.

    Raises:
        ValueError: if the folder is missing or has no readable image.
    """
    images = read_evenly(folder, number, size)
    if not images:
        raise UserError(f"no readable images in the folder '{folder}'; give one with --images.")
    return torch.from_numpy(np.stack(images))


def _probe_folder(cfg: Config) -> str:
    hooks: list[Any] = [*cfg.get('custom_hooks', []), *cfg.get('default_hooks', {}).values()]
    for hook in hooks:
        if hook and hook['type'] == 'pera_mm.ProbeHook':
            return hook['data_root']
    raise UserError('this run has no ProbeHook whose images could be shown; give a folder of '
                    'images with --images.')


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the report of a finished or running pre-training."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('work_dir', metavar='WORK_DIR')
    parser.add_argument('--images', metavar='FOLDER',
                        help="images to show (default: the probe's of the config)")
    parser.add_argument('--number', type=whole_number(1), default=5,
                        help='images to show (default: 5)')
    parser.add_argument('--out', metavar='PNG', type=Path, help='default: WORK_DIR/report.png')
    args = parser.parse_args(argv)
    cfg, model = load_run(args.work_dir)
    out = args.out or Path(args.work_dir) / 'report.png'
    if out.suffix.lower() != '.png':
        raise UserError(f'--out must end with .png, not {out}.')
    check_writable(out.parent, 'give another --out')
    side = model.img_size if isinstance(model, NormalizedViT) else (
        model.student.backbone.img_size[0])  # the global crops of the training
    images = pick_images(args.images or _probe_folder(cfg), args.number, side)
    verdict = verdict_on(args.work_dir, cfg)
    print(verdict)
    print(f'wrote {draw_report(args.work_dir, model, images, out, verdict)}')


if __name__ == '__main__':
    with stopped_in_one_line(), errors_in_one_sentence():
        main()
