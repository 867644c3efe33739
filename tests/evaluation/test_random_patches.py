"""Random convolutional features against plain loops and their closed forms."""

import pytest
import torch

from pera_mm.evaluation.random_patches import patch_features, patch_filters


def images(number: int = 4, size: int = 7) -> torch.Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_features_equal_plain_loops():
    pixels, filters = images(2, 5), images(3, 2)
    expected = []
    for image in pixels:
        row = []
        for sign in (1, -1):
            for weights in filters:
                total = 0.
                for y in range(4):
                    for x in range(4):
                        response = sign * float((image[:, y:y + 2, x:x + 2] * weights).sum())
                        total += max(response - 1, 0)
                row.append(total / 16)
        expected.append(row)
    assert torch.allclose(patch_features(pixels, filters), torch.tensor(expected), atol=1e-5)


def test_features_do_not_change_when_the_image_is_shifted_around():
    pixels = torch.zeros(2, 3, 9, 9)
    pixels[0, :, 2:5, 2:5] = pixels[1, :, 4:7, 3:6] = images(1, 3)[0]
    first, second = patch_features(pixels, 5 * images(4, 3))
    assert torch.allclose(first, second) and first.max() > 0


def test_filters_are_twice_whitened_patches():
    pixels = images(20, 9)
    filters = patch_filters(pixels, number=500, side=3, seed=1).flatten(1).double()
    # Patches with covariance C, times W W = (C + .1)^-1: covariance (C + .1)^-1 C (C + .1)^-1, so
    # in an eigenvector of C with value e it is e / (e + .1)^2. Centered patches lose one direction.
    values, vectors = torch.linalg.eigh(filters.T @ filters / 500)
    assert values[0] == pytest.approx(0, abs=1e-6)
    e = torch.linalg.eigvalsh(patch_covariance(pixels, 500, 1))
    assert torch.allclose(values, (e / (e + 0.1)**2).sort().values, atol=1e-4)


def patch_covariance(pixels: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """Of the same draws: image, row and column in this order."""
    generator = torch.Generator().manual_seed(seed)
    which, top, left = (torch.randint(high, (number, ), generator=generator)
                        for high in (len(pixels), 7, 7))
    patches = torch.stack([pixels[i, :, y:y + 3, x:x + 3] for i, y, x in zip(which, top, left)])
    patches = patches.flatten(1).double()
    patches -= patches.mean(dim=1, keepdim=True)
    patches /= patches.norm(dim=1, keepdim=True)
    return patches.T @ patches / number


def test_the_seed_decides_the_filters():
    first, again, other = (patch_filters(images(), number=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (5, 3, 3, 3)


def test_constant_images_give_finite_filters():
    assert torch.equal(patch_filters(torch.ones(2, 3, 4, 4), number=3), torch.zeros(3, 3, 3, 3))


def test_an_image_smaller_than_a_filter_is_refused():
    with pytest.raises(ValueError, match='2 x 2 px have no patches of 3 px'):
        patch_filters(torch.zeros(1, 3, 2, 2))
