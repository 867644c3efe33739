"""Broken data sets are refused before the first step, by name, on every rank."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset
from PIL import Image

import pera_mm  # noqa: F401
from pera_mm.downstream import data_check
from pera_mm.downstream.data_check import DataCheckHook
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
            val_loop=val, model=SimpleNamespace(test_cfg=dict(crop_size=(64, 64), **test_cfg)),
            logger=logging.getLogger('check'))


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


def test_good_data_pass_without_a_word(root, caplog):
    with caplog.at_level(logging.INFO):
        check(root, root)
    assert not caplog.records


def test_an_unknown_label_is_named_with_what_is_allowed(root):
    mask = np.ones((24, 32))
    mask[3, 4] = 7
    write(root / 'masks/3.png', mask)
    with pytest.raises(ValueError, match=r'masks/3.png has the label 7; allowed are 0 for not '
                       'labelled, the classes 1 to 2, and 255'):
        check(root)


def test_only_an_even_sample_is_loaded(root):
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
        data_check.check_sizes(sample, None)


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


def test_a_missing_mask_is_named(root):
    (root / 'masks/2.png').unlink()
    with pytest.raises(ValueError, match=r'masks/2.png is missing, which belongs to .*2.png'):
        check(root)


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
    (root / 'masks/2.png').unlink()
    assert on_ranks(_note_the_verdict, root) == [0, 0]
    first, second = ((root / rank).read_text() for rank in '01')
    assert first == second
    assert 'masks/2.png is missing' in first
