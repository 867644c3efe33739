"""Draw a run of PerA, DINO or DINOv2: losses, probe, health, reconstructions, attention.

    python tools/analysis/report.py work_dirs/pera_vitb_rsrsd --images data/AID

It writes ``report.png`` into the folder of the run, from its last checkpoint, and prints the
verdict on the run (docs/health.md). A sharded checkpoint and a run of another method (MAE, MoCo v3)
cannot be drawn. Only a PerA with a predictor has reconstructions.

Shapes: B images, S side in pixels, N = h * w patches, k patches of one part, p patch side.
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
from pera_mm.evaluation.features import read_evenly
from pera_mm.evaluation.painting import paint_hidden, variance_explained
from pera_mm.evaluation.verdict import describe, judge_run, not_judged
from pera_mm.launch import errors_in_one_sentence
from pera_mm.patches import patch_grid, unpatchify
from pera_mm.registry import MODELS
from pera_mm.weights.loading import load_checkpoint

LOSSES = dict(loss_cls='agreement on prototypes', loss_pixel='pixel prediction',
              loss_koleo='KoLeo')
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
HIDDEN_GRAY = 235  # 0-255; light, so that it does not look like painted pixels


class Curve(NamedTuple):
    """A logged number over iterations (train) or epochs (probe)."""

    steps: list[int]
    values: list[float]


class Triplets(NamedTuple):
    """The pictures that the student saw and painted, and the original; uint8 ``[B, S, S, 3]``."""

    masked: np.ndarray
    predicted: np.ndarray
    original: np.ndarray
    explained: float  # see variance_explained


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


def reconstruct(model: nn.Module, images: Tensor, visible: float = 0.2, per_pass: float = 0.2,
                seed: int = 0) -> Triplets:
    """Let the student paint everything that it does not see, see :func:`paint_hidden`.

    Args:
        model: a PerA with a predictor.
        images: uint8 RGB ``[B, S, S, 3]``, S a multiple of the patch size.
        visible: share of patches that the student sees (the student ratio of the run).
        per_pass: share of patches painted at a time (the learnable ratio of the run).
        seed: of the mask.
    """
    normalized = model.data_preprocessor.normalize(images)  # [B, 3, S, S]
    p, grid = model.patch_size, patch_grid(*normalized.shape[-2:], model.patch_size)
    painting = paint_hidden(model, normalized, visible, per_pass, seed)
    masked = _to_uint8(model, unpatchify(painting.patches, p, grid))
    cover = painting.hidden.unsqueeze(-1).expand(-1, -1, p * p)
    masked[unpatchify(cover, p, grid)[:, 0].cpu().numpy()] = HIDDEN_GRAY
    return Triplets(masked, _to_uint8(model, unpatchify(painting.painted, p, grid)),
                    images.cpu().numpy(), variance_explained(painting))


def _to_uint8(model: nn.Module, normalized: Tensor) -> np.ndarray:
    """Undo ``normalize``, whatever its mean and deviation: ``[B, 3, S, S]`` to ``[B, S, S, 3]``."""
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 1, 3)
    black, white = model.data_preprocessor.normalize(ends)  # [3, 1, 1] each
    pixels = (normalized - black) / (white - black) * 255
    return pixels.round().clamp(0, 255).byte().movedim(1, -1).cpu().numpy()


def cls_attention(model: nn.Module, images: Tensor) -> Tensor:
    """Compute the attention of the teacher's [cls] to each patch in the last layer.

    Args:
        model: gives ``teacher_features`` and ``data_preprocessor.normalize``.
        images: uint8 RGB ``[B, S, S, 3]``.

    Returns:
        float ``[B, heads, h, w]``; a map sums to 1 minus the attention of [cls] to itself.
    """
    normalized = model.data_preprocessor.normalize(images)
    attention = model.teacher.backbone.layers[-1].attn
    seen: list[Tensor] = []
    handle = attention.qkv.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        model.teacher_features(normalized)
    finally:
        handle.remove()
    qkv = seen[0].reshape(len(images), -1, 3, attention.num_heads, attention.head_dims)
    query, key = qkv[:, 0, 0], qkv[:, :, 1]  # [B, heads, d], [B, 1 + N, heads, d]
    scores = torch.einsum('bhd,bnhd->bhn', query, key) * attention.head_dims**-0.5
    grid = patch_grid(*normalized.shape[-2:], model.patch_size)
    return scores.softmax(dim=-1)[..., 1:].unflatten(-1, grid).cpu()


def verdict_on(work_dir: str | Path, cfg: Config) -> str:
    """Judge the run of ``work_dir`` by its scalars and its config, in lines of text."""
    scalars = {name: curve.values for name, curve in read_scalars(work_dir).items()}
    return describe(judge_run(scalars, cfg), not_judged(scalars))


def draw_report(work_dir: str | Path, model: nn.Module, images: Tensor,
                out: str | Path | None = None, verdict: str = '') -> Path:
    """Draw the run of ``work_dir`` and the outputs of its model for some images.

    Args:
        work_dir: of the run, with its scalars.
        model: trained; without a predictor the reconstructions are left out.
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
    figure.suptitle(f'PerA pre-training: {Path(work_dir).resolve().name}')
    lines = [line for each in verdict.splitlines() for line in textwrap.wrap(each, VERDICT_WIDTH)]
    figure.supxlabel('\n'.join(lines), x=0.01, ha='left', fontsize=9)
    _draw_curves(figure, grid, curves)
    _draw_health(figure, grid, curves)
    originals = images.cpu().numpy()
    columns: list[tuple[str, np.ndarray]] = [('original', originals)]
    if getattr(model, 'predictor', None) is not None:
        triplets = reconstruct(model, images)
        columns = [('what the student sees', triplets.masked),
                   (f'what it paints: {triplets.explained:.0%} of the variance',
                    triplets.predicted), *columns]
    heads = cls_attention(model, images).mean(dim=1)  # [B, h, w]
    for row in range(len(images)):
        for column, (title, pictures) in enumerate(columns):
            axes = figure.add_subplot(grid[top + row, column])
            axes.imshow(pictures[row])
            _bare(axes, title if row == 0 else '')
        axes = figure.add_subplot(grid[top + row, len(columns)])
        _draw_attention(axes, originals[row], heads[row].numpy())
        _bare(axes, "attention of the teacher's [cls]" if row == 0 else '')
    figure.savefig(out, dpi=100)
    return out


def _draw_curves(figure: Figure, grid: GridSpec, curves: dict[str, Curve]) -> None:
    """Draw the losses, then the probe, from left to right."""
    losses = [name for name in LOSSES if name in curves]
    for column, name in enumerate(losses):
        axes = figure.add_subplot(grid[0, column])
        axes.plot(*curves[name], color='tab:blue')
        _label(axes, f'{name}: {LOSSES[name]}', 'iteration')
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

    Raises:
        ValueError: if the folder has no config, or no checkpoint in one file.
    """
    work_dir = Path(work_dir)
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
    parser.add_argument('--number', type=int, default=5, help='images to show (default: 5)')
    parser.add_argument('--out', metavar='PNG', help='default: WORK_DIR/report.png')
    args = parser.parse_args(argv)
    cfg, model = load_run(args.work_dir)
    side = model.student.backbone.img_size[0]  # the global crops of the training
    images = pick_images(args.images or _probe_folder(cfg), args.number, side)
    verdict = verdict_on(args.work_dir, cfg)
    print(verdict)
    print(f'wrote {draw_report(args.work_dir, model, images, args.out, verdict)}')


if __name__ == '__main__':
    with errors_in_one_sentence():
        main()
