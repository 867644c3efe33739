"""Continued pre-training: a new run that starts from the weights of another one."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor

from pera_mm.checkpoints import CENTER, pera_weights, teacher_backbone, weights_of
from pera_mm.registry import HOOKS, MODELS


@HOOKS.register_module()
class ContinueHook(Hook):
    """Makes ``load_from`` strict, for files of any layout, and says what arrived.

    MMEngine's own ``load_from`` goes on in silence when half of the keys do not match. A whole
    model (ours, or the authors' raw training file) gives student, teacher, both heads, the mask
    token, and the centre where the file has it; a backbone alone gives the backbones of student
    and teacher. A resumed run does not read ``load_from``.

    Raises:
        ValueError: if a tensor of the file has no place in the model or another shape, a tensor
            of the model is not in the file, or there is nothing to start from.
    """

    loaded = False

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Put the weights where MMEngine looks for them, under our names."""
        self.loaded = True
        if runner._resume:
            return
        path = runner._load_from
        try:
            found, whole = _found(checkpoint)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None
        with torch.device('meta'):
            model = MODELS.build(runner.cfg.model).state_dict()
        _check(path, found, model, whole)
        checkpoint['state_dict'] = found
        runner.logger.info(_report(path, found, whole))

    def before_train(self, runner: Any) -> None:
        """Raise unless there was something to start from."""
        if not self.loaded:
            raise ValueError('ContinueHook found nothing to start from: set load_from to a file of '
                             'weights.')


def _found(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], bool]:
    """Weights under the names of the whole model, and whether they are all of it."""
    weights = weights_of(checkpoint)
    if any('.projector.' in key or '.cls_head.' in key for key in weights):
        return pera_weights(weights), True
    backbone = teacher_backbone(weights)
    return {f'{network}.backbone.{key}': value for network in ('student', 'teacher')
            for key, value in backbone.items()}, False


def _check(path: str, found: dict[str, Tensor], model: dict[str, Tensor], whole: bool) -> None:
    """Raise unless the file and the model fit."""
    wanted = {key for key in model if whole or '.backbone.' in key} - {CENTER}
    missing = sorted(wanted - found.keys())
    unknown = sorted(found.keys() - model.keys())
    misshaped = sorted(key for key in found.keys() & model.keys()
                       if found[key].shape != model[key].shape)
    details = [f'{len(keys)} {what} (first {keys[0]})' for what, keys in
               (('missing', missing), ('without a place', unknown), ('of another shape', misshaped))
               if keys]
    if misshaped:
        key = misshaped[0]
        details.append(f'there {list(found[key].shape)}, in the model {list(model[key].shape)}')
    if details:
        raise ValueError(f'{path} does not fit the model of the config: {", ".join(details)}; '
                         "nothing was loaded. Set the model's sizes to those of the file.")


def _report(path: str, found: dict[str, Tensor], whole: bool) -> str:
    centre, anew = '', ['optimizer', 'schedules']
    if whole:
        kept = 'student and teacher (backbone and projector each), predictor, mask token'
        if CENTER in found:
            centre = ', centre'
        else:
            anew.append('centre (not in the file; it follows within some twenty steps)')
    else:
        kept = 'the backbones of student and teacher, both from this one'
        anew += ['projectors', 'predictor', 'mask token', 'centre']
    return (f'This run starts from {path}. Restored, all {len(found)} tensors: {kept}{centre}. '
            f'Starting anew: {", ".join(anew)}.')
