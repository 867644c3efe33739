"""What a pre-training costs: the paper's Table 10 for any methods, in one run.

    python tools/benchmarks/resources.py configs/pera/pera_vits_rsrsd.py --parts
    python tools/benchmarks/resources.py CONFIG CONFIG ... --dtype fp32 bf16 --batch-size 4
    python tools/benchmarks/resources.py CONFIG ... --steps 0        # GFLOPs alone

Whole training steps on one random batch that went through the config's own pipeline: colour views,
forward passes, losses, backward, optimizer, teacher update; no data loading, no logging. Every
measurement is a process of its own, and the configs take turns, so that a disturbed minute hits all
alike. Times are the median (fastest-slowest) of all steps of all repeats; the epoch is 100,000
images at that speed. GFLOPs are torch's count of matrix products, convolutions and attention, two
per multiply-add. Memory is what the run added to its process, weights and optimizer included (on
CUDA: what torch allocated at most). Ratios are to the first line of the same dtype and compile.
A measurement that fails is a line with the reason; the exit code is 1 then.
"""

import argparse
import json
import multiprocessing
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from heads import used_gb
from mmengine.config import Config, DictAction
from mmengine.dataset import Compose, default_collate
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from rich.progress import Progress
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pera_mm  # noqa: F401  activates the bridges
from pera_mm.errors import RunError
from pera_mm.launch import errors_in_one_sentence, keep_freed_memory, merge_options, set_precision
from pera_mm.registry import MODELS

EPOCH = 100_000  # images
AMP = {'fp32': 'off', 'bf16': 'bf16'}
WARMUP = {False: 1, True: 12}  # steps; torch.compile gives up on changing shapes after eight
# The parts of a step: (what has the method: model or optimizer wrapper; its name).
PARTS = {
    'colour views': ('model', 'data_preprocessor'), 'teacher': ('model', 'teach'),
    'student': ('model', 'study'), 'losses': ('model', 'losses'),
    'backward': ('optim_wrapper', 'backward'), 'optimizer': ('optim_wrapper', 'step'),
    'teacher update': ('model', 'advance'),
}


class Variant(NamedTuple):
    """One line of the table."""

    config: Path
    dtype: str
    compile: bool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', type=Path, metavar='CONFIG')
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--image-size', type=int, default=512, help='side of the images, px')
    parser.add_argument('--steps', type=int, default=3, help='timed ones; 0: count GFLOPs only')
    parser.add_argument('--repeats', type=int, default=3, help='turns of every config')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', nargs='+', choices=AMP, default=['fp32'],
                        help='bf16 is autocast, on a CPU too')
    parser.add_argument('--compile', action='store_true', help='with torch.compile, too')
    parser.add_argument('--parts', action='store_true', help='the share of each part of a step')
    parser.add_argument('--json', type=Path, help='write all figures here')
    parser.add_argument('--markdown', type=Path, help='write the table here')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    return parser.parse_args()


# -- in a process of its own -----------------------------------------------------------------------


def load(variant: Variant, args: argparse.Namespace) -> Config:
    warnings.simplefilter('ignore')
    MMLogger.get_instance('resources', log_level='ERROR')
    MessageHub.get_current_instance().update_info('max_iters', 1000)  # MoCo v3's momentum asks
    cfg = Config.fromfile(variant.config)
    merge_options(cfg, args.cfg_options)
    set_precision(cfg, AMP[variant.dtype])
    init_default_scope(cfg.default_scope)
    torch.backends.cudnn.benchmark = cfg.get('env_cfg', {}).get('cudnn_benchmark', False)
    torch.manual_seed(0)
    return cfg


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


def build(cfg: Config, device: str) -> nn.Module:
    with torch.device(device):
        model = MODELS.build(cfg.model)
    model.init_weights()
    if hasattr(model, 'advance'):
        model.teacher_temp, model.momentum = 0.05, 0.996  # what ScheduleHook sets
    return model.to(device).train()


def train_step(model: nn.Module, batch: dict, optim_wrapper: Any) -> None:
    """What an iteration of the training loop computes, the teacher's hook included."""
    model.train_step(batch, optim_wrapper)
    if hasattr(model, 'advance'):  # MMPretrain's models update their teacher in the loss
        model.accumulate()
        model.advance()


def count(variant: Variant, args: argparse.Namespace) -> dict[str, float]:
    """GFLOPs per image of the forward passes, and of forward and backward together."""
    cfg = load(variant, args)
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
    """Seconds of every step, peak memory in GB and, if asked for, the parts' shares."""
    cfg = load(variant, args)
    if args.device == 'cpu':
        keep_freed_memory()  # as training does
    batch = make_batch(cfg, args.batch_size, args.image_size)
    before = used_gb(args.device, most=False)
    model = build(cfg, args.device)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    if variant.compile:
        model.train_step = torch.compile(model.train_step)  # as MMEngine does
    clock = Clock(args.device)
    for _ in range(WARMUP[variant.compile]):
        train_step(model, batch, optim_wrapper)
    seconds = []
    for _ in range(args.steps):
        start = clock.now()
        train_step(model, batch, optim_wrapper)
        seconds.append(clock.now() - start)
    measured = dict(seconds=seconds, peak_memory_gb=used_gb(args.device, most=True) - before)
    if args.parts and not variant.compile:
        measured['parts'] = shares(model, batch, optim_wrapper, args.steps, clock)
    return measured


class Clock:
    """Wall time, synchronised with the device."""

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


def shares(model: nn.Module, batch: dict, optim_wrapper: Any, steps: int,
           clock: Clock) -> dict[str, float]:
    """The share of each part that the model has; forward passes without a name are the rest."""
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


# -- here ------------------------------------------------------------------------------------------


def alone(run: Callable, variant: Variant, args: argparse.Namespace) -> Any:
    """``run`` in a new process, so that nothing of an earlier one is in the figures."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
        return process.submit(in_words, run, variant, args).result()


def in_words(run: Callable, variant: Variant, args: argparse.Namespace) -> Any:
    """``run`` with an error that can travel between processes; torch.compile's cannot."""
    try:
        return run(variant, args)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f'{type(error).__name__}: {lines[0] if lines else "no message"}'
    raise RunError(reason)


def measure_all(variants: list[Variant], args: argparse.Namespace) -> list[dict]:
    """One row per variant; its turns alternate with the others'."""
    rows = {variant: dict(name(variant), turns=[], gflops=None, failed=None)
            for variant in variants}
    counted: dict[Path, Any] = {}
    with Progress(transient=True) as progress:
        turns = args.repeats if args.steps else 0
        bar = progress.add_task('', total=len(variants) * turns + len(args.configs))

        def attempt(run: Callable, variant: Variant) -> Any:
            progress.update(bar, description=f'{variant.config.stem} {variant.dtype}')
            with reason_in(rows[variant]):
                return alone(run, variant, args)

        for variant in variants:
            if variant.config not in counted:
                counted[variant.config] = attempt(count, variant)
                progress.advance(bar)
            rows[variant]['gflops'] = counted[variant.config]
        for _ in range(turns):
            for variant in variants:
                if rows[variant]['failed'] is None:
                    rows[variant]['turns'].append(attempt(measure, variant))
                progress.advance(bar)
    for row in rows.values():
        summarise(row, args.batch_size)
    add_ratios(list(rows.values()))
    return list(rows.values())


def name(variant: Variant) -> dict[str, Any]:
    return dict(config=str(variant.config), dtype=variant.dtype,
                compile='compiled' if variant.compile else 'eager')


@contextmanager
def reason_in(row: dict) -> Iterator[None]:
    """Write why a process failed, or was killed, into the row; Ctrl-C goes through."""
    try:
        yield
    except Exception as error:
        row['failed'] = str(error)


def summarise(row: dict, batch_size: int) -> None:
    turns = row.pop('turns')
    if row['failed'] is not None or not turns:
        return
    seconds = [value for turn in turns for value in turn['seconds']]
    median = statistics.median(seconds)
    row.update(
        seconds=[turn['seconds'] for turn in turns],
        step_seconds=dict(median=median, min=min(seconds), max=max(seconds)),
        images_per_second=dict(median=batch_size / median, min=batch_size / max(seconds),
                               max=batch_size / min(seconds)),
        epoch_minutes=EPOCH / batch_size * median / 60,
        peak_memory_gb=statistics.median(turn['peak_memory_gb'] for turn in turns))
    if 'parts' in turns[0]:
        row['parts'] = {part: statistics.median(turn['parts'][part] for turn in turns)
                        for part in turns[0]['parts']}


def add_ratios(rows: list[dict]) -> None:
    """Speed and memory relative to the first row of the same dtype and compile."""
    first: dict[tuple, dict] = {}
    for row in rows:
        base = first.setdefault((row['dtype'], row['compile']), row)
        if 'step_seconds' in row and 'step_seconds' in base:
            row['relative_speed'] = (
                row['images_per_second']['median'] / base['images_per_second']['median'])
            row['relative_memory'] = row['peak_memory_gb'] / base['peak_memory_gb']


def table(result: dict) -> str:
    """Markdown: one line per row, and the parts of those that have them."""
    rows = result['rows']
    names = {row['config']: Path(row['config']).stem for row in rows}
    head = ['config', 'dtype', '', 'images/s (min-max)', 'x', 'GFLOPs/image, forward',
            'forward + backward', f'{EPOCH:,} images, min', 'peak memory, GB', 'x']
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for row in rows:
        cells = [names[row['config']], row['dtype'], row['compile']]
        if row['failed'] is not None:
            cells += [f'failed: {row["failed"]}'.replace('|', '/'), *[''] * (len(head) - 4)]
        else:
            cells += figures(row)
        lines.append('| ' + ' | '.join(cells) + ' |')
    with_parts = [row for row in rows if 'parts' in row]
    if with_parts:
        parts = [part for part in (*PARTS, 'rest') if any(part in row['parts']
                                                          for row in with_parts)]
        lines += ['', '| share of a step | ' + ' | '.join(parts) + ' |',
                  '|' + '---|' * (len(parts) + 1)]
        for row in with_parts:
            cells = [f'{row["parts"][part]:.1%}' if part in row['parts'] else '–'
                     for part in parts]
            lines.append(f'| {names[row["config"]]}, {row["dtype"]} | ' + ' | '.join(cells) + ' |')
    where = f'{result["device"]}, torch {result["torch"]}, batch {result["batch_size"]}'
    return '\n'.join([f'{where}, images of {result["image_size"]} px', '', *lines, ''])


def figures(row: dict) -> list[str]:
    gflops = row['gflops'] or dict(forward=float('nan'), forward_backward=float('nan'))
    counted = [f'{gflops["forward"]:.1f}', f'{gflops["forward_backward"]:.1f}']
    if 'step_seconds' not in row:
        return ['', '', *counted, '', '', '']
    speed = row['images_per_second']
    speed_ratio, memory_ratio = (f'{row[key]:.2f}' if key in row else ''
                                 for key in ('relative_speed', 'relative_memory'))
    return [f'{speed["median"]:.2f} ({speed["min"]:.2f}-{speed["max"]:.2f})', speed_ratio,
            *counted, f'{row["epoch_minutes"]:.0f}', f'{row["peak_memory_gb"]:.2f}', memory_ratio]


def device_name(device: str) -> str:
    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    return f'CPU, {torch.get_num_threads()} threads'


def main() -> None:
    args = parse_args()
    variants = [Variant(config, dtype, compiled) for dtype in args.dtype
                for compiled in ([False, True] if args.compile else [False])
                for config in args.configs]
    result = dict(device=device_name(args.device), torch=torch.__version__,
                  batch_size=args.batch_size, image_size=args.image_size, steps=args.steps,
                  repeats=args.repeats, rows=measure_all(variants, args))
    text = table(result)
    print(text)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))
    if args.markdown:
        args.markdown.write_text(text)
    failed = [row for row in result['rows'] if row['failed'] is not None]
    if failed:
        raise SystemExit(f'{len(failed)} of {len(variants)} measurements failed.')


if __name__ == '__main__':
    with errors_in_one_sentence():
        main()
