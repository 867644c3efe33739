"""AlignedCrops: the geometry is torchvision's, the pixels are Pillow's, the draws are the rng's."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from pera_mm.datasets.transforms.aligned_crops import (
    AlignedCrops,
    Box,
    flip_into,
    random_box,
    resize_box,
)
from pera_mm.registry import TRANSFORMS

SMALL = dict(global_crops=dict(number=2, size=64), local_crops=dict(number=3, size=32))


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise at four scales with hard edges: the resize filters differ most on it."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64, 256):
        noise = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.clip(128 + 40 * image, 0, 255).astype(np.uint8)


def cut(image: np.ndarray, seed: int = 0, **kwargs) -> dict[str, np.ndarray]:
    results = dict(img=image, rng=np.random.default_rng(seed))
    return AlignedCrops(**kwargs).transform(results)['crops']


def test_default_crops_are_the_reference_sizes():
    crops = cut(textured(512, 512))
    assert crops['global'].shape == (1, 2, 448, 448, 3)
    assert crops['local'].shape == (1, 8, 96, 96, 3)
    for group in crops.values():
        assert group.dtype == np.uint8 and group.flags.c_contiguous


def test_config_name_builds_it():
    built = TRANSFORMS.build(dict(type='pera_mm.AlignedCrops', **SMALL))
    assert isinstance(built, AlignedCrops)


def test_missing_keys_keep_their_defaults():
    specs = AlignedCrops(local_crops=dict(size=98)).specs
    assert specs['local'] == (8, 98, (0.05, 0.4)) and specs['global'] == (2, 448, (0.4, 1.0))


def test_no_local_crops_leaves_the_group_out():
    assert set(cut(textured(80, 80), global_crops=dict(size=64), local_crops=dict(number=0))) == {
        'global'}


def test_same_rng_same_crops_and_another_seed_others():
    image = textured(128, 128)
    first, again, other = (cut(image, seed, **SMALL) for seed in (1, 1, 2))
    for name in first:
        assert np.array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


def test_global_random_state_is_neither_read_nor_moved():
    image = textured(128, 128)
    np.random.seed(0), torch.manual_seed(0)
    before = cut(image, **SMALL)['global']
    assert np.random.random() == np.random.RandomState(0).random()
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(0)))
    assert np.array_equal(before, cut(image, **SMALL)['global'])


def test_crops_of_one_image_differ():
    local = cut(textured(128, 128), **SMALL)['local'][0]
    assert not np.array_equal(local[0], local[1]) and not np.array_equal(local[1], local[2])


def test_without_alignment_each_view_has_its_own_geometry():
    crops = cut(textured(128, 128), aligned=False, **SMALL)
    assert crops['global'].shape == (2, 2, 64, 64, 3)
    assert crops['local'].shape == (2, 3, 32, 32, 3)
    for group in crops.values():
        for student, teacher in zip(group[0], group[1], strict=True):
            assert not np.array_equal(student, teacher)


@pytest.mark.parametrize('shape', [(300, 40), (40, 300), (7, 5), (1, 1), (1, 200)])
def test_any_image_shape_fills_the_crops(shape):
    image = np.full((*shape, 3), (10, 120, 250), np.uint8)
    for group in cut(image, **SMALL).values():
        assert (group == (10, 120, 250)).all()


def box_statistics(boxes: list[tuple[int, int, int, int]], side: int) -> np.ndarray:
    top, left, height, width = np.array(boxes, float).T
    return np.stack([height * width / side**2, np.log(width / height),
                     top / (side - height + 1), left / (side - width + 1)])


@pytest.mark.parametrize('scale', [(0.4, 1.0), (0.05, 0.4)])
def test_boxes_are_distributed_as_torchvisions(scale):
    """Kolmogorov-Smirnov distance of area, aspect and position; 0.061 is the 0.1 % level."""
    side, draws = 512, 2000
    rng, plane = np.random.default_rng(0), torch.empty(1, side, side)
    torch.manual_seed(0)
    ours = box_statistics([random_box(side, side, scale, (0.75, 1.33), rng)
                           for _ in range(draws)], side)
    theirs = box_statistics([RandomResizedCrop.get_params(plane, list(scale), [0.75, 1.33])
                             for _ in range(draws)], side)
    for a, b in zip(ours, theirs, strict=True):
        grid = np.concatenate([a, b])
        distance = np.abs(np.searchsorted(np.sort(a), grid, 'right')
                          - np.searchsorted(np.sort(b), grid, 'right')).max() / draws
        assert distance < 0.061


@pytest.mark.parametrize('shape', [(100, 1000), (1000, 100), (3, 500)])
def test_where_no_box_fits_the_central_one_is_torchvisions(shape):
    box = random_box(*shape, (0.9, 1.0), (0.75, 1.33), np.random.default_rng(0))
    expected = RandomResizedCrop.get_params(torch.empty(1, *shape), [0.9, 1.0], [0.75, 1.33])
    assert tuple(box) == tuple(expected)


SHAPES = pytest.mark.parametrize('height, width, size', [
    (500, 480, 448),  # both sides shrink a little: a usual global crop
    (340, 360, 448),  # both grow
    (320, 260, 96),  # both shrink threefold: a usual local crop
    (120, 90, 96),  # one shrinks, one grows
    (96, 300, 96),  # one stays
])


@SHAPES
def test_resize_is_within_one_gray_level_of_pillow(height, width, size):
    image = textured(512, 512)
    resized = resize_box(image, Box(5, 9, height, width), size)
    window = Image.fromarray(image[5:5 + height, 9:9 + width])
    expected = np.asarray(window.resize((size, size), Image.BILINEAR), int)
    difference = np.abs(resized.astype(int) - expected)
    assert resized.flags.c_contiguous
    assert difference.max() <= 1 and difference.mean() < 0.3
    # The measure can see an aliased resize: OpenCV's bilinear is far off where sides shrink.
    if min(height, width) > 2 * size:
        aliased = cv2.resize(image[5:5 + height, 9:9 + width], (size, size)).astype(int)
        assert np.abs(aliased - expected).max() > 30


@SHAPES
@pytest.mark.parametrize('sharp', [True, False])
def test_bicubic_is_pillows(height, width, size, sharp):
    """Between its two passes bicubic is cut to 0-255, which loses up to ten levels at hard edges.

    Pillow and PyTorch lose the same, but for a few pixels where one side shrinks and one grows.
    """
    image = textured(512, 512)
    if not sharp:
        image = cv2.GaussianBlur(image, (0, 0), 1.5)
    resized = resize_box(image, Box(5, 9, height, width), size, 'bicubic')
    window = Image.fromarray(image[5:5 + height, 9:9 + width])
    expected = np.asarray(window.resize((size, size), Image.BICUBIC), int)
    difference = np.abs(resized.astype(int) - expected)
    mixed = (height < size) != (width < size)
    assert difference.max() <= (6 if sharp and mixed else 2)
    assert (difference > 1).mean() < 0.002 and difference.mean() < 0.3


def test_crops_are_resized_as_asked():
    image = textured(64, 64)
    spec = dict(global_crops=dict(number=1, size=32, scale=(1, 1)), local_crops=dict(number=0),
                ratio=(1, 1), horizontal_flip=0, vertical_flip=0)
    for interpolation in ('bilinear', 'bicubic'):
        crop = cut(image, interpolation=interpolation, **spec)['global'][0, 0]
        assert np.array_equal(crop, resize_box(image, Box(0, 0, 64, 64), 32, interpolation))
    assert np.abs(crop.astype(int) - cut(image, **spec)['global'][0, 0]).max() > 10


@pytest.mark.parametrize('flip_x', [False, True])
@pytest.mark.parametrize('flip_y', [False, True])
def test_flips(flip_x, flip_y):
    image = textured(16, 16)
    target = np.empty_like(image)
    flip_into(target, image, flip_x, flip_y)
    expected = image[:, ::-1] if flip_x else image
    assert np.array_equal(target, expected[::-1] if flip_y else expected)


def test_flips_come_with_the_asked_probability():
    """The bright half of a whole-image crop tells which flips were made."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4, :4] = 255  # only the top left corner
    transform = AlignedCrops(dict(number=1, size=8, scale=(1, 1)), dict(number=0), ratio=(1, 1),
                             horizontal_flip=0.25)
    rng, count = np.random.default_rng(0), np.zeros((2, 2))
    for _ in range(2000):
        crop = transform.transform(dict(img=image, rng=rng))['crops']['global'][0, 0]
        y, x = np.argwhere(crop[::7, ::7, 0] == 255)[0]
        count[y, x] += 1
    expected = np.array([[0.375, 0.125], [0.375, 0.125]])  # independent: P(y) * P(x)
    assert np.abs(count / 2000 - expected).max() < 0.04


@pytest.mark.parametrize('kwargs, message', [
    (dict(global_crops=dict(number=0)), 'global_crops: number must be >= 1, got 0'),
    (dict(local_crops=dict(number=-1)), 'local_crops: number must be >= 0, got -1'),
    (dict(local_crops=dict(size=0)), 'local_crops: size must be >= 1 pixel, got 0'),
    (dict(global_crops=dict(scale=(1.0, 0.4))), r'global_crops: scale .* got \(1.0, 0.4\)'),
    (dict(global_crops=dict(scale=(0.4, 1.2))), 'smallest <= largest <= 1, got'),
    (dict(ratio=(1.33, 0.75)), 'ratio must be two numbers, 0 < smallest <= largest, got'),
    (dict(local_crops=dict(amount=8)), 'unknown key.* amount; it takes number, size, scale'),
    (dict(vertical_flip=1.5), 'probabilities in .* got 0.5 and 1.5'),
    (dict(interpolation='nearest'), "'bilinear' or 'bicubic', got 'nearest'"),
])
def test_bad_arguments_fail_at_build(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AlignedCrops(**kwargs)


def test_gray_image_is_refused_with_its_path():
    results = dict(img=np.zeros((8, 8), np.uint8), rng=np.random.default_rng(0), img_path='a.png')
    with pytest.raises(ValueError, match=r'uint8 RGB image .* got uint8 \[8, 8\] from a.png'):
        AlignedCrops(**SMALL).transform(results)
