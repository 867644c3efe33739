"""A watch over the run: signs of collapse and a verdict."""

import math
from collections import Counter
from typing import Any, NamedTuple

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pera_mm.engine.hooks.teacher import inner_model
from pera_mm.errors import UserError
from pera_mm.evaluation.collapse import (
    alignment,
    effective_rank,
    feature_std,
    nearest_distance,
    prototype_use,
    teacher_entropy,
    uniformity,
)
from pera_mm.evaluation.verdict import (
    MAX_TEACHER_ENTROPY,
    MIN_FEATURE_RANK,
    MIN_FEATURE_STD,
    MIN_NEAREST_DISTANCE,
    MIN_PROTOTYPE_USE,
    describe,
    judge_run,
    not_judged,
)
from pera_mm.registry import HOOKS


class Limits(NamedTuple):
    """The healthy range of a sign, and for a value outside it the meaning and the remedy."""

    low: float
    high: float
    below: str
    above: str = ''


# Measured on the former PerA-tiny (patches of 16 px) on RSSCN7, batch 16, 4096 prototypes: healthy
# runs show teacher_entropy .73-.81, prototype_use .13-.50, feature_std .49-.74, feature_rank 5-11,
# nearest_distance .2-.7. After 2,200 steps of batch 32, teacher_entropy is .15-.2.
SIGNS = dict(
    teacher_entropy=Limits(
        0.005, MAX_TEACHER_ENTROPY,
        'the teacher puts everything on one prototype per image, so the student copies a hard '
        'label that a few prototypes can share; raise teacher_temp or keep the center moving '
        '(center_momentum < 1, TeacherHook in custom_hooks)',
        'the teacher finds all prototypes equally likely, so there is nothing to learn from it; '
        'lower teacher_temp, and look at feature_std: if it is near 0 too, lower the learning '
        'rate and start again from a checkpoint before the warning'),
    prototype_use=Limits(
        MIN_PROTOTYPE_USE, math.inf,
        'nearly all images of a batch choose the same prototype (collapse); keep the center moving '
        '(center_momentum < 1, TeacherHook in custom_hooks), raise teacher_temp or the weight of '
        'KoLeo, and check that the images differ'),
    feature_std=Limits(
        MIN_FEATURE_STD, math.inf,
        "the teacher's [cls] is nearly the same for all images (collapse); check that the images "
        'differ, lower the learning rate or lengthen its warm-up, or raise the weight of KoLeo'),
    feature_rank=Limits(
        MIN_FEATURE_RANK, math.inf,
        "the teacher's [cls] varies along a single direction (dimensional collapse); raise the "
        'weight of KoLeo or the batch size, or lower the learning rate'),
    nearest_distance=Limits(
        MIN_NEAREST_DISTANCE, math.inf,
        'the student answers nearly the same for different images; raise the weight of KoLeo, and '
        'check that the data set has no copies'))


@HOOKS.register_module()
class HealthHook(Hook):
    """Watch the teacher for collapse, and judge the whole run.

    Every ``interval`` iterations the main process computes, from its own batch (global crops),
    the signs below and writes them as ``health/...`` to the visualizer and the message hub. It
    warns once per episode when a sign has been outside its limits for ``patience`` checks:

    - ``teacher_entropy``, in [0, 1]: 0 = one prototype per image for certain, 1 = all alike;
    - ``prototype_use``, in [0, 1]: 0 = one prototype for all images, 1 = each image its own;
    - ``feature_std``, about 1 when the teacher's features are spread, 0 when constant;
    - ``feature_rank``: number of directions in which they vary;
    - ``nearest_distance``, in [0, 2]: from the student's answer to the nearest of another image
      (what KoLeo pushes up).

    Two more have no limits, because they mean something only together (Wang & Isola 2020): with
    training, both fall.

    - ``alignment``, in [0, 4]: the squared distance of the teacher's [cls] of two global crops of
      an image. They are the teacher's because they are the features that a task gets, and of two
      crops because no loss of PerA compares these, so that the number is not what is trained on;
    - ``uniformity``, in [-8, 0]: 0 when all images have the same [cls].

    After the last iteration, :func:`~pera_mm.evaluation.verdict.judge_run` says in the log what was
    wrong with the run and what to change (docs/health.md).

    Args:
        interval: iterations between two checks.
        patience: consecutive bad checks before a warning.
        limits: ``{sign: (low, high)}`` to replace the healthy ranges in :data:`SIGNS`.

    Raises:
        ValueError: for limits of an unknown sign, or an upper limit of one that has none.
    """

    # Before TeacherHook: the center is still the one of this batch's loss.
    priority = 'ABOVE_NORMAL'

    def __init__(self, interval: int = 50, patience: int = 3,
                 limits: dict[str, tuple[float, float]] | None = None) -> None:
        unknown = sorted(set(limits or {}) - set(SIGNS))
        if unknown:
            raise UserError(f"HealthHook has no sign '{unknown[0]}'; limits can be given for "
                            f'{", ".join(SIGNS)}.')
        self.interval = interval
        self.patience = patience
        self.signs = dict(SIGNS)
        for name, (low, high) in (limits or {}).items():
            if high < math.inf and not SIGNS[name].above:
                raise UserError(f"HealthHook limits: '{name}' cannot be too high, so its upper "
                                f"limit must be float('inf'), got {high}.")
            self.signs[name] = SIGNS[name]._replace(low=low, high=high)
        self._bad_checks: Counter[str] = Counter()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Ask the model to keep what the check needs."""
        if self._is_due(runner):
            inner_model(runner).watch = True

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Check the signs if they are due."""
        if not self._is_due(runner):
            return
        model = inner_model(runner)
        signs = _compute_signs(model)
        model.watch, model.observed = False, {}
        scalars = {f'health/{name}': value for name, value in signs.items()}
        runner.message_hub.update_scalars(scalars)
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        for name in self.signs:
            if name in signs:
                self._warn_if_unhealthy(runner, name, signs[name])

    def after_train(self, runner: Runner) -> None:
        """Log the verdict on the run."""
        if is_main_process():
            scalars = {name.removeprefix('train/'): buffer.data[0].tolist()
                       for name, buffer in runner.message_hub.log_scalars.items()}
            findings = judge_run(scalars, runner.cfg)
            log = runner.logger.warning if findings else runner.logger.info
            log(describe(findings, not_judged(scalars)))

    def _is_due(self, runner: Runner) -> bool:
        return is_main_process() and self.every_n_train_iters(runner, self.interval)

    def _warn_if_unhealthy(self, runner: Runner, name: str, value: float) -> None:
        limits = self.signs[name]
        if limits.low <= value <= limits.high:
            self._bad_checks[name] = 0
            return
        self._bad_checks[name] += 1
        if self._bad_checks[name] == self.patience:
            side, limit, meaning = (('below', limits.low, limits.below) if value < limits.low else
                                    ('above', limits.high, limits.above))
            runner.logger.warning(
                f'health/{name} is {value:.4g}, {side} {limit:g} for the last {self.patience} '
                f'checks (every {self.interval} iterations): {meaning}.')


def _compute_signs(model: torch.nn.Module) -> dict[str, float]:
    """Compute all signs that the last batch allows (some need two images)."""
    seen, center = model.observed, model.distillation.center.value
    features = seen['teacher_features'].flatten(0, 1)
    signs = dict(
        teacher_entropy=teacher_entropy(seen['teacher_logits'], center, model.teacher_temp),
        prototype_use=prototype_use(seen['teacher_logits'], center),
        feature_std=feature_std(features),
        feature_rank=effective_rank(features),
        nearest_distance=nearest_distance(seen['student_logits']),
        alignment=alignment(seen['teacher_features']),
        uniformity=uniformity(seen['teacher_features']))
    return {name: value for name, value in signs.items() if not math.isnan(value)}
