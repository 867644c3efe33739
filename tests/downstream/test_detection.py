"""Faster R-CNN on DIOR: what is read, what is refused, and what reaches the built model."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from made_data import voc_xml
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, METRICS, MODELS, init_default_scope
from programs import run

from pera_mm.scenes.drawing import OBJECTS
from pera_mm.scenes.folders import write_scenes

pytest.importorskip('mmdet')
from pera_mm.downstream.detection import (  # noqa: E402
    CLASSES,
    DIORDataset,
    EdgeVOCMetric,
)

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
VIT = dict(_delete_=True, embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)
FOLDERS = dict(img='JPEGImages-trainval', xml='Annotations/Horizontal Bounding Boxes')
SPLIT = 'ImageSets/Main/train.txt'
LOAD = dict(type='LoadImageFromFile', imdecode_backend='pillow')


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What is logged during the test."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def write_dior(root: Path, *annotations: str) -> Path:
    """A data set of images of 20 x 10 pixels, named a, b, ..., in DIOR's layout."""
    for folder in (*FOLDERS.values(), 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    names = 'abcdefgh'[:len(annotations)]
    for number, (name, text) in enumerate(zip(names, annotations)):
        (root / FOLDERS['xml'] / f'{name}.xml').write_text(text)
        image = np.full((10, 20, 3), 10 * number, np.uint8)
        assert cv2.imwrite(str(root / FOLDERS['img'] / f'{name}.jpg'), image)
    (root / SPLIT).write_text('\n'.join(names) + '\n')
    return root


def dataset(root: Path, **options) -> DIORDataset:
    options = dict(dict(splits='train', data_prefix=FOLDERS, pipeline=[LOAD]), **options)
    return DIORDataset(data_root=str(root), **options)


# -- reading ---------------------------------------------------------------------------------


def test_scenes_are_read_as_they_were_drawn(tmp_path):
    write_scenes(tmp_path, 'detection', 40, size=64)
    data = dataset(tmp_path, splits=['train', 'val'], metainfo=dict(classes=OBJECTS))
    assert len(data) == 30 and data.metainfo['classes'] == OBJECTS
    boxes = np.array([i['bbox'] for s in range(30) for i in data.get_data_info(s)['instances']])
    assert len(boxes) > 100 and boxes.min() == 0 and boxes.max() == 64
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 1
    named = [i for s in range(30) if data.get_data_info(s)['instances'] for i in [s]]
    some = dataset(tmp_path, splits=['train', 'val'], metainfo=dict(classes=OBJECTS),
                   filter_cfg=dict(filter_empty_gt=True))
    assert len(some) == len(named) < 30


def test_no_image_is_opened_before_it_is_asked_for(tmp_path):
    write_dior(tmp_path, voc_xml(('ship', 1, 1, 5, 5)))
    (tmp_path / FOLDERS['img'] / 'a.jpg').write_bytes(b'')
    assert len(dataset(tmp_path)) == 1


def test_the_split_has_twenty_classes_in_diors_spelling():
    assert len(set(CLASSES)) == 20 and set(OBJECTS) < set(CLASSES)


# -- bad input ---------------------------------------------------------------------------------


def test_all_unusable_samples_are_named_in_one_sentence(tmp_path):
    good = voc_xml(('ship', 1, 1, 5, 5))
    write_dior(tmp_path, good, good, voc_xml(('boat', 1, 1, 5, 5)), '<annotation>',
               good.replace('width', 'breadth'), voc_xml(('ship', 'x', 1, 5, 5)), good)
    (tmp_path / FOLDERS['img'] / 'a.jpg').unlink()
    (tmp_path / FOLDERS['xml'] / 'b.xml').unlink()
    with pytest.raises(ValueError) as caught:
        dataset(tmp_path)
    said = str(caught.value)
    assert '6 of the 7 samples in the splits train' in said and 'and 1 more' in said
    assert 'a.xml: its image' in said and 'JPEGImages-trainval/a.jpg is missing' in said
    assert 'b.xml is missing' in said
    assert "c.xml: unknown class 'boat'" in said and 'Expressway-toll-station' in said
    assert 'd.xml: it is not XML' in said
    assert 'e.xml: <annotation> lacks <size/width>' in said
    assert 'repair these files or remove their names from ImageSets/Main' in said


@pytest.mark.parametrize('missing, words', [
    (FOLDERS['img'], 'JPEGImages-trainval is missing; prepare the data .*set data_root'),
    ('ImageSets', r'train.txt, is missing; set data_root'),
])
def test_a_wrong_data_root_is_named(tmp_path, missing, words):
    write_dior(tmp_path, voc_xml())
    shutil.rmtree(tmp_path / missing)
    with pytest.raises(ValueError, match=words):
        dataset(tmp_path)


def test_a_twin_without_its_scenes_names_the_tool_that_draws_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r'data/scenes/det/.* is missing; draw .*make_scenes\.py'):
        dataset(Path('data/scenes/det'))


def test_an_empty_split_is_named(tmp_path):
    write_dior(tmp_path, voc_xml())
    (tmp_path / SPLIT).write_text('\n')
    with pytest.raises(ValueError, match=r'train.txt, is empty; it needs the name of an image'):
        dataset(tmp_path)


def test_dropped_boxes_are_counted_in_a_warning(tmp_path, log):
    write_dior(tmp_path, voc_xml(('ship', 1, 1, 5, 5), ('ship', 5, 5, 1, 1)), voc_xml(),
               voc_xml(('ship', 3, 3, 3, 3)))
    data = dataset(tmp_path, filter_cfg=dict(filter_empty_gt=True))
    said, = log
    assert '2 boxes in 2 of 3 files are empty, inverted or outside' in said
    assert 'a.xml, c.xml' in said
    assert [data.get_data_info(i)['img_id'] for i in range(len(data))] == ['a']


def test_an_unreadable_or_wrongly_sized_image_is_replaced_and_counted(tmp_path):
    write_dior(tmp_path, *[voc_xml(('ship', 1, 1, 5, 5))] * 3)
    images = tmp_path / FOLDERS['img']
    data = (images / 'a.jpg').read_bytes()
    (images / 'a.jpg').write_bytes(data[:len(data) // 2])
    assert cv2.imwrite(str(images / 'b.jpg'), np.zeros((20, 20, 3), np.uint8))
    sample = dataset(tmp_path)[0]
    assert sample['img_id'] == 'c' and sample['img'].shape == (10, 20, 3)
    paths = {Path(path).name: reason for path, reason in sample['skipped']}
    assert 'a.jpg' in paths and 'runcated' in paths['a.jpg']
    sample = dataset(tmp_path)[1]
    assert sample['skipped'][0][1] == 'the image has 20 x 20 pixels, its XML says 20 x 10'


def test_a_data_set_without_any_readable_image_stops(tmp_path):
    write_dior(tmp_path, voc_xml(size=(21, 10)))
    with pytest.raises(RuntimeError, match='100 samples drawn one after another could not be read'):
        dataset(tmp_path)[0]


def test_unreadable_or_wrongly_sized_test_images_are_an_error_that_counts_and_names_them(tmp_path):
    write_dior(tmp_path, *[voc_xml(('ship', 1, 1, 5, 5))] * 3)
    (tmp_path / FOLDERS['img'] / 'a.jpg').write_bytes(b'no image')
    assert cv2.imwrite(str(tmp_path / FOLDERS['img'] / 'b.jpg'), np.zeros((20, 20, 3), np.uint8))
    data = dataset(tmp_path, test_mode=True)
    assert data[2]['img_id'] == 'c' and data[2]['skipped'] == []
    with pytest.raises(ValueError) as caught:
        data[1]
    said = str(caught.value)
    assert said.startswith('2 of 3 test samples cannot be read: ')
    assert 'a.jpg (UnidentifiedImageError: cannot identify image file), ' in said
    assert 'b.jpg (the image has 20 x 20 pixels, its XML says 20 x 10); a score without' in said


# -- pipeline and metric -----------------------------------------------------------------------


def test_boxes_stay_on_their_objects_through_the_training_pipeline(tmp_path):
    """A bright object is drawn where its box says, then found again in what the model sees."""
    write_dior(tmp_path, voc_xml(('ship', 41, 21, 80, 50), size=(160, 160)))
    image = np.zeros((160, 160, 3), np.uint8)
    image[20:50, 40:80] = 255
    assert cv2.imwrite(str(tmp_path / FOLDERS['img'] / 'a.jpg'), image)
    cfg = Config.fromfile(CONFIGS / 'dior_faster_rcnn_pera.py')
    np.random.seed(0)
    data = dataset(tmp_path, pipeline=cfg.train_pipeline)
    flips = set()
    for _ in range(8):
        sample = data[0]
        assert sample['inputs'].shape == (3, 512, 512)
        flips.add(sample['data_samples'].flip)
        bright = (sample['inputs'].float().amax(0) > 60).nonzero()
        left, upper, right, lower = sample['data_samples'].gt_instances.bboxes.tensor[0].tolist()
        assert (right - left, lower - upper) == pytest.approx((128, 96))
        seen = [*bright.amin(0).flip(0), *(bright.amax(0) + 1).flip(0)]
        assert np.abs(np.array(seen) - (left, upper, right, lower)).max() < 4
    assert flips == {True, False}


def test_test_pipeline_keeps_the_original_boxes(tmp_path):
    write_dior(tmp_path, voc_xml(('ship', 3, 4, 20, 10)))
    cfg = Config.fromfile(CONFIGS / 'dior_faster_rcnn_pera.py')
    sample = dataset(tmp_path, test_mode=True, pipeline=cfg.test_pipeline)[0]
    assert sample['inputs'].shape == (3, 256, 512)
    boxes = sample['data_samples'].gt_instances.bboxes
    assert boxes.tensor.tolist() == [[2, 3, 20, 10]]


def test_the_model_gets_red_first(tmp_path):
    write_dior(tmp_path, voc_xml(('ship', 1, 1, 5, 5)))
    red = np.full((10, 20, 3), (0, 0, 255), np.uint8)  # OpenCV's order
    assert cv2.imwrite(str(tmp_path / FOLDERS['img'] / 'a.jpg'), red)
    cfg = Config.fromfile(CONFIGS / 'dior_faster_rcnn_pera.py')
    sample = dataset(tmp_path, test_mode=True, pipeline=cfg.test_pipeline)[0]
    batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
    pixels = MODELS.build(cfg.model.data_preprocessor)(batch)['inputs']
    assert pixels.shape == (1, 3, 256, 512)
    assert pixels[0, 0].mean() > 2 and pixels[0, 1:].mean() < -1.5


def test_overlap_is_that_of_the_edges():
    """8 x 8 pixels, of which 4.1 are hit: IoU .5125; with sides longer by one, .567."""
    def score(predicted: list[float]) -> float:
        metric = EdgeVOCMetric(iou_thrs=0.55, eval_mode='area')
        metric.dataset_meta = dict(classes=('ship',))
        truth = dict(bboxes=torch.tensor([[0., 0, 8, 8]]), labels=torch.tensor([0]))
        nothing = dict(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        found = dict(bboxes=torch.tensor([predicted]), scores=torch.tensor([.9]),
                     labels=torch.tensor([0]))
        metric.process({}, [dict(gt_instances=truth, ignored_instances=nothing,
                                 pred_instances=found)])
        return metric.evaluate(1)['pascal_voc/mAP']

    assert score([0, 0, 8, 4.1]) == 0
    assert score([0, 0, 8, 4.5]) == 1


# -- the model ---------------------------------------------------------------------------------


@pytest.fixture
def tiny() -> Config:
    """The paper's config around a tiny ViT without pre-trained weights."""
    cfg = Config.fromfile(CONFIGS / 'dior_faster_rcnn_pera.py')
    cfg.merge_from_dict(dict(model=dict(
        backbone=dict(vit=dict(arch=dict(VIT), init_cfg=None, drop_path_rate=0., img_size=64)),
        neck=dict(in_channels=[32] * 4, out_channels=16),
        rpn_head=dict(in_channels=16, feat_channels=16),
        roi_head=dict(bbox_roi_extractor=dict(out_channels=16),
                      bbox_head=dict(in_channels=16, fc_out_channels=32)))))
    return cfg


def test_anchors_are_those_of_the_paper(tiny):
    generator = MODELS.build(tiny.model).rpn_head.prior_generator
    sides, ratios = set(), set()
    for level in generator.base_anchors:
        width, height = (level[:, 2:] - level[:, :2]).T
        sides |= set((width * height).sqrt().round().int().tolist())
        ratios |= {round(ratio, 3) for ratio in (height / width).tolist()}
        assert len(level) == 10
    assert sides == {4, 8, 16, 32, 64, 128, 256, 512}
    assert ratios == {.2, .5, 1., 2., 5.}


def test_settings_of_the_paper_and_of_torchvision_reach_the_model(tiny):
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    model = MODELS.build(tiny.model)
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, rpn_nms_thresh=.8,
                                     box_score_thresh=.01, box_detections_per_img=200)
    rpn, box = theirs.rpn, theirs.roi_heads
    for cfg, phase in ((model.train_cfg.rpn_proposal, 'training'), (model.test_cfg.rpn, 'testing')):
        assert cfg.nms.iou_threshold == .8 == rpn.nms_thresh
        assert cfg.nms_pre == rpn._pre_nms_top_n[phase]
        assert cfg.max_per_img == rpn._post_nms_top_n[phase]
        assert cfg.min_bbox_size == rpn.min_size
    assert model.rpn_head.test_cfg == model.test_cfg.rpn
    test = model.roi_head.test_cfg
    assert (test.score_thr, test.nms.iou_threshold, test.max_per_img) == (.01, .5, 200) == (
        box.score_thresh, box.nms_thresh, box.detections_per_img)
    for ours, matcher, sampler in (
            (model.rpn_head, rpn.proposal_matcher, rpn.fg_bg_sampler),
            (model.roi_head.bbox_head, box.proposal_matcher, box.fg_bg_sampler)):
        assert ours.loss_bbox.beta == pytest.approx(1 / 9)
        holder = model.rpn_head if ours is model.rpn_head else model.roi_head
        is_rpn = holder is model.rpn_head
        assigner = holder.assigner if is_rpn else holder.bbox_assigner
        picker = holder.sampler if is_rpn else holder.bbox_sampler
        assert assigner.pos_iou_thr == matcher.high_threshold
        assert assigner.neg_iou_thr == matcher.low_threshold
        assert assigner.match_low_quality == matcher.allow_low_quality_matches
        assert (picker.num, picker.pos_fraction) == (
            sampler.batch_size_per_image, sampler.positive_fraction)
    assert [1 / s for s in model.roi_head.bbox_head.bbox_coder.stds] == pytest.approx(
        box.box_coder.weights)
    assert [1 / s for s in model.rpn_head.bbox_coder.stds] == pytest.approx(rpn.box_coder.weights)
    layer = model.roi_head.bbox_roi_extractor.roi_layers[0]
    assert layer.output_size == tuple(box.box_roi_pool.output_size)
    assert layer.sampling_ratio == box.box_roi_pool.sampling_ratio and not layer.aligned
    assert model.roi_head.bbox_head.shared_fcs[-1].out_features == 32  # 1024 in the file
    assert Config.fromfile(
        CONFIGS / 'dior_faster_rcnn_pera.py').model.roi_head.bbox_head.fc_out_channels == 1024


def batch(side: int = 64) -> dict:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for _ in range(2):
        sample = DetDataSample(metainfo=dict(
            img_shape=(side, side), ori_shape=(side, side), scale_factor=(1., 1.), img_id=0))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[4., 4, 24, 20], [30, 30, 60, 62]]), labels=torch.tensor([3, 7]))
        samples.append(sample)
    return dict(inputs=list(torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)),
                data_samples=samples)


def test_every_parameter_gets_a_gradient(tiny):
    model = MODELS.build(tiny.model).train()
    model.init_weights()
    for value in model.parameters():  # what starts at zero lets no gradient through to the rest
        if not value.any():
            torch.nn.init.normal_(value, std=.1)
    data = model.data_preprocessor(batch(), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    without = [name for name, value in model.named_parameters()
               if value.requires_grad and (value.grad is None or value.grad.abs().max() == 0)]
    assert without == []


def test_boxes_are_not_rounded_under_autocast(tiny):
    model = MODELS.build(tiny.model).train()
    model.init_weights()
    seen = []
    for layer in model.roi_head.bbox_roi_extractor.roi_layers:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    data = model.data_preprocessor(batch(), True)
    with torch.autocast('cpu', torch.bfloat16):
        model.parse_losses(model(**data, mode='loss'))[0].backward()
    corners = torch.cat(seen)[:, 1:]
    assert corners.dtype == torch.float32
    assert (corners != corners.bfloat16()).float().mean() > .5


def test_at_most_200_detections_above_a_hundredth(tiny):
    model = MODELS.build(tiny.model).eval()
    model.init_weights()
    torch.nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight, std=.5)
    with torch.no_grad():
        found = model.test_step(batch())[0].pred_instances
    assert len(found) == 200 and found.scores.min() >= .01
    assert found.bboxes.min() >= 0 and found.bboxes.max() <= 64


@pytest.mark.parametrize('name, arch, width, side, epochs', [
    ('dior_faster_rcnn_pera', 'pera-g', 1024, 512, 100),
    ('detection/dior_faster_rcnn_pera_vitb', 'base', 768, 512, 100),
    ('detection/dior_faster_rcnn_pera_800px-12e', 'pera-g', 1024, 800, 12),
])
def test_real_configs_build(name, arch, width, side, epochs):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    vit = cfg.model.backbone.vit
    assert (vit.arch, vit.img_size, vit.drop_path_rate) == (arch, side, .3)
    for loader, place in (('train_dataloader', 3), ('val_dataloader', 1), ('test_dataloader', 1)):
        assert cfg[loader].dataset.pipeline[place].scale == (side, side)
    assert cfg.train_cfg.max_epochs == epochs and cfg.train_dataloader.batch_size == 16
    assert cfg.optim_wrapper.optimizer.to_dict() == dict(type='AdamW', lr=1e-4, weight_decay=1e-3)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert model.neck.in_channels == [width] * 4
    assert model.roi_head.bbox_head.num_classes == len(CLASSES)
    assert METRICS.build(cfg.test_evaluator).eval_mode == 'area'
    assert DATASETS.get(cfg.train_dataloader.dataset.type) is DIORDataset


# -- the whole way -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_twin_trains_resumes_and_tests(tmp_path):
    data = tmp_path / 'scenes'
    write_scenes(data, 'detection', 40, size=64)
    (data / FOLDERS['img'] / '00001.jpg').write_bytes(b'broken')
    config = str(CONFIGS / 'scenes/dior_faster_rcnn_pera_scenes.py')
    options = ['--cfg-options', 'model.backbone.vit.init_cfg=None', 'train_cfg.val_interval=1',
               *[f'{loader}_dataloader.dataset.data_root={data}'
                 for loader in ('train', 'val', 'test')],
               *[f'{loader}_dataloader.num_workers=1' for loader in ('train', 'val', 'test')]]
    work = ['--work-dir', str(tmp_path / 'work')]
    mim = ['-m', 'mim', 'train', 'mmdet', config, *work]
    train_options = [*options, 'custom_hooks.1.max_share=0.5']  # one in about sixteen
    said = run(*mim, *train_options, 'train_cfg.max_epochs=1').output
    assert '1 of ' in said and '00001.jpg' in said and 'could not be read and were replaced' in said
    assert (tmp_path / 'work/epoch_1.pth').exists()
    said = run(*mim, '--resume', *train_options, 'train_cfg.max_epochs=2').output
    assert 'resumed epoch: 1' in said and 'Epoch(val) [2]' in said
    said = run('tools/test.py', config, tmp_path / 'work/epoch_2.pth', *work, *options).output
    assert 'pascal_voc/mAP' in said
    scores = [json.loads(file.read_text()) for file in (tmp_path / 'work').glob('*/*.json')]
    assert any('pascal_voc/mAP' in score for score in scores)
