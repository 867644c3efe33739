"""The small PerA that most tests share, and where the real sample data lies."""

import gc
import logging
import multiprocessing
import os
import re
import signal
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from made_data import TINY_ARCH
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import nn
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pera_mm.registry import MODELS

ROOT = Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / 'shared' / 'data'

# What only the extras of setup.py bring.
EXTRAS = ('faiss', 'geopandas', 'httpx2', 'imagehash', 'lmdb', 'mim', 'mmdet', 'mmseg', 'onnx',
          'onnxruntime', 'pandas', 'pyarrow', 'pyogrio', 'pyproj', 'shapely', 'timm',
          'transformers')


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
        collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip a file whose imports need an extra that is not installed here."""
    report = yield
    missing = re.search(r"No module named '(\w+)", str(report.longrepr))
    if report.failed and missing and missing[1] in EXTRAS and find_spec(missing[1]) is None:
        report.outcome = 'skipped'
        report.longrepr = str(collector.path), 0, f'Skipped: {missing[1]} is not installed'
    return report


def pytest_collection_finish() -> None:
    """Take what all tests have imported out of the garbage collector's rounds, a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    """Forget what a run of another test or fixture left: MMEngine's scope, answers to signals."""
    DefaultScope._instance_dict.clear()
    _answer_as_python_does()
    yield
    _answer_as_python_does()


def _answer_as_python_does() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def no_workers_left() -> Iterator[None]:
    """End the data-loader workers of a test's runs.

    Left to the garbage collector, which closes their queues first, they take 5 s each to end.
    """
    yield
    if multiprocessing.active_children():
        end_workers()


def end_workers() -> None:
    for each in gc.get_objects():
        if type(each) is _MultiProcessingDataLoaderIter:
            each._shutdown_workers()


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
def model(tiny_cfg) -> nn.Module:
    """The PerA of ``tiny_cfg`` with its first weights."""
    model = MODELS.build(tiny_cfg)
    model.init_weights()
    return model


@pytest.fixture
def images() -> torch.Tensor:
    """Two pictures of noise for ``model``, uint8 ``[2, 64, 64, 3]``."""
    return torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)


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
def log() -> Iterator[list[str]]:
    """The warnings and errors that MMEngine's logger gets during the test."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real sample data; the test is skipped where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f'the real sample data is not here: no folder {SHARED_DATA}')
    return SHARED_DATA
