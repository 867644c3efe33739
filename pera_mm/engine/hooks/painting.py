"""How well the student paints hidden pixels during training."""

import os

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.distributed.fsdp import FullyShardedDataParallel

from pera_mm.engine.hooks.teacher import inner_model
from pera_mm.errors import UserError
from pera_mm.evaluation.features import images_below, read_square
from pera_mm.evaluation.painting import paint_hidden, variance_explained
from pera_mm.registry import HOOKS


@HOOKS.register_module()
class PaintingHook(Hook):
    """Measure how well the student paints unseen pixels: at the start, every n epochs, at the end.

    Writes ``painting/explained``, see :func:`variance_explained`, to the log, the visualizer and
    the message hub (step = finished epochs). The main process measures on the same images and masks
    each time; it draws no random number, and a run with this hook ends bit-equal to one without.
    A model without a predictor and one that FSDP shards are not measured.

    Args:
        data_root: folder of any depth whose images are painted; not those of the training.
        size: side in pixels to which the whole images are resized; a multiple of the patch size.
        interval: epochs between two measurements.
        number: images, spread evenly over the folder.
        visible: share of the patches that the student sees (the student ratio of the run).
        per_pass: share painted at a time (the learnable ratio of the run).

    Raises:
        ValueError: before the run, if the folder has no readable image.
    """

    def __init__(self, data_root: str, size: int, interval: int = 10, number: int = 64,
                 visible: float = 0.2, per_pass: float = 0.2) -> None:
        self.data_root = data_root
        self.size = size
        self.interval = interval
        self.number = number
        self.visible = visible
        self.per_pass = per_pass

    def before_run(self, runner: Runner) -> None:
        """Read the images, so that an error shows now and not after an epoch."""
        paths = images_below(self.data_root) if os.path.isdir(self.data_root) else []
        chosen = paths[::max(len(paths) // self.number, 1)][:self.number]
        images = [image for path in chosen if (image := read_square(path, self.size)) is not None]
        if not images:
            raise UserError(f"PaintingHook: no readable image below '{self.data_root}'; give "
                            'data_root a folder of images.')
        self._images = torch.stack([torch.from_numpy(image) for image in images])

    def before_train(self, runner: Runner) -> None:
        """Measure the random student, unless the run is resumed."""
        if runner.iter == 0:
            self._measure(runner, epoch=0)

    def after_train_epoch(self, runner: Runner) -> None:
        """Measure every ``interval`` epochs and after the last."""
        if self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner):
            self._measure(runner, epoch=runner.epoch + 1)

    def _measure(self, runner: Runner, epoch: int) -> None:
        model = inner_model(runner)
        if (not is_main_process() or getattr(model, 'predictor', None) is None
                or isinstance(runner.model, FullyShardedDataParallel)):
            return
        with torch.no_grad():
            normalized = model.data_preprocessor.normalize(self._images)
            painting = paint_hidden(model, normalized, self.visible, self.per_pass)
        scores = {'painting/explained': variance_explained(painting)}
        runner.message_hub.update_scalars(scores)
        runner.visualizer.add_scalars(scores, step=epoch)
        runner.logger.info(
            f'Painting after {epoch} epochs: {scores["painting/explained"]:.1%} of the variance of '
            f'hidden pixels in {len(self._images)} images (0: their mean color).')
