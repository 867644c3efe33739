"""How well the student paints hidden pixels during training."""

import torch
from mmengine.dist import is_main_process
from mmengine.runner import Runner
from torch.distributed.fsdp import FullyShardedDataParallel

from pera_mm.engine.hooks.measuring import MeasuringHook
from pera_mm.engine.hooks.teacher import inner_model
from pera_mm.errors import UserError
from pera_mm.evaluation.features import read_evenly
from pera_mm.evaluation.painting import paint_hidden, variance_explained
from pera_mm.registry import HOOKS


@HOOKS.register_module()
class PaintingHook(MeasuringHook):
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
        images = read_evenly(self.data_root, self.number, self.size)
        if not images:
            raise UserError(f"PaintingHook: no readable image below '{self.data_root}'; give "
                            'data_root a folder of images.')
        self._images = torch.stack([torch.from_numpy(image) for image in images])

    def measure(self, runner: Runner, epoch: int) -> None:
        """Measure on the main process."""
        model = inner_model(runner)
        if (not is_main_process() or getattr(model, 'predictor', None) is None
                or isinstance(runner.model, FullyShardedDataParallel)):
            return
        with torch.no_grad():
            normalized = model.data_preprocessor.normalize(self._images)
            painting = paint_hidden(model, normalized, self.visible, self.per_pass)
        scores = {'painting/explained': variance_explained(painting)}
        self.write(runner, scores, epoch)
        runner.logger.info(
            f'Painting after {epoch} epochs: {scores["painting/explained"]:.1%} of the variance of '
            f'hidden pixels in {len(self._images)} images (0: their mean color).')
