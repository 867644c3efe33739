"""Measure how many images `rsrsd.py fetch` collects per second from a server on this machine.

    python tools/benchmarks/fetch.py --images 300

The server has two processes and answers every request at once with one of sixteen JPEG tiles in its
memory. The figures include the whole step: requests, decoding, assembling, resampling, encoding,
writing. "Per core" is per CPU second of the step's own process.

The last two lines are the time and peak memory of the step if all of --points images already exist.
"""

import argparse
import io
import json
import math
import multiprocessing
import os
import re
import resource
import socket
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pera_mm.collect.fetch.results import IMAGES_PER_FOLDER
from pera_mm.collect.fetch.step import fetch
from pera_mm.files import check_writable
from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import whole_number

SERVERS = 2  # processes
TILES = 16  # different ones
TILE_SIZE = 256  # pixels
JPEG_QUALITY = 85


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=whole_number(1), default=300)
    parser.add_argument('--size', type=whole_number(1), default=512, help='of an image, px')
    parser.add_argument('--concurrency', type=whole_number(1), default=16)
    parser.add_argument('--repeats', type=whole_number(1), default=3)
    parser.add_argument('--points', type=whole_number(1), default=200_000,
                        help='of the finished folder; default: 200000')
    parser.add_argument('--json', type=Path, help='write all figures here')
    return parser.parse_args()


def make_tiles() -> list[bytes]:
    """Make JPEG tiles as detailed as land: noise at several scales."""
    rng = np.random.default_rng(0)
    tiles = []
    for _ in range(TILES):
        layers = [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
                  .resize((TILE_SIZE, TILE_SIZE), Image.Resampling.BICUBIC)
                  for side in (4, 16, 64, 256)]
        pixels = np.average([np.asarray(layer) for layer in layers], axis=0, weights=[4, 3, 2, 1])
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, 'JPEG', quality=JPEG_QUALITY)
        tiles.append(file.getvalue())
    return tiles


def serve(listener: socket.socket, served: Any) -> None:
    tiles = make_tiles()

    class CannedTileHandler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'  # connections are kept

        def do_GET(self) -> None:  # noqa: N802
            tile = tiles[sum(self.path.encode()) % len(tiles)]
            self.send_response(200)
            self.send_header('Content-Type', 'image/jpeg')
            self.send_header('Content-Length', str(len(tile)))
            self.end_headers()
            self.wfile.write(tile)
            with served:
                served.value += 1

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), CannedTileHandler, bind_and_activate=False)
    server.socket = listener
    server.serve_forever()


def make_points(count: int) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(dict(
        id=[f'{number:07}' for number in range(count)],
        lon=rng.uniform(-170, 170, count).round(6),
        lat=rng.uniform(-60, 60, count).round(6),
        gsd=np.exp(rng.uniform(np.log(0.3), np.log(10), count)).round(3)))


def run_step(folder: str, args: argparse.Namespace, url: str) -> None:
    source = dict(type='tiles', name='here', url=url, terms='none', attribution='none',
                  zooms=(0, 19), rate=1e6)
    fetch(Path(folder), source=source, size=args.size, concurrency=args.concurrency,
          accept_terms='here')


def measure(args: argparse.Namespace, url: str, served: Any) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        make_points(args.images).to_csv(Path(folder, 'points.csv'), index=False)
        before = cpu_seconds()
        start = time.perf_counter()
        run_step(folder, args, url)
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - before
        written = sum(path.stat().st_size for path in Path(folder).rglob('*.jpg'))
    tiles, served.value = served.value, 0
    return dict(images_per_second=args.images / seconds, images_per_core=args.images / cpu,
                tiles=tiles, tiles_per_second=tiles / seconds, tiles_per_core=tiles / cpu,
                megabytes=written / 1e6)


def measure_start(args: argparse.Namespace, url: str) -> dict[str, float]:
    """Fetch one image, copy its row for all others with empty files, and time a new start."""
    points = make_points(args.points)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        points[:1].to_csv(folder / 'points.csv', index=False)
        run_step(name, args, url)
        points.to_csv(folder / 'points.csv', index=False)
        row = json.loads((folder / 'fetch.jsonl').read_text().splitlines()[-1])
        with open(folder / 'fetch.jsonl', 'a') as journal:
            for number, (image, *point) in enumerate(points.itertuples(index=False)):
                if number:
                    row |= dict(id=image, point=point, group=number // IMAGES_PER_FOLDER)
                    file = folder / f'tiles/{row["group"]:03d}/{image}.jpg'
                    file.parent.mkdir(exist_ok=True)
                    os.mknod(file)
                    journal.write(json.dumps(row) + '\n')
        # In its own process, for its peak memory.
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            return pool.apply(start_again, (name, args, url))


def start_again(folder: str, args: argparse.Namespace, url: str) -> dict[str, float]:
    start = time.perf_counter()
    run_step(folder, args, url)
    seconds = time.perf_counter() - start
    # getrusage() would also count the process that started this one.
    peak = re.search(r'VmHWM:\s*(\d+) kB', Path('/proc/self/status').read_text())
    return dict(start_seconds=seconds, start_megabytes=int(peak[1]) / 1e3 if peak else math.nan)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    args = parse_args()
    if args.json is not None:
        check_writable(args.json.parent, 'give another --json')
    served = multiprocessing.Value('L')
    with socket.create_server(('127.0.0.1', 0), backlog=128) as listener:
        servers = [multiprocessing.Process(target=serve, args=(listener, served), daemon=True)
                   for _ in range(SERVERS)]
        for server in servers:
            server.start()
        url = f'http://127.0.0.1:{listener.getsockname()[1]}/{{z}}/{{x}}/{{y}}.jpg'
        runs = [measure(args, url, served) for _ in range(args.repeats)]
        start = measure_start(args, url)
        for server in servers:
            server.terminate()
    for name in runs[0]:
        values = sorted(run[name] for run in runs)
        print(f'{name:20} {values[len(values) // 2]:10.1f}  ({values[0]:.1f}-{values[-1]:.1f})')
    for name, value in start.items():
        print(f'{name:20} {value:10.1f}')
    if args.json:
        args.json.write_text(json.dumps(dict(runs=runs, start=start), indent=1))


if __name__ == '__main__':
    with errors_in_one_sentence():
        main()
