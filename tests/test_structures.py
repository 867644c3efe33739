"""The crops survive the ways by which MMEngine moves a batch."""

import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader
from torch.utils.data._utils import pin_memory

from pera_mm.structures import CropGroup, CropViews


def sample(number: int, learnable: int = 3) -> dict:
    group = CropGroup(
        pixels=torch.full((1, 2, 32, 32, 3), number, dtype=torch.uint8),
        student=torch.arange(2 * 3).reshape(2, 3) + number,
        learnable=torch.arange(2 * learnable).reshape(2, learnable),
        teacher=torch.arange(2 * 10).reshape(2, 10))
    element = BaseDataElement(metainfo=dict(sample_idx=number))
    return dict(inputs={'global': group, 'local': group}, data_samples=element)


def test_collate_puts_the_images_in_front():
    batch = default_collate([sample(0), sample(7), sample(9)])
    assert set(batch['inputs']) == {'global', 'local'}
    group = batch['inputs']['global']
    assert type(group) is CropGroup
    assert group.pixels.shape == (3, 1, 2, 32, 32, 3) and group.pixels.dtype == torch.uint8
    assert group.student.shape == (3, 2, 3) and group.student.dtype == torch.int64
    assert group.teacher.shape == (3, 2, 10)
    assert group.pixels[:, 0, 0, 0, 0, 0].tolist() == [0, 7, 9]
    assert group.student[1].tolist() == [[7, 8, 9], [10, 11, 12]]
    assert [element.sample_idx for element in batch['data_samples']] == [0, 7, 9]


def test_collate_keeps_an_empty_part():
    group = default_collate([sample(0, learnable=0), sample(1, learnable=0)])['inputs']['global']
    assert group.learnable.shape == (2, 2, 0) and group.learnable.dtype == torch.int64


def test_loader_workers_carry_the_structure():
    loader = DataLoader([sample(i) for i in range(4)], batch_size=2, num_workers=1,
                        collate_fn=default_collate)
    batches = list(loader)
    assert all(type(batch['inputs']['local']) is CropGroup for batch in batches)
    assert batches[1]['inputs']['local'].pixels[:, 0, 0, 0, 0, 0].tolist() == [2, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='pinning memory needs a GPU')
def test_pinned_memory_keeps_the_structure():
    loader = DataLoader([sample(i) for i in range(2)], batch_size=2, collate_fn=default_collate,
                        pin_memory=True)
    group = next(iter(loader))['inputs']['global']
    assert type(group) is CropGroup and all(part.is_pinned() for part in group)


def test_torch_pin_memory_rebuilds_the_named_tuple():
    # without a GPU: what pin_memory does to a container, with a stand-in for the tensor itself
    class Pinned:

        def __init__(self, value):
            self.value = value

        def pin_memory(self, device=None):
            return ('pinned', self.value)

    pinned = pin_memory.pin_memory({'global': CropGroup(*(Pinned(i) for i in range(4)))})
    assert pinned == {'global': CropGroup(*(('pinned', i) for i in range(4)))}
    assert type(pinned['global']) is CropGroup


def test_cast_data_moves_every_part():
    batch = default_collate([sample(0), sample(1)])
    preprocessor = BaseDataPreprocessor()
    preprocessor._device = torch.device('meta')
    moved = preprocessor.cast_data(batch)['inputs']['global']
    assert type(moved) is CropGroup
    assert {part.device.type for part in moved} == {'meta'}


def test_views_are_named_as_the_model_reads_them():
    assert CropViews._fields == ('student_view', 'teacher_view', 'student', 'learnable', 'teacher')
    assert CropGroup._fields == ('pixels', 'student', 'learnable', 'teacher')
