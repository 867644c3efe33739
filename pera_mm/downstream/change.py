"""Change detection in MMSegmentation: two dates, one mask, one backbone.

MMSegmentation 1.2.2 has the data set (``LEVIRCDDataset``) but no segmentor for two dates, and
its loader of pairs needs GDAL. A pair is one image of six channels, the first date's RGB before
the second's, so every geometric transform of the toolbox moves both dates alike.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.fileio import list_from_file
from mmseg.models.segmentors.encoder_decoder import EncoderDecoder
from torch import Tensor

from pera_mm.datasets.labelled import how_to_prepare
from pera_mm.datasets.masks import read_mask
from pera_mm.datasets.reading import Scale, UnreadableImage, read_image, rule_of
from pera_mm.downstream.segmentation import LoadMask, SegmentationDataset, check_equal_sizes
from pera_mm.errors import UserError
from pera_mm.registry import DATASETS, MODELS, TRANSFORMS

TWO_CLASSES = dict(classes=('unchanged', 'changed'), palette=[[225, 225, 225], [200, 30, 30]])
FILE_ROLES = dict(img_path='first date', img_path2='second date', seg_map_path='mask')
UNCHANGED, CHANGED = 0, 255
MAX_SHOWN = 3  # missing files that an error names


@MODELS.register_module()
class SiameseEncoderDecoder(EncoderDecoder):
    """A segmentor of MMSegmentation with one backbone for two dates (paper 4.2.3).

    The backbone makes two passes with the same weights, as in the paper, and the neck joins the
    maps of both. Modules have the names of Open-CD's ``SiamEncoderDecoder``, so either loads the
    checkpoints of the other.

    Args:
        *args, **kwargs: As in ``EncoderDecoder``. A ``neck`` that takes two dates is required, such
            as :class:`pera_mm.downstream.bit_head.PairNeck`.

    Raises:
        ValueError: if there is no neck.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.with_neck:
            raise UserError('SiameseEncoderDecoder needs a neck that joins the maps of both '
                            "dates: neck=dict(type='pera_mm.PairNeck', in_channels=...).")

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Map ``[B, 6, H, W]``, the first date's channels first, to the maps of the neck."""
        before, after = inputs.split(3, dim=1)
        return self.neck(self.backbone(before), self.backbone(after))


@DATASETS.register_module()
class ChangePairs(SegmentationDataset):
    """A data set in LEVIR-CD's layout: ``A`` (before), ``B`` (after) and ``label``, same names.

    Unreadable files are treated as in the parent: replaced in training, an error in a test.

    Args:
        data_prefix: the folders, as ``dict(img_path='train/A', img_path2='train/B',
            seg_map_path='train/label')``.
        metainfo: ``dict(classes=('unchanged', ...))``, for kinds of change: masks hold the ids of
            the classes, and 255 where not labelled. None: masks hold 0 (unchanged) and 255
            (changed).
        kwargs: as for ``mmseg.BaseSegDataset``: ``data_root``, ``pipeline``, the suffixes of
            images and masks (``.png``), and ``ann_file``, a list of names without suffix if not
            all pairs are wanted.

    Raises:
        ValueError: if a folder is missing, there is no pair, or a pair lacks a file.
    """

    def __init__(self, data_prefix: dict[str, str], metainfo: dict | None = None,
                 **kwargs: Any) -> None:
        self.has_kinds = metainfo is not None
        super().__init__(metainfo=metainfo or TWO_CLASSES, data_prefix=data_prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Find the pairs and check that each has its three files."""
        suffixes = dict(img_path=self.img_suffix, img_path2=self.img_suffix,
                        seg_map_path=self.seg_map_suffix)
        found = {key: _names(Path(self.data_prefix[key]), suffixes[key]) for key in FILE_ROLES}
        names = set(list_from_file(self.ann_file)) if self.ann_file else set.union(*found.values())
        if not names:
            raise UserError(f'No images *{self.img_suffix} in {self.data_prefix["img_path"]}: '
                            'correct data_root, data_prefix and img_suffix of the dataset.')
        for key, present in found.items():
            missing = sorted(names - present)
            if missing:
                shown = ', '.join(name + suffixes[key] for name in missing[:MAX_SHOWN])
                more = ', ...' if len(missing) > MAX_SHOWN else ''
                raise UserError(
                    f'{len(missing)} of {len(names)} pairs have no {FILE_ROLES[key]} in '
                    f'{self.data_prefix[key]}: {shown}{more}; '
                    'both dates and the mask of a pair need one name.')
        classes = dict(num_classes=self.num_classes, threshold=None) if self.has_kinds else {}
        return [
            {key: str(Path(self.data_prefix[key], name + suffixes[key])) for key in FILE_ROLES}
            | dict(seg_fields=[], reduce_zero_label=False, label_map=None, **classes)
            for name in sorted(names)]


def _names(folder: Path, suffix: str) -> set[str]:
    if not folder.is_dir():
        raise UserError(f'There is no folder {folder}: {how_to_prepare(str(folder))}, or correct '
                        'data_root and data_prefix of the dataset.')
    return {path.name.removesuffix(suffix) for path in folder.iterdir()
            if path.name.endswith(suffix) and not path.name.startswith('.')}


@TRANSFORMS.register_module()
class LoadPair(BaseTransform):
    """Read both dates and the mask of a pair.

    It needs ``img_path``, ``img_path2``, ``seg_map_path`` and ``seg_fields``. It adds ``img``,
    uint8 ``[H, W, 6]``, RGB of the first date, then of the second; ``gt_seg_map``, uint8
    ``[H, W]``, 0 unchanged and 1 changed; and the shapes. The mask's file holds exactly 0
    (unchanged) and 255 (changed), LEVIR-CD's values. A 1 is refused, since some toolboxes take it
    for 'changed' and others for 'unchanged'. The mask of a sample with ``num_classes`` holds class
    ids, which :class:`~pera_mm.downstream.segmentation.LoadMask` reads.

    For a file that cannot be read, (path, reason) is appended to ``skipped``, and the result is
    None.

    Args:
        bands, scale: How rasters become 8-bit RGB, see :mod:`pera_mm.datasets.reading`.
            ``tools/predict.py`` takes them from here.

    Raises:
        ValueError: if the rule is not one of those, the three sizes differ, or the mask has another
            value.
    """

    def __init__(self, bands: Sequence[int] | None = None,
                 scale: Scale | Sequence[float] = 'auto') -> None:
        self.rule = rule_of(bands, scale)

    def transform(self, results: dict) -> dict | None:
        """Read both dates and the mask; None if a file is unreadable."""
        has_kinds = 'num_classes' in results
        parts = []

        def read_date(path: str) -> np.ndarray:
            return read_image(path, *self.rule)

        for key, read in (('img_path', read_date), ('img_path2', read_date),
                          ('seg_map_path', _read_gray))[:2 if has_kinds else 3]:
            try:
                parts.append(read(results[key]))
            except UnreadableImage as error:
                results['skipped'].append((results[key], str(error)))
                return None
        check_equal_sizes({results[key]: part.shape[1::-1] for key, part in zip(FILE_ROLES, parts)})
        results['img'] = np.concatenate(parts[:2], axis=2)
        results['img_shape'] = results['ori_shape'] = parts[0].shape[:2]
        if has_kinds:
            return LoadMask().transform(results)
        results['gt_seg_map'] = check_mask(parts[2], results['seg_map_path']) // CHANGED
        results['seg_fields'].append('gt_seg_map')
        return results


@TRANSFORMS.register_module()
class SwapDates(BaseTransform):
    """Exchange the two dates of a pair with probability ``prob``; what has changed stays the same.

    A pair with kinds of change (``num_classes``) keeps its order: from town to field is another
    kind than from field to town.

    Required Keys: img, uint8 ``[H, W, 6]`` of :class:`LoadPair`. Modified Keys: img.

    Args:
        prob: in [0, 1].

    Raises:
        ValueError: if it is not a probability.
    """

    def __init__(self, prob: float) -> None:
        if not 0 <= prob <= 1:
            raise UserError(f'SwapDates: prob is a probability in [0, 1], got {prob}.')
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """Exchange the dates, or not."""
        if 'num_classes' not in results and np.random.rand() < self.prob:
            results['img'] = np.roll(results['img'], 3, axis=2)
        return results


def _read_gray(path: str) -> np.ndarray:
    """Read the mask in 8-bit gray ``[H, W]``; the values of a 1-bit file become 0 and 255."""
    return read_mask(path, 'L').values


def check_mask(mask: np.ndarray, path: str) -> np.ndarray:
    """Return the mask if it holds 0 and 255 only.

    Raises:
        ValueError: if it holds other values, which the error names.
    """
    if ((mask != UNCHANGED) & (mask != CHANGED)).any():
        values = ', '.join(str(value) for value in np.unique(mask) if value not in
                           (UNCHANGED, CHANGED))
        raise UserError(f'the mask {path} has pixels of value {values}; only {UNCHANGED} '
                        f'(unchanged) and {CHANGED} (changed) are allowed: convert the masks.')
    return mask
