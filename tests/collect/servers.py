"""A real tile server on 127.0.0.1 that misbehaves on demand, and counts what it did."""

import io
import re
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
from PIL import Image

from pera_mm.collect.fetch.mercator import flip_row, from_quadkey

Behavior = Callable[[str, int], str]  # path and number of earlier requests to a response's kind


def picture(zoom: int, column: int, row: int, size: int = 256) -> np.ndarray:
    """Draw a smooth picture that continues in the next tile: uint8 [size, size, 3]."""
    x = column * size + np.arange(size)
    y = row * size + np.arange(size)[:, None]
    waves = [np.sin(x / 37) + np.cos(y / 53), np.sin((x + y) / 41) + 0 * y, np.cos(x / 29 - y / 47)]
    return (127.5 + 60 * np.stack(waves, axis=2)).round().astype(np.uint8)


def encode(pixels: np.ndarray, form: str = 'JPEG') -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, quality=95)
    return stream.getvalue()


PATHS = {  # of the protocols, from the host on
    'XYZ': '/{z}/{x}/{y}',
    'TMS': '/tms/{z}/{x}/{-y}',
    'quadkey': '/q/{quadkey}',
    'WMTS': '/wmts?TILEMATRIX=EPSG:3857:{TileMatrix}&TILEROW={TileRow}&TILECOL={TileCol}',
}


def place_of(path: str) -> tuple[int, int, int]:
    """Return zoom, column and row of a path of any of the protocols."""
    path = unquote(path)
    if path.startswith('/q/'):
        return from_quadkey(path[3:])
    if path.startswith('/wmts'):
        zoom, row, column = map(int, re.findall(r'\d+(?=&|$)', path))
        return zoom, column, row
    zoom, column, row = map(int, path.partition('?')[0].split('/')[-3:])
    return zoom, column, flip_row(row, zoom) if path.startswith('/tms/') else row


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass  # clients that disconnect are part of the tests


class Asked(NamedTuple):
    """A line of the server's log."""

    path: str
    kind: str
    time: float  # monotonic
    whole: bool  # a good tile that was sent to its last byte


class TileServer:
    """A context that serves tiles at ``PATHS``; ``behave`` decides on the kind of every response.

    Kinds: good; slow (0.3 s); busy (429, Retry-After: 1); busy-date (the same as a date);
    busy-long (Retry-After of a day); wait-403 (403, Retry-After: 1); 500 and other statuses by
    number; short (fewer bytes than Content-Length says); cut (half a JPEG); html; json; endless
    (until the client disconnects); closed (no response); silent (none for 20 s).

    ``draw`` returns the file of a tile for zoom, column and row.
    """

    def __init__(self, behave: Behavior = lambda path, before: 'good', size: int = 256,
                 draw: Callable[[int, int, int], bytes] | None = None) -> None:
        draw = draw or (lambda *place: encode(picture(*place, size)))
        self.log: list[Asked] = []
        self.agents: set[str] = set()
        counts: Counter[str] = Counter()
        lock, self.over = Lock(), Event()
        tiles = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                with lock:
                    kind = behave(self.path, counts[self.path])
                    counts[self.path] += 1
                tiles.agents.add(self.headers.get('User-Agent', ''))
                start, whole = time.monotonic(), False
                try:
                    whole = self.answer(kind)
                except OSError:  # the client has disconnected
                    self.close_connection = True
                with lock:
                    tiles.log.append(Asked(self.path, kind, start, whole))

            def answer(self, kind: str) -> bool:
                zoom, column, row = place_of(self.path)
                data = draw(zoom, column, row)
                if kind in ('good', 'slow'):
                    tiles.over.wait(0.3 if kind == 'slow' else 0)
                    return self.send(200, data, imagery=f'2020-0{1 + column % 2}-01')
                if kind == 'busy':
                    return self.send(429, b'', retry='1')
                if kind == 'busy-date':
                    until = datetime.now(timezone.utc) + timedelta(seconds=2)
                    return self.send(429, b'', retry=format_datetime(until, usegmt=True))
                if kind == 'busy-long':
                    return self.send(503, b'', retry='86400')
                if kind == 'wait-403':
                    return self.send(403, b'', retry='1')
                if kind == 'endless':
                    self.send(200, b'', length=1 << 40)
                    while not tiles.over.is_set():
                        self.wfile.write(bytes(1 << 16))
                if kind == 'short':
                    self.close_connection = True
                    return self.send(200, data[:len(data) // 2], length=len(data))
                if kind == 'cut':
                    return self.send(200, data[:len(data) // 2])
                if kind == 'html':
                    return self.send(200, b'<html>quota exceeded</html>')
                if kind == 'json':
                    return self.send(200, b'{"error": "quota"}', content='application/json; v=1')
                if kind == 'closed':
                    self.close_connection = True
                    return False
                if kind == 'silent':
                    tiles.over.wait(20)
                    self.close_connection = True
                    return False
                return self.send(int(kind), b'')

            def send(self, status: int, data: bytes, length: int | None = None, retry: str = '',
                     imagery: str = '', content: str = '') -> bool:
                self.send_response(status)
                if content:
                    self.send_header('Content-Type', content)
                self.send_header('Content-Length', str(len(data) if length is None else length))
                if retry:
                    self.send_header('Retry-After', retry)
                if imagery:
                    self.send_header('X-Imagery-Date', imagery)
                if status in (301, 302):
                    self.send_header('Location', self.path)
                self.end_headers()
                self.wfile.write(data)
                return status == 200 and imagery != ''

            def log_message(self, *_: object) -> None:
                pass

        self.server = Server(('127.0.0.1', 0), Handler)
        self.host = f'127.0.0.1:{self.server.server_port}'
        self.url = f'http://{self.host}/{{z}}/{{x}}/{{y}}'

    def __enter__(self) -> 'TileServer':
        self.thread = Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()

    def delivered(self) -> Counter:
        """Count how often each tile was sent completely."""
        return Counter(asked.path for asked in self.log if asked.whole)
