"""Forward passes of every method on a GPU that is not there: a tensor left on the CPU raises.

Tensors of the fake GPU have a shape, a dtype and a device, but no values; those of the CPU are
real. So these passes are seconds, and they find an operand on the wrong device, a dtype that does
not fit under autocast, and (by DataDependentOutputException) a hidden wait for the device. They do
not find a kernel that CUDA lacks, or a wrong number. `make test-gpu` does that, on a GPU.

Left out is what the values decide. PyTorch's engine refuses a backward pass without a real GPU.
The boxes that RPN proposes, non-maximum suppression and the sampling of boxes have as many rows as
the values say: RPN and RoI head are run up to their raw outputs, RoIAlign on given boxes.
"""

import copy
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

import pera_mm  # noqa: F401  before mmseg: it supplies the operators of mmcv
from pera_mm.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs'
sys.path.insert(0, str(CONFIGS.parent / 'tools/benchmarks'))
import steps  # noqa: E402

VIT = dict(arch=dict(_delete_=True, embed_dims=32, num_layers=4, num_heads=2,
                     feedforward_channels=64), img_size=64, init_cfg=None)


class FakeGPU(FakeTensorMode):
    """Within it 'cuda' is a fake device beside the real CPU.

    ``item``: the value of every scalar that is read from the device; None refuses to wait for it.
    """

    def __init__(self, item: int | None = None) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.item = item

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        if not any(isinstance(x, FakeTensor) or isinstance(x, torch.device) and x.type == 'cuda'
                   for x in given):
            return func(*args, **kwargs)
        if func is torch.ops.aten.nonzero.default:  # as if a third of the entries were not 0
            rows = max(args[0].numel() // 3, 1)
            return args[0].new_zeros(rows, args[0].ndim, dtype=torch.int64)
        if func is torch.ops.aten._local_scalar_dense.default and self.item is not None:
            return self.item
        return super().__torch_dispatch__(func, types, args, kwargs)


def pretraining(method: str) -> tuple[nn.Module, dict]:
    """A small model and the collated batch of its own pipeline, both on the CPU."""
    cfg = steps.load(steps.Variant(CONFIGS / f'small/{method}.py', 'fp32', False),
                     Namespace(cfg_options={}))
    return steps.build(cfg, 'cpu'), steps.make_batch(cfg, 2, 128)


def autocast(dtype: torch.dtype | None) -> torch.autocast:
    with pytest.warns(UserWarning, match='CUDA is not available'):
        context = torch.autocast('cuda', torch.bfloat16)
    context._enabled, context.fast_dtype = dtype is not None, dtype or torch.bfloat16
    return context


def assert_on_gpu(outputs: Any, number: int) -> None:
    tensors = [x for x in tree_leaves(outputs) if isinstance(x, Tensor)]
    assert len(tensors) >= number and {x.device.type for x in tensors} == {'cuda'}


@pytest.mark.parametrize('method, terms, dtype', [
    ('pera', 3, torch.bfloat16), ('dino', 1, torch.bfloat16), ('dinov2', 3, torch.bfloat16),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        ('pera', 3, torch.float16), ('pera', 3, None), ('mae', 1, torch.bfloat16),
        ('mocov3', 1, torch.bfloat16)])])
def test_losses_of_the_pretrainings(method, terms, dtype):
    model, batch = pretraining(method)
    # MMEngine's moving average, in the loss of MoCo v3, reads its number of steps.
    with FakeGPU(item=1 if method == 'mocov3' else None):
        model.to('cuda')
        with autocast(dtype):
            data = model.data_preprocessor(batch, True)
            losses = model(**data, mode='loss')
        assert_on_gpu(losses, terms)
        assert {x.dtype for x in losses.values()} == {torch.float32}
        if hasattr(model, 'advance'):
            model.accumulate()
            model.advance()
        assert_on_gpu(model.state_dict(), 50)


@pytest.mark.parametrize('leave', [
    lambda model: model.distillation.center.cpu(),
    lambda model: setattr(model.data_preprocessor, 'mean', torch.zeros(3, 1, 1)),
    lambda model: model.predictor.cpu(),
], ids=['center', 'mean', 'predictor'])
def test_a_tensor_left_on_the_cpu_is_found(leave):
    model, batch = pretraining('pera')
    with FakeGPU(), pytest.raises(RuntimeError, match='cpu'):
        model.to('cuda')
        leave(model)
        with autocast(torch.bfloat16):
            model(**model.data_preprocessor(batch, True), mode='loss')


# Downstream --------------------------------------------------------------------------------------


def downstream(config: str, **changes: Any) -> nn.Module:
    cfg = Config.fromfile(CONFIGS / f'{config}.py')
    cfg.merge_from_dict(dict(model=dict(backbone=dict(vit=copy.deepcopy(VIT)), **changes)))
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model).train()


def pixel_batch(channels: int, classes: int) -> dict:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(classes, (1, 64, 64))))
               for _ in range(2)]
    for sample in samples:
        sample.set_metainfo(dict(img_shape=(64, 64)))
    return dict(inputs=list(torch.zeros(2, channels, 64, 64, dtype=torch.uint8)),
                data_samples=samples)


@pytest.mark.parametrize('config, channels, changes', [
    ('potsdam_upernet_pera', 3, dict(decode_head=dict(in_channels=[32] * 4, channels=16,
                                                      output_channels=16))),
    ('levircd_bit_pera', 6, dict(neck=dict(in_channels=32))),
], ids=['upernet', 'bit'])
def test_losses_of_adapter_and_head(monkeypatch, config, channels, changes):
    pytest.importorskip('mmseg')
    model, batch = downstream(config, **changes), pixel_batch(channels, 2)
    # It counts the hits, by the values.
    monkeypatch.setattr('mmseg.models.decode_heads.decode_head.accuracy', lambda *_, **__: None)
    with FakeGPU(item=1):  # the loss of MMSegmentation reads the number of ignored pixels
        model.to('cuda')
        with autocast(torch.bfloat16):
            losses = model(**model.data_preprocessor(batch, True), mode='loss')
        assert_on_gpu(losses['decode.loss_ce'], 1)


def test_heads_of_the_detector():
    pytest.importorskip('mmdet')
    model = downstream('dior_faster_rcnn_pera', rpn_head=dict(in_channels=32, feat_channels=32),
                       roi_head=dict(bbox_roi_extractor=dict(out_channels=32),
                                     bbox_head=dict(in_channels=32, fc_out_channels=32)))
    images = torch.zeros(2, 3, 64, 64)
    boxes = torch.tensor([[0, 4., 4, 24, 20], [1, 30, 30, 60, 62]])
    with FakeGPU():
        model.to('cuda')
        with autocast(torch.bfloat16):
            maps = model.extract_feat(images.to('cuda'))
            scores, changes = model.rpn_head(maps)
            anchors = model.rpn_head.prior_generator.grid_priors(
                [x.shape[-2:] for x in maps], device=scores[0].device)
            pooled = model.roi_head._bbox_forward(maps, boxes.to('cuda'))
        assert [len(x) for x in anchors] == [x[0].numel() for x in scores]
        assert_on_gpu([scores, changes, anchors, pooled], 15)
        assert pooled['cls_score'].shape == (2, 21) and pooled['bbox_pred'].shape == (2, 80)
