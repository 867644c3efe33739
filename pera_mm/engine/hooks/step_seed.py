"""Device randomness as a pure function of (seed, rank, iteration)."""

from typing import Any

import torch
from mmengine.hooks import Hook

from pera_mm.registry import HOOKS
from pera_mm.seeds import hash_seed


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seeds torch (CPU and accelerators) before each iteration.

    Colour jitter and stochastic depth then depend on nothing that happened before, so a resumed
    run draws what the uninterrupted one would have drawn, and no RNG state is saved.
    """

    # Before every other hook: whatever they draw is seeded too.
    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed iteration ``runner.iter``."""
        torch.manual_seed(hash_seed(runner.seed, runner.rank, runner.iter))
