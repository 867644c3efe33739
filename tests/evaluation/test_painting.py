"""What the student paints, and the share of variance that it explains, by closed forms."""

import numpy as np
import pytest
import torch

from pera_mm.evaluation.painting import (
    HIDDEN_GRAY,
    Painting,
    paint_hidden,
    reconstruct,
    variance_explained,
)
from pera_mm.patches import patchify
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


def test_masked_shows_the_students_patches_and_hides_all_others(model, images):
    triplets = reconstruct(model, images)
    assert (triplets.original == images.numpy()).all()
    hidden = (triplets.masked == HIDDEN_GRAY).all(axis=-1)
    per_patch = patchify(torch.from_numpy(hidden).float().unsqueeze(1), 16).mean(-1)  # [B, N]
    assert set(per_patch.flatten().tolist()) == {0., 1.}
    assert (per_patch == 0).sum(1).tolist() == [3, 3]  # 20 % of 16
    assert (triplets.masked[~hidden] == triplets.original[~hidden]).all()


def test_painted_are_the_students_pixels_of_every_hidden_patch(model, images, monkeypatch):
    passes = []

    def paint(crops):
        """White wherever it is asked, and remembers where."""
        passes.append((crops[0].split.student[0], crops[0].split.learnable[0]))
        pixels = torch.full((2, crops[0].split.learnable.shape[-1], 768), 10.)
        return type('Answer', (), dict(pixels=pixels))

    monkeypatch.setattr(model, 'study', paint)
    triplets = reconstruct(model, images)
    seen = passes[0][0]
    covered = torch.zeros(2, 16)
    for again, part in passes:
        assert torch.equal(again, seen)
        assert part.shape[1] == 3  # as many as in a training step
        covered.scatter_(1, part, 1)
    assert torch.equal(covered, torch.ones(2, 16).scatter_(1, seen, 0))
    is_white = (torch.from_numpy(triplets.predicted) == 255).all(-1).float().unsqueeze(1)
    assert torch.equal(patchify(is_white, 16).mean(-1), covered)


def test_reconstruction_repeats_itself_and_changes_nothing(model, images):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    triplets = reconstruct(model, images)
    again = reconstruct(model, images)  # no stochastic depth, no noise
    assert (triplets.predicted == again.predicted).all()
    assert model.training and not model.teacher.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    # A head that paints a constant: normalized 0 is the mean color.
    model.predictor.last_layer.weight_g.data.zero_()
    constant = reconstruct(model, images)
    hidden = (constant.masked == HIDDEN_GRAY).all(axis=-1)
    assert (constant.predicted[hidden] == np.array([124, 116, 104])).all()


def test_a_model_that_knows_the_picture_paints_it(model, images, monkeypatch):
    """Colors survive normalizing, painting and undoing."""

    def know(crops):
        target = patchify(crops[0].student_view[0], 16)
        hidden = crops[0].split.learnable[0].unsqueeze(-1)
        return type('Answer', (), dict(pixels=torch.take_along_dim(target, hidden, dim=1)))

    monkeypatch.setattr(model, 'study', know)
    triplets = reconstruct(model, images)
    assert (triplets.predicted == images.numpy()).all()


@pytest.mark.parametrize(('visible', 'per_pass', 'expected'), [
    (0.2, 0.2, (3, 3, 5)),  # 13 hidden patches of 16, in passes of 3
    (0.5, 0.2, (8, 3, 3)),
    (0.9, 0.2, (14, 2, 1)),  # fewer are hidden than a pass would paint
    (0.25, 1.0, (4, 12, 1)),
])
def test_any_share_is_hidden_and_painted_in_passes(model, images, monkeypatch, visible, per_pass,
                                                   expected):
    splits = []
    study = model.study
    monkeypatch.setattr(model, 'study', lambda crops: splits.append(crops[0].split) or study(crops))
    painting = paint_hidden(model, model.data_preprocessor.normalize(images), visible, per_pass)
    assert (16 - painting.hidden.sum(1)).tolist() == [expected[0]] * 2
    assert {split.learnable.shape[-1] for split in splits} == {expected[1]}
    assert len(splits) == expected[2]


@pytest.mark.parametrize(('visible', 'per_pass', 'missing'), [
    (0.01, 0.2, 'none to see'), (1.0, 0.2, 'none to paint'), (0.5, 0.01, 'none to paint')])
def test_shares_that_leave_nothing_are_a_sentence(model, images, visible, per_pass, missing):
    with pytest.raises(ValueError, match=missing):
        reconstruct(model, images, visible, per_pass)


def test_errors_are_those_of_the_hidden_pixels_of_each_image(model):
    """A head that paints the mean color, on a wide picture of one color, and on another."""
    model.predictor.last_layer.weight_g.data.zero_()
    mean = torch.tensor([124, 116, 104], dtype=torch.uint8)
    images = torch.stack([mean.expand(32, 96, 3), mean.expand(32, 96, 3) + 20])
    drawn = reconstruct(model, images, visible=0.5)
    assert drawn.predicted.shape == (2, 32, 96, 3)
    assert drawn.errors == [0., 20.]
    assert drawn.explained == 0.  # of no variance
