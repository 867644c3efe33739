"""A hook that makes device randomness a pure function of (seed, rank, iteration)."""

from typing import Any

import torch
from mmengine.hooks import Hook

from pera_mm.registry import HOOKS
from pera_mm.seeds import hash_seed


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seed torch (CPU and accelerators) before each iteration.

    Color jitter and stochastic depth then do not depend on earlier iterations. So a resumed run
    draws what an uninterrupted run draws, and no RNG state is saved.
    """

    # Before every other hook: whatever they draw is seeded too.
    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed iteration ``runner.iter``."""
        torch.manual_seed(hash_seed(runner.seed, runner.rank, runner.iter))
