"""The crops survive the ways by which MMEngine moves a batch."""

import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader
from torch.utils.data._utils import pin_memory

from pera_mm.patches import PatchSplit
from pera_mm.structures import GROUPS, CropGroup, CropViews


def sample(number: int, learnable: int = 3, masked: int = 16) -> dict:
    group = CropGroup(
        pixels=torch.full((1, 2, 32, 32, 3), number, dtype=torch.uint8),
        split=PatchSplit(
            student=torch.arange(2 * 3).reshape(2, 3) + number,
            learnable=torch.arange(2 * learnable).reshape(2, learnable),
            teacher=torch.arange(2 * 10).reshape(2, 10),
            masked=torch.arange(2 * masked).reshape(2, masked) % 3 == number % 3))
    element = BaseDataElement(metainfo=dict(sample_idx=number))
    return dict(inputs={'global': group, 'local': group}, data_samples=element)


def test_collate_puts_the_images_in_front():
    batch = default_collate([sample(0), sample(7), sample(9)])
    assert set(batch['inputs']) == {'global', 'local'}
    group = batch['inputs']['global']
    assert type(group) is CropGroup and type(group.split) is PatchSplit
    assert group.pixels.shape == (3, 1, 2, 32, 32, 3) and group.pixels.dtype == torch.uint8
    assert group.split.student.shape == (3, 2, 3) and group.split.student.dtype == torch.int64
    assert group.split.teacher.shape == (3, 2, 10)
    assert group.split.masked.shape == (3, 2, 16) and group.split.masked.dtype == torch.bool
    assert group.split.counts() == (3, 3, 10)
    assert group.pixels[:, 0, 0, 0, 0, 0].tolist() == [0, 7, 9]
    assert group.split.student[1].tolist() == [[7, 8, 9], [10, 11, 12]]
    assert [element.sample_idx for element in batch['data_samples']] == [0, 7, 9]


def test_collate_keeps_an_empty_part():
    split = default_collate([sample(i, learnable=0, masked=0)
                             for i in range(2)])['inputs']['global'].split
    assert split.learnable.shape == (2, 2, 0) and split.learnable.dtype == torch.int64
    assert split.masked.shape == (2, 2, 0) and split.masked.dtype == torch.bool


def test_loader_workers_carry_the_structure():
    loader = DataLoader([sample(i) for i in range(4)], batch_size=2, num_workers=1,
                        collate_fn=default_collate)
    batches = list(loader)
    for group in (batch['inputs']['local'] for batch in batches):
        assert type(group) is CropGroup and type(group.split) is PatchSplit
    assert batches[1]['inputs']['local'].pixels[:, 0, 0, 0, 0, 0].tolist() == [2, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='pinning memory needs a GPU')
def test_pinned_memory_keeps_the_structure():
    loader = DataLoader([sample(i) for i in range(2)], batch_size=2, collate_fn=default_collate,
                        pin_memory=True)
    group = next(iter(loader))['inputs']['global']
    assert type(group) is CropGroup and type(group.split) is PatchSplit
    assert group.pixels.is_pinned() and all(part.is_pinned() for part in group.split)


def test_torch_pin_memory_rebuilds_the_named_tuple():
    # without a GPU: what pin_memory does to a container, with a stand-in for the tensor itself
    class Pinned:

        def __init__(self, value):
            self.value = value

        def pin_memory(self, device=None):
            return ('pinned', self.value)

    given = CropGroup(Pinned(0), PatchSplit(*(Pinned(i) for i in range(1, 5))))
    pinned = pin_memory.pin_memory({'global': given})
    expected = CropGroup(('pinned', 0), PatchSplit(*(('pinned', i) for i in range(1, 5))))
    assert pinned == {'global': expected}
    assert type(pinned['global']) is CropGroup and type(pinned['global'].split) is PatchSplit


def test_cast_data_moves_every_part():
    batch = default_collate([sample(0), sample(1)])
    preprocessor = BaseDataPreprocessor()
    preprocessor._device = torch.device('meta')
    moved = preprocessor.cast_data(batch)['inputs']['global']
    assert type(moved) is CropGroup and type(moved.split) is PatchSplit
    assert {part.device.type for part in (moved.pixels, *moved.split)} == {'meta'}


def test_views_are_named_as_the_model_reads_them():
    assert CropViews._fields == ('student_view', 'teacher_view', 'split')
    assert CropGroup._fields == ('pixels', 'split')
    assert PatchSplit._fields == ('student', 'learnable', 'teacher', 'masked')
    assert GROUPS == ('global', 'local')  # the models take the global crops first
