"""Change detection in MMSegmentation: two dates, one mask, one backbone.

MMSegmentation 1.2.2 has the data set (``LEVIRCDDataset``) but no segmentor for two dates, and
its loader of pairs needs GDAL. A pair is one image of six channels, the first date's RGB before
the second's, so every geometric transform of the toolbox moves both dates alike.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.models.segmentors.encoder_decoder import EncoderDecoder
from torch import Tensor

from pera_mm.datasets.labelled import find_samples, with_classes
from pera_mm.datasets.masks import read_changes
from pera_mm.datasets.matching import MASK_TYPES, Role
from pera_mm.datasets.reading import Scale, UnreadableImage, read_image, rule_of
from pera_mm.downstream.segmentation import (
    LoadMask,
    SegmentationDataset,
    check_equal_sizes,
)
from pera_mm.errors import UserError
from pera_mm.registry import DATASETS, MODELS, TRANSFORMS

TWO_CLASSES = dict(classes=('unchanged', 'changed'), palette=[[225, 225, 225], [200, 30, 30]])
PAIR = ('img_path', 'img_path2', 'seg_map_path')


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

    Missing and unreadable files are treated as in the parent: left out or replaced in training, an
    error in a test. Pairs are sorted by name.

    Args:
        data_prefix: the folders, as ``dict(img_path='train/A', img_path2='train/B',
            seg_map_path='train/label')``.
        metainfo: ``dict(classes=('unchanged', ...))``, for kinds of change: masks hold the ids of
            the classes, and 255 where not labelled. Without classes masks hold 0 (unchanged) and
            255 (changed).
        kwargs: as for the parent, without ``threshold`` and ``reduce_zero_label``.

    Raises:
        ValueError: as the parent.
    """

    def __init__(self, data_prefix: dict[str, str], metainfo: dict | None = None,
                 **kwargs: Any) -> None:
        if kwargs.get('threshold') is not None or kwargs.get('reduce_zero_label'):
            raise UserError('ChangePairs has no threshold and no reduce_zero_label: its masks hold '
                            '0 and 255, or with metainfo.classes the ids of the classes; leave '
                            'them out.')
        if missing := ', '.join(key for key in PAIR if key not in data_prefix):
            raise UserError(f'data_prefix of ChangePairs lacks {missing}: name three folders, '
                            "dict(img_path='train/A', img_path2='train/B', "
                            "seg_map_path='train/label').")
        given = with_classes(metainfo, needed=False)
        self.has_kinds = 'classes' in given
        super().__init__(metainfo=given if self.has_kinds else TWO_CLASSES | given,
                         data_prefix=data_prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Find the pairs, which have three files each.

        Raises:
            ValueError: as the parent.
        """
        date1, date2, masks = (self.data_prefix[key] for key in PAIR)
        roles = dict(img_path=Role('first date', date1, self.img_suffix),
                     img_path2=Role('second date', date2, self.img_suffix),
                     seg_map_path=Role('mask', masks, self.seg_map_suffix, MASK_TYPES))
        classes = dict(num_classes=self.num_classes, threshold=None) if self.has_kinds else {}
        return [sample.files | dict(
            seg_fields=[], reduce_zero_label=False, label_map=None, **classes)
            for sample in sorted(find_samples(self, roles), key=lambda sample: sample.name)]


@TRANSFORMS.register_module()
class LoadPair(BaseTransform):
    """Read both dates and the mask of a pair.

    It needs ``img_path``, ``img_path2``, ``seg_map_path`` and ``seg_fields``. It adds ``img``,
    uint8 ``[H, W, 6]``, RGB of the first date, then of the second; ``gt_seg_map``, uint8
    ``[H, W]``, 0 unchanged, 1 changed, and 255 where the file declares nodata; and the shapes. The
    mask's file holds exactly 0 (unchanged) and 255 (changed), LEVIR-CD's values. A 1 is refused,
    since some toolboxes take it for 'changed' and others for 'unchanged'. The mask of a sample with
    ``num_classes`` holds class ids, which :class:`~pera_mm.downstream.segmentation.LoadMask` reads.

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
                          ('seg_map_path', read_changes))[:2 if has_kinds else 3]:
            try:
                parts.append(read(results[key]))
            except UnreadableImage as error:
                results['skipped'].append((results[key], str(error)))
                return None
        check_equal_sizes({results[key]: part.shape[1::-1] for key, part in zip(PAIR, parts)})
        results['img'] = np.concatenate(parts[:2], axis=2)
        results['img_shape'] = results['ori_shape'] = parts[0].shape[:2]
        if has_kinds:
            return LoadMask().transform(results)
        results['gt_seg_map'] = parts[2]
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
