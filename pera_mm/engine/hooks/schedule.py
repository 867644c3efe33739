"""The schedules of the teacher's temperature and EMA momentum, per iteration."""

from typing import Any

from mmengine.hooks import Hook

from pera_mm.engine.hooks.teacher import inner_model
from pera_mm.engine.schedules import cosine, linear_warmup
from pera_mm.errors import UserError
from pera_mm.registry import HOOKS


@HOOKS.register_module()
class ScheduleHook(Hook):
    """Set ``model.teacher_temp`` and ``model.momentum`` before each iteration.

    MMEngine's ``param_scheduler`` sets learning rate and weight decay. Source: the reference's
    Utils/config.py (pera_reference.md §5); ViT-B: .03 -> .05 over 30 epochs and .992 -> 1.

    Args:
        teacher_temp: ``start``, ``end`` (both above 0) and ``warmup_epochs`` (may be a
            fraction): linear warm-up, then constant.
        momentum: ``start`` and ``end`` in [0, 1]: a half cosine over the whole run. As in the
            paper it is the share of the OLD weights that is kept (MMEngine's EMA means the
            opposite).

    Raises:
        ValueError: on a missing or unknown key, or a value out of range.
    """

    priority = 'NORMAL'

    def __init__(self, teacher_temp: dict, momentum: dict) -> None:
        _check_keys('teacher_temp', teacher_temp, {'start', 'end', 'warmup_epochs'})
        _check_keys('momentum', momentum, {'start', 'end'})
        if not min(teacher_temp['start'], teacher_temp['end']) > 0:
            raise UserError('ScheduleHook: teacher_temp start and end must be above 0, got '
                            f'{teacher_temp["start"]} and {teacher_temp["end"]}.')
        if teacher_temp['warmup_epochs'] < 0:
            raise UserError('ScheduleHook: teacher_temp warmup_epochs must be 0 or more, got '
                            f'{teacher_temp["warmup_epochs"]}.')
        if not all(0 <= momentum[end] <= 1 for end in ('start', 'end')):
            raise UserError('ScheduleHook: momentum start and end are the share of the old '
                            'weights and must lie in [0, 1], got '
                            f'{momentum["start"]} and {momentum["end"]}.')
        self.teacher_temp = teacher_temp
        self.momentum = momentum

    def before_train(self, runner: Any) -> None:
        """Warn if the warm-up does not end within the run (the reference asserts that it does)."""
        warmup_epochs = self.teacher_temp['warmup_epochs']
        if warmup_epochs > runner.max_epochs:
            runner.logger.warning(
                f'the teacher temperature warms up over {warmup_epochs} epochs but the run has '
                f'only {runner.max_epochs}: it will not reach {self.teacher_temp["end"]}; lower '
                'teacher_temp.warmup_epochs of ScheduleHook unless this is a trial run.')

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Set and log both values for iteration ``runner.iter``."""
        model = inner_model(runner)
        warmup = round(self.teacher_temp['warmup_epochs'] * len(runner.train_dataloader))
        model.teacher_temp = linear_warmup(
            runner.iter, warmup, self.teacher_temp['start'], self.teacher_temp['end'])
        model.momentum = cosine(runner.iter, runner.max_iters, **self.momentum)
        runner.message_hub.update_scalar('train/teacher_temp', model.teacher_temp)
        runner.message_hub.update_scalar('train/momentum', model.momentum)


def _check_keys(name: str, given: dict, wanted: set[str]) -> None:
    if set(given) != wanted:
        raise UserError(f'ScheduleHook: {name} takes exactly the keys '
                        f'{", ".join(sorted(wanted))}, got {", ".join(sorted(given))}.')
