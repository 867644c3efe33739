"""Random windows: drawn as torchvision draws them, the mask where the image is."""

import numpy as np
import pytest
from mmengine.registry import TRANSFORMS
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop

import pera_mm  # noqa: F401  activates the bridges
from pera_mm.datasets.transforms.aligned_crops import Box
from pera_mm.downstream.resized_crop import RandomResizedCrop, resize_labels

RANGES = dict(crop_ratio_range=(.4, 1.), aspect_ratio_range=(.75, 1.33))


def gradient(height: int, width: int) -> np.ndarray:
    """Rows in red, columns in green: a pixel's color is its place."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint8)


def sample(height: int = 200, width: int = 240) -> dict:
    image = gradient(height, width)
    return dict(img=image, gt_seg_map=image[..., 1].copy(), seg_fields=['gt_seg_map'])


def test_areas_and_aspects_are_those_of_torchvision():
    height, width = 200, 240
    np.random.seed(0)
    boxes, transform = [], RandomResizedCrop(400, **RANGES)
    for _ in range(600):
        image = transform(sample(height, width))['img'].astype(float)
        # The slope of the colors is the window's size.
        side_y, side_x = ((image[350, 50, 0] - image[50, 50, 0]) * 400 / 300,
                          (image[50, 350, 1] - image[50, 50, 1]) * 400 / 300)
        boxes.append((side_y * side_x / height / width, side_x / side_y))
    plane = np.zeros((3, height, width))
    import torch
    torch.manual_seed(0)
    theirs = [TorchvisionCrop.get_params(torch.from_numpy(plane), [.4, 1.], [.75, 1.33])
              for _ in range(2000)]
    theirs = [(h * w / height / width, w / h) for _, _, h, w in theirs]
    for ours, reference in zip(np.transpose(boxes), np.transpose(theirs)):
        np.testing.assert_allclose(np.quantile(ours, [.05, .25, .5, .75, .95]),
                                   np.quantile(reference, [.05, .25, .5, .75, .95]), atol=.05)


@pytest.mark.parametrize('size', [64, 128, 400])
def test_a_label_is_where_its_pixel_is(size):
    """The mask holds the image's column, so both must show the same number everywhere."""
    np.random.seed(1)
    for _ in range(20):
        out = RandomResizedCrop(size, **RANGES)(sample())
        assert out['img'].shape == (size, size, 3) and out['gt_seg_map'].shape == (size, size)
        assert out['img_shape'] == (size, size) and out['gt_seg_map'].dtype == np.uint8
        inner = slice(4, -4)  # antialiasing bends the gradient at the border
        difference = out['img'][inner, inner, 1].astype(int) - out['gt_seg_map'][inner, inner]
        assert abs(difference).max() <= 2 and abs(difference.mean()) < .3


def test_labels_are_repeated_or_dropped_and_never_mixed():
    mask = np.array([[0, 255, 3, 9], [1, 1, 4, 9], [5, 6, 7, 9]], np.uint8)
    np.testing.assert_array_equal(
        resize_labels(mask, Box(0, 0, 2, 2), 4),
        [[0, 0, 255, 255], [0, 0, 255, 255], [1, 1, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(resize_labels(mask, Box(0, 0, 3, 3), 1), [[1]])
    np.testing.assert_array_equal(resize_labels(mask, Box(1, 1, 2, 2), 2), [[1, 4], [6, 7]])


def test_six_channels_and_lists_are_cut_alike():
    image = gradient(100, 120)
    pair = np.concatenate([image, image[..., ::-1]], axis=2)
    outs = []
    for img in (pair, [image, image[..., ::-1].copy()]):
        np.random.seed(2)
        outs.append(RandomResizedCrop(48, **RANGES)(dict(img=img, seg_fields=[]))['img'])
    np.testing.assert_array_equal(outs[0], np.concatenate(outs[1], axis=2))
    np.testing.assert_array_equal(outs[1][0], outs[1][1][..., ::-1])
    assert isinstance(outs[1], list) and outs[0].shape == (48, 48, 6)


def test_numpys_seed_repeats_the_window_and_the_next_one_differs():
    windows = []
    for _ in range(2):
        np.random.seed(3)
        transform = RandomResizedCrop(32, **RANGES)
        windows.append([transform(sample())['img'] for _ in range(2)])
    np.testing.assert_array_equal(windows[0], windows[1])
    assert (windows[0][0] != windows[0][1]).any()


def test_the_name_in_a_config_is_found():
    transform = TRANSFORMS.build(dict(type='pera_mm.RandomResizedCrop', scale=512))
    assert (transform.areas, transform.aspects) == ((.4, 1.), (.75, 1.33))


@pytest.mark.parametrize(('options', 'message'), [
    (dict(scale=(512, 512)), r'one number >= 1, got \(512, 512\)'),
    (dict(scale=0), 'one number >= 1, got 0'),
    (dict(scale=8, crop_ratio_range=(.4, 2)), 'at most 1, got'),
    (dict(scale=8, crop_ratio_range=(1, .4)), 'crop_ratio_range must be two numbers, 0 < smallest'),
    (dict(scale=8, aspect_ratio_range=(0, 1)), 'aspect_ratio_range must be two numbers'),
])
def test_what_is_no_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RandomResizedCrop(**options)
