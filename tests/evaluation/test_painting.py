"""The share of variance that painted pixels explain, against closed forms and loops."""

import numpy as np
import pytest
import torch

from pera_mm.evaluation.painting import Painting, paint_hidden, variance_explained
from pera_mm.registry import MODELS


def random_painting(images: int = 3, patches: int = 5, pixels: int = 4) -> Painting:
    truth = torch.randn(images, patches, pixels * 3)
    hidden = torch.rand(images, patches) < 0.6
    hidden[:, 0] = True
    painted = torch.where(hidden.unsqueeze(-1), torch.randn_like(truth), truth)
    return Painting(truth, painted, hidden)


def test_it_equals_a_plain_loop_over_images_and_bands():
    painting = random_painting()
    errors = variance = 0.
    for truth, painted, hidden in zip(*(part.numpy() for part in painting)):
        for band in range(3):
            pixels = truth[hidden].reshape(-1, 3)[:, band]
            errors += ((painted[hidden].reshape(-1, 3)[:, band] - pixels)**2).sum()
            variance += ((pixels - pixels.mean())**2).sum()
    assert variance_explained(painting) == pytest.approx(1 - errors / variance, rel=1e-5)


def test_the_truth_is_one_and_the_mean_color_of_hidden_pixels_zero():
    truth, _, hidden = random_painting()
    assert variance_explained(Painting(truth, truth, hidden)) == 1
    painted = truth.clone()
    for image in range(len(truth)):
        pixels = truth[image][hidden[image]].reshape(-1, 3)
        painted[image][hidden[image]] = pixels.mean(0).repeat(4)
    assert variance_explained(Painting(truth, painted, hidden)) == pytest.approx(0, abs=1e-6)


def test_only_hidden_pixels_count():
    painting = random_painting()
    other = painting.patches.clone()
    other[~painting.hidden] += 100  # of both the picture and what is shown of it
    shown = torch.where(painting.hidden.unsqueeze(-1), painting.painted, other)
    assert variance_explained(Painting(other, shown, painting.hidden)) == pytest.approx(
        variance_explained(painting))


def test_the_student_sees_its_share_and_paints_all_others(tiny_cfg):
    model = MODELS.build(tiny_cfg)
    model.init_weights()
    model.train()
    normalized = torch.randn(2, 3, 64, 64)
    patches, painted, hidden = paint_hidden(model, normalized)
    assert hidden.sum(1).tolist() == [13, 13]  # of 16, the student sees 20 %
    same = (patches == painted).all(-1)
    assert torch.equal(same, ~hidden)
    assert model.training and not model.teacher.training
    again = paint_hidden(model, normalized)
    assert torch.equal(again.painted, painted)
    assert not torch.equal(paint_hidden(model, normalized, seed=1).hidden, hidden)
    assert np.isfinite(variance_explained(again))
