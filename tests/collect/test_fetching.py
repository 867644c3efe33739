import asyncio
import hashlib
import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rasterio import Affine
from servers import TileServer
from test_sources import write

from pera_mm.collect.fetching import Host, fetch
from pera_mm.collect.tables import TILE

QUICK = dict(size=128, backoff=0.01, concurrency=4, accept_terms='local')
RESULTS = ('tiles.csv', 'missing.csv')


def tiles(server, **settings):
    return dict(type='tiles', name='local', url=server.url, terms='for tests', attribution='nobody',
                zooms=(0, 20), rate=10_000) | settings


def write_points(folder, count, seed=0, spread=1.0):
    """Points around 5° E, 50° N, so far apart that they share few tiles."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(dict(
        id=[f'{index:07d}' for index in range(count)],
        lon=(5 + spread * rng.uniform(-1, 1, count)).round(6),
        lat=(50 + spread * rng.uniform(-1, 1, count)).round(6),
        **{'class': ['urban', 'water'] * (count // 2) + ['ice'] * (count % 2)},
        continent='europe', gsd=np.exp(rng.uniform(-1, 2, count)).round(3),
    )).to_csv(folder / 'points.csv', index=False)
    return folder


def contents(folder):
    """Every file that the step leaves for the next, by name."""
    files = [*folder.glob('tiles/**/*'), *(folder / name for name in RESULTS)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture
def undisturbed(tmp_path):
    """What a server that behaves gives for 12 points."""
    with TileServer() as server:
        summary = fetch(write_points(tmp_path / 'undisturbed', 12), source=tiles(server),
                        **QUICK)
    assert summary['images'] == 12
    return contents(tmp_path / 'undisturbed')


# -- what is written -----------------------------------------------------------------------------


def test_images_and_tables(tmp_path):
    folder = write_points(tmp_path, 12)
    with TileServer() as server:
        summary = fetch(folder, source=tiles(server, date_header='X-Imagery-Date'), **QUICK)
        asked = len(server.log)
        assert set(server.delivered().values()) == {1}
        # Once more: nothing to do, nothing asked for, nothing changed.
        before = contents(folder)
        again = fetch(folder, source=tiles(server, date_header='X-Imagery-Date'), **QUICK)
        assert len(server.log) == asked and contents(folder) == before
    assert (summary['images'], summary['missing'], again['tried now']) == (12, 0, 0)
    table = pd.read_csv(folder / 'tiles.csv', dtype=dict(id=str))
    points = pd.read_csv(folder / 'points.csv', dtype=dict(id=str))
    assert tuple(table.columns) == TILE
    for name in ('id', 'lon', 'lat', 'class', 'continent', 'gsd'):
        assert (table[name] == points[name]).all()
    assert set(table['source']) == {'local'}
    assert table['date'].str.fullmatch(r'2020-0[12]-01( 2020-02-01)?').all()
    assert table['file'][3] == 'tiles/000/0000003.jpg'
    for file, digest in zip(table['file'], table['sha256']):
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
    with Image.open(folder / table['file'][3]) as image:
        assert image.size == (128, 128) and image.mode == 'RGB'
    assert (folder / 'missing.csv').read_text() == 'id,lon,lat,reason\n'
    assert not (folder / 'arriving').exists()
    json.dumps(summary)


def test_png_keeps_every_pixel_and_results_do_not_depend_on_concurrency(tmp_path):
    with TileServer() as server:
        for concurrency in (1, 9):
            fetch(write_points(tmp_path / str(concurrency), 6), source=tiles(server),
                  format='png', **QUICK | dict(concurrency=concurrency))
    assert contents(tmp_path / '1') == contents(tmp_path / '9')
    with Image.open(tmp_path / '1/tiles/000/0000000.png') as image:
        assert image.format == 'PNG'


def test_neighbours_share_their_tiles(tmp_path):
    folder = write_points(tmp_path, 30, spread=0.003)
    with TileServer() as server:
        fetch(folder, source=tiles(server), **QUICK)
        assert set(server.delivered().values()) == {1}


def test_a_table_by_hand_needs_only_places(tmp_path):
    (tmp_path / 'points.csv').write_text('id,lon,lat,gsd\nhome,7.5,51.5,1\naway,-7.5,-51.5,2\n')
    with TileServer() as server:
        assert fetch(tmp_path, source=tiles(server), **QUICK)['images'] == 2
        # A further point later is fetched, and only it.
        with open(tmp_path / 'points.csv', 'a') as file:
            file.write('new,0,0,1\n')
        assert fetch(tmp_path, source=tiles(server), **QUICK)['tried now'] == 1
    assert pd.read_csv(tmp_path / 'tiles.csv')['id'].tolist() == ['home', 'away', 'new']


def test_an_image_that_was_deleted_is_fetched_again(tmp_path, undisturbed):
    folder = tmp_path / 'undisturbed'
    (folder / 'tiles/000/0000004.jpg').unlink()
    with TileServer() as server:  # another port: another url
        assert fetch(folder, source=tiles(server), **QUICK)['tried now'] == 1
    assert contents(folder) == undisturbed


def test_other_settings_are_refused_once_there_are_images(tmp_path, undisturbed):
    folder = tmp_path / 'undisturbed'
    with TileServer() as server:
        for settings, message in [
                (dict(size=64), 'was begun with size=128, and the config says 64; take another'),
                (dict(source=tiles(server, zooms=(0, 9))), r'zooms=\[0, 20\], .* says \[0, 9\]')]:
            with pytest.raises(ValueError, match=message):
                fetch(folder, **QUICK | dict(source=tiles(server)) | settings)
    assert contents(folder) == undisturbed


def test_another_url_is_asked_for_what_the_first_refused(tmp_path):
    folder = write_points(tmp_path, 4)
    with TileServer(lambda path, before: '404') as server:
        assert fetch(folder, source=tiles(server), **QUICK)['missing'] == 4
    with TileServer() as server:
        assert fetch(folder, source=tiles(server), **QUICK)['images'] == 4


def test_rasters(tmp_path):
    pixels = np.stack([np.arange(300 * 300).reshape(300, 300) % 251] * 3).astype(np.uint8)
    raster = write(tmp_path / 'a.tif', pixels, 'EPSG:3857', Affine(4, 0, 0, 0, -4, 1200))
    (tmp_path / 'points.csv').write_text(
        'id,lon,lat,gsd\nin,0.005,0.005,4\ncoarse,0.004,0.004,1\nout,20,20,4\npole,0,85.05,9\n')
    source = dict(type='rasters', name='local', paths=raster, terms='mine', attribution='me',
                  date='2021')
    summary = fetch(tmp_path, source=source, format='png', **QUICK)
    assert (summary['images'], summary['missing']) == (2, 2)
    table = pd.read_csv(tmp_path / 'tiles.csv')
    assert table['gsd'].tolist() == [4, 4] and table['zoom'].isna().all()
    assert table['date'].tolist() == [2021, 2021]
    missing = pd.read_csv(tmp_path / 'missing.csv')
    assert missing['reason'][0] == 'lies outside of the rasters'
    assert 'Web Mercator ends' in missing['reason'][1]
    assert fetch(tmp_path, source=source, format='png', **QUICK)['tried now'] == 0


# -- servers that misbehave ----------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['slow', '500', '408', 'short', 'cut', 'html', 'closed'])
def test_every_first_answer_is_bad(tmp_path, undisturbed, kind):
    folder = write_points(tmp_path / 'disturbed', 12)
    with TileServer(lambda path, before: 'good' if before else kind) as server:
        summary = fetch(folder, source=tiles(server), **QUICK | dict(concurrency=32))
        assert set(server.delivered().values()) == {1}
    assert summary['images'] == 12 and contents(folder) == undisturbed


def test_no_answer_at_all_and_everything_mixed(tmp_path, undisturbed):
    kinds = itertools.cycle(['silent', '500', 'good', 'short', 'html', 'good', 'slow', 'cut',
                             'closed', 'good', '503', 'good'])
    folder = write_points(tmp_path / 'disturbed', 12)
    with TileServer(lambda path, before: 'good' if before else next(kinds)) as server:
        summary = fetch(folder, source=tiles(server), timeout=0.5,
                        **QUICK | dict(concurrency=32))
        assert {asked.kind for asked in server.log} >= {'500', 'short', 'html', 'cut', 'closed'}
    assert summary['images'] == 12 and contents(folder) == undisturbed


@pytest.mark.parametrize('kind', ['busy', 'busy-date'])
def test_retry_after_holds_the_whole_host_back(tmp_path, undisturbed, kind):
    folder = write_points(tmp_path / 'disturbed', 12)
    numbers = itertools.count()
    with TileServer(lambda path, before: kind if next(numbers) == 20 else 'good') as server:
        fetch(folder, source=tiles(server), **QUICK)
        told = next(asked.time for asked in server.log if asked.kind == kind)
        later = np.array([asked.time - told for asked in server.log if asked.time > told])
    # Those that were on their way may still come; then there is silence for a second at least.
    assert (later < 0.95).sum() <= 2 * QUICK['concurrency'] and (later >= 0.95).sum() > 3
    assert contents(folder) == undisturbed


def test_a_host_that_wants_hours_ends_the_step(tmp_path):
    with TileServer(lambda path, before: 'busy-long') as server:
        with pytest.raises(ValueError, match=r'asks to be left alone for 24\.0 hours \(HTTP 503\)'):
            fetch(write_points(tmp_path, 12), source=tiles(server), **QUICK)
        assert len(server.log) <= QUICK['concurrency']


def test_what_could_not_be_had_is_told_and_tried_again(tmp_path, undisturbed):
    folder = write_points(tmp_path / 'disturbed', 12)
    broken: dict[str, str] = {}
    with TileServer(lambda path, before: broken.get(path, 'good')) as server:
        fetch(write_points(tmp_path / 'look', 12), source=tiles(server), **QUICK)
        paths = [asked.path for asked in server.log]
        server.log.clear()
        broken |= {paths[0]: '403', paths[-1]: '404', paths[len(paths) // 2]: '500'}
        summary = fetch(folder, source=tiles(server), **QUICK | dict(concurrency=32))
        assert summary['images'] == 9 and summary['missing'] == 3
        assert summary['missing, tried again by the next start'] == 2
        assert summary['reasons'] == [dict(reason=f'HTTP {status}', images=1)
                                      for status in (403, 404, 500)]
        missing = pd.read_csv(folder / 'missing.csv', dtype=dict(id=str))
        expected = {f'HTTP {kind}, tile {path[1:]}' for path, kind in broken.items()}
        assert set(missing['reason']) == expected
        table = pd.read_csv(folder / 'tiles.csv', dtype=dict(id=str))
        assert sorted([*table['id'], *missing['id']]) == [f'{index:07d}' for index in range(12)]
        counts = [sum(asked.path == path for asked in server.log) for path in broken]
        assert counts == [1, 1, 6]  # only the 500 is asked for again, five times
        arrived = server.delivered()

        # The server is mended: the failed ones come, the tile that is not there is not asked for.
        server.log.clear()
        lost = paths[-1]
        broken.clear()
        summary = fetch(folder, source=tiles(server), **QUICK)
        assert (summary['tried now'], summary['images'], summary['missing']) == (2, 11, 1)
        assert lost not in server.delivered()
        # What arrived of the unfinished images is not asked for again.
        assert server.delivered() and not server.delivered() & arrived
        rest = {name: data for name, data in contents(folder).items() if name.endswith('jpg')}
        assert rest.items() < undisturbed.items()
        assert not (folder / 'arriving').exists()


def test_without_imagery_one_request_tells(tmp_path):
    with TileServer(lambda path, before: '404') as server:
        summary = fetch(write_points(tmp_path, 12), source=tiles(server), **QUICK)
        assert len(server.log) == 12
    assert summary['reasons'] == [dict(reason='HTTP 404', images=12)]


@pytest.mark.parametrize('kind, reason', [
    ('closed', 'no answer: RemoteProtocolError'), ('500', 'HTTP 500'), ('403', 'HTTP 403'),
    ('302', 'HTTP 302'), ('html', 'HTML or XML instead of an image'),
    ('cut', 'broken image: .*truncated'),
])
def test_a_source_that_is_down_ends_the_step(tmp_path, kind, reason):
    folder = write_points(tmp_path, 60)
    with TileServer(lambda path, before: 'good' if path in good else kind) as server:
        good: set[str] = set()
        with pytest.raises(ValueError, match=f'has given no tile 24 times in a row, the last time: '
                                             f'{reason}') as caught:
            fetch(folder, source=tiles(server), **QUICK)
        assert str(caught.value).count('\n') == 0 and len(server.log) < 60
    assert not (folder / 'tiles.csv').exists()


def test_nobody_listens(tmp_path):
    with TileServer() as server:
        source = tiles(server)
    with pytest.raises(ValueError, match='the last time: no answer: ConnectError'):
        fetch(write_points(tmp_path, 30), source=source, **QUICK)


def test_tiles_of_another_size_are_told(tmp_path):
    with TileServer(size=128) as server:
        with pytest.raises(ValueError, match='the tile has 128 x 128 px, and tile_size is 256'):
            fetch(write_points(tmp_path, 30), source=tiles(server), **QUICK)
        # Nothing came: the mended setting begins anew without a word.
        summary = fetch(tmp_path, source=tiles(server, tile_size=128), **QUICK)
    assert summary['images'] == 30


# -- manners -------------------------------------------------------------------------------------


def test_the_rate_is_kept(tmp_path):
    with TileServer() as server:
        fetch(write_points(tmp_path, 20), source=tiles(server, rate=50), **QUICK)
        times = np.sort([asked.time for asked in server.log])
    assert len(times) > 40
    # In any half second at most 25 and one; a little more where the server was late to look.
    in_window = np.searchsorted(times, times + 0.5) - np.arange(len(times))
    assert in_window.max() <= 29
    assert len(times) / (times[-1] - times[0]) < 53


def test_turns_stay_on_the_grid_of_the_rate():
    async def take(host, turns):
        start = time.monotonic()
        for _ in range(turns):
            await host.turn()
        return time.monotonic() - start

    host = Host('h', rate=400)
    assert 0.245 < asyncio.run(take(host, 101)) < 0.45  # late wake-ups do not add up
    host.pause(0.2)
    assert asyncio.run(take(host, 1)) > 0.19


def test_terms_come_first(tmp_path):
    with TileServer() as server:
        for accepted in ('', 'yes'):
            with pytest.raises(ValueError, match=(
                    "'local' may be used on these terms: for tests. Credit: nobody. If you accept "
                    "them, say so with its name: --accept-terms 'local'")):
                fetch(write_points(tmp_path, 2), source=tiles(server),
                      **QUICK | dict(accept_terms=accepted))
        assert not server.log


def test_the_key_is_nowhere(tmp_path, monkeypatch, caplog, capfd):
    secret = 'q7/Zp=8w'
    monkeypatch.setenv('PERA_TEST_KEY', secret)
    caplog.set_level(logging.DEBUG)
    with TileServer(lambda path, before: '500' if before < 2 else 'good') as server:
        source = tiles(server, url=server.url + '?key={key}', key_env='PERA_TEST_KEY',
                       headers={'User-Agent': 'agent {key}'})
        fetch(write_points(tmp_path / 'a', 4), source=source, **QUICK | dict(concurrency=64))
        assert all(asked.path.endswith('?key=q7%2FZp%3D8w') for asked in server.log)
        assert server.agents == {f'agent {secret}'}
    with pytest.raises(ValueError, match='ConnectError') as down:
        fetch(write_points(tmp_path / 'b', 30), source=source, **QUICK)
    texts = [caplog.text, str(down.value), *capfd.readouterr()]
    texts += [path.read_bytes().decode('latin-1') for path in tmp_path.rglob('*') if path.is_file()]
    assert not [text for text in texts for part in ('q7/Zp', 'q7%2FZp') if part in text]


# -- kills ---------------------------------------------------------------------------------------

STEP = """
import json, logging, sys
from pathlib import Path
from pera_mm.collect.fetching import fetch
logging.disable()
fetch(Path(sys.argv[1]), **json.loads(sys.argv[2]))
"""


def start(folder, server):
    settings = QUICK | dict(source=tiles(server))
    return subprocess.Popen([sys.executable, '-c', STEP, str(folder), json.dumps(settings)],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(server, requests, process):
    for _ in range(1500):
        if len(server.log) >= requests or process.poll() is not None:
            break
        time.sleep(0.02)
    assert len(server.log) >= requests, process.communicate()[0]


def finish(folder, server):
    """Start again; gives the tiles that went out twice."""
    assert not (folder / 'tiles.csv').exists()
    fetch(folder, source=tiles(server), **QUICK)
    assert not (folder / 'arriving').exists()
    return [path for path, count in server.delivered().items() if count > 1]


def test_killed_and_started_again(tmp_path, undisturbed):
    folder = write_points(tmp_path / 'killed', 12)
    with TileServer(lambda path, before: random.choice(['good', 'good', 'slow'])) as server:
        process = start(folder, server)
        wait_for(server, 18, process)
        process.kill()
        assert process.wait(20) == -signal.SIGKILL
        # And what a kill may leave:
        (folder / 'arriving').mkdir(exist_ok=True)
        (folder / 'arriving/.9-1-1.part').write_bytes(b'half')
        with open(folder / 'fetch.jsonl', 'a') as journal:
            journal.write('{"id": "00000')
        time.sleep(0.4)  # the slow answers go nowhere
        twice = finish(folder, server)
    assert len(twice) <= QUICK['concurrency']  # those that were under way
    assert contents(folder) == undisturbed


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_started_again(tmp_path, undisturbed, number, caplog):
    folder = write_points(tmp_path / 'stopped', 12)
    requests = itertools.count(1)

    def behave(path, before):
        if next(requests) == 18:
            os.kill(os.getpid(), number)
        return 'good'

    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command does
    try:
        with TileServer(behave) as server:
            with pytest.raises(KeyboardInterrupt):
                fetch(folder, source=tiles(server), **QUICK)
            time.sleep(0.4)
            twice = finish(folder, server)
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert len(twice) <= QUICK['concurrency']  # those that were under way
    assert contents(folder) == undisturbed
    assert 'never retrieved' not in caplog.text


def test_a_full_disk_loses_nothing(tmp_path, undisturbed, monkeypatch):
    folder = write_points(tmp_path / 'full', 12)
    with TileServer() as server:
        # A device that is really full, in place of the fourth image.
        (folder / 'tiles/000').mkdir(parents=True)
        part = folder / 'tiles/000/.0000003.jpg.part'
        part.symlink_to('/dev/full')
        with pytest.raises(OSError, match='No space left on device'):
            fetch(folder, source=tiles(server), **QUICK)
        part.unlink()
        fetch(folder, source=tiles(server), **QUICK)
        assert sum(count > 1 for count in server.delivered().values()) <= QUICK['concurrency']
    assert contents(folder) == undisturbed


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize('settings, message', [
    (dict(format='tif'), "format must be 'jpg' or 'png', got 'tif'"),
    (dict(quality=0), 'quality must be 1 to 100, got 0'),
    (dict(size=0), 'size must be a whole number of at least 1, got 0'),
    (dict(concurrency=0), 'concurrency must be a whole number of at least 1'),
    (dict(retries=-1), 'retries must be a whole number of at least 0'),
    (dict(timeout=0), 'timeout must be positive'),
    (dict(source=dict(type='google')), "type of the source must be 'tiles' or 'rasters', got"),
    (dict(source=dict(type='tiles', name='a')), "'tiles' cannot be built: missing 4 required"),
    (dict(source=dict(type='rasters', colour=1)), "'rasters' cannot be built: got an unexpected"),
])
def test_a_wrong_setting_is_one_sentence(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        fetch(tmp_path, **dict(source=dict(type='tiles')) | settings)


@pytest.mark.parametrize('text, message', [
    (None, r'points\.csv does not exist: it is written by the step sample, or by hand'),
    ('id,lon,lat\n', "no column 'gsd'"),
    ('id,lon,lat,gsd\na,1,2,1\nb,200,2,1\n', 'line 3: lon is 200, not between -180 and 180'),
    ('id,lon,lat,gsd\na,1,95,1\n', 'line 2: lat is 95'),
    ('id,lon,lat,gsd\na,1,x,1\n', "line 2: lat is 'x', which is no number"),
    ('id,lon,lat,gsd\na,1,2,0\n', 'line 2: gsd is 0'),
    ('id,lon,lat,gsd\n../a,1,2,1\n', r"line 2: the id '\.\./a' cannot name a file"),
])
def test_a_wrong_point_is_one_sentence(tmp_path, text, message):
    if text is not None:
        (tmp_path / 'points.csv').write_text(text)
    with TileServer() as server, pytest.raises(ValueError, match=message):
        fetch(tmp_path, source=tiles(server), **QUICK)


def test_a_disk_that_is_too_small_is_told_first(tmp_path):
    write_points(tmp_path, 2)
    with TileServer() as server:
        with pytest.raises(ValueError, match=r'2 images need about .* GB, and the disk of .* left'):
            fetch(tmp_path, source=tiles(server), **QUICK | dict(size=50_000_000))
        assert not server.log
