"""The split that keeps neighbors in the listing together."""

import pytest
import torch

from pera_mm.evaluation.block_split import block_split, index_blocks


def test_blocks_of_ten_alternate_as_in_rsscn7():
    labels = torch.arange(7).repeat_interleave(200)
    split = block_split(labels)
    assert len(split.train) == len(split.test) == 700
    first = split.test[split.test < 200].tolist()
    assert first == [i for i in range(200) if i // 10 % 2]  # 10-19, 30-39 ...
    assert sorted([*split.train.tolist(), *split.test.tolist()]) == list(range(1400))


def test_no_block_is_in_both_parts_and_blocks_of_classes_differ():
    labels = torch.tensor([0] * 23 + [1] * 8 + [2] * 2)
    numbers = index_blocks(labels)
    # 23 images: quarters of 5, and what is left; 8: quarters of 2; 2: single ones
    assert numbers.tolist() == [i // 5 for i in range(23)] + [5, 5, 6, 6, 7, 7, 8, 8] + [9, 10]
    split = block_split(labels)
    assert not set(numbers[split.train].tolist()) & set(numbers[split.test].tolist())
    assert set(labels[split.train].tolist()) == set(labels[split.test].tolist()) == {0, 1, 2}


def test_classes_may_be_mixed_in_the_listing():
    labels = torch.tensor([0, 1] * 8)
    split = block_split(labels)
    assert split.test.tolist() == [4, 5, 6, 7, 12, 13, 14, 15]


def test_every_fourth_block():
    split = block_split(torch.zeros(40, dtype=torch.int64), every=4)
    assert split.test.tolist() == list(range(30, 40))


def test_too_few_images_for_a_split_are_named():
    with pytest.raises(ValueError, match='class number 1 has 1 image.*needs at least 2'):
        block_split(torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match='class number 0 has 3 image'):
        block_split(torch.tensor([0, 0, 0]), every=4)
    with pytest.raises(ValueError, match='at least 2, got 1'):
        block_split(torch.tensor([0, 0]), every=1)
