"""Images that `rsrsd.py fetch` collects per second, from a server on this machine.

    python tools/benchmarks/fetch.py --images 300

The server, two processes of its own, answers every request at once with one of sixteen JPEG tiles
in its memory. The figures are those of the whole step: requests, decoding, assembling, resampling,
encoding, writing. "Per core" is per CPU second of the step's own process.
"""

import argparse
import io
import json
import multiprocessing
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

from pera_mm.collect.fetching import fetch

SERVERS = 2


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=300)
    parser.add_argument('--size', type=int, default=512, help='of an image, px')
    parser.add_argument('--concurrency', type=int, default=16)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--json', type=Path, help='write all figures here')
    return parser.parse_args()


def make_tiles() -> list[bytes]:
    """Sixteen tiles as busy as land: noise at several scales, JPEG."""
    rng = np.random.default_rng(0)
    tiles = []
    for _ in range(16):
        layers = [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
                  .resize((256, 256), Image.Resampling.BICUBIC) for side in (4, 16, 64, 256)]
        pixels = np.average([np.asarray(layer) for layer in layers], axis=0, weights=[4, 3, 2, 1])
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, 'JPEG', quality=85)
        tiles.append(file.getvalue())
    return tiles


def serve(listener: socket.socket, served: Any) -> None:
    tiles = make_tiles()

    class Handler(BaseHTTPRequestHandler):
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

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler, bind_and_activate=False)
    server.socket = listener
    server.serve_forever()


def measure(args: argparse.Namespace, url: str, served: Any) -> dict[str, float]:
    rng = np.random.default_rng(1)
    points = pd.DataFrame(dict(
        id=[f'{number:07}' for number in range(args.images)],
        lon=rng.uniform(-170, 170, args.images).round(6),
        lat=rng.uniform(-60, 60, args.images).round(6),
        gsd=np.exp(rng.uniform(np.log(0.3), np.log(10), args.images)).round(3)))
    source = dict(type='tiles', name='here', url=url, terms='none', attribution='none',
                  zooms=(0, 19), rate=1e6)
    with tempfile.TemporaryDirectory() as folder:
        points.to_csv(Path(folder, 'points.csv'), index=False)
        before = cpu_seconds()
        start = time.perf_counter()
        fetch(Path(folder), source=source, size=args.size,
              concurrency=args.concurrency, accept_terms='here')
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - before
        written = sum(path.stat().st_size for path in Path(folder).rglob('*.jpg'))
    tiles, served.value = served.value, 0
    return dict(images_per_second=args.images / seconds, images_per_core=args.images / cpu,
                tiles=tiles, tiles_per_second=tiles / seconds, tiles_per_core=tiles / cpu,
                megabytes=written / 1e6)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    args = parse_args()
    served = multiprocessing.Value('L')
    with socket.create_server(('127.0.0.1', 0), backlog=128) as listener:
        servers = [multiprocessing.Process(target=serve, args=(listener, served), daemon=True)
                   for _ in range(SERVERS)]
        for server in servers:
            server.start()
        url = f'http://127.0.0.1:{listener.getsockname()[1]}/{{z}}/{{x}}/{{y}}.jpg'
        runs = [measure(args, url, served) for _ in range(args.repeats)]
        for server in servers:
            server.terminate()
    for name in runs[0]:
        values = sorted(run[name] for run in runs)
        print(f'{name:20} {values[len(values) // 2]:10.1f}  ({values[0]:.1f}-{values[-1]:.1f})')
    if args.json:
        args.json.write_text(json.dumps(runs, indent=1))


if __name__ == '__main__':
    main()
