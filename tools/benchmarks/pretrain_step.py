"""Time, memory and arithmetic of one PerA training step.

    python tools/benchmarks/pretrain_step.py configs/pera/pera_vits_rsrsd.py --batch-size 4

The batch goes through the config's own pipeline from random pixels; then whole steps are timed
(colour views, teacher, student, losses, backward, optimizer, teacher update). GFLOPs are torch's
count, two per multiply-add.
"""

import argparse
import json
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import Compose, default_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pera_mm  # noqa: F401  activates the bridges
from pera_mm.registry import MODELS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', type=Path)
    parser.add_argument('--batch-size', type=int, help="images per step; the config's by default")
    parser.add_argument('--steps', type=int, default=5, help='timed steps, after one to warm up')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--image-size', type=int, default=512, help='side of the images, px')
    parser.add_argument('--json', type=Path, help='write the figures here too')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    return parser.parse_args()


def make_batch(cfg: Config, batch_size: int, image_size: int) -> dict:
    """Random images through the worker's pipeline, collated."""
    pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
    rng = np.random.default_rng(0)
    samples = [
        pipeline(dict(img=rng.integers(0, 256, (image_size, image_size, 3), dtype=np.uint8),
                      img_path='random', sample_idx=i, rng=rng, skipped=[]))
        for i in range(batch_size)
    ]
    return default_collate(samples)


class Clock:
    """Seconds spent per named part, synchronised with the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: dict[str, list[float]] = defaultdict(list)

    def now(self) -> float:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.parts[name].append(self.now() - start)


def make_step(cfg: Config, model: torch.nn.Module, batch: dict,
              clock: Clock) -> Callable[[], None]:
    """One training step, the parts of PerA.loss and of the hooks timed one by one."""
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)

    def step() -> None:
        with optim_wrapper.optim_context(model):
            with clock.part('colour views'):
                inputs = model.data_preprocessor(batch, training=True)['inputs']
                crops = [inputs[name] for name in sorted(inputs)]
            with clock.part('teacher'):
                teacher = model.teach(crops)
            with clock.part('student'):
                student = model.study(crops)
            with clock.part('losses'):
                loss, _ = model.parse_losses(model.losses(student, teacher, crops))
        with clock.part('backward'):
            optim_wrapper.backward(loss)
        with clock.part('optimizer'):
            optim_wrapper.step()
            optim_wrapper.zero_grad()
        with clock.part('teacher update'):
            model.accumulate()
            model.advance()

    return step


def count_gflops(model: torch.nn.Module, batch: dict, images: int) -> dict[str, float]:
    """GFLOPs per image of the forward pass, and of forward and backward together."""
    # The counter knows the operators of plain attention on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
        forward = counter.get_total_flops()
        loss.backward()
        total = counter.get_total_flops()
    model.zero_grad()
    return dict(forward=forward / images / 1e9, forward_backward=total / images / 1e9)


def peak_memory_gb(device: torch.device) -> float:
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # of the whole process


def measure(args: argparse.Namespace) -> dict:
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    init_default_scope(cfg.default_scope)
    device = torch.device(args.device)
    images = args.batch_size or cfg.train_dataloader.batch_size
    torch.manual_seed(0)
    with device:
        model = MODELS.build(cfg.model)
    model.to(device).train()
    model.teacher_temp, model.momentum = 0.05, 0.996
    batch = make_batch(cfg, images, args.image_size)

    clock = Clock(device)
    step = make_step(cfg, model, batch, clock)
    step()
    clock.parts.clear()
    seconds = []
    for _ in range(args.steps):
        start = clock.now()
        step()
        seconds.append(clock.now() - start)
    memory = peak_memory_gb(device)
    median = statistics.median(seconds)
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else (
        f'CPU, {torch.get_num_threads()} threads')
    return dict(
        config=str(args.config), device=name, torch=torch.__version__, batch_size=images,
        step_seconds=dict(median=median, min=min(seconds), max=max(seconds)),
        images_per_second=images / median,
        gflops_per_image=count_gflops(model, batch, images),
        peak_memory_gb=memory,
        share={part: statistics.median(spent) / median for part, spent in clock.parts.items()})


def main() -> None:
    args = parse_args()
    result = measure(args)
    step, gflops = result['step_seconds'], result['gflops_per_image']
    print(f"{result['config']} on {result['device']}, batch {result['batch_size']}")
    print(f"| images/s | {result['images_per_second']:.2f} |\n|---|---|")
    print(f"| step, s (median; min-max) | {step['median']:.3f}; "
          f"{step['min']:.3f}-{step['max']:.3f} |")
    print(f"| GFLOPs per image, forward | {gflops['forward']:.1f} |")
    print(f"| GFLOPs per image, forward + backward | {gflops['forward_backward']:.1f} |")
    print(f"| peak memory, GB | {result['peak_memory_gb']:.2f} |")
    for part, share in result['share'].items():
        print(f'| share of {part} | {share:.1%} |')
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == '__main__':
    main()
