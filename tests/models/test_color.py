"""Each row equals torchvision with the row's own factor; recipes come as often as asked."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from pera_mm.models import color
from pera_mm.models.color import ColorDraw, ColorRecipe, draw_colors, recolor_

ROWS = 6


@pytest.fixture
def images() -> torch.Tensor:
    """Noise, plus the colors at which hue formulas go wrong: gray, black, white, pure, ties."""
    images = torch.rand(ROWS, 3, 12, 15)
    special = torch.tensor([[0, 0, 0], [1, 1, 1], [.5, .5, .5], [1, 0, 0], [0, 1, 0], [0, 0, 1],
                            [1, 1, 0], [0, 1, 1], [1, 0, 1], [.7, .7, .2], [.2, .7, .7]])
    images[0, :, 0, :11] = special.T
    return images


@pytest.mark.parametrize('name, low, high', [
    ('adjust_brightness', 0.6, 1.4), ('adjust_contrast', 0.6, 1.4),
    ('adjust_saturation', 0, 2), ('adjust_hue', -0.5, 0.5)])
def test_jitter_equals_torchvision_row_by_row(images, name, low, high):
    factors = torch.linspace(low, high, ROWS)
    ours = getattr(color, name)(images, factors)
    for row, image, factor in zip(ours, images, factors, strict=True):
        torch.testing.assert_close(row, getattr(tv, name)(image, factor.item()),
                                   atol=1e-5, rtol=0)


def test_gray_and_solarize_equal_torchvision(images):
    torch.testing.assert_close(color.to_gray(images), tv.rgb_to_grayscale(images, 3))
    torch.testing.assert_close(color.solarize(images), tv.solarize(images, 128 / 255))


def test_solarize_starts_at_level_128():
    levels = torch.tensor([127., 128.]).div(255).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert color.solarize(levels)[0, 0, 0].mul(255).round().tolist() == [127, 127]


def test_blur_equals_torchvision_row_by_row(images):
    sigmas = torch.linspace(0.1, 2, ROWS)
    for row, image, sigma in zip(color.gaussian_blur(images, sigmas), images, sigmas, strict=True):
        torch.testing.assert_close(row, tv.gaussian_blur(image, 9, [sigma.item()] * 2),
                                   atol=1e-5, rtol=0)


def test_recolor_follows_the_drawn_order_and_leaves_other_rows_alone(images):
    """Rows: untouched, two jitters in opposite orders, gray, blur, solarize."""
    on = torch.eye(ROWS, dtype=torch.bool)
    factors = torch.tensor([[0.7], [1.3], [0.9], [0.08]]).expand(4, ROWS)
    order = torch.tensor([[0, 1, 2, 3]] * 2 + [[3, 2, 1, 0]] * (ROWS - 2)).T
    draw = ColorDraw(jitter=on[1] | on[2], factors=factors, order=order, gray=on[3], blur=on[4],
                      sigma=torch.full((ROWS,), 1.5), solarize=on[5])
    changed = recolor_(images.clone(), draw)

    jitter = [lambda x: tv.adjust_brightness(x, 0.7), lambda x: tv.adjust_contrast(x, 1.3),
              lambda x: tv.adjust_saturation(x, 0.9), lambda x: tv.adjust_hue(x, 0.08)]
    forward, backward = images[1], images[2]
    for step in range(4):
        forward, backward = jitter[step](forward), jitter[3 - step](backward)
    expected = torch.stack([images[0], forward, backward, tv.rgb_to_grayscale(images[3], 3),
                            tv.gaussian_blur(images[4], 9, [1.5, 1.5]),
                            tv.solarize(images[5], 128 / 255)])
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=0)
    assert torch.equal(changed[0], images[0])


def share(chosen: torch.Tensor) -> float:
    return chosen.float().mean().item()


def test_exclusive_recipe_is_jitter_or_gray_or_nothing():
    draw = draw_colors([ColorRecipe(jitter=0.72, gray=0.08)], 20000)
    assert share(draw.jitter) == pytest.approx(0.72, abs=0.013)  # 4 standard deviations
    assert share(draw.gray) == pytest.approx(0.08, abs=0.008)
    assert not (draw.jitter & draw.gray).any()
    assert not draw.blur.any() and not draw.solarize.any()


def test_dinov2_recipe_draws_everything_independently():
    draw = draw_colors([ColorRecipe(jitter=0.8, gray=0.2, exclusive=False, blur=0.5,
                                      solarize=0.2)], 20000)
    chances = dict(jitter=0.8, gray=0.2, blur=0.5, solarize=0.2)
    for name, chance in chances.items():
        assert share(getattr(draw, name)) == pytest.approx(chance, abs=0.015)
        for other in set(chances) - {name}:
            both = share(getattr(draw, name) & getattr(draw, other))
            assert both == pytest.approx(chance * chances[other], abs=0.015)


def test_factors_fill_their_ranges_and_orders_are_shuffled():
    draw = draw_colors([ColorRecipe(jitter=1)], 24000)
    ranges = torch.tensor([[0.6, 1.4], [0.6, 1.4], [0.8, 1.2], [-0.1, 0.1]])
    torch.testing.assert_close(torch.stack(draw.factors.aminmax(dim=1), dim=1), ranges,
                               atol=1e-3, rtol=0)
    torch.testing.assert_close(draw.factors.mean(1), ranges.mean(1), atol=8e-3, rtol=0)
    assert (draw.factors.corrcoef() - torch.eye(4)).abs().max() < 0.03  # independent
    orders, counts = draw.order.T.unique(dim=0, return_counts=True)
    assert len(orders) == 24 and (counts - 1000).abs().max() < 130  # 4 standard deviations
    assert draw.sigma.min() >= 0.1 and draw.sigma.max() <= 2


def test_rows_are_crop_major_and_each_crop_keeps_its_recipe():
    draw = draw_colors([ColorRecipe(jitter=1), ColorRecipe(gray=1), ColorRecipe(blur=1)], 2)
    assert draw.jitter.tolist() == [True, True, False, False, False, False]
    assert draw.gray.tolist() == [False, False, True, True, False, False]
    assert draw.blur.tolist() == [False, False, False, False, True, True]


@pytest.mark.parametrize('kwargs, message', [
    (dict(jitter=1.2), r'jitter must be in \[0, 1\], got 1.2'),
    (dict(hue=0.6), r'hue must be in \[0, 0.5\], got 0.6'),
    (dict(jitter=0.8, gray=0.3), 'jitter 0.8 and gray 0.3 exclude each other'),
])
def test_bad_recipes_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ColorRecipe(**kwargs)
