"""The oracle itself, against values worked out by hand."""

import math

import pytest
import torch
from reference import paper

LOG2 = math.log(2)


@pytest.mark.parametrize(('num_patches', 'student', 'teacher', 'counts'), [
    (784, 0.2, 0.6, (157, 157, 470)),
    (36, 0.2, 0.6, (7, 7, 22)),
    (784, 0.3, 0.5, (235, 157, 392)),
    (36, 0.3, 0.5, (11, 7, 18)),
    (784, 0.2, 0.5, (157, 235, 392)),
    (784, 0.3, 0.6, (235, 79, 470)),
    (1024, 0.2, 0.6, (205, 205, 614)),
    (3136, 0.2, 0.6, (627, 627, 1882)),
    (49, 0.2, 0.6, (10, 10, 29)),
])
def test_counts_are_the_table_of_the_reference(num_patches, student, teacher, counts):
    assert paper.split_counts(num_patches, student, teacher) == counts


def test_split_by_rank():
    parts = paper.split([9, 0, 4, 3, 8, 1, 2, 7, 6, 5], student=0.2, teacher=0.6)
    assert parts == ([1, 5], [3, 6], [0, 2, 4, 7, 8, 9])


def test_patchify_runs_row_column_channel():
    image = torch.arange(3 * 4 * 4.).reshape(3, 4, 4)  # value = 16 channel + 4 row + column
    patches = paper.patchify(image, 2)
    assert patches[0].tolist() == [0, 16, 32, 1, 17, 33, 4, 20, 36, 5, 21, 37]
    assert patches[1, :3].tolist() == [2, 18, 34]
    assert patches[2, :3].tolist() == [8, 24, 40]


def test_pixel_loss_sums_over_values_and_averages_over_tokens():
    target = torch.zeros(2, 12)
    prediction = torch.stack([torch.ones(12), torch.full((12,), 2.)])
    assert paper.pixel_loss([prediction], [target]).item() == (12 * 1 + 12 * 4) / 2


def test_softmax_and_its_log():
    x = torch.tensor([0., LOG2, math.log(5)])
    torch.testing.assert_close(paper.softmax(x), torch.tensor([1, 2, 5]) / 8)
    torch.testing.assert_close(paper.log_softmax(x), torch.log(torch.tensor([1, 2, 5]) / 8))
    assert paper.softmax(torch.tensor([1000., 1000.])).tolist() == [0.5, 0.5]


def test_cross_entropy_by_hand():
    # teacher (z - c)/tau = (log 3, 0): q = (3/4, 1/4); student z/tau = (log 2, 0): p = (2/3, 1/3)
    teacher = torch.tensor([[0.5 * math.log(3) + 1., 2.]])
    student = torch.tensor([[0.1 * LOG2, 0.]])
    loss = paper.cross_entropy(student, teacher, torch.tensor([[1., 2.]]), 0.1, 0.5)
    expected = -(0.75 * math.log(2 / 3) + 0.25 * math.log(1 / 3))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_distillation_pairs_crop_i_with_crop_i():
    certain = [torch.tensor([[50., 0.]]), torch.tensor([[0., 50.]])]
    center = torch.zeros(1, 2)
    assert paper.distillation_loss(certain, certain, center, 0.1, 0.1).item() < 1e-6
    assert paper.distillation_loss(certain, certain[::-1], center, 0.1, 0.1).item() > 100


def test_center_by_hand():
    teacher = [torch.tensor([[1., 0.], [3., 4.]]), torch.tensor([[5., 2.], [7., 6.]])]
    mean = paper.batch_mean(teacher)
    assert mean.tolist() == [[4., 3.]]
    torch.testing.assert_close(paper.update_center(torch.tensor([[10., 20.]]), mean),
                               torch.tensor([[9.4, 18.3]]))


def test_koleo_by_hand():
    # unit vectors at 0, 60 and 180 degrees; 0 and 60 are each other's nearest (chord 1),
    # 180 is nearest to 60 (chord 2 sin 60 = sqrt 3)
    angles = torch.tensor([0., math.pi / 3, math.pi])
    features = 7 * torch.stack([angles.cos(), angles.sin()], dim=1)  # the length must not matter
    expected = -(math.log(1) + math.log(1) + math.log(math.sqrt(3))) / 3
    assert paper.koleo(features).item() == pytest.approx(expected, abs=1e-6)
    assert paper.koleo_loss([features, features]).item() == pytest.approx(2 * expected, abs=1e-6)


def test_koleo_of_duplicates_is_finite():
    assert math.isfinite(paper.koleo(torch.ones(2, 8)).item())


def test_teacher_update_keeps_the_fraction_m_of_the_old_weights():
    weights = {'student.x': torch.tensor([1.]), 'teacher.x': torch.tensor([5.]),
               's_mask_token': torch.tensor([3.])}
    updated = paper.update_teacher(weights, 0.75)
    assert updated['teacher.x'].item() == 4.
    assert updated['student.x'].item() == 1. and updated['s_mask_token'].item() == 3.


def test_learning_rate_reaches_its_peak_twice():
    values = paper.schedule(1e-3, 1e-6, total=200, warmup=20)
    assert len(values) == 200
    assert values[0] == 0. and values[19] == values[20] == 1e-3
    assert values[110] == pytest.approx((1e-3 + 1e-6) / 2)
    assert 1e-6 < values[199] < 1.1e-6


def test_momentum_is_halfway_at_half_time():
    values = paper.schedule(0.992, 1.0, total=1000)
    assert values[0] == 0.992 and values[500] == pytest.approx(0.996)


def test_teacher_temperature_is_linear_then_constant():
    values = paper.teacher_temperature(0.03, 0.05, total=100, warmup=30)
    assert values[0] == 0.03 and values[29] == pytest.approx(0.05)
    assert values[1] - values[0] == pytest.approx(0.02 / 29)
    assert values[30:] == [0.05] * 70


def test_positions_are_as_stored_on_the_stored_grid():
    pos_embed = torch.randn(1, 17, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(paper.positions(pos_embed, 4), pos_embed[0])


def test_positions_of_another_grid_are_sampled_at_the_scale_plus_a_tenth():
    # a field linear in the row shows where it is read: output row 3 at (3 + .5) * 28 / 6.1 - .5
    # = 15.57 and not at (3 + .5) * 28 / 6 - .5 = 15.83 (torch's bicubic bends a line by < 0.02)
    rows = torch.arange(28.).repeat_interleave(28).reshape(1, 784, 1)
    field = paper.positions(torch.cat([torch.full((1, 1, 1), -7.), rows], dim=1), 6)
    assert field.shape == (37, 1) and field[0].item() == -7.
    assert field[1 + 3 * 6].item() == pytest.approx(3.5 * 28 / 6.1 - 0.5, abs=0.02)


def test_weight_normalization_by_hand():
    weights = {'m.0.weight': torch.eye(2), 'm.0.bias': torch.zeros(2),
               'm.2.weight': torch.eye(2), 'm.2.bias': torch.zeros(2),
               'm.4.weight': torch.zeros(2, 2), 'm.4.bias': torch.tensor([3., 4.]),
               'last.weight_v': torch.tensor([[6., 8.], [0., 2.]]),
               'last.weight_g': torch.tensor([[2.], [5.]])}
    # the MLP gives (3, 4), unit (.6, .8); rows of W: 2 (.6, .8) and 5 (0, 1)
    torch.testing.assert_close(paper.head(torch.ones(1, 2), weights, 'm', 'last'),
                               torch.tensor([[2., 4.]]))


def test_the_random_checkpoint_has_the_tensors_of_the_reference():
    weights = paper.random_weights(dim=8, depth=12, patch_size=4, grid=2, ffn=16, hidden=8,
                                   bottleneck=4, prototypes=16, seed=0)
    assert len(weights) == 24 * 12 + 37
    assert sum(name.startswith('teacher.backbone.') for name in weights) == 12 * 12 + 6
