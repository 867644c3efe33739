"""The hook of a continued pre-training, a new run that starts from the weights of another."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pera_mm.engine.hooks.strict_load import StrictLoadHook, checkpoint_path, plain_model
from pera_mm.errors import UserError
from pera_mm.registry import HOOKS
from pera_mm.weights.names import CENTER, pera_weights, teacher_backbone, weights_of


@HOOKS.register_module()
class ContinueHook(StrictLoadHook):
    """A :class:`StrictLoadHook` that reads files of any layout and reports what arrived.

    A whole model (ours, or the authors' raw training file) gives student, teacher, both heads,
    the mask token, and the center if the file has it. A backbone alone gives the backbones of
    student and teacher. Position embeddings are not resized. A resumed run does not read
    ``load_from``.

    Raises:
        ValueError: as :class:`StrictLoadHook`, or if there is nothing to start from.
    """

    loaded = False

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Put the weights where MMEngine looks for them, under our names."""
        self.loaded = True
        if runner._resume:
            super().after_load_checkpoint(runner, checkpoint)
            return
        path = checkpoint_path(runner)
        try:
            found, whole = _weights_and_extent(checkpoint)
        except UserError as error:
            raise UserError(f'{path}: {error}') from None
        wanted = {key: value for key, value in plain_model(runner).state_dict().items()
                  if (whole or '.backbone.' in key) and (key != CENTER or CENTER in found)}
        found = checkpoint['state_dict'] = self.select_fitting(runner, path, found, wanted)
        runner.logger.info(_report(path, found, whole))

    def before_train(self, runner: Any) -> None:
        """Raise unless there was something to start from."""
        if not self.loaded:
            raise UserError('ContinueHook found nothing to start from: set load_from to a file of '
                            'weights.')


def _weights_and_extent(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], bool]:
    """Return weights under the names of the whole model, and whether they are complete."""
    weights = weights_of(checkpoint)
    if any('.projector.' in key or '.cls_head.' in key for key in weights):
        return pera_weights(weights), True
    backbone = teacher_backbone(weights)
    return {f'{network}.backbone.{key}': value for network in ('student', 'teacher')
            for key, value in backbone.items()}, False


def _report(path: str, found: dict[str, Tensor], whole: bool) -> str:
    center, anew = '', ['optimizer', 'schedules']
    if whole:
        kept = 'student and teacher (backbone and projector each), predictor, mask token'
        if CENTER in found:
            center = ', center'
        else:
            anew.append('center (not in the file; it follows within some twenty steps)')
    else:
        kept = 'the backbones of student and teacher, both from the one in the file'
        anew += ['projectors', 'predictor', 'mask token', 'center']
    return (f'This run starts from {path}. Restored, all {len(found)} tensors: {kept}{center}. '
            f'Starting anew: {", ".join(anew)}.')
