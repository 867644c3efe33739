"""The benchmark of predicting scenes: its parts, its arithmetic, and what fails as a line."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest
import rasterio

pytest.importorskip('mmseg')
pytest.importorskip('pyogrio')

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools/benchmarks'))
import predict_parts as parts  # noqa: E402
import predict_scenes as scenes  # noqa: E402
from predict_parts import PARTS, Task  # noqa: E402

import pera_mm  # noqa: E402
from pera_mm.errors import RunError  # noqa: E402
from pera_mm.mapping import job, run  # noqa: E402

COLUMN = 512 * (4 * 7 + 1 + 2)  # bytes of the sums and the strips of one column


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp('benchmark')
    parts.write_model(made, 'thin', export=False)
    return made


def scene(folder: Path, task: Task) -> Path:
    parts.write_scene(task.scene(folder), task.height, task.width, gsd=0.5)
    return task.scene(folder)


def test_the_main_thread_is_in_one_part_at_a_time(folder, tmp_path):
    task = Task('speed', 'thin', 600, 900)
    place = scene(folder, task)
    before = job.write_part, run._run
    measured = parts.measure(task, folder, 1)
    assert (job.write_part, run._run) == before  # nothing stays patched
    assert measured['parts'].keys() == PARTS.keys()
    assert (measured['windows'], measured['strips'], measured['bands']) == (6, 2, 1)
    assert 0 <= scenes.rest_of(measured) < 0.5 * measured['seconds']
    assert all(0 <= used['cpu_seconds'] <= used['seconds'] + 0.1
               for used in measured['parts'].values())
    assert measured['polygons'] > 0 and 0.2 < measured['peak_gib'] < 4
    plain, = pera_mm.predict(folder / 'thin.py', folder / 'thin.pth', place, tmp_path)
    assert scenes.equal_share(task.output(folder), plain.output) == 1


def test_a_small_memory_makes_bands_and_every_window_is_counted(folder):
    task = Task('memory', 'thin', 500, 1400, memory=900 * COLUMN / 2**30)
    scene(folder, task)
    measured = parts.measure(task, folder, 1)
    # Windows at 0, 341, 682 and 888; the bands end at 682 and 1400, and share a window.
    assert (measured['bands'], measured['windows']) == (2, 5)
    assert 'vectors' not in measured['parts'] and 'polygons' not in measured


def test_the_scene_covers_its_size(tmp_path):
    parts.write_scene(tmp_path / 'a.tif', 1030, 1100, gsd=0.5)
    with rasterio.open(tmp_path / 'a.tif') as file:
        assert (file.shape, file.res, file.count) == ((1030, 1100), (0.5, 0.5), 3)
        pixels = file.read()
    assert pixels.min() >= 20 and (pixels[:, 1024:] == pixels[:, :6]).all()
    assert (pixels[..., 1024:] == pixels[..., :76]).all()


def row(**changes) -> dict:
    return dict(Task('speed', 'demo', 2000, 1000)._asdict(), mpx=2., failed=None, seconds=10.,
                cpu_seconds=16., all_seconds=[9., 10., 12.], model_seconds=8., windows=40, strips=4,
                bands=1, polygons=1234, peak_gib=1.5,
                parts={'reading': dict(seconds=2., cpu_seconds=1.),
                       'model': dict(seconds=8., cpu_seconds=7.)}) | changes


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip('|').split('|')]
            for line in text.splitlines() if line.startswith('| ')]


def test_the_arithmetic_of_the_tables():
    memory = dict(table='memory', model='thin', memory=0.25, bands=3)
    peer = dict(program='geoai', version='0.1', seconds=25., cpu_seconds=20., peak_gib=3.,
                equal=0.9876)
    rows = [row(), row(**memory), row(table='peer'), row(table='peer', **peer)]
    text = scenes.to_markdown(dict(threads=2, torch='2', repeats=3, gsd=0.5, load_before=1.,
                                   load_after=2., imports_gib=1.2, rows=rows))
    found = cells(text)
    scene = 'demo, 1,000 x 2,000 px'
    # 2 Mpx, that is 0.5 km², in 10 s and 16 CPU s
    assert found[1] == [scene, '40', '10.0 (9.0-12.0)', '0.200', '0.125', '180.0', '1,234', '1.50']
    by_part = {line[0]: line[1:] for line in found[3:13]}
    assert by_part['reading'] == ['reader', '20.0% (2.00; 1.00)']
    assert by_part['model'] == ['main', '80.0% (8.00; 7.00)']
    assert by_part['vectors'] == ['main', '–'] and by_part['rest'] == ['main', '20.0%']
    assert found[14] == ['thin, 1,000 x 2,000 px', '0.25', '3', '40', '10.0 (9.0-12.0)', '1.50',
                         '0.30']
    assert found[16:] == [
        [scene, 'pera_mm', '10.0 (9.0-12.0)', '1.00', '16.0', '1.00', '2.0', '1.50', '1.00', ''],
        [scene, 'geoai 0.1', '25.0 (9.0-12.0)', '2.50', '20.0', '1.25', '17.0', '3.00', '2.00',
         '98.8%']]


def test_the_turn_of_median_time():
    turns = [dict(seconds=3., peak_gib=1.), dict(seconds=1., peak_gib=2.),
             dict(seconds=2., peak_gib=3.)]
    assert scenes.median_turn(turns) == dict(seconds=2., peak_gib=3., all_seconds=[3., 1., 2.])


def test_a_failed_measurement_is_a_line_and_exit_code_1(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scenes, 'in_new_process', lambda run, *arguments: run(*arguments))
    monkeypatch.setattr(scenes, 'measure', lambda *_: 1 / 0)
    monkeypatch.setattr(sys, 'argv', [
        'predict_scenes.py', '--demo-side', '0', '--vitb-side', '0', '--widths', '600',
        '--folder', str(tmp_path), '--json', str(tmp_path / 'all.json')])
    for name in ('OMP_WAIT_POLICY', 'PYTHONWARNINGS'):
        monkeypatch.setenv(name, '')  # main() sets them, and they are to be as before afterwards
    with pytest.raises(SystemExit, match='2 of 2 measurements failed'):
        scenes.main()
    assert [line[2] for line in cells(capsys.readouterr().out)[1:]] == [
        'failed: division by zero'] * 2
    assert (tmp_path / 'all.json').is_file() and len(list(tmp_path.iterdir())) == 1


def test_a_peer_without_its_packages_is_named(folder, tmp_path):
    bare = tmp_path / 'python'
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    args = Namespace(peer=bare, threads=1, limit=4.)
    with pytest.raises(RunError, match="No module named 'numpy'"):
        scenes.measure_peer(Task('peer', 'thin', 600, 600, program='geoai'), folder, args)
