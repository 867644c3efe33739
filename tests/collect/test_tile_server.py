import io
import runpy
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rasterio import Affine
from test_rasters import write

from pera_mm.collect.fetch.mercator import HALF_WORLD, ground_resolution
from pera_mm.collect.fetch.rasters import RasterSource
from pera_mm.collect.fetch.step import fetch
from pera_mm.errors import UserError

TOOL = Path(__file__).parents[2] / 'tools' / 'data' / 'tile_server.py'
TEXTS = dict(name='local', terms='mine', attribution='me')
SIZE = 600


@pytest.fixture
def raster(tmp_path):
    """Soft blobs on the pixels of zoom 15, around 0° E, 0° N."""
    resolution = float(ground_resolution(0, 15))
    y, x = np.mgrid[:SIZE, :SIZE]
    pixels = np.stack([127 + 100 * np.sin(x / 20), 127 + 100 * np.cos(y / 15), (x + y) / 5])
    return write(tmp_path / 'a.tif', pixels.astype(np.uint8), 'EPSG:3857',
                 Affine(resolution, 0, -SIZE / 2 * resolution, 0, -resolution,
                        SIZE / 2 * resolution))


@pytest.fixture
def address(raster):
    server = runpy.run_path(str(TOOL))['make_server'](RasterSource(paths=raster, **TEXTS), 0)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()
    thread.join()


def get(address):
    with urllib.request.urlopen(address, timeout=20) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read()))), answer.headers['Content-Type']


def test_tiles_are_the_rasters_pixels(address, raster):
    tile, kind = get(f'{address}/15/16384/16384.png')  # south-east of the middle
    assert kind == 'image/png' and tile.shape == (256, 256, 3)
    resolution = 2 * HALF_WORLD / 256 / 2**15
    expected, _ = RasterSource(paths=raster, **TEXTS).read(0, 0, resolution, 256)
    np.testing.assert_array_equal(tile, expected)
    again, kind = get(f'{address}/15/16384/16384.jpg')
    assert kind == 'image/jpeg' and np.abs(again.astype(int) - tile).mean() < 3


@pytest.mark.parametrize('path', ['15/0/0.png', '15/99999/1.png', '24/1/1.png', '15/1.png', '',
                                  '../../etc/passwd', '-1/0/0.png', '3/0/0.gif'])
def test_what_is_not_there_is_not_found(address, path):
    with pytest.raises(urllib.error.HTTPError, match='404'):
        get(f'{address}/{path}')


def test_fetching_tiles_gives_what_fetching_the_raster_gives(address, raster, tmp_path):
    points = pd.DataFrame(dict(id=['a', 'b'], lon=[0.001, -0.0015], lat=[0.0, 0.0012],
                               gsd=[6.1, 9.0]))
    sources = dict(tiles=dict(type='tiles', url=address + '/{z}/{x}/{y}.png', zooms=(0, 20)),
                   rasters=dict(type='rasters', paths=raster))
    for kind, source in sources.items():
        (tmp_path / kind).mkdir()
        points.to_csv(tmp_path / kind / 'points.csv', index=False)
        fetch(tmp_path / kind, source=source | TEXTS, size=128, format='png',
              accept_terms='local')
    for name in points['id']:
        images = [np.asarray(Image.open(tmp_path / kind / f'tiles/000/{name}.png')).astype(int)
                  for kind in sources]
        # GDAL's and Pillow's filters differ a little; a shift of one pixel would be far more.
        assert np.abs(images[0] - images[1]).mean() < 1
        assert np.abs(images[0][:, 1:] - images[1][:, :-1])[..., 0].mean() > 4


@pytest.mark.slow
def test_the_command_prints_its_address(raster):
    process = subprocess.Popen([sys.executable, str(TOOL), raster, '--port', '0'],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        url = process.stdout.readline().strip()
        assert url.startswith('http://127.0.0.1:') and url.endswith('/{z}/{x}/{y}.jpg')
        tile, _ = get(url.format(z=15, x=16384, y=16384))
        assert tile.std() > 10
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and rest == ''


def test_deep_pixels_need_a_scale(tmp_path):
    pixels = np.full((1, 50, 50), 1000, np.uint16)
    path = write(tmp_path / 'deep.tif', pixels, 'EPSG:3857', Affine(10, 0, 0, 0, -10, 500))
    tool = runpy.run_path(str(TOOL))
    with pytest.raises(ValueError, match=(r'the pixels of .*deep\.tif are uint16, not 8-bit; say '
                                          'what becomes 0 and 255: --scale LOW HIGH')):
        tool['open_rasters']([path], None, None)
    image, valid = tool['open_rasters']([path], None, [0, 2000]).read(100, 400, 10, 20)
    assert valid.all() and (image == 128).all()


def test_a_port_that_cannot_be_had_is_a_sentence(raster, address):
    make_server = runpy.run_path(str(TOOL))['make_server']
    for port, reason in ((address.rpartition(':')[2], 'Address already in use'),
                         (99999, 'bind.*: port must be 0-65535.')):
        with pytest.raises(UserError, match=rf'port {port} \({reason}\): give another --port'):
            make_server(RasterSource(paths=raster, **TEXTS), int(port))


def test_the_command_explains_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), str(tmp_path / 'none.tif')])
    with pytest.raises(SystemExit, match=r'tile_server: no raster matches .*none\.tif'):
        runpy.run_path(str(TOOL), run_name='__main__')
