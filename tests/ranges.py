"""Servers of one file, of which a client may fetch parts, as object stores are; and of a folder."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Ranges(BaseHTTPRequestHandler):
    """A server of one file that answers requests for a part of it."""

    content = b''
    sent: list[int] = []

    def do_HEAD(self):
        self.answer(b'', len(self.content))

    def do_GET(self):
        wanted = self.headers.get('Range')
        if not self.path.endswith('/a.tif'):
            self.send_error(404)
        elif wanted is None:
            self.answer(self.content, len(self.content))
        else:
            first, last = wanted.removeprefix('bytes=').split('-')
            part = self.content[int(first):int(last) + 1]
            self.sent.append(len(part))
            self.answer(part, len(part), 206, **{
                'Content-Range': f'bytes {first}-{int(first) + len(part) - 1}/{len(self.content)}'})

    def answer(self, body: bytes, length: int, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in (headers | {'Accept-Ranges': 'bytes',
                                       'Content-Length': str(length)}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@contextmanager
def serve(path: Path) -> Iterator[str]:
    """Serve the bytes of a file as a.tif; its address."""
    Ranges.content, Ranges.sent = path.read_bytes(), []
    with serve_with(Ranges) as address:
        yield f'{address}/a.tif'


class Quiet(SimpleHTTPRequestHandler):
    """A server of a folder that logs nothing."""

    def log_message(self, *_) -> None:
        pass


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve the files of a folder; its address."""
    with serve_with(partial(Quiet, directory=str(folder))) as address:
        yield address


@contextmanager
def serve_with(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve by a handler; its address."""
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, args=(.05,), daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()
