"""Faster R-CNN on DIOR: what is read, what is refused, and what reaches the built model."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from made_data import voc_xml
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, METRICS, MODELS, init_default_scope
from PIL import Image
from programs import run

from pera_mm.scenes.drawing import OBJECTS
from pera_mm.scenes.folders import write_scenes

pytest.importorskip('mmdet')
from pera_mm.downstream.detection import (  # noqa: E402
    CLASSES,
    COCO101Metric,
    DIORDataset,
)

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
VIT = dict(_delete_=True, embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)
FOLDERS = dict(img='JPEGImages-trainval', xml='Annotations/Horizontal Bounding Boxes')
SPLIT = 'ImageSets/Main/train.txt'
SHIP = voc_xml(('ship', 1, 1, 5, 5))
LOAD = dict(type='pera_mm.LoadRGB')
DIFFICULT = ('ship', 1, 1, 5, 5, '<difficult>True</difficult>')


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


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
    assert 'a.xml: its image' in said and 'JPEGImages-trainval/a.* is missing' in said
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
    with pytest.raises(ValueError, match=r'train.txt is empty: write the name of an image on ev'):
        dataset(tmp_path)


def identities(data: DIORDataset) -> list[tuple[str, str]]:
    """The names of samples and of their images."""
    samples = map(data.get_data_info, range(len(data)))
    return [(sample['img_id'], Path(sample['img_path']).name) for sample in samples]


@pytest.mark.parametrize('suffix', ['.JPG', '.jpeg', '.PNG', '.tif', '.webp'])
def test_images_of_any_readable_type_belong_to_their_xml(tmp_path, suffix):
    write_dior(tmp_path, SHIP, SHIP)
    images, xmls = (tmp_path / folder for folder in FOLDERS.values())
    (images / 'a.jpg').rename(images / f'a{suffix}')
    (xmls / 'b.xml').rename(xmls / 'b.XML')
    (images / '._a.jpg').touch()
    assert identities(dataset(tmp_path)) == [('a', f'a{suffix}'), ('b', 'b.jpg')]
    shutil.copy(images / 'b.jpg', images / 'b.PNG')
    with pytest.raises(ValueError, match='b.PNG and b.jpg in .* have one name'):
        dataset(tmp_path)
    if suffix == '.PNG':
        assert identities(dataset(tmp_path, img_suffix='.png'))[1] == ('b', 'b.PNG')


@pytest.mark.parametrize('text', [
    'b\na\n', '\ufeffb\r\n\r\na \r\n', 'b.jpg\na.jpg', 'b.xml\na.xml', '"b"\n# all\na',
    'JPEGImages-trainval/b.jpg\nJPEGImages-trainval/a.jpg'])
def test_names_are_found_however_a_list_writes_them(tmp_path, text):
    write_dior(tmp_path, SHIP, SHIP)
    for encoding in ('utf-8', 'utf-16'):
        text = text.lstrip('\ufeff') if encoding == 'utf-16' else text
        (tmp_path / SPLIT).write_text(text, encoding)
        assert identities(dataset(tmp_path)) == [('b', 'b.jpg'), ('a', 'a.jpg')]


def test_names_that_are_not_there_and_broken_links_are_named(tmp_path):
    write_dior(tmp_path, SHIP, SHIP)
    (tmp_path / SPLIT).write_bytes(b'a\nb\n\xb4\xac\n')
    (tmp_path / FOLDERS['img'] / 'b.jpg').unlink()
    (tmp_path / FOLDERS['img'] / 'b.jpg').symlink_to('nowhere')
    with pytest.raises(ValueError, match=r'^2 of the 3 samples .*b.xml: its image \S+/b.jpg is '
                                         r'missing; .*\\xb4\\xac.xml is missing'):
        dataset(tmp_path)


def test_a_name_in_two_splits_is_an_error_in_a_test_and_said_in_training(tmp_path, log):
    write_dior(tmp_path, SHIP, SHIP)
    (tmp_path / 'ImageSets/Main/val.txt').write_text('b\n')
    said = '1 of 2 samples are listed more than once: b; '
    with pytest.raises(ValueError, match=f'^{said}a score would not be comparable: list each once'):
        dataset(tmp_path, splits=['train', 'val'], test_mode=True)
    assert len(dataset(tmp_path, splits=['train', 'val'])) == 3
    assert log == [f'{said}they are seen as often.']


@pytest.mark.parametrize(('classes', 'fault'), [
    ('ship', "classes='ship' is one text, not a list of names"), ((), 'is empty'),
    (('ship', 'ship'), "holds 'ship' twice"), (dict(ship=0), 'is a dict')])
def test_what_is_not_a_list_of_classes_is_refused(tmp_path, classes, fault):
    write_dior(tmp_path, voc_xml())
    with pytest.raises(ValueError, match=fault):
        dataset(tmp_path, metainfo=dict(classes=classes))


def test_dropped_boxes_are_counted_in_a_warning(tmp_path, log):
    write_dior(tmp_path, voc_xml(('ship', 1, 1, 5, 5), ('ship', 5, 5, 1, 1), DIFFICULT), voc_xml(),
               voc_xml(('ship', 3, 3, 3, 3)))
    data = dataset(tmp_path, filter_cfg=dict(filter_empty_gt=True))
    said, = log
    assert said == ('2 boxes in 2 of 3 files were dropped (1 with a minimum above its maximum, '
                    '1 empty): a.xml, c.xml.')
    assert [data.get_data_info(i)['img_id'] for i in range(len(data))] == ['a']


@pytest.mark.parametrize('boxes, reason', [
    ([('ship', 9, 2, 4, 5)] * 2, r'2 boxes in 1 of 2 files were dropped \(2 with a minimum '
                                 r'above its maximum\): a.xml; correct'),
    ([], 'they have no <object>; correct these files'),
    ([DIFFICULT, ('ship', 30, 1, 40, 9)],
     r'all 1 are difficult; 1 boxes in 1 of 2 files were dropped \(1 outside of their image\): a'),
])
@pytest.mark.parametrize('options', [{}, dict(filter_cfg=dict(filter_empty_gt=True)),
                                     dict(test_mode=True)], ids=['train', 'filter', 'test'])
def test_a_data_set_without_a_box_says_why(tmp_path, boxes, reason, options):
    write_dior(tmp_path, voc_xml(*boxes), voc_xml())
    with pytest.raises(ValueError, match='^no box is left in the 2 XML files of the splits train '
                                         f'of .*: {reason}'):
        dataset(tmp_path, **options)


def test_fractions_and_files_that_cannot_be_opened_are_unusable(tmp_path):
    good = voc_xml(('ship', 1, 1, 5, 5))
    write_dior(tmp_path, good, voc_xml(('ship', .1, .1, .5, .5)), good)
    xml = tmp_path / FOLDERS['xml'] / 'c.xml'
    xml.unlink()
    xml.symlink_to(tmp_path / FOLDERS['xml'])
    with pytest.raises(ValueError) as caught:
        dataset(tmp_path)
    said = str(caught.value)
    assert '2 of the 3 samples' in said and 'c.xml: [Errno 21] Is a directory' in said
    assert 'b.xml: its boxes (0.1 0.1 0.5 0.5) look like fractions of the image' in said


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
    write_dior(tmp_path, voc_xml(('ship', 1, 1, 5, 5), size=(21, 10)))
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


# -- one reader for all tasks --------------------------------------------------------------------


def pipelines() -> list[list[dict]]:
    cfg = Config.fromfile(CONFIGS / 'dior_faster_rcnn_pera.py')
    return [cfg.train_pipeline, cfg.test_pipeline]


def test_an_image_of_16_bits_is_stretched_as_in_every_task(tmp_path):
    write_dior(tmp_path, voc_xml(('ship', 1, 1, 5, 5)))
    pixels = np.linspace(300, 4000, 200).astype(np.uint16).reshape(10, 20)
    low, high = np.percentile(pixels, (2, 98))
    expected = np.clip((pixels - low) / (high - low) * 255, 0, 255)[..., None]
    (tmp_path / FOLDERS['img'] / 'a.jpg').unlink()
    assert cv2.imwrite(str(tmp_path / FOLDERS['img'] / 'a.png'), pixels)
    for steps in pipelines():
        assert np.abs(dataset(tmp_path, pipeline=steps[:1])[0]['img'] - expected).max() <= .51


@pytest.mark.parametrize('orientation', range(1, 9))
def test_pixels_are_read_as_stored_whatever_their_exif_orientation(tmp_path, orientation):
    write_dior(tmp_path, voc_xml(('ship', 1, 1, 5, 5), size=(40, 80)))
    pixels = np.zeros((80, 40, 3), np.uint8)
    pixels[:8, :16] = 255
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / FOLDERS['img'] / 'a.jpg', exif=exif)
    for steps in pipelines():
        image = dataset(tmp_path, pipeline=steps[:1])[0]['img']
        np.testing.assert_array_equal(image > 127, pixels > 127)
    xml = tmp_path / FOLDERS['xml'] / 'a.xml'
    xml.write_text(voc_xml(('ship', 1, 1, 5, 5), size=(80, 40)))
    with pytest.raises(ValueError, match='40 x 80 pixels, its XML says 80 x 40: images are read '
                                         'as they are stored, not turned by their EXIF'):
        dataset(tmp_path, test_mode=True)[0]


def test_what_a_loader_of_mmdetection_raises_is_an_unreadable_image_too(tmp_path):
    write_dior(tmp_path, *[voc_xml(('ship', 1, 1, 5, 5))] * 2)
    (tmp_path / FOLDERS['img'] / 'a.jpg').write_bytes(b'no image')
    sample = dataset(tmp_path, pipeline=[
        dict(type='LoadImageFromFile', imdecode_backend='pillow')])[0]
    assert sample['img_id'] == 'b' and 'cannot identify image' in sample['skipped'][0][1]


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
    places = set()
    for _ in range(12):
        sample = data[0]
        assert sample['inputs'].shape == (3, 512, 512)
        bright = (sample['inputs'].float().amax(0) > 60).nonzero()
        left, upper, right, lower = sample['data_samples'].gt_instances.bboxes.tensor[0].tolist()
        assert (right - left, lower - upper) == pytest.approx((128, 96))
        seen = [*bright.amin(0).flip(0), *(bright.amax(0) + 1).flip(0)]
        assert np.abs(np.array(seen) - (left, upper, right, lower)).max() < 4
        places.add((left, upper))
    # of 160 px: 40 from the left or 80, 20 from the top or 110
    assert places == {(128, 64), (256, 64), (128, 352), (256, 352)}


def test_colors_are_those_of_torchvisions_jitter_red_first(tmp_path):
    """With the same seed, torchvision's jitter of the RGB image gives the same pixels."""
    from torchvision.transforms import ColorJitter

    write_dior(tmp_path, voc_xml(('ship', 1, 1, 5, 5), size=(512, 512)))
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    path = tmp_path / FOLDERS['img'] / 'a.jpg'
    Image.fromarray(pixels).save(path)
    cfg = Config.fromfile(CONFIGS / 'dior_faster_rcnn_pera.py')
    steps = [step for step in cfg.train_pipeline if not step.type.endswith('RandomFlip')]
    torch.manual_seed(3)
    inputs = dataset(tmp_path, pipeline=steps)[0]['inputs']
    torch.manual_seed(3)
    expected = np.array(ColorJitter(.4, .4, .2, .1)(Image.open(path)))
    np.testing.assert_array_equal(inputs.permute(1, 2, 0).numpy(), expected)


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


def scored(truth: list, found: list) -> dict:
    """A sample of boxes ``(label, box)`` and of detections ``(label, box, score)``."""
    def instances(items: list) -> dict:
        return dict(labels=torch.tensor([item[0] for item in items], dtype=torch.long),
                    bboxes=torch.tensor([item[1] for item in items]).reshape(-1, 4).float())

    predicted = dict(instances(found), scores=torch.tensor([item[2] for item in found]))
    return dict(gt_instances=instances(truth), ignored_instances=instances([]),
                pred_instances=predicted)


def evaluate(metric: str, samples: list[dict], classes: int = 1, **options) -> dict:
    built = METRICS.build(dict(type=f'pera_mm.{metric}', **options))
    built.dataset_meta = dict(classes=tuple('abcdefgh'[:classes]))
    built.process({}, samples)
    return built.evaluate(len(samples))


def both_scores(samples: list[dict], classes: int = 1) -> tuple[float, float]:
    area = evaluate('EdgeVOCMetric', samples, classes, iou_thrs=.5, eval_mode='area')
    return (area['pascal_voc/mAP'],
            evaluate('COCO101Metric', samples, classes)['coco101/mAP50'])


def test_overlap_is_that_of_the_edges():
    """8 x 8 pixels, of which 4.1 are hit: IoU .5125; with sides longer by one, .567."""
    def score(predicted: list[float]) -> float:
        sample = scored([(0, [0, 0, 8, 8])], [(0, predicted, .9)])
        return evaluate('EdgeVOCMetric', [sample], iou_thrs=.55, eval_mode='area')['pascal_voc/mAP']

    assert score([0, 0, 8, 4.1]) == 0
    assert score([0, 0, 8, 4.5]) == 1


@pytest.mark.parametrize(('height', 'expected'), [(3.9, 0), (4.1, 1)])
def test_both_metrics_overlap_by_edges_from_one_half_on(height, expected):
    sample = scored([(0, [0, 0, 8, 8])], [(0, [0, 0, 8, height], .9)])
    assert both_scores([sample]) == (expected, pytest.approx(expected))


FAR = [[20. * i, 0, 20 * i + 8, 8] for i in range(200)]  # boxes that do not meet


def test_the_two_measures_of_one_curve():
    """Right, wrong, right, of three objects: precision 1 up to recall 1/3, then 2/3 up to 2/3.

    101 points: 0 to .33 are 34 of the first, .34 to .66 are 33 of the second, the rest are 0.
    """
    found = [(0, FAR[0], .9), (0, FAR[9], .8), (0, FAR[1], .7)]
    area, coco = both_scores([scored([(0, box) for box in FAR[:3]], found)])
    assert area == pytest.approx((1 + 2 / 3) / 3, abs=1e-6)
    assert coco == pytest.approx((34 * 1 + 33 * 2 / 3) / 101, abs=1e-6)


def test_only_coco_stops_at_a_hundred_boxes_of_a_class_in_an_image():
    """99 wrong boxes and two right ones, of which COCO drops the last, in each of two classes."""
    truth = [(label, box) for label in (0, 1) for box in FAR[:2]]
    found = [(label, box, .9 - .001 * i) for label in (0, 1)
             for i, box in enumerate([*FAR[50:149], *FAR[:2]])]
    area, coco = both_scores([scored(truth, found)], classes=2)
    assert area == pytest.approx(2 / 101, abs=1e-6)  # recall 1 at the 101st box
    assert coco == pytest.approx(51 * .01 / 101, abs=1e-6)  # recall 1/2 at the 100th


def test_classes_are_averaged_and_a_class_without_objects_is_left_out():
    truth = [(0, FAR[0]), (1, FAR[1])]
    found = [(0, FAR[0], .9), (2, FAR[2], .9)]
    assert evaluate('COCO101Metric', [scored(truth, found)], 3)['coco101/mAP50'] == (
        pytest.approx(.5))


def test_images_are_kept_apart():
    samples = [scored([(0, FAR[0])], [(0, FAR[1], .9)]), scored([(0, FAR[1])], [(0, FAR[0], .9)])]
    assert both_scores(samples) == (0, 0)


def test_a_difficult_object_is_neither_right_nor_wrong():
    sample = scored([(0, FAR[0])], [(0, FAR[1], .9), (0, FAR[0], .8)])
    sample['ignored_instances'] = dict(bboxes=torch.tensor([FAR[1]]), labels=torch.tensor([0]))
    assert evaluate('COCO101Metric', [sample])['coco101/mAP50'] == pytest.approx(1)


@pytest.mark.parametrize(('truth', 'expected'), [([(0, FAR[0])], 0.), ([], float('nan'))])
def test_no_detection_scores_zero_and_no_object_is_nan(truth, expected):
    score = evaluate('COCO101Metric', [scored(truth, [])])['coco101/mAP50']
    assert score == pytest.approx(expected, nan_ok=True)


def test_the_log_says_which_measure_is_which(tmp_path, capsys):
    log = tmp_path / 'log'
    MMLogger.get_instance('measures', log_file=str(log))
    both_scores([scored([(0, FAR[0])], [(0, FAR[0], .9)])])
    said = log.read_text()
    assert 'pascal_voc/mAP: the area under the whole precision-recall curve' in said
    assert "coco101/mAP50: the mean of COCO's 101 points" in said
    assert 'index' not in capsys.readouterr().out


# -- the model ---------------------------------------------------------------------------------


@pytest.fixture(params=['dior_faster_rcnn_pera', 'detection/dior_faster_rcnn_pera_fpn'],
                ids=['paper', 'fpn'])
def tiny(request) -> Config:
    """A config around a tiny ViT without pre-trained weights."""
    cfg = Config.fromfile(CONFIGS / f'{request.param}.py')
    width = 16 if 'neck' in cfg.model else 32
    cfg.merge_from_dict(dict(model=dict(
        backbone=dict(vit=dict(arch=dict(VIT), init_cfg=None, drop_path_rate=0., img_size=64)),
        rpn_head=dict(in_channels=width, feat_channels=width),
        roi_head=dict(bbox_roi_extractor=dict(out_channels=width),
                      bbox_head=dict(in_channels=width, fc_out_channels=32)))))
    if 'neck' in cfg.model:
        cfg.model.neck.update(in_channels=[32] * 4, out_channels=width)
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


def test_the_papers_detector_is_torchvisions_without_an_fpn():
    """torchvision's FasterRCNN on a backbone with ``out_channels`` of the ViT's width."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    cfg = Config.fromfile(CONFIGS / 'dior_faster_rcnn_pera.py')
    sides = ((4, 8), (16, 32), (64, 128), (256, 512))
    with torch.device('meta'):
        ours = MODELS.build(cfg.model)
        body = torch.nn.Module()
        body.out_channels = 1024
        theirs = FasterRCNN(body, num_classes=21, rpn_anchor_generator=AnchorGenerator(
            sides, ((.2, .5, 1., 2., 5.), ) * 4))
    assert not ours.with_neck
    shapes = [sorted(tuple(value.shape) for value in head) for head in (
        [*ours.rpn_head.parameters(), *ours.roi_head.parameters()],
        [*theirs.rpn.parameters(), *theirs.roi_heads.parameters()])]
    # torchvision's head has deltas of the background, too
    background = {(21 * 4, 1024): (20 * 4, 1024), (21 * 4, ): (20 * 4, )}
    assert shapes[0] == sorted(background.get(shape, shape) for shape in shapes[1])


@pytest.mark.parametrize('name, arch, width, side, epochs', [
    ('dior_faster_rcnn_pera', 'pera-g', 1024, 512, 100),
    ('detection/dior_faster_rcnn_pera_fpn', 'pera-g', 1024, 512, 100),
    ('detection/dior_faster_rcnn_pera_vitb', 'base', 768, 512, 100),
    ('detection/dior_faster_rcnn_pera_800px-12e', 'pera-g', 1024, 800, 12),
])
def test_real_configs_build(name, arch, width, side, epochs):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    vit = cfg.model.backbone.vit
    assert (vit.arch, vit.img_size, vit.drop_path_rate) == (arch, side, .3)
    for loader, place in (('train_dataloader', 2), ('val_dataloader', 1), ('test_dataloader', 1)):
        assert cfg[loader].dataset.pipeline[place].scale == (side, side)
    assert cfg.train_cfg.max_epochs == epochs and cfg.train_dataloader.batch_size == 16
    assert cfg.optim_wrapper.optimizer.to_dict() == dict(
        type='AdamW', lr=1e-4, weight_decay=1e-3, eps=2e-5)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    if model.with_neck:
        assert model.neck.in_channels == [width] * 4
    assert model.roi_head.bbox_head.num_classes == len(CLASSES)
    area, coco = (METRICS.build(metric) for metric in cfg.test_evaluator)
    assert area.eval_mode == 'area' and isinstance(coco, COCO101Metric)
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
    train_options = [*options, 'custom_hooks.0.max_share=0.5']  # one in about sixteen
    train_options += ['train_cfg.max_epochs=2', 'default_hooks.checkpoint.interval=1']
    said = run(*mim, *train_options).output
    assert '1 of ' in said and '00001.jpg' in said and 'could not be read and were replaced' in said
    assert (tmp_path / 'work/epoch_1.pth').exists()
    (tmp_path / 'work/last_checkpoint').write_text(f'{tmp_path}/work/epoch_1.pth')
    said = run(*mim, '--resume', *train_options).output
    assert 'resumed epoch: 1' in said and 'Epoch(val) [2]' in said
    said = run('tools/test.py', config, tmp_path / 'work/epoch_2.pth', *work, *options).output
    assert 'pascal_voc/mAP' in said and 'coco101/mAP50' in said
    scores = [json.loads(file.read_text()) for file in (tmp_path / 'work').glob('*/*.json')]
    assert any('pascal_voc/mAP' in score and 'coco101/mAP50' in score for score in scores)
