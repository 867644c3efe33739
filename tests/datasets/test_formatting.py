"""PackCrops: what it packs survives collate, a worker process and pinning as the model needs it."""

import numpy as np
import torch
from mmengine.dataset import Compose, default_collate
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader, Dataset

from pera_mm.datasets.transforms.formatting import PackCrops
from pera_mm.patches import whole_crop
from pera_mm.registry import TRANSFORMS
from pera_mm.structures import CropGroup


class Noise(Dataset):
    """Five images of noise through the whole worker pipeline."""

    def __init__(self, pipeline: list[dict]) -> None:
        self.pipeline = Compose([TRANSFORMS.build(step) for step in pipeline])

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng(index)
        return self.pipeline(dict(
            img=rng.integers(0, 256, (100, 120, 3), dtype=np.uint8), rng=rng, sample_idx=index,
            img_path=f'{index}.png', skipped=[('bad.png', 'truncated')] if index == 1 else []))


def test_one_packed_image():
    crops = {'global': np.zeros((1, 2, 32, 32, 3), np.uint8)}
    split = {'global': whole_crop(2, 4)}
    packed = PackCrops().transform(dict(crops=crops, split=split, img=0, rng=0, img_path='a.png',
                                        sample_idx=7, skipped=[('b.png', 'empty')]))
    assert set(packed) == {'inputs', 'data_samples'}
    group = packed['inputs']['global']
    assert isinstance(group, CropGroup)
    assert group.pixels.data_ptr() == crops['global'].ctypes.data  # not copied
    assert group.split is split['global']
    assert isinstance(packed['data_samples'], DataSample)
    assert packed['data_samples'].metainfo == dict(
        img_path='a.png', sample_idx=7, skipped=[['b.png', 'empty']], worker=-1)


def test_batches_are_the_same_with_and_without_workers(tiny_pipeline):
    data = Noise(tiny_pipeline)
    alone = next(iter(DataLoader(data, 3, collate_fn=default_collate)))
    helped = next(iter(DataLoader(data, 3, collate_fn=default_collate, num_workers=1)))
    for name, (pixels, counts) in {'global': ((3, 1, 2, 64, 64, 3), (3, 3, 10, 0)),
                                   'local': ((3, 1, 2, 32, 32, 3), (1, 1, 2, 0))}.items():
        group = alone['inputs'][name]
        assert isinstance(group, CropGroup) and group.pixels.dtype == torch.uint8
        assert group.pixels.shape == pixels
        assert tuple(part.shape for part in group.split) == tuple((3, 2, k) for k in counts)
        again = helped['inputs'][name]
        for ours, theirs in zip((group.pixels, *group.split), (again.pixels, *again.split),
                                strict=True):
            assert torch.equal(ours, theirs)
    assert [sample.worker for sample in alone['data_samples']] == [-1] * 3
    assert [sample.worker for sample in helped['data_samples']] == [0] * 3
    assert [sample.sample_idx for sample in helped['data_samples']] == [0, 1, 2]
    assert helped['data_samples'][1].skipped == [['bad.png', 'truncated']]
