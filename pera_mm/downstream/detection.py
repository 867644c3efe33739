"""DIOR for MMDetection, with its metrics, and modules that keep boxes in float32 under autocast."""

import io
import logging
import os
from collections import Counter
from collections.abc import Container, Sequence
from contextlib import redirect_stdout
from multiprocessing.pool import ThreadPool
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmdet.datasets.base_det_dataset import BaseDetDataset
from mmdet.evaluation.functional import mean_ap
from mmdet.evaluation.metrics.voc_metric import VOCMetric
from mmdet.models.dense_heads.rpn_head import RPNHead
from mmdet.models.roi_heads.roi_extractors.single_level_roi_extractor import SingleRoIExtractor
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from pera_mm.datasets.labelled import (
    RedrawUnreadable,
    how_to_prepare,
    refuse_repeated,
    with_classes,
)
from pera_mm.datasets.matching import Role, first_few, names_of
from pera_mm.datasets.reading import reason_of
from pera_mm.datasets.text_lists import read_names, unquoted
from pera_mm.datasets.voc import read_annotation
from pera_mm.errors import UserError
from pera_mm.prepare.dior import CLASSES
from pera_mm.registry import DATASETS, METRICS, MODELS


@DATASETS.register_module()
class DIORDataset(RedrawUnreadable, BaseDetDataset):
    """A data set of DIOR, or of other Pascal VOC XML (``metainfo=dict(classes=...)``).

    The layout is DIOR's: ``data_root`` holds ``ImageSets/Main/{train,val,test}.txt``, a name per
    line, and the folders of ``data_prefix``. An image and its XML are found by that name. Before
    training starts, all XML is read and every name is looked up (23,000 files take seconds); no
    image is opened.

    An image also counts as unreadable if its XML gives another size, because the places of its
    boxes are then unknown. In training another image takes its place, and its path and the reason
    travel as ``skipped`` to :class:`SkippedImagesHook`. In a test it is an error.

    Args:
        splits: one or several names of files in ``ImageSets/Main``; the paper trains on
            ``('train', 'val')``.
        img_suffix: end of the images' names behind the names in the lists, such as ``'.jpg'``;
            None: any suffix of an image.
        data_prefix: the folders of the images (``img``) and of the XML (``xml``).
        others: those of :class:`mmdet.datasets.BaseDetDataset`. The pipeline's first transform
            loads the image. ``filter_cfg=dict(filter_empty_gt=True)`` leaves out, in training,
            images without any object.

    Raises:
        ValueError: if a split, an image or an XML is missing, an XML is broken, a class is
            unknown, or no box is left; in a test, if an image is unreadable.
    """

    METAINFO = dict(classes=CLASSES)

    def __init__(self, *, splits: str | Sequence[str], data_prefix: dict[str, str],
                 img_suffix: str | None = None, metainfo: dict | None = None,
                 **others: Any) -> None:
        self.splits = [splits] if isinstance(splits, str) else list(splits)
        self.img_suffix = img_suffix
        super().__init__(data_prefix=data_prefix, metainfo=with_classes(metainfo, needed=False),
                         **others)

    def load_data_list(self) -> list[dict]:
        """Read all XML files of the splits.

        Raises:
            ValueError: as the class.
        """
        for folder in self.data_prefix.values():
            _check_folder(folder)
        roles = [Role('image', self.data_prefix['img'], self.img_suffix),
                 Role('XML', self.data_prefix['xml'], types=('.xml', ))]
        images, xmls = (role.files(role.paths()) for role in roles)
        labels = {name: label for label, name in enumerate(self.metainfo['classes'])}
        samples: list[dict] = []
        problems: list[str] = []
        dropped: dict[str, Counter[str]] = {}
        names = [name for split in self.splits for name in self._names(split, roles, images | xmls)]
        refuse_repeated(names, self)
        for name in names:
            xml = f'{name}.xml'
            xml_path = xmls.get(name, os.path.join(self.data_prefix['xml'], xml))
            img_path = images.get(name, '')
            if not os.path.exists(xml_path):
                problems.append(f'{xml_path} is missing')
                continue
            if not os.path.exists(img_path):
                img_path = img_path or os.path.join(self.data_prefix['img'],
                                                    f'{name}{self.img_suffix or ".*"}')
                problems.append(f'{xml_path}: its image {img_path} is missing')
                continue
            try:
                found = read_annotation(xml_path)
            except (ValueError, OSError) as error:
                problems.append(f'{xml_path}: {error}')
                continue
            unknown = sorted(set(found.names) - set(labels))
            if unknown:
                problems.append(f'{xml_path}: unknown class {", ".join(map(repr, unknown))}')
                continue
            if found.dropped:
                dropped[xml] = found.dropped
            samples.append(dict(
                img_id=name, img_path=img_path, xml_path=xml_path,
                height=found.height, width=found.width,
                instances=[dict(bbox=box, bbox_label=labels[label], ignore_flag=int(ignored))
                           for box, label, ignored in zip(found.boxes.tolist(), found.names,
                                                          found.difficult)]))
        self._refuse_if_any(problems, len(names))
        lost = _lost_boxes(dropped, len(names))
        self._refuse_without_boxes(samples, lost)
        if lost:
            print_log(f'{lost}.', 'current', logging.WARNING)
        return samples

    def _names(self, split: str, roles: Sequence[Role], known: Container[str]) -> list[str]:
        path = os.path.join(self.data_root, 'ImageSets', 'Main', f'{split}.txt')
        if not os.path.isfile(path):
            raise UserError(f'the list of the split {split!r}, {path}, is missing; set data_root '
                            f"to the folder that holds DIOR's ImageSets/Main, or name another of "
                            'its lists in splits.')
        listed = read_names(path, known, lambda line: names_of(line, roles, self.data_root))
        return [*listed.known, *(unquoted(line.text) for line in listed.unknown)]

    def _refuse_if_any(self, problems: list[str], total: int) -> None:
        if problems:
            raise UserError(
                f'{len(problems)} of the {total} samples in the splits {", ".join(self.splits)} of '
                f'{self.data_root} cannot be used ({first_few(problems, "; ")}); repair these '
                'files or remove their names from ImageSets/Main (known classes, which '
                f'metainfo=dict(classes=...) sets: {", ".join(self.metainfo["classes"])}).')

    def _refuse_without_boxes(self, samples: list[dict], lost: str) -> None:
        boxes = [box for sample in samples for box in sample['instances']]
        if not all(box['ignore_flag'] for box in boxes):
            return
        if boxes:
            reasons = f'all {len(boxes)} are difficult; {lost}'.rstrip('; ')
        else:
            reasons = lost or 'they have no <object>'
        raise UserError(f'no box is left in the {len(samples)} XML files of the splits '
                        f'{", ".join(self.splits)} of {self.data_root}: {reasons}; correct these '
                        'files.')

    def filter_data(self) -> list[dict]:
        """Leave out images without objects if ``filter_cfg`` says so, except in a test."""
        if self.test_mode or not (self.filter_cfg or {}).get('filter_empty_gt', False):
            return self.data_list
        return [sample for sample in self.data_list if sample['instances']]

    def run_pipeline(self, sample: dict) -> Any:
        """Load the image, compare its size, and run the rest of the pipeline."""
        transforms = self.pipeline.transforms
        loaded = _load_checked(transforms[0], sample) if transforms else sample
        for transform in transforms[1:]:
            if loaded is None:  # MMEngine draws another one
                return None
            loaded = transform(loaded)
        return loaded


def _load_checked(transform: Any, sample: dict) -> dict | None:
    """Load the image of a sample; None, and a line in ``skipped``, if it does not fit its XML."""
    try:
        loaded = transform(sample)
    except (MemoryError, ImportError):  # not the image's fault
        raise
    except Exception as error:  # MMDetection's loader passes on what its decoder raises
        sample['skipped'].append((sample['img_path'], reason_of(error)))
        return None
    if loaded is None:
        return None
    height, width = loaded['img'].shape[:2]
    if (height, width) == (sample['height'], sample['width']):
        return loaded
    reason = (f'the image has {width} x {height} pixels, its XML says '
              f'{sample["width"]} x {sample["height"]}')
    if (width, height) == (sample['height'], sample['width']):
        reason += ': images are read as they are stored, not turned by their EXIF orientation'
    sample['skipped'].append((sample['img_path'], reason))
    return None


def _lost_boxes(dropped: dict[str, Counter[str]], total: int) -> str:
    """Say how many boxes were dropped, why, and from which files; empty if none was."""
    if not dropped:
        return ''
    reasons = sum(dropped.values(), Counter())
    counts = ', '.join(f'{number} {reason}' for reason, number in reasons.most_common())
    return (f'{reasons.total()} boxes in {len(dropped)} of {total} files were dropped ({counts}): '
            f'{first_few(list(dropped))}')


def _check_folder(folder: str) -> None:
    if not os.path.isdir(folder):
        raise UserError(f'the folder {folder} is missing; {how_to_prepare(folder)}, or set '
                        "data_root to the folder that holds DIOR's JPEGImages-trainval, "
                        'JPEGImages-test and Annotations.')


@METRICS.register_module()
class EdgeVOCMetric(VOCMetric):
    """A ``VOCMetric`` for boxes given by their edges, as in :class:`DIORDataset`.

    MMDetection's metric takes the far corner for the last pixel of the object and makes all sides
    longer by one. This raises the overlap of small boxes (8 px: up to .03 of IoU). Here the corner
    is moved inwards first, so the overlap is exact.

    ``eval_mode='area'`` is the area under the whole precision-recall curve (VOC from 2010 on);
    :class:`COCO101Metric` samples it at 101 points. '11points', the parent's default, is the
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

    def compute_metrics(self, results: list) -> dict:
        """Score all boxes, and log what the score is."""
        # eval_map forks a pool of processes. Once in many times a child of a process with threads
        # waits forever, and so does the end of the pool; threads do the same work.
        with mock.patch.object(mean_ap, 'Pool', ThreadPool):
            scores = super().compute_metrics(results)
        points = dict(area='the area under the whole precision-recall curve, as VOC from 2010 on')
        print_log('pascal_voc/mAP: '
                  f'{points.get(self.eval_mode, "the mean of 11 points, as VOC 2007")}.', 'current')
        return scores


@METRICS.register_module()
class COCO101Metric(BaseMetric):
    """AP50 as COCO computes it: ``coco101/mAP50``, 0-1, the same as torchmetrics' ``map_50``.

    The precision-recall curve is sampled at 101 recalls. Of each class the 100 best boxes of an
    image count. Boxes are given by their edges, and the number is not rounded. A difficult object
    is COCO's ``iscrowd``: to find it is neither right nor wrong.
    """

    default_prefix = 'coco101'

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Store the boxes of one batch as COCO's annotations."""
        for sample in data_samples:
            found = sample['pred_instances']
            self.results.append((
                [*_annotations(sample['gt_instances'], iscrowd=0),
                 *_annotations(sample['ignored_instances'], iscrowd=1)],
                [dict(box, score=score) for box, score in zip(
                    _annotations(found, iscrowd=0), found['scores'].tolist())]))

    def compute_metrics(self, results: list[tuple[list[dict], list[dict]]]) -> dict[str, float]:
        """Average over the classes that occur in the truth; nan if none does."""
        number = len(self.dataset_meta['classes'])
        truth, found = (_index_boxes(boxes, number) for boxes in zip(*results))
        with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            evaluation = COCOeval(truth, found, 'bbox')
            evaluation.params.iouThrs = np.array([.5])
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ['all']
            evaluation.params.maxDets = [100]
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval['precision']  # [1, 101, classes, 1, 1], -1 without truth
        print_log("coco101/mAP50: the mean of COCO's 101 points of the precision-recall curve, at "
                  'most 100 boxes of a class in an image.', 'current')
        scored = precision[precision > -1]
        return dict(mAP50=float(scored.mean()) if scored.size else float('nan'))


def _annotations(boxes: dict, iscrowd: int) -> list[dict]:
    """Write the boxes (left, upper, right, lower) of an image as COCO's annotations."""
    edges = boxes['bboxes'].double()
    sides = edges[:, 2:] - edges[:, :2]
    return [dict(bbox=[*corner, width, height], area=width * height, category_id=label,
                 iscrowd=iscrowd)
            for corner, (width, height), label in zip(
                edges[:, :2].tolist(), sides.tolist(), boxes['labels'].tolist())]


def _index_boxes(images: Sequence[list[dict]], classes: int) -> COCO:
    """Number the images and boxes from 1 (pycocotools takes 0 for no match)."""
    index = COCO()
    boxes = [dict(box, image_id=image) for image, found in enumerate(images, 1) for box in found]
    index.dataset = dict(
        images=[dict(id=image) for image in range(1, len(images) + 1)],
        categories=[dict(id=label) for label in range(classes)],
        annotations=[dict(box, id=number) for number, box in enumerate(boxes, 1)])
    with redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


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
