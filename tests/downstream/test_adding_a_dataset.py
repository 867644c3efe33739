"""Every config on docs/adding_a_dataset.md is short, and trains as it stands on the page."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_data import noise_classes, voc_xml
from mmengine.config import Config
from mmengine.runner import Runner

import pera_mm  # noqa: F401  activates the bridges
from pera_mm.prepare.rasterize import Request, rasterize_scenes
from pera_mm.prepare.splits import class_of, stratified, write_splits

pytest.importorskip('mmseg')
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs/adding_a_dataset.md').read_text()
ARCH = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)
MAX_LINES = 15
# What makes a config of each task run in a second: narrow heads, crops of 64 px.
SEGMENTATION = {
    'model.decode_head.in_channels': [16] * 4, 'model.decode_head.channels': 16,
    'model.decode_head.output_channels': 8,
    'train_dataloader.dataset.pipeline.2.scale': 64}
CHANGE = {
    'model.neck.in_channels': 16,
    'model.test_cfg.crop_size': (64, 64), 'model.test_cfg.stride': (64, 64),
    'train_dataloader.dataset.pipeline.1.scale': 64}
CLASSIFICATION = {
    'model.head.in_channels': 16, 'train_dataloader.dataset.pipeline.1.scale': 64,
    'val_dataloader.dataset.pipeline.1.scale': (64, 64)}
DETECTION = {
    'model.neck.in_channels': [16] * 4, 'model.neck.out_channels': 16,
    'model.rpn_head.in_channels': 16, 'model.rpn_head.feat_channels': 16,
    'model.roi_head.bbox_roi_extractor.out_channels': 16,
    'model.roi_head.bbox_head.in_channels': 16, 'model.roi_head.bbox_head.fc_out_channels': 32,
    'train_dataloader.dataset.pipeline.2.scale': (64, 64),
    'val_dataloader.dataset.pipeline.1.scale': (64, 64)}


def block(title: str) -> str:
    """The config of a section of the page."""
    section = PAGE.split(f'\n## {title}\n')[1].split('\n## ')[0]
    return re.search(r'```python\n(.*?)```', section, re.DOTALL)[1]


TITLES = [title for title in re.findall(r'^## (.*)$', PAGE, re.MULTILINE) if
          '```python' in PAGE.split(f'\n## {title}\n')[1].split('\n## ')[0]]


def train(title: str, folder: Path, changes: dict) -> Runner:
    """Train the config of a section for an epoch of two or three steps of two samples."""
    shutil.copytree(ROOT / 'configs', folder / 'configs')
    path = folder / 'configs/examples/mine.py'
    path.write_text(block(title))
    cfg = Config.fromfile(path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 2
    cfg.merge_from_dict({
        **changes, 'work_dir': str(folder / 'work'), 'param_scheduler': [],
        'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1,
        'default_hooks.checkpoint.interval': 1, 'default_hooks.logger.interval': 1,
        'env_cfg.cudnn_benchmark': False})
    vit = cfg.model.backbone.get('vit', cfg.model.backbone)
    vit.update(arch=ARCH, img_size=64, init_cfg=None)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter >= 2
    losses = runner.message_hub.log_scalars['train/loss'].data[0]
    assert np.isfinite(losses).all()
    return runner


def score(runner: Runner, name: str) -> float:
    return runner.message_hub.log_scalars[f'val/{name}'].current()


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels.astype(np.uint8))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder to work in; the page's data/ lie below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_task_has_a_config_and_none_is_long():
    assert TITLES == ['Segmentation', 'Segmentation of a scene', 'Change', 'Kinds of change',
                      'Classification', 'Detection']
    for title in TITLES:
        assert len(block(title).splitlines()) <= MAX_LINES, title


def test_the_roads_are_the_example_of_the_configs():
    source = (ROOT / 'configs/examples/roads_upernet_pera.py').read_text()
    assert source.endswith(block('Segmentation'))


def test_segmentation(here):
    rng = np.random.default_rng(0)
    for index in range(25):
        road = np.kron(rng.integers(0, 2, (10, 10)), np.ones((8, 8)))
        write(here / f'data/roads/images/{index:02d}.png',
              rng.integers(0, 60, (80, 80, 3)) + 180 * road[..., None])
        write(here / f'data/roads/groundtruth/{index:02d}.png', road * 200 + 20)
    runner = train('Segmentation', here, SEGMENTATION | {
        'train_dataloader.dataset.indices': 4})
    assert 0 <= score(runner, 'road/F1') <= 100
    assert list((here / 'work').glob('best_road_F1_epoch_1.pth'))


def write_scene(path: Path, rng: np.random.Generator) -> Path:
    """192 x 256 px: 3 x 4 tiles of 64 px."""
    import rasterio

    with rasterio.open(path, 'w', driver='GTiff', count=4, height=192, width=256, dtype='uint16',
                       crs='EPSG:32633', nodata=0,
                       transform=rasterio.Affine(1, 0, 5e5, 0, -1, 4e6)) as file:
        file.write(rng.integers(1, 3000, (4, 192, 256)).astype(np.uint16))
    return path


def write_polygons(path: Path, *shapes: tuple) -> str:
    """Rectangles: class, left, upper, right and lower edge in pixels of the scene."""
    geopandas = pytest.importorskip('geopandas')
    from shapely import box

    rectangles = [box(5e5 + left, 4e6 - lower, 5e5 + right, 4e6 - upper)
                  for _, left, upper, right, lower in shapes]
    geopandas.GeoDataFrame({'class': [shape[0] for shape in shapes]}, geometry=rectangles,
                           crs='EPSG:32633').to_file(path)
    return str(path)


def test_segmentation_of_a_scene(here):
    labels = write_polygons(here / 'fields.gpkg', ('wheat', 0, 0, 250, 150),
                            ('maize', 20, 10, 230, 130))
    scene = write_scene(here / 'scene.tif', np.random.default_rng(0))
    summary = rasterize_scenes(
        Request([scene], labels, here / 'data/mine', field='class', tile=64))
    assert f'classes = {summary.classes}\n' in block('Segmentation of a scene')
    runner = train('Segmentation of a scene', here, SEGMENTATION)
    assert 0 <= score(runner, 'mine/mIoU') <= 100


def test_change(here):
    rng = np.random.default_rng(0)
    changes = write_polygons(here / 'changes.gpkg', ('any', 20, 10, 230, 130))
    old, new = (write_scene(here / f'{name}.tif', rng) for name in ('old', 'new'))
    rasterize_scenes(Request([new], changes, here / 'data/mine', before=[old], tile=64))
    runner = train('Change', here, CHANGE)
    assert 0 <= score(runner, 'change/F1') <= 100


@pytest.mark.slow  # test_change trains the same model
def test_kinds_of_change(here):
    rng = np.random.default_rng(0)
    town = ('town', 60, 50, 200, 140)
    fields = [('wood', 0, 0, 128, 192), ('field', 128, 0, 256, 150)]
    before = write_polygons(here / 'old.gpkg', *fields)
    after = write_polygons(here / 'new.gpkg', *fields, town)
    old, new = (write_scene(here / f'{name}.tif', rng) for name in ('old', 'new'))
    summary = rasterize_scenes(Request([new], after, here / 'data/mine', field='class',
                                       before=[old], before_labels=before, tile=64))
    assert f'classes = {summary.classes}\n' in block('Kinds of change')
    runner = train('Kinds of change', here, CHANGE)
    assert 0 <= score(runner, 'kinds/mIoU') <= 100


def test_classification(here):
    data = noise_classes(here / 'data/mine', 5, 70, field=(0, 90), forest=(90, 200))
    names = sorted(path.relative_to(data).as_posix() for path in data.glob('*/*.png'))
    write_splits(data / 'splits/tr80', names, stratified(names, .8, 0),
                 {*map(class_of, names)})
    runner = train('Classification', here, CLASSIFICATION)
    assert 0 <= score(runner, 'accuracy/top1') <= 100


def test_detection(here):
    pytest.importorskip('mmdet')
    data, rng = here / 'data/mine', np.random.default_rng(0)
    for index in range(6):
        write(data / f'images/{index}.png', rng.integers(0, 256, (60, 64, 3)))
        (data / 'xml').mkdir(exist_ok=True)
        (data / f'xml/{index}.xml').write_text(
            voc_xml(('ship', 5, 5, 30, 20), ('airplane', 31, 31, 60, 59), size=(64, 60)))
    (data / 'ImageSets/Main').mkdir(parents=True)
    (data / 'ImageSets/Main/train.txt').write_text('0\n1\n2\n3\n')
    (data / 'ImageSets/Main/val.txt').write_text('4\n5\n')
    runner = train('Detection', here, DETECTION)
    assert 0 <= score(runner, 'pascal_voc/mAP') <= 1
