"""Real, tiny training runs: in this process, in one that is killed, or in several of gloo.

Other processes start from a fork server that has already imported everything, which takes
milliseconds instead of seconds; what they run must be a function of this or a test module.
"""

import multiprocessing
import os
import signal
import socket
import tarfile
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import FlexibleRunner, Runner
from torch.utils.data import Dataset

import pera_mm
from pera_mm.datasets.packed import position_key

TIMEOUT = 120  # seconds; a hang must fail, not block


def draw_images(folder: Path, number: int, side: int = 96) -> str:
    """Colorful noise as PNG files."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(number):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(folder / f'{index:03d}.png'), image)
    return str(folder)


def packed_mixture(folder: Path, number: int) -> list[dict]:
    """The same images: a third of the draws from tar shards of four, two thirds from an LMDB."""
    images = sorted(Path(draw_images(folder / 'images', number)).iterdir())
    (folder / 'shards').mkdir()
    for shard in range(0, number, 4):
        with tarfile.open(folder / f'shards/{shard:03d}.tar', 'w') as tar:
            for image in images[shard:shard + 4]:
                tar.add(image, image.name)
    lmdb = pytest.importorskip('lmdb')
    with lmdb.open(str(folder / 'lmdb'), map_size=1 << 24) as environment:
        with environment.begin(write=True) as transaction:
            for position, image in enumerate(images):
                transaction.put(position_key(position), image.read_bytes())
    return [dict(path=str(folder / 'shards'), weight=1, shuffle_buffer=3),
            dict(path=str(folder / 'lmdb'), weight=2)]


@DATASETS.register_module()
class Numbers(Dataset):
    """``number`` samples, each its own index and the seed of its draw; all reads are noted."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, draw: Any) -> dict:
        index, seed = draw if isinstance(draw, tuple) else (draw, 0)
        self.read.append(index)
        return dict(inputs=torch.tensor([float(index + 1), seed % 1000 / 1000]))


@MODELS.register_module()
class Line(BaseModel):
    """Fits a line; ``ballast`` MB make its checkpoints slow to write."""

    def __init__(self, ballast: int = 0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.register_buffer('ballast', torch.zeros(ballast * 250_000))

    def forward(self, inputs: torch.Tensor, mode: str = 'tensor') -> Any:
        return dict(loss=(inputs @ self.weight - 1).square().mean())


def line_cfg(work_dir: Path, number: int = 12, ballast: int = 0, **options: Any) -> dict:
    """As :func:`training_cfg` without images: milliseconds, for what concerns no PerA."""
    cfg = training_cfg(work_dir, '', dict(type='Line', ballast=ballast), [], **options)
    cfg['train_dataloader']['dataset'] = dict(type='Numbers', number=number)
    cfg['custom_hooks'] = []
    return cfg


def training_cfg(work_dir: Path, images: str | list[dict], model: dict, pipeline: list[dict],
                 batch_size: int = 2, max_epochs: int = 2, num_workers: int = 0,
                 accumulate: int = 1, interval: int = 3, **others: Any) -> dict:
    """The config of a tiny run with every hook of the real ones; a plain dict."""
    epochs = dict(convert_to_iter_based=True)
    return dict(
        default_scope='mmpretrain', work_dir=str(work_dir), log_level='WARNING', model=model,
        train_cfg=dict(type='pera_mm.ResumableTrainLoop', max_epochs=max_epochs),
        train_dataloader=dict(
            batch_size=batch_size, num_workers=num_workers, drop_last=True,
            persistent_workers=num_workers > 0, collate_fn=dict(type='default_collate'),
            sampler=dict(type='pera_mm.DrawSampler'),
            dataset=dict(type='pera_mm.UnlabeledImages', source=images, pipeline=pipeline)),
        optim_wrapper=dict(
            type='pera_mm.AutocastOptimWrapper', constructor='pera_mm.TrainedOnlyConstructor',
            accumulative_counts=accumulate,
            optimizer=dict(type='AdamW', lr=1e-3, eps=2e-5, weight_decay=0.04),
            clip_grad=dict(max_norm=3.0)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=1e-30, end=1, **epochs),
            dict(type='CosineAnnealingLR', eta_min=1e-6, begin=1, **epochs),
            dict(type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min=0.2,
                 **epochs)],
        default_hooks=dict(
            checkpoint=dict(type='pera_mm.AtomicCheckpointHook', interval=interval,
                            by_epoch=False, max_keep_ckpts=2)),
        custom_hooks=[
            dict(type='pera_mm.StepSeedHook'),
            dict(type='pera_mm.TeacherHook'),
            dict(type='pera_mm.ScheduleHook',
                 teacher_temp=dict(start=.03, end=.05, warmup_epochs=1),
                 momentum=dict(start=.9, end=1.))],
        env_cfg=dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0)),
        visualizer=dict(type='Visualizer', vis_backends=[]),
        **dict(dict(randomness=dict(seed=10)), **others))


class KillHook(Hook):
    """SIGKILL to this process right after an iteration, before a checkpoint of it is written."""

    priority = 'LOW'

    def __init__(self, after: int) -> None:
        self.after = after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after:
            os.kill(os.getpid(), signal.SIGKILL)


def build_runner(cfg: dict, hooks: tuple[Hook, ...] = ()) -> Any:
    """A Runner (or FlexibleRunner) under a name of its own: MMEngine's hubs are global."""
    cfg = Config(dict(cfg, experiment_name=os.urandom(8).hex()), format_python_code=False)
    runner = (FlexibleRunner if 'strategy' in cfg else Runner).from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    return runner


def train(cfg: dict, *hooks: Hook) -> Any:
    """Run to the end (or to the kill)."""
    torch.set_num_threads(1)
    runner = build_runner(cfg, hooks)
    runner.train()
    return runner


def last_checkpoint(work_dir: Path) -> dict:
    """What ``last_checkpoint`` points to, loaded."""
    path = (work_dir / 'last_checkpoint').read_text()
    return torch.load(path, weights_only=False)


# -- other processes ------------------------------------------------------------------------

@cache
def processes() -> Any:
    """Start the fork server; one that other tests started has not imported what is needed."""
    earlier = forkserver._forkserver
    if earlier._forkserver_pid is not None:
        os.kill(earlier._forkserver_pid, signal.SIGKILL)  # so that no child of it is waited for
        earlier._stop()
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['training_runs', 'pera_mm.models', 'pera_mm.datasets',
                                    'pera_mm.engine', 'mmpretrain.models'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', os.path.dirname(__file__))  # of training_runs
        forkserver.ensure_running()
    return context


def in_process(target: Callable, *args: Any) -> int:
    """Run ``target`` in another process; its exit code (-9: killed)."""
    return _join([processes().Process(target=target, args=args)])[0]


def on_ranks(target: Callable, *args: Any, world_size: int = 2) -> list[int]:
    """Run ``target`` on gloo ranks, as torchrun would; their exit codes."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    return _join([processes().Process(target=_as_rank, args=(rank, world_size, port, target, args))
                  for rank in range(world_size)])


def _join(processes: list) -> list[int]:
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert None not in codes, f'a process was still running after {TIMEOUT} s: {codes}'
    return codes


def _as_rank(rank: int, world_size: int, port: int, target: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size),
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    # MMEngine's own start asks for a GPU, even with gloo.
    torch.distributed.init_process_group('gloo')
    target(*args)


ON_CPU_RANKS = dict(
    launcher='pytorch',
    model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None,
                           broadcast_buffers=False))

assert pera_mm  # its import activates the safe loading of checkpoints
