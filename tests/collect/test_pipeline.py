"""The documented commands, one after the other: from a land-cover map to a trained model."""

import hashlib
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from mmengine.config import Config
from PIL import Image
from programs import claimed

from pera_mm import files
from pera_mm.collect.common.tables import TILE, write_table
from pera_mm.datasets.unlabeled import UnlabeledImages
from pera_mm.files import WORK_FOLDER_MARKER
from pera_mm.scenes import planet
from pera_mm.scenes.planet import ISLANDS, make_planet

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools/data/rsrsd.py'
CONFIG = ROOT / 'configs/collect/planet.py'
TWO = ('asia', 'africa')


@pytest.fixture(scope='module')
def two_islands(tmp_path_factory):
    """Two of the six islands: quicker to draw."""
    folder = tmp_path_factory.mktemp('planet')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planet, 'ISLANDS', {name: ISLANDS[name] for name in TWO})
        make_planet(folder)
    return folder


@contextmanager
def tile_server(*arguments):
    """The address of the tile server of tools/data, a process of its own."""
    command = [sys.executable, ROOT / 'tools/data/tile_server.py', *arguments, '--port', '0']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield re.search(r'http://127.0.0.1:\d+', process.stdout.readline())[0]
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope='module')
def served(two_islands):
    with tile_server(two_islands / 'imagery/*.tif') as address:
        yield address


def run(monkeypatch, *arguments) -> str | int | None:
    """The command in this process; what it exits with."""
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
    try:
        runpy.run_path(str(TOOL), run_name='__main__')
    except SystemExit as error:
        return error.code
    return 0


def small(folder: Path, islands: Path, url: str, fetch: str = '') -> list[Path | str]:
    """A config as a user writes one: two islands, and 32 points for 340. And its work folder."""
    config = folder / 'two_islands.py'
    config.write_text(f"""
_base_ = '{CONFIG}'
sample = dict(
    landcover=dict(paths='{islands}/landcover/*.tif'),
    total=24,
    counts=dict(desert=2, ice=2, grassland=2, cloud=2),
    continents=dict(_delete_=True, asia=2, africa=1))
fetch = dict(source=dict(url='{url}'), {fetch})
pack = dict(images_per_shard=10)
""")
    return [config, '--work-dir', folder / 'work']


def digest(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.mark.slow
def test_from_land_cover_to_a_trained_model(tmp_path, monkeypatch, capsys, two_islands, served):
    work = tmp_path / 'work'
    options = small(tmp_path, two_islands, f'{served}/{{z}}/{{x}}/{{y}}.png')
    assert run(monkeypatch, 'sample', *options) == 0
    assert len(pd.read_csv(work / 'points.csv')) == 32
    assert (work / WORK_FOLDER_MARKER).is_file()
    assert 'accept' in run(monkeypatch, 'fetch', *options)  # the terms, not yet
    assert not (work / 'tiles.csv').exists()
    accepted = [*options, '--accept-terms', 'drawn planet']
    assert run(monkeypatch, 'fetch', *accepted) == 0
    for step in ('filter', 'pack'):
        assert run(monkeypatch, step, *options) == 0
    tables = {name: pd.read_csv(work / f'{name}.csv', dtype=str)
              for name in ('tiles', 'missing', 'kept', 'dropped')}
    assert len(tables['tiles']) + len(tables['missing']) == 32
    assert len(tables['kept']) + len(tables['dropped']) == len(tables['tiles']) > 20
    manifest = pd.read_csv(work / 'packed/manifest.csv', dtype=str)
    assert manifest['id'].tolist() == tables['kept']['id'].tolist()
    for step in ('sample', 'fetch', 'filter', 'pack'):  # a log and a summary of each
        assert (work / f'logs/{step}.log').stat().st_size
        assert json.loads((work / f'{step}.json').read_text())
    assert run(monkeypatch, 'verify', work / 'packed') == 0
    capsys.readouterr()
    assert run(monkeypatch, 'stats', work / 'packed', '--out', work) == 0
    assert 'drawn planet' in capsys.readouterr().out
    assert (work / 'contact_sheet.png').stat().st_size > 10_000
    train(monkeypatch, work / 'packed', tmp_path)

    # The same commands again change nothing: all is there.
    before = digest(work / 'packed') | digest(work / 'tiles')
    for step in ('sample', 'fetch', 'filter', 'pack'):
        assert run(monkeypatch, step, *(accepted if step == 'fetch' else options)) == 0
    assert digest(work / 'packed') | digest(work / 'tiles') == before

    # A byte of a shard changes: verify says which image.
    shard = work / 'packed/000001.tar'
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    assert 'not as its manifest says' in run(monkeypatch, 'verify', work / 'packed')


def train(monkeypatch, packed: Path, tmp_path: Path) -> None:
    """A short training with the demo's model on what was packed."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(sys, 'argv', [
        'train.py', str(ROOT / 'configs/pera/pera_tiny_planet.py'), '--work-dir',
        str(tmp_path / 'train'), '--cfg-options', f'train_dataloader.dataset.source={packed}',
        'train_dataloader.batch_size=8', 'train_cfg.max_epochs=2'])
    runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
    assert list((tmp_path / 'train').glob('*.pth'))


@pytest.mark.slow
def test_real_land_cover_and_images(tmp_path, monkeypatch, shared_data):
    """Zion: NLCD's classes and Landsat 8, 30 m, through the same steps."""
    zion = shared_data / 'zion'
    config = tmp_path / 'zion.py'
    bands = ['--bands', '3', '2', '1', '--scale', '7500', '14000']
    with tile_server(zion / 'landsat8_b2345.tif', *bands) as url:
        config.write_text(f"""
_base_ = '{CONFIG}'
sample = dict(
    landcover=dict(_delete_=True, paths='{zion}/nlcd8.tif', legend={{
        1: 'water', 2: 'urban', 3: 'desert', 4: 'forest', 5: 'shrub', 6: 'grassland',
        7: 'farmland', 8: 'wetland'}}),
    total=40, shares=dict(_delete_=True, forest=0.5, shrub=0.3, desert=0.2),
    counts=dict(_delete_=True, urban=4), continents=None, min_distance=500., gsd=(30., 40.))
fetch = dict(source=dict(url='{url}/{{z}}/{{x}}/{{y}}.png', name='zion', zooms=(0, 13)), size=64)
pack = dict(form='lmdb')
""")
        options = [config, '--work-dir', tmp_path / 'work']
        assert run(monkeypatch, 'sample', *options) == 0
        assert run(monkeypatch, 'fetch', *options, '--accept-terms', 'zion') == 0
    for step in ('filter', 'pack'):
        assert run(monkeypatch, step, *options) == 0
    assert run(monkeypatch, 'verify', tmp_path / 'work/packed') == 0
    images = UnlabeledImages(str(tmp_path / 'work/packed'), pipeline=[])
    shape = {images[index]['img'].shape for index in range(len(images))}
    assert len(images) > 30 and shape == {(64, 64, 3)}
    assert json.loads((tmp_path / 'work/sample.json').read_text())['points'] == 44


def test_the_key_is_in_no_file_and_no_message(tmp_path, monkeypatch, capsys, two_islands):
    monkeypatch.setenv('PLANET_KEY', 'top-secret-7')
    # Nobody listens there.
    options = small(tmp_path, two_islands, 'http://127.0.0.1:9/{z}/{x}/{y}?{key}', 'retries=0')
    options += ['--cfg-options', '+fetch.source.key_env=PLANET_KEY']
    assert run(monkeypatch, 'sample', *options) == 0
    code = run(monkeypatch, 'fetch', *options, '--accept-terms', 'drawn planet')
    said = capsys.readouterr()
    assert code and 'top-secret' not in f'{code}{said.out}{said.err}'
    for path in tmp_path.rglob('*'):
        assert path.is_dir() or b'top-secret' not in path.read_bytes(), path


@pytest.mark.parametrize(('step', 'option', 'sentence'), [
    ('sample', '+sample.totl=5', "sample has no setting 'totl'; it has seed, landcover, "),
    ('sample', 'sample.totl=5', 'the config has no key sample.totl; did you mean sample.total?'),
    ('fetch', 'fetch.size=16', r'.*points.csv does not exist: it is written by'),
    ('filter', 'fetch.size=16', r'.*tiles.csv does not exist: it is written by'),
    ('pack', 'fetch.size=16', r'.*kept.csv does not exist: it is written by'),
])
def test_what_is_wrong_is_one_sentence(tmp_path, monkeypatch, step, option, sentence):
    accept = ['--accept-terms', 'drawn planet'] if step == 'fetch' else []
    code = run(monkeypatch, step, CONFIG, '--work-dir', tmp_path, *accept, '--cfg-options', option)
    assert re.search(sentence, code) and '\n' not in code


@pytest.mark.parametrize(('name', 'text', 'sentence'), [
    ('nope.py', None, r'No config at .*nope.py'),
    ('.', None, r'No config at '),
    ('a.py', 'filter = dict(\n', r'a.py cannot be read as a config: SyntaxError: '),
    ('a.py', 'filter = dict(a=b)\n', r"a.py .*NameError: name 'b' is not defined"),
    ('a.py', "_base_ = 'nothere.py'\n", r'a.py .*nothere.py'),
    ('a.py', 'filter = dict(blank=1 + "a")\n', r'a.py .*TypeError: '),
    ('a.json', '{', r'a.json cannot be read as a config: JSONDecodeError: '),
    ('a.yaml', 'filter: [1', r'a.yaml cannot be read as a config: ParserError: '),
    ('a.txt', 'filter = dict()', r'a.txt cannot be read as a config: '),
    ('a.py', '', r'a.py has no dict filter = dict\(...\) for this step'),
    ('a.py', 'filter = 5\n', r"a.py: filter is 5, but must be the dict of the step's settings"),
    ('a.py', 'filter = None\n', r'a.py: filter is None, but must be the dict'),
    ('a.py', f"_base_ = '{CONFIG}'\nfilter = dict(blank='x')\n", r"0 or more; got 'x'"),
])
def test_a_wrong_config_is_one_sentence(tmp_path, monkeypatch, name, text, sentence):
    if text is not None:
        (tmp_path / name).write_text(text)
    code = run(monkeypatch, 'filter', tmp_path / name, '--work-dir', tmp_path / 'work')
    assert re.search(sentence, code) and '\n' not in code and 'Traceback' not in code


def test_an_option_without_a_value_is_a_usage_error(monkeypatch, capsys):
    assert run(monkeypatch, 'filter', CONFIG, '--cfg-options', 'filter.blank') == 2
    assert "expected KEY=VALUE, got 'filter.blank'" in capsys.readouterr().err


@pytest.mark.parametrize(('path', 'is_folder', 'sentence'), [
    ('work/logs', False, 'logs is a file where a folder must be: move it away.'),
    ('work/filter', False, 'filter is a file where a folder must be: move it away.'),
    ('work/kept.csv', True, 'kept.csv is a folder where a file must be: move it away.'),
])
def test_a_file_in_a_folders_place_is_named(tmp_path, monkeypatch, path, is_folder, sentence):
    collect(tmp_path / 'work', 2)
    if is_folder:
        (tmp_path / path).mkdir()
    else:
        (tmp_path / path).write_text('')
    code = run(monkeypatch, 'filter', CONFIG, '--work-dir', tmp_path / 'work')
    assert code == f'rsrsd: {tmp_path / Path(path).parent}/{sentence}'


def test_a_file_in_the_work_folders_place_is_named(tmp_path, monkeypatch):
    (tmp_path / 'work').write_text('')
    code = run(monkeypatch, 'filter', CONFIG, '--work-dir', tmp_path / 'work')
    assert code == (f'rsrsd: cannot write to the work folder {tmp_path}/work (a file has its name '
                    'or that of a folder above): make it writable with room on its disk, or give '
                    'another --work-dir.')


def collect(folder: Path, number: int, **columns) -> None:
    """Images and their tiles.csv, as the step fetch leaves them."""
    rng = np.random.default_rng(0)
    rows = []
    (folder / 'tiles').mkdir(parents=True)
    for index in range(number):
        file = folder / 'tiles' / f'{index:03}.png'
        Image.fromarray(rng.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(file)
        rows.append((f'{index:03}', 1.5, 50.0, 'urban', 'europe', 1.2, 17, 'server', '',
                     f'tiles/{file.name}', hashlib.sha256(file.read_bytes()).hexdigest()))
    write_table(folder / 'tiles.csv', pd.DataFrame(rows, columns=list(TILE)).assign(**columns))


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full, a disk that is full')
def test_a_full_disk_under_the_log_says_nothing_and_stops_nothing(tmp_path, monkeypatch, capfd):
    collect(tmp_path, 2)
    (tmp_path / 'logs').mkdir()
    (tmp_path / 'logs/filter.log').symlink_to('/dev/full')
    assert run(monkeypatch, 'filter', CONFIG, '--work-dir', tmp_path) == 0
    said = capfd.readouterr()
    assert 'kept: 2' in said.out and 'error' not in f'{said.out}{said.err}'.lower()


def test_two_steps_do_not_work_in_one_folder(tmp_path, monkeypatch):
    collect(tmp_path, 2)
    options = ['filter', CONFIG, '--work-dir', tmp_path]
    monkeypatch.setattr(files, 'MAX_WAIT', .2)
    with claimed(tmp_path) as process:
        code = run(monkeypatch, *options)
        assert code.startswith(f'rsrsd: another run is at work in {tmp_path} (process {process} ')
        assert code.endswith('): wait for its end or give another --work-dir.')
        assert not (tmp_path / 'kept.csv').exists()
        assert run(monkeypatch, 'stats', tmp_path / 'tiles') == 0
    assert run(monkeypatch, *options) == 0


def test_a_row_wider_than_the_page_is_printed_whole(tmp_path, monkeypatch, capsys):
    collect(tmp_path, 2, source='a source with a name that is longer than the line of a terminal, '
                                'which has eighty characters')
    assert run(monkeypatch, 'stats', tmp_path / 'tiles') == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if 'longer than' in line)
    assert str(tmp_path / 'tiles') in row and 'eighty characters' in row and '…' not in row
    show = runpy.run_path(str(TOOL))['show']
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    monkeypatch.setenv('COLUMNS', '60')
    show(dict(rows=[dict(name='x' * 30, source='y' * 200, count=1)]))
    said = capsys.readouterr().out
    assert said.count('y') == 200 and '…' not in said


def test_stats_takes_what_the_reading_of_images_takes(tmp_path, monkeypatch, capsys):
    deep = np.stack([np.full((8, 8), value, np.uint16) for value in (100, 200, 300, 400)])
    (tmp_path / 'deep').mkdir()
    with rasterio.open(tmp_path / 'deep/a.tif', 'w', driver='GTiff', width=8, height=8, count=4,
                       dtype='uint16') as file:
        file.write(deep)
    (tmp_path / 'list.txt').write_text('a.tif\n')
    options = ['--bands', 4, 3, 1, '--scale', 0, 510]
    for source, more in ((tmp_path / 'list.txt', ['--data-root', tmp_path / 'deep']),
                         (tmp_path / 'deep', ['--index-file', tmp_path / 'index.txt'])):
        assert run(monkeypatch, 'stats', source, *options, *more) == 0
        assert 'mean=[200.0000, 150.0000, 50.0000]' in capsys.readouterr().out
    assert (tmp_path / 'index.txt').read_text() == 'a.tif\n'


def test_verify_prints_some_problems_and_writes_all(tmp_path, monkeypatch, capsys):
    collect(tmp_path, 30)
    (tmp_path / 'kept.csv').write_bytes((tmp_path / 'tiles.csv').read_bytes())
    assert run(monkeypatch, 'pack', CONFIG, '--work-dir', tmp_path, '--cfg-options',
               '+pack.form=folder', 'pack.images_per_shard=100') == 0
    for file in sorted((tmp_path / 'packed').rglob('*.png'))[:25]:
        data = file.read_bytes()
        file.unlink()  # it is a link to the tile
        file.write_bytes(data + b'x')
    capsys.readouterr()
    code = run(monkeypatch, 'verify', tmp_path / 'packed')
    said = capsys.readouterr().out
    assert code.endswith('25 problems, of which 20 are shown: --out FILE.csv has all.')
    assert said.count('.png') == 20 and 'altered: 25' in said
    run(monkeypatch, 'verify', tmp_path / 'packed', '--out', tmp_path / 'problems.csv')
    assert len(pd.read_csv(tmp_path / 'problems.csv')) == 25
    manifest = tmp_path / 'packed/manifest.csv'
    said = run(monkeypatch, 'verify', tmp_path / 'packed', '--out', manifest)
    assert said.endswith('manifest.csv would replace what is verified: give another name.')
    assert len(pd.read_csv(manifest)) == 30


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, 'lmdb', None)
    monkeypatch.delitem(sys.modules, 'pera_mm.collect.pack.step')
    said = run(monkeypatch, 'stats', 'nowhere')
    assert said == 'rsrsd: the package lmdb is not installed: pip install -e .[collect]'


@pytest.mark.parametrize('config', sorted(CONFIG.parent.glob('*.py')), ids=lambda path: path.stem)
def test_every_config_names_settings_that_the_steps_have(config):
    tool = runpy.run_path(str(TOOL))
    cfg = Config.fromfile(config)
    for step in ('sample', 'fetch', 'filter', 'pack'):
        assert tool['settings_of'](cfg, step, config)


@pytest.mark.parametrize('step', [pytest.param('fetch', marks=pytest.mark.slow), 'pack'])
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch, two_islands, served,
                                                       step):
    """On a real small disk. The images are noise-free, so the estimate of their size is too high
    to be of use here: the test fills the disk with a file of its own."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    if os.geteuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', disk],
                                      capture_output=True).returncode:
        pytest.skip('a small disk cannot be mounted here: that needs root')
    try:
        options = small(disk, two_islands, f'{served}/{{z}}/{{x}}/{{y}}.png')
        accepted = [*options, '--accept-terms', 'drawn planet']
        steps = {'sample': options, 'fetch': accepted, 'filter': options, 'pack': options}
        for name, arguments in steps.items():
            if name == step:
                fill(disk, leave=60_000)
                code = run(monkeypatch, name, *arguments)
                assert re.search('full|free', code) and '\n' not in code
                (disk / 'filler').unlink()
            assert run(monkeypatch, name, *arguments) == 0
        assert run(monkeypatch, 'verify', disk / 'work/packed') == 0
    finally:
        subprocess.run(['umount', '-l', disk], check=True)


def fill(disk: Path, leave: int) -> None:
    (disk / 'filler').write_bytes(bytes(shutil.disk_usage(disk).free - leave))


@pytest.mark.slow
def test_sigterm_ends_a_step_with_a_word(tmp_path, two_islands):
    """A server that never answers; the step is asked to end."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        url = f'http://127.0.0.1:{listener.getsockname()[1]}'
        options = small(tmp_path, two_islands, f'{url}/{{z}}/{{x}}/{{y}}')
        for step in ('sample', 'fetch'):
            accept = ['--accept-terms', 'drawn planet'] if step == 'fetch' else []
            process = subprocess.Popen([sys.executable, TOOL, step, *options, *accept],
                                       stderr=subprocess.PIPE, text=True)
            if step == 'sample':
                assert process.wait(120) == 0
        log = tmp_path / 'work/logs/fetch.log'
        for _ in range(300):
            if log.exists() and log.stat().st_size:
                break
            time.sleep(0.2)
        time.sleep(1)
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and 'stopped; run the same command again to continue' in said
