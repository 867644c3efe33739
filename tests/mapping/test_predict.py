"""Whole scenes predicted: equal to a plain slow way, in pieces, after a kill, and on two ranks."""

import json
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from map_models import CHANGE, FCN, SIDE, save
from mmengine.config import Config
from PIL import Image
from programs import ROOT, claimed, environment, run
from ranges import serve
from rasterio.transform import from_origin
from rasterio.warp import transform as transform_points

import pera_mm
from pera_mm import files
from pera_mm.errors import UserError
from pera_mm.mapping import run as mapping_run
from pera_mm.mapping.predictor import Predictor
from pera_mm.mapping.ranks import Meter
from pera_mm.mapping.windows import Windows

pytest.importorskip('mmseg')

ORIGIN = 500_000, 5_200_000
CRS = 'EPSG:32632'


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> tuple[str, str]:
    return save(tmp_path_factory.mktemp('model'), FCN)


@pytest.fixture(scope='module')
def change_model(tmp_path_factory) -> tuple[str, str]:
    return save(tmp_path_factory.mktemp('model'), CHANGE)


def scene_pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Colored patches of 8 px with noise ``[3, H, W]``, never 0."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 230, (3, height // 8 + 1, width // 8 + 1))
    smooth = coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width]
    return (smooth + rng.integers(0, 25, smooth.shape)).astype(np.uint8)


def write(path: Path, pixels: np.ndarray, origin=ORIGIN, **options) -> str:
    with rasterio.open(path, 'w', driver='GTiff', count=len(pixels), height=pixels.shape[1],
                       width=pixels.shape[2], dtype=pixels.dtype, crs=CRS,
                       transform=from_origin(*origin, 1, 1), **options) as file:
        file.write(pixels)
    return str(path)


def predict(model: tuple[str, str], scenes, output: Path, **options) -> list[Any]:
    outcomes = pera_mm.predict(*model, scenes, output, **options)
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    return outcomes


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def plain_map(model: tuple[str, str], pixels: np.ndarray, blend: str = 'hann') -> np.ndarray:
    """The logits of the whole scene in one array, window by window."""
    config, checkpoint = model
    predictor = Predictor(Config.fromfile(config), checkpoint)
    height, width = pixels.shape[1:]
    windows = Windows(height, width, SIDE, blend)
    margins = [(0, 0), (0, max(SIDE - height, 0)), (0, max(SIDE - width, 0))]
    padded = np.pad(pixels, margins, mode='symmetric')
    sums = np.zeros((7, *padded.shape[1:]))
    for row, top in enumerate(windows.tops):
        for column, left in enumerate(windows.lefts):
            place = np.s_[:, top:top + SIDE, left:left + SIDE]
            sums[place] += predictor(padded[place][None])[0].astype(float) * (
                windows.row_weights[row][:, None] * windows.column_weights[column])
    return sums[:, :height, :width].argmax(0)


def alike(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two maps agree but for ties of logits."""
    return first.shape == second.shape and (first != second).mean() < 1e-3


# -- the map -------------------------------------------------------------------------------------


@pytest.mark.parametrize('blend', ['hann', 'trim', 'none'])
def test_the_map_is_that_of_the_plain_way(tmp_path, model, blend):
    pixels = scene_pixels(75, 101)
    predict(model, write(tmp_path / 'a.tif', pixels), tmp_path / 'out', blend=blend)
    found = read(tmp_path / 'out/a.tif')
    assert len(np.unique(found)) > 2  # of 7 classes
    assert alike(found, plain_map(model, pixels, blend))


@pytest.mark.parametrize('height, width', [(1, 1), (5, 40), (31, 33), (32, 32), (33, 65)])
def test_scenes_of_any_size(tmp_path, model, height, width):
    pixels = scene_pixels(height, width)
    predict(model, write(tmp_path / 'a.tif', pixels), tmp_path / 'map.tif')
    found = read(tmp_path / 'map.tif')
    assert found.shape == (height, width) and found.max() < 7
    assert alike(found, plain_map(model, pixels)) or found.size < 1000


def test_the_map_keeps_the_georeference_and_says_what_it_is(tmp_path, model):
    predict(model, write(tmp_path / 'a.tif', scene_pixels(40, 40)), tmp_path / 'out')
    with rasterio.open(tmp_path / 'out/a.tif') as file:
        assert file.crs == rasterio.crs.CRS.from_user_input(CRS)
        assert file.transform == from_origin(*ORIGIN, 1, 1) and file.nodata == 255
        tags = file.tags()
        assert json.loads(tags['CLASS_NAMES'])[0] == 'impervious'
        assert tags['CONFIG'] == 'tiny.py' and len(tags['CHECKPOINT_SHA256']) == 64
        assert tags['TIFFTAG_SOFTWARE'] == f'pera_mm {pera_mm.__version__}'
        assert len(set(file.colormap(1)[index] for index in range(7))) == 7
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['a.qml', 'a.tif']


def test_a_scene_moved_by_a_stride_has_the_same_inner_pixels(tmp_path, model):
    pixels = scene_pixels(120, 120)
    stride = Windows(120, 120, SIDE).tops[1]
    predict(model, write(tmp_path / 'a.tif', pixels), tmp_path / 'out')
    predict(model, write(tmp_path / 'b.tif', pixels[:, stride:, stride:]), tmp_path / 'out')
    inner = slice(SIDE, 120 - 2 * stride - SIDE)
    whole, moved = (read(tmp_path / f'out/{name}.tif') for name in 'ab')
    assert alike(moved[inner, inner], whole[stride:, stride:][inner, inner])


def test_nodata_stays_nodata_and_changes_nothing_elsewhere(tmp_path, model):
    pixels = scene_pixels(100, 100)
    pixels[:, 20:90, 30:95] = 0
    predict(model, write(tmp_path / 'a.tif', pixels, nodata=0), tmp_path / 'out')
    found = read(tmp_path / 'out/a.tif')
    np.testing.assert_array_equal(found == 255, (pixels == 0).all(0))
    assert alike(np.where(found == 255, 255, plain_map(model, pixels)), found)


def test_a_plain_picture_becomes_a_map_without_a_crs(tmp_path, model):
    pixels = scene_pixels(50, 60)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / 'a.png')
    predict(model, tmp_path / 'a.png', tmp_path / 'out')
    assert alike(read(tmp_path / 'out/a.tif'), plain_map(model, pixels))


def test_polygons_give_the_pixels_of_the_whole(tmp_path, model):
    pytest.importorskip('pyogrio')
    scene = write(tmp_path / 'a.tif', scene_pixels(120, 130))
    x, y = ORIGIN
    xs, ys = transform_points(CRS, 'EPSG:4326', [x + 10, x + 50, x + 40, x + 10],
                              [y - 60, y - 75, y - 110, y - 60])
    (tmp_path / 'aoi.geojson').write_text(json.dumps(dict(
        type='Polygon', coordinates=[list(zip(xs, ys))])))
    predict(model, scene, tmp_path / 'whole')
    predict(model, scene, tmp_path / 'part', aoi=tmp_path / 'aoi.geojson')
    whole, part = read(tmp_path / 'whole/a.tif'), read(tmp_path / 'part/a.tif')
    inside = part != 255
    assert 500 < inside.sum() < 900
    np.testing.assert_array_equal(part[inside], whole[inside])


def test_little_memory_gives_the_same_map_in_bands(tmp_path, model):
    scene = write(tmp_path / 'a.tif', scene_pixels(70, 200))
    predict(model, scene, tmp_path / 'one')
    predict(model, scene, tmp_path / 'bands', memory=70 * SIDE * 31 / 2**30)
    assert alike(read(tmp_path / 'one/a.tif'), read(tmp_path / 'bands/a.tif'))


def test_scores_are_the_probabilities_of_the_map(tmp_path, model):
    scene = write(tmp_path / 'a.tif', scene_pixels(60, 60))
    predict(model, scene, tmp_path / 'out', scores=True)
    with rasterio.open(tmp_path / 'out/a_scores.tif') as file:
        scores = file.read().astype(int)
        assert file.descriptions[1] == 'building'
    found = read(tmp_path / 'out/a.tif')
    assert (np.abs(scores.sum(0) - 255) <= 4).all()
    chosen = np.take_along_axis(scores, found[None].astype(int), 0)[0]
    np.testing.assert_array_equal(chosen, scores.max(0))


def test_vectors_are_the_polygons_of_the_map(tmp_path, model):
    pyogrio = pytest.importorskip('pyogrio')
    scene = write(tmp_path / 'a.tif', scene_pixels(60, 60))
    predict(model, scene, tmp_path / 'out', vectors='gpkg')
    meta, _, shapes, fields = pyogrio.raw.read(tmp_path / 'out/a.gpkg')
    columns = dict(zip(meta['fields'], fields))
    assert columns['area_m2'].sum() == pytest.approx(3600, rel=2e-3)
    assert ((columns['score'] > 1 / 7 - 1 / 255) & (columns['score'] <= 1)).all()  # in bytes
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'a.gpkg', 'a.qml', 'a.tif']


def test_change_is_mapped_where_both_dates_are(tmp_path, change_model):
    newer = write(tmp_path / 'new.tif', scene_pixels(80, 90, 1))
    older = write(tmp_path / 'old.tif', scene_pixels(80, 90, 2), (ORIGIN[0] + 30, ORIGIN[1]))
    [outcome] = predict(change_model, newer, tmp_path / 'map.tif', before=older)
    found = read(tmp_path / 'map.tif')
    assert (found[:, :30] == 255).all() and (found[:, 30:] < 2).all()
    assert outcome.overlap == pytest.approx(2 / 3, abs=.02)
    with serve(Path(older)) as address:
        predict(change_model, newer, tmp_path / 'by_url.tif', before=address)
    np.testing.assert_array_equal(read(tmp_path / 'by_url.tif'), found)


# -- many scenes, and scenes that fail -----------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three scenes; a tile in the middle of the second is damaged."""
    (tmp_path / 'scenes').mkdir()
    for number, name in enumerate('abc'):
        write(tmp_path / f'scenes/{name}.tif', scene_pixels(96, 96, number), tiled=True,
              blockxsize=32, blockysize=32, compress='deflate')
    path = tmp_path / 'scenes/b.tif'
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item('BLOCK_OFFSET_1_1', 'TIFF', bidx=1))
    data = bytearray(path.read_bytes())
    data[offset:offset + 100] = bytes(100)
    path.write_bytes(data)
    return tmp_path / 'scenes'


def test_a_scene_that_fails_is_named_and_the_others_are_predicted(tmp_path, folder, model):
    outcomes = pera_mm.predict(*model, folder, tmp_path / 'out')
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert re.search(r'b.tif cannot be read at rows \d+ to \d+, columns', outcomes[1].error)
    assert (tmp_path / 'out/a.tif').exists() and (tmp_path / 'out/c.tif').exists()
    assert not (tmp_path / 'out/b.tif').exists()


def test_a_repaired_scene_is_predicted_anew(tmp_path, folder, model):
    pera_mm.predict(*model, folder / 'b.tif', tmp_path / 'out')
    write(folder / 'b.tif', scene_pixels(96, 96))
    [outcome] = pera_mm.predict(*model, folder / 'b.tif', tmp_path / 'out', resume=True)
    assert 'was begun with scene=' in outcome.error and 'leave out --resume' in outcome.error
    predict(model, folder / 'b.tif', tmp_path / 'out')


# -- again after a kill, and on ranks ------------------------------------------------------------


def stop_after(strips: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the process, so to say, when so many strips are predicted."""
    advance, left = Meter.advance, [strips]

    def count(meter: Meter, pixels: int) -> None:
        advance(meter, pixels)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Meter, 'advance', count)


@pytest.fixture
def predicted(monkeypatch) -> list[int]:
    """The pixels of each strip that was predicted."""
    counts: list[int] = []
    monkeypatch.setattr(Meter, 'advance', lambda meter, pixels: counts.append(pixels))
    return counts


@pytest.mark.parametrize('strips', [1, 3, 5])
def test_a_continued_run_gives_the_same_bytes(tmp_path, model, monkeypatch, strips):
    scene = write(tmp_path / 'a.tif', scene_pixels(150, 90))
    predict(model, scene, tmp_path / 'whole', scores=True)
    with monkeypatch.context() as patch:
        stop_after(strips, patch)
        with pytest.raises(KeyboardInterrupt):
            predict(model, scene, tmp_path / 'again', scores=True)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / 'again/.a.parts').glob('0*')}
    assert len(kept) == strips
    done: list[int] = []
    monkeypatch.setattr(Meter, 'advance', lambda meter, pixels: done.append(pixels))
    predict(model, scene, tmp_path / 'again', scores=True, resume=True)
    assert len(done) == len(Windows(150, 90, SIDE).tops) - strips
    for name in ('a.tif', 'a_scores.tif', 'a.qml'):
        assert (tmp_path / 'again' / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()


def test_finished_maps_are_kept_by_resume_and_replaced_without(tmp_path, model):
    scene = write(tmp_path / 'a.tif', scene_pixels(60, 60))
    predict(model, scene, tmp_path / 'out')
    first = os.stat(tmp_path / 'out/a.tif').st_ino
    predict(model, scene, tmp_path / 'out', resume=True)
    assert os.stat(tmp_path / 'out/a.tif').st_ino == first
    predict(model, scene, tmp_path / 'out', resume=True, blend='none')  # another map
    second = os.stat(tmp_path / 'out/a.tif').st_ino
    predict(model, scene, tmp_path / 'out', blend='none')
    assert len({first, second, os.stat(tmp_path / 'out/a.tif').st_ino}) >= 2


def test_strips_are_kept_when_polygons_fail(tmp_path, model, predicted):
    """A map without a CRS has no GeoJSON; no strip depends on the format or on a limit."""
    pytest.importorskip('pyogrio')
    Image.fromarray(scene_pixels(50, 60).transpose(1, 2, 0)).save(tmp_path / 'a.png')
    options = dict(scenes=tmp_path / 'a.png', output=tmp_path / 'out')
    [outcome] = pera_mm.predict(*model, **options, vectors='geojson', min_area=3)
    assert 'choose .gpkg' in outcome.error and len(predicted) > 1
    predicted.clear()
    predict(model, **options, vectors='gpkg', min_area=5, simplify=1, resume=True)
    assert not predicted and not (tmp_path / 'out/.a.parts').exists()
    predict(model, **options, vectors='gpkg', min_area=5, resume=True)  # other polygons
    assert predicted


def test_a_second_run_leaves_the_strips_of_the_first(tmp_path, model, monkeypatch):
    monkeypatch.setattr(files, 'MAX_WAIT', .2)
    scene = write(tmp_path / 'a.tif', scene_pixels(60, 60))
    parts = tmp_path / 'out/.a.parts'
    with claimed(parts) as other:
        (parts / '000-000000.tif').touch()
        for resume in (False, True):
            with pytest.raises(UserError, match=rf'at work in \S+/.a.parts \(process {other} .*: '
                                                'wait for its end or give another OUT'):
                pera_mm.predict(*model, scene, tmp_path / 'out', resume=resume)
        assert (parts / '000-000000.tif').exists()
    predict(model, scene, tmp_path / 'out')
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['a.qml', 'a.tif']


def test_a_run_of_many_scenes_may_have_their_locks_open():
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 100, hard))
        mapping_run._allow_open_files(60)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft - 40, hard)
        mapping_run._allow_open_files(hard)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def command(monkeypatch, *arguments: object) -> int:
    """Run the command in this process; its exit code."""
    monkeypatch.setattr(sys, 'argv', ['predict.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / 'tools/predict.py'), run_name='__main__')
    return end.value.code


def test_a_stopped_command_names_resume(tmp_path, model, monkeypatch, capsys):
    scene = write(tmp_path / 'a.tif', scene_pixels(100, 60))
    monkeypatch.setattr(Meter, 'advance', lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert command(monkeypatch, *model, scene, '-o', tmp_path / 'out') == 130
    assert capsys.readouterr().err.endswith(
        'Stopped by SIGINT.\nFinished strips are kept: the same command with --resume '
        'continues.\n')


def test_numbers_of_the_command_are_in_their_range(model, monkeypatch, capsys):
    assert command(monkeypatch, *model, 'a.tif', '-o', 'out', '--simplify', '-1') == 2
    assert "--simplify: expected a number of at least 0, got '-1'" in capsys.readouterr().err


def test_ranks_share_all_strips_in_order():
    strips = [[(0, row) for row in range(5)], [], [(0, 0), (0, 1), (1, 0)]]
    shares = [mapping_run._share(strips, rank, 3) for rank in range(3)]
    assert [sum(map(len, share)) for share in shares] == [2, 3, 3]
    for number, each in enumerate(strips):
        assert [strip for share in shares for strip in share[number]] == each


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_give_the_bytes_of_one(tmp_path, folder, model):
    arguments = [str(folder), '-o', tmp_path / 'two', '--scores']
    done = run(ROOT / 'tools/dist_predict.sh', *model, 2, *arguments, program='bash', code=1)
    assert '1 of 3 scenes failed' in done.stderr and done.stderr.count('cannot be read') == 1
    pera_mm.predict(*model, folder, tmp_path / 'one', scores=True)
    for name in ('a.tif', 'a_scores.tif', 'c.tif', 'c_scores.tif'):
        assert (tmp_path / 'two' / name).read_bytes() == (tmp_path / 'one' / name).read_bytes()
    assert not (tmp_path / 'two/b.tif').exists()


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bytes(tmp_path, model):
    scene = write(tmp_path / 'a.tif', scene_pixels(1500, 300))
    command = [sys.executable, ROOT / 'tools/predict.py', *model, scene, '-o', tmp_path / 'again']
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:
        parts = tmp_path / 'again/.a.parts'
        while len(list(parts.glob('0*.tif'))) < 5:
            assert process.poll() is None
            time.sleep(.02)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / 'again/a.tif').exists()
    run(*command[1:], '--resume')
    predict(model, scene, tmp_path / 'whole')
    assert (tmp_path / 'again/a.tif').read_bytes() == (tmp_path / 'whole/a.tif').read_bytes()


# -- large and sparse ----------------------------------------------------------------------------


def sparse(path: Path, side: int, model_side: int = 40) -> str:
    """A VRT of ``side`` pixels with data of 40 x 40 px in three places."""
    source = write(path.with_suffix('.tif'), scene_pixels(model_side, model_side))
    bands = ''.join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><NoDataValue>0</NoDataValue>' + ''.join(
            f'<SimpleSource><SourceFilename>{source}</SourceFilename><SourceBand>{band}'
            f'</SourceBand><SrcRect xOff="0" yOff="0" xSize="40" ySize="40"/><DstRect '
            f'xOff="{place}" yOff="{place}" xSize="40" ySize="40"/></SimpleSource>'
            for place in (10, side // 2, side - 50)) + '</VRTRasterBand>' for band in (1, 2, 3))
    path.write_text(f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}">{bands}</VRTDataset>')
    return str(path)


def test_windows_without_a_valid_pixel_are_not_computed(tmp_path, model, monkeypatch):
    batches = []
    forward = Predictor.__call__
    monkeypatch.setattr(Predictor, '__call__', lambda self, pixels: (
        batches.append(len(pixels)), forward(self, pixels))[1])
    predict(model, sparse(tmp_path / 'a.vrt', 4000), tmp_path / 'out')
    found = read(tmp_path / 'out/a.tif')
    assert (found != 255).sum() == 3 * 40 * 40 and (found[2000:2040, 2000:2040] < 7).all()
    assert len(batches) <= 3 * 4 * 2  # 190 x 6 batches would cover the scene


@pytest.mark.slow
@pytest.mark.timeout(1800)  # most of it for the overviews of 40 Gpx
def test_a_sparse_scene_of_200_000_pixels_takes_little_memory(tmp_path, model):
    scene = sparse(tmp_path / 'a.vrt', 200_000)
    code = (f'import resource, pera_mm\n'
            f'before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
            f'from pera_mm.mapping import predictor, run\n'
            f'outcomes = pera_mm.predict({model[0]!r}, {model[1]!r}, {scene!r}, '
            f'{str(tmp_path / "out")!r}, memory=.5, '
            f'cfg_options={{"model.test_cfg.crop_size": (512, 512)}})\n'
            f'assert outcomes[0].error is None, outcomes[0].error\n'
            f'print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n')
    peak = int(run('-c', code, timeout=1200).stdout.split()[-1]) / 2**20  # GiB
    assert peak < 2
    with rasterio.open(tmp_path / 'out/a.tif') as file:
        assert (file.read(1, window=((100_000, 100_040), (100_000, 100_040))) < 7).all()


# -- sentences -----------------------------------------------------------------------------------


@pytest.mark.parametrize('options, message', [
    (dict(before='x.tif'), 'This model takes one date: leave out --before'),
    (dict(bands=(1, 2)), '--bands takes 3 numbers from 1 on for this model, .* not 1 2'),
    (dict(scale=(5, 5)), r'--scale is LOW HIGH with LOW < HIGH, not 5 5'),
    (dict(aoi='x.gpkg'), 'There are no polygons x.gpkg'),
    (dict(vectors='shp'), "vectors must be one of gpkg, parquet, fgb, geojson, not 'shp'"),
    (dict(scale=(0, np.inf)), r'--scale is LOW HIGH with LOW < HIGH, not 0 inf'),
    (dict(vectors='gpkg', min_area=np.nan), 'smallest area of polygons is at least 0, not nan'),
    (dict(vectors='gpkg', simplify=-1.), 'tolerance of polygons is at least 0, not -1'),
    (dict(min_area=5.), 'for the polygons of --vectors: give that too, or leave them out'),
    (dict(gsd=np.nan), '--gsd is the size of a pixel in meters, above 0, not nan'),
    (dict(gsd=np.inf), '--gsd is the size of a pixel in meters, above 0, not inf'),
    (dict(memory=0), '--memory is in GiB, above 0'),
    (dict(memory=np.nan), '--memory is in GiB, above 0'),
    (dict(memory=np.inf), '--memory is in GiB, above 0'),
    (dict(launcher='pytorch'), 'needs processes started by torchrun: use tools/dist_predict.sh'),
    (dict(tta='all'), "tta must be one of none, flips, rotations, not 'all'")])
def test_options_that_do_not_fit_are_named(tmp_path, model, options, message):
    with pytest.raises(UserError, match=message):
        pera_mm.predict(*model, write(tmp_path / 'a.tif', scene_pixels(8, 8)), tmp_path / 'out',
                        **options)


def test_change_without_an_older_date_is_named(tmp_path, change_model):
    with pytest.raises(UserError, match='compares two dates: name the older one with --before'):
        pera_mm.predict(*change_model, write(tmp_path / 'a.tif', scene_pixels(8, 8)),
                        tmp_path / 'out')


def test_outputs_that_meet_are_named(tmp_path, model):
    for name in ('x', 'y'):
        (tmp_path / name).mkdir()
        write(tmp_path / name / 'a.tif', scene_pixels(8, 8))
    both = [str(tmp_path / name / 'a.tif') for name in ('x', 'y')]
    for scenes, output, message in [
            (both, tmp_path / 'out', 'Two scenes are called a: rename one'),
            (both, tmp_path / 'map.tif', 'map.tif is one file for 2 scenes: give a folder'),
            (both[0], tmp_path / 'map.png', 'map.png ends in .png: give a folder .*, or a file '
                                            'that ends in .tif or .tiff'),
            (both[0], tmp_path / 'map.csv', 'map.csv ends in .csv: give a folder'),
            (both[0], tmp_path / 'x', r'would overwrite its scene \S*x/a.tif')]:
        with pytest.raises(UserError, match=message):
            pera_mm.predict(*model, scenes, output)
    predict(model, both[0], tmp_path / 'v1.2')


def test_what_is_read_is_not_overwritten(tmp_path, model, change_model):
    pytest.importorskip('pyogrio')
    for name in ('old', 'new'):
        (tmp_path / name).mkdir()
        for scene in 'ab':
            write(tmp_path / name / f'{scene}.tif', scene_pixels(8, 8))
    scene = write(tmp_path / 'scene.tif', scene_pixels(8, 8))
    scores = write(tmp_path / 'map_scores.tif', scene_pixels(8, 8))
    areas = tmp_path / 'map.geojson'
    areas.write_text('polygons')
    mosaic = tmp_path / 'a.vrt'
    mosaic.write_text('<VRTDataset rasterXSize="8" rasterYSize="8">' + ''.join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename '
        f'relativeToVRT="1">new/a.tif</SourceFilename><SourceBand>{band}</SourceBand>'
        '</SimpleSource></VRTRasterBand>' for band in (1, 2, 3)) + '</VRTDataset>')
    held = {path: path.read_bytes() for path in tmp_path.rglob('*.*')}
    for case, message in [
            (dict(model=change_model, scenes=tmp_path / 'new', output=tmp_path / 'old',
                  before=str(tmp_path / 'old')), r'its older date \S*old/a.tif'),
            (dict(scenes=mosaic, output=tmp_path / 'new'), r'its scene \S*new/a.tif'),
            (dict(scenes=scene, output=tmp_path / 'map.tif', aoi=areas, vectors='geojson'),
             r'the polygons \S*map.geojson'),
            (dict(scenes=scores, output=tmp_path / 'map.tif', scores=True),
             r'its scene \S*map_scores.tif')]:
        with pytest.raises(UserError, match=f'would overwrite {message}: give another one'):
            pera_mm.predict(*case.pop('model', model), **case)
    assert {path: path.read_bytes() for path in tmp_path.rglob('*.*')} == held


@pytest.mark.slow
def test_the_command_prints_maps_and_errors(tmp_path, folder, model):
    done = run(ROOT / 'tools/predict.py', *model, folder, '-o', tmp_path / 'out', code=1)
    assert f'{tmp_path}/out/a.tif' in done.stdout and f'{tmp_path}/out/c.tif' in done.stdout
    assert done.stderr.strip().endswith(f'1 of 3 scenes failed: {folder}/b.tif.')
    done = run(ROOT / 'tools/predict.py', *model, tmp_path / 'nowhere', '-o', tmp_path, code=1)
    assert done.stderr.strip().startswith('Error: There is no scene')
