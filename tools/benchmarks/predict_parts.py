"""A scene, a model and the prediction of the one with the other, timed part by part."""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import rasterio
import torch
from mmengine.registry import MODELS, init_default_scope
from predict_peer import peak_gib
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch import Tensor

import pera_mm
from pera_mm.errors import RunError
from pera_mm.launch import read_config
from pera_mm.mapping import job, run
from pera_mm.mapping.predictor import Predictor, load_model
from pera_mm.mapping.windows import Windows

ROOT = Path(__file__).parents[2]
CONFIGS = dict(demo=ROOT / 'configs/scenes/potsdam_upernet_pera_scenes.py',
               vitb=ROOT / 'configs/segmentation/potsdam_upernet_pera_vitb.py')
THIN = """
default_scope = 'mmseg'
custom_imports = dict(imports=['pera_mm'], allow_failed_imports=False)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[120.] * 3, std=[60.] * 3),
    backbone=dict(
        type='UNet', base_channels=4, num_stages=2, strides=(1, 1), enc_num_convs=(1, 1),
        dec_num_convs=(1,), downsamples=(True,), enc_dilations=(1, 1), dec_dilations=(1,)),
    decode_head=dict(
        type='FCNHead', in_channels=4, in_index=1, channels=4, num_convs=0, concat_input=False,
        num_classes=7),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))
test_dataloader = dict(dataset=dict(
    type='pera_mm.SegmentationDataset', pipeline=[dict(type='pera_mm.LoadRGB')]))
"""
BLOCK = 1024  # pixels, side of the drawn piece that a scene repeats
# Part: thread, and where its function is.
PARTS = {
    'reading': ('reader', job.Scene, 'read'),
    'model': ('main', Predictor, '__call__'),
    'blending': ('main', job.RollingSum, 'add'),
    'classes and scores': ('main', job.MapJob, '_take'),
    'waiting for the reader': ('main', job, 'ahead'),
    'writing strips': ('writer', job, 'write_part'),
    'COG of the map': ('main', job, 'join'),
    'COG of the scores': ('main', job, 'join_scores'),
    'vectors': ('main', 'pera_mm.mapping.vectors', 'vectorize'),
}


class Task(NamedTuple):
    """One measurement."""

    table: str  # 'speed', 'memory' or 'peer'
    model: str
    height: int
    width: int
    memory: float = 1.  # GiB
    program: str = 'pera_mm'

    @property
    def name(self) -> str:
        """Say what was predicted by which program."""
        return f'{self.model}-{self.height}x{self.width}-{self.memory:g}-{self.program}'

    def scene(self, folder: Path) -> Path:
        """Return the place of the scene, which several tasks may share."""
        return folder / f'{self.height}x{self.width}.tif'

    def output(self, folder: Path) -> Path:
        """Return the place of the map."""
        return folder / f'{self.table}-{self.name}.tif'


def write_scene(path: Path, height: int, width: int, gsd: float) -> None:
    """Write colored fields of 32 px with noise, as a tiled GeoTIFF with deflate."""
    rng = np.random.default_rng(0)
    block = rng.integers(20, 230, (3, BLOCK // 32, BLOCK // 32)).repeat(32, 1).repeat(32, 2)
    block = (block + rng.integers(0, 25, block.shape)).astype(np.uint8)
    row = np.tile(block, (1, 1, -(-width // BLOCK)))[:, :, :width]
    with rasterio.open(path, 'w', driver='GTiff', count=3, height=height, width=width,
                       dtype='uint8', crs='EPSG:32632', tiled=True, blockxsize=512, blockysize=512,
                       transform=from_origin(500_000, 5_200_000, gsd, gsd),
                       compress='deflate') as file:
        for top in range(0, height, BLOCK):
            rows = min(BLOCK, height - top)
            file.write(row[:, :rows], window=Window(0, top, width, rows))


def write_model(folder: Path, name: str, export: bool) -> None:
    """Write config, checkpoint and, in JSON, the settings of a model; or also its program."""
    config, checkpoint = folder / f'{name}.py', folder / f'{name}.pth'
    config.write_text(f'_base_ = {str(CONFIGS[name])!r}\n' if name in CONFIGS else THIN)
    cfg = read_config(str(config))
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=3.)  # so that classes vary
    torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
    window, any_batch = cfg.model.test_cfg.crop_size[0], True
    if export:
        from pera_mm.export_model import export_model

        any_batch = export_model(cfg, checkpoint, folder / f'{name}.pt2',
                                 grid_sample=True).any_batch
    pixels = model.data_preprocessor
    settings = dict(
        window=window, overlap=window - round(window * 2 / 3), classes=model.out_channels,
        batch_size=run._batch_size(window, 'cpu') if any_batch else 1,
        mean=pixels.mean.flatten().tolist(), std=pixels.std.flatten().tolist())
    (folder / f'{name}.json').write_text(json.dumps(settings))


class Clock:
    """Seconds of wall and CPU time, and the calls, of each part; each part has one thread."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def around(self, part: str, function: Callable,
               cpu_seconds: Callable[[], float] = time.thread_time) -> Callable:
        """Return a function that is timed."""
        def timed(*args: Any, **options: Any) -> Any:
            start, cpu = time.perf_counter(), cpu_seconds()
            try:
                return function(*args, **options)
            finally:
                self.wall[part] += time.perf_counter() - start
                self.cpu[part] += cpu_seconds() - cpu
                self.calls[part] += 1
        return timed

    def around_items(self, part: str, function: Callable) -> Callable:
        """Return a generator of items that are not None; the wait for each is timed."""
        def timed(*args: Any) -> Generator:
            with closing(function(*args)) as items:
                take = self.around(part, lambda: next(items, None))
                while (item := take()) is not None:
                    yield item
        return timed


def measure(task: Task, folder: Path, threads: int) -> dict[str, Any]:
    """Predict a scene in this process.

    Returns:
        ``seconds`` and ``cpu_seconds`` of the prediction, of all threads; ``parts``: the same of
        each part, of its own thread; ``windows`` that were computed; ``strips``, ``bands``;
        ``peak_gib``; ``polygons``, if there are some.
    """
    torch.set_num_threads(threads)
    settings = json.loads((folder / f'{task.model}.json').read_text())
    options: dict[str, Any] = dict(memory=task.memory)
    if task.table == 'peer':
        options.update(batch_size=settings['batch_size'])
    if task.table == 'speed':
        options.update(vectors='gpkg')
    output, clock = task.output(folder), Clock()
    with ExitStack() as stack:
        if task.table == 'peer':
            stack.enter_context(patch.object(
                Predictor, '_logits', exported_logits(folder / f'{task.model}.pt2')))
        stack.enter_context(patch.object(
            run, '_run', clock.around('whole', run._run, time.process_time)))
        for part, (_, owner, name) in PARTS.items():
            if isinstance(owner, str):
                if task.table != 'speed':
                    continue  # its import takes memory
                owner = import_module(owner)
            around = clock.around_items if name == 'ahead' else clock.around
            stack.enter_context(patch.object(owner, name, around(part, getattr(owner, name))))
        outcome, = pera_mm.predict(folder / f'{task.model}.py', folder / f'{task.model}.pth',
                                   task.scene(folder), output, **options)
    if outcome.error is not None:
        raise RunError(outcome.error)
    whole, cpu = clock.wall.pop('whole'), clock.cpu.pop('whole')
    rows = len(Windows(task.height, task.width, settings['window']).tops)
    strips = clock.calls['writing strips']
    measured = dict(
        seconds=whole, cpu_seconds=cpu, model_seconds=clock.wall['model'], peak_gib=peak_gib(),
        parts={part: dict(seconds=seconds, cpu_seconds=clock.cpu[part])
               for part, seconds in clock.wall.items()},
        windows=clock.calls['blending'], strips=strips, bands=strips // rows)
    if task.table == 'speed':
        import pyogrio

        measured['polygons'] = pyogrio.read_info(output.with_suffix('.gpkg'))['features']
    return measured


def exported_logits(path: Path) -> Callable[[Predictor, Tensor], Tensor]:
    """Return what replaces the model: a program of torch.export."""
    program = torch.export.load(path).module()

    def logits(predictor: Predictor, images: Tensor) -> Tensor:
        pixels = predictor.model.data_preprocessor
        return program((images - pixels.mean) / pixels.std)
    return logits


def measure_imports(folder: Path, model: str) -> float:
    """Load a model and predict nothing; return the peak memory in GiB."""
    load_model(read_config(str(folder / f'{model}.py')), folder / f'{model}.pth')
    return peak_gib()
