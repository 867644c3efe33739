"""The optimizer's parameters and precision, and a gradient check before every step."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from mmpretrain.models.backbones.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

from pera_mm.engine.finite import not_finite
from pera_mm.errors import UserError
from pera_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS

PRODUCT_SIDE = 256  # of the matrices whose product shows how fast a CPU is in bfloat16
SLOW = 2  # times the time in float32, from which bfloat16 is worth a warning


@cache
def bfloat16_slowdown() -> float:
    """Measure a matrix product on the CPU: its time in bfloat16 / its time in float32."""
    return _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    """Return the shortest of three times, after a product to warm up."""
    matrix = torch.ones(PRODUCT_SIDE, PRODUCT_SIDE, dtype=dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def slow_bfloat16() -> str | None:
    """Say in one sentence that this CPU is slow in bfloat16; None if it is not."""
    slowdown = bfloat16_slowdown()
    if slowdown < SLOW:
        return None
    return (f'This CPU takes {slowdown:.0f} times as long for a matrix product in bfloat16 as in '
            'float32: train in float32 (--amp off).')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TrainedOnlyConstructor(DefaultOptimWrapperConstructor):
    """Give the optimizer what is trained, and not also the frozen teacher as MMEngine does.

    It serves every optimizer wrapper, so a run can be resumed in another precision. Set it with
    ``optim_wrapper=dict(constructor='pera_mm.TrainedOnlyConstructor', ...)``; arguments as
    :class:`mmengine.optim.DefaultOptimWrapperConstructor`.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer wrapper for the parameters of ``model`` with ``requires_grad``."""
        if self.paramwise_cfg:
            return super().__call__(model)  # here MMEngine leaves out frozen parameters itself
        trained = [p for p in model.parameters() if p.requires_grad]
        return super().__call__(SimpleNamespace(parameters=lambda: trained))

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '',
                   **kwargs: Any) -> None:
        """Add as MMEngine does, without its warning for every tensor of a frozen teacher."""
        if any(p.requires_grad for p in module.parameters()):
            super().add_params(params, module, prefix, **kwargs)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(LearningRateDecayOptimWrapperConstructor):
    """A layer-wise learning-rate decay for a model of any toolbox that has a ViT in it.

    Of a ViT of L layers, layer i = 0 ... L - 1 learns at ``lr * rate ** (L - i)``, the embeddings
    at ``lr * rate ** (L + 1)``; final norm, adapter, neck and heads at ``lr``. MMPretrain's
    constructor asks the whole model for the depth of a parameter, which only MMPretrain's models
    know; this one asks the ViT.

    ``paramwise_cfg`` as MMPretrain's: ``layer_decay_rate`` (default 1: no decay),
    ``norm_decay_mult``, ``bias_decay_mult``, ``flat_decay_mult``, ``custom_keys`` with
    ``decay_mult`` and, not in MMPretrain, ``lr_mult``: a factor on top of the layer's. In a
    self-distillation model the student's ViT counts; the teacher is left out.

    Raises:
        ValueError: if the model has no ViT, or the rate is not in (0, 1].
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('layer_decay_rate', 1.)
        if not 0 < rate <= 1:
            raise UserError(f'paramwise_cfg.layer_decay_rate is {rate!r}, but must be above 0 and '
                            "at most 1: each layer learns at this share of the next layer's rate.")

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '',
                   get_layer_depth: Callable | None = None, **kwargs: Any) -> None:
        """Add the parameters as MMPretrain does, for the whole model."""
        if get_layer_depth is None:
            path, vit = _find_vit(module)
            depth = partial(vit.get_layer_depth, prefix=f'{path}.' if path else '')
            super().add_params(params, module, prefix, depth)
            for group in params:
                group['lr'] *= group.pop('lr_mult', 1.)
        else:
            super().add_params(params, module, prefix, get_layer_depth)


def _find_vit(model: nn.Module) -> tuple[str, Any]:
    for path, module in model.named_modules():
        if isinstance(module, VisionTransformer):
            return path, module
    raise UserError(f'LayerDecayConstructor found no ViT in {type(model).__name__}: remove it '
                    'from optim_wrapper, or use a backbone with a pera_mm.PerAViT.')


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """A wrapper with bfloat16 autocast on an accelerator and float32 on a CPU, by one config.

    A CPU with AVX512-BF16 or AMX trains about 1.5 times as fast in bfloat16, but not to the same
    numbers as another machine, so it does this only on request; another CPU is warned that it is
    slow. Validation and test are in float32, as with MMEngine's ``AmpOptimWrapper``.

    Before each optimizer step the L2 norm of all gradients (of all shards under FSDP) must be
    finite; otherwise the run stops before the update. DDP averages the gradients and
    FSDP sums the norm over ranks, so all ranks stop in the same iteration.

    Args:
        dtype: ``'bfloat16'``, or None for float32 everywhere. For float16, which needs a gradient
            scaler, take MMEngine's ``AmpOptimWrapper``.
        on_cpu: autocast to ``dtype`` on a CPU too (``tools/train.py --amp bf16`` sets it).
        clip_grad: ``dict(max_norm=...)``, the largest L2 norm of all gradients (the reference: 3),
            or None.
        **kwargs: as :class:`mmengine.optim.OptimWrapper`: optimizer, accumulative_counts.

    Raises:
        ValueError: on another dtype or another kind of clipping.
        NotFiniteError: from :meth:`step`, if the gradient norm is inf or nan.
    """

    def __init__(self, dtype: str | None = 'bfloat16', clip_grad: dict | None = None,
                 on_cpu: bool = False, **kwargs: Any) -> None:
        if dtype not in ('bfloat16', None):
            raise UserError("AutocastOptimWrapper: dtype must be 'bfloat16' or None (float32), "
                            f"got {dtype!r}; for float16 use type='AmpOptimWrapper'.")
        if clip_grad is not None and set(clip_grad) != {'max_norm'}:
            raise UserError('AutocastOptimWrapper: clip_grad must be dict(max_norm=...) or None, '
                            f'got {dict(clip_grad)}.')
        super().__init__(clip_grad=clip_grad, **kwargs)
        self.dtype = torch.bfloat16 if dtype else None
        self.on_cpu = on_cpu
        self._autocast = False  # whether the last forward pass computed in dtype
        self._shard_group: dist.ProcessGroup | None = None  # ranks that share one copy
        if dtype and on_cpu and get_device() == 'cpu' and (warning := slow_bfloat16()):
            print_log(warning, 'current', logging.WARNING)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast the forward pass; exchange no gradients while accumulating."""
        sharded = (isinstance(model, FullyShardedDataParallel)
                   and model.sharding_strategy != ShardingStrategy.NO_SHARD)
        self._shard_group = model.process_group if sharded else None
        device = get_device()
        self._autocast = self.dtype is not None and (device != 'cpu' or self.on_cpu)
        with super().optim_context(model), torch.autocast(
                device, self.dtype, enabled=self._autocast):
            yield

    def step(self, **kwargs: Any) -> None:
        """Check and clip the gradients, then update the parameters."""
        parameters = [p for group in self.optimizer.param_groups for p in group['params']
                      if p.grad is not None]
        norm = self._gradient_norm([p.grad for p in parameters])
        value = float(norm)
        self.message_hub.update_scalar('train/grad_norm', value)
        if not math.isfinite(value):
            raise not_finite(f'the norm of the gradients is {value}', self.message_hub,
                             self._autocast)
        if self.clip_grad_kwargs:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_grad_kwargs['max_norm'], norm)
        self.optimizer.step(**kwargs)

    def _gradient_norm(self, gradients: list[Tensor]) -> Tensor:
        norm = nn.utils.get_total_norm(gradients)
        if self._shard_group is not None:
            squared = norm.square().to(get_device())
            dist.all_reduce(squared, group=self._shard_group)
            norm = squared.sqrt()
        return norm
