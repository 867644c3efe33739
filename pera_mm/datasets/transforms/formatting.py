"""The last step in the worker: crops and masks in a form that ``collate`` can stack."""

import torch
from mmcv.transforms import BaseTransform
from mmpretrain.structures import DataSample
from torch.utils.data import get_worker_info

from pera_mm.registry import TRANSFORMS
from pera_mm.structures import CropGroup


@TRANSFORMS.register_module()
class PackCrops(BaseTransform):
    """Pack the crops of an image and their patch splits; drop everything else.

    Required Keys:
    - crops (from :class:`AlignedCrops`)
    - split (from :class:`DisjointMask`)
    - img_path, sample_idx, skipped (from :class:`~pera_mm.datasets.unlabeled.UnlabeledImages`)

    The result is ``dict(inputs, data_samples)``: ``inputs`` maps a group name to a
    :class:`~pera_mm.structures.CropGroup` without the batch axis; ``data_samples`` is a
    DataSample whose meta information has ``img_path``, ``sample_idx``, ``skipped`` (a list of
    [path, reason]) and ``worker`` (-1 in the main process), which the log of unreadable images
    needs.
    """

    def transform(self, results: dict) -> dict:
        """Pack one image."""
        inputs = {name: CropGroup(torch.from_numpy(crops), results['split'][name])
                  for name, crops in results['crops'].items()}
        worker = get_worker_info()
        data_sample = DataSample(metainfo=dict(
            img_path=results['img_path'],
            sample_idx=results['sample_idx'],
            skipped=[list(entry) for entry in results['skipped']],
            worker=worker.id if worker else -1))
        return dict(inputs=inputs, data_samples=data_sample)
