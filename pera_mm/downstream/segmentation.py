"""The parts that MMSegmentation lacks for Potsdam, LoveDA and the user's own folders."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from mmcv.cnn import ConvModule
from mmcv.transforms import BaseTransform
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmseg.datasets.basesegdataset import BaseSegDataset
from mmseg.models.decode_heads.uper_head import UPerHead as MMSegUPerHead
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from pera_mm.datasets.labelled import RedrawUnreadable, find_samples, with_classes
from pera_mm.datasets.masks import UNLABELLED, read_above, read_class_ids
from pera_mm.datasets.matching import MASK_TYPES, Role
from pera_mm.datasets.reading import UnreadableImage
from pera_mm.errors import UserError
from pera_mm.registry import DATASETS, METRICS, MODELS, TRANSFORMS


@DATASETS.register_module()
class SegmentationDataset(RedrawUnreadable, BaseSegDataset):
    """A folder of images and a folder of masks with the same names.

    Names are compared without suffix, so ``x.tif`` has the mask ``x.png``. Any type that is read
    counts, in any case, at any depth; hidden files do not. In training, a sample that lacks a file
    is left out, and another one replaces an unreadable one; its ``skipped`` names the file, which
    ``pera_mm.SkippedImagesHook`` reports. In a test both are an error.

    Args:
        metainfo: ``dict(classes=(...))``; their order gives the ids.
        threshold: masks hold gray values, and pixels above this value, 0 to 254, are of the second
            class; None: masks hold class ids.
        img_suffix: end of the images' names behind the common name, such as ``'_RGB.tif'`` or
            ``'_RGB'``; None: a suffix of an image.
        seg_map_suffix: the same of the masks.
        kwargs: as for ``mmseg.BaseSegDataset``: ``data_root``, ``data_prefix`` (``img_path`` and
            ``seg_map_path``), ``reduce_zero_label`` (0 is not counted, classes begin at 1),
            ``ann_file`` (a list of names) ...

    Raises:
        ValueError: if the classes are not a list of names, a folder is missing, two files have one
            name, there is no sample, or a threshold is not a gray value or is set without exactly
            two classes; in a test, if a file is missing, unreadable or named twice.
    """

    def __init__(self, metainfo: dict, threshold: float | None = None,
                 img_suffix: str | None = None, seg_map_suffix: str | None = None,
                 **kwargs: Any) -> None:
        metainfo = with_classes(metainfo)
        self.threshold = threshold
        self.num_classes = len(metainfo['classes'])
        if threshold is not None:
            _check_threshold(threshold)
            if self.num_classes != 2 or kwargs.get('reduce_zero_label'):
                raise UserError('A threshold makes two classes, ids 0 and 1: name two in '
                                'metainfo.classes and set reduce_zero_label=False.')
        super().__init__(metainfo=metainfo, img_suffix=img_suffix, seg_map_suffix=seg_map_suffix,
                         **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the samples; each has the number of classes and the threshold for its mask.

        Raises:
            ValueError: as the class.
        """
        roles = dict(img_path=Role('image', self.data_prefix['img_path'], self.img_suffix))
        if (masks := self.data_prefix.get('seg_map_path')) is not None:
            roles['seg_map_path'] = Role('mask', masks, self.seg_map_suffix, MASK_TYPES)
        return [sample.files | dict(
            label_map=self.label_map, reduce_zero_label=self.reduce_zero_label, seg_fields=[],
            num_classes=self.num_classes, threshold=self.threshold)
            for sample in find_samples(self, roles)]


def _check_threshold(threshold: Any) -> None:
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not is_number or not 0 <= threshold < UNLABELLED:
        raise UserError(f'threshold={threshold!r} is not a gray value: pixels above it are of the '
                        'second class, so give a number from 0 to 254, such as 127.')


@TRANSFORMS.register_module()
class LoadMask(BaseTransform):
    """Read ``seg_map_path`` as class ids, 255 where not labelled.

    It adds ``gt_seg_map`` uint8 [H, W]. With ``reduce_zero_label`` the file's 0 becomes 255 and its
    1, 2 ... become 0, 1 ... With a ``threshold`` the mask is gray. :mod:`pera_mm.datasets.masks`
    has the rules. For an unreadable file, (path, reason) is appended to ``skipped``, and the result
    is None. Use it with :class:`SegmentationDataset`, which knows the classes.

    Raises:
        ValueError: if the file is a color picture, has a value that is not a class, has only values
            up to 1 below the threshold, or has another size than the image.
    """

    def transform(self, results: dict) -> dict | None:
        """Read the mask; None if the file is unreadable."""
        path, image = results['seg_map_path'], results['img_path']
        try:
            mask = self._read(results)
        except UnreadableImage as error:
            results['skipped'].append((path, str(error)))
            return None
        check_equal_sizes({image: results['ori_shape'][::-1], path: mask.shape[::-1]})
        results['gt_seg_map'] = mask
        results['seg_fields'].append('gt_seg_map')
        return results

    @staticmethod
    def _read(sample: dict) -> NDArray[np.uint8]:
        path = sample['seg_map_path']
        if sample['threshold'] is not None:
            return read_above(path, sample['threshold'])
        return read_class_ids(path, sample['num_classes'], bool(sample['reduce_zero_label']))


def check_equal_sizes(sizes: Mapping[str, Sequence[int]]) -> None:
    """Check that the files of one sample have one size.

    Args:
        sizes: path to (width, height) in pixels.

    Raises:
        ValueError: if they differ; the error names all files.
    """
    if len({tuple(size) for size in sizes.values()}) > 1:
        found = ', '.join(f'{path} is {size[0]} x {size[1]}' for path, size in sizes.items())
        raise UserError(f'the files of a sample must have one size: {found} pixels; repair or '
                        'remove them.')


@MODELS.register_module()
class UPerHead(MMSegUPerHead):
    """A UPerNet decoder of MMSegmentation with an output narrower than its inside.

    Args:
        channels: channels of the pyramid pooling and of the feature pyramid ("hidden").
        output_channels: channels of the fused map, from which every pixel is classified.
        kwargs: as for ``mmseg.UPerHead``.
    """

    def __init__(self, channels: int = 512, output_channels: int = 256, **kwargs: Any) -> None:
        super().__init__(channels=channels, **kwargs)
        self.fpn_bottleneck = ConvModule(
            len(self.in_channels) * channels, output_channels, 3, padding=1,
            conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        self.conv_seg = nn.Conv2d(output_channels, self.out_channels, 1)


@METRICS.register_module()
class LoveDASubmission(BaseMetric):
    """A writer of the files that LoveDA's test server takes: one PNG per image and a flat zip.

    A PNG has the image's name and holds the classes as 0 (background) to 6 (agriculture), the
    mask files' labels minus one. (MMSegmentation's ``IoUMetric`` would write 1 to 7.) The zip is
    beside the folder, with its name. ``submission/images`` reports its number of images.

    Args:
        output_dir: folder of the PNGs. Files of an earlier run are overwritten or kept out of
            the zip.

    Raises:
        ValueError: if two images have the same name.
    """

    default_prefix = 'submission'

    def __init__(self, output_dir: str, collect_device: str = 'cpu') -> None:
        super().__init__(collect_device=collect_device)
        self.output_dir = Path(output_dir)

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Write the PNGs of a batch."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for sample in data_samples:
            classes = sample['pred_sem_seg']['data'].squeeze(0).cpu().numpy().astype(np.uint8)
            name = f'{Path(sample["img_path"]).stem}.png'
            # Two ranks may write the same image, because it pads the shorter share.
            temporary = self.output_dir / f'.{name}.{os.getpid()}'
            Image.fromarray(classes).save(temporary, format='png')
            os.replace(temporary, self.output_dir / name)
            self.results.append(name)

    def compute_metrics(self, results: list[str]) -> dict[str, int]:
        """Zip the PNGs.

        Raises:
            ValueError: if two images have the same name.
        """
        twice = {name for name in results if results.count(name) > 1}
        if twice:
            raise UserError(f'Two images are called {min(twice)}, and the server takes one file of '
                            'each name: give the test images of one folder only.')
        archive = self.output_dir.with_name(f'{self.output_dir.name}.zip')
        temporary = archive.with_name(f'{archive.name}.incomplete')
        with ZipFile(temporary, 'w') as file:
            for name in sorted(results):
                file.write(self.output_dir / name, name)
        os.replace(temporary, archive)
        print_log(f'{len(results)} predictions are in {archive}: upload this file.', 'current')
        return {'images': len(results)}
