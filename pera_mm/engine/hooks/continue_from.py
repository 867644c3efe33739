"""The hook of a continued pre-training, a new run that starts from the weights of another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pera_mm.engine.hooks.strict_load import StrictLoadHook, checkpoint_path, plain_model
from pera_mm.errors import UserError
from pera_mm.registry import HOOKS
from pera_mm.weights.facts import Facts, mismatches, read_facts
from pera_mm.weights.loading import file_of
from pera_mm.weights.names import CENTER, pera_weights, weights_of
from pera_mm.weights.public import find_backbone, shape_of
from pera_mm.weights.resizing import resize_embeddings


@HOOKS.register_module()
class ContinueHook(StrictLoadHook):
    """A :class:`StrictLoadHook` that reads files of any layout and reports what arrived.

    A whole model (ours, or the authors' raw training file) gives student, teacher, both heads,
    the mask token, and the center if the file has it. A backbone alone, also a public ViT in a
    layout that :mod:`pera_mm.weights.public` knows, gives the backbones of student and teacher.
    Patch and position embeddings are resampled to the sizes of the config. A resumed run does not
    read ``load_from``.

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
        path, model = checkpoint_path(runner), plain_model(runner)
        try:
            start = _start(Path(path), checkpoint, model)
        except UserError as error:
            raise UserError(f'{path}: {error}') from None
        wanted = {key: value for key, value in model.state_dict().items()
                  if (start.whole or '.backbone.' in key)
                  and (key != CENTER or CENTER in start.state)}
        found = checkpoint['state_dict'] = self.select_fitting(runner, path, start.state, wanted)
        runner.logger.info(_report(path, found, start))

    def before_train(self, runner: Any) -> None:
        """Raise unless there was something to start from."""
        if not self.loaded:
            raise UserError('ContinueHook found nothing to start from: set load_from to a file of '
                            'weights.')


class _Start(NamedTuple):
    """What a file gives to a run."""

    state: dict[str, Tensor]  # under the names of the whole model
    whole: bool
    said: list[str]  # what was left out, resampled or is otherwise


def _start(path: Path, checkpoint: Mapping[str, Any], model: nn.Module) -> _Start:
    """Find the weights of a file, and bring their embeddings to the model's sizes."""
    weights = weights_of(checkpoint)
    if any('.projector.' in key or '.cls_head.' in key for key in weights):
        state: dict[str, Tensor] = pera_weights(weights)
        for network in ('student', 'teacher'):
            prefix = f'{network}.backbone.'
            inside = {key.removeprefix(prefix): value for key, value in state.items()
                      if key.startswith(prefix)}
            resized, said = resize_embeddings(inside, model.get_submodule(prefix[:-1]))
            state |= {f'{prefix}{key}': value for key, value in resized.items()}
        return _Start(state, True, said)
    found = find_backbone(checkpoint)
    vit = model.get_submodule('student.backbone')
    resized, said = resize_embeddings(found.state, vit)
    facts = read_facts(file_of(path), checkpoint, shape_of(found.state))
    said = [*found.report(), *said, *mismatches(facts, vit), *_other_images(facts, model)]
    return _Start({f'{network}.backbone.{key}': value for network in ('student', 'teacher')
                   for key, value in resized.items()}, False, said)


def _other_images(facts: Facts, model: nn.Module) -> list[str]:
    """Say that the images of the file were normalized otherwise."""
    said = []
    for name, values in zip(('mean', 'std'), facts.statistics or ()):
        own = getattr(model.data_preprocessor, name, None)
        given = torch.tensor([float(value) for value in values])
        if isinstance(own, Tensor) and not torch.allclose(own.flatten().cpu().float(), given,
                                                          atol=.1):
            said.append(f'its images have {name} {[round(float(v), 2) for v in given]}, those of '
                        f'the config {[round(float(v), 2) for v in own.flatten()]} '
                        '(model.data_preprocessor)')
    return said


def _report(path: str, found: dict[str, Tensor], start: _Start) -> str:
    center, anew = '', ['optimizer', 'schedules']
    if start.whole:
        kept = 'student and teacher (backbone and projector each), predictor, mask token'
        if CENTER in found:
            center = ', center'
        else:
            anew.append('center (not in the file; it follows within some twenty steps)')
    else:
        kept = 'the backbones of student and teacher, both from the one in the file'
        anew += ['projectors', 'predictor', 'mask token', 'center']
    said = '; '.join([f'{kept}{center}', *start.said])
    return (f'This run starts from {path}. Restored, all {len(found)} tensors: {said}. '
            f'Starting anew: {", ".join(anew)}.')
