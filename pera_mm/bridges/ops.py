"""Replacements of mmcv's compiled operators, for machines without a compiled mmcv.

``mmcv-lite`` has every Python file of ``mmcv.ops``, but not the binary ``mmcv._ext`` behind them.
:func:`activate` appends a finder to ``sys.meta_path`` that supplies this module from torch and
torchvision. It is the last finder, so a compiled mmcv takes precedence. The signatures are those
that mmcv 2.1's Python wrappers call (with outputs as arguments). Every other operator exists, too,
and raises an error of one sentence when it is called, not when it is imported.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

EXTENSION = 'mmcv._ext'
INSTALL_COMPILED = (
    "install a compiled mmcv: 'pip uninstall -y mmcv-lite', then 'mim install mmcv==2.1.0' "
    '(wheels exist for some torch/CUDA pairs only, otherwise it compiles for about 20 minutes)'
)


class OpsBridge(MetaPathFinder, Loader):
    """A finder and loader of ``mmcv._ext``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find ``mmcv._ext`` only."""
        if fullname != EXTENSION:
            return None
        return ModuleSpec(fullname, self, origin='pera_mm.bridges.ops')

    def exec_module(self, module: ModuleType) -> None:
        """Add the operators to the new module, and an error for every other one."""
        vars(module).update({operator.__name__: operator for operator in _OPERATORS})
        vars(module)['__getattr__'] = _missing  # PEP 562: called for every other name


def activate() -> None:
    """Append the bridge to ``sys.meta_path``; a second call changes nothing."""
    if not any(isinstance(finder, OpsBridge) for finder in sys.meta_path):
        sys.meta_path.append(OpsBridge())


def provider() -> str:
    """Find what supplies mmcv's operators: ``'compiled'``, ``'bridged'`` or ``'nobody'``."""
    spec = importlib.util.find_spec(EXTENSION) if importlib.util.find_spec('mmcv') else None
    if spec is None:
        return 'nobody'
    return 'bridged' if isinstance(spec.loader, OpsBridge) else 'compiled'


def _missing(name: str) -> Callable[..., NoReturn]:
    if name.startswith('_'):  # Python's own attributes, such as __path__
        raise AttributeError(f'module {EXTENSION!r} has no attribute {name!r}')

    def operator(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"mmcv's operator {name} has no stand-in in pera_mm: "
                                  f'{INSTALL_COMPILED}.')

    return operator


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Find the boxes to keep, best score first.

    Args:
        boxes: float [N, 4] as x1, y1, x2, y2.
        scores: float [N].
        iou_threshold: A box that overlaps a better one by more than this is dropped.
        offset: 0 or 1; a side is ``x2 - x1 + offset`` long.

    Returns:
        int64 [K]: indices of the boxes kept.
    """
    from torchvision.ops import nms as torchvision_nms

    # Moving the far corner by the offset lengthens boxes and intersections alike.
    far = boxes.new_tensor([0, 0, offset, offset])
    return torchvision_nms(_at_least_float(boxes) + far, _at_least_float(scores), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of overlapping boxes, as Soft-NMS does (Bodla et al. 2017).

    Args:
        boxes: float [N, 4] as x1, y1, x2, y2.
        scores: float [N].
        dets: float [N, 5], written: the boxes kept with their new scores, best first.
        iou_threshold: Overlap from which methods 0 and 1 act.
        sigma: Width of method 2.
        min_score: A box whose score falls below is dropped.
        method: 0 hard, 1 linear, 2 Gaussian.
        offset: 0 or 1, as in :func:`nms`.

    Returns:
        int64 [K]: indices of the boxes kept, in the order of ``dets``.
    """
    from torchvision.ops import box_iou

    overlap = box_iou(*[boxes + boxes.new_tensor([0, 0, offset, offset])] * 2)
    scores, left = scores.clone(), torch.arange(len(boxes))
    kept: list[Tensor] = []
    while len(left):
        best = left[scores[left].argmax()]
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], scores[best]
        kept.append(best)
        left = left[left != best]
        iou = overlap[best, left]
        if method == 2:
            scores[left] *= torch.exp(-(iou**2) / sigma)
        else:
            weight = 1 - iou if method == 1 else torch.zeros_like(iou)
            scores[left] *= torch.where(iou >= iou_threshold, weight, torch.ones_like(iou))
        left = left[scores[left] >= min_score]
    return torch.stack(kept) if kept else left


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool regions by averaging (RoIAlign, He et al. 2017).

    Args:
        input: float [B, C, H, W].
        rois: float [N, 5] as image index, x1, y1, x2, y2 in image pixels.
        output: float [N, C, aligned_height, aligned_width], written.
        argmax_y: Used by max pooling only.
        argmax_x: Used by max pooling only.
        aligned_height: Bins from top to bottom.
        aligned_width: Bins from left to right.
        spatial_scale: Feature pixels per image pixel.
        sampling_ratio: Samples along each side of a bin; 0 takes as many as the bin is wide.
        pool_mode: 1 for the average; 0, the maximum, is not in torchvision.
        aligned: Shift by half a pixel.

    Raises:
        NotImplementedError: For max pooling.
    """
    _averages_only(pool_mode)
    pooled = _torchvision().roi_align(
        _at_least_float(input),
        rois.to(_at_least_float(input).dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        sampling_ratio,
        aligned,
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of :func:`roi_align_forward` to ``grad_input`` [B, C, H, W]."""
    _averages_only(pool_mode)
    gradient = _torchvision()._roi_align_backward(
        _at_least_float(grad_output),
        rois.to(_at_least_float(grad_output).dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(gradient)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Compute deformable attention by mmcv's PyTorch function, which mmcv uses on CPUs only.

    Args:
        value: float [B, keys, heads, D].
        value_spatial_shapes: int64 [levels, 2] as height, width.
        value_level_start_index: Not needed here.
        sampling_locations: float [B, queries, heads, levels, points, 2] as x, y in 0-1.
        attention_weights: float [B, queries, heads, levels, points].
        im2col_step: Not needed here.

    Returns:
        float [B, queries, heads * D].
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(
        value, value_spatial_shapes, sampling_locations, attention_weights
    )


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward` to the three ``grad_*`` tensors."""
    inputs = [x.detach().requires_grad_() for x in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            inputs[0], value_spatial_shapes, value_level_start_index, *inputs[1:], im2col_step
        )
    gradients = torch.autograd.grad(output, inputs, grad_output)
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), gradients):
        target.copy_(gradient)


def get_compiler_version() -> str:
    """Return what MMEngine's log of the environment shows as mmcv's compiler."""
    return 'none (operators bridged by pera_mm)'


def get_compiling_cuda_version() -> str:
    """Return what MMEngine's log of the environment shows as mmcv's CUDA."""
    return 'none (operators bridged by pera_mm)'


def _averages_only(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            f"RoIAlign with pool_mode='max' has no stand-in in pera_mm, as torchvision only "
            f"averages: use pool_mode='avg', or {INSTALL_COMPILED}."
        )


def _at_least_float(x: Tensor) -> Tensor:
    """Convert half precision to float32: torchvision has no bfloat16 kernels."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _torchvision() -> Any:
    """Import torchvision, which is slow, and return the operators that this registers."""
    import torchvision  # noqa: F401

    return torch.ops.torchvision


_OPERATORS = (
    nms,
    softnms,
    roi_align_forward,
    roi_align_backward,
    ms_deform_attn_forward,
    ms_deform_attn_backward,
    get_compiler_version,
    get_compiling_cuda_version,
)
