"""The small PerA that most tests share, and where the real sample data lies."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / 'shared' / 'data'

TINY_ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)


@pytest.fixture(autouse=True)
def few_threads() -> None:
    """Tiny tensors run fastest on one thread; a fixed seed makes every test repeatable."""
    torch.set_num_threads(1)
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # for the processes that tests start
    torch.manual_seed(0)


@pytest.fixture
def tiny_cfg() -> dict:
    """Model config of a PerA that trains in milliseconds: crops of 2 x 64 and 2 x 32 px."""
    head = dict(hidden_channels=64, bottleneck_channels=16)
    return dict(
        type='pera_mm.PerA',
        data_preprocessor=dict(type='pera_mm.CropPreprocessor'),
        backbone=dict(type='pera_mm.PerAViT', arch=dict(TINY_ARCH), img_size=64,
                      drop_path_rate=0.3),
        projector=dict(type='pera_mm.PrototypeHead', num_prototypes=64, **head),
        predictor=dict(type='pera_mm.PixelHead', **head),
        distillation=dict(type='pera_mm.DistillationLoss'),
        pixel=dict(type='pera_mm.PixelLoss'),
        koleo=dict(type='pera_mm.KoLeoLoss'))


@pytest.fixture
def tiny_pipeline() -> list[dict]:
    """The worker's pipeline that goes with ``tiny_cfg``."""
    return [
        dict(type='pera_mm.AlignedCrops',
             global_crops=dict(number=2, size=64, scale=(0.4, 1.0)),
             local_crops=dict(number=2, size=32, scale=(0.05, 0.4))),
        dict(type='pera_mm.DisjointMask', patch_size=16, student=0.2, learnable=0.2, teacher=0.6),
        dict(type='pera_mm.PackCrops'),
    ]


@pytest.fixture
def shared_data() -> Path:
    """The folder of real sample data; the test is skipped where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f'the real sample data is not here: no folder {SHARED_DATA}')
    return SHARED_DATA
