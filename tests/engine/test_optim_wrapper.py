"""AutocastOptimWrapper: clipping as torch does it, and a stop before a bad update."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from pera_mm.engine.optim_wrapper import AutocastOptimWrapper
from pera_mm.registry import OPTIM_WRAPPERS


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
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError, match=r'^the gradient norm is (nan|inf), so training '
                                                 r'stops before this update and the weights are '
                                                 r'still good; .* with --resume\.$'):
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
