"""Measure start time and memory of UnlabeledImages with millions of images.

    python tools/benchmarks/file_index.py [--paths 5000000] [--workers 4] [--method fork]

It writes a list of paths of realistic length, the index of tar shards and an LMDB (no images). It
opens each as a training does at every start but its first, starts data loader workers, and lets
each look up 20,000 images in the order of an epoch. It prints the seconds to start and the memory
of all processes together: the proportional set size, which counts a page shared by n processes as
1/n in each, minus the memory with 10,000 images (Python, torch and OpenCV).

A look-up returns the name of a path, the header of an image in a tar (here a hole), or the value of
a key in the LMDB: 8 bytes, the size of a real image's place in its tree.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import lmdb
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pera_mm.datasets.packed import LmdbImages, position_key
from pera_mm.datasets.sampler import DrawSampler
from pera_mm.datasets.shard_index import INDEX, PLACE, SHARD, write_index
from pera_mm.datasets.unlabeled import UnlabeledImages
from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import whole_number

PER_SHARD, IMAGE_BLOCKS, JSON_BLOCKS = 1000, 118, 2  # 60 KB per image
BLOCK = 512  # bytes, of a tar
FEW_IMAGES = 10_000  # for the memory of Python and libraries alone
LMDB_BYTES = 1 << 34  # most that the file may take
BATCH, BATCHES_PER_WORKER = 100, 200  # of the look-ups
LEAST_PATHS = 2 * BATCH


class PathsOnly(Dataset):
    """A data set that looks an image up without reading it, and gives the process id."""

    def __init__(self, images: UnlabeledImages) -> None:
        self.images = images
        self.epoch_order = images.epoch_order

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[int, int]:
        source = self.images.sources[0]
        assert source.read(draw[0]) if isinstance(source, LmdbImages) else source.name(draw[0])
        return os.getpid(), draw[0]


def write_list(folder: Path, count: int) -> Path:
    """Write paths as in collections like RSRSD: about 70 bytes each."""
    file = folder / 'list.txt'
    with open(file, 'w') as stream:
        for i in range(count):
            stream.write(f'region_{i // 100_000:03}/sensor_gf2/scene_{i // 500:06}/'
                         f'L1A000{i:09}_tile_{i % 500:04}.tif\n')
    with open(file) as stream:
        first = file.parent / stream.readline().strip()
    first.parent.mkdir(parents=True, exist_ok=True)
    first.touch()  # at least one listed file must exist
    return file


def write_shards(folder: Path, count: int) -> Path:
    """Write tars that are holes, and the index of the images that they would hold."""
    numbers = np.arange(count)
    places = np.empty(count, PLACE)
    places['shard'] = numbers // PER_SHARD
    places['offset'] = BLOCK * (1 + numbers % PER_SHARD * (1 + IMAGE_BLOCKS + JSON_BLOCKS))
    places['size'] = BLOCK * IMAGE_BLOCKS
    size = BLOCK * PER_SHARD * (1 + IMAGE_BLOCKS + JSON_BLOCKS)
    shards = [(b'%06d.tar' % number, size) for number in range(-(-count // PER_SHARD))]
    for name, _ in shards:
        with open(folder / name.decode(), 'wb') as file:
            file.truncate(size)
    write_index(folder / INDEX, np.array(shards, SHARD), [places])
    return folder


def write_lmdb(folder: Path, count: int) -> Path:
    """Write keys with values of 8 bytes."""
    with lmdb.open(str(folder), map_size=LMDB_BYTES) as environment:
        with environment.begin(write=True) as transaction:
            for position in range(count):
                transaction.put(position_key(position), bytes(8), append=True)
    return folder


WRITERS = dict(list=write_list, webdataset=write_shards, lmdb=write_lmdb)


def proportional_mib(pids: set[int]) -> float:
    """Sum the proportional set sizes of the processes, in MiB."""
    kib = 0
    for pid in pids:
        for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines():
            if line.startswith('Pss:'):
                kib += int(line.split()[1])
    return kib / 1024


def measure(write: Callable[[Path, int], Path], count: int, workers: int,
            method: str) -> tuple[float, float, float, float]:
    """Measure seconds to open, seconds to order an epoch, look-ups per second, MiB in use."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), count)
        begin = time.perf_counter()
        images = UnlabeledImages(str(path), [])
        opened = time.perf_counter()
        images.epoch_order(torch.Generator().manual_seed(0))
        ordered = time.perf_counter()
        loader = DataLoader(PathsOnly(images), sampler=DrawSampler(images), batch_size=BATCH,
                            num_workers=workers, multiprocessing_context=method)
        batches = iter(loader)
        pids = {os.getpid(), *next(batches)[0].tolist()}
        begin_lookups = time.perf_counter()
        lookups = 0
        for pid, _ in islice(batches, min(BATCHES_PER_WORKER * workers, count // BATCH - 2)):
            pids.update(pid.tolist())
            lookups += len(pid)
        rate = lookups / (time.perf_counter() - begin_lookups)
        return opened - begin, ordered - opened, rate, proportional_mib(pids)


def start_table(count: int, workers: int, method: str = 'fork') -> str:
    """Measure all forms and write a Markdown table."""
    lines = [f'{count:,} images, {workers} {method}ed workers; MiB over all processes:', '',
             '| form | start, s | order of an epoch, s | lookups/s | memory, MiB |',
             '|---|---:|---:|---:|---:|']
    for form, write in WRITERS.items():
        *_, empty = measure(write, FEW_IMAGES, workers, method)
        start, order, rate, full = measure(write, count, workers, method)
        lines.append(f'| {form} | {start:.2f} | {order:.2f} | {rate:,.0f} | {full - empty:.0f} |')
    return '\n'.join([*lines, '', f'Python and libraries take {empty:.0f} MiB more.'])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--paths', type=whole_number(LEAST_PATHS), default=5_000_000)
    parser.add_argument('--workers', type=whole_number(1), default=4)
    parser.add_argument('--method', default='fork', choices=['fork', 'spawn', 'forkserver'])
    args = parser.parse_args()
    print(start_table(args.paths, args.workers, args.method))


if __name__ == '__main__':
    with errors_in_one_sentence():
        main()
