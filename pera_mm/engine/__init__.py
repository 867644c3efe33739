"""The parts of training that depend on the step."""

from pera_mm.engine import hooks
from pera_mm.engine.loops import ResumableTrainLoop
from pera_mm.engine.optim_wrapper import (
    AutocastOptimWrapper,
    LayerDecayConstructor,
    TrainedOnlyConstructor,
)

__all__ = [
    'AutocastOptimWrapper', 'LayerDecayConstructor', 'ResumableTrainLoop',
    'TrainedOnlyConstructor', 'hooks'
]
