"""Count the CPU seconds of a training: its process and its data-loader workers, not wall time."""

import json
import multiprocessing
import os
import statistics
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pera_mm.errors import UserError


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children, living and ended (Linux)."""
    living = [child.pid for child in multiprocessing.active_children()]
    used = os.times()
    return sum(used[:4]) + sum(map(_of_process, living))


def _of_process(number: int | None) -> float:
    # After the name in brackets, which may hold spaces: state is field 3, times are 14 and 15.
    fields = Path(f'/proc/{number}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


@HOOKS.register_module()
class CpuClockHook(Hook):
    """Log the CPU seconds and the steps since the first step of this attempt ended.

    The first step is left out, with the imports and the start of the workers. A run that was
    continued has a log per attempt, see :func:`cost`.
    """

    priority = 'VERY_HIGH'  # before the logger

    def __init__(self) -> None:
        self.start = 0.
        self.steps = -1

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Read the clock."""
        self.steps += 1
        if not self.steps:
            self.start = cpu_seconds()
        runner.message_hub.update_scalar('train/cpu_seconds', cpu_seconds() - self.start)
        runner.message_hub.update_scalar('train/cpu_steps', self.steps)


def cost(work_dir: Path, images: int, batch_size: int) -> dict[str, float]:
    """Compute from the logs what a training on ``images`` images cost.

    Args:
        work_dir: of a training with :class:`CpuClockHook`, in one or more attempts.
        images: of all its steps.
        batch_size: images of a step.

    Returns:
        ``images``; ``images_per_second`` of wall time, from the median step; ``cpu_seconds`` of all
        steps, at the mean of the steps that the attempts logged.

    Raises:
        ValueError: if no attempt logged two steps.
    """
    attempts = [[json.loads(line) for line in file.read_text().splitlines() if line.endswith('}')]
                for file in sorted(work_dir.glob('*/vis_data/scalars.json'))]
    ends = [timed[-1] for lines in attempts
            if (timed := [line for line in lines if line.get('cpu_steps')])]
    if not ends:
        raise UserError(f'{work_dir} has no log of two steps or more: train longer.')
    per_step = sum(end['cpu_seconds'] for end in ends) / sum(end['cpu_steps'] for end in ends)
    step = statistics.median(line['time'] for lines in attempts for line in lines if 'time' in line)
    return dict(images=images, images_per_second=batch_size / step,
                cpu_seconds=images / batch_size * per_step)
