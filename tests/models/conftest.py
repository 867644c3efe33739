"""Random crops as the preprocessor would hand them to a model."""

from collections.abc import Callable

import pytest
import torch

from pera_mm.patches import PatchSplit, patch_grid, split_counts, split_patches
from pera_mm.structures import CropViews


def random_views(num_crops: int, num_images: int, size: int, patch_size: int,
                 ratios: tuple[float, float, float], generator: torch.Generator) -> CropViews:
    h, w = patch_grid(size, size, patch_size)
    counts = split_counts(h * w, *ratios)
    split = split_patches(num_crops * num_images, counts, generator)
    shape = (num_crops, num_images)
    pixels = torch.randn(2, *shape, 3, size, size, generator=generator)
    return CropViews(*pixels, PatchSplit(*(part.unflatten(0, shape) for part in split)))


@pytest.fixture
def make_crops() -> Callable[..., dict[str, CropViews]]:
    """Crops of 4 x 4 and 2 x 2 patches: ``make_crops(num_images=2, num_local=2, ...)``."""

    def make(num_images: int = 2, num_global: int = 2, num_local: int = 2, patch_size: int = 16,
             ratios: tuple[float, float, float] = (0.2, 0.2, 0.6),
             seed: int = 0) -> dict[str, CropViews]:
        generator = torch.Generator().manual_seed(seed)
        crops = {'global': random_views(num_global, num_images, 4 * patch_size, patch_size, ratios,
                                        generator)}
        if num_local:
            crops['local'] = random_views(num_local, num_images, 2 * patch_size, patch_size,
                                          ratios, generator)
        return crops

    return make
