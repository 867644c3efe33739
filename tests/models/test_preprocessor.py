"""CropPreprocessor: shapes, normalization, and colors drawn apart for student and teacher."""

import copy

import pytest
import torch
from mmpretrain.structures import DataSample

from pera_mm.models.preprocessor import CropPreprocessor, ViewsPreprocessor
from pera_mm.patches import PatchSplit
from pera_mm.registry import MODELS
from pera_mm.structures import CropGroup, CropViews

PLAIN = dict(jitter=0, gray=0)
MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


def group(batch: int, crops: int, size: int, views: int = 1) -> CropGroup:
    parts = [torch.randint(9, (batch, crops, k)) for k in (2, 0, 5)]
    split = PatchSplit(*parts, masked=torch.rand(batch, crops, 7) < 0.5)
    return CropGroup(torch.randint(256, (batch, views, crops, size, size, 3), dtype=torch.uint8),
                     split)


def batch(views: int = 1) -> dict:
    return dict(inputs={'global': group(3, 2, 16, views), 'local': group(3, 4, 8, views)},
                data_samples=[DataSample(metainfo=dict(sample_idx=i)) for i in range(3)])


def equal(one: CropGroup | CropViews, two: CropGroup | CropViews) -> bool:
    """Whether all tensors, those of the split too, are the same."""
    return all(torch.equal(a, b) for a, b in zip((*one[:-1], *one.split), (*two[:-1], *two.split),
                                                 strict=True))


def changed_rows(views: CropViews) -> tuple[torch.Tensor, torch.Tensor]:
    """Of solid-color crops: which student rows are gray, which views differ."""
    pixels = views.student_view.flatten(0, 1) * STD + MEAN
    gray = (pixels - pixels[:, :1]).abs().amax(dim=(1, 2, 3)) < 1e-2
    return gray, (views.student_view != views.teacher_view).flatten(0, 1).flatten(1).any(1)


def test_without_colors_the_two_views_are_the_normalized_pixels():
    data = batch()
    out = CropPreprocessor(student=PLAIN, teacher=PLAIN)(data, training=True)
    for name, views in out['inputs'].items():
        given = data['inputs'][name]
        assert isinstance(views, CropViews)
        assert views.student_view.dtype == torch.float32 and views.student_view.is_contiguous()
        expected = (given.pixels[:, 0].float().permute(1, 0, 4, 2, 3) - MEAN) / STD
        torch.testing.assert_close(views.student_view, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(views.student_view, views.teacher_view)
        for part, batched in zip(views.split, given.split, strict=True):  # [B, n, k] to [n, B, k]
            assert part.dtype == batched.dtype and torch.equal(part, batched.transpose(0, 1))
    assert [sample.sample_idx for sample in out['data_samples']] == [0, 1, 2]


def test_autocast_changes_no_pixel():
    preprocessor = CropPreprocessor(student=dict(jitter=1.0, blur=1.0, solarize=0.5))
    data, views = batch(), []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            views.append(preprocessor(data, training=True)['inputs']['global'].student_view)
    assert torch.equal(*views)


def test_two_geometries_go_to_their_own_network():
    data = batch(views=2)
    out = CropPreprocessor(student=PLAIN, teacher=PLAIN)(data, training=True)['inputs']['local']
    for view, pixels in enumerate(data['inputs']['local'].pixels.unbind(1)):
        expected = (pixels.float().permute(1, 0, 4, 2, 3) - MEAN) / STD
        torch.testing.assert_close(out[view], expected, atol=1e-5, rtol=1e-5)


def test_outside_training_nothing_is_recolored_and_no_random_number_drawn():
    state = torch.get_rng_state()
    data = batch()
    torch.set_rng_state(state)
    out = CropPreprocessor(student=dict(gray=1), teacher=dict(gray=1))(data)['inputs']['global']
    plain = CropPreprocessor().normalize(data['inputs']['global'].pixels[:, 0]).transpose(0, 1)
    assert torch.equal(out.student_view, plain) and torch.equal(out.teacher_view, plain)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_batch_itself_is_left_alone():
    data = batch()
    before = copy.deepcopy(data['inputs'])
    CropPreprocessor(student=dict(jitter=1), teacher=dict(gray=1))(data, training=True)
    for name, given in data['inputs'].items():
        assert equal(given, before[name])


def test_default_recipes_come_as_often_as_in_the_reference():
    """4000 crops: student .72 jitter / .08 gray / .20 none; teacher .10 jitter, never gray."""
    solid = torch.tensor([200, 90, 40], dtype=torch.uint8).expand(1000, 1, 4, 2, 2, 3)
    none = torch.zeros(1000, 4, 0, dtype=torch.long)
    crops = CropGroup(solid, PatchSplit(none, none, none, none.bool()))
    preprocessor = CropPreprocessor()
    out = preprocessor(dict(inputs={'local': crops}), training=True)['inputs']['local']
    untouched = preprocessor.normalize(solid[0, 0, 0])
    student, teacher = (view.flatten(0, 1) for view in out[:2])
    student_gray, views_differ = changed_rows(out)
    student_same = (student == untouched).flatten(1).all(1)
    teacher_same = (teacher == untouched).flatten(1).all(1)
    teacher_gray, _ = changed_rows(out._replace(student_view=out.teacher_view))

    def share(rows: torch.Tensor) -> float:
        return rows.float().mean().item()

    assert share(student_gray) == pytest.approx(0.08, abs=0.018)  # 4 standard deviations
    assert share(student_same) == pytest.approx(0.20, abs=0.026)
    assert share(teacher_same) == pytest.approx(0.90, abs=0.020)
    assert not teacher_gray.any()
    # Independent draws: both untouched as often as the product says, else the views differ.
    assert share(~views_differ) == pytest.approx(0.20 * 0.90, abs=0.025)
    both_jittered = ~student_same & ~student_gray & ~teacher_same
    assert both_jittered.any() and views_differ[both_jittered].all()


def test_colors_follow_the_torch_seed():
    data, preprocessor = batch(), CropPreprocessor(teacher=dict(jitter=1))
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append(preprocessor(data, training=True)['inputs']['global'])
    assert equal(runs[0], runs[1])
    assert not torch.equal(runs[0].student_view, runs[2].student_view)
    assert not torch.equal(runs[0].teacher_view, runs[2].teacher_view)
    rows = runs[0].teacher_view - preprocessor.normalize(
        data['inputs']['global'].pixels[:, 0]).transpose(0, 1)
    assert len(rows.flatten(0, 1).flatten(1).unique(dim=0)) == 6  # a draw of its own per crop


def test_recipes_per_crop_express_dinov2():
    """Only global crop 2 is solarized here; only local crops are gray."""
    colors = dict(global_crops=[dict(blur=1.0), dict(solarize=1.0)],
                   local_crops=dict(gray=1.0, exclusive=False))
    data = batch()
    out = CropPreprocessor(student=colors, teacher=PLAIN)(data, training=True)['inputs']
    raw = data['inputs']['global'].pixels[:, 0, 1].permute(0, 3, 1, 2).float()
    solarized = torch.where(raw >= 128, 255 - raw, raw)
    torch.testing.assert_close(out['global'].student_view[1], (solarized - MEAN) / STD,
                               atol=1e-4, rtol=1e-4)
    blurred, sharp = out['global'].student_view[0], out['global'].teacher_view[0]
    assert blurred.diff(dim=-1).abs().mean() < sharp.diff(dim=-1).abs().mean()
    assert changed_rows(out['local'])[0].all()


def test_without_teacher_colors_both_networks_see_one_view():
    """The student's colors are those of a run with teacher colors, at the same seed."""
    data, views = batch(), []
    for teacher in (None, PLAIN):
        torch.manual_seed(3)
        preprocessor = CropPreprocessor(student=dict(jitter=1), teacher=teacher)
        views.append(preprocessor(dict(inputs={'global': data['inputs']['global']}),
                                  training=True)['inputs']['global'])
    shared, apart = views
    assert shared.teacher_view is shared.student_view
    assert torch.equal(shared.student_view, apart.student_view)
    assert not torch.equal(shared.student_view, apart.teacher_view)


def test_one_view_cannot_have_two_geometries():
    with pytest.raises(ValueError, match='shows both networks the same view, but .* cut two'):
        CropPreprocessor(teacher=None)(batch(views=2), training=True)


def test_normalize_keeps_leading_axes():
    pixels = torch.randint(256, (2, 5, 8, 8, 3), dtype=torch.uint8)
    out = CropPreprocessor(mean=(0, 0, 0), std=(255, 255, 255)).normalize(pixels)
    torch.testing.assert_close(out, pixels.permute(0, 1, 4, 2, 3) / 255)


def test_built_by_name_and_absent_from_the_state_dict():
    preprocessor = MODELS.build(dict(type='pera_mm.CropPreprocessor'))
    assert isinstance(preprocessor, CropPreprocessor) and not preprocessor.state_dict()
    assert not list(preprocessor.parameters())


def test_moves_with_the_model():
    preprocessor = CropPreprocessor().to('meta')
    views = preprocessor(dict(inputs={'global': group(2, 2, 8)}))['inputs']['global']
    assert all(part.device.type == 'meta' for part in (*views[:2], *views.split))


@pytest.mark.parametrize('inputs', [None, torch.zeros(2, 3, 8, 8), {'global': torch.zeros(1)},
                                    {'global': CropGroup(*[torch.zeros(1, 2, 8, 8, 3)] * 2)}])
def test_other_batches_are_refused(inputs):
    with pytest.raises(TypeError, match="'inputs' are collated CropGroups; end the pipeline with"):
        CropPreprocessor()(dict(inputs=inputs))
    with pytest.raises(TypeError, match="'inputs' are collated CropGroups"):
        ViewsPreprocessor()(dict(inputs=inputs))


@pytest.mark.parametrize('kwargs, message', [
    (dict(mean=(1, 2)), 'three numbers each'),
    (dict(std=(0, 1, 1)), 'std above 0'),
    (dict(student=dict(jitter=2)), 'jitter must be in'),
    (dict(student=dict(sharpness=1)), "the student's global colors must be .* keys among jitter"),
    (dict(teacher=dict(global_crops=PLAIN)), "the teacher's colors per group need exactly the"),
])
def test_bad_arguments_fail_at_build(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CropPreprocessor(**kwargs)


def test_a_recipe_list_must_fit_the_crops():
    preprocessor = CropPreprocessor(student=dict(global_crops=[PLAIN] * 3, local_crops=PLAIN))
    with pytest.raises(ValueError, match='list 3 recipes, but there are 2 global crops'):
        preprocessor(batch(), training=True)


def views_batch(crops: int, views: int = 1) -> dict:
    return dict(batch(), inputs={'global': group(3, crops, 16, views)})


def test_one_crop_becomes_one_tensor():
    data = views_batch(1)
    out = ViewsPreprocessor()(data, training=True)
    expected = (data['inputs']['global'].pixels[:, 0, 0].float().permute(0, 3, 1, 2) - MEAN) / STD
    torch.testing.assert_close(out['inputs'], expected, atol=1e-5, rtol=1e-5)
    assert [sample.sample_idx for sample in out['data_samples']] == [0, 1, 2]


def test_two_crops_become_a_list_each_with_its_colors():
    data = views_batch(2)
    out = ViewsPreprocessor(colors=[{}, dict(gray=1)])(data, training=True)['inputs']
    assert isinstance(out, list) and [view.shape for view in out] == [(3, 3, 16, 16)] * 2
    raw = data['inputs']['global'].pixels[:, 0].float().permute(1, 0, 4, 2, 3)
    torch.testing.assert_close(out[0], (raw[0] - MEAN) / STD, atol=1e-5, rtol=1e-5)
    luma = (raw[1] * torch.tensor([.2989, .587, .114]).view(3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(out[1], (luma.expand(3, 3, 16, 16) - MEAN) / STD,
                               atol=1e-4, rtol=1e-4)


def test_views_are_colored_in_training_only():
    data = views_batch(2)
    preprocessor = ViewsPreprocessor(colors=dict(gray=1))
    plain, gray = (preprocessor(data, training=training)['inputs'] for training in (False, True))
    for index in (0, 1):
        raw = data['inputs']['global'].pixels[:, 0, index].float().permute(0, 3, 1, 2)
        torch.testing.assert_close(plain[index], (raw - MEAN) / STD, atol=1e-5, rtol=1e-5)
        assert not torch.equal(plain[index], gray[index])


@pytest.mark.parametrize('make, message', [
    (lambda: batch(), r'crops of one size; set local_crops=dict\(number=0\) of AlignedCrops'),
    (lambda: views_batch(2, views=2), 'cut two; set aligned=True'),
    (lambda: views_batch(3), 'list 2 recipes, but there are 3 global crops'),
])
def test_batches_that_are_no_views_are_refused(make, message):
    preprocessor = ViewsPreprocessor(colors=[PLAIN] * 2)
    with pytest.raises(ValueError, match=message):
        preprocessor(make(), training=True)
