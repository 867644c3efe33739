"""Parameters, arithmetic, time and memory of the backbone, the adapter and the head of each task.

    python tools/benchmarks/heads.py                               # counted only: seconds
    python tools/benchmarks/heads.py --vits base --measure         # and run here
    python tools/benchmarks/heads.py --tasks upernet --measure --device cuda --batch-size 8

The models are those of the configs, at the paper's input sizes. Parameters and the GFLOPs of one
forward pass are counted on the meta device; GFLOPs are torch's count, two per multiply-add, of
matrix products, convolutions and attention; the sampling of deformable attention and of RoIAlign is
not in it. Each measurement runs in a process of its own. Memory is what the model's run added to
that process, weights and optimizer included (on CUDA: what torch allocated at most).
"""

import argparse
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pera_mm  # noqa: F401  activates the bridges
from pera_mm.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs'
BOXES = 10  # per image; DIOR has eight


class Task(NamedTuple):
    """A config, the side of its input in pixels and the dates of an input."""

    config: str
    side: int
    dates: int = 1


TASKS = {
    'classification': Task('aid_tr20_pera', 512),
    'upernet': Task('potsdam_upernet_pera', 512),
    'bit': Task('levircd_bit_pera', 512, dates=2),
    'faster-rcnn': Task('dior_faster_rcnn_pera', 512),
    'faster-rcnn-800': Task('dior_faster_rcnn_pera', 800),
}
VITS = {'base': '_vitb', 'pera-g': ''}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    parser.add_argument('--vits', nargs='+', choices=VITS, default=list(VITS))
    parser.add_argument('--measure', action='store_true', help='run the models, too')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--batch-size', type=int, default=2,
                        help='of the measurements; UPerNet trains on two at least')
    parser.add_argument('--steps', type=int, default=3, help='timed ones, after one to warm up')
    parser.add_argument('--with-cp', action='store_true', help='activation checkpointing')
    return parser.parse_args()


def build(task: Task, vit: str, with_cp: bool, device: str) -> tuple[Config, nn.Module]:
    """The config's model, its weights random."""
    warnings.simplefilter('ignore')  # the toolboxes' advice would tear the table apart
    MMLogger.get_instance('heads', log_level='WARNING')
    cfg = Config.fromfile(CONFIGS / f'{task.config}{VITS[vit]}.py')
    init_default_scope(cfg.default_scope)
    backbone = cfg.model.backbone
    cfg_vit = backbone.get('vit', backbone)
    cfg_vit.update(img_size=task.side, init_cfg=None)
    backbone.with_cp = with_cp
    with torch.device(device):
        model = MODELS.build(cfg.model)
    if device != 'meta':
        model.init_weights()
    return cfg, model.to(device)


# -- counted -----------------------------------------------------------------------------------


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def gflops(run: Callable[[], Any]) -> float:
    # The counter knows the operators of plain attention on every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def forward(model: nn.Module, images: Tensor) -> None:
    """Everything that computes in a forward pass, without choices that depend on the pixels."""
    if not hasattr(model, 'roi_head'):
        model(images, mode='tensor')
        return
    model.rpn_head(model.extract_feat(images))
    extractor, proposals = model.roi_head.bbox_roi_extractor, model.test_cfg.rpn.max_per_img
    size = extractor.roi_layers[0].output_size
    model.roi_head.bbox_head(images.new_empty(proposals, extractor.out_channels, *size))


def count(task: Task, vit: str) -> list[str]:
    """Cells of the table: parameters and GFLOPs of ViT / adapter / head."""
    _, model = build(task, vit, with_cp=False, device='meta')
    model.eval()
    image = torch.empty(1, 3, task.side, task.side, device='meta')
    images = torch.cat([image] * task.dates, dim=1)
    backbone = model.backbone
    has_adapter = hasattr(backbone, 'vit')
    plain = backbone.vit if has_adapter else backbone
    parameters = [millions(plain), millions(backbone), millions(model)]
    flops = [task.dates * gflops(lambda: plain(image)),
             task.dates * gflops(lambda: backbone(image)),
             gflops(lambda: forward(model, images))]
    return [' / '.join(f'{value:.1f}' for value in
                       (part[0], part[1] - part[0], part[2] - part[1]))
            for part in (parameters, flops)]


# -- measured ----------------------------------------------------------------------------------


def make_batch(cfg: Config, task: Task, batch_size: int) -> dict:
    """Noise with labels, as the data loader would give it to the model."""
    samples: list[Any] = []
    shape = (task.side, task.side)
    meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1., 1.))
    for _ in range(batch_size):
        sample: Any
        if cfg.default_scope == 'mmpretrain':
            from mmpretrain.structures import DataSample
            sample = DataSample(metainfo=meta).set_gt_label(0)
        elif cfg.default_scope == 'mmseg':
            from mmseg.structures import SegDataSample
            sample = SegDataSample(metainfo=meta)
            sample.gt_sem_seg = PixelData(
                data=torch.randint(0, cfg.model.decode_head.num_classes, (1, *shape)))
        else:
            from mmdet.structures import DetDataSample
            sample = DetDataSample(metainfo=meta)
            corners = torch.rand(BOXES, 2) * task.side * 0.8
            sample.gt_instances = InstanceData(
                bboxes=torch.cat([corners, corners + task.side * 0.1], dim=1),
                labels=torch.randint(0, cfg.model.roi_head.bbox_head.num_classes, (BOXES,)))
        samples.append(sample)
    pixels = torch.randint(0, 256, (batch_size, 3 * task.dates, *shape), dtype=torch.uint8)
    inputs = pixels if cfg.default_scope == 'mmpretrain' else list(pixels)
    return dict(inputs=inputs, data_samples=samples)


def used_gb(device: str, most: bool) -> float:
    """What this process holds now, or held at most."""
    if device.startswith('cuda'):
        now, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        return (peak if most else now) / 1e9
    # Not getrusage: its maximum survives the start of a new program.
    field = 'VmHWM:' if most else 'VmRSS:'
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


def seconds(run: Callable[[], Any], steps: int, device: str) -> float:
    """Median over ``steps``, after one to warm up."""
    spent = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        run()
        if device.startswith('cuda'):
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[1:])


def measure(name: str, vit: str, args: argparse.Namespace) -> list[str]:
    """Cells of the table: seconds and memory of a forward pass and of a training step."""
    torch.manual_seed(0)
    task = TASKS[name]
    before = used_gb(args.device, most=False)
    cfg, model = build(task, vit, args.with_cp, args.device)
    batch = make_batch(cfg, task, args.batch_size)
    model.eval()
    with torch.no_grad():
        forward_seconds = seconds(lambda: model.test_step(batch), args.steps, args.device)
    forward_gb = used_gb(args.device, most=True) - before
    model.train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    step_seconds = seconds(lambda: model.train_step(batch, optim_wrapper), args.steps, args.device)
    step_gb = used_gb(args.device, most=True) - before
    return [f'{forward_seconds:.2f}', f'{forward_gb:.1f}', f'{step_seconds:.2f}', f'{step_gb:.1f}']


def measure_alone(name: str, vit: str, args: argparse.Namespace) -> list[str]:
    """:func:`measure` in a new process, so that nothing of an earlier one is in the figures."""
    with multiprocessing.get_context('spawn').Pool(1) as process:
        return process.apply(measure, (name, vit, args))


def main() -> None:
    args = parse_args()
    head = ['task', 'input', 'ViT', 'parameters, M: ViT / adapter / head',
            'GFLOPs: ViT / adapter / head']
    if args.measure:
        where = torch.cuda.get_device_name() if args.device.startswith('cuda') else (
            f'CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores')
        print(f'{where}, torch {torch.__version__}, batch {args.batch_size}, activation '
              f'checkpointing {"on" if args.with_cp else "off"}\n')
        head += ['forward, s', 'forward, GB', 'training step, s', 'training step, GB']
    print('| ' + ' | '.join(head) + ' |\n|' + '---|' * len(head))
    for name in args.tasks:
        task = TASKS[name]
        pair = 'a pair of ' if task.dates == 2 else ''
        for vit in args.vits:
            cells = [name, f'{pair}{task.side} px', vit, *count(task, vit)]
            if args.measure:
                cells += measure_alone(name, vit, args)
            print('| ' + ' | '.join(cells) + ' |', flush=True)


if __name__ == '__main__':
    main()
