"""Measure images per second and core of each packed form, and the start with 5 million images.

    python tools/benchmarks/packed.py                         # 2,000 generated 512 x 512 JPEGs
    python tools/benchmarks/packed.py --work-dir work_dirs/collect/mine --folder /mnt/nfs/tmp

The same images are packed in every form and read in the order of an epoch by one process and one
thread: their bytes when the page cache has them, their bytes after the cache was dropped (a virtual
disk may have its own cache), and decoded as a training reads them. "Found" is what only the first
start does, with a warm cache: walk a folder, or read the headers of tars. ``--work-dir`` takes the
kept tiles of a collection in place of generated ones; ``--folder`` is on the disk to measure. After
that file_index.py measures the start.
"""

import argparse
import gc
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import pandas as pd
import torch
from data_pipeline import write_textures
from file_index import LEAST_PATHS, start_table

from pera_mm.collect.common.tables import TILE
from pera_mm.collect.pack.step import FORMS, pack
from pera_mm.datasets.sampler import Draw
from pera_mm.datasets.shard_index import INDEX
from pera_mm.datasets.unlabeled import UnlabeledImages
from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import whole_number


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, help='has tiles, kept.csv; default: generated')
    parser.add_argument('--folder', type=Path, help='for the packed sets, which are temporary')
    parser.add_argument('--images', type=whole_number(1), default=2000, help='to generate')
    parser.add_argument('--repeats', type=whole_number(1), default=5)
    parser.add_argument('--paths', type=whole_number(0), default=5_000_000,
                        help='of the start; 0: skip it')
    parser.add_argument('--workers', type=whole_number(1), default=4, help='of the start')
    args = parser.parse_args()
    if 0 < args.paths < LEAST_PATHS:
        parser.error(f'argument --paths: expected 0 or at least {LEAST_PATHS}, got {args.paths}')
    return args


def write_tiles(folder: Path, count: int) -> None:
    """Write copies of 64 JPEGs, each with different bytes at its end, and their kept.csv."""
    textures = folder / 'textures'
    textures.mkdir()
    write_textures(textures)
    jpegs = [path.read_bytes() for path in sorted(textures.iterdir())]
    rows = []
    (folder / 'tiles').mkdir()
    for number in range(count):
        data = jpegs[number % len(jpegs)] + b'%07d' % number
        file = f'tiles/{number:07}.jpg'
        (folder / file).write_bytes(data)
        rows.append((f'{number:07}', 0, 0, '', '', 1, '', 'drawn', '', file,
                     hashlib.sha256(data).hexdigest()))
    pd.DataFrame(rows, columns=list(TILE)).to_csv(folder / 'kept.csv', index=False)


def pack_as(form: str, source: Path, folder: Path) -> Path:
    """Pack the tiles of a work folder below another one."""
    work = folder / form
    work.mkdir()
    (work / 'tiles').symlink_to((source / 'tiles').absolute())
    (work / 'kept.csv').symlink_to((source / 'kept.csv').absolute())
    pack(work, form=form)
    return work / 'packed'


def drop_from_cache(folder: Path) -> None:
    """Drop the files of a folder from the page cache; a mapped LMDB must be closed first."""
    for path in folder.rglob('*'):
        if path.is_file():
            with open(path, 'rb') as file:
                os.fsync(file.fileno())  # unwritten data cannot be dropped
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def found_per_second(folder: Path, repeats: int) -> float:
    """Return the median speed of first starts."""
    seconds = []
    for _ in range(repeats):
        (folder / INDEX).unlink(missing_ok=True)
        begin = time.perf_counter()
        count = len(UnlabeledImages(str(folder), []))
        seconds.append(time.perf_counter() - begin)
    return count / statistics.median(seconds)


def images_per_second(folder: Path, read: Callable[[UnlabeledImages, int], object],
                      repeats: int, cold: bool = False) -> float:
    """Return the median over passes in the order of an epoch; each opens the data set anew."""
    speeds = []
    for repeat in range(repeats):
        if cold:
            gc.collect()
            drop_from_cache(folder)
        dataset = UnlabeledImages(str(folder), [])
        order = dataset.epoch_order(torch.Generator().manual_seed(repeat)).tolist()
        begin = time.perf_counter()
        for index in order:
            read(dataset, index)
        speeds.append(len(order) / (time.perf_counter() - begin))
        del dataset
    return statistics.median(speeds)


def read_bytes(dataset: UnlabeledImages, index: int) -> bytes:
    return dataset.sources[0].read(index)


def decode(dataset: UnlabeledImages, index: int) -> dict:
    return dataset[Draw(index, 0)]


def main() -> None:
    """Measure and print."""
    args = parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    lines = ['| form | found: images/s | bytes, cached: images/s | cold | decoded |',
             '|---|---:|---:|---:|---:|']
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        if args.work_dir is None:
            write_tiles(folder, args.images)
        for form in FORMS:
            packed = pack_as(form, args.work_dir or folder, folder)
            images_per_second(packed, read_bytes, 1)  # into the cache
            cached = images_per_second(packed, read_bytes, args.repeats)
            found = found_per_second(packed, args.repeats)
            decoded = images_per_second(packed, decode, args.repeats)
            cold = images_per_second(packed, read_bytes, args.repeats, cold=True)
            speeds = (found, cached, cold, decoded)
            lines.append(f'| {form} | {" | ".join(f"{speed:,.0f}" for speed in speeds)} |')
        size = sum(path.stat().st_size for path in packed.rglob('*'))
    print('\n'.join([*lines, '', f'{size / 1e6:,.0f} MB; medians of {args.repeats} passes.', '']))
    if args.paths:
        print(start_table(args.paths, args.workers))


if __name__ == '__main__':
    with errors_in_one_sentence():
        main()
