"""DIOR for MMDetection: boxes from Pascal VOC's XML, checked before the first step.

And what keeps MMDetection's boxes in float32 under autocast.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from mmdet.datasets.base_det_dataset import BaseDetDataset
from mmdet.evaluation.metrics.voc_metric import VOCMetric
from mmdet.models.dense_heads.rpn_head import RPNHead
from mmdet.models.roi_heads.roi_extractors.single_level_roi_extractor import SingleRoIExtractor
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import get_worker_info

from pera_mm.datasets.reading import reason_of
from pera_mm.datasets.unlabeled import MAX_REDRAWS
from pera_mm.errors import RunError, UserError
from pera_mm.prepare.dior import CLASSES
from pera_mm.registry import DATASETS, METRICS, MODELS

SHOWN = 5  # problems that are spelled out; the rest is counted


class Annotation(NamedTuple):
    """One XML file.

    Attributes:
        width, height: of the image, in pixels.
        boxes: float ``[n, 4]`` as left, upper, right, lower edge in pixels from the image's corner:
            an object on the first pixel only is (0, 0, 1, 1).
        names: n class names.
        difficult: n flags; such an object counts neither as found nor as missed.
        num_dropped: how many boxes were empty, inverted or outside of the image.
    """

    width: int
    height: int
    boxes: np.ndarray
    names: tuple[str, ...]
    difficult: tuple[bool, ...]
    num_dropped: int


def read_annotation(path: str) -> Annotation:
    """Read a Pascal VOC XML file.

    There pixels count from 1 and both ends belong to the object, so its edges are at
    ``xmin - 1, ymin - 1, xmax, ymax``: flips and resizing need no correction by a pixel. What
    sticks out of the image is cut off. A box with ``xmax <= xmin`` or ``ymax <= ymin``, or with
    nothing in the image, is dropped.

    Raises:
        ValueError: if the file is no such XML; the text is the reason.
    """
    try:
        top = ElementTree.parse(path).getroot()
        width, height = (int(_text(top, f'size/{side}')) for side in ('width', 'height'))
        objects = top.findall('object')
        corners = np.array([[float(_text(item, f'bndbox/{side}'))
                             for side in ('xmin', 'ymin', 'xmax', 'ymax')]
                            for item in objects]).reshape(-1, 4)
        names = [_text(item, 'name') for item in objects]
        difficult = [int(item.findtext('difficult') or 0) > 0 for item in objects]
    except ElementTree.ParseError as error:
        raise UserError(f'it is no XML ({error})') from error
    limit = np.array([width, height, width, height])
    boxes = np.clip(corners - (1, 1, 0, 0), 0, limit)
    kept = np.flatnonzero((corners[:, 2:] > corners[:, :2]).all(1)
                          & (boxes[:, 2:] > boxes[:, :2]).all(1))
    return Annotation(width, height, boxes[kept].astype(np.float32),
                      tuple(names[i] for i in kept), tuple(difficult[i] for i in kept),
                      len(objects) - len(kept))


def _text(parent: ElementTree.Element, path: str) -> str:
    text = parent.findtext(path)
    if text is None:
        raise UserError(f'<{parent.tag}> lacks <{path}>')
    return text.strip()


@DATASETS.register_module()
class DIORDataset(BaseDetDataset):
    """DIOR, or any other Pascal VOC XML (``metainfo=dict(classes=...)``), in DIOR's layout.

    ``data_root`` holds ``ImageSets/Main/{train,val,test}.txt``, a name per line, and the folders of
    ``data_prefix``. All XML is read, and every name looked up, before training starts (23 000 files
    take seconds); no image is opened.

    An image that cannot be read, or whose size is not what its XML says (then nobody knows where
    its boxes are), is replaced in training by another one drawn at random; its path and the reason
    travel as ``skipped`` to :class:`SkippedImagesHook`. In testing nothing may replace it: it is
    scored as a black image, so that its objects count as missed, and a warning names it.

    Args:
        splits: one or several names of files in ``ImageSets/Main``; the paper trains on
            ``('train', 'val')``.
        img_suffix: of the images, e.g. '.jpg'.
        data_prefix: the folders of the images (``img``) and of the XML (``xml``).
        others: those of :class:`mmdet.datasets.BaseDetDataset`. The pipeline's first transform
            loads the image. ``filter_cfg=dict(filter_empty_gt=True)`` leaves out, in training,
            images without any object.

    Raises:
        ValueError: in one sentence, if a split, an image or an XML is missing, an XML is broken, or
            a class is unknown.
    """

    METAINFO = dict(classes=CLASSES)

    def __init__(self, *, splits: str | Sequence[str], img_suffix: str = '.jpg',
                 data_prefix: dict[str, str], **others: Any) -> None:
        self.splits = [splits] if isinstance(splits, str) else list(splits)
        self.img_suffix = img_suffix
        super().__init__(data_prefix=data_prefix, **others)

    def load_data_list(self) -> list[dict]:
        """Read all XML files of the splits."""
        images, xmls = (set(_list(self.data_prefix[kind])) for kind in ('img', 'xml'))
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
        self._judge(problems, len(names))
        if dropped:
            print_log(f'{sum(dropped.values())} boxes in {len(dropped)} of {len(names)} files are '
                      f'empty, inverted or outside of their image and were dropped: '
                      f'{_some(list(dropped), ", ")}.', 'current', logging.WARNING)
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

    def _judge(self, problems: list[str], total: int) -> None:
        if problems:
            raise UserError(
                f'{len(problems)} of the {total} samples in the splits {", ".join(self.splits)} of '
                f'{self.data_root} cannot be used ({_some(problems, "; ")}); mend these files or '
                'take their names out of ImageSets/Main (known classes, which '
                f'metainfo=dict(classes=...) sets: {", ".join(self.metainfo["classes"])}).')

    def filter_data(self) -> list[dict]:
        """Leave out images without objects, if ``filter_cfg`` says so and not in testing."""
        if self.test_mode or not (self.filter_cfg or {}).get('filter_empty_gt', False):
            return self.data_list
        return [sample for sample in self.data_list if sample['instances']]

    def prepare_data(self, idx: int) -> Any:
        """Load one image, or another one if it cannot be read, and run the pipeline.

        Raises:
            RuntimeError: if 100 images drawn one after another cannot be read.
        """
        loading, rest = self.pipeline.transforms[:1], self.pipeline.transforms[1:]
        worker = get_worker_info()
        skipped: list[tuple[str, str]] = []
        sample = self.get_data_info(idx)
        while loading:
            try:
                sample = _load(loading[0], sample)
                break
            except _UnreadableError as error:
                skipped.append((sample['img_path'], str(error)))
            if self.test_mode:
                print_log(f'{skipped[-1][0]} cannot be read ({skipped[-1][1]}) and is scored as a '
                          'black image; its objects count as missed.', 'current', logging.WARNING)
                shape = sample['height'], sample['width']
                sample.update(img=np.zeros((*shape, 3), np.uint8), img_shape=shape, ori_shape=shape)
                break
            if len(skipped) == MAX_REDRAWS:
                raise RunError(
                    f'{MAX_REDRAWS} images drawn one after another could not be used, the last was '
                    f'{skipped[-1][0]!r} ({skipped[-1][1]}); check the data.')
            sample = self.get_data_info(self._rand_another())
        sample.update(skipped=skipped, worker=-1 if worker is None else worker.id)
        for transform in rest:
            sample = transform(sample)
            if sample is None:  # MMEngine draws another one
                break
        return sample


class _UnreadableError(Exception):
    """An image that is no use; the text is the reason, one line."""


def _load(transform: Any, sample: dict) -> dict:
    """The sample with its image, of the size its XML says."""
    try:
        sample = transform(sample)
    except MemoryError:  # not the image's fault
        raise
    except Exception as error:  # decoders raise anything on broken bytes
        raise _UnreadableError(reason_of(error)) from error
    height, width = sample['img'].shape[:2]
    if (height, width) != (sample['height'], sample['width']):
        raise _UnreadableError(f'the image has {width} x {height} pixels, its XML says '
                               f'{sample["width"]} x {sample["height"]}')
    return sample


def _list(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        raise UserError(f'the folder {folder} is missing; set data_root to the folder that holds '
                        "DIOR's JPEGImages-trainval, JPEGImages-test and Annotations.")
    return os.listdir(folder)


def _some(lines: list[str], separator: str) -> str:
    rest = [f'and {len(lines) - SHOWN} more'] if len(lines) > SHOWN else []
    return separator.join([*lines[:SHOWN], *rest])


@METRICS.register_module()
class EdgeVOCMetric(VOCMetric):
    """MMDetection's ``VOCMetric`` for boxes given by their edges, as :class:`DIORDataset` does.

    The parent takes the far corner for the object's last pixel and makes all sides longer by one,
    which raises the overlap of small boxes (8 px: up to .03 of IoU). Here it is moved inwards
    first: the overlap is the true one.

    ``eval_mode='area'`` is the area under the whole precision-recall curve (VOC from 2010 on; COCO
    and torchvision's references sample it at 101 points). '11points', the parent's default, is that
    of VOC 2007 and differs by up to a few points: compare like with like.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Note one batch."""
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
    """MMDetection's ``RPNHead``, whose proposals stay exact under autocast.

    The parent computes anchors and proposals in its maps' precision; in bfloat16 a coordinate
    above 256 is a multiple of two pixels, and many objects of DIOR have eight.
    """

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and deltas of one level, in float32."""
        scores, deltas = super().forward_single(x)
        return scores.float(), deltas.float()


@MODELS.register_module()
class ExactRoIExtractor(SingleRoIExtractor):
    """MMDetection's ``SingleRoIExtractor``, which rounds no box to its maps' precision."""

    def forward(self, feats: tuple[Tensor, ...], rois: Tensor,
                roi_scale_factor: float | None = None) -> Tensor:
        """``[boxes, C, 7, 7]``, in float32."""
        return super().forward(tuple(x.float() for x in feats), rois, roi_scale_factor)
