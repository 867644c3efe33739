"""The processes that share the work, and the progress bar of the first of them."""

import os
import time
from datetime import timedelta
from typing import Any, TypeVar

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pera_mm.errors import UserError
from pera_mm.stopping import end_with_launcher

WAIT = timedelta(days=7)  # of a rank for the slowest one

T = TypeVar('T')


class Ranks:
    """The processes that share the scenes; one without a launcher.

    Args:
        launcher: ``'none'``, ``'pytorch'`` or ``'slurm'``.

    Attributes:
        rank: of this process.
        world: number of processes.
        device: of this process.

    Raises:
        UserError: if the processes were not started by the launcher, or there are more of them on
            this machine than GPUs.
    """

    def __init__(self, launcher: str = 'none') -> None:
        self.rank, self.world, local = 0, 1, 0
        if launcher != 'none':
            end_with_launcher()
            local = _join(launcher)
            self.rank = torch.distributed.get_rank()
            self.world = torch.distributed.get_world_size()
        gpus = torch.cuda.device_count()
        if local >= gpus > 0:
            raise UserError(f'Process {local} of this machine has no GPU: PyTorch sees {gpus}; '
                            'start one process per GPU.')
        self.device = f'cuda:{local}' if gpus else 'cpu'

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def from_first(self, value: T) -> T:
        """Return the value of rank 0 on every rank."""
        values = [value]
        if self.world > 1:
            torch.distributed.broadcast_object_list(values)
        return values[0]

    def from_all(self, value: T) -> list[T]:
        """Return the values of all ranks, once all are here."""
        values = [value] * self.world
        if self.world > 1:
            torch.distributed.all_gather_object(values, value)
        return values


def _join(launcher: str) -> int:
    """Meet the other processes, over gloo; return this one's number on its machine."""
    if launcher == 'slurm':
        from mmengine.dist import init_dist

        if 'SLURM_PROCID' not in os.environ or not torch.cuda.is_available():
            raise UserError('--launcher slurm needs processes started by srun, with GPUs.')
        init_dist('slurm', 'gloo', timeout=WAIT)
        return int(os.environ['SLURM_LOCALID'])
    if 'RANK' not in os.environ:
        raise UserError('--launcher pytorch needs processes started by torchrun: use '
                        'tools/dist_predict.sh.')
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo', timeout=WAIT)
    return int(os.environ['LOCAL_RANK'])


class Meter:
    """A progress bar with Mpx/s, km²/h and the time left.

    Args:
        total: pixels.
        shown: whether there is a bar.
    """

    def __init__(self, total: int, shown: bool) -> None:
        self.total, self.pixels, self.area, self.pixel_area = total, 0, 0., 0.
        self.start = time.monotonic()
        self.progress = Progress(
            TextColumn('{task.description}'), BarColumn(), TextColumn('{task.fields[speed]}'),
            TimeRemainingColumn(), disable=not shown)
        self.bar = self.progress.add_task('', total=total, speed='')

    def __enter__(self) -> 'Meter':
        self.progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()

    def begin(self, name: str, pixel_area: float | None) -> None:
        """Name the scene that comes now, and the area of its pixels in m²."""
        self.pixel_area = pixel_area or 0.
        self.progress.update(self.bar, description=name)

    def advance(self, pixels: int) -> None:
        """Count pixels."""
        self.pixels += pixels
        self.area += pixels * self.pixel_area
        seconds = max(time.monotonic() - self.start, 1e-3)
        speed = (f'{self.pixels / 1e6:,.1f} of {self.total / 1e6:,.1f} Mpx, '
                 f'{self.pixels / 1e6 / seconds:.3g} Mpx/s')
        if self.area:
            speed += f', {self.area / 1e6 / seconds * 3600:,.0f} km²/h'
        self.progress.update(self.bar, advance=pixels, speed=speed)
