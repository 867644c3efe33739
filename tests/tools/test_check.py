"""What tools/data/check.py finds on small real files in all four tasks and in pre-training."""

import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from made_data import noise_classes, voc_xml
from mmengine.config import Config
from PIL import Image

import pera_mm  # noqa: F401
from pera_mm.datasets.reading import read_image
from pera_mm.downstream.contact_sheet import COLUMNS, GAP, SIDE, Picture, color_of, drawn
from pera_mm.downstream.data_report import Report, Settings, check_data
from pera_mm.prepare.jobs import quiet

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools/data/check.py'
PIPELINE = [dict(type='pera_mm.LoadRGB'), dict(type='pera_mm.LoadMask')]


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)
    return path


def write_pairs(root: Path, names: str, seed: int) -> None:
    """Write images of noise and masks whose left quarter is a road."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((24, 32))
    mask[:, :8] = 1
    for name in names:
        write(root / f'images/{name}.png', rng.integers(0, 255, (24, 32, 3)))
        write(root / f'masks/{name}.png', mask)


def segmentation(root: Path, num_classes: int = 2, **options) -> Config:
    def loader(split: str, test_mode: bool) -> dict:
        return dict(dataset=dict(
            type='pera_mm.SegmentationDataset', metainfo=dict(classes=('field', 'road')),
            data_root=str(root / split), pipeline=PIPELINE, test_mode=test_mode,
            data_prefix=dict(img_path='images', seg_map_path='masks'), **options))

    return Config(dict(
        default_scope='mmseg', custom_imports=dict(imports=['pera_mm.downstream.segmentation']),
        model=dict(decode_head=dict(num_classes=num_classes)),
        train_dataloader=loader('train', False), val_dataloader=loader('val', True),
        test_dataloader=loader('val', True)))


def check(cfg: Config, images: int | None = None) -> Report:
    import pera_mm.downstream.segmentation  # noqa: F401

    return check_data(cfg, Settings(images, 2, quiet))


@pytest.fixture
def root(tmp_path) -> Path:
    write_pairs(tmp_path / 'train', 'abcdef', 1)
    write_pairs(tmp_path / 'val', 'xyz', 2)
    return tmp_path


def test_good_data_are_counted_and_shown(root):
    report = check(segmentation(root))
    assert not report.faults and not report.notes and not report.duplicates
    train, val = report.splits
    assert (train.name, val.name) == ('train', 'val and test')  # which are one
    assert (train.samples, train.decoded, val.samples) == (6, 6, 3)
    assert train.sizes == {(32, 24): 12} and train.kinds == {'PNG RGB': 6, 'PNG L': 6}
    assert train.counts.counts.tolist() == [6 * 24 * 24, 6 * 24 * 8, 0]
    assert [picture.caption for picture in val.pictures] == [
        (f'{name}.png', 'field 75 %, road 25 %') for name in 'xyz']


def test_a_part_is_decoded_evenly_and_stands_for_all(root):
    report = check(segmentation(root), images=2)
    train = report.splits[0]
    assert train.decoded == 2 and train.sizes == {(32, 24): 12}
    assert [picture.caption[0] for picture in train.pictures] == ['a.png', 'f.png']
    assert train.counts.counts.tolist() == [6 * 24 * 24, 6 * 24 * 8, 0]


def test_what_was_planted_is_found(root):
    shutil.copy(root / 'train/images/b.png', root / 'val/images/y.png')  # a duplicate
    (root / 'train/images/c.png').write_bytes(b'no image')
    write(root / 'train/images/alone.png', np.zeros((24, 32, 3)))
    write(root / 'train/masks/d.png', np.zeros((24, 30)))
    for name in 'ef':
        write(root / f'train/masks/{name}.png', np.full((24, 32), 2))
    report = check(segmentation(root))
    orphan, sizes, labels, unreadable, duplicate = report.faults
    assert orphan.startswith('train: 1 of 7 samples have no mask in') and 'alone' in orphan
    assert 'images/d.png is 32 x 24' in sizes and 'masks/d.png is 30 x 24' in sizes
    assert 'masks/d.png' in labels or 'masks/e.png has the label 2' in labels
    assert labels.endswith('(and 2 more samples).')
    assert unreadable.startswith('1 files of the train set cannot be read, such as ')
    assert 'images/c.png' in unreadable and unreadable.endswith('other samples take their places.')
    assert duplicate == (
        f'1 images of the val and test set have the bytes of one of the train set, so the score '
        f'is too good: {root}/val/images/y.png ({root}/train/images/b.png); take them out of one '
        'of the two.')
    assert report.duplicates == {'val and test': 1}
    assert report.notes == [f'no sample of any split uses 1 files in {root}/train/images: '
                            'alone.png.']


def test_a_test_set_that_cannot_be_built_is_one_fault_and_the_others_are_checked(root):
    (root / 'val/masks/y.png').unlink()
    report = check(segmentation(root))
    fault, = report.faults
    assert fault.startswith('val and test: 1 of 3 samples have no mask in')
    assert [split.samples for split in report.splits] == [6, 0]


@pytest.mark.parametrize('number', [1, 3])
def test_a_head_of_another_number_of_classes_is_a_fault(root, number):
    fault, = check(segmentation(root, number)).faults
    assert fault == (f'model.decode_head has num_classes={number}, and the data set has 2 (field, '
                     'road): set it to 2, or correct metainfo.classes of the data set.')


def test_masks_of_one_class_are_a_fault(root):
    for split, names in (('train', 'abcdef'), ('val', 'xyz')):
        for name in names:
            write(root / f'{split}/masks/{name}.png', np.zeros((24, 32)))
    faults = check(segmentation(root)).faults
    assert [fault.partition(',')[0] for fault in faults] == [
        '6 of 6 masks of the train set were read and hold only the class field',
        '3 of 3 masks of the val and test set were read and hold only the class field']


def test_one_data_set_for_training_and_test_is_a_fault(root):
    cfg = segmentation(root)
    cfg.val_dataloader = cfg.train_dataloader
    assert 'train and val have the same data set, so the score is that of the training: give ' \
           'each its own in the config.' in check(cfg).faults


def test_pairs_are_shown_with_both_dates(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32))
    mask[8:24, 8:24] = 255
    for name in 'ab':
        for date in 'AB':
            write(tmp_path / f'{date}/{name}.png', rng.integers(0, 255, (32, 32, 3)))
        write(tmp_path / f'label/{name}.png', mask)
    import pera_mm.downstream.change  # noqa: F401

    cfg = Config(dict(default_scope='mmseg', model=dict(decode_head=dict(num_classes=5)),
                      train_dataloader=dict(dataset=dict(
                          type='pera_mm.ChangePairs', data_root=str(tmp_path),
                          data_prefix=dict(img_path='A', img_path2='B', seg_map_path='label'),
                          pipeline=[dict(type='pera_mm.LoadPair')]))))
    report = check(cfg)
    fault, = report.faults
    assert 'num_classes=5, and the data set has 2 (unchanged, changed)' in fault
    split, = report.splits
    assert split.sizes == {(32, 32): 6} and len(split.images) == 4
    picture = split.pictures[0]
    assert len(picture.dates) == 2 and picture.dates[0].shape == (SIDE, SIDE, 3)
    scaled = np.kron(read_image(str(tmp_path / 'B/a.png')), np.ones((8, 8, 1), np.uint8))
    assert (picture.dates[1] == scaled).all()
    one = drawn(picture, picture.dates[1])
    assert (one[64, 64] == color_of(1)).all()  # the outline
    assert (one[80:90, 80:90] == scaled[80:90, 80:90]).all()  # and nothing within


def classification(root: Path, num_classes: int, **dataset) -> Config:
    from pera_mm.datasets.labelled import LabelledImages  # noqa: F401

    return Config(dict(
        default_scope='mmpretrain', model=dict(head=dict(num_classes=num_classes)),
        **{f'{split}_dataloader': dict(dataset=dict(
            type='pera_mm.LabelledImages', data_root=str(root), ann_file=f'{split}.txt',
            pipeline=[dict(type='pera_mm.LoadRGB')], **dataset)) for split in ('train', 'val')}))


@pytest.mark.parametrize(('first', 'num_classes', 'expected'), [
    (0, 2, []),
    (0, 3, ['model.head has num_classes=3, and the labels of the data are 0 to 1: set it to 2, or, '
            'if some classes have no image here, name all of them in '
            'metainfo=dict(classes=(...)).']),
    (1, 2, ['none of the images has the label 0, so labels seem to count from 1: write them from '
            '0 to 1; if the first class really has none, name all classes in '
            'metainfo=dict(classes=(...)).'])])
def test_labels_of_a_list_and_the_head(tmp_path, first, num_classes, expected):
    noise_classes(tmp_path, 3, 8, field=(0, 99), forest=(99, 199))
    lines = [f'{name}/{index}.png {label + first}\n'
             for label, name in enumerate(('field', 'forest')) for index in range(3)]
    (tmp_path / 'train.txt').write_text(''.join(lines[::2]))
    (tmp_path / 'val.txt').write_text(''.join(lines[1::2]))
    report = check(classification(tmp_path, num_classes))
    assert report.faults == expected
    assert report.splits[0].pictures[0].caption == ('0.png', f'class {first}')


def test_boxes_are_counted_and_drawn(tmp_path):
    pytest.importorskip('mmdet')
    import pera_mm.downstream.detection  # noqa: F401

    for name, boxes in (('a', [('ship', 5, 3, 12, 8)] * 2), ('b', [('airplane', 1, 1, 5, 5)])):
        write(tmp_path / f'images/{name}.png', np.zeros((10, 20, 3)))
        (tmp_path / 'xml').mkdir(exist_ok=True)
        (tmp_path / f'xml/{name}.xml').write_text(voc_xml(*boxes))
    write(tmp_path / 'images/c.png', np.zeros((10, 21, 3)))  # its XML says 20 x 10
    (tmp_path / 'xml/c.xml').write_text(voc_xml(('ship', 1, 1, 5, 5)))
    write(tmp_path / 'images/unlisted.png', np.zeros((10, 20, 3)))
    (tmp_path / 'ImageSets/Main').mkdir(parents=True)
    (tmp_path / 'ImageSets/Main/train.txt').write_text('a\nb\nc\n')
    cfg = Config(dict(
        default_scope='mmdet', model=dict(roi_head=dict(bbox_head=dict(num_classes=3))),
        train_dataloader=dict(dataset=dict(
            type='pera_mm.DIORDataset', splits='train', data_root=str(tmp_path),
            data_prefix=dict(img='images', xml='xml'),
            metainfo=dict(classes=('ship', 'airplane')),
            pipeline=[dict(type='pera_mm.LoadRGB')]))))
    report = check(cfg)
    unreadable, head = report.faults
    assert 'images/c.png (the image has 21 x 10 pixels, its XML says 20 x 10)' in unreadable
    assert head.startswith('model.roi_head.bbox_head has num_classes=3, and the data set has 2')
    assert report.notes == [f'no sample of any split uses 1 files in {tmp_path}/images: '
                            'unlisted.png.']
    split, = report.splits
    assert split.counts.counts.tolist() == [3, 1, 0]
    assert [picture.caption for picture in split.pictures] == [
        ('a.png', '2 ship'), ('b.png', '1 airplane'), ('c.png', '1 ship')]
    scale = SIDE / 20
    picture = drawn(split.pictures[0], split.pictures[0].dates[0])
    left, lower = round(4 * scale) - 1, round(8 * scale)
    assert (picture[lower, left:left + 9] == color_of(0)).all()


def test_what_is_not_labelled_is_striped_and_a_class_covers_its_pixels():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    image = np.full((64, 64, 3), 100, np.uint8)
    found = drawn(Picture([image], ('', ''), mask), image)
    field = np.round(.6 * 100 + .4 * np.array(color_of(0)))
    assert (found[4, 4] == field).all()
    assert {tuple(color) for color in found[:, 32:].reshape(-1, 3)} == {(255,) * 3, (50,) * 3}
    assert (image == 100).all()


def test_images_without_labels_are_counted(tmp_path):
    noise_classes(tmp_path, 3, 8, field=(0, 99))
    (tmp_path / 'field/1.png').write_bytes(b'no image')
    report = check(Config(dict(train_dataloader=dict(dataset=dict(
        type='pera_mm.UnlabeledImages', source=str(tmp_path), pipeline=[])))))
    fault, = report.faults
    assert fault.startswith('1 files of the train set cannot be read') and 'field/1.png' in fault
    split, = report.splits
    assert split.samples == 3 and split.sizes == {(8, 8): 2} and split.kinds == {'PNG RGB': 2}


def test_the_command_prints_tables_and_writes_the_sheet(root, monkeypatch, capsys):
    config = root / 'mine.py'
    config.write_text(segmentation(root).pretty_text)
    monkeypatch.setenv('COLUMNS', '200')
    monkeypatch.setattr(sys, 'argv', [str(TOOL), str(config), '--work-dir', str(root / 'out')])
    runpy.run_path(str(TOOL), run_name='__main__')
    out = capsys.readouterr().out
    assert '32 x 24: 12' in out and 'road' in out and '25 %' in out
    assert out.endswith('Nothing is wrong.\n')
    with Image.open(root / 'out/check.png') as sheet:
        assert sheet.width == COLUMNS * (SIDE + GAP) + GAP
    (root / 'train/images/c.png').write_bytes(b'no image')
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert ended.value.code == 1
    assert 'Wrong: 1 files of the train set cannot be read' in capsys.readouterr().out


def test_a_config_without_data_is_one_sentence():
    with pytest.raises(ValueError, match='has no data set: give a config with'):
        check(Config(dict(model=dict())))
