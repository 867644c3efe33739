"""Images without labels for pre-training: read safely, drawn by key."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dataset import Compose
from torch.utils.data import Dataset, get_worker_info

from pera_mm.datasets.listing import open_source
from pera_mm.datasets.packed import TarShards
from pera_mm.datasets.reading import Scale, UnreadableImage, decode_safely, rule_of
from pera_mm.datasets.sampler import Draw
from pera_mm.errors import RunError, UserError
from pera_mm.registry import DATASETS
from pera_mm.shares import largest_remainder

MAX_REDRAWS = 100
MAX_WEIGHT = 1e9  # of a source


def compose(pipeline: Sequence[dict] | Mapping[str, dict | None]) -> Compose:
    """Build a pipeline from a list of transforms, or from a dict that names them.

    By name, as ``default_hooks`` is written, a config that inherits changes one step and repeats no
    other; the steps run in the order of the keys, and a step that is None is left out.

    Raises:
        ValueError: if it is a single transform, which has no place in either.
    """
    if isinstance(pipeline, Mapping) and 'type' in pipeline:
        raise UserError(f'pipeline is the single transform {pipeline["type"]}: give a list of '
                        'transforms, or a dict that names each of them.')
    return Compose(pipeline_steps(pipeline))


def pipeline_steps(pipeline: Sequence[dict] | Mapping[str, dict | None]) -> list[dict]:
    """Return the transforms of a pipeline in their order, whichever way it is written."""
    if isinstance(pipeline, Mapping):
        return [step for step in pipeline.values() if step is not None]
    return list(pipeline)


@DATASETS.register_module()
class UnlabeledImages(Dataset):
    """Images without labels from folders, lists, tar shards and LMDBs, always 8-bit RGB.

    A file that cannot be read is skipped. Another one of the same source is drawn instead, by the
    sample's own generator. The pipeline gets, and may change:

    * ``img``: uint8 RGB ``[H, W, 3]``; ``img_path``: str; ``sample_idx``: int
    * ``rng``: ``numpy.random.Generator``, the only source of randomness of a sample
    * ``skipped``: list of (path, reason), the unreadable files that were drawn before

    For five million images give tar shards, an LMDB, a text list, or a folder with ``index_file``;
    measured by ``tools/benchmarks/packed.py``.

    Args:
        source: The path of one of these, or a list of ``dict(path=..., weight=...)`` of them:

            * a folder of any depth; its images (any case of suffix) in bytewise order, so that
              every node has the same order;
            * a text list, one path per line, in its own order. Do not overwrite it while a
              training reads it; move a new list into its place;
            * a folder of ``.tar`` shards as WebDataset's, or a single shard;
            * a folder with the LMDB of ``tools/data/rsrsd.py pack``.

            A dict may also hold ``data_root``, ``index_file``, ``bands``, ``scale`` and
            ``shuffle_buffer`` for its source. Weights are shares of an epoch, see
            :meth:`epoch_order`; without any, an epoch has every image once.
        pipeline: Transforms of MMEngine's registry, e.g. ``dict(type='pera_mm.AlignedCrops')``, a
            list of them or a dict that names each, see :func:`compose`.
        data_root: The folder that the lines of a text list are relative to. Default: the list's.
        index_file: A text list of a folder's images, written when missing and used from then on
            (delete it after adding images). It may also be a source itself. For tar shards:
            their index, where it cannot lie beside them. An LMDB needs none.
        bands, scale: How rasters become 8-bit RGB, see :mod:`pera_mm.datasets.reading`.
        shuffle_buffer: The number of images of tar shards that are shuffled together, see
            :meth:`epoch_order`; 1: no shuffling. Every other source is permuted as a whole.

    Raises:
        ValueError: if a source is missing or empty, or a setting is wrong.
    """

    metainfo: dict[str, Any] = {}  # MMEngine's training loop asks for it

    def __init__(self, source: str | Sequence[dict], pipeline: Sequence[dict] | Mapping,
                 data_root: str | None = None, index_file: str | None = None,
                 bands: Sequence[int] | None = None, scale: Scale = 'auto',
                 shuffle_buffer: int = 10_000) -> None:
        entries = [dict(path=source)] if isinstance(source, (str, os.PathLike)) else source
        _check_entries(entries)
        if len(entries) > 1 and index_file is not None:
            raise UserError('each source of a mixture needs an index_file of its own; write it '
                            'into its dict, beside path and weight.')
        common = dict(data_root=data_root, index_file=index_file, bands=bands, scale=scale,
                      shuffle_buffer=shuffle_buffer, weight=None)
        settings = [{**common, **entry} for entry in entries]
        self.rules = [rule_of(entry['bands'], entry['scale']) for entry in settings]
        self.buffers = [_checked_buffer(entry['shuffle_buffer']) for entry in settings]
        self.sources = [open_source(entry['path'], entry['data_root'], entry['index_file'])
                        for entry in settings]
        sizes = [len(images) for images in self.sources]
        self.ends = np.cumsum(sizes)
        self.counts = _draws_per_source([entry['weight'] for entry in settings], sizes)
        self.pipeline = compose(pipeline)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        """Read one image and run the pipeline.

        Args:
            draw: The image and the seed of the sample; for a plain index the seed comes from
                NumPy's global generator.

        Raises:
            IndexError: if there is no such image.
            RuntimeError: if 100 images drawn one after another are unreadable.
        """
        if isinstance(draw, Draw):
            index, seed = draw
        else:
            index, seed = int(draw), int(np.random.randint(2**63 - 1, dtype=np.int64))
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} images')
        if get_worker_info() is not None:
            cv2.setNumThreads(0)  # one core per worker; spawned workers inherit no setting
        return self.pipeline(self._read(index, np.random.default_rng(seed)))

    def _read(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        number = int(np.searchsorted(self.ends, index, side='right'))
        images = self.sources[number]
        first = int(self.ends[number]) - len(images)
        skipped: list[tuple[str, str]] = []
        while len(skipped) < MAX_REDRAWS:
            path = images.name(index - first)
            try:
                pixels = decode_safely(images.read(index - first), *self.rules[number], path)
            except UnreadableImage as error:
                skipped.append((path, str(error)))
                index = first + int(rng.integers(len(images)))
                continue
            return dict(img=pixels, img_path=path, sample_idx=index, rng=rng,
                        skipped=skipped)
        path, reason = skipped[-1]
        raise RunError(f'{MAX_REDRAWS} images drawn one after another could not be read, the '
                       f'last was {path!r} ({reason}); check the data.')

    def epoch_order(self, generator: torch.Generator) -> torch.Tensor:
        """The indices of one epoch, int64 ``[len(self)]``, shuffled.

        Without weights, every image is drawn once. With weights w_i, source i of a mixture of N
        images has ``N * w_i / sum(w)`` of the draws, rounded to a whole number
        (:func:`~pera_mm.shares.largest_remainder`). Each of its images is drawn k or k + 1 times.

        A folder, a text list and an LMDB are permuted. Tar shards are shuffled such that they are
        read one after another, see :meth:`~pera_mm.datasets.packed.TarShards.order`. Sources are
        interleaved at random, each in its own order.
        """
        parts = [self._draws(number, generator) for number in range(len(self.sources))]
        if len(parts) == 1:
            return parts[0]
        whose = torch.repeat_interleave(torch.tensor(self.counts))  # [N], the source's number
        whose = whose[torch.randperm(len(whose), generator=generator)]
        order = torch.empty_like(whose)
        for number, part in enumerate(parts):
            order[whose == number] = part
        return order

    def _draws(self, number: int, generator: torch.Generator) -> torch.Tensor:
        """The draws of an epoch from one source, int64 ``[self.counts[number]]``."""
        images, count = self.sources[number], self.counts[number]
        rounds = [torch.empty(0, dtype=torch.int64)]
        for _ in range(-(-count // len(images))):
            if isinstance(images, TarShards):
                rounds.append(images.order(generator, self.buffers[number]))
            else:
                rounds.append(torch.randperm(len(images), generator=generator))
        return torch.cat(rounds)[:count] + (int(self.ends[number]) - len(images))


def _checked_buffer(images: int) -> int:
    if not isinstance(images, int) or images < 1:
        raise UserError(f'shuffle_buffer is {images!r}, but must be a whole number of images, at '
                        'least 1.')
    return images


def _check_entries(entries: Any) -> None:
    known = {'path', 'weight', 'data_root', 'index_file', 'bands', 'scale', 'shuffle_buffer'}
    listed = entries if isinstance(entries, Sequence) else [None]
    wrong = [entry for entry in listed if not isinstance(entry, Mapping) or set(entry) - known
             or not isinstance(entry.get('path'), (str, os.PathLike))]
    if wrong:
        raise UserError('source must be a path or a list of dict(path=..., weight=...) with keys '
                        f'among {", ".join(sorted(known))}; got {wrong[0] or entries!r}.')
    if not entries:
        raise UserError('source is an empty list; give a folder, a text list, tar shards, an '
                        'LMDB, or a list of dict(path=..., weight=...).')


def _draws_per_source(weights: list[float | None], sizes: list[int]) -> list[int]:
    """The draws of an epoch from each source; they sum to the number of images."""
    if all(weight is None for weight in weights):
        return sizes
    given = [weight for weight in weights
             if isinstance(weight, (int, float)) and 0 < weight <= MAX_WEIGHT]
    if len(given) < len(weights):
        raise UserError(f'give every source of a mixture a weight above 0 and up to '
                        f'{MAX_WEIGHT:g}, or none of them; got {weights}.')
    return largest_remainder(sum(sizes), given).tolist()
