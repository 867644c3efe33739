"""The verdict on a pre-training in words: what is wrong, by which numbers, and what to change.

docs/health.md shows a run of each kind, from which the limits here are.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pera_mm.datasets.unlabeled import pipeline_steps
from pera_mm.registry import TRANSFORMS

Scalars = Mapping[str, Sequence[float]]

# The numbers without which a problem is not judged, and that problem.
NEEDED = {'health/feature_std': 'collapse (no HealthHook)',
          'loss_cls': 'divergence (no loss_cls in the log)',
          'probe/knn_color': 'color shortcut (no ProbeHook)'}
QUARTER = 4  # the last quarter of a run is judged, by its median

# The student of the authors' code sees 157 patches of a global crop and 7 of a local one; with 10
# and 2 the features of RSSCN7 stay at color, with 39 and 7 they leave it.
MIN_TOKENS = {'global': 30, 'local': 5}
MIN_FEATURE_STD = 0.1
MIN_FEATURE_RANK = 1.5
MIN_PROTOTYPE_USE = 0.1
MIN_NEAREST_DISTANCE = 0.05
# A DINOv2 whose teacher stood at .99 for 600 steps had a kNN below that of random weights.
MAX_TEACHER_ENTROPY = 0.98
MAX_PIXEL_SHARE = 0.95
MIN_OVER_COLOR = 3.  # percent points of kNN; or a tenth of what color leaves to 100 %, if less
MAX_RISE = 2.  # of a loss, from its lowest
PARTS = 16  # of a run, each with its median, among which the lowest is sought


class Finding(NamedTuple):
    """A problem of a run, the numbers that show it, and what to change."""

    problem: str
    evidence: str
    remedy: str


def judge_run(scalars: Scalars, cfg: Mapping[str, Any]) -> list[Finding]:
    """Find what is wrong with a pre-training.

    A limit separates runs of docs/health.md: a ViT of 0.9M parameters, 1,400 images, 86 to 344
    steps. They are signs to look at, not proofs, and other data may need others.

    Args:
        scalars: all logged values of a number in time order, by its name in ``scalars.json``:
            ``loss_cls``, ``loss_pixel`` (weighted), ``health/...`` of HealthHook, ``probe/...``
            of ProbeHook. What is missing is not judged: see :func:`not_judged`.
        cfg: config of the run.

    Returns:
        The findings; none for a run that shows no sign of a problem.
    """
    checks = (_diverging, _constant, _uniform, _pixels_dominate, _too_few_tokens, _color_shortcut)
    return [finding for check in checks if (finding := check(scalars, cfg)) is not None]


def not_judged(scalars: Scalars) -> list[str]:
    """List the problems for which the numbers of the run are missing, and why."""
    return [problem for name, problem in NEEDED.items() if not scalars.get(name)]


def describe(findings: Sequence[Finding], missing: Sequence[str] = ()) -> str:
    """Write the verdict as lines of text, the findings of :func:`judge_run` one per line."""
    lines = [f'{each.problem}: {each.evidence}; {each.remedy}.' for each in findings]
    if not findings:
        lines = ['healthy: no sign of collapse, divergence or a shortcut.']
    if not findings and len(missing) == len(NEEDED):
        lines = ['none: the log has no number to judge by.']
    if missing:
        lines.append(f'Not judged: {"; ".join(missing)}.')
    return '\n'.join([f'Verdict: {lines[0]}', *lines[1:]])


def student_tokens(cfg: Mapping[str, Any]) -> dict[str, int]:
    """Count the patches that the student sees of a crop, by the pipeline of the config.

    Returns:
        By the name of the crop size, ``'global'`` and ``'local'``; empty for a pipeline without
        AlignedCrops and a mask.
    """
    dataset = cfg.get('train_dataloader', {}).get('dataset', {})
    named = {str(step['type']).rpartition('.')[2]: step
             for step in pipeline_steps(dataset.get('pipeline', ()))}
    mask = named.get('DisjointMask') or named.get('BlockMask')
    if mask is None or 'AlignedCrops' not in named:
        return {}
    specs = TRANSFORMS.build(named['AlignedCrops']).specs
    crops = {name: np.empty((spec.number, spec.size, spec.size, 3), np.uint8)
             for name, spec in specs.items() if spec.number}
    split = TRANSFORMS.build(mask).transform(dict(crops=crops, rng=np.random.default_rng(0)))
    return {name: parts.counts().student for name, parts in split['split'].items()}


def late(values: Sequence[float]) -> float:
    """Return the median of the last quarter of the values; NaN if any is not finite, or none."""
    last = list(values[-max(len(values) // QUARTER, 1):])
    if not last or not all(map(math.isfinite, last)):
        return math.nan
    return statistics.median(last)


def _late(scalars: Scalars, name: str) -> float:
    return late(scalars.get(name, ()))


def _diverging(scalars: Scalars, cfg: Mapping[str, Any]) -> Finding | None:
    signs = [f'{name} is not finite' for name, values in scalars.items()
             if name.startswith('loss') and not all(map(math.isfinite, values))]
    for name in ('loss_cls', 'loss_pixel'):
        now, lowest = _late(scalars, name), _lowest(scalars.get(name, ()))
        if now > MAX_RISE * lowest:
            signs.append(f'{name} is {now:.3g}, more than {MAX_RISE:g} times its lowest, '
                         f'{lowest:.3g}')
    if not signs:
        return None
    return Finding(
        'diverging', ', '.join(signs),
        'lower optimizer.lr (first to a third) or lengthen its warm-up, keep clip_grad, and look '
        'at grad_norm for the step where it began; continue from a checkpoint before that')


def _lowest(values: Sequence[float]) -> float:
    """Return the lowest median of the parts of a run; NaN without values."""
    parts = [part for part in np.array_split(np.asarray(values, float), PARTS) if len(part)]
    return min((float(np.median(part)) for part in parts), default=math.nan)


def _constant(scalars: Scalars, cfg: Mapping[str, Any]) -> Finding | None:
    limits = {'health/feature_std': MIN_FEATURE_STD, 'health/feature_rank': MIN_FEATURE_RANK,
              'health/prototype_use': MIN_PROTOTYPE_USE,
              'health/nearest_distance': MIN_NEAREST_DISTANCE}
    below = [f'{name} is {_late(scalars, name):.3g}, below {limit:g}'
             for name, limit in limits.items() if _late(scalars, name) < limit]
    if not below:
        return None
    return Finding(
        'collapse to a constant', ', '.join(below),
        'all images get the same answer: keep the center moving (distillation.center_momentum '
        'below 1, TeacherHook in the hooks) and KoLeo on, lower optimizer.lr or lengthen its '
        'warm-up, and check that the images differ')


def _uniform(scalars: Scalars, cfg: Mapping[str, Any]) -> Finding | None:
    entropy = _late(scalars, 'health/teacher_entropy')
    if not entropy > MAX_TEACHER_ENTROPY:
        return None
    return Finding(
        'collapse to uniform',
        f'health/teacher_entropy is {entropy:.5f}, above {MAX_TEACHER_ENTROPY:g}',
        'the teacher finds all prototypes equally likely, so there is nothing to learn from it: '
        'lower teacher_temp of ScheduleHook (the paper: .03 to .05)')


def _pixels_dominate(scalars: Scalars, cfg: Mapping[str, Any]) -> Finding | None:
    pixel, cls = _late(scalars, 'loss_pixel'), _late(scalars, 'loss_cls')
    if not pixel > MAX_PIXEL_SHARE * (pixel + cls):
        return None
    return Finding(
        'the pixel loss dominates',
        f'loss_pixel is {pixel:.3g} beside a loss_cls of {cls:.3g}, '
        f'{pixel / (pixel + cls):.0%} of their sum, above {MAX_PIXEL_SHARE:.0%}',
        'the network learns colors and not agreement: lower pixel.loss_weight (the authors: .01; '
        'the loss is a sum over the values of a patch, so a larger patch needs less)')


def _too_few_tokens(scalars: Scalars, cfg: Mapping[str, Any]) -> Finding | None:
    few = [f'{number} patches of a {name} crop, fewer than {MIN_TOKENS[name]}'
           for name, number in student_tokens(cfg).items() if number < MIN_TOKENS[name]]
    if not few:
        return None
    return Finding(
        'too few tokens', f'the student sees {" and ".join(few)}',
        'so few patches show little but color: take smaller patches (backbone.patch_size and '
        'that of the mask) or larger crops')


def _color_shortcut(scalars: Scalars, cfg: Mapping[str, Any]) -> Finding | None:
    knn, floor = _last(scalars, 'probe/knn'), _last(scalars, 'probe/knn_color')
    least = min(MIN_OVER_COLOR, (100 - floor) / 10)
    if not knn < floor + least:
        return None
    share = scalars.get('probe/color_share', ())
    explained = f'; color explains {share[-1]:.0%} of their variance' if share else ''
    return Finding(
        'color shortcut',
        f'kNN reaches {knn:.1f} % on the features and {floor:.1f} % on mean and deviation of the '
        f'bands alone, a gain below {least:g} points{explained}',
        'the features say little but color: train longer (color is learned first), show the '
        'student more and smaller patches, or raise jitter and gray of data_preprocessor.student')


def _last(scalars: Scalars, name: str) -> float:
    values = scalars.get(name, ())
    return values[-1] if values else math.nan
