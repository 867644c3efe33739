"""Measure what a training costs: the paper's Table 10 for any configs, in one run.

    python tools/benchmarks/resources.py configs/pera/pera_vits_rsrsd.py --parts
    python tools/benchmarks/resources.py CONFIG CONFIG ... --dtype fp32 bf16 --batch-size 4
    python tools/benchmarks/resources.py CONFIG ... --steps 0        # what is computed, alone

    python tools/benchmarks/resources.py --steps 0 --dtype bf16 --batch-size 8 \
        configs/potsdam_upernet_pera.py configs/segmentation/potsdam_upernet_pera_vitb.py

It times whole training steps on one random batch from the config's own pipeline: color views,
forward passes, losses, backward, optimizer, teacher update; no data loading, no logging. Every
measurement has its own process, and the configs take turns, so that a disturbance affects all of
them. Times are the median (fastest-slowest) of all steps of all repeats; the epoch is 100,000
images at that speed. GFLOPs are torch's count of matrix products, convolutions and attention, two
per multiply-add. Memory is what the run added to its process, with weights and optimizer (on CUDA:
the most that torch allocated). Ratios are to the first line of the same dtype and compile. A
measurement that fails is a line with the reason, and the exit code is 1.

bf16 is skipped, with the reason, on a CPU that takes twice as long in it as in float32.

A fine-tuning reads noise with labels, of --image-size. A second table has its parameters and the
GFLOPs of one forward pass by ViT / adapter / head, without the sampling of deformable attention and
RoIAlign, and the cost of a prediction of the batch. It also has the computed memory of a training
step of the batch, without and with activation checkpointing (model.backbone.with_cp): weights,
gradients, AdamW's moments and all that lives between the two passes, as memory.py follows it on
fake tensors. Not in it are RoIAlign and the losses of a detector, CUDA's context (about 0.5 GB),
workspaces, what the allocator wastes, and DDP's copy of the gradients.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from processes import in_new_process
from rich.progress import Progress
from steps import AMP, PARTS, Variant, count, measure

from pera_mm.engine.optim_wrapper import slow_bfloat16
from pera_mm.errors import RunError
from pera_mm.files import check_writable, write_whole
from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import add_cfg_options, add_device, whole_number
from pera_mm.stopping import stopped_in_one_line

EPOCH = 100_000  # images


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', type=Path, metavar='CONFIG',
                        help='of pre-trainings or fine-tunings')
    parser.add_argument('--batch-size', type=whole_number(1), default=4)
    parser.add_argument('--image-size', type=whole_number(1), default=512,
                        help='side of the images, px')
    parser.add_argument('--steps', type=whole_number(0), default=3,
                        help='steps to time; 0: compute only')
    parser.add_argument('--repeats', type=whole_number(1), default=3, help='turns of every config')
    add_device(parser)
    parser.add_argument('--dtype', nargs='+', choices=AMP, default=['fp32'],
                        help='bf16 is autocast, on a CPU too where it is fast')
    parser.add_argument('--compile', action='store_true', help='measure also with torch.compile')
    parser.add_argument('--parts', action='store_true', help='the share of each part of a step')
    parser.add_argument('--json', type=Path, help='write all figures here')
    parser.add_argument('--markdown', type=Path, help='write the table here')
    add_cfg_options(parser)
    return parser.parse_args()


def with_plain_error(run: Callable, variant: Variant, args: argparse.Namespace) -> Any:
    """Call ``run`` with errors that can travel between processes; torch.compile's cannot."""
    try:
        return run(variant, args)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f'{type(error).__name__}: {lines[0] if lines else "no message"}'
    raise RunError(reason)


def measure_all(variants: list[Variant], args: argparse.Namespace) -> list[dict]:
    """Measure a row per variant; the variants take turns."""
    on_cpu = args.steps and args.device == 'cpu' and 'bf16' in args.dtype
    reasons = dict(bf16=slow_bfloat16() if on_cpu else None)
    rows = {variant: dict(labels_of(variant), turns=[], gflops=None, failed=None,
                          skipped=reasons.get(variant.dtype))
            for variant in variants}
    counted: dict[Path, Any] = {}
    with Progress(transient=True) as progress:
        turns = args.repeats if args.steps else 0
        bar = progress.add_task('', total=len(variants) * turns + len(args.configs))

        def attempt(run: Callable, variant: Variant) -> Any:
            progress.update(bar, description=f'{variant.config.stem} {variant.dtype}')
            with failure_noted(rows[variant]):
                return in_new_process(with_plain_error, run, variant, args)

        for variant in variants:
            if variant.config not in counted:
                counted[variant.config] = attempt(count, variant)
                progress.advance(bar)
            rows[variant]['gflops'] = counted[variant.config]
        for _ in range(turns):
            for variant in variants:
                if rows[variant]['failed'] is None and rows[variant]['skipped'] is None:
                    rows[variant]['turns'].append(attempt(measure, variant))
                progress.advance(bar)
    for row in rows.values():
        summarize(row, args.batch_size)
    add_ratios(list(rows.values()))
    return list(rows.values())


def labels_of(variant: Variant) -> dict[str, Any]:
    return dict(config=str(variant.config), dtype=variant.dtype,
                compile='compiled' if variant.compile else 'eager')


@contextmanager
def failure_noted(row: dict) -> Iterator[None]:
    """Write into the row why a process failed or was killed; let Ctrl-C pass."""
    try:
        yield
    except Exception as error:
        row['failed'] = str(error)


def summarize(row: dict, batch_size: int) -> None:
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
    if 'forward_seconds' in turns[0]:
        row.update(
            forward_seconds=statistics.median(
                value for turn in turns for value in turn['forward_seconds']),
            forward_memory_gb=statistics.median(turn['forward_memory_gb'] for turn in turns))
    if 'parts' in turns[0]:
        row['parts'] = {part: statistics.median(turn['parts'][part] for turn in turns)
                        for part in turns[0]['parts']}


def add_ratios(rows: list[dict]) -> None:
    """Add speed and memory relative to the first row of the same dtype and compile."""
    first: dict[tuple, dict] = {}
    for row in rows:
        base = first.setdefault((row['dtype'], row['compile']), row)
        if 'step_seconds' in row and 'step_seconds' in base:
            row['relative_speed'] = (
                row['images_per_second']['median'] / base['images_per_second']['median'])
            # The kernel counts pages late: a tiny model may seem to need no memory.
            row['relative_memory'] = (row['peak_memory_gb'] / base['peak_memory_gb']
                                      if base['peak_memory_gb'] else math.nan)


def table(result: dict) -> str:
    """Write Markdown: a line per row, and the parts of the rows that have them."""
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
            cells += measured_cells(row)
        lines.append('| ' + ' | '.join(cells) + ' |')
    lines += shares_table(rows, names) + downstream_table(rows, names)
    where = f'{result["device"]}, torch {result["torch"]}, batch {result["batch_size"]}'
    return '\n'.join([f'{where}, images of {result["image_size"]} px', '', *lines, ''])


def shares_table(rows: list[dict], names: dict[str, str]) -> list[str]:
    """Write the shares of the parts of a step, for the rows that have them."""
    rows = [row for row in rows if 'parts' in row]
    if not rows:
        return []
    parts = [part for part in (*PARTS, 'rest') if any(part in row['parts'] for row in rows)]
    lines = ['', '| share of a step | ' + ' | '.join(parts) + ' |', '|' + '---|' * (len(parts) + 1)]
    for row in rows:
        cells = [f'{row["parts"][part]:.1%}' if part in row['parts'] else '–' for part in parts]
        lines.append(f'| {names[row["config"]]}, {row["dtype"]} | ' + ' | '.join(cells) + ' |')
    return lines


def downstream_table(rows: list[dict], names: dict[str, str]) -> list[str]:
    """Write parameters, GFLOPs by part, memory and the cost of a prediction of fine-tunings."""
    rows = [row for row in rows if row['gflops'] and 'gflops_by_part' in row['gflops']]
    if not rows:
        return []
    head = ['config', 'dtype', '', 'input', 'parameters, M: ViT / adapter / head',
            'GFLOPs: ViT / adapter / head', 'training, GB, computed: plain / checkpointed',
            'prediction, s', 'prediction, GB']
    lines = ['', '| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for row in rows:
        counted = row['gflops']
        pair = 'a pair of ' if counted['dates'] == 2 else ''
        groups = (counted['parameters_by_part'], counted['gflops_by_part'],
                  counted['memory_gb'][row['dtype']])
        values_of_groups = [' / '.join(f'{value:.1f}' for value in group.values())
                            for group in groups]
        measured = [f'{row["forward_seconds"]:.2f}', f'{row["forward_memory_gb"]:.1f}'] \
            if 'forward_seconds' in row else ['', '']
        cells = [names[row['config']], row['dtype'], row['compile'],
                 f'{pair}{counted["side"]} px', *values_of_groups, *measured]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return lines


def measured_cells(row: dict) -> list[str]:
    gflops = row['gflops'] or dict(forward=float('nan'), forward_backward=float('nan'))
    counted = ['' if gflops[key] is None else f'{gflops[key]:.1f}'
               for key in ('forward', 'forward_backward')]
    if 'step_seconds' not in row:
        skipped = f'skipped: {row["skipped"]}' if row['skipped'] else ''
        return [skipped, '', *counted, '', '', '']
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
    for option, file in (('--json', args.json), ('--markdown', args.markdown)):
        if file is not None:
            check_writable(file.parent, f'give another {option}')
    variants = [Variant(config, dtype, compiled) for dtype in args.dtype
                for compiled in ([False, True] if args.compile else [False])
                for config in args.configs]
    result = dict(device=device_name(args.device), torch=torch.__version__,
                  batch_size=args.batch_size, image_size=args.image_size, steps=args.steps,
                  repeats=args.repeats, rows=measure_all(variants, args))
    text = table(result)
    print(text)
    if args.json:
        write_whole(args.json, json.dumps(result, indent=2).encode())
    if args.markdown:
        args.markdown.write_text(text)
    failed = [row for row in result['rows'] if row['failed'] is not None]
    if failed:
        raise SystemExit(f'{len(failed)} of {len(variants)} measurements failed.')


if __name__ == '__main__':
    with stopped_in_one_line(), errors_in_one_sentence():
        main()
