"""Objects and classes of whole scenes: boxes once each, a coarse grid, and a table of images."""

import csv
from pathlib import Path

import numpy as np
import pytest
import rasterio
from map_models import CLASSIFICATION, DETECTION, SIDE, save
from mmengine.config import Config
from PIL import Image
from rasterio.transform import from_origin

import pera_mm
from pera_mm.errors import UserError
from pera_mm.mapping.predictor import Classifier, Detector, load_model

pytest.importorskip('mmdet')

CRS = 'EPSG:32632'


@pytest.fixture(scope='module')
def detector(tmp_path_factory) -> tuple[str, str]:
    return save(tmp_path_factory.mktemp('model'), DETECTION)


@pytest.fixture(scope='module')
def classifier(tmp_path_factory) -> tuple[str, str]:
    return save(tmp_path_factory.mktemp('model'), CLASSIFICATION)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (3, height, width), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray, **options) -> str:
    with rasterio.open(path, 'w', driver='GTiff', count=3, height=pixels.shape[1],
                       width=pixels.shape[2], dtype='uint8', crs=CRS,
                       transform=from_origin(500_000, 5_200_000, .5, .5), **options) as file:
        file.write(pixels)
    return str(path)


def test_polygon_limits_are_refused_for_boxes(tmp_path, detector):
    scene = write(tmp_path / 'a.tif', noise(8, 8))
    with pytest.raises(UserError, match='this model writes boxes: leave them out'):
        pera_mm.predict(*detector, scene, tmp_path / 'a.gpkg', min_area=5.)


def test_a_detector_gives_the_boxes_of_its_own_test(detector):
    config, checkpoint = detector
    model = load_model(Config.fromfile(config), checkpoint)
    assert isinstance(model, Detector) and model.window == SIDE and not model.reading.is_bgr
    [boxes] = model(noise(SIDE, SIDE)[None])
    assert boxes.shape[1] == 6 and len(boxes)
    assert boxes[:, :4].min() >= 0 and boxes[:, :4].max() <= SIDE
    assert set(boxes[:, 5]) <= set(range(7)) and model.classes[0] == 'airplane'


def test_boxes_of_a_scene_are_in_map_coordinates(tmp_path, detector):
    pyogrio = pytest.importorskip('pyogrio')
    shapely = pytest.importorskip('shapely')
    pixels = noise(90, 100)
    pixels[:, :, 60:] = 0
    scene = write(tmp_path / 'a.tif', pixels, nodata=0)
    [outcome] = pera_mm.predict(*detector, scene, tmp_path / 'out')
    assert outcome.error is None and outcome.output == tmp_path / 'out/a.gpkg'
    meta, _, shapes, fields = pyogrio.raw.read(outcome.output)
    left, bottom, right, top = shapely.total_bounds(shapely.from_wkb(shapes))
    assert 500_000 <= left and top <= 5_200_000
    assert (shapely.get_x(shapely.centroid(shapely.from_wkb(shapes))) <= 500_030.5).all()
    assert bottom >= 5_200_000 - 45 - .5 * SIDE
    first = outcome.output.read_bytes()
    before = outcome.output.stat().st_mtime_ns
    pera_mm.predict(*detector, scene, tmp_path / 'out', resume=True)
    assert outcome.output.stat().st_mtime_ns == before and outcome.output.read_bytes() == first


def test_a_classifier_makes_a_coarse_grid(tmp_path, classifier):
    pixels = noise(70, 100)
    pixels[:, :SIDE, SIDE:2 * SIDE] = 0
    scene = write(tmp_path / 'a.tif', pixels, nodata=0)
    [outcome] = pera_mm.predict(*classifier, scene, tmp_path / 'out', scores=True)
    assert outcome.error is None
    model = load_model(Config.fromfile(classifier[0]), classifier[1])
    assert isinstance(model, Classifier) and model.window == SIDE
    with rasterio.open(outcome.output) as file:
        assert file.shape == (3, 4) and file.transform.a == .5 * SIDE
        assert file.bounds.left == 500_000 and file.bounds.top == 5_200_000
        classes = file.read(1)
    assert classes[0, 1] == 255 and (np.delete(classes.ravel(), 1) < 15).all()
    inner = pixels[:, SIDE:2 * SIDE, :SIDE]
    shares = model(np.repeat(inner[None], 32, axis=0))[0]
    assert classes[1, 0] == shares.argmax()
    with rasterio.open(tmp_path / 'out/a_scores.tif') as file:
        np.testing.assert_allclose(file.read()[:, 1, 0] / 255, shares, atol=.003)


def test_images_become_a_table(tmp_path, classifier):
    (tmp_path / 'images').mkdir()
    for name in ('a', 'b'):
        Image.fromarray(noise(40, 50).transpose(1, 2, 0)).save(tmp_path / f'images/{name}.png')
    (tmp_path / 'images/c.png').write_bytes(b'broken')
    outcomes = pera_mm.predict(*classifier, tmp_path / 'images', tmp_path / 'classes.csv')
    assert [outcome.error is None for outcome in outcomes] == [True, True, False]
    assert 'c.png cannot be read (UnidentifiedImageError' in outcomes[2].error
    rows = list(csv.DictReader((tmp_path / 'classes.csv').open()))
    assert [Path(row['path']).name for row in rows] == ['a.png', 'b.png']
    model = load_model(Config.fromfile(classifier[0]), classifier[1])
    assert rows[0]['name'] == model.classes[int(rows[0]['class'])]
    assert 1 / 15 <= float(rows[0]['score']) <= 1 and rows[0]['score'] == rows[1]['score']


def test_a_table_takes_batches_and_no_options_of_maps(tmp_path, classifier):
    for number in range(3):
        Image.fromarray(noise(40, 50 + number).transpose(1, 2, 0)).save(
            tmp_path / f'{number}.png')
    for name, size in (('one', 1), ('two', 2)):
        pera_mm.predict(*classifier, tmp_path, tmp_path / f'{name}.csv', batch_size=size)
    one, two = (list(csv.DictReader((tmp_path / f'{name}.csv').open())) for name in ('one', 'two'))
    assert [row | dict(score=0) for row in one] == [row | dict(score=0) for row in two]
    np.testing.assert_allclose([float(row['score']) for row in one],
                               [float(row['score']) for row in two], atol=2e-4)
    with pytest.raises(UserError, match='takes no --before, --gsd, --min-area, --resume, because '
                                        'images are read as'):
        pera_mm.predict(*classifier, tmp_path, tmp_path / 'a.csv', before='old', gsd=1.,
                        min_area=2., resume=True)
    with pytest.raises(UserError, match='cannot write to .*/one.csv .*: make .* give another OUT'):
        pera_mm.predict(*classifier, tmp_path, tmp_path / 'one.csv/two.csv')
    assert sorted(path.name for path in tmp_path.glob('*.*')) == [
        '0.png', '1.png', '2.png', 'one.csv', 'two.csv']


def test_a_stopped_table_leaves_its_rows(tmp_path, classifier, monkeypatch):
    for number in range(2):
        Image.fromarray(noise(40, 50).transpose(1, 2, 0)).save(tmp_path / f'{number}.png')
    classify, left = Classifier.__call__, [1]

    def stop(model, pixels):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return classify(model, pixels)

    monkeypatch.setattr(Classifier, '__call__', stop)
    with pytest.raises(KeyboardInterrupt):
        pera_mm.predict(*classifier, tmp_path, tmp_path / 'a.csv')
    [row] = csv.DictReader((tmp_path / 'a.csv.0.part').open())
    assert row['path'] == str(tmp_path / '0.png') and not (tmp_path / 'a.csv').exists()


def test_tta_is_for_maps(tmp_path, classifier):
    with pytest.raises(UserError, match='--tta is for segmentation and change'):
        pera_mm.predict(*classifier, write(tmp_path / 'a.tif', noise(8, 8)), tmp_path, tta='flips')
