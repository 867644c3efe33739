"""The strategy that shards networks, gradients and optimizer states over the ranks."""

from typing import Any

from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from pera_mm.models.backbones.pera_vit import PackedEncoderLayer
from pera_mm.models.heads.pixel_head import MLPPixelHead, PixelHead
from pera_mm.models.heads.prototype_head import PrototypeHead


def wrap_policy(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """The ``auto_wrap_policy`` of FSDP: one unit per transformer layer and per head.

    Student and teacher are cut alike, so their shards match and the teacher can follow shard by
    shard; :class:`~pera_mm.engine.hooks.teacher.TeacherHook` gathers the small rest.
    """
    return recurse or isinstance(
        module, (PackedEncoderLayer, MLPPixelHead, PixelHead, PrototypeHead))


class ShardedStrategy(FSDPStrategy):
    """An FSDPStrategy that cuts by :func:`wrap_policy`, on GPUs or (for tests) on CPUs.

    A checkpoint is one file with whole tensors; its weights have the names of an unsharded run, and
    any run can read them. Its optimizer state, keyed by name, resumes with this strategy on any
    number of ranks. Used by MMEngine's ``FlexibleRunner`` as
    ``strategy=dict(type='pera_mm.engine.strategy.ShardedStrategy')``.

    Args:
        model_wrapper: more arguments of ``MMFullyShardedDataParallel`` (``sharding_strategy``,
            ``cpu_offload``, ...).
        **kwargs: as :class:`mmengine._strategy.FSDPStrategy`.
    """

    def __init__(self, *, model_wrapper: dict | None = None, **kwargs: Any) -> None:
        on_cpu = get_device() == 'cpu'
        wrapper = dict(type='MMFullyShardedDataParallel', auto_wrap_policy=wrap_policy)
        if on_cpu:
            wrapper['device_id'] = 'cpu'
        # Off the GPU while saving; on a CPU this would return memory which FSDP frees.
        gathered = dict(rank0_only=True, offload_to_cpu=not on_cpu)
        super().__init__(
            model_wrapper=dict(wrapper, **model_wrapper or {}),
            state_dict_cfg=dict(
                state_dict_type='FULL_STATE_DICT',
                state_dict_config=dict(type='FullStateDictConfig', **gathered),
                optim_state_dict_config=dict(type='FullOptimStateDictConfig', **gathered)),
            **kwargs)

    def model_state_dict(self) -> dict:
        """Return plain tensors: FSDP leaves attributes on them that safe loading refuses."""
        return {name: tensor.detach() for name, tensor in super().model_state_dict().items()}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load as the parent does, which passes its arguments in the order of torch before 2.1."""
        self.optim_wrapper.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict))
