"""DINO and DINOv2 against the oracle: losses, gradients and whole training steps."""

import copy

import pytest
import torch
from reference import dino, paper
from torch import Tensor

from pera_mm.models.selfsup.dino import DINO
from pera_mm.models.selfsup.dinov2 import DINOv2
from pera_mm.patches import PatchCounts, PatchSplit, split_patches, whole_crop
from pera_mm.registry import MODELS
from pera_mm.structures import CropViews
from pera_mm.weights.names import reference_to_pera

TEACHER_TEMP, MOMENTUM = 0.05, 0.8
RELATIVE = 1e-5  # of the norm of a tensor; float32 on both sides
SETTING = paper.Setting(num_heads=2, teacher_temp=TEACHER_TEMP)
PATCH_K = 48  # prototypes of the patches' own head


@pytest.fixture
def dino_cfg(tiny_cfg) -> dict:
    cfg = {key: tiny_cfg[key] for key in ('backbone', 'projector')}
    cfg['backbone'] = dict(cfg['backbone'], drop_path_rate=0.)
    return dict(type='pera_mm.DINO', distillation=dict(type='pera_mm.CrossCropLoss'), **cfg)


@pytest.fixture
def dinov2_cfg(dino_cfg) -> dict:
    return dict(dino_cfg, type='pera_mm.DINOv2', ibot=dict(type='pera_mm.IBOTLoss'),
                patch_projector=dict(dino_cfg['projector'], num_prototypes=PATCH_K),
                koleo=dict(type='pera_mm.KoLeoLoss'))


def build(cfg: dict) -> DINO:
    model = MODELS.build(cfg)
    model.teacher_temp, model.momentum = TEACHER_TEMP, MOMENTUM
    return model.train()


def whole_views(num_crops: int, num_images: int, grid: int, generator: torch.Generator,
                masked: bool) -> CropViews:
    """Random crops of ``grid x grid`` patches, all seen; every other global crop is masked."""
    shape, size = (num_crops, num_images), 16 * grid
    view = torch.randn(*shape, 3, size, size, generator=generator)
    split = PatchSplit(*(part.unflatten(0, shape)
                         for part in whole_crop(num_crops * num_images, grid**2)))
    if masked:
        split = split._replace(masked=torch.rand(*shape, grid**2, generator=generator) < 0.4)
        split.masked.flatten(0, 1)[::2] = False
    return CropViews(view, view, split)


def make_crops(num_images: int = 2, num_global: int = 2, num_local: int = 2, masked: bool = False,
               seed: int = 0) -> dict[str, CropViews]:
    generator = torch.Generator().manual_seed(seed)
    crops = {'global': whole_views(num_global, num_images, 4, generator, masked)}
    if num_local:
        crops['local'] = whole_views(num_local, num_images, 2, generator, False)
        if masked:
            local = crops['local']
            mask = torch.zeros_like(local.split.student).bool()
            crops['local'] = local._replace(split=local.split._replace(masked=mask))
    return crops


def random_weights(seed: int = 0, patch_head: bool = False) -> dict[str, Tensor]:
    """The oracle's checkpoint; the student's part can be trained."""
    sizes = dict(dim=32, depth=4, patch_size=16, grid=4, ffn=64, hidden=64, bottleneck=16)
    weights = paper.random_weights(**sizes, prototypes=64, seed=seed)
    if patch_head:
        heads = paper.random_weights(**sizes, prototypes=PATCH_K, seed=seed + 100)
        weights.update({name.replace('cls_head', 'patch_projector'): value
                        for name, value in heads.items() if 'cls_head' in name})
    return {name: value.requires_grad_(not name.startswith('teacher.'))
            for name, value in weights.items()}


def under_our_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    patch_head = {name: value for name, value in weights.items() if 'patch_projector' in name}
    shared = reference_to_pera({name: value for name, value in weights.items()
                                if name not in patch_head})
    return {**patch_head, **{name: value for name, value in shared.items()
                             if not name.startswith('predictor.')}}


def load(model: DINO, weights: dict[str, Tensor], centers: dino.Centers) -> None:
    state = {**under_our_names(weights), 'distillation.center.value': centers.cls,
             'ibot.center.value': centers.patch}
    if getattr(model, 'ibot', None) is None:
        del state['mask_token'], state['ibot.center.value']
    model.load_state_dict(state)  # strict


def random_centers(patch_prototypes: int) -> dino.Centers:
    generator = torch.Generator().manual_seed(9)
    return dino.Centers(*(0.3 * torch.randn(1, k, generator=generator)
                          for k in (64, patch_prototypes)))


def assert_near(ours: Tensor, theirs: Tensor, what: str) -> None:
    error, size = (ours - theirs).norm().item(), theirs.norm().item()
    assert error <= RELATIVE * size, f'{what}: off by {error:.2e} of {size:.2e}'


def assert_agree(model: DINO, weights: dict[str, Tensor], crops: dict[str, CropViews],
                 centers: dino.Centers, koleo_on: str | None = None) -> None:
    """Each term and the gradient of their sum."""
    load(model, weights, centers)
    masked = crops['global'].split.masked.shape[-1] > 0
    outputs = dino.forward(weights, crops, SETTING, masked)
    wanted, ours = dino.losses(outputs, centers, SETTING, koleo_on), model.loss(crops)
    assert set(ours) == set(wanted)
    for name, value in wanted.items():
        assert_near(ours[name], value, name)
    sum(ours.values()).backward()
    names = [name for name, value in weights.items() if value.requires_grad]
    found = torch.autograd.grad(paper.total(wanted), [weights[name] for name in names],
                                allow_unused=True)
    gradients = {name: torch.zeros_like(value) for name, value in weights.items()}
    gradients.update({name: value for name, value in zip(names, found) if value is not None})
    gradients = under_our_names(gradients)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert_near(parameter.grad, gradients[name], name)


# DINO -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('crops_as', [
    dict(num_images=3), dict(num_local=0), dict(num_local=8), dict(num_global=1),
    dict(num_global=3, num_local=1)
], ids=str)
def test_dino_equals_the_oracle_in_losses_and_gradients(dino_cfg, crops_as):
    assert_agree(build(dino_cfg), random_weights(), make_crops(**crops_as), random_centers(64))


def test_eighteen_pairs_of_two_global_and_eight_local_crops(dino_cfg):
    """Each pair weighs 1 / 18: one certain disagreement moves the loss by that much."""
    loss = build(dino_cfg).distillation
    agreed = torch.tensor([40.] + [0.] * 63).expand(10, 1, 64)
    for crop, pairs in ((0, 1), (1, 1), (2, 2), (9, 2)):  # a global crop is in one pair, not two
        student = agreed.clone()
        student[crop] = student[crop].roll(1)
        value = loss(list(student.split([2, 8])), [agreed[:2]], 0.1)
        assert value.item() == pytest.approx(400 * pairs / 18, rel=1e-5)


def test_a_single_crop_is_refused(dino_cfg):
    with pytest.raises(ValueError, match='there is only one; raise the number of global or local'):
        build(dino_cfg).loss(make_crops(num_global=1, num_local=0))


@pytest.mark.parametrize('split', [
    split_patches(2, PatchCounts(3, 3, 3), torch.Generator()),
    whole_crop(2, 9)._replace(masked=torch.zeros(2, 4, dtype=torch.bool)),
], ids=['thirds', 'mask of another grid'])
def test_a_split_that_does_not_show_every_patch_is_refused(dino_cfg, split):
    model = build(dino_cfg)
    model.check_split(48, 48, whole_crop(2, 9))
    with pytest.raises(ValueError, match='DINO shows every patch to student and teacher'):
        model.check_split(48, 48, split)


def test_the_norm_of_the_last_layer_can_stay_one(dino_cfg):
    dino_cfg['projector']['norm_last_layer'] = True
    model = build(dino_cfg)
    sum(model.loss(make_crops()).values()).backward()
    for name, parameter in model.student.named_parameters():
        trained = not name.endswith('weight_g')
        assert parameter.requires_grad == trained and (parameter.grad is not None) == trained
    model.accumulate()
    model.advance()
    assert torch.equal(model.teacher.projector.last_layer.weight_g, torch.ones(64, 1))


def test_no_qkv_bias_and_another_epsilon_as_in_the_authors_repository(dino_cfg):
    dino_cfg['backbone'].update(qkv_bias=False, norm_cfg=dict(type='LN', eps=1e-5))
    model = build(dino_cfg)
    model.init_weights()
    assert model.student.backbone.layers[0].attn.qkv.bias is None
    assert {module.eps for module in model.modules()
            if isinstance(module, torch.nn.LayerNorm)} == {1e-5}
    assert model.student.backbone.layers[0].attn.qkv.weight.abs().max() < 0.2  # drawn with .02
    loss = model.loss(make_crops())['loss_cls']
    loss.backward()
    assert loss.isfinite()


def test_stochastic_depth_can_grow_with_depth(dino_cfg):
    dino_cfg['backbone'].update(drop_path_rate=0.3, drop_path_uniform=False)
    model = build(dino_cfg)
    rates = [layer.drop_path_rate for layer in model.student.backbone.layers]
    assert rates == pytest.approx([0., 0.1, 0.2, 0.3])
    assert not any(layer.drop_path_rate for layer in model.teacher.backbone.layers)


# DINOv2 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('own_head', [True, False])
@pytest.mark.parametrize('koleo_on', ['scores', 'features'])
def test_dinov2_equals_the_oracle_in_losses_and_gradients(dinov2_cfg, own_head, koleo_on):
    if not own_head:
        dinov2_cfg['patch_projector'] = None
    model = build(dict(dinov2_cfg, koleo_on=koleo_on))
    assert_agree(model, random_weights(patch_head=own_head), make_crops(3, masked=True),
                 random_centers(PATCH_K if own_head else 64), koleo_on)


@pytest.mark.parametrize('term', ['loss_cls', 'loss_ibot', 'loss_koleo'])
def test_gradient_of_each_term_equals_the_oracle(dinov2_cfg, term):
    # the sum hides a term whose gradient is small
    weights, centers = random_weights(1, patch_head=True), random_centers(PATCH_K)
    crops, model = make_crops(3, masked=True), build(dinov2_cfg)
    load(model, weights, centers)
    model.loss(crops)[term].backward()
    wanted = dino.losses(dino.forward(weights, crops, SETTING, True), centers, SETTING,
                         'scores')[term]
    names = [name for name, value in weights.items() if value.requires_grad]
    found = torch.autograd.grad(wanted, [weights[name] for name in names], allow_unused=True)
    gradients = {name: torch.zeros_like(value) for name, value in weights.items()}
    gradients.update({name: value for name, value in zip(names, found) if value is not None})
    gradients = under_our_names(gradients)
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert not gradients[name].any(), name
        else:
            assert_near(parameter.grad, gradients[name], name)


def test_training_steps_equal_the_oracle(dinov2_cfg):
    """Three steps of SGD, teacher and both centers: every tensor ends up the same."""
    weights = random_weights(2, patch_head=True)
    centers = dino.Centers(torch.zeros(1, 64), torch.zeros(1, PATCH_K))
    model = build(dinov2_cfg)
    load(model, weights, centers)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for iteration in range(3):
        crops = make_crops(masked=True, seed=iteration)
        optimizer.zero_grad()
        sum(model.loss(crops).values()).backward()
        optimizer.step()
        model.accumulate()
        model.advance()

        outputs = dino.forward(weights, crops, SETTING, True)
        loss = paper.total(dino.losses(outputs, centers, SETTING, 'scores'))
        names = [name for name, value in weights.items() if value.requires_grad]
        found = torch.autograd.grad(loss, [weights[name] for name in names], allow_unused=True)
        with torch.no_grad():
            for name, gradient in zip(names, found):
                if gradient is not None:
                    weights[name] -= 0.01 * gradient
            students = {name: value for name, value in weights.items() if 'pred_head' not in name}
            weights = {**weights, **paper.update_teacher(students, MOMENTUM)}
        weights = {name: value.detach().requires_grad_(not name.startswith('teacher.'))
                   for name, value in weights.items()}
        centers = dino.update_centers(centers, outputs)

    state = model.state_dict()
    for name, value in under_our_names(weights).items():
        assert_near(state[name], value.detach(), name)
    assert_near(state['distillation.center.value'], centers.cls, 'center')
    assert_near(state['ibot.center.value'], centers.patch, 'center of the patches')


def test_without_ibot_it_is_dino_and_koleo(dino_cfg, dinov2_cfg):
    plain = build(dino_cfg)
    model = build(dict(dinov2_cfg, ibot=None))
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.load_state_dict(plain.state_dict())
    crops = make_crops(3, masked=True)  # a mask in the pipeline changes nothing
    ours, koleo = model.loss(crops), MODELS.build(dict(type='pera_mm.KoLeoLoss'))
    assert set(ours) == {'loss_cls', 'loss_koleo'}
    assert torch.equal(ours['loss_cls'], plain.loss(crops)['loss_cls'])
    assert torch.equal(ours['loss_koleo'], koleo(plain.study(list(crops.values())).scores[0]))


def test_a_hidden_patch_reaches_the_teacher_only(dinov2_cfg):
    model, crops = build(dinov2_cfg), make_crops(masked=True)
    mask = crops['global'].split.masked.unflatten(2, (4, 4)).repeat_interleave(16, 2)
    mask = mask.repeat_interleave(16, 3).unsqueeze(2)
    view = crops['global'].student_view
    changed = crops['global']._replace(student_view=torch.where(mask, view + 1, view))
    for one, two in zip(model.study([crops['global']]).scores, model.study([changed]).scores):
        assert torch.equal(one, two)
    changed = changed._replace(teacher_view=changed.student_view)
    one, two = (model.teach([views]).scores[0] for views in (crops['global'], changed))
    assert not torch.equal(one, two)


def test_loss_moves_nothing_and_can_be_repeated(dinov2_cfg):
    model, crops = build(dinov2_cfg), make_crops(masked=True)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = model.loss(crops), model.loss(crops)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_teacher_starts_as_a_copy_with_storage_of_its_own(dinov2_cfg):
    model = build(dinov2_cfg)
    model.init_weights()
    student, teacher = model.student.state_dict(), model.teacher.state_dict()
    assert student.keys() == teacher.keys()
    assert any('patch_projector' in name for name in student)
    for name, value in student.items():
        assert torch.equal(value, teacher[name]) and value.data_ptr() != teacher[name].data_ptr()
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_unknown_place_of_koleo(dinov2_cfg):
    with pytest.raises(ValueError, match=r"koleo_on must be 'scores' .* or 'features' .* 'cls'"):
        DINOv2(**{**{key: value for key, value in dinov2_cfg.items() if key != 'type'},
                  'koleo_on': 'cls'})


def test_bfloat16_stays_close_and_losses_are_float32(dinov2_cfg):
    model, crops = build(dinov2_cfg), make_crops(4, masked=True)
    exact = model.loss(crops)
    with torch.autocast('cpu', torch.bfloat16):
        rounded = model.loss(crops)
        sum(rounded.values()).backward()
    for name, value in exact.items():
        assert rounded[name].dtype == torch.float32
        torch.testing.assert_close(rounded[name], value, rtol=0.02, atol=0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_deepcopy_and_recomputed_activations_change_nothing(dinov2_cfg):
    model, crops = build(dinov2_cfg), make_crops(masked=True)
    copied = copy.deepcopy(model)
    for module in copied.student.modules():
        if hasattr(module, 'with_cp'):
            module.with_cp = True
    losses = [sum(each.loss(crops).values()) for each in (model, copied)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for one, two in zip(model.parameters(), copied.parameters()):
        assert one.grad is None or torch.equal(one.grad, two.grad)


def test_an_empty_mask_costs_and_moves_nothing(dinov2_cfg):
    """It happens where no crop is masked, as with a pipeline of one's own."""
    model, crops = build(dinov2_cfg), make_crops(masked=True)
    crops['global'].split.masked.zero_()
    loss = model.loss(crops)
    sum(loss.values()).backward()
    assert loss['loss_ibot'] == 0
    model.accumulate()
    model.advance()
    assert model.ibot.center.value.isfinite().all()
