"""The quality of the teacher's features during training: accuracies, rank, share of color."""

import math
import time

import torch
from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.runner import Runner
from torch import Tensor, nn

from pera_mm.engine.hooks.measuring import MeasuringHook
from pera_mm.engine.hooks.teacher import inner_model
from pera_mm.errors import UserError
from pera_mm.evaluation.collapse import band_statistics, color_share, effective_rank
from pera_mm.evaluation.features import (
    LabelledFolder,
    Split,
    extract_features,
    read_labelled_folder,
    stratified_split,
)
from pera_mm.evaluation.knn import knn_accuracy
from pera_mm.evaluation.linear_probe import linear_accuracy
from pera_mm.patches import patch_grid
from pera_mm.registry import HOOKS

BANDS = 3  # of the images that the probe reads
TINY_DEVIATION = 1e-6  # of band statistics that are the same for all images


@HOOKS.register_module()
class ProbeHook(MeasuringHook):
    """Measure the teacher on a labelled folder: before training, every n epochs, at the end.

    It writes to the log, the visualizer and the message hub (step = finished epochs, 0 = the
    random teacher):

    - ``probe/knn`` and ``probe/linear``: accuracies in percent;
    - ``probe/knn_color``: that of kNN on mean and deviation of the bands alone, the floor that a
      teacher must leave to be more than a color meter;
    - ``probe/rank``: the effective rank of the features of all images (RankMe), no labels;
    - ``probe/color_share``: the share of their variance that mean and deviation of the bands
      explain, no labels; left out for fewer than 60 images.

    Labels never reach the training, and a run with the probe ends bit-equal to one without.

    Args:
        data_root: folder with one folder of images per class.
        size: side in pixels to which the whole images are resized; a multiple of the patch size.
        interval: epochs between two probes.
        k: neighbors of the kNN classifier.
        train_share: share of each class to learn from, in (0, 1); the rest is for testing.
        max_per_class: the largest number of images used of each class; None: all.
        batch_size: images per forward pass on each rank.
        seed: of the split, which stays the same over the run.

    Raises:
        ValueError: before the run, if the folder is missing or has fewer than two classes of two
            images, or if ``size`` is not a multiple of the patch size; on all ranks, if the main
            process cannot compute the scores.
    """

    def __init__(self,
                 data_root: str,
                 size: int,
                 interval: int = 10,
                 k: int = 10,
                 train_share: float = 0.5,
                 max_per_class: int | None = None,
                 batch_size: int = 64,
                 seed: int = 0) -> None:
        self.data_root = data_root
        self.size = size
        self.interval = interval
        self.k = k
        self.train_share = train_share
        self.max_per_class = max_per_class
        self.batch_size = batch_size
        self.seed = seed

    def before_run(self, runner: Runner) -> None:
        """Read the folder, so that an error shows now and not after an epoch."""
        folder = read_labelled_folder(self.data_root)
        split = stratified_split(folder.labels, self.train_share, self.max_per_class, self.seed)
        self._images = _images_of_split(folder, split)
        self._num_train = len(split.train)

    def before_train(self, runner: Runner) -> None:
        """Check ``size``; probe the random teacher, unless the run is resumed."""
        try:
            patch_grid(self.size, self.size, inner_model(runner).patch_size)
        except UserError as error:
            raise UserError(f'ProbeHook size: {error}') from None
        super().before_train(runner)

    def measure(self, runner: Runner, epoch: int) -> None:
        """Extract features on all ranks, and score them on the main process."""
        start = time.perf_counter()
        features, colors, readable = self._extract(runner)
        problem, cause = [''], None
        if is_main_process():
            try:
                self._score(runner, epoch, start, features, colors, readable)
            except Exception as error:  # otherwise the other ranks wait for this one
                problem, cause = [f'{type(error).__name__}: {error}'], error
        broadcast_object_list(problem)
        if problem[0]:
            raise UserError(f'the probe after {epoch} epochs failed on the main process with '
                            f'{problem[0]}') from cause

    def _score(self, runner: Runner, epoch: int, start: float, features: Tensor, colors: Tensor,
               readable: Tensor) -> None:
        """Compute and write the scores; ``start`` is when the probe began."""
        is_train = torch.arange(len(readable)) < self._num_train
        train, test = is_train & readable, ~is_train & readable
        labels = self._images.labels
        parts = features[train], labels[train], features[test], labels[test]
        deviation = colors[train].std(dim=0, unbiased=False).clamp(min=TINY_DEVIATION)
        plain = (colors - colors[train].mean(dim=0)) / deviation
        scores = {'probe/knn': knn_accuracy(*parts, k=self.k),
                  'probe/knn_color': knn_accuracy(plain[train], labels[train], plain[test],
                                                  labels[test], k=self.k),
                  'probe/linear': linear_accuracy(*parts),
                  'probe/rank': effective_rank(features[readable]),
                  'probe/color_share': color_share(features[readable], colors[readable])}
        scores = {name: value for name, value in scores.items() if not math.isnan(value)}
        self.write(runner, scores, epoch)
        unread = f', {int((~readable).sum())} unreadable' if not readable.all() else ''
        runner.logger.info(
            f'Probe of the teacher after {epoch} epochs: kNN {scores["probe/knn"]:.1f} %, linear '
            f'{scores["probe/linear"]:.1f} % ({int(train.sum())} train and {int(test.sum())} test '
            f'images of {len(self._images.classes)} classes{unread}; kNN of color alone '
            f'{scores["probe/knn_color"]:.1f} %; {time.perf_counter() - start:.1f} s)')

    def _extract(self, runner: Runner) -> tuple[Tensor, Tensor, Tensor]:
        """Extract features ``[N, D]``, band statistics ``[N, 2C]`` and readability ``[N]``.

        The ranks share the images.

        The first images fill the last share up to the length of the others, because under FSDP
        every rank must run the same number of forward passes.
        """
        paths = self._images.paths
        rank, world = get_rank(), get_world_size()
        share = -(-len(paths) // world)
        mine = [paths[i % len(paths)] for i in range(rank * share, (rank + 1) * share)]
        # FSDP gathers the weights only in a forward of its wrapper; its default mode is the
        # teacher's features. DeepSpeed's wrapper cannot be called.
        model = inner_model(runner)
        encode = runner.model if isinstance(runner.model, nn.Module) else model.teacher_features

        def encode_both(images: Tensor) -> Tensor:
            return torch.cat([encode(images).float(), band_statistics(images)], dim=1)

        part = extract_features(model, mine, self.size, self.batch_size, encode_both)
        both, readable = (torch.cat(parts)[:len(paths)] for parts in zip(*all_gather_object(part)))
        features, colors = both.tensor_split([-2 * BANDS], dim=1)
        return features, colors, readable


def _images_of_split(folder: LabelledFolder, split: Split) -> LabelledFolder:
    """Select the images of the split, those to learn from first."""
    index = torch.cat([split.train, split.test])
    return LabelledFolder([folder.paths[i] for i in index], folder.labels[index], folder.classes)
