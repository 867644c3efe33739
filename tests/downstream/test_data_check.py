"""Broken data sets are refused before the first step, by name, on every rank; shares are shown."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from made_data import noise_classes, voc_xml
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from torch import nn

import pera_mm  # noqa: F401
from pera_mm.datasets.labelled import LabelledImages
from pera_mm.downstream import data_check
from pera_mm.downstream.class_check import class_faults, heads_of
from pera_mm.downstream.class_shares import (
    ClassCounts,
    LabelCounter,
    class_weights,
    weights_advice,
)
from pera_mm.downstream.data_check import DataCheckHook
from pera_mm.downstream.sample_check import check_sizes, head_of, read_head, read_heads
from pera_mm.downstream.segmentation import SegmentationDataset

sys.path.insert(0, str(Path(__file__).parents[1] / 'engine'))
from training_runs import on_ranks  # noqa: E402


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)
    return path


def write_pairs(root: Path, number: int, size: tuple[int, int] = (24, 32)) -> None:
    for index in range(number):
        write(root / f'images/{index}.png', np.zeros((*size, 3)))
        write(root / f'masks/{index}.png', np.full(size, 1 + index % 2))


class Runner(SimpleNamespace):
    """As much of a runner as the hook reads: two data sets, a model, a logger."""

    def __init__(self, train: Path, val: Path | None = None, crop_size=(16, 16),
                 **test_cfg):
        super().__init__(
            train_dataloader=SimpleNamespace(dataset=dataset(train, crop_size)),
            val_dataloader=val and SimpleNamespace(dataset=dataset(val, None)),
            val_loop=val, model=nn.Module(), logger=logging.getLogger('check'))
        self.model.test_cfg = dict(crop_size=(64, 64), **test_cfg)


def dataset(root: Path, crop_size) -> SegmentationDataset:
    pipeline = [dict(type='pera_mm.LoadRGB'), dict(type='pera_mm.LoadMask')]
    if crop_size:
        pipeline.append(dict(type='mmseg.RandomCrop', crop_size=crop_size))
    return SegmentationDataset(
        dict(classes=('field', 'road')), reduce_zero_label=True, data_root=str(root),
        data_prefix=dict(img_path='images', seg_map_path='masks'), pipeline=pipeline,
        test_mode=crop_size is None)


def check(*args, num_loaded: int = 200, **kwargs) -> None:
    DataCheckHook(num_loaded).before_train(Runner(*args, **kwargs))


@pytest.fixture
def root(tmp_path) -> Path:
    write_pairs(tmp_path, 5)
    return tmp_path


def test_good_data_pass_with_a_line_for_each_set(root, caplog):
    with caplog.at_level(logging.INFO):
        check(root, root)
    assert caplog.messages == [
        f'Classes of the {split} set by their share of the pixels, from all 5 masks: field 60 %, '
        'road 40 %.' for split in ('train', 'val')]


def test_an_unknown_label_is_named_with_what_is_allowed(root):
    mask = np.ones((24, 32))
    mask[3, 4] = 7
    write(root / 'masks/3.png', mask)
    with pytest.raises(ValueError, match=r'masks/3.png has the label 7; allowed are 0 for not '
                       'labelled, the classes 1 to 2, and 255'):
        check(root)


def test_only_an_even_sample_is_loaded(root):
    write(root / 'masks/0.png', np.repeat([1, 2], 12)[:, None] * np.ones((24, 32)))
    write(root / 'masks/1.png', np.full((24, 32), 7))
    check(root, num_loaded=3)  # 0, 2 and 4
    with pytest.raises(ValueError, match='masks/1.png has the label 7'):
        check(root, num_loaded=5)


def test_sizes_that_differ_are_named_whatever_the_sample(root):
    write(root / 'masks/1.png', np.ones((24, 30)))
    with pytest.raises(ValueError, match=r'images/1.png is 32 x 24, \S*masks/1.png is 30 x 24'):
        check(root, num_loaded=1)


def test_second_images_are_compared_too(root):
    second = write(root / 'other.png', np.zeros((20, 32, 3)))
    sample = dict(img_path=str(root / 'images/0.png'), img_path2=str(second))
    with pytest.raises(ValueError, match='other.png is 32 x 20 pixels'):
        check_sizes(read_heads(sample)[0], None)


@pytest.mark.parametrize(('crop_size', 'smaller'), [((24, 33), True), ((25, 32), True),
                                                    ((24, 32), False)])
def test_an_image_smaller_than_the_crop_is_named(root, crop_size, smaller):
    if not smaller:
        return check(root, crop_size=crop_size)
    with pytest.raises(ValueError, match=r'images/0.png is 32 x 24 pixels, smaller than the '
                       f'window of {crop_size[1]} x {crop_size[0]}'):
        check(root, crop_size=crop_size)


def test_an_image_smaller_than_the_sliding_window_is_named(root):
    check(root, root, mode='whole')
    with pytest.raises(ValueError, match='smaller than the window of 64 x 64'):
        check(root, root, mode='slide')


@pytest.mark.parametrize('wrap', [
    lambda first, second: ConcatDataset([first, second]),
    lambda first, second: RepeatDataset(second, times=3)])
def test_data_sets_within_others_are_looked_at(root, wrap):
    write_pairs(root / 'more', 2)
    runner = Runner(root)
    runner.train_dataloader.dataset = wrap(*(
        dataset(folder, (16, 16)) for folder in (root, root / 'more')))
    DataCheckHook().before_train(runner)
    path = write(root / 'more/masks/1.png', np.full((24, 32), 9))
    with pytest.raises(ValueError, match=f'{path} has the label 9'):
        DataCheckHook().before_train(runner)


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_heads_of_deep_rasters_are_read_too_but_not_those_that_name_other_files(tmp_path):
    path = tmp_path / 'deep.tif'
    with rasterio.open(path, 'w', driver='GTiff', width=5, height=3, count=4,
                       dtype='uint16') as file:
        file.write(np.ones((4, 3, 5), np.uint16))
    assert read_head(str(path)) == head_of(path.read_bytes()) == (5, 3, 'GTiff 4 x uint16')
    vrt = tmp_path / 'link.tif'
    vrt.write_text(f'<VRTDataset rasterXSize="5" rasterYSize="3"><VRTRasterBand band="1" '
                   f'dataType="UInt16"><SimpleSource><SourceFilename>{path}</SourceFilename>'
                   '</SimpleSource></VRTRasterBand></VRTDataset>')
    with rasterio.open(vrt):  # GDAL would
        pass
    assert 'link.tif' in str(read_heads(dict(img_path=str(vrt)))[1])


def test_a_missing_file_of_a_sample_is_named(root):
    sample = dict(img_path=str(root / 'images/2.png'), seg_map_path=str(root / 'masks/9.png'))
    with pytest.raises(ValueError, match=r'masks/9.png is missing, which belongs to .*2.png'):
        read_heads(sample)


@pytest.mark.parametrize('content', [b'', b'no image', None])
def test_an_unreadable_file_is_a_warning_in_training_and_an_error_in_validation(
        root, tmp_path, caplog, content):
    path = root / 'images/2.png'
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    check(root)
    assert '1 files of the train set cannot be read' in caplog.text
    assert 'images/2.png' in caplog.text
    write_pairs(tmp_path / 'good', 2)
    with pytest.raises(ValueError, match='1 files of the val set cannot be read, .*images/2.png'):
        check(tmp_path / 'good', root)


def test_nothing_readable_stops_the_run(root):
    for path in (root / 'images').iterdir():
        path.write_bytes(b'')
    with pytest.raises(ValueError, match='5 files of the train set .* nothing to train on'):
        check(root)


def test_a_slow_check_speaks(root, caplog, monkeypatch):
    monkeypatch.setattr(data_check, 'PROGRESS_INTERVAL', 0)
    with caplog.at_level(logging.INFO):
        check(root)
    assert '3 of 5 samples of the train set checked' in caplog.text


# -- the shares of the classes -------------------------------------------------------------------


def test_pixels_that_are_not_labelled_have_no_part_in_the_shares(root, caplog):
    mask = np.ones((24, 32))  # 768 pixels
    mask[0, :24] = 2
    mask[12:] = 0  # not labelled
    for index in range(5):
        write(root / f'masks/{index}.png', mask)
    with caplog.at_level(logging.INFO):
        check(root, num_loaded=2)
    assert caplog.messages == [
        'Classes of the train set by their share of the pixels, from 2 of 5 masks: field 93.8 %, '
        'road 6.25 %; 50 % of all pixels are not labelled.']


def test_parts_of_a_set_are_added_and_a_sample_stands_for_its_part(root, caplog):
    write_pairs(root / 'more', 20)
    for path in (root / 'more/masks').iterdir():
        write(path, np.ones((24, 32)))
    runner = Runner(root)
    runner.train_dataloader.dataset = ConcatDataset(
        [dataset(folder, None) for folder in (root, root / 'more')])
    with caplog.at_level(logging.INFO):
        DataCheckHook(num_loaded=5).before_train(runner)
    assert caplog.messages == [  # 3 + 20 of 25
        'Classes of the train set by their share of the pixels, from 10 of 25 masks: field 92 %, '
        'road 8 %.']


def rare_road(root: Path) -> None:
    """Road has a 64th of the pixels, 1.56 %; a row is not labelled."""
    mask = np.ones((33, 32))
    mask[0, :16] = 2
    mask[32] = 255
    for index in range(5):
        write(root / f'masks/{index}.png', mask)
        write(root / f'images/{index}.png', np.zeros((33, 32, 3)))


def advised_model(message: str) -> dict:
    names: dict = {}
    exec(message.splitlines()[1], names)
    return names['model']


def test_a_rare_class_comes_with_the_line_to_paste(root, caplog):
    rare_road(root)
    with caplog.at_level(logging.INFO):
        check(root, root)
    train, advice, val = caplog.messages
    assert advice.startswith(
        'Below 5 % of the pixels: road (1.56 %). This line in the config weighs each class by the '
        'inverse square root of its share:\nmodel = dict(decode_head=dict(loss_decode=')
    assert val.startswith('Classes of the val set')  # no advice from it
    cfg = advised_model(advice)['decode_head']['loss_decode']
    common, rare = (63 / 64) ** .5, 1 / 8
    expected = [1 / common / (common + rare), 1 / rare / (common + rare)]
    assert cfg['class_weight'] == pytest.approx(expected, rel=5e-3)
    assert cfg.pop('_delete_') is True
    # And it trains with pixels that are not labelled, which MMSegmentation's mean cannot.
    logits, label = torch.randn(2, 2, 33, 32, requires_grad=True), torch.randint(2, (2, 33, 32))
    label[:, 32] = 255
    init_default_scope('mmseg')
    loss = MODELS.build(cfg)(logits, label, ignore_index=255)
    by_hand = sum(
        -cfg['class_weight'][c] * logits.log_softmax(1)[:, c][label == c].sum() for c in (0, 1))
    torch.testing.assert_close(loss.mean(), by_hand / label.numel())
    loss.mean().backward()


def test_a_model_with_weights_gets_no_advice(root, caplog):
    rare_road(root)
    runner = Runner(root)
    runner.model.loss = nn.Module()
    runner.model.loss.class_weight = [1., 8.]
    with caplog.at_level(logging.INFO):
        DataCheckHook().before_train(runner)
    assert len(caplog.messages) == 1


def test_the_mean_weight_of_a_label_is_one():
    shares = np.array([.9, .09, .01, 0])
    weights = class_weights(shares)
    assert weights @ shares == pytest.approx(1)
    np.testing.assert_allclose(weights[:3] / weights[2], np.sqrt(.01 / shares[:3]))
    assert weights[3] == 1
    empty = ClassCounts('pixels', ('a', 'b'), np.zeros(3), 1, 1)
    assert 'a (0 %), b (0 %)' in weights_advice(empty)


def check_others(data, val=None, model=None) -> None:
    """Check a data set without masks."""
    runner = Runner.__new__(Runner)
    SimpleNamespace.__init__(
        runner, train_dataloader=SimpleNamespace(dataset=data), val_loop=val,
        val_dataloader=SimpleNamespace(dataset=val), model=model or nn.Module(),
        logger=logging.getLogger('check'))
    DataCheckHook().before_train(runner)


def labelled(root: Path, **options) -> LabelledImages:
    init_default_scope('mmpretrain')
    return LabelledImages(data_root=str(root), pipeline=[
        dict(type='pera_mm.LoadRGB'), dict(type='mmpretrain.CenterCrop', crop_size=99),
        dict(type='PackInputs')], **options)


def test_images_are_counted_and_the_advice_is_for_the_classifier(tmp_path, caplog):
    noise_classes(tmp_path, 39, 8, field=(0, 9), forest=(0, 9))
    lines = [f'field/{index}.png 0' for index in range(39)] + ['forest/3.png 1']
    (tmp_path / 'train.txt').write_text('\n'.join(lines))
    with caplog.at_level(logging.INFO):
        check_others(labelled(tmp_path, ann_file='train.txt'))
        check_others(labelled(tmp_path, ann_file='train.txt',
                              metainfo=dict(classes=('field', 'forest', 'river'))))
    head = 'Classes of the train set by their share of the images, from all 40 images: '
    assert caplog.messages[0] == f'{head}class 0 97.5 %, class 1 2.5 %.'
    assert caplog.messages[2] == f'{head}field 97.5 %, forest 2.5 %, river 0 %.'
    assert caplog.messages[3].startswith('Below 5 % of the images: forest (2.5 %), river (0 %). ')
    cfg = advised_model(caplog.messages[3])['head']['loss']
    assert cfg.pop('_delete_') and cfg['class_weight'][2] == 1
    loss = MODELS.build(cfg)(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    assert torch.isfinite(loss)


def test_an_unreadable_image_of_a_class_is_named(tmp_path, caplog):
    noise_classes(tmp_path, 3, 8, field=(0, 9), forest=(0, 9))
    (tmp_path / 'forest/1.png').write_bytes(b'no image')
    check_others(labelled(tmp_path))
    assert '1 files of the train set cannot be read' in caplog.text
    with pytest.raises(ValueError, match='1 files of the val set .*forest/1.png'):
        check_others(noise_free(tmp_path), labelled(tmp_path))


def noise_free(root: Path) -> LabelledImages:
    (root / 'good.txt').write_text('field/0.png 0\n')
    return labelled(root, ann_file='good.txt')


def test_boxes_are_counted_without_the_difficult_ones(tmp_path, caplog):
    pytest.importorskip('mmdet')
    from pera_mm.downstream.detection import DIORDataset

    init_default_scope('mmdet')
    ship, hard = ('ship', 1, 1, 5, 5), ('airplane', 1, 1, 5, 5, '<difficult>1</difficult>')
    for name, boxes in (('a', [ship] * 30), ('b', [ship, hard, ('airplane', 2, 2, 9, 9)])):
        write(tmp_path / f'images/{name}.png', np.zeros((10, 20, 3)))
        (tmp_path / 'xml').mkdir(exist_ok=True)
        (tmp_path / f'xml/{name}.xml').write_text(voc_xml(*boxes))
    (tmp_path / 'ImageSets/Main').mkdir(parents=True)
    (tmp_path / 'ImageSets/Main/train.txt').write_text('a\nb\n')
    data = DIORDataset(
        splits='train', data_root=str(tmp_path), data_prefix=dict(img='images', xml='xml'),
        img_suffix='.png', metainfo=dict(classes=('ship', 'airplane')),
        pipeline=[dict(type='LoadImageFromFile', imdecode_backend='pillow'),
                  dict(type='RandomCrop', crop_size=(99, 99))])
    with caplog.at_level(logging.INFO):
        check_others(data)
    assert caplog.messages == [
        'Classes of the train set by their share of the boxes, from all 2 images: ship 96.9 %, '
        'airplane 3.12 %.']
    (tmp_path / 'images/b.png').write_bytes(b'no image')
    check_others(data)
    assert '1 files of the train set cannot be read' in caplog.text


# -- the classes -----------------------------------------------------------------------------------


class Head(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes


@pytest.mark.parametrize(('number', 'fits'), [(1, False), (2, True), (6, False)])
def test_a_head_of_another_number_of_classes_stops_the_run(root, number, fits):
    runner = Runner(root, root)
    runner.model.decode_head = Head(number)
    if fits:
        return DataCheckHook().before_train(runner)
    with pytest.raises(ValueError, match=rf'model.decode_head has num_classes={number}, and the '
                       r'data set has 2 \(field, road\): set it to 2'):
        DataCheckHook().before_train(runner)


def test_heads_are_found_in_the_models_of_all_toolboxes_and_in_configs():
    cascade = nn.Module()
    cascade.roi_head = nn.Module()
    cascade.roi_head.bbox_head = nn.ModuleList([Head(20), Head(20)])
    cascade.rpn_head = Head(1)  # of objectness
    assert heads_of(cascade) == {'roi_head.bbox_head': 20}
    cfg = dict(decode_head=dict(num_classes=6), auxiliary_head=[dict(num_classes=7)],
               head=dict(type='MAEPretrainHead'))
    assert heads_of(cfg) == dict(decode_head=6, auxiliary_head=7)


def lists(root: Path, train: str, val: str) -> list[LabelledImages]:
    """Make two sets of the images field/0.png ... with these labels."""
    noise_classes(root, len(train) + len(val), 8, field=(0, 9))
    names = iter(range(len(train) + len(val)))
    for split, labels in (('train', train), ('val', val)):
        (root / f'{split}.txt').write_text(
            ''.join(f'field/{next(names)}.png {label}\n' for label in labels))
    return [labelled(root, ann_file=f'{split}.txt') for split in ('train', 'val')]


@pytest.mark.parametrize(('train', 'val', 'head', 'fault'), [
    ('012', '012', 3, None),
    ('012', '01', 3, None),  # the classes are those of both
    ('01', '012', 3, None),
    ('012', '012', 2, 'num_classes=2, and the labels of the data are 0 to 2: set it to 3'),
    ('012', '012', 30, 'num_classes=30, and the labels of the data are 0 to 2: set it to 3'),
    ('123', '123', 3, 'none of the images has the label 0, so labels seem to count from 1: write '
                      'them from 0 to 2'),
    ('123', '123', 4, 'none of the images has the label 0'),
    ('000', '01', 2, '3 of 3 images of the train set were read and hold only the class class 0'),
])
def test_labels_without_names_are_compared_with_the_head(tmp_path, train, val, head, fault):
    model = nn.Module()
    model.head = Head(head)
    if fault is None:
        return check_others(*lists(tmp_path, train, val), model=model)
    with pytest.raises(ValueError, match=fault):
        check_others(*lists(tmp_path, train, val), model=model)


def test_other_classes_in_validation_stop_the_run(tmp_path):
    noise_classes(tmp_path / 'train', 2, 8, field=(0, 9), forest=(0, 9), river=(0, 9))
    noise_classes(tmp_path / 'val', 2, 8, field=(0, 9), river=(0, 9))  # river: 1, not 2
    train, val = labelled(tmp_path / 'train'), labelled(tmp_path / 'val')
    with pytest.raises(ValueError, match='the classes of the train set are field, forest, river, '
                       'those of the val set field, river, and a label is a place in this list'):
        check_others(train, val)
    names = dict(metainfo=dict(classes=('field', 'forest', 'river')))
    check_others(train, labelled(tmp_path / 'val', **names))


@pytest.mark.parametrize(('sample', 'found'), [
    (dict(gt_label=-1), 'a.png has the label -1, which is not a class: labels count from 0 to 1'),
    (dict(gt_label=2), 'a.png has the label 2, which'),
    (dict(instances=[dict(bbox_label=2, ignore_flag=0)]), 'a.png has the label 2, which')])
def test_a_label_that_is_not_a_class_is_named(sample, found):
    class Named(list):
        metainfo = dict(classes=('field', 'road'))

    with pytest.raises(ValueError, match=found):
        LabelCounter(Named()).add_sample(dict(sample, img_path='a.png'))
    with pytest.raises(ValueError, match=r'm.png has the label 2, .* and 255 where not labelled'):
        LabelCounter(Named()).add_mask(np.array([[0, 1, 2, 255]], np.uint8), 'm.png')


@pytest.mark.parametrize('value', [1, 0])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_masks_that_never_show_a_second_class_are_refused(root, tmp_path, value, split):
    other = tmp_path / 'other'
    write_pairs(other, 4)
    for index in range(4):
        write(other / f'masks/{index}.png', np.full((24, 32), value))
    found = 'only the class field' if value else 'no label'  # 0 is not labelled
    with pytest.raises(ValueError, match=f'4 of 4 masks of the {split} set were read and hold '
                       f'{found}, so nothing can be learned or scored'):
        check(*((other, root) if split == 'train' else (root, other)), num_loaded=2)


def test_a_rare_second_class_is_searched_for(root, caplog):
    for index in range(5):
        write(root / f'masks/{index}.png', np.full((24, 32), 2 if index == 3 else 1))
    with caplog.at_level(logging.INFO):
        check(root, num_loaded=2)  # 0 and 4, then 1, 2 and 3
    assert caplog.messages[0].endswith('from all 5 masks: field 80 %, road 20 %.')


def test_boxes_of_one_class_are_enough():
    boxes = ClassCounts('boxes', ('ship', 'airplane'), np.array([4., 0, 0]), 3, 3)
    assert not [*class_faults(dict(train=boxes), {})]


def test_a_pair_as_open_cd_lists_it_is_checked(root):
    sample = dict(img_path=[str(root / f'images/{index}.png') for index in '01'],
                  seg_map_path=str(root / 'masks/0.png'))
    heads, unreadable = read_heads(sample)
    assert list(heads) == [*sample['img_path'], sample['seg_map_path']] and not unreadable
    write(root / 'images/1.png', np.zeros((20, 32, 3)))
    with pytest.raises(ValueError, match='images/1.png is 32 x 20'):
        check_sizes(read_heads(sample)[0], None)


# -- a test alone --------------------------------------------------------------------------------


@pytest.mark.parametrize('metainfo, fits', [(None, False), (dict(classes=('a', 'b', 'c')), True)])
def test_a_test_set_without_images_of_a_class_is_not_scored_with_other_labels(tmp_path, metainfo,
                                                                               fits):
    for name in 'ac':
        write(tmp_path / f'{name}/0.png', np.zeros((8, 8, 3)))
    images = LabelledImages(data_root=str(tmp_path), pipeline=[], metainfo=metainfo)
    assert images.get_data_info(1)['gt_label'] == (2 if fits else 1)  # of class c
    hook, runner = DataCheckHook(), SimpleNamespace(test_dataloader=SimpleNamespace(dataset=images))
    hook.before_test(runner)  # a checkpoint that names no classes says nothing
    hook.after_load_checkpoint(runner, dict(meta=dict(dataset_meta=dict(classes=['a', 'b', 'c']))))
    if fits:
        hook.before_test(runner)
        return
    with pytest.raises(ValueError, match='trained with the classes a, b, c, and the test set has '
                                         'a, c; a label is a place'):
        hook.before_test(runner)


# -- several ranks -------------------------------------------------------------------------------


def _note_the_verdict(root: Path) -> None:
    import os
    runner = Runner(root)
    if os.environ['RANK'] == '1':
        runner.train_dataloader = None  # the second rank looks at nothing
    try:
        DataCheckHook().before_train(runner)
    except ValueError as error:
        (root / os.environ['RANK']).write_text(str(error))


@pytest.mark.slow
@pytest.mark.dist
def test_both_ranks_hear_the_verdict(root):
    write(root / 'masks/2.png', np.full((24, 32), 7))
    assert on_ranks(_note_the_verdict, root) == [0, 0]
    first, second = ((root / rank).read_text() for rank in '01')
    assert first == second
    assert 'masks/2.png has the label 7' in first
