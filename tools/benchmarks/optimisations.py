"""What each optimisation of the PerA step is worth: the step with all of them, and without one.

    python tools/benchmarks/optimisations.py configs/pera/pera_vits_rsrsd.py --batch-size 4

One process, one batch; the variants take turns, a step each, so that a disturbed minute hits all
alike. The time without an optimisation over the time with all is what it brings. What is left out
is replaced by the plain way, which computes the same (tests/models).
"""

import argparse
import ctypes
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from mmengine.config import DictAction
from mmengine.optim import build_optim_wrapper
from resources import Clock, Variant, build, device_name, load, make_batch, train_step
from rich.progress import track
from torch import Tensor, nn

from pera_mm.launch import (
    M_MMAP_MAX,
    M_TOP_PAD,
    M_TRIM_THRESHOLD,
    errors_in_one_sentence,
    keep_freed_memory,
)
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.models.heads.cosine_head import WeightNormLinear
from pera_mm.models.losses import distillation_loss
from pera_mm.models.selfsup import self_distillation
from pera_mm.models.selfsup.teacher import Network

M_MMAP_THRESHOLD = -3  # glibc's malloc.h


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path, help='a PerA config')
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--image-size', type=int, default=512, help='side of the images, px')
    parser.add_argument('--rounds', type=int, default=5, help='steps of every variant')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    return parser.parse_args()


# -- the plain ways --------------------------------------------------------------------------------


def embed_every_patch(vit: PerAViT, images: Tensor, indices: Tensor) -> Tensor:
    """Embed all patches, then take those that are seen."""
    rows, size = len(images), vit.patch_size
    every = torch.arange(images.shape[2] // size * (images.shape[3] // size),
                         device=images.device).expand(rows, -1)
    tokens = EMBED(vit, images, every)
    chosen = indices.unsqueeze(2).expand(-1, -1, tokens.shape[2])
    return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, chosen)], dim=1)


def encode_every_token(vit: PerAViT, groups: list[Tensor], start: int = 0, stop: int | None = None,
                       outputs: Sequence[int | None] | None = None) -> list[Tensor]:
    """The last layer computes all tokens."""
    return ENCODE(vit, groups, start, stop)


def encode_apart(vit: PerAViT, groups: list[Tensor], start: int = 0, stop: int | None = None,
                 outputs: Sequence[int | None] | None = None) -> list[Tensor]:
    """Each crop size has its own pass through the linear layers."""
    wanted = [None] * len(groups) if outputs is None else [[number] for number in outputs]
    return [ENCODE(vit, [group], start, stop, number)[0] for group, number in zip(groups, wanted)]


def normalise_prototypes(layer: WeightNormLinear, x: Tensor) -> Tensor:
    """Write the normalised matrix at every call."""
    return F.linear(x, layer.weight_g * F.normalize(layer.weight_v, dim=1))


def project_apart(network: Network, groups: list[Tensor],
                  shapes: list[tuple[int, int]]) -> list[Tensor]:
    """One call of the head for each crop size."""
    return [PROJECT(network, [group], [shape])[0] for group, shape in zip(groups, shapes)]


def torch_cross_entropy(logits: Tensor, targets: Callable[[slice], Tensor],
                        temperature: float) -> Tensor:
    return F.cross_entropy(logits / temperature, targets(slice(None)), reduction='sum')


@torch.no_grad()
def ema_one_by_one(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    for old, new in zip(teacher.parameters(), student.parameters()):
        old.mul_(momentum).add_(new, alpha=1 - momentum)


@contextmanager
def memory_returned() -> Iterator[None]:
    """The C library's defaults."""
    for parameter, value in ((M_MMAP_MAX, 65536), (M_TRIM_THRESHOLD, 2**17), (M_TOP_PAD, 2**17),
                             (M_MMAP_THRESHOLD, 2**17)):
        ctypes.CDLL(None).mallopt(parameter, value)
    yield
    keep_freed_memory()


EMBED, ENCODE, PROJECT = PerAViT.embed, PerAViT.encode, Network.project
PLAIN: dict[str, Callable[[], Any]] = {
    'only seen patches are embedded': lambda: patch.object(PerAViT, 'embed', embed_every_patch),
    'the last layer computes only what is read':
        lambda: patch.object(PerAViT, 'encode', encode_every_token),
    'all crops share the linear layers': lambda: patch.object(PerAViT, 'encode', encode_apart),
    'one head call for all crops': lambda: patch.object(Network, 'project', project_apart),
    'prototypes are never written normalised':
        lambda: patch.object(WeightNormLinear, 'forward', normalise_prototypes),
    'cross-entropy keeps its gradient alone':
        lambda: patch.object(distillation_loss, 'soft_cross_entropy', torch_cross_entropy),
    'EMA of all tensors at once':
        lambda: patch.object(self_distillation, 'ema_update', ema_one_by_one),
    'freed memory is kept (CPU)': memory_returned,
}


# -- measuring -------------------------------------------------------------------------------------


@contextmanager
def bfloat16(optim_wrapper: Any) -> Iterator[None]:
    before = optim_wrapper.dtype, optim_wrapper.on_cpu
    optim_wrapper.dtype, optim_wrapper.on_cpu = torch.bfloat16, True
    yield
    optim_wrapper.dtype, optim_wrapper.on_cpu = before


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of the steps with all optimisations ('all'), without each, and in bfloat16."""
    cfg = load(Variant(args.config, 'fp32', False), args)
    model = build(cfg, args.device)
    batch = make_batch(cfg, args.batch_size, args.image_size)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    plain = dict(PLAIN)
    if args.device == 'cpu':
        keep_freed_memory()
    else:
        del plain['freed memory is kept (CPU)']

    def step(variant: Any) -> float:
        with variant:
            start = clock.now()
            train_step(model, batch, optim_wrapper)
            return clock.now() - start

    clock = Clock(args.device)
    variants: dict[str, Callable[[], Any]] = dict(
        all=nullcontext, **plain, bfloat16=partial(bfloat16, optim_wrapper))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in track(range(args.rounds + 1), description='rounds', transient=True):
        for name, spent in seconds.items():
            taken = step(variants[name]())
            if turn:  # the first round warms up
                spent.append(taken)
    return seconds


def main() -> None:
    args = parse_args()
    seconds = measure(args)
    whole = statistics.median(seconds['all'])
    print(f'{args.config} on {device_name(args.device)}, torch {torch.__version__}, batch '
          f'{args.batch_size}, float32: {whole:.3f} s a step ({min(seconds["all"]):.3f}-'
          f'{max(seconds["all"]):.3f})\n')
    print('| optimisation | step without it, s (min-max) | times |\n|---|---|---|')
    for name, spent in seconds.items():
        if name not in ('all', 'bfloat16'):
            print(f'| {name} | {figures(spent)} | {statistics.median(spent) / whole:.3f} |')
    half = seconds['bfloat16']
    print(f'\nin bfloat16: {figures(half)} s, {whole / statistics.median(half):.2f} times as fast')


def figures(spent: list[float]) -> str:
    return f'{statistics.median(spent):.3f} ({min(spent):.3f}-{max(spent):.3f})'


if __name__ == '__main__':
    with errors_in_one_sentence():
        main()
