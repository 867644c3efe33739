"""Start time and memory of UnlabeledImages over millions of paths.

    python tools/benchmarks/file_index.py [--paths 5000000] [--workers 4] [--method fork]

Writes a list of paths of realistic length (no images: only their paths are looked up), opens it
as a training does, starts data loader workers, lets each look up 20,000 paths in random order, and
prints the seconds to start and the memory of all processes together: the proportional set size,
which counts a page shared by n processes as 1/n in each, minus what the processes take with a
list of 10,000 paths (Python, torch and OpenCV).
"""

import argparse
import os
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from pera_mm.datasets.sampler import DrawSampler
from pera_mm.datasets.unlabeled import UnlabeledImages

MIB = 2**20


class PathsOnly(Dataset):
    """The paths of the images in place of the images, and the memory of who looked them up."""

    def __init__(self, images: UnlabeledImages) -> None:
        self.images = images
        self.epoch_order = images.epoch_order

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[int, int]:
        assert len(self.images.sources[0].name(draw[0])) > 60
        return os.getpid(), draw[0]


def write_list(file: Path, count: int) -> None:
    """Paths as in RSRSD-like collections: about 70 bytes each."""
    with open(file, 'w') as stream:
        for i in range(count):
            stream.write(f'region_{i // 100_000:03}/sensor_gf2/scene_{i // 500:06}/'
                         f'L1A000{i:09}_tile_{i % 500:04}.tif\n')
    with open(file) as stream:
        first = file.parent / stream.readline().strip()
    first.parent.mkdir(parents=True, exist_ok=True)
    first.touch()  # at least one listed file must exist


def proportional_mib(pids: set[int]) -> float:
    """Proportional set size of the processes together, MiB."""
    kib = 0
    for pid in pids:
        for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines():
            if line.startswith('Pss:'):
                kib += int(line.split()[1])
    return kib / 1024


def measure(count: int, workers: int, method: str) -> tuple[float, float, float, float]:
    """Seconds to open, seconds to order an epoch, lookups per second, MiB in use."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'list.txt'
        write_list(file, count)
        begin = time.perf_counter()
        images = UnlabeledImages(str(file), [])
        opened = time.perf_counter()
        images.epoch_order(torch.Generator().manual_seed(0))
        ordered = time.perf_counter()
        loader = DataLoader(PathsOnly(images), sampler=DrawSampler(images), batch_size=100,
                            num_workers=workers, multiprocessing_context=method)
        batches = iter(loader)
        pids = {os.getpid(), *next(batches)[0].tolist()}
        begin_lookups = time.perf_counter()
        lookups = 0
        for pid, _ in islice(batches, 200 * workers):
            pids.update(pid.tolist())
            lookups += len(pid)
        rate = lookups / (time.perf_counter() - begin_lookups)
        return opened - begin, ordered - opened, rate, proportional_mib(pids)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--paths', type=int, default=5_000_000)
    parser.add_argument('--workers', type=int, default=4)
    parser.add_argument('--method', default='fork', choices=['fork', 'spawn', 'forkserver'])
    args = parser.parse_args()
    *_, empty = measure(10_000, args.workers, args.method)
    start, order, rate, full = measure(args.paths, args.workers, args.method)
    print(f'{args.paths:,} paths, {args.workers} {args.method}ed workers\n'
          f'start            {start:8.2f} s\n'
          f'order of an epoch{order:8.2f} s\n'
          f'lookups          {rate:8.0f} per second\n'
          f'memory           {full - empty:8.0f} MiB over all processes, the mapped list included '
          f'(+ {empty:.0f} MiB of Python and libraries)')


if __name__ == '__main__':
    main()
