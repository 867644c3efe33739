"""Windows cover a scene, their weights sum to one, and the rolling sum equals the plain one."""

import numpy as np
import pytest

from pera_mm.errors import UserError
from pera_mm.mapping.blending import RollingSum
from pera_mm.mapping.windows import Windows, starts, weights

BLENDS = ['hann', 'trim', 'none']


def blend(windows: Windows, logits, classes: int, max_width: int) -> np.ndarray:
    """All bands and strips of a scene, joined; ``logits`` of (row, column)."""
    result = np.full((classes, windows.height, windows.width), np.nan, np.float32)
    everywhere = np.ones((windows.size, windows.size), bool)
    for band in windows.bands(max_width):
        rolling = RollingSum(windows, band, classes)
        for row in range(len(windows.tops)):
            for column in range(band.first, band.last):
                rolling.add(row, column, logits(row, column), everywhere)
            top, bottom = windows.strip(row)
            sums, valid = rolling.take(top, bottom - top)
            result[:, top:bottom, band.left:band.right] = sums
            assert valid.all()
    return result


def plain(windows: Windows, logits, classes: int, kind: str) -> np.ndarray:
    """The same in one array, with weights in two dimensions and their sum: slow and large."""
    size = windows.size
    shape = max(windows.height, size), max(windows.width, size)
    sums, total = np.zeros((classes, *shape)), np.zeros(shape)
    for row, top in enumerate(windows.tops):
        for column, left in enumerate(windows.lefts):
            for y in range(size):
                for x in range(size):
                    if kind == 'hann':
                        weight = hann(y, size) * hann(x, size)
                    else:
                        weight = float(nearest(windows.tops, size, top + y) == row
                                       and nearest(windows.lefts, size, left + x) == column)
                    sums[:, top + y, left + x] += weight * logits(row, column)[:, y, x]
                    total[top + y, left + x] += weight
    return (sums / np.maximum(total, 1e-300))[:, :windows.height, :windows.width]


def hann(position: int, size: int) -> float:
    return float(np.sin(np.pi * (position + .5) / size)**2)


def nearest(begins: list[int], size: int, position: int) -> int:
    """The window whose middle is nearest; of equal ones the later."""
    return min(range(len(begins)), key=lambda index: (
        abs(begins[index] + size / 2 - position - .5), -index))


def test_starts_are_every_stride_and_the_last_is_moved_back():
    assert starts(10, 4, 3) == [0, 3, 6]
    assert starts(11, 4, 3) == [0, 3, 6, 7]
    assert starts(4, 4, 3) == starts(1, 4, 3) == [0]
    assert starts(5, 4, 3) == [0, 1]


@pytest.mark.parametrize('kind', BLENDS)
@pytest.mark.parametrize('length', [1, 7, 8, 9, 15, 16, 17, 40, 41])
def test_weights_sum_to_one_at_every_pixel(kind, length):
    begins = starts(length, 8, 8 if kind == 'none' else 5)
    shares = weights(begins, length, 8, kind)
    total = np.zeros(max(length, 8))
    for begin, share in zip(begins, shares):
        total[begin:begin + 8] += share
    np.testing.assert_allclose(total[:length], 1, rtol=1e-6)
    assert not total[length:].any() and shares.min() >= 0
    if kind != 'hann':
        assert set(shares.ravel()) <= {0, 1}


def test_hann_weights_are_a_hann_window_where_windows_overlap_by_half():
    shares = weights(starts(40, 8, 4), 40, 8, 'hann')
    np.testing.assert_allclose(shares[3], np.sin(np.pi * (np.arange(8) + .5) / 8)**2, rtol=1e-6)


@pytest.mark.parametrize('kind', BLENDS)
@pytest.mark.parametrize('height, width', [(3, 5), (8, 8), (9, 8), (17, 23), (30, 8)])
@pytest.mark.parametrize('max_width', [1, 12, 1000])
def test_the_rolling_sum_is_the_plain_weighted_mean(kind, height, width, max_width):
    windows = Windows(height, width, 8, kind, overlap=.4)
    noise = np.random.default_rng(0).normal(
        size=(len(windows.tops), len(windows.lefts), 3, 8, 8)).astype(np.float32)

    def logits(row, column):
        return noise[row, column]

    np.testing.assert_allclose(blend(windows, logits, 3, max_width),
                               plain(windows, logits, 3, kind), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', BLENDS)
def test_constant_logits_stay_constant(kind):
    windows = Windows(61, 45, 16, kind)
    values = np.array([-3., .5, 20.], np.float32)
    constant = np.broadcast_to(values[:, None, None], (3, 16, 16))
    result = blend(windows, lambda row, column: constant, 3, 20)
    np.testing.assert_allclose(result, np.broadcast_to(values[:, None, None], result.shape),
                               rtol=1e-6)


@pytest.mark.parametrize('kind', BLENDS)
def test_a_model_that_looks_at_one_pixel_gives_the_scene_back(kind):
    """So windows are put where they were cut out."""
    scene = np.random.default_rng(0).normal(size=(1, 50, 37)).astype(np.float32)
    windows = Windows(50, 37, 16, kind)
    result = blend(windows, lambda row, column: scene[:, windows.tops[row]:, windows.lefts[column]:]
                   [:, :16, :16], 1, 20)
    np.testing.assert_allclose(result, scene, rtol=1e-5, atol=1e-6)


def test_a_strip_needs_the_rows_of_windows_that_reach_it():
    windows = Windows(30, 8, 8, overlap=.5)
    assert windows.tops == [0, 4, 8, 12, 16, 20, 22]
    assert [windows.strip(row) for row in (0, 1, 6)] == [(0, 4), (4, 8), (22, 30)]
    assert [windows.first_row(row) for row in range(7)] == [0, 0, 1, 2, 3, 4, 4]
    assert Windows(7, 4, 4, overlap=.25).first_row(1) == 0  # for one pixel


@pytest.mark.parametrize('max_width', [1, 5, 9, 13, 100])
def test_bands_divide_the_columns(max_width):
    windows = Windows(8, 41, 8, overlap=.5)
    bands = windows.bands(max_width)
    assert [band.left for band in bands] == [0, *(band.right for band in bands[:-1])]
    assert bands[-1].right == 41
    assert all(band.right - band.left <= max(max_width, 8) for band in bands)
    for band in bands:  # every window that reaches into the band
        reaching = [index for index, left in enumerate(windows.lefts)
                    if left < band.right and left + 8 > band.left]
        assert reaching == list(range(band.first, band.last))


@pytest.mark.parametrize('options, message', [
    (dict(blend='mean'), "blend must be one of hann, trim, none, not 'mean'"),
    (dict(overlap=1), 'a share from 0 to 0.9, not 1')])
def test_what_there_is_not_is_named(options, message):
    with pytest.raises(UserError, match=message):
        Windows(8, 8, 8, **options)
