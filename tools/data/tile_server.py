r"""Serve GeoTIFFs as XYZ map tiles from this machine, to try the data pipeline without a network.

    python tools/data/tile_server.py data/planet/imagery/*.tif --port 8000

It prints the address for the `url` of a source in the config. The rasters may have any projections
and resolutions; where they overlap, the first one counts. Where no raster has a pixel, the response
is 404. Pixels that are not 8-bit need --scale, because tiles that are stretched one by one do not
fit together. Tiles are 256 x 256; the address may end in .png (lossless) instead of .jpg. Only this
machine can reach the server.
"""

import argparse
import io
import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from pera_mm.collect.fetch.mercator import HALF_WORLD
from pera_mm.collect.fetch.rasters import RasterSource
from pera_mm.errors import UserError
from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import whole_number

TILE_SIZE = 256  # pixels
MAX_ZOOM = 23
CACHED = 2000  # tiles, about 40 MB
JPEG_QUALITY = 95
FORMATS = {'jpg': ('JPEG', 'image/jpeg'), 'png': ('PNG', 'image/png')}


def open_rasters(paths: Sequence[str], bands: Sequence[int] | None,
                 scale: Sequence[float] | None) -> RasterSource:
    """Open the rasters as a source.

    Raises:
        ValueError: if they cannot be served.
    """
    source = RasterSource('local', paths, 'your own', 'you', bands,
                          (scale[0], scale[1]) if scale else 'auto')
    first = source.rasters[0]
    if first.dtype != 'uint8' and not scale:
        raise UserError(f'the pixels of {first.path} are {first.dtype}, not 8-bit; say what '
                        'becomes 0 and 255: --scale LOW HIGH.')
    return source


def render_tile(source: RasterSource, zoom: int, column: int, row: int,
                ending: str) -> bytes | None:
    """Encode a tile; None if the source has no pixel there."""
    side = 2 * HALF_WORLD / 2**zoom
    pixels, valid = source.read(column * side - HALF_WORLD, HALF_WORLD - row * side,
                                side / TILE_SIZE, TILE_SIZE)
    if not valid.any():
        return None
    stream = io.BytesIO()
    options = {'quality': JPEG_QUALITY} if ending == 'jpg' else {}
    Image.fromarray(pixels).save(stream, FORMATS[ending][0], **options)
    return stream.getvalue()


def make_server(source: RasterSource, port: int) -> ThreadingHTTPServer:
    """Make a server of the source's tiles on 127.0.0.1, ready for ``serve_forever()``.

    Raises:
        UserError: if the port cannot be had.
    """
    tile = lru_cache(CACHED)(lambda *place: render_tile(source, *place))

    class XYZHandler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'  # connections are kept
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            match = re.fullmatch(r'/(\d{1,2})/(\d{1,8})/(\d{1,8})\.(jpg|png)', self.path)
            zoom, column, row = map(int, match.groups()[:3]) if match else (MAX_ZOOM + 1, 0, 0)
            exists = zoom <= MAX_ZOOM and max(column, row) < 2**zoom
            data = tile(zoom, column, row, match[4]) if match and exists else None
            self.send_response(404 if data is None else 200)
            if match:
                self.send_header('Content-Type', FORMATS[match[4]][1])
            self.send_header('Content-Length', str(len(data or b'')))
            self.end_headers()
            self.wfile.write(data or b'')

        def log_message(self, *_: object) -> None:
            """Log nothing, because there are thousands of requests."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            if isinstance(error := sys.exc_info()[1], ConnectionError):  # the client went away
                return
            print(f'tile_server: {error}', file=sys.stderr, flush=True)

    try:
        return Server(('127.0.0.1', port), XYZHandler)
    except (OSError, OverflowError) as error:
        raise UserError(f'cannot serve at port {port} ({getattr(error, "strerror", error)}): give '
                        'another --port, or 0 for any free one.') from None


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('rasters', nargs='+', help='GeoTIFFs, or patterns in quotes')
    parser.add_argument('--port', type=whole_number(0), default=8000,
                        help='default: 8000; 0: any free one')
    parser.add_argument('--bands', type=int, nargs='+', help='one or three, 1-based')
    parser.add_argument('--scale', type=float, nargs=2, metavar=('LOW', 'HIGH'),
                        help='the values that become 0 and 255 if pixels are not 8-bit')
    return parser.parse_args(arguments)


def main() -> None:
    args = parse_args()
    with errors_in_one_sentence('tile_server'):
        server = make_server(open_rasters(args.rasters, args.bands, args.scale), args.port)
    print(f'http://127.0.0.1:{server.server_port}/{{z}}/{{x}}/{{y}}.jpg', flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


if __name__ == '__main__':
    main()
