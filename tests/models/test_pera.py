"""PerA against the oracle: losses, gradients and whole training steps (equations 1-10)."""

import math
from collections.abc import Mapping

import pytest
import torch
from mmengine.optim import OptimWrapper
from reference import paper
from torch import Tensor

from pera_mm.models.selfsup.pera import PerA
from pera_mm.patches import PatchSplit, split_counts, split_patches, whole_crop
from pera_mm.registry import MODELS
from pera_mm.structures import CropGroup, CropViews
from pera_mm.weights.names import pera_to_reference, reference_to_pera

TEACHER_TEMP, MOMENTUM = 0.05, 0.8
RELATIVE = 1e-5  # of the norm of a tensor; float32 on both sides, at most 6.4e-6 measured


def build(cfg: dict, patch_size: int = 16) -> PerA:
    """The tiny PerA without stochastic depth, its clock set by hand."""
    cfg = dict(cfg, backbone=dict(cfg['backbone'], img_size=4 * patch_size, patch_size=patch_size,
                                  drop_path_rate=0.))
    model = MODELS.build(cfg)
    model.teacher_temp, model.momentum = TEACHER_TEMP, MOMENTUM
    return model


def reference_weights(seed: int = 0, patch_size: int = 16) -> dict[str, Tensor]:
    """A random checkpoint of the authors' layout with the sizes of ``tiny_cfg``."""
    return paper.random_weights(dim=32, depth=4, patch_size=patch_size, grid=4, ffn=64, hidden=64,
                                bottleneck=16, prototypes=64, seed=seed)


def load(model: PerA, weights: Mapping[str, Tensor], center: Tensor) -> None:
    state = reference_to_pera(weights)
    model.load_state_dict({**state, 'distillation.center.value': center})  # strict


def setting(patch_size: int = 16) -> paper.Setting:
    return paper.Setting(num_heads=2, patch_size=patch_size, teacher_temp=TEACHER_TEMP)


def random_center() -> Tensor:
    return 0.3 * torch.randn(1, 64, generator=torch.Generator().manual_seed(9))


def assert_near(ours: Tensor, theirs: Tensor, what: str) -> None:
    error, size = (ours - theirs).norm().item(), theirs.norm().item()
    assert error <= RELATIVE * size, f'{what}: off by {error:.2e} of {size:.2e}'


def oracle_losses(weights: Mapping[str, Tensor], crops: dict[str, CropViews], center: Tensor,
                  patch_size: int = 16) -> dict[str, Tensor]:
    return paper.losses(paper.forward(weights, crops, setting(patch_size)), center,
                        setting(patch_size))


def trainable(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone().requires_grad_(not name.startswith('teacher.'))
            for name, value in weights.items()}


def oracle_gradients(weights: Mapping[str, Tensor], loss: Tensor) -> dict[str, Tensor]:
    """d loss / d weight under OUR names; zeros for the teacher."""
    names = [name for name, value in weights.items() if value.requires_grad]
    found = torch.autograd.grad(loss, [weights[name] for name in names])
    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    return reference_to_pera({**zeros, **dict(zip(names, found))})


# Parity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('crops_as', [
    dict(num_local=8),  # ten aligned pairs, as the paper
    dict(num_local=0),
    dict(num_global=1, num_local=2),
    dict(num_images=4, ratios=(0.3, 0.1, 0.6)),
    dict(ratios=(0.3, 0.2, 0.5)),
    dict(ratios=(0.2, 0.3, 0.5)),
    dict(patch_size=8),
    dict(patch_size=14),
], ids=str)
def test_losses_and_gradients_equal_the_oracle(tiny_cfg, make_crops, crops_as):
    patch_size = crops_as.get('patch_size', 16)
    crops = make_crops(**dict(dict(num_images=3), **crops_as))
    weights, center = trainable(reference_weights(patch_size=patch_size)), random_center()
    model = build(tiny_cfg, patch_size).train()
    load(model, weights, center)

    ours, oracle = model.loss(crops), oracle_losses(weights, crops, center, patch_size)
    assert set(ours) == set(oracle) == {'loss_cls', 'loss_koleo', 'loss_pixel'}
    for name, value in oracle.items():
        assert_near(ours[name], value, name)
    sum(ours.values()).backward()
    expected = oracle_gradients(weights, paper.total(oracle))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert_near(parameter.grad, expected[name], name)


@pytest.mark.parametrize('name', ['loss_cls', 'loss_koleo', 'loss_pixel'])
def test_gradient_of_each_term_equals_the_oracle(tiny_cfg, make_crops, name):
    # the sum hides a term whose gradient is small
    crops = make_crops(num_images=3, num_local=1)
    weights, center = trainable(reference_weights(1)), random_center()
    model = build(tiny_cfg)
    load(model, weights, center)
    model.loss(crops)[name].backward()
    term = oracle_losses(weights, crops, center)[name]
    reached = {key: value for key, value in weights.items() if value.requires_grad}
    found = torch.autograd.grad(term, list(reached.values()), allow_unused=True)
    zeros = {key: torch.zeros_like(value) for key, value in weights.items()}
    expected = reference_to_pera({
        **zeros, **{key: value for key, value in zip(reached, found) if value is not None}})
    for key, parameter in model.named_parameters():
        if parameter.grad is None:
            assert not expected[key].any(), key
        else:
            assert_near(parameter.grad, expected[key], key)


def test_training_steps_equal_the_oracle(tiny_cfg, make_crops):
    """Three steps of SGD, teacher and center: every tensor of the state ends up the same."""
    weights, center = trainable(reference_weights(2)), torch.zeros(1, 64)
    model = build(tiny_cfg).train()
    load(model, weights, center)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for iteration in range(3):
        crops = make_crops(seed=iteration)
        optimizer.zero_grad()
        sum(model.loss(crops).values()).backward()
        optimizer.step()
        model.accumulate()
        model.advance()

        outputs = paper.forward(weights, crops, setting())
        loss = paper.total(paper.losses(outputs, center, setting()))
        names = [name for name, value in weights.items() if value.requires_grad]
        gradients = torch.autograd.grad(loss, [weights[name] for name in names])
        stepped = {name: value.detach() for name, value in weights.items()}
        for name, gradient in zip(names, gradients):
            stepped[name] = stepped[name] - 0.01 * gradient
        weights = trainable(paper.update_teacher(stepped, MOMENTUM))
        center = paper.update_center(center, paper.batch_mean(outputs.teacher))

    assert_near(model.distillation.center.value, center, 'center')
    state = model.state_dict()
    for name, value in reference_to_pera(weights).items():
        assert_near(state[name], value, name)


@pytest.mark.parametrize('num_local', [0, 2])
def test_observed_tensors_equal_the_oracle(tiny_cfg, make_crops, num_local):
    crops, weights, center = make_crops(num_local=num_local), reference_weights(3), random_center()
    model = build(tiny_cfg)
    load(model, weights, center)
    model.watch = True
    model.loss(crops)
    outputs = paper.forward(weights, crops, setting())
    seen = model.observed
    assert_near(seen['student_logits'], torch.stack(outputs.student[:2]), 'student_logits')
    assert_near(seen['teacher_logits'], torch.stack(outputs.teacher[:2]), 'teacher_logits')
    assert_near(seen['pixel_prediction'].flatten(0, -3), torch.stack(outputs.predictions), 'pixels')
    assert torch.equal(seen['pixel_target'].flatten(0, -3), torch.stack(outputs.targets))
    views = crops['global']
    features = [[paper.encode_teacher(views.teacher_view[c, b], views.split.teacher[c, b].tolist(),
                                      weights, setting()) for b in range(2)] for c in range(2)]
    assert_near(seen['teacher_features'], torch.stack([torch.stack(row) for row in features]),
                'teacher_features')
    assert not any(tensor.requires_grad for tensor in seen.values())


def test_the_global_crops_come_first_in_any_order_of_the_batch(tiny_cfg, make_crops):
    crops, model = make_crops(), build(tiny_cfg)
    assert model.ordered(dict(reversed(crops.items()))) == [crops['global'], crops['local']]
    with pytest.raises(ValueError):
        model.ordered({**crops, 'huge': crops['global']})


def test_nothing_is_observed_unless_watched(tiny_cfg, make_crops):
    model = build(tiny_cfg)
    model.loss(make_crops())
    assert not model.observed


def test_reference_names_cover_the_state_dict(tiny_cfg):
    model = build(tiny_cfg)
    theirs = pera_to_reference(model.state_dict())
    weights = reference_weights()
    assert {name: value.shape for name, value in theirs.items()} == {
        name: value.shape for name, value in weights.items()}
    ours = reference_to_pera(weights)
    assert set(model.state_dict()) == {*ours, 'distillation.center.value'}
    for name, value in pera_to_reference(ours).items():
        assert torch.equal(value, weights[name]), name


# What a network may see -------------------------------------------------------------------------


def scramble(views: CropViews, view: str, parts: tuple[str, ...]) -> CropViews:
    """The crops with other pixels in the named parts of one view."""
    images = getattr(views, view).clone()
    columns = images.shape[-1] // 16
    for part in parts:
        for c, b in torch.cartesian_prod(*(torch.arange(n) for n in images.shape[:2])).tolist():
            for patch in getattr(views.split, part)[c, b].tolist():
                top, left = patch // columns * 16, patch % columns * 16
                images[c, b, :, top:top + 16, left:left + 16] += 3.
    return views._replace(**{view: images})


@pytest.mark.parametrize(('view', 'parts', 'changed'), [
    ('student_view', ('learnable', 'teacher'), {'loss_pixel'}),  # l is the target, never an input
    ('student_view', ('teacher',), set()),
    ('teacher_view', ('student', 'learnable'), set()),
    ('student_view', ('student',), {'loss_cls', 'loss_koleo', 'loss_pixel'}),
    ('teacher_view', ('teacher',), {'loss_cls'}),
])
def test_each_network_sees_its_own_part_only(tiny_cfg, make_crops, view, parts, changed):
    crops, model = make_crops(), build(tiny_cfg)
    load(model, reference_weights(), random_center())
    before = model.loss(crops)
    after = model.loss({name: scramble(views, view, parts) for name, views in crops.items()})
    assert {name for name in before if not torch.equal(before[name], after[name])} == changed


def test_learnable_patches_of_local_crops_are_used_by_nobody(tiny_cfg, make_crops):
    crops, model = make_crops(), build(tiny_cfg)
    before = model.loss(crops)
    local = scramble(scramble(crops['local'], 'student_view', ('learnable',)), 'teacher_view',
                     ('learnable',))
    after = model.loss({**crops, 'local': local})
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_mask_tokens_join_at_half_depth(tiny_cfg, make_crops):
    """The first half runs on [cls] + s, the second on [cls] + s + l; local crops never grow."""
    crops, model = make_crops(), build(tiny_cfg)
    lengths = []

    def note(_, args):
        lengths.append([group.shape[1] for group in args[0]])

    for layer in model.student.backbone.layers:
        layer.register_forward_pre_hook(note)
    model.loss(crops)
    n_student, n_learnable, _ = crops['global'].split.counts()
    local = 1 + crops['local'].split.student.shape[-1]
    assert lengths == [[1 + n_student, local]] * 2 + [[1 + n_student + n_learnable, local]] * 2


# Behavior --------------------------------------------------------------------------------------


def test_every_trainable_parameter_gets_a_gradient(tiny_cfg, make_crops):
    model = build(tiny_cfg)
    model.init_weights()
    sum(model.loss(make_crops()).values()).backward()
    for name, parameter in model.named_parameters():
        if name.startswith('teacher.'):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.any(), f'no gradient for {name}'


def test_loss_is_repeatable(tiny_cfg, make_crops):
    crops, model = make_crops(), build(tiny_cfg).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = model.loss(crops), model.loss(crops)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_stochastic_depth_is_the_students_alone(tiny_cfg, make_crops):
    crops = make_crops(num_images=8)
    model = MODELS.build(tiny_cfg)  # drop_path_rate 0.3; a new module is in train mode
    model.teacher_temp = TEACHER_TEMP
    model.watch = True
    seen = []
    for _ in range(2):
        model.loss(crops)
        seen.append(model.observed)
    assert torch.equal(seen[0]['teacher_logits'], seen[1]['teacher_logits'])
    assert not torch.equal(seen[0]['student_logits'], seen[1]['student_logits'])


def test_logged_terms_add_up_to_the_loss(tiny_cfg, make_crops):
    model = build(tiny_cfg)
    losses = model.loss(make_crops())
    total, logged = model.parse_losses(losses)
    torch.testing.assert_close(total, sum(losses.values()))
    for name, value in losses.items():
        assert torch.equal(logged[name], value.detach()), name


def test_train_step_through_the_preprocessor(tiny_cfg):
    """uint8 crops in, one optimizer step out."""
    model = build(tiny_cfg).train()
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for name, size in (('global', 64), ('local', 32)):
        split = split_patches(4, split_counts((size // 16)**2, 0.2, 0.2, 0.6), generator)
        pixels = torch.randint(256, (2, 1, 2, size, size, 3), generator=generator,
                               dtype=torch.uint8)
        inputs[name] = CropGroup(pixels, PatchSplit(*(part.unflatten(0, (2, 2))
                                                      for part in split)))
    before = model.mask_token.detach().clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.)
    logged = model.train_step(dict(inputs=inputs, data_samples=None), OptimWrapper(optimizer))
    assert {'loss', 'loss_cls', 'loss_koleo', 'loss_pixel'} <= set(logged)
    assert all(value.isfinite() for value in logged.values())
    assert not torch.equal(model.mask_token, before)


def test_teacher_features_are_the_dense_teachers(tiny_cfg):
    model = build(tiny_cfg).train()
    load(model, reference_weights(), random_center())
    images = torch.randn(3, 3, 64, 64)
    features = model.teacher_features(images)
    expected = [paper.encode_teacher(image, range(16), reference_weights(), setting())
                for image in images]
    assert_near(features, torch.stack(expected), 'teacher_features')
    assert not features.requires_grad and model.training and model.student.training
    torch.testing.assert_close(model(images, mode='tensor'), features)


@pytest.mark.parametrize('switched_off', ['koleo', 'pixel'])
def test_terms_can_be_left_out(tiny_cfg, make_crops, switched_off):
    """Table 11: without pixel prediction no mask token exists and none joins."""
    off = dict(koleo=None) if switched_off == 'koleo' else dict(pixel=None, predictor=None)
    model, whole = build(dict(tiny_cfg, **off)), build(tiny_cfg)
    load(whole, reference_weights(), random_center())
    kept = set(model.state_dict())
    model.load_state_dict({k: v for k, v in whole.state_dict().items() if k in kept})
    names = {'mask_token'} | {n for n in whole.state_dict() if n.startswith('predictor.')}
    assert set(whole.state_dict()) - kept == (names if switched_off == 'pixel' else set())

    crops = make_crops()
    losses = model.loss(crops)
    assert set(losses) == {'loss_cls', 'loss_koleo', 'loss_pixel'} - {f'loss_{switched_off}'}
    if switched_off == 'pixel':  # as if the crops had no part l
        views = crops['global']
        split = views.split._replace(learnable=views.split.learnable[..., :0])
        crops = {**crops, 'global': views._replace(split=split)}
    oracle = oracle_losses(reference_weights(), crops, random_center())
    for name, value in losses.items():
        assert_near(value, oracle[name], name)


def test_without_disjoint_mask_both_see_everything(tiny_cfg, make_crops):
    """Table 11: SA without DM."""
    model = build(dict(tiny_cfg, pixel=None, predictor=None))
    crops = {}
    for name, views in make_crops().items():
        n, batch, patches = *views.split.student.shape[:2], (views.student_view.shape[-1] // 16)**2
        split = (part.unflatten(0, (n, batch)) for part in whole_crop(n * batch, patches))
        crops[name] = views._replace(split=PatchSplit(*split))
    weights = reference_weights()
    state = reference_to_pera(weights)
    kept = set(model.state_dict())
    model.load_state_dict({**{k: v for k, v in state.items() if k in kept},
                           'distillation.center.value': random_center()})
    oracle = oracle_losses(weights, crops, random_center())
    for name, value in model.loss(crops).items():
        assert_near(value, oracle[name], name)


# Messages ---------------------------------------------------------------------------------------


def test_a_clock_that_was_not_set_is_named(tiny_cfg, make_crops):
    model = MODELS.build(tiny_cfg)
    assert math.isnan(model.teacher_temp) and math.isnan(model.momentum)
    with pytest.raises(RuntimeError, match='teacher_temp is not set.*ScheduleHook'):
        model.loss(make_crops())
    with pytest.raises(RuntimeError, match='momentum is not set.*ScheduleHook'):
        model.advance()


def test_one_image_per_device_is_refused_with_koleo(tiny_cfg, make_crops):
    with pytest.raises(ValueError, match='at least 2 images per device, got 1'):
        build(tiny_cfg).loss(make_crops(num_images=1))
    losses = build(dict(tiny_cfg, koleo=None)).loss(make_crops(num_images=1))
    assert all(value.isfinite() for value in losses.values())


def test_one_image_per_device_can_be_refused_before_training(tiny_cfg):
    model = build(tiny_cfg)
    model.check_batch_size(2)
    with pytest.raises(ValueError, match='at least 2 images per device'):
        model.check_batch_size(1)
    build(dict(tiny_cfg, koleo=None)).check_batch_size(1)


@pytest.mark.parametrize('missing', ['predictor', 'pixel'])
def test_half_a_pixel_prediction_is_refused(tiny_cfg, missing):
    with pytest.raises(ValueError, match='needs both predictor and pixel'):
        build(dict(tiny_cfg, **{missing: None}))


def test_a_mask_for_another_patch_size_is_refused(tiny_cfg, make_crops):
    crops = make_crops(patch_size=8)  # 32 px: 16 patches of 8, but 4 of 16
    with pytest.raises(ValueError, match='4 patches of 16 px.*splits 16.*patch_size'):
        build(tiny_cfg).loss(crops)


def test_a_crop_that_does_not_fit_the_patch_is_refused(tiny_cfg, make_crops):
    with pytest.raises(ValueError, match='56 is not a multiple of the patch size 16'):
        build(tiny_cfg).loss(make_crops(patch_size=14))


def test_pixel_prediction_without_learnable_patches_is_refused(tiny_cfg, make_crops):
    with pytest.raises(ValueError, match='learnable.*predictor'):
        build(tiny_cfg).loss(make_crops(ratios=(0.4, 0., 0.6)))


@pytest.mark.parametrize('off', [{}, dict(predictor=None, pixel=None)], ids=['whole', 'no pixels'])
def test_a_block_mask_is_refused(tiny_cfg, off):
    split = whole_crop(2, 16)._replace(masked=torch.zeros(2, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match='PerA hides no patch by BlockMask; put DisjointMask in'):
        build(dict(tiny_cfg, **off)).check_split(64, 64, split)


def test_an_unknown_arch_is_refused(tiny_cfg):
    tiny_cfg['backbone'].update(arch='giant')
    with pytest.raises(ValueError, match="unknown arch 'giant'.*pera-g"):
        MODELS.build(tiny_cfg)


def test_an_unknown_mode_is_refused(tiny_cfg):
    with pytest.raises(ValueError, match="'loss' and 'tensor', not 'predict'"):
        build(tiny_cfg)(torch.zeros(1, 3, 64, 64), mode='predict')
