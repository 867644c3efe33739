"""DIOR for MMDetection, with its metric, and modules that keep boxes in float32 under autocast."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.datasets.base_det_dataset import BaseDetDataset
from mmdet.evaluation.metrics.voc_metric import VOCMetric
from mmdet.models.dense_heads.rpn_head import RPNHead
from mmdet.models.roi_heads.roi_extractors.single_level_roi_extractor import SingleRoIExtractor
from mmengine.logging import print_log
from torch import Tensor

from pera_mm.datasets.labelled import RedrawUnreadable, first_few, how_to_prepare
from pera_mm.datasets.reading import reason_of
from pera_mm.datasets.voc import read_annotation
from pera_mm.errors import UserError
from pera_mm.prepare.dior import CLASSES
from pera_mm.registry import DATASETS, METRICS, MODELS


@DATASETS.register_module()
class DIORDataset(RedrawUnreadable, BaseDetDataset):
    """A data set of DIOR, or of other Pascal VOC XML (``metainfo=dict(classes=...)``).

    The layout is DIOR's: ``data_root`` holds ``ImageSets/Main/{train,val,test}.txt``, a name per
    line, and the folders of ``data_prefix``. Before training starts, all XML is read and every name
    is looked up (23,000 files take seconds); no image is opened.

    An image also counts as unreadable if its XML gives another size, because the places of its
    boxes are then unknown. In training another image takes its place, and its path and the reason
    travel as ``skipped`` to :class:`SkippedImagesHook`. In a test it is an error.

    Args:
        splits: one or several names of files in ``ImageSets/Main``; the paper trains on
            ``('train', 'val')``.
        img_suffix: ending of the images' names.
        data_prefix: the folders of the images (``img``) and of the XML (``xml``).
        others: those of :class:`mmdet.datasets.BaseDetDataset`. The pipeline's first transform
            loads the image. ``filter_cfg=dict(filter_empty_gt=True)`` leaves out, in training,
            images without any object.

    Raises:
        ValueError: if a split, an image or an XML is missing, an XML is broken, or a class is
            unknown; in a test, if an image is unreadable.
    """

    METAINFO = dict(classes=CLASSES)

    def __init__(self, *, splits: str | Sequence[str], img_suffix: str = '.jpg',
                 data_prefix: dict[str, str], **others: Any) -> None:
        self.splits = [splits] if isinstance(splits, str) else list(splits)
        self.img_suffix = img_suffix
        super().__init__(data_prefix=data_prefix, **others)

    def load_data_list(self) -> list[dict]:
        """Read all XML files of the splits.

        Raises:
            ValueError: as the class.
        """
        images, xmls = (set(_list_folder(self.data_prefix[kind])) for kind in ('img', 'xml'))
        labels = {name: label for label, name in enumerate(self.metainfo['classes'])}
        samples: list[dict] = []
        problems: list[str] = []
        dropped: dict[str, int] = {}
        names = [name for split in self.splits for name in self._names(split)]
        for name in names:
            image, xml = f'{name}{self.img_suffix}', f'{name}.xml'
            img_path = os.path.join(self.data_prefix['img'], image)
            xml_path = os.path.join(self.data_prefix['xml'], xml)
            if xml not in xmls:
                problems.append(f'{xml_path} is missing')
                continue
            if image not in images:
                problems.append(f'{xml_path}: its image {img_path} is missing')
                continue
            try:
                found = read_annotation(xml_path)
            except ValueError as error:
                problems.append(f'{xml_path}: {error}')
                continue
            unknown = sorted(set(found.names) - set(labels))
            if unknown:
                problems.append(f'{xml_path}: unknown class {", ".join(map(repr, unknown))}')
                continue
            if found.num_dropped:
                dropped[xml] = found.num_dropped
            samples.append(dict(
                img_id=name, img_path=img_path, xml_path=xml_path,
                height=found.height, width=found.width,
                instances=[dict(bbox=box, bbox_label=labels[label], ignore_flag=int(ignored))
                           for box, label, ignored in zip(found.boxes.tolist(), found.names,
                                                          found.difficult)]))
        self._refuse_if_any(problems, len(names))
        if dropped:
            print_log(f'{sum(dropped.values())} boxes in {len(dropped)} of {len(names)} files are '
                      f'empty, inverted or outside of their image and were dropped: '
                      f'{first_few(list(dropped))}.', 'current', logging.WARNING)
        return samples

    def _names(self, split: str) -> list[str]:
        path = os.path.join(self.data_root, 'ImageSets', 'Main', f'{split}.txt')
        if not os.path.isfile(path):
            raise UserError(f'the list of the split {split!r}, {path}, is missing; set data_root '
                            f"to the folder that holds DIOR's ImageSets/Main, or name another of "
                            'its lists in splits.')
        with open(path, encoding='utf-8-sig') as lines:
            names = [line.strip() for line in lines if line.strip()]
        if not names:
            raise UserError(f'the list of the split {split!r}, {path}, is empty; it needs the '
                            'name of an image, without its suffix, on every line.')
        return names

    def _refuse_if_any(self, problems: list[str], total: int) -> None:
        if problems:
            raise UserError(
                f'{len(problems)} of the {total} samples in the splits {", ".join(self.splits)} of '
                f'{self.data_root} cannot be used ({first_few(problems, "; ")}); repair these '
                'files or remove their names from ImageSets/Main (known classes, which '
                f'metainfo=dict(classes=...) sets: {", ".join(self.metainfo["classes"])}).')

    def filter_data(self) -> list[dict]:
        """Leave out images without objects if ``filter_cfg`` says so, except in a test."""
        if self.test_mode or not (self.filter_cfg or {}).get('filter_empty_gt', False):
            return self.data_list
        return [sample for sample in self.data_list if sample['instances']]

    def run_pipeline(self, sample: dict) -> Any:
        """Load the image, compare its size, and run the rest of the pipeline."""
        transforms = self.pipeline.transforms
        if transforms:
            try:
                sample = _load_checked(transforms[0], sample)
            except _UnreadableError as error:
                sample['skipped'].append((sample['img_path'], str(error)))
                return None
        for transform in transforms[1:]:
            sample = transform(sample)
            if sample is None:  # MMEngine draws another one
                return None
        return sample


class _UnreadableError(Exception):
    """An image that cannot be used; the text is the reason, in one line."""


def _load_checked(transform: Any, sample: dict) -> dict:
    """Load the image of a sample and check that it has the size in its XML."""
    try:
        loaded = transform(sample)
    except MemoryError:  # not the image's fault
        raise
    except Exception as error:  # decoders raise anything on broken bytes
        raise _UnreadableError(reason_of(error)) from error
    height, width = loaded['img'].shape[:2]
    if (height, width) != (sample['height'], sample['width']):
        raise _UnreadableError(f'the image has {width} x {height} pixels, its XML says '
                               f'{sample["width"]} x {sample["height"]}')
    return loaded


def _list_folder(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        raise UserError(f'the folder {folder} is missing; {how_to_prepare(folder)}, or set '
                        "data_root to the folder that holds DIOR's JPEGImages-trainval, "
                        'JPEGImages-test and Annotations.')
    return os.listdir(folder)


@METRICS.register_module()
class EdgeVOCMetric(VOCMetric):
    """A ``VOCMetric`` for boxes given by their edges, as in :class:`DIORDataset`.

    MMDetection's metric takes the far corner for the last pixel of the object and makes all sides
    longer by one. This raises the overlap of small boxes (8 px: up to .03 of IoU). Here the corner
    is moved inwards first, so the overlap is exact.

    ``eval_mode='area'`` is the area under the whole precision-recall curve (VOC from 2010 on; COCO
    and torchvision's references sample it at 101 points). '11points', the parent's default, is the
    measure of VOC 2007. They differ by up to a few points: compare only results of one measure.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Store the boxes of one batch."""
        moved = []
        for sample in data_samples:
            sample = dict(sample)
            for key in ('gt_instances', 'ignored_instances', 'pred_instances'):
                boxes: torch.Tensor = sample[key]['bboxes']
                sample[key] = dict(sample[key], bboxes=boxes - boxes.new_tensor([0, 0, 1, 1]))
            moved.append(sample)
        super().process(data_batch, moved)


@MODELS.register_module()
class ExactRPNHead(RPNHead):
    """An ``RPNHead`` with proposals that stay exact under autocast.

    MMDetection's head computes anchors and proposals in the precision of its maps. In bfloat16 a
    coordinate above 256 is a multiple of two pixels, and many objects of DIOR are eight pixels
    long.
    """

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scores and deltas of one level, in float32."""
        scores, deltas = super().forward_single(x)
        return scores.float(), deltas.float()


@MODELS.register_module()
class ExactRoIExtractor(SingleRoIExtractor):
    """A ``SingleRoIExtractor`` that does not round boxes to the precision of the maps."""

    def forward(self, feats: tuple[Tensor, ...], rois: Tensor,
                roi_scale_factor: float | None = None) -> Tensor:
        """Pool the features of every box: ``[boxes, C, 7, 7]``, in float32."""
        return super().forward(tuple(x.float() for x in feats), rois, roi_scale_factor)
