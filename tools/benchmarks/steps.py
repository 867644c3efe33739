"""The part of resources.py that runs in its own process: count and time steps of one config."""

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import downstream
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pera_mm  # noqa: F401  activates the bridges
from pera_mm.datasets.unlabeled import compose
from pera_mm.launch import keep_freed_memory, merge_options, set_precision
from pera_mm.registry import MODELS

MAX_ITERS = 1000  # any number
TEACHER_TEMP, MOMENTUM = 0.05, 0.996  # any typical values
AMP = {'fp32': 'off', 'bf16': 'bf16'}
WARMUP = {False: 1, True: 12}  # steps; torch.compile stops adapting to new shapes after eight
# The parts of a step: the object (model or optimizer wrapper) and its method.
PARTS = {
    'color views': ('model', 'data_preprocessor'), 'teacher': ('model', 'teach'),
    'student': ('model', 'study'), 'losses': ('model', 'losses'),
    'backward': ('optim_wrapper', 'backward'), 'optimizer': ('optim_wrapper', 'step'),
    'teacher update': ('model', 'advance'),
}


class Variant(NamedTuple):
    """A line of the table."""

    config: Path
    dtype: str
    compile: bool


def load(variant: Variant, args: argparse.Namespace) -> Config:
    warnings.simplefilter('ignore')
    MMLogger.get_instance('resources', log_level='ERROR')
    MessageHub.get_current_instance().update_info('max_iters', MAX_ITERS)  # for MoCo v3
    cfg = Config.fromfile(variant.config)
    merge_options(cfg, args.cfg_options)
    set_precision(cfg, AMP[variant.dtype])
    init_default_scope(cfg.default_scope)
    if downstream.is_downstream(cfg):
        downstream.prepare(cfg, args.image_size)
    torch.backends.cudnn.benchmark = cfg.get('env_cfg', {}).get('cudnn_benchmark', False)
    torch.manual_seed(0)
    return cfg


def make_batch(cfg: Config, batch_size: int, image_size: int) -> dict:
    """Send random images through the worker's pipeline and collate them."""
    pipeline = compose(cfg.train_dataloader.dataset.pipeline)
    rng = np.random.default_rng(0)
    samples = [
        pipeline(dict(img=rng.integers(0, 256, (image_size, image_size, 3), dtype=np.uint8),
                      img_path='random', sample_idx=i, rng=rng, skipped=[]))
        for i in range(batch_size)
    ]
    return default_collate(samples)


def build(cfg: Config, device: str) -> nn.Module:
    with torch.device(device):
        model = MODELS.build(cfg.model)
    model.init_weights()
    if hasattr(model, 'advance'):
        model.teacher_temp, model.momentum = TEACHER_TEMP, MOMENTUM  # as ScheduleHook does
    return model.to(device).train()


def train_step(model: nn.Module, batch: dict, optim_wrapper: Any) -> None:
    """Compute what an iteration of the training loop computes, with the teacher's hook."""
    model.train_step(batch, optim_wrapper)
    if hasattr(model, 'advance'):  # MMPretrain's models update their teacher in the loss
        model.accumulate()
        model.advance()


def count(variant: Variant, args: argparse.Namespace) -> dict[str, Any]:
    """Count GFLOPs per image of the forward passes, and of forward and backward together.

    For a downstream model, count one forward pass, the parameters and GFLOPs of ViT, adapter and
    head, and compute the memory of a training step in every precision.
    """
    cfg = load(variant, args)
    if downstream.is_downstream(cfg):
        memory = {dtype: downstream.memory_gb(cfg, args.batch_size, bf16=dtype == 'bf16')
                  for dtype in args.dtype}
        return downstream.count(cfg) | dict(memory_gb=memory)
    model = build(cfg, args.device)
    data = model.data_preprocessor(make_batch(cfg, args.batch_size, args.image_size), True)
    # The counter knows the operators of plain attention on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        forward = counter.get_total_flops()
        loss.backward()
        both = counter.get_total_flops()
    return dict(forward=forward / args.batch_size / 1e9,
                forward_backward=both / args.batch_size / 1e9)


def measure(variant: Variant, args: argparse.Namespace) -> dict:
    """Measure seconds of every step, peak memory in GB and, with ``--parts``, the shares."""
    cfg = load(variant, args)
    if args.device == 'cpu':
        keep_freed_memory()  # as training does
    if downstream.is_downstream(cfg):
        batch = downstream.make_batch(cfg, args.batch_size)
    else:
        batch = make_batch(cfg, args.batch_size, args.image_size)
    before = used_gb(args.device, most=False)
    model = build(cfg, args.device)
    clock = Clock(args.device)
    measured: dict[str, Any] = {}
    if downstream.is_downstream(cfg):  # first, because a training step takes more memory
        measured['forward_seconds'] = prediction_seconds(model, batch, args.steps, clock)
        measured['forward_memory_gb'] = used_gb(args.device, most=True) - before
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    if variant.compile:
        model.train_step = torch.compile(model.train_step)  # as MMEngine does
    measured['seconds'] = timed_calls(lambda: train_step(model, batch, optim_wrapper),
                                      WARMUP[variant.compile], args.steps, clock)
    measured['peak_memory_gb'] = used_gb(args.device, most=True) - before
    if args.parts and not variant.compile:
        measured['parts'] = part_shares(model, batch, optim_wrapper, args.steps, clock)
    return measured


def prediction_seconds(model: nn.Module, batch: dict, steps: int, clock: 'Clock') -> list[float]:
    """Time predictions in evaluation mode, in seconds, after a prediction to warm up."""
    model.eval()
    with torch.no_grad():
        seconds = timed_calls(lambda: model.test_step(batch), 1, steps, clock)
    model.train()
    return seconds


def timed_calls(run: Callable[[], Any], warmup: int, steps: int, clock: 'Clock') -> list[float]:
    """Time each of ``steps`` calls, in seconds, after ``warmup`` calls without timing."""
    for _ in range(warmup):
        run()
    seconds = []
    for _ in range(steps):
        start = clock.now()
        run()
        seconds.append(clock.now() - start)
    return seconds


def used_gb(device: str, most: bool) -> float:
    """Return the memory that this process holds now, or the most that it held."""
    if device.startswith('cuda'):
        now, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        return (peak if most else now) / 1e9
    # Not getrusage: its maximum survives the start of a new program.
    field = 'VmHWM:' if most else 'VmRSS:'
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


class Clock:
    """A clock of wall time, synchronized with the device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.spent: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.startswith('cuda'):
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, name: str, run: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            try:
                return run(*args, **kwargs)
            finally:
                self.spent[name] += self.now() - start

        return call


def part_shares(model: nn.Module, batch: dict, optim_wrapper: Any, steps: int,
           clock: Clock) -> dict[str, float]:
    """Measure the share of each part that the model has; the rest is all other work."""
    owners = dict(model=model, optim_wrapper=optim_wrapper)
    for name, (owner, method) in PARTS.items():
        place, attribute = owners[owner], method
        if isinstance(getattr(place, method, None), nn.Module):
            place, attribute = getattr(place, method), 'forward'
        if hasattr(place, attribute):
            setattr(place, attribute, clock.timed(name, getattr(place, attribute)))
    start = clock.now()
    for _ in range(steps):
        train_step(model, batch, optim_wrapper)
    whole = clock.now() - start
    found = {name: clock.spent[name] / whole for name in PARTS if name in clock.spent}
    return found | dict(rest=1 - sum(found.values()))
