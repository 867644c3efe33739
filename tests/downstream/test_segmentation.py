"""Masks, submission, decoder and configs of segmentation, on real files and real runs."""

import ast
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image
from programs import run

import pera_mm  # noqa: F401
from pera_mm.downstream.segmentation import LoveDASubmission, SegmentationDataset, UPerHead
from pera_mm.launch import build_runner
from pera_mm.scenes.folders import write_scenes

sys.path.insert(0, str(Path(__file__).parents[1] / 'engine'))
from training_runs import on_ranks  # noqa: E402

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
TINY_ARCH = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)
TWO, FOUR = ('a', 'b'), ('a', 'b', 'c', 'd')
SMALL = {
    'model.backbone.vit.init_cfg': None,
    'model.backbone.vit.img_size': 64,
    'model.decode_head.in_channels': [16] * 4,
    'model.decode_head.channels': 16,
    'model.decode_head.output_channels': 8,
    'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False,
    'val_dataloader.num_workers': 0, 'val_dataloader.persistent_workers': False,
    'test_dataloader.num_workers': 0, 'test_dataloader.persistent_workers': False,
    'train_dataloader.batch_size': 2,
    'default_hooks.logger.interval': 1,
    'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1,
    'default_hooks.checkpoint.interval': 1,
    'param_scheduler': [],
}


def small(name: str, work_dir: Path, **changes) -> Config:
    cfg = Config.fromfile(CONFIGS / name)
    cfg.merge_from_dict({**SMALL, **changes, 'work_dir': str(work_dir)})
    cfg.model.backbone.vit.arch = TINY_ARCH
    cfg.env_cfg.cudnn_benchmark = False
    return cfg


def write(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, **options).save(path)
    return path


def dataset(root: Path, classes=('a', 'b', 'c'), test_mode=True, **options) -> SegmentationDataset:
    return SegmentationDataset(
        dict(classes=classes), data_root=str(root), test_mode=test_mode,
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        pipeline=[dict(type='pera_mm.LoadRGB'), dict(type='pera_mm.LoadMask')], **options)


@pytest.fixture
def folder(tmp_path) -> Path:
    """One image, red; a mask of 0, 1, 2, 3 and 255."""
    image = np.zeros((1, 5, 3), np.uint8)
    image[..., 0] = 200
    write(tmp_path / 'images/x.png', image)
    write(tmp_path / 'masks/x.png', np.array([[0, 1, 2, 3, 255]], np.uint8))
    return tmp_path


# -- loading -------------------------------------------------------------------------------------


def test_zero_is_not_labelled_and_classes_begin_at_one(folder):
    sample = dataset(folder, reduce_zero_label=True)[0]
    assert sample['gt_seg_map'].tolist() == [[255, 0, 1, 2, 255]]
    assert sample['img'][0, 0].tolist() == [200, 0, 0]  # RGB


def test_ids_stay_where_zero_is_a_class(folder):
    assert dataset(folder, FOUR)[0]['gt_seg_map'].tolist() == [[0, 1, 2, 3, 255]]


def test_a_threshold_makes_two_classes(folder):
    write(folder / 'masks/x.png', np.array([[0, 126, 127, 128, 255]], np.uint8))
    assert dataset(folder, TWO, threshold=127)[0]['gt_seg_map'].tolist() == [[0, 0, 0, 1, 1]]


@pytest.mark.parametrize('mode', ['P', 'I', '1', 'I;16'])
def test_masks_of_other_modes_hold_the_same_ids(folder, mode):
    mask = np.array([[0, 1, 1, 0, 1]], np.uint8)
    image = Image.fromarray(mask)
    if mode == 'P':
        image.putpalette([200, 0, 0, 0, 200, 0])
    elif mode == '1':
        image = Image.fromarray(mask * 255).convert('1')
    else:
        image = Image.fromarray(mask.astype(np.int32 if mode == 'I' else np.uint16))
    image.save(folder / 'masks/x.png', format='tiff' if mode == 'I' else None)
    assert dataset(folder, TWO)[0]['gt_seg_map'].tolist() == mask.tolist()


@pytest.mark.parametrize(('options', 'message'), [
    (dict(classes=TWO, reduce_zero_label=True),
     r'masks/x.png has the label 3; allowed are 0 for not labelled, the classes 1 to 2, and 255'),
    (dict(), r'masks/x.png has the label 3; allowed are the classes 0 to 2, and 255'),
])
def test_an_unknown_label_is_named(folder, options, message):
    with pytest.raises(ValueError, match=message):
        dataset(folder, **options)[0]


def test_a_label_beyond_a_byte_is_named(folder):
    write(folder / 'masks/x.png', np.array([[0, 1, 256, 1, 1]], np.uint16))
    with pytest.raises(ValueError, match='has the label 256'):
        dataset(folder)[0]


def test_a_color_mask_is_refused(folder):
    write(folder / 'masks/x.png', np.zeros((1, 5, 3), np.uint8))
    with pytest.raises(ValueError, match=r'x.png is a color picture \(mode RGB\), not a mask'):
        dataset(folder)[0]


def test_a_mask_of_another_size_is_refused(folder):
    write(folder / 'masks/x.png', np.zeros((2, 5), np.uint8))
    with pytest.raises(ValueError, match=r'images/x.png is 5 x 1, \S*masks/x.png is 5 x 2'):
        dataset(folder)[0]


@pytest.mark.parametrize('what', ['images', 'masks'])
def test_an_unreadable_file_is_replaced_in_training_and_an_error_in_a_test(folder, what):
    for kind in ('images', 'masks'):
        (folder / kind / 'y.png').write_bytes((folder / kind / 'x.png').read_bytes())
    (folder / what / 'x.png').write_bytes(b'broken')
    sample = dataset(folder, FOUR, test_mode=False)[0]
    assert sample['img_path'].endswith('y.png')
    path, reason = sample['skipped'][0]
    assert path.endswith(f'{what}/x.png') and 'UnidentifiedImageError' in reason
    with pytest.raises(ValueError, match=rf'^1 of 2 test samples cannot be read: .*{what}/x.png .*'
                                         r': repair these files'):
        dataset(folder, FOUR)[0]


def test_nothing_readable_ends(folder):
    (folder / 'images/x.png').write_bytes(b'')
    with pytest.raises(RuntimeError, match='100 samples .* could not be read'):
        dataset(folder, test_mode=False)[0]


@pytest.mark.parametrize(('options', 'message'), [
    (dict(img_suffix='.tif'), r'No images \*.tif in .*images: prepare the data'),
    (dict(threshold=127), 'A threshold makes two classes'),
    (dict(classes=TWO, threshold=127, reduce_zero_label=True), 'set reduce_zero_label=False'),
])
def test_a_wrong_dataset_is_refused_when_built(folder, options, message):
    with pytest.raises(ValueError, match=message):
        dataset(folder, **options)


def test_a_twin_without_its_scenes_names_the_tool_that_draws_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r'no folder data/scenes/seg/images: draw .*make_scenes'):
        dataset(Path('data/scenes/seg'))


# -- decoder -------------------------------------------------------------------------------------


def test_the_decoders_output_is_narrower_than_its_inside():
    init_default_scope('mmseg')
    head = UPerHead(in_channels=[4] * 4, in_index=[0, 1, 2, 3], num_classes=3, channels=16,
                    output_channels=6, norm_cfg=dict(type='BN'))
    maps = [torch.randn(2, 4, 32 // s, 32 // s) for s in (1, 2, 4, 8)]
    assert head._forward_feature(maps).shape == (2, 6, 32, 32)
    assert head(maps).shape == (2, 3, 32, 32)
    assert head.fpn_convs[0].conv.weight.shape == (16, 16, 3, 3)
    head(maps).sum().backward()
    assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize(('name', 'classes', 'lr'), [
    ('potsdam_upernet_pera.py', 6, 1e-4), ('loveda_upernet_pera.py', 7, 5e-5)])
def test_the_papers_settings(name, classes, lr):
    cfg = Config.fromfile(CONFIGS / name)
    head = cfg.model.decode_head
    assert (head.channels, head.output_channels, head.num_classes) == (512, 256, classes)
    assert cfg.model.backbone.vit.arch == 'pera-g'
    assert cfg.model.backbone.vit.drop_path_rate == 0.1
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=lr, weight_decay=1e-4, eps=2e-5)
    assert cfg.train_cfg.max_epochs == 200
    assert cfg.train_dataloader.batch_size == 8
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.end, decay.begin, decay.eta_min) == (20, 20, 5e-6)
    names = {step.type for step in cfg.train_pipeline}
    assert names == {'pera_mm.LoadRGB', 'pera_mm.LoadMask', 'pera_mm.RandomResizedCrop',
                     'RandomFlip', 'PackSegInputs'}


# -- the submission ------------------------------------------------------------------------------


def test_the_submission_is_the_labels_minus_one_in_a_flat_zip(tmp_path):
    """Through the real test loop: names, values, zip."""
    rng = np.random.default_rng(0)
    for name in ('4191', '4192', '5000'):
        write(tmp_path / f'data/img_dir/test/{name}.png',
              rng.integers(0, 256, (96, 96, 3), dtype=np.uint8))
    out = tmp_path / 'out/result'
    write(out / '9999.png', np.zeros((1, 1), np.uint8))  # an earlier run's
    cfg = small('segmentation/loveda_upernet_pera_submission.py', tmp_path / 'work', **{
        'test_dataloader.dataset.data_root': str(tmp_path / 'data'),
        'test_evaluator.output_dir': str(out),
        'model.test_cfg': dict(mode='slide', crop_size=(64, 64), stride=(32, 32))})
    runner = Runner.from_cfg(cfg)
    with torch.no_grad():
        runner.model.decode_head.conv_seg.bias[6] = 1e6  # agriculture everywhere
    assert runner.test() == {'submission/images': 3}
    with ZipFile(out.with_name('result.zip')) as archive:
        assert archive.namelist() == ['4191.png', '4192.png', '5000.png']
        archive.extractall(tmp_path / 'unzipped')
    with Image.open(tmp_path / 'unzipped/5000.png') as image:
        assert image.mode == 'L' and image.size == (96, 96)
        assert (np.asarray(image) == 6).all()  # 7 in the masks
    assert not list(out.glob('.*'))


def test_two_test_images_of_one_name_are_refused(tmp_path):
    metric = LoveDASubmission(str(tmp_path / 'out'))
    pred = dict(data=torch.zeros(1, 2, 2))
    metric.process({}, [dict(pred_sem_seg=pred, img_path=f'{place}/1.png')
                        for place in ('urban', 'rural')])
    with pytest.raises(ValueError, match='Two images are called 1.png'):
        metric.evaluate(2)


# -- a data set of one's own ---------------------------------------------------------------------


ROADS = CONFIGS / 'examples/roads_upernet_pera.py'


def test_a_data_set_of_ones_own_takes_at_most_15_lines():
    source = ROADS.read_text()
    header = ast.parse(source).body[0].end_lineno
    lines = [line for line in source.splitlines()[header:]
             if line.strip() and not line.strip().startswith('#')]
    assert len(lines) <= 15


def train_roads(root: Path, work_dir: Path, **changes) -> Runner:
    changes = {f'{split}_dataloader.dataset.data_root': str(root)
               for split in ('train', 'val', 'test')} | changes
    runner = Runner.from_cfg(small('examples/roads_upernet_pera.py', work_dir, **changes))
    runner.train()
    return runner


@pytest.mark.slow  # test_adding_a_dataset.py trains the same config
def test_the_example_trains_on_drawn_images(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(3):
        road = np.kron(rng.integers(0, 2, (10, 10)), np.ones((8, 8))).astype(np.uint8)
        image = rng.integers(0, 60, (80, 80, 3)) + 180 * road[..., None]
        write(tmp_path / f'images/{index}.png', image.astype(np.uint8))
        write(tmp_path / f'groundtruth/{index}.png', road * 200 + 20)
    runner = train_roads(tmp_path, tmp_path / 'work', **{
        'train_dataloader.dataset.pipeline.2.scale': 64,
        'train_dataloader.dataset.indices': 2, 'val_dataloader.dataset.indices': [2]})
    assert runner.iter == 1
    scores = runner.message_hub.log_scalars
    assert 0 <= scores['val/road/F1'].current() <= 100
    assert list((tmp_path / 'work').glob('best_road_F1_epoch_1.pth'))


@pytest.mark.slow
def test_the_example_trains_on_real_roads(shared_data, tmp_path):
    runner = train_roads(shared_data / 'roads', tmp_path, **{'train_cfg.max_epochs': 2})
    assert runner.iter == 20
    losses = runner.message_hub.log_scalars['train/loss'].data[0]
    assert losses[-5:].mean() < losses[:5].mean()


# -- whole runs ----------------------------------------------------------------------------------


def test_a_broken_mask_stops_a_run_before_its_first_step(tmp_path):
    write_scenes(tmp_path / 'data', 'segmentation', 5, size=64)
    path = sorted((tmp_path / 'data/ann_dir/train').iterdir())[2]
    write(path, np.full((64, 64), 9, np.uint8))
    cfg = small('scenes/potsdam_upernet_pera_scenes.py', tmp_path / 'work', **{
        f'{split}_dataloader.dataset.data_root': str(tmp_path / 'data')
        for split in ('train', 'val')}, **{
        'train_dataloader.dataset.pipeline.2.scale': 64,
        'model.test_cfg.crop_size': (64, 64)})
    with pytest.raises(ValueError, match=rf'{path.name} has the label 9; allowed are 0 for not'):
        Runner.from_cfg(cfg).train()


def _train(root: Path) -> None:
    cfg = small('scenes/potsdam_upernet_pera_scenes.py', root / 'work', **{
        f'{split}_dataloader.dataset.data_root': str(root / 'data')
        for split in ('train', 'val')}, **{
        'train_dataloader.batch_size': 1,
        'train_dataloader.dataset.pipeline.2.scale': 64,
        'model.test_cfg.crop_size': (64, 64), 'launcher': 'pytorch'})
    # One pixel would be left of a batch of one, which plain BN refuses.
    cfg.model.decode_head.pool_scales = (2, 3)
    build_runner(cfg).train()


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_without_gpu_train_the_config(tmp_path):
    write_scenes(tmp_path / 'data', 'segmentation', 5, size=64)
    assert on_ranks(_train, tmp_path) == [0, 0]
    assert (tmp_path / 'work/epoch_1.pth').exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('name', ['potsdam', 'loveda'])
def test_mim_trains_resumes_and_the_tool_tests(tmp_path, name):
    write_scenes(tmp_path / 'data', 'segmentation', 15, size=96)
    data = [f'{split}_dataloader.dataset.data_root={tmp_path}/data'
            for split in ('train', 'val', 'test')]
    config = f'configs/scenes/{name}_upernet_pera_scenes.py'
    options = ['--work-dir', f'{tmp_path}/work', '--cfg-options', *data,
               'train_dataloader.batch_size=4', 'model.backbone.vit.init_cfg=None',
               'train_dataloader.dataset.pipeline.2.scale=64',
               'model.test_cfg.crop_size=(64,64)', 'train_cfg.val_interval=1',
               'default_hooks.checkpoint.interval=1', 'train_cfg.max_epochs=2']
    run('-m', 'mim', 'train', 'mmseg', config, *options)
    assert (tmp_path / 'work/epoch_1.pth').exists()
    (tmp_path / 'work/epoch_2.pth').unlink()  # as if it had been killed before
    (tmp_path / 'work/last_checkpoint').write_text(f'{tmp_path}/work/epoch_1.pth')
    resumed = run('-m', 'mim', 'train', 'mmseg', config, '--resume', *options).output
    assert 'resumed epoch: 1, iter: 3' in resumed
    assert (tmp_path / 'work/epoch_2.pth').exists()
    tested = run('tools/test.py', config, f'{tmp_path}/work/epoch_2.pth',
                 *options[:2], '--cfg-options', *data[2:], 'model.backbone.vit.init_cfg=None',
                 'model.test_cfg.crop_size=(64,64)').output
    key = '7-class/mIoU: '
    scores = [float(text.split(key)[1].split()[0]) for text in (resumed, tested)]
    assert scores[0] == scores[1]
