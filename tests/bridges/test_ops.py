"""mmcv's operators over torchvision: the same numbers as plain loops, gradients included."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pera_mm  # noqa: F401  (first: its bridge supplies what mmcv.ops imports)

# isort: split
import mmcv
import pytest
import torch
import torchvision
from mmcv.ops import RoIAlign, batched_nms, nms, roi_align, sigmoid_focal_loss, soft_nms
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from torch import Tensor

from pera_mm.bridges import ops as ops_bridge

bridged = pytest.mark.skipif(
    ops_bridge.provider() != 'bridged', reason='a compiled mmcv is installed: nothing to bridge'
)


# -- the finder -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a fresh interpreter says in which mmcv has a binary (its Python files, plus _ext)."""
    package = tmp_path_factory.mktemp('site') / 'mmcv'
    package.mkdir()
    for item in Path(mmcv.__file__).parent.iterdir():
        if not item.name.startswith('_ext'):
            (package / item.name).symlink_to(item)
    (package / '_ext.py').write_text("def __getattr__(name): return lambda *a, **k: 'compiled'\n")
    code = (
        'import json, sys, pera_mm\n'
        'from pera_mm.bridges.ops import activate, provider\n'
        'answer = dict(modules=sorted(sys.modules))\n'
        'activate()\n'
        'answer.update(finders=[type(finder).__name__ for finder in sys.meta_path])\n'
        'import mmcv._ext, mmcv.ops\n'
        'answer.update(file=mmcv._ext.__file__, provider=provider(),\n'
        '              compiler=mmcv.ops.get_compiler_version())\n'
        'print(json.dumps(answer))'
    )
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        env=os.environ | dict(PYTHONPATH=str(package.parent)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout) | dict(expected_file=str(package / '_ext.py'))


def test_importing_the_package_imports_nothing_heavy(fresh: dict):
    heavy = {'torchvision', 'mmcv', 'mmpretrain', 'mmseg', 'mmdet', 'timm', 'rasterio', 'sklearn'}
    assert heavy & set(fresh['modules']) == set()


def test_the_bridge_is_the_last_finder_and_there_only_once(fresh: dict):
    assert fresh['finders'].count('OpsBridge') == 1
    assert fresh['finders'][-1] == 'OpsBridge'


def test_a_compiled_mmcv_wins(fresh: dict):
    assert fresh['file'] == fresh['expected_file']
    assert (fresh['provider'], fresh['compiler']) == ('compiled', 'compiled')


@bridged
def test_without_the_bridge_nobody_supplies_operators(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, 'mmcv._ext')
    others = [f for f in sys.meta_path if not isinstance(f, ops_bridge.OpsBridge)]
    monkeypatch.setattr(sys, 'meta_path', others)
    assert ops_bridge.provider() == 'nobody'


@bridged
def test_a_missing_operator_is_named_when_called_not_when_imported():
    with pytest.raises(NotImplementedError, match='sigmoid_focal_loss_forward.*mim install mmcv'):
        sigmoid_focal_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 2.0, 0.25)
    with pytest.raises(AttributeError, match='__path__'):
        import mmcv._ext

        mmcv._ext.__path__  # noqa: B018


# -- nms ------------------------------------------------------------------------------------


def boxes_and_scores(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * 8
    size = torch.rand(n, 2, generator=generator) * 10 + 5
    return torch.cat([corner, corner + size], 1), torch.rand(n, generator=generator)


def slow_iou(a: list[float], b: list[float], offset: int) -> float:
    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1 + offset, 0) * max(y2 - y1 + offset, 0)

    both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return both / (area(*a) + area(*b) - both)


def slow_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -float(scores[i])):
        box = boxes[i].tolist()
        if all(slow_iou(box, boxes[j].tolist(), offset) <= threshold for j in kept):
            kept.append(i)
    return kept


@bridged
@pytest.mark.parametrize('threshold', [0.2, 0.5, 0.7])
@pytest.mark.parametrize('offset', [0, 1])
def test_nms_equals_the_slow_one(threshold: float, offset: int):
    boxes, scores = boxes_and_scores(40)
    dets, kept = nms(boxes, scores, threshold, offset=offset)
    assert 1 < len(kept) < 40
    assert kept.tolist() == slow_nms(boxes, scores, threshold, offset)
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[kept])
    if offset == 0:
        assert kept.tolist() == torchvision.ops.nms(boxes, scores, threshold).tolist()


@bridged
def test_nms_limits_and_empty_input():
    boxes, scores = boxes_and_scores(40)
    expected = [i for i in slow_nms(boxes, scores, 0.5, 0) if scores[i] > 0.3]
    kept = nms(boxes, scores, 0.5, score_threshold=0.3, max_num=4)[1]
    assert kept.tolist() == expected[:4]
    assert nms(boxes[:0], scores[:0], 0.5)[1].tolist() == []
    half = nms(boxes.bfloat16(), scores.bfloat16(), 0.5)[1]
    exact = slow_nms(boxes.bfloat16().float(), scores.bfloat16().float(), 0.5, 0)
    assert half.tolist() == exact


@bridged
def test_batched_nms_keeps_classes_apart():
    boxes, scores = boxes_and_scores(30)
    classes = torch.arange(30) % 3
    kept = batched_nms(boxes, scores, classes, dict(type='nms', iou_threshold=0.4))[1]
    expected = [
        int((classes == c).nonzero()[i])
        for c in range(3)
        for i in slow_nms(boxes[classes == c], scores[classes == c], 0.4, 0)
    ]
    assert sorted(kept.tolist()) == sorted(expected)


@bridged
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_equals_the_slow_one(method: str, offset: int):
    boxes, scores = boxes_and_scores(25)
    left = [(float(scores[i]), i) for i in range(25)]
    expected = []
    while left:
        best = max(left)
        left.remove(best)
        expected.append(best)
        decayed = []
        for score, i in left:
            iou = slow_iou(boxes[best[1]].tolist(), boxes[i].tolist(), offset)
            if method == 'gaussian':
                score *= math.exp(-(iou**2) / 0.5)
            elif iou >= 0.3:
                score *= 1 - iou if method == 'linear' else 0
            decayed.append((score, i))
        left = [(score, i) for score, i in decayed if score >= 0.05]
    dets, kept = soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert kept.tolist() == [i for _, i in expected]
    assert len(kept) < 25
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for score, _ in expected]))
    torch.testing.assert_close(dets[:, :4], boxes[kept])


# -- RoIAlign -------------------------------------------------------------------------------

ROIS = torch.tensor(
    [
        [0, 1.3, 2.1, 9.2, 11.7],
        [1, 0.0, 0.0, 13.9, 11.8],  # the whole image
        [1, -3.0, -2.0, 5.0, 4.0],  # hangs over the border
        [0, 6.0, 5.0, 6.2, 5.1],  # smaller than a feature pixel
    ]
)


def slow_roi_align(
    x: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    """RoIAlign sample by sample (He et al. 2017, section 3); autograd differentiates it."""
    height, width = x.shape[-2:]

    def bilinear(image: Tensor, row: float, column: float) -> Tensor:
        if not (-1 <= row <= height and -1 <= column <= width):
            return image.new_zeros(len(image))
        row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
        top, left = int(row), int(column)
        below, right = min(top + 1, height - 1), min(left + 1, width - 1)
        v, h = row - top, column - left
        upper = image[:, top, left] * (1 - h) + image[:, top, right] * h
        lower = image[:, below, left] * (1 - h) + image[:, below, right] * h
        return upper * (1 - v) + lower * v

    outputs = []
    for index, *box in rois.tolist():
        x1, y1, x2, y2 = (side * scale - (0.5 if aligned else 0) for side in box)
        w, h = x2 - x1, y2 - y1
        if not aligned:
            w, h = max(w, 1), max(h, 1)
        rows, columns = ratio or math.ceil(h / size[0]), ratio or math.ceil(w / size[1])
        bins = []
        for i in range(size[0]):
            for j in range(size[1]):
                samples = [
                    bilinear(
                        x[int(index)],
                        y1 + h / size[0] * (i + (a + 0.5) / rows),
                        x1 + w / size[1] * (j + (b + 0.5) / columns),
                    )
                    for a in range(rows)
                    for b in range(columns)
                ]
                bins.append(sum(samples) / max(len(samples), 1))
        outputs.append(torch.stack(bins, -1).view(-1, *size))
    return torch.stack(outputs)


@bridged
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_equals_torchvision_and_the_slow_one(ratio: int, aligned: bool):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, 6, 7, generator=generator, dtype=torch.float64)
    rois, size, scale = ROIS.double(), (2, 3), 0.5
    weight = torch.rand(len(rois), 3, *size, generator=generator, dtype=torch.float64)

    def output_and_gradient(function) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        output = function(leaf)
        (output * weight).sum().backward()
        return output.detach(), leaf.grad

    ours = output_and_gradient(lambda x: RoIAlign(size, scale, ratio, 'avg', aligned)(x, rois))
    slow = output_and_gradient(lambda x: slow_roi_align(x, rois, size, scale, ratio, aligned))
    theirs = output_and_gradient(
        lambda x: torchvision.ops.roi_align(x, rois, size, scale, ratio, aligned)
    )
    assert ours[1].abs().sum() > 0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    torch.testing.assert_close(ours, slow)


@bridged
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_in_half_precision_is_the_rounded_float_result(dtype: torch.dtype):
    x = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    rois = ROIS.to(dtype)
    leaf = x.clone().requires_grad_()
    output = roi_align(leaf, rois, (2, 2), 0.5, 2)
    output.sum().backward()
    reference = x.float().requires_grad_()
    expected = roi_align(reference, rois.float(), (2, 2), 0.5, 2)
    expected.sum().backward()
    torch.testing.assert_close(output, expected.to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(leaf.grad, reference.grad.to(dtype), rtol=0, atol=0)


@bridged
def test_max_pooling_is_refused_with_a_sentence():
    with pytest.raises(NotImplementedError, match="pool_mode='max'.*pool_mode='avg'.*mim install"):
        RoIAlign((2, 2), pool_mode='max')(torch.rand(2, 1, 6, 7), ROIS)


# -- deformable attention, and the toolboxes --------------------------------------------------


@bridged
def test_deformable_attention_function_equals_mmcvs_pytorch_one():
    generator = torch.Generator().manual_seed(2)
    shapes = torch.tensor([[4, 5], [2, 3]])
    starts = torch.tensor([0, 20])
    inputs = [
        torch.rand(2, 26, 2, 4, generator=generator, dtype=torch.float64),
        torch.rand(2, 7, 2, 2, 3, 2, generator=generator, dtype=torch.float64),
        torch.rand(2, 7, 2, 2, 3, generator=generator, dtype=torch.float64),
    ]
    weight = torch.rand(2, 7, 8, generator=generator, dtype=torch.float64)

    def run(function) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = function(*leaves)
        (output * weight).sum().backward()
        return [output.detach(), *(x.grad for x in leaves)]

    apply = MultiScaleDeformableAttnFunction.apply
    ours = run(lambda v, loc, w: apply(v, shapes, starts, loc, w, 64))
    theirs = run(lambda v, loc, w: multi_scale_deformable_attn_pytorch(v, shapes, loc, w))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_every_model_of_the_toolboxes_imports():
    import mmdet.models
    import mmseg.models

    assert mmdet.models.FasterRCNN and mmseg.models.UPerHead


@pytest.mark.slow
def test_faster_rcnn_of_mmdet_trains_a_step_and_predicts():
    import mmdet
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmengine.structures import InstanceData

    torch.manual_seed(0)
    source = Path(mmdet.__file__).parent / '.mim/configs/_base_/models/faster-rcnn_r50_fpn.py'
    cfg = Config.fromfile(source).model
    cfg.backbone.update(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None)
    cfg.neck.update(in_channels=[64, 128, 256, 512], out_channels=16)
    cfg.rpn_head.update(in_channels=16, feat_channels=16)
    cfg.roi_head.bbox_roi_extractor.update(out_channels=16)
    cfg.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32, num_classes=3)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg)

    samples = []
    for labels in ([0, 2], [1]):
        sample = DetDataSample(metainfo=dict(img_shape=(96, 96), scale_factor=(1.0, 1.0)))
        box = torch.tensor([[8.0, 8, 56, 60], [40, 30, 90, 80]])[: len(labels)]
        sample.gt_instances = InstanceData(bboxes=box, labels=torch.tensor(labels))
        samples.append(sample)
    batch = dict(inputs=[torch.randint(0, 255, (3, 96, 96)) for _ in samples], data_samples=samples)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert torch.isfinite(loss)
    for part in (model.backbone.layer4, model.neck, model.rpn_head, model.roi_head):
        gradient = sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None)
        assert gradient > 0 and math.isfinite(gradient)
    optimizer.step()

    model.eval()
    model.roi_head.test_cfg.score_thr = 0.0
    found = model.test_step(batch)[0].pred_instances
    assert len(found) > 0 and found.bboxes.shape == (len(found), 4)
