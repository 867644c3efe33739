"""Clipping as torch does it, a stop before a bad update, learning rates that grow with depth."""

import math

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import CosineAnnealingParamScheduler, build_optim_wrapper
from torch import nn

from pera_mm.engine import optim_wrapper
from pera_mm.engine.optim_wrapper import AutocastOptimWrapper
from pera_mm.registry import MODELS, OPTIM_WRAPPERS


def make(clip_grad=None, **kwargs) -> tuple[nn.Module, AutocastOptimWrapper]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.)
    return model, AutocastOptimWrapper(optimizer=optimizer, clip_grad=clip_grad, **kwargs)


def test_clips_to_the_norm_over_all_gradients():
    model, wrapper = make(dict(max_norm=0.5))
    loss = model(torch.full((4, 3), 10.)).square().sum()
    expected = [p.detach().clone() for p in model.parameters()]
    gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    wrapper.update_params(loss)
    for parameter, old, gradient in zip(model.parameters(), expected, gradients):
        torch.testing.assert_close(parameter, old - gradient * 0.5 / (norm + 1e-6))
    assert wrapper.message_hub.get_scalar('train/grad_norm').current() == pytest.approx(
        norm.item())


@pytest.mark.parametrize(('arguments', 'expected'), [
    (dict(), torch.float32),
    (dict(on_cpu=True), torch.bfloat16),
    (dict(on_cpu=True, dtype=None), torch.float32),
])
def test_a_cpu_computes_in_bfloat16_only_when_asked(arguments, expected):
    model, wrapper = make(**arguments)
    with wrapper.optim_context(model):
        assert model(torch.ones(4, 3)).dtype == expected


def test_small_gradients_are_left_alone():
    model, wrapper = make(dict(max_norm=1e6))
    plain, _ = make()
    for net in (model, plain):
        loss = net(torch.ones(4, 3)).square().sum()
        if net is model:
            wrapper.update_params(loss)
        else:
            loss.backward()
            torch.optim.SGD(net.parameters(), lr=1.).step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters()))


@pytest.mark.parametrize('clip_grad', [None, dict(max_norm=3.0)])
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_stops_before_a_non_finite_update(clip_grad, bad):
    model, wrapper = make(clip_grad)
    wrapper.message_hub = MessageHub('of no run')
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError, match=(
            r'^training stops, because the norm of the gradients is (nan|inf); there is no '
            r'checkpoint yet: look for .* or a lower optim_wrapper\.clip_grad\.max_norm\.$')):
        wrapper.update_params(model(torch.full((4, 3), bad)).sum())
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before))


def test_a_bad_micro_iteration_is_found_at_the_step():
    model, wrapper = make(accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 4)
    wrapper.update_params(model(torch.full((4, 3), float('nan'))).sum())
    with pytest.raises(FloatingPointError):
        wrapper.update_params(model(torch.ones(4, 3)).sum())


def test_computes_in_float32_on_a_cpu():
    if torch.cuda.is_available():
        pytest.skip('this machine has a GPU')
    model, wrapper = make()
    with wrapper.optim_context(model):
        assert model(torch.ones(1, 3)).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize(('dtype', 'expected'), [('bfloat16', torch.bfloat16),
                                                 (None, torch.float32)])
def test_computes_in_the_asked_dtype_on_a_gpu(dtype, expected):
    if not torch.cuda.is_available():
        pytest.skip('this machine has no GPU')
    model, wrapper = make(dtype=dtype)
    with wrapper.optim_context(model.cuda()):
        assert model(torch.ones(1, 3, device='cuda')).dtype == expected


@pytest.mark.parametrize(('slowdown', 'warned'), [(1.9, False), (213.4, True)])
def test_a_cpu_that_is_slow_in_bfloat16_is_warned_once_at_start(
        slowdown, warned, monkeypatch):
    monkeypatch.setattr(optim_wrapper, 'bfloat16_slowdown', lambda: slowdown)
    make()
    said: list[str] = []
    logger = MMLogger.get_instance(f'slowdown {slowdown}')
    monkeypatch.setattr(logger, 'handle', lambda record: said.append(record.getMessage()))
    make(on_cpu=True, dtype=None)
    assert not said  # in float32
    model, wrapper = make(on_cpu=True)
    with wrapper.optim_context(model):
        model(torch.ones(4, 3))
    assert said == warned * [
        'This CPU takes 213 times as long for a matrix product in bfloat16 as in float32: train in '
        'float32 (--amp off).']


def test_the_slowdown_is_measured_once_in_less_than_seconds():
    first = optim_wrapper.bfloat16_slowdown()
    assert 0.1 < first < 10_000 and optim_wrapper.bfloat16_slowdown() == first


def test_bad_arguments_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match="got 'float16'; for float16 use type='AmpOptimWrapper'"):
        make(dtype='float16')
    with pytest.raises(ValueError, match=r"must be dict\(max_norm=...\) or None, got {'type': "):
        make(dict(type='value', clip_value=1.))


def test_is_found_by_its_name():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.)
    wrapper = OPTIM_WRAPPERS.build(dict(type='pera_mm.AutocastOptimWrapper', optimizer=optimizer))
    assert type(wrapper) is AutocastOptimWrapper


@pytest.mark.parametrize('kind', ['pera_mm.AutocastOptimWrapper', 'OptimWrapper'])
@pytest.mark.parametrize('paramwise', [None, dict(bias_lr_mult=2.)])
def test_the_constructor_leaves_out_what_is_frozen(kind, paramwise):
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    model[1].requires_grad_(False)
    wrapper = build_optim_wrapper(model, dict(
        type=kind, constructor='pera_mm.TrainedOnlyConstructor', paramwise_cfg=paramwise,
        optimizer=dict(type='Adagrad', lr=1.)))  # it keeps a state from the beginning
    groups = wrapper.optimizer.param_groups
    held = [parameter for group in groups for parameter in group['params']]
    assert [id(p) for p in held] == [id(p) for p in model[0].parameters()]
    assert len(wrapper.optimizer.state) == 2
    assert [group['lr'] for group in groups] == ([1., 2.] if paramwise else [1.])


# Layer-wise decay -------------------------------------------------------------------------------


class Segmentor(nn.Module):
    """As the toolboxes' models: a backbone that has a ViT, and a head."""

    def __init__(self) -> None:
        super().__init__()
        arch = dict(embed_dims=8, num_layers=4, num_heads=2, feedforward_channels=8)
        vit = dict(type='pera_mm.PerAViT', arch=arch, img_size=32)
        self.backbone = MODELS.build(dict(type='pera_mm.ViTAdapter', vit=vit, prior_channels=4))
        self.head = nn.Linear(8, 2)


def layer_decay(model: nn.Module, **paramwise) -> dict[str, dict]:
    cfg = dict(constructor='pera_mm.LayerDecayConstructor', paramwise_cfg=paramwise,
               optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.1))
    return {group['param_name']: group
            for group in build_optim_wrapper(model, cfg).optimizer.param_groups}


def test_layer_decay_gives_each_depth_its_rate():
    groups = layer_decay(Segmentor(), layer_decay_rate=0.5)
    assert set(groups) == {name for name, _ in Segmentor().named_parameters()}
    for name, exponent in {'backbone.vit.patch_embed.projection.weight': 5,
                           'backbone.vit.pos_embed': 5, 'backbone.vit.cls_token': 5,
                           'backbone.vit.layers.0.ln1.weight': 4,
                           'backbone.vit.layers.3.attn.qkv.weight': 1,
                           'backbone.vit.ln1.weight': 0, 'backbone.level_embed': 0,
                           'backbone.injectors.0.gamma': 0, 'head.weight': 0}.items():
        assert groups[name]['lr'] == pytest.approx(1e-2 * 0.5**exponent), name


def test_layer_decay_of_one_changes_nothing_and_norms_may_keep_their_weight():
    groups = layer_decay(Segmentor(), norm_decay_mult=0.)
    assert {group['lr'] for group in groups.values()} == {1e-2}
    assert groups['backbone.vit.layers.0.ln1.weight']['weight_decay'] == 0
    assert groups['backbone.vit.layers.0.ln1.bias']['weight_decay'] == 0
    assert groups['head.weight']['weight_decay'] == 0.1


def test_layer_decay_without_a_vit_says_so():
    with pytest.raises(ValueError, match='found no ViT in Linear'):
        layer_decay(nn.Linear(2, 2), layer_decay_rate=0.5)


@pytest.mark.parametrize('rate', [0, -0.5, 2, math.nan])
def test_a_layer_decay_that_is_not_one_is_refused(rate):
    with pytest.raises(ValueError, match='layer_decay_rate is .* at most 1'):
        layer_decay(nn.Linear(2, 2), layer_decay_rate=rate)


def test_layer_decay_of_a_pretraining_is_the_students(tiny_cfg):
    """DINOv2's groups: .9 per layer, patch embedding x .2 on top, no decay of 1-D tensors."""
    model = MODELS.build(tiny_cfg)
    groups = layer_decay(model, layer_decay_rate=0.9, flat_decay_mult=0., custom_keys={
        'patch_embed.projection.weight': dict(lr_mult=0.2),
        'patch_embed.projection.bias': dict(lr_mult=0.2, decay_mult=0.)})
    assert set(groups) == {name for name, p in model.named_parameters() if p.requires_grad}
    vit = 'student.backbone'
    for name, rate, decay in [(f'{vit}.patch_embed.projection.weight', 0.2 * 0.9**5, 0.1),
                              (f'{vit}.patch_embed.projection.bias', 0.2 * 0.9**5, 0.),
                              (f'{vit}.pos_embed', 0.9**5, 0.1),
                              (f'{vit}.layers.3.ln1.weight', 0.9, 0.),
                              ('student.projector.mlp.0.weight', 1., 0.1),
                              ('student.projector.mlp.0.bias', 1., 0.), ('mask_token', 1., 0.1)]:
        assert groups[name]['lr'] == pytest.approx(1e-2 * rate), name
        assert groups[name]['weight_decay'] == pytest.approx(decay), name


def test_a_weight_decay_schedule_by_ratio_lifts_no_group_without_decay():
    wrapper = build_optim_wrapper(nn.Linear(2, 2), dict(
        paramwise_cfg=dict(bias_decay_mult=0.),
        optimizer=dict(type='AdamW', lr=1., weight_decay=0.04)))
    schedule = CosineAnnealingParamScheduler(wrapper, 'weight_decay', T_max=5, eta_min_ratio=10)
    for _ in range(5):
        wrapper.optimizer.step()
        schedule.step()
    assert [group['weight_decay'] for group in wrapper.optimizer.param_groups] == [
        pytest.approx(0.4), 0.]


def test_a_frozen_teacher_is_left_out_without_a_warning_for_each_tensor(tiny_cfg, caplog):
    model = MODELS.build(tiny_cfg)
    MMLogger.get_current_instance().addHandler(caplog.handler)
    build_optim_wrapper(model, dict(
        constructor='pera_mm.TrainedOnlyConstructor', paramwise_cfg=dict(flat_decay_mult=0.),
        optimizer=dict(type='AdamW', lr=1., weight_decay=0.04)))
    assert not [record for record in caplog.records if 'requires_grad' in record.getMessage()]
