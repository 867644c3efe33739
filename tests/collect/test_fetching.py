import contextlib
import hashlib
import http.server
import io
import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import rasterio
from PIL import Image
from rasterio import Affine
from servers import PATHS, TileServer, encode, picture
from test_rasters import write

from pera_mm.collect.common.tables import TILE
from pera_mm.collect.fetch.results import FIRST_IMAGES
from pera_mm.collect.fetch.step import fetch

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


def images_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob('tiles/*/*')}


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
        # Once more: nothing to do, nothing requested, nothing changed.
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


def test_neighbors_share_their_tiles(tmp_path):
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


def test_a_file_belongs_to_the_last_point_that_was_written_there(tmp_path):
    source, name = {}, tmp_path / 'tiles/000/p.png'

    def at(gsd):
        (tmp_path / 'points.csv').write_text(f'id,lon,lat,gsd\np,7.5,51.5,{gsd}\n')
        return fetch(tmp_path, source=source, format='png', **QUICK)['tried now']

    with TileServer() as server:
        source = tiles(server)
        assert at(1) == 1
        fine = name.read_bytes()
        assert at(4) == 1 and name.read_bytes() != fine
        assert at(1) == 1 and name.read_bytes() == fine
        table = pd.read_csv(tmp_path / 'tiles.csv')
        assert table['sha256'].tolist() == [hashlib.sha256(fine).hexdigest()]
        # And if a kill comes between the other image's file and its row.
        assert at(4) == 1
        journal = (tmp_path / 'fetch.jsonl').read_bytes().splitlines(keepends=True)
        (tmp_path / 'fetch.jsonl').write_bytes(b''.join(journal[:-1]))
        assert at(1) == 1 and name.read_bytes() == fine
        assert at(1) == 0


@pytest.mark.parametrize('damage', [b'\0' * 50, b'[1]', b'{"id": "0000'])
@pytest.mark.parametrize('line', [0, 3])
def test_damaged_lines_of_the_journal_cost_their_images(tmp_path, undisturbed, caplog, damage,
                                                        line):
    folder = tmp_path / 'undisturbed'
    journal = (folder / 'fetch.jsonl').read_bytes().splitlines()
    journal[line] = damage
    (folder / 'fetch.jsonl').write_bytes(b'\n'.join(journal) + b'\n')
    with TileServer() as server:
        assert fetch(folder, source=tiles(server), **QUICK)['tried now'] == (line > 0)
    assert [record.getMessage().partition('jsonl')[2] for record in caplog.records] == [
        ' has damaged lines, as a loss of power leaves them: 1 are skipped']
    assert contents(folder) == undisturbed


def test_a_default_that_is_written_out_is_no_other_setting(tmp_path, undisturbed):
    folder = tmp_path / 'undisturbed'
    with TileServer() as server:
        source = tiles(server, tile_size=256, scale=None, date=2021)
        assert fetch(folder, source=source, **QUICK)['tried now'] == 0
        with pytest.raises(ValueError, match=r'with scale=None, and the config says \[0, 99\]'):
            fetch(folder, source=tiles(server, scale=(0, 99)), **QUICK)
    assert contents(folder) == undisturbed


@pytest.mark.parametrize('protocol', PATHS)
def test_every_protocol_gives_the_same(tmp_path, undisturbed, protocol):
    folder = write_points(tmp_path / protocol, 12)
    with TileServer() as server:
        source = tiles(server, url=f'http://{server.host}{PATHS[protocol]}', date=2021)
        fetch(folder, source=source, **QUICK)
    assert images_of(folder) == images_of(tmp_path / 'undisturbed')
    assert set(pd.read_csv(folder / 'tiles.csv')['date']) == {2021}


def test_deep_tiles_fit_together_by_a_scale(tmp_path):
    def deep(*place):
        return encode(picture(*place)[..., 0].astype(np.uint16) * 257, 'PNG')

    with TileServer(draw=deep) as server:
        with pytest.raises(ValueError, match=(r'the last reason: the pixels are uint16, not 8-bit; '
                                              r'say what becomes 0 and 255: scale=\(low, high\)')):
            fetch(write_points(tmp_path / 'deep', 30), source=tiles(server), **QUICK)
        assert set(server.delivered().values()) == {1}  # asking again does not help
        fetch(write_points(tmp_path / 'deep', 6), source=tiles(server, scale=(0, 65535)),
              format='png', **QUICK)
    with TileServer(draw=lambda *place: encode(picture(*place)[..., 0], 'PNG')) as server:
        fetch(write_points(tmp_path / 'gray', 6), source=tiles(server), format='png', **QUICK)
    assert len(images_of(tmp_path / 'deep')) == 6
    assert images_of(tmp_path / 'deep') == images_of(tmp_path / 'gray')


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


def half_done(folder, server, count=12):
    """Images of which about half lack a tile; the others' tiles have arrived."""
    summary = fetch(write_points(folder, count), source=tiles(server),
                    **QUICK | dict(retries=0, concurrency=32))
    assert 0 < summary['images'] < count and list((folder / 'arriving').iterdir())
    return set(images_of(folder))


def lacking(path, before):
    """Some tiles cannot be had."""
    column, row = map(int, path.split('/')[-2:])
    return '500' if column % 2 and row % 2 else 'good'


def test_no_image_is_made_from_tiles_of_two_places(tmp_path):
    def negative(*place):
        return encode(255 - picture(*place))

    with TileServer(lacking) as server:
        before = half_done(tmp_path / 'mixed', server)
    with TileServer(draw=negative) as server:
        fetch(tmp_path / 'mixed', source=tiles(server), **QUICK)
        fetch(write_points(tmp_path / 'new', 12), source=tiles(server), **QUICK)
    mixed, new = images_of(tmp_path / 'mixed'), images_of(tmp_path / 'new')
    assert len(mixed) == 12
    assert {name for name in mixed if mixed[name] == new[name]} == set(mixed) - before


def test_other_points_while_images_are_half_done(tmp_path):
    folder, mended = tmp_path / 'a', []
    with TileServer(lambda *asked: 'good' if mended else lacking(*asked)) as server:
        half_done(folder, server)
        mended.append(True)
        points = pd.read_csv(folder / 'points.csv', dtype=str)[::-1].drop(index=5)
        points.loc[[2, 3, 8], 'gsd'] = '1.5'
        fresh = tmp_path / 'b'
        fresh.mkdir()
        for each in (folder, fresh):
            points.to_csv(each / 'points.csv', index=False)
            fetch(each, source=tiles(server), **QUICK)
    for name in RESULTS:
        assert (folder / name).read_bytes() == (fresh / name).read_bytes()
    assert images_of(fresh).items() <= images_of(folder).items()


def test_damaged_tiles_are_asked_for_again(tmp_path, undisturbed):
    folder, mended = tmp_path / 'damaged', []
    with TileServer(lambda *asked: 'good' if mended else lacking(*asked)) as server:
        half_done(folder, server)
        for number, path in enumerate(sorted((folder / 'arriving').iterdir())):
            path.write_bytes([b'', b'\0' * 900, path.read_bytes()[:900]][number % 3])
        mended.append(True)
        assert fetch(folder, source=tiles(server), **QUICK)['missing'] == 0
    assert contents(folder) == undisturbed


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


@pytest.mark.parametrize('kind', ['slow', '500', '408', 'short', 'cut', 'html', 'json', 'closed'])
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
        refused_at = next(asked.time for asked in server.log if asked.kind == kind)
        later = np.array([asked.time - refused_at for asked in server.log
                          if asked.time > refused_at])
    # Those that were on their way may still come; then there is silence for a second at least.
    assert (later < 0.95).sum() <= 2 * QUICK['concurrency'] and (later >= 0.95).sum() > 3
    assert contents(folder) == undisturbed


@pytest.mark.parametrize('kind', ['busy', 'wait-403'])
def test_retry_after_holds_back_after_the_last_try_too(tmp_path, kind):
    numbers = itertools.count()
    with TileServer(lambda path, before: kind if next(numbers) == 8 else 'good') as server:
        source = tiles(server, no_tile=(403, 404))  # who says when to come again means it
        summary = fetch(write_points(tmp_path, 12), source=source, **QUICK | dict(retries=0))
        refused_at = next(asked.time for asked in server.log if asked.kind == kind)
        later = np.array([asked.time - refused_at for asked in server.log
                          if asked.time > refused_at])
    assert (later < 0.95).sum() <= QUICK['concurrency'] and (later >= 0.95).sum() > 3
    assert summary['missing'] == summary['missing, tried again by the next start'] == 1


def test_a_host_that_wants_hours_ends_the_step(tmp_path):
    with TileServer(lambda path, before: 'busy-long') as server:
        with pytest.raises(ValueError, match=r'asks for a pause of 24\.0 hours \(HTTP 503\)'):
            fetch(write_points(tmp_path, 12), source=tiles(server), **QUICK)
        assert len(server.log) <= QUICK['concurrency']


def test_what_could_not_be_had_is_listed_and_tried_again(tmp_path, undisturbed):
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
        assert counts == [1, 1, 6]  # only the 500 is requested again, five times
        arrived = server.delivered()

        # The server is mended: the failed ones come; the refused tile is not requested.
        server.log.clear()
        lost = paths[-1]
        broken.clear()
        summary = fetch(folder, source=tiles(server), **QUICK)
        assert (summary['tried now'], summary['images'], summary['missing']) == (2, 11, 1)
        assert lost not in server.delivered()
        # What arrived of the unfinished images is not requested again.
        assert server.delivered() and not server.delivered() & arrived
        rest = {name: data for name, data in contents(folder).items() if name.endswith('jpg')}
        assert rest.items() < undisturbed.items()
        assert not (folder / 'arriving').exists()


def test_without_imagery_one_request_is_enough(tmp_path):
    with TileServer(lambda path, before: '404') as server:
        summary = fetch(write_points(tmp_path, 12), source=tiles(server), **QUICK)
        assert len(server.log) == 12
        assert summary['reasons'] == [dict(reason='HTTP 404', images=12)]
        # No image has come from this url: it may be wrong. Nothing is held against it.
        summary = fetch(tmp_path, source=tiles(server), **QUICK)
        assert summary['missing, tried again by the next start'] == 12 and len(server.log) == 24


def test_the_first_image_makes_refusals_final(tmp_path):
    write_points(tmp_path, 12)
    with TileServer() as server:  # the tiles of the last point
        points = pd.read_csv(tmp_path / 'points.csv', dtype=str)
        points[11:].to_csv(tmp_path / 'points.csv', index=False)
        fetch(tmp_path, source=tiles(server), **QUICK)
        there = set(server.delivered())
    folder = write_points(tmp_path / 'most', 12)
    with TileServer(lambda path, before: 'good' if path in there else '410') as server:
        summary = fetch(folder, source=tiles(server), **QUICK | dict(concurrency=1))
        assert (summary['images'], summary['missing']) == (1, 11)
        assert summary['missing, tried again by the next start'] == 0
        assert not (folder / 'arriving').exists()
        asked = len(server.log)
        assert fetch(folder, source=tiles(server), **QUICK)['tried now'] == 0
        assert len(server.log) == asked


def test_a_source_that_refuses_everything_ends_the_step(tmp_path):
    folder, mended = write_points(tmp_path, FIRST_IMAGES + 10), []
    with TileServer(lambda path, before: 'good' if mended else '404') as server:
        with pytest.raises(ValueError, match=(
                'The source has refused the first 100 images, the last reason: HTTP 404, tile .*; '
                'look at url, zooms and key, or take points where it has imagery')):
            fetch(folder, source=tiles(server), **QUICK)
        assert FIRST_IMAGES <= len(server.log) < FIRST_IMAGES + 5
        mended.append(True)
        summary = fetch(folder, source=tiles(server), **QUICK | dict(size=8))
        assert summary['images'] == FIRST_IMAGES + 10


def test_imagery_at_the_end_of_the_table_is_found(tmp_path):
    """Points in groups, the source has only the last: no reason to stop."""
    places = [(f'{number:04}', 5 if number < 350 else 7.5) for number in range(400)]
    (tmp_path / 'points.csv').write_text('id,lon,lat,gsd\n' + ''.join(
        f'{name},{lon},51.5,1\n' for name, lon in places))
    with TileServer() as server:
        (tmp_path / 'b').mkdir()
        (tmp_path / 'b/points.csv').write_text('id,lon,lat,gsd\na,7.5,51.5,1\n')
        fetch(tmp_path / 'b', source=tiles(server), **QUICK)
        there = set(server.delivered())
    with TileServer(lambda path, before: 'good' if path in there else '404') as server:
        assert fetch(tmp_path, source=tiles(server), **QUICK)['images'] == 50


def test_a_status_can_be_said_to_mean_no_tile(tmp_path):
    with TileServer(lambda path, before: '403' if int(path[-1]) < 5 else 'good') as server:
        summary = fetch(write_points(tmp_path, 40), source=tiles(server, no_tile=(403,)), **QUICK)
    assert summary['reasons'] == [dict(reason='HTTP 403', images=summary['missing'])]
    assert summary['images'] > 3 and summary['missing, tried again by the next start'] == 0


@pytest.mark.parametrize('kind, reason', [
    ('closed', 'no answer: RemoteProtocolError'), ('500', 'HTTP 500'), ('403', 'HTTP 403'),
    ('302', 'HTTP 302'), ('json', 'application/json instead of an image'),
    ('endless', 'larger than any tile of this size'), ('html', 'HTML or XML instead of an image'),
    ('cut', 'broken image: .*truncated'),
])
def test_a_source_that_is_down_ends_the_step(tmp_path, kind, reason):
    folder = write_points(tmp_path, 60)
    with TileServer(lambda path, before: 'good' if path in good else kind) as server:
        good: set[str] = set()
        with pytest.raises(ValueError, match=f'has sent no tile in 24 consecutive responses, '
                                             f'the last reason: {reason}') as caught:
            fetch(folder, source=tiles(server), **QUICK)
        assert str(caught.value).count('\n') == 0 and len(server.log) < 60
        names_no_tile = 'add it to no_tile: no_tile=(204, 404, 410, ' + kind in str(caught.value)
        assert names_no_tile == (kind in ('302', '403'))
    assert not (folder / 'tiles.csv').exists()


def test_nobody_listens(tmp_path):
    with TileServer() as server:
        source = tiles(server)
    with pytest.raises(ValueError, match=(
            r'last reason: no answer: ConnectError \(ConnectionRefused')):
        fetch(write_points(tmp_path, 30), source=source, **QUICK)


def test_tiles_of_another_size_are_refused(tmp_path):
    with TileServer(size=128) as server:
        with pytest.raises(ValueError, match='the tile has 128 x 128 px, and tile_size is 256'):
            fetch(write_points(tmp_path, 30), source=tiles(server), **QUICK)
        # Nothing came: the mended setting begins anew without a word.
        summary = fetch(tmp_path, source=tiles(server, tile_size=128), **QUICK)
    assert summary['images'] == 30


def test_a_huge_picture_in_a_small_file_is_not_decoded(tmp_path):
    stream = io.BytesIO()
    Image.new('1', (9000, 9000)).save(stream, 'PNG')
    head = stream.getvalue()[:2000]  # to decode it would be an error
    with TileServer(draw=lambda *place: head) as server:
        with pytest.raises(ValueError, match='the tile has 9000 x 9000 px, and tile_size is 256'):
            fetch(write_points(tmp_path, 30), source=tiles(server), **QUICK)


def tiff_tile(**profile):
    with rasterio.MemoryFile() as file:
        with file.open(driver='GTiff', compress='deflate', sparse_ok=True, **profile):
            pass  # a head and no block: GDAL reads zeros
        return bytes(file.getbuffer())


@pytest.mark.parametrize(('profile', 'reason'), [
    (dict(width=12_000, height=12_000, count=1, dtype='float64', tiled=True, blockxsize=1024,
          blockysize=1024), 'the tile has 12000 x 12000 px, and tile_size is 256'),
    (dict(width=256, height=256, count=3000, dtype='float64', tiled=True, interleave='pixel'),
     r'takes about 1.47 GiB of memory, the limit is 0.07 GiB'),
    (dict(width=256, height=256, count=1, dtype='float64', tiled=True, blockxsize=8192,
          blockysize=8192), r'takes about 0.50 GiB of memory, the limit is 0.07 GiB'),
])
def test_a_tile_that_only_gdal_reads_is_not_decoded_if_it_is_huge(tmp_path, profile, reason):
    data = tiff_tile(**profile)
    assert len(data) < 600_000
    with TileServer(draw=lambda *place: data) as server:
        with pytest.raises(ValueError, match=reason):
            fetch(write_points(tmp_path, 30), source=tiles(server, scale=(0, 3000)), **QUICK)


# -- what a server says of dates -----------------------------------------------------------------


@contextlib.contextmanager
def dated_server(dates):
    """A server that says of its tiles what it likes."""
    with TileServer() as server:
        class Liar(server.server.RequestHandlerClass):
            def send_header(self, name, value):
                super().send_header(name, next(dates) if name == 'X-Imagery-Date' else value)

        server.server.RequestHandlerClass = Liar
        yield server


@pytest.mark.parametrize('date', [
    "=cmd|'/c calc'!A1", '+1+cmd|x', '-1', '@SUM(A1)', '2' * 65, '2020-01-01;=1', '\t=1',
    '2020 \xe9t\xe9', '<script>', '9' * 3000,
])
def test_what_cannot_be_a_date_is_left_out(tmp_path, date, caplog):
    caplog.set_level(logging.WARNING)
    with dated_server(itertools.repeat(date)) as server:
        source = tiles(server, date_header='X-Imagery-Date')
        assert fetch(write_points(tmp_path, 4), source=source, **QUICK)['images'] == 4
    table = pd.read_csv(tmp_path / 'tiles.csv', dtype=str, keep_default_na=False)
    assert set(table['date']) == {''}
    (said,) = (text for text in caplog.messages if 'not a date' in text)
    assert "X-Imagery-Date of the source 'local'" in said and len(said) < 300
    assert date not in (tmp_path / 'fetch.jsonl').read_text()


def test_many_dates_are_not_endless(tmp_path):
    dates = (f'{index:064d}' for index in itertools.count())
    with dated_server(dates) as server:
        fetch(write_points(tmp_path, 4), source=tiles(server, date_header='X-Imagery-Date'),
              **QUICK | dict(size=1024))
    table = pd.read_csv(tmp_path / 'tiles.csv', dtype=str)
    assert table['date'].str.fullmatch(r'\d{64}( \d{64}){2}').all()


def test_dates_of_older_journals_and_tiles_are_checked_too(tmp_path):
    folder, is_up = write_points(tmp_path, 12), threading.Event()

    def one_of_five_is_down(path, before):
        return '401' if sum(path.encode()) % 5 == 0 and not is_up.is_set() else 'good'

    with TileServer(behave=one_of_five_is_down) as server:
        source = tiles(server, date_header='X-Imagery-Date')
        assert 0 < fetch(folder, source=source, **QUICK | dict(concurrency=12))['images'] < 12
        journal = folder / 'fetch.jsonl'
        journal.write_text(journal.read_text().replace('"date": "', '"date": "=cmd|'))
        kept = list((folder / 'arriving').iterdir())
        assert kept
        for path in kept:
            path.write_bytes(b'=cmd|' + path.read_bytes())
        is_up.set()
        assert fetch(folder, source=source, **QUICK)['images'] == 12
    text = (folder / 'tiles.csv').read_text()
    assert 'cmd' not in text and '2020-0' in text


def test_a_content_type_does_not_begin_with_a_formula(tmp_path):
    with TileServer(behave=lambda *_: 'json') as server:
        class Liar(server.server.RequestHandlerClass):
            def send_header(self, name, value):
                super().send_header(name, '+cmd/x' if name == 'Content-Type' else value)

        server.server.RequestHandlerClass = Liar
        fetch(write_points(tmp_path, 2), source=tiles(server), **QUICK | dict(retries=0))
    reasons = pd.read_csv(tmp_path / 'missing.csv')['reason']
    assert reasons.str.startswith('broken image').all()


# -- request policy ------------------------------------------------------------------------------


def test_the_rate_is_kept(tmp_path):
    with TileServer() as server:
        fetch(write_points(tmp_path, 20), source=tiles(server, rate=50), **QUICK)
        times = np.sort([asked.time for asked in server.log])
    assert len(times) > 40
    # In any half second at most 25 and one; a little more where the server was late to look.
    in_window = np.searchsorted(times, times + 0.5) - np.arange(len(times))
    assert in_window.max() <= 29
    assert len(times) / (times[-1] - times[0]) < 53


def test_terms_come_first(tmp_path):
    with TileServer() as server:
        for accepted in ('', 'yes'):
            with pytest.raises(ValueError, match=(
                    "'local' may be used on these terms: for tests. Credit: nobody. If you accept "
                    "them, give its name: --accept-terms 'local'")):
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


def test_a_server_that_repeats_the_key_does_not_bring_it_into_a_table(tmp_path, monkeypatch,
                                                                     caplog):
    secret = 'q7Zp8wX'
    monkeypatch.setenv('PERA_TEST_KEY', secret)

    class Echo(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            body = b'no image'
            self.send_response(200)
            self.send_header('Content-Type', f'{secret}/{secret}')
            self.send_header('X-Imagery-Date', secret)
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/{{z}}/{{x}}/{{y}}?key={{key}}'
        with pytest.raises(ValueError, match='broken image') as failure:
            fetch(write_points(tmp_path, 12), source=dict(
                type='tiles', name='local', url=url, terms='for tests', attribution='nobody',
                zooms=(0, 20), key_env='PERA_TEST_KEY', date_header='X-Imagery-Date',
                rate=10_000), **QUICK)
        server.shutdown()
    texts = [path.read_bytes().decode('latin-1') for path in tmp_path.rglob('*') if path.is_file()]
    assert not [text for text in (str(failure.value), caplog.text, *texts) if secret in text]


@pytest.mark.parametrize('host, shown', [('user:{key}@{host}', '{host}'),
                                        ('{key}.{host}', r'\*\*\*.{host}')])
def test_the_key_is_nowhere_if_it_is_in_the_host(tmp_path, monkeypatch, caplog, host, shown):
    monkeypatch.setenv('PERA_TEST_KEY', 'q7-secret')
    caplog.set_level(logging.DEBUG)
    with TileServer(lambda path, before: '500' if before else 'busy') as server:
        place = server.host if '@' in host else server.host.replace('127.0.0.1', 'localhost')
        url = 'http://' + host.replace('{host}', place) + '/{z}/{x}/{y}'
        with pytest.raises(ValueError, match=(
                '^' + shown.replace('{host}', place) + ' has sent no tile')) as down:
            fetch(write_points(tmp_path, 12), source=tiles(server, url=url,
                                                           key_env='PERA_TEST_KEY'),
                  **QUICK | dict(retries=1))
    for text in (str(down.value), caplog.text, (tmp_path / 'fetch.jsonl').read_text()):
        assert 'q7-secret' not in text


# -- kills ---------------------------------------------------------------------------------------

STEP = """
import json, logging, sys
from pathlib import Path
from pera_mm.collect.fetch.step import fetch
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


@pytest.mark.slow
def test_killed_twice_and_started_again(tmp_path, undisturbed):
    folder = write_points(tmp_path / 'killed', 12)
    with TileServer(lambda path, before: random.choice(['good', 'good', 'slow'])) as server:
        for requests in (9, 18):
            process = start(folder, server)
            wait_for(server, requests, process)
            process.kill()
            assert process.wait(20) == -signal.SIGKILL
        # And what a kill may leave:
        (folder / 'arriving').mkdir(exist_ok=True)
        (folder / 'arriving/.9-1-1.part').write_bytes(b'half')
        with open(folder / 'fetch.jsonl', 'a') as journal:
            journal.write('{"id": "00000')
        time.sleep(0.4)  # the slow answers go nowhere
        twice = finish(folder, server)
    assert len(twice) <= 2 * QUICK['concurrency']  # those that were under way
    assert contents(folder) == undisturbed


def test_no_more_tiles_are_off_the_disk_than_requests_may_be_under_way(tmp_path):
    """Decoding is slower than this server; what waits for it would be lost by a kill."""
    noise = encode(np.random.default_rng(0).integers(0, 256, (768, 768, 3), np.uint8), 'PNG')
    arriving, numbers, at_risk = tmp_path / 'arriving', itertools.count(1), []

    def behave(path, before):
        asked = next(numbers)
        at_risk.append(asked - len([*arriving.glob('[0-9]*')]))
        return 'good'

    (tmp_path / 'points.csv').write_text('id,lon,lat,gsd\na,7.5,51.5,2\n')
    with TileServer(behave, draw=lambda *place: noise) as server:
        source = tiles(server, tile_size=768)
        fetch(tmp_path, source=source, **QUICK | dict(size=4500))
    assert len(at_risk) > 30 and max(at_risk) <= QUICK['concurrency']


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
        part.unlink(missing_ok=True)
        fetch(folder, source=tiles(server), **QUICK)
        assert sum(count > 1 for count in server.delivered().values()) <= QUICK['concurrency']
    assert contents(folder) == undisturbed


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize('settings, message', [
    (dict(format='tif'), "format must be 'jpg' or 'png', got 'tif'"),
    (dict(quality=0), 'quality must be a whole number of 1 to 100, got 0'),
    (dict(size=0), 'size must be a whole number of at least 1, got 0'),
    (dict(concurrency=0), 'concurrency must be a whole number of at least 1'),
    (dict(retries=-1), 'retries must be a whole number of at least 0'),
    (dict(timeout=0), 'timeout must be positive'),
    (dict(timeout=None), 'timeout must be positive .* got None and 1.0'),
    (dict(backoff='1'), "timeout must be positive .* got 30.0 and '1'"),
    (dict(retries=True), 'retries must be a whole number of at least 0, got True'),
    (dict(quality='a'), "quality must be a whole number of 1 to 100, got 'a'"),
    (dict(format=['jpg']), "format must be 'jpg' or 'png', got"),
    (dict(source='tiles'), "type of the source must be 'tiles' or 'rasters', got None"),
    (dict(source=dict(type='google')), "type of the source must be 'tiles' or 'rasters', got"),
    (dict(source=dict(type='tiles', name='a')), "'tiles' cannot be built: missing 4 required"),
    (dict(source=dict(type='rasters', color=1)), "'rasters' cannot be built: got an unexpected"),
])
def test_a_wrong_setting_is_one_sentence(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        fetch(tmp_path, **dict(source=dict(type='tiles')) | settings)


@pytest.mark.parametrize('text, message', [
    (None, r'points\.csv does not exist: it is written by the step sample, or by hand'),
    ('id,lon,lat\n', "no column 'gsd'"),
    ('id,lon,lat,gsd\na,1,2,1\nb,200,2,1\n', 'line 3: lon is 200, not between -180 and 180'),
    ('id,lon,lat,gsd\na,1,95,1\n', 'line 2: lat is 95'),
    ('id,lon,lat,gsd\na,1,x,1\n', "line 2: lat is 'x', which is not a number"),
    ('id,lon,lat,gsd\na,1,2,0\n', 'line 2: gsd is 0'),
    ('id,lon,lat,gsd\n../a,1,2,1\n', r"line 2: the id '\.\./a' cannot name a file"),
])
def test_a_wrong_point_is_one_sentence(tmp_path, text, message):
    if text is not None:
        (tmp_path / 'points.csv').write_text(text)
    with TileServer() as server, pytest.raises(ValueError, match=message):
        fetch(tmp_path, source=tiles(server), **QUICK)


def test_a_disk_that_is_too_small_is_reported_first(tmp_path):
    write_points(tmp_path, 2)
    with TileServer() as server:
        with pytest.raises(ValueError, match=r'2 images need about .* GB, and the disk of .* left'):
            fetch(tmp_path, source=tiles(server), **QUICK | dict(size=50_000_000))
        assert not server.log
