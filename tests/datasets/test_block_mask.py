"""BlockMask: half of the global crops lose some rectangles of patches, the rest loses none."""

import numpy as np
import pytest
import torch

from pera_mm.datasets.transforms.block_mask import BlockMask, hide_rectangles
from pera_mm.registry import TRANSFORMS

DINOV2 = {'global': (2, 448), 'local': (8, 96)}


def mask(sizes: dict[str, tuple[int, int]] = DINOV2, seed: int = 0, **kwargs) -> dict:
    """``sizes``: group name to (number, size)."""
    crops = {name: np.zeros((1, number, size, size, 3), np.uint8)
             for name, (number, size) in sizes.items()}
    results = dict(crops=crops, rng=np.random.default_rng(seed))
    return BlockMask(**kwargs).transform(results)['split']


def test_both_networks_see_every_patch_and_local_crops_have_no_mask():
    split = mask()
    for name, patches in (('global', 784), ('local', 36)):
        everything = torch.arange(patches).expand(DINOV2[name][0], -1)
        assert torch.equal(split[name].student, everything)
        assert torch.equal(split[name].teacher, everything)
        assert split[name].masked.dtype == torch.bool
        assert split[name].masked.shape == everything.shape
        assert split[name].counts() == (patches, 0, patches)
    assert not split['local'].masked.any()


@pytest.mark.parametrize('number, masked', [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_half_of_the_global_crops_rounded_up_are_masked(number, masked):
    for seed in range(20):
        hidden = mask({'global': (number, 112)}, seed)['global'].masked
        assert hidden.any(dim=1).sum() == masked


def test_either_crop_can_be_the_masked_one():
    firsts = [bool(mask(seed=seed)['global'].masked[0].any()) for seed in range(60)]
    assert 15 < sum(firsts) < 45


def test_hidden_share_is_at_most_the_drawn_one_and_close_to_it():
    shares = np.array([mask(seed=seed)['global'].masked.sum(1).max() / 784
                       for seed in range(200)])
    assert 0.05 < shares.min() and shares.max() <= 0.5
    # uniform in 0.1 to 0.5 has the mean 0.3; the last patches do not always find a rectangle
    assert 0.25 < shares.mean() < 0.31


@pytest.mark.parametrize('budget', [1, 2, 3, 5, 20, 100])
def test_never_more_than_asked_and_never_nothing(budget):
    for seed in range(50):
        hidden = np.zeros((12, 9), bool)
        hide_rectangles(hidden, budget, np.random.default_rng(seed))
        assert 1 <= hidden.sum() <= budget


def test_a_single_patch_can_be_hidden_on_the_smallest_grid():
    hidden = np.zeros((1, 1), bool)  # no rectangle is smaller than it
    hide_rectangles(hidden, 1, np.random.default_rng(0))
    assert hidden.all()


def test_what_is_hidden_is_made_of_rectangles():
    """Of noise of the same share hardly any hidden patch has hidden patches all around."""
    inner, hidden = 0, 0
    for seed in range(50):
        grid = mask(seed=seed)['global'].masked.unflatten(1, (28, 28))
        grid = torch.nn.functional.pad(grid, (1, 1, 1, 1))
        around = torch.stack([grid.roll((y, x), (1, 2)) for y in (-1, 0, 1) for x in (-1, 0, 1)])
        inner, hidden = inner + int(around.all(0).sum()), hidden + int(grid.sum())
    assert inner > 0.3 * hidden  # noise of share 0.3: 0.3 ** 8 = 0.007 %


def test_mask_follows_the_rng_only():
    torch.manual_seed(1)
    first = mask(seed=3)['global'].masked
    torch.manual_seed(2)
    assert torch.equal(first, mask(seed=3)['global'].masked)
    assert not torch.equal(first, mask(seed=4)['global'].masked)


@pytest.mark.parametrize('kwargs, message', [
    (dict(patch_size=0), 'patch_size must be >= 1 pixel, got 0'),
    (dict(ratio=(0.5, 0.1)), r'ratio must be two shares, 0 < smallest <= largest < 1, got'),
    (dict(ratio=(0, 0.1)), 'ratio must be two shares'),
    (dict(ratio=(0.1, 1)), 'ratio must be two shares'),
    (dict(ratio=(0.1, )), 'ratio must be two shares'),
])
def test_bad_arguments_fail_at_build(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(dict(type='pera_mm.BlockMask', **kwargs))


def test_a_crop_the_patch_does_not_divide_is_named():
    with pytest.raises(ValueError, match='local crops of 96 pixels: .* 96 is not a multiple of the '
                                         'patch size 14; take 84 or 98 instead'):
        mask(patch_size=14)
