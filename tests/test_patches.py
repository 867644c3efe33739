"""Equations 1-3: every patch has exactly one role."""

import pytest
import torch
from reference import paper

from pera_mm.patches import (
    PatchCounts,
    flatten_patches,
    gather_patches,
    patch_grid,
    patchify,
    split_counts,
    split_patches,
    unpatchify,
    whole_crop,
)

TABLE_13 = [(0.3, 0.2, 0.5), (0.2, 0.3, 0.5), (0.2, 0.2, 0.6), (0.3, 0.1, 0.6)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(rows: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 3, height, width, generator=generator(seed))


@pytest.mark.parametrize(('num_patches', 'ratios', 'counts'), [
    (784, (0.2, 0.2, 0.6), (157, 157, 470)),
    (36, (0.2, 0.2, 0.6), (7, 7, 22)),
    (784, (0.3, 0.2, 0.5), (235, 157, 392)),
    (36, (0.3, 0.2, 0.5), (11, 7, 18)),
    (784, (0.2, 0.3, 0.5), (157, 235, 392)),
    (784, (0.3, 0.1, 0.6), (235, 79, 470)),
    (1024, (0.2, 0.2, 0.6), (205, 205, 614)),
    (3136, (0.2, 0.2, 0.6), (627, 627, 1882)),
    (36, (0.4, 0., 0.6), (14, 0, 22)),
])
def test_counts_as_the_reference(num_patches, ratios, counts):
    assert split_counts(num_patches, *ratios) == counts


@pytest.mark.parametrize('ratios', TABLE_13)
@pytest.mark.parametrize('num_patches', [16, 36, 49, 144, 784, 1024, 3136])
def test_counts_as_the_oracle(num_patches, ratios):
    student, learnable, teacher = ratios
    counts = split_counts(num_patches, *ratios)
    assert counts == paper.split_counts(num_patches, student, teacher)
    assert sum(counts) == num_patches


@pytest.mark.parametrize('ratios', TABLE_13)
def test_every_patch_has_exactly_one_role(ratios):
    counts = split_counts(36, *ratios)
    split = split_patches(50, counts, generator())
    assert [part.shape[1] for part in split] == [*counts, 0] and split.counts() == counts
    everything = torch.cat(split[:3], dim=1).sort(dim=1).values
    assert torch.equal(everything, torch.arange(36).expand(50, -1))


def test_parts_keep_raster_order():
    for part in split_patches(20, PatchCounts(7, 7, 22), generator())[:3]:
        assert part.dtype == torch.int64
        assert (part.diff(dim=1) > 0).all()


def test_same_seed_same_mask_and_two_crops_differ():
    counts = PatchCounts(157, 157, 470)
    first, second = (split_patches(3, counts, generator(5)) for _ in range(2))
    for a, b in zip(first[:3], second[:3]):
        assert torch.equal(a, b)
        assert not torch.equal(a[0], a[1]) and not torch.equal(a[1], a[2])
    other = split_patches(3, counts, generator(6))
    assert not torch.equal(first.student, other.student)


def test_every_patch_takes_every_role_in_its_share():
    counts = PatchCounts(7, 7, 22)
    split = split_patches(4000, counts, generator())
    for part, count in zip(split, counts):
        share = torch.bincount(part.flatten(), minlength=36) / 4000
        # a Bernoulli share over 4000 crops has std <= .008: 5 of them
        assert (share - count / 36).abs().max() < 0.04


def test_whole_crop_gives_everything_to_both_networks():
    split = whole_crop(3, 9)
    assert torch.equal(split.student, torch.arange(9).expand(3, -1))
    assert torch.equal(split.teacher, split.student)
    assert split.learnable.shape == (3, 0) and split.learnable.dtype == torch.int64
    assert split.masked.shape == (3, 0) and split.masked.dtype == torch.bool
    assert split.counts() == PatchCounts(student=9, learnable=0, teacher=9)


@pytest.mark.parametrize(('ratios', 'words'), [
    ((0.3, 0.2, 0.6), ['sum to 1', 'student 0.3', 'teacher 0.6', '1.1']),
    ((0.5, -0.1, 0.6), ['>= 0', 'learnable -0.1']),
    ((0., 0.4, 0.6), ['student', 'empty']),
    ((0.4, 0.6, 0.), ['teacher', 'empty']),
])
def test_bad_ratios_fail_with_a_sentence(ratios, words):
    with pytest.raises(ValueError) as error:
        split_counts(36, *ratios)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(('ratios', 'part'), [
    ((0.1, 0.3, 0.6), 'student'), ((0.375, 0.025, 0.6), 'learnable'),
    ((0.5, 0.45, 0.05), 'teacher')])
def test_a_part_rounded_away_is_named(ratios, part):
    with pytest.raises(ValueError, match=f'leave the {part} part of a crop of 4 patches empty'):
        split_counts(4, *ratios)


def test_patch_grid():
    assert patch_grid(448, 448, 16) == (28, 28)
    assert patch_grid(98, 112, 14) == (7, 8)


@pytest.mark.parametrize(('height', 'width', 'patch', 'words'), [
    (96, 98, 14, ['height 96', 'patch size 14', '84', '98']),
    (96, 100, 16, ['width 100', '96', '112']),
    (8, 16, 16, ['height 8', '16']),
    (16, 16, 0, ['patch size 0']),
])
def test_a_crop_that_does_not_fit_the_patch_is_refused(height, width, patch, words):
    with pytest.raises(ValueError) as error:
        patch_grid(height, width, patch)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize('patch', [8, 14, 16])
def test_patchify_equals_the_loops(patch):
    batch = images(2, 2 * patch, 3 * patch)  # not square
    expected = torch.stack([paper.patchify(image, patch) for image in batch])
    assert torch.equal(patchify(batch, patch), expected)


def test_patch_order_is_row_column_channel():
    image = torch.arange(3 * 4 * 4.).reshape(1, 3, 4, 4)  # value = 16 channel + 4 row + column
    assert patchify(image, 2)[0, 1].tolist() == [2, 18, 34, 3, 19, 35, 6, 22, 38, 7, 23, 39]


def test_unpatchify_is_the_inverse():
    batch = images(2, 28, 42)
    assert torch.equal(unpatchify(patchify(batch, 14), 14, (2, 3)), batch)


def test_gathered_patches_are_the_patches_of_the_grid():
    batch = images(3, 32, 48)
    indices = torch.tensor([[0, 5], [1, 3], [2, 4]])
    patches = gather_patches(batch, indices, 16)
    assert patches.shape == (3, 2, 3, 16, 16)
    for row in range(3):
        for k, index in enumerate(indices[row].tolist()):
            top, left = index // 3 * 16, index % 3 * 16
            assert torch.equal(patches[row, k], batch[row, :, top:top + 16, left:left + 16])
    whole = torch.take_along_dim(patchify(batch, 16), indices.unsqueeze(-1), dim=1)
    torch.testing.assert_close(flatten_patches(patches), whole, rtol=0, atol=0)


def test_gathering_nothing_gives_nothing():
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    assert gather_patches(images(2, 32, 32), nothing, 16).shape == (2, 0, 3, 16, 16)
