"""Values of masks and bands of images as the data sets of all tasks read them, from real files."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image

import pera_mm  # noqa: F401  before mmseg: it supplies the operators of mmcv
from pera_mm.datasets.reading import rule_of
from pera_mm.datasets.scene import Scene
from pera_mm.datasets.scene_pixels import Reading
from pera_mm.downstream.change import ChangePairs, LoadPair
from pera_mm.downstream.segmentation import SegmentationDataset
from pera_mm.mapping.predictor import pipeline_of

CONFIGS = Path(__file__).parents[2] / 'configs'
CONFIG_OF = dict(classification='aid_tr20_pera.py', segmentation='potsdam_upernet_pera.py',
                 change='levircd_bit_pera.py', detection='dior_faster_rcnn_pera.py')
SEGMENTATION = dict(img_path='images', seg_map_path='masks')
CHANGE = dict(img_path='A', img_path2='B', seg_map_path='masks')


@pytest.fixture(autouse=True)
def mmseg_scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def write_image(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((1, 6, 3), np.uint8)).save(path)
    return path


def write_tiff(path: Path, bands: np.ndarray, nodata: float | None = None) -> Path:
    """A GeoTIFF of ``[C, H, W]``."""
    path.parent.mkdir(exist_ok=True)
    with rasterio.open(path, 'w', driver='GTiff', count=len(bands), height=bands.shape[1],
                       width=bands.shape[2], dtype=bands.dtype, nodata=nodata) as file:
        file.write(bands)
    return path


def segmentation(root: Path, classes=('a', 'b'), **options) -> np.ndarray:
    """The mask that the data set gives for ``masks/x``."""
    write_image(root / 'images/x.png')
    data = SegmentationDataset(
        dict(classes=classes), data_root=str(root), data_prefix=SEGMENTATION, test_mode=True,
        pipeline=[dict(type='pera_mm.LoadRGB'), dict(type='pera_mm.LoadMask')], **options)
    return data[0]['gt_seg_map']


def change(root: Path, classes=None) -> np.ndarray:
    for date in 'AB':
        write_image(root / date / 'x.png')
    data = ChangePairs(data_root=str(root), data_prefix=CHANGE, test_mode=True,
                       metainfo=None if classes is None else dict(classes=classes),
                       pipeline=[dict(type='pera_mm.LoadPair')])
    return data[0]['gt_seg_map']


def kinds(root: Path) -> np.ndarray:
    return change(root, ('unchanged', 'new'))


# -- values that are no class --------------------------------------------------------------------


@pytest.mark.parametrize('read', [segmentation, kinds, change])
@pytest.mark.parametrize(('dtype', 'value'), [
    ('int16', -32768), ('int32', -9999), ('int32', 2**24), ('int8', -1), ('float32', -9999)])
def test_declared_nodata_is_not_labelled_and_other_values_are_refused(tmp_path, read, dtype,
                                                                      value):
    """A cast to a byte would make them 0, 241, 0, 255 and anything."""
    if read is change and dtype == 'int8':
        pytest.skip('255 does not fit')
    one = 255 if read is change else 1
    values = np.array([[[0, one, one, value, value, value]]], dtype)
    path = write_tiff(tmp_path / 'masks/x.tif', values, nodata=value)
    mask = read(tmp_path)
    assert mask.dtype == np.uint8 and mask.tolist() == [[0, 1, 1, 255, 255, 255]]
    write_tiff(path, values)
    words = 'pixels of value' if read is change else 'the label'
    message = rf'{path} has {words} {value}.* 3 of its 6 pixels .*nodata'
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_floats_that_are_whole_are_ids(tmp_path):
    path = write_tiff(tmp_path / 'masks/x.tif', np.array([[[0, 1, 2, 255, 1, 0]]], np.float32))
    assert segmentation(tmp_path, ('a', 'b', 'c')).tolist() == [[0, 1, 2, 255, 1, 0]]
    assert segmentation(tmp_path, ('a', 'b'), reduce_zero_label=True).tolist() == [
        [255, 0, 1, 255, 0, 255]]
    write_tiff(path, np.array([[[0, 1, .5, 255, 1, 0]]], np.float32))
    with pytest.raises(ValueError, match='x.tif has the label 0.5; allowed are the classes 0 to 1'):
        segmentation(tmp_path)


def test_change_takes_no_256(tmp_path):
    write_tiff(tmp_path / 'masks/x.tif', np.array([[[0, 256, 255, 0, 0, 0]]], np.uint16))
    with pytest.raises(ValueError, match=r'x.tif has pixels of value 256; only 0 \(unchanged\)'):
        change(tmp_path)


# -- thresholds ----------------------------------------------------------------------------------


@pytest.mark.parametrize('mode', ['1', 'P', 'L'])
def test_a_threshold_takes_black_and_white_of_every_kind(tmp_path, mode):
    (tmp_path / 'masks').mkdir()
    image = Image.fromarray(np.array([[0, 255, 255, 0, 0, 255]], np.uint8)).convert(mode)
    image.save(tmp_path / 'masks/x.png')
    assert segmentation(tmp_path, threshold=127).tolist() == [[0, 1, 1, 0, 0, 1]]


def test_class_ids_are_no_gray_values(tmp_path):
    write_tiff(tmp_path / 'masks/x.tif', np.array([[[0, 1, 1, 0, 0, 0]]], np.uint8))
    with pytest.raises(ValueError, match='x.tif holds values up to 1 only, .*threshold=127: leave '
                                         'threshold out if these are the ids'):
        segmentation(tmp_path, threshold=127)
    assert segmentation(tmp_path, threshold=0).tolist() == [[0, 1, 1, 0, 0, 0]]
    assert segmentation(tmp_path).tolist() == [[0, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize('threshold', ['127', 255, 300, -1, True, [127], float('nan')])
def test_a_threshold_that_is_no_gray_value_is_refused_when_built(tmp_path, threshold):
    write_tiff(tmp_path / 'masks/x.tif', np.zeros((1, 1, 6), np.uint8))
    with pytest.raises(ValueError, match=r'^threshold=.* is not a gray value: .*from 0 to 254'):
        segmentation(tmp_path, threshold=threshold)


# -- bands of images -----------------------------------------------------------------------------


@pytest.mark.parametrize('task', CONFIG_OF)
@pytest.mark.parametrize('rule', [{}, dict(bands=[4, 3, 2], scale=[0, 3000]), dict(bands=[2])])
def test_all_tasks_set_bands_and_scale_and_prediction_has_the_same(tmp_path, task, rule):
    """The scene is one whose bands are tagged blue, green and red."""
    pixels = np.random.default_rng(0).integers(1, 3000, (4, 32, 32)).astype(np.uint16)
    path = str(write_tiff(tmp_path / 'x.tif', pixels))
    with rasterio.open(path, 'r+') as file:
        file.colorinterp = [rasterio.enums.ColorInterp[color]
                            for color in ('blue', 'green', 'red', 'undefined')]
    cfg = Config.fromfile(CONFIGS / CONFIG_OF[task])
    loader = pipeline_of(cfg)[0]
    for pipeline in (cfg.train_dataloader.dataset.pipeline, cfg.val_dataloader.dataset.pipeline):
        assert pipeline[0].type == loader.type  # the same is set in training
    loader = loader | rule
    if task == 'change':
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / 'mask.png')
    sample = dict(img_path=path, img_path2=path, seg_map_path=str(tmp_path / 'mask.png'),
                  skipped=[], seg_fields=[])
    image = TRANSFORMS.build(loader).transform(sample)['img']
    bands, scale = rule_of(loader.get('bands'), loader.get('scale', 'auto'))  # as a Predictor
    with Scene(path, Reading(bands, scale=scale)) as scene:
        expected, _ = scene.read(0, 0, 32)
    np.testing.assert_array_equal(image[..., :3].transpose(2, 0, 1), expected)
    if bands is None:
        with Scene(path, Reading((3, 2, 1))) as scene:
            np.testing.assert_array_equal(scene.read(0, 0, 32)[0], expected)


@pytest.mark.parametrize('rule', [dict(bands=4), dict(bands='rgb'), dict(scale=3000)])
def test_a_wrong_rule_of_a_loader_is_one_sentence(rule):
    with pytest.raises(ValueError, match=r'must be .*, got \S+$'):
        TRANSFORMS.build(dict(type='pera_mm.LoadRGB') | rule)
    with pytest.raises(ValueError, match=r'must be .*, got \S+$'):
        LoadPair(**rule)
