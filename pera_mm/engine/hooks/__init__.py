"""The hooks around an iteration or an epoch."""

from pera_mm.engine.hooks.checkpoint import AtomicCheckpointHook
from pera_mm.engine.hooks.config_check import ConfigCheckHook, TotalBatchHook
from pera_mm.engine.hooks.continue_from import ContinueHook
from pera_mm.engine.hooks.finite import FiniteHook
from pera_mm.engine.hooks.freeze_last_layer import FreezeLastLayerHook
from pera_mm.engine.hooks.health import HealthHook
from pera_mm.engine.hooks.painting import PaintingHook
from pera_mm.engine.hooks.probe import ProbeHook
from pera_mm.engine.hooks.run_check import RunCheckHook
from pera_mm.engine.hooks.schedule import ScheduleHook
from pera_mm.engine.hooks.skipped_images import SkippedImagesHook
from pera_mm.engine.hooks.step_seed import StepSeedHook
from pera_mm.engine.hooks.strict_load import StrictLoadHook
from pera_mm.engine.hooks.teacher import TeacherHook

__all__ = [
    'AtomicCheckpointHook',
    'ConfigCheckHook',
    'ContinueHook',
    'FiniteHook',
    'FreezeLastLayerHook',
    'HealthHook',
    'PaintingHook',
    'ProbeHook',
    'RunCheckHook',
    'ScheduleHook',
    'SkippedImagesHook',
    'StepSeedHook',
    'StrictLoadHook',
    'TeacherHook',
    'TotalBatchHook',
]
