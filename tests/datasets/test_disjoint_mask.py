"""DisjointMask: every patch of every crop has exactly one role, drawn from the rng."""

import numpy as np
import pytest
import torch

from pera_mm.datasets.transforms.disjoint_mask import DisjointMask
from pera_mm.registry import TRANSFORMS


def mask(sizes: dict[str, tuple[int, int]], seed: int = 0, **kwargs) -> dict:
    """``sizes``: group name to (number, size)."""
    crops = {name: np.zeros((1, number, size, size, 3), np.uint8)
             for name, (number, size) in sizes.items()}
    results = dict(crops=crops, rng=np.random.default_rng(seed))
    return DisjointMask(**kwargs).transform(results)['split']


PERA = {'global': (2, 448), 'local': (8, 96)}


def test_default_counts_are_the_reference_configs():
    split = mask(PERA)
    assert [list(part.shape) for part in split['global']] == [[2, 157], [2, 157], [2, 470], [2, 0]]
    assert [list(part.shape) for part in split['local']] == [[8, 7], [8, 7], [8, 22], [8, 0]]
    for group in split.values():
        assert [part.dtype for part in group] == [torch.int64] * 3 + [torch.bool]


@pytest.mark.parametrize('kwargs, sizes, counts', [
    (dict(student=0.3, learnable=0.2, teacher=0.5), PERA, {'global': (235, 157, 392),
                                                           'local': (11, 7, 18)}),
    (dict(patch_size=14), {'global': (2, 448), 'local': (8, 98)}, {'global': (205, 205, 614),
                                                                   'local': (10, 10, 29)}),
    (dict(student=0.4, learnable=0, teacher=0.6), PERA, {'global': (314, 0, 470),
                                                         'local': (14, 0, 22)}),
])
def test_counts_of_tables_12_and_13(kwargs, sizes, counts):
    split = mask(sizes, **kwargs)
    assert {name: group.counts() for name, group in split.items()} == counts


def test_each_patch_has_one_role_and_crops_differ():
    for name, group in mask(PERA).items():
        number, size = PERA[name]
        everything = torch.cat(group[:3], dim=1).sort(dim=1).values
        assert torch.equal(everything, torch.arange((size // 16)**2).expand(number, -1))
        assert not torch.equal(group.student[0], group.student[1])


def test_mask_follows_the_rng_only():
    torch.manual_seed(1)
    first = mask(PERA, seed=3)
    torch.manual_seed(2)
    again, other = mask(PERA, seed=3), mask(PERA, seed=4)
    assert torch.equal(first['global'].student, again['global'].student)
    assert not torch.equal(first['global'].student, other['global'].student)


def test_without_the_mask_both_networks_see_every_patch():
    split = mask(PERA, disjoint=False)['local']
    assert torch.equal(split.student, torch.arange(36).expand(8, -1))
    assert torch.equal(split.teacher, split.student) and split.learnable.shape == (8, 0)
    assert split.masked.shape == (8, 0) and split.masked.dtype == torch.bool


@pytest.mark.parametrize('kwargs, message', [
    (dict(student=0.3), r'must be >= 0 and sum to 1, got student 0.3, .* \(sum 1.1\)'),
    (dict(student=0.4, learnable=0.6, teacher=0), 'leave the teacher part .* empty'),
    (dict(student=-0.2, learnable=0.6), 'must be >= 0'),
    (dict(patch_size=0), 'patch_size must be >= 1 pixel, got 0'),
])
def test_bad_shares_fail_at_build(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(dict(type='pera_mm.DisjointMask', **kwargs))


def test_a_crop_the_patch_does_not_divide_is_named():
    with pytest.raises(ValueError, match='local crops of 96 pixels: .* 96 is not a multiple of the '
                                         'patch size 14; take 84 or 98 instead'):
        mask({'global': (2, 448), 'local': (8, 96)}, patch_size=14)


def test_a_crop_too_small_for_the_shares_is_named():
    with pytest.raises(ValueError, match='local crops of 16 pixels: .* of 1 patches empty'):
        mask({'local': (8, 16)})
