"""The writer of whole trained models for other programs: ONNX, or PyTorch's own ``.pt2``.

The exported function maps images to probabilities. Its input is what QGIS's plugin Deepness feeds
(its models/model_base.py, 0.6.5): float32 RGB in 0-1, minus mean, over std; both are in the
metadata.
"""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

import pera_mm
from pera_mm.errors import UserError, needs_extra, printable
from pera_mm.files import sha256
from pera_mm.mapping.predictor import Classifier, Predictor, TrainedModel
from pera_mm.models.backbones.deform_attn import DeformableAttention

SUFFIXES = ('.onnx', '.pt2')
# Deepness installs onnxruntime <= 1.17, which reads IR up to 9 and opsets up to 20.
OPSET, IR_VERSION = 18, 8
MAX_BATCH = 1024
TOLERANCE = 1e-3  # largest difference of a probability; deep networks reach 1e-4 by rounding
PROTOBUF_BYTES = 2**31 - 2**24  # of a file in one piece, with room for the graph
DEFAULT_OVERLAP = 25  # percent of a tile, where the config has no sliding window


@dataclass(frozen=True)
class Written:
    """What :func:`export_model` wrote.

    Attributes:
        path: of the file.
        size: of all its files, bytes.
        any_batch: whether the batch size is free, else it is 1.
        difference: largest difference of a probability from PyTorch's.
        metadata: as in the file, decoded.
    """

    path: Path
    size: int
    any_batch: bool
    difference: float
    metadata: Mapping[str, Any]


def export_model(cfg: Config, checkpoint: str | Path, path: Path, *, size: int | None = None,
                 gsd: float | None = None, grid_sample: bool = False) -> Written:
    """Write a trained segmentation, change or classification model, and check the file.

    Args:
        cfg: of the model's training.
        checkpoint: as a runner writes it.
        path: of the file; ``.onnx`` or ``.pt2``.
        size: side of the images, pixels; None takes it from the config.
        gsd: meters per pixel on the ground; None takes ``cfg.gsd``, if there is one.
        grid_sample: keep the GridSample of deformable attention.

    Raises:
        UserError: if a package is missing, the model is of another task, it cannot be exported, or
            the file gives other probabilities; then there is no file.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f'{path} must end with {" or ".join(SUFFIXES)}.')
    if path.suffix == '.onnx':
        require_onnx()
    network, metadata = load_network(cfg, checkpoint, size, gsd)
    images = example_images(network, metadata['tiles_size'], batch=2)
    with torch.no_grad():
        expected = network(*images)
    for module in network.modules():
        if isinstance(module, DeformableAttention):
            module.by_gathers = not grid_sample
    program, any_batch = trace(network, images, cfg.filename)
    if not any_batch:
        images, expected = tuple(x[:1] for x in images), expected[:1]
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as folder:
        part = Path(folder, path.name)
        if path.suffix == '.onnx':
            write_onnx(program, part, metadata, network.inputs, any_batch)
            found = run_onnx(part, images)
        else:
            text = json.dumps(metadata)
            torch.export.save(program, part, extra_files={'metadata.json': text})
            with torch.no_grad(), _quiet():
                found = torch.export.load(part).module()(*images)
        difference = float((found - expected).abs().max())
        if not difference <= TOLERANCE:  # also nan
            raise UserError(f'{path.name} gives other probabilities than PyTorch, by '
                            f'{difference:.1e} where {TOLERANCE:.0e} is allowed, so it was '
                            'deleted: report it with the config, and predict with '
                            'tools/predict.py.')
        written = sum(file.stat().st_size for file in Path(folder).iterdir())
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.with_name(file.name))  # the graph after its weights
    return Written(path, written, any_batch, difference, metadata)


def require_onnx() -> None:
    """Raise a UserError if a package for ONNX is missing."""
    with needs_extra('onnx', 'a file .onnx'):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


# From a config to a function ---------------------------------------------------------------------


class Network(nn.Module):
    """A model as a function from standardized RGB images to probabilities.

    Args:
        model: of a toolbox, in eval mode.
        takes_bgr: whether the model itself takes BGR.
    """

    inputs: tuple[str, ...] = ('image', )

    def __init__(self, model: nn.Module, takes_bgr: bool) -> None:
        super().__init__()
        self.model = model
        self.takes_bgr = takes_bgr

    def forward(self, image: Tensor) -> Tensor:
        """Map ``[B, 3, H, W]`` to ``[B, C, H, W]``, or of a classifier to ``[B, C]``."""
        return self.probabilities(self._channels(image))

    def probabilities(self, images: Tensor) -> Tensor:
        """Compute what the model makes of images in its own order of channels."""
        raise NotImplementedError

    def _channels(self, image: Tensor) -> Tensor:
        return image.flip(1) if self.takes_bgr else image


class Classification(Network):
    """A classifier of MMPretrain: ``[B, C]``."""

    def probabilities(self, images: Tensor) -> Tensor:
        """Map ``[B, 3, H, W]`` to ``[B, C]``."""
        return self.model(images, mode='tensor').softmax(1)


class Segmentation(Network):
    """A segmentor of MMSegmentation: ``[B, C, H, W]``, or ``[B, 1, H, W]`` of a sigmoid."""

    def probabilities(self, images: Tensor) -> Tensor:
        """Map ``[B, 3, H, W]`` to ``[B, C, H, W]``."""
        metas = [dict(img_shape=tuple(images.shape[2:]))]
        logits = self.model.encode_decode(images, metas)
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


class Change(Segmentation):
    """A segmentor of two dates, of pera_mm or Open-CD."""

    inputs = ('before', 'after')

    def forward(self, before: Tensor, after: Tensor) -> Tensor:  # type: ignore[override]
        """Map two dates ``[B, 3, H, W]`` to ``[B, C, H, W]``."""
        return self.probabilities(torch.cat([self._channels(before), self._channels(after)], 1))


def load_network(cfg: Config, checkpoint: str | Path, size: int | None,
                 gsd: float | None) -> tuple[Network, dict[str, Any]]:
    """Return a trained model as a function, and the metadata of its file.

    Raises:
        UserError: if the model is of another task, or the checkpoint does not fit.
    """
    kind = str((cfg.get('model') or {}).get('type', 'no model')).rpartition('.')[2]
    if cfg.get('default_scope') == 'mmdet':
        raise UserError(f'{cfg.filename} has a detector ({kind}), which cannot be exported, since '
                        'the number of its boxes differs from image to image: use PyTorch.')
    if kind == 'ImageClassifier':
        head = str(cfg.model.head.type).rpartition('.')[2]
        if 'MultiLabel' in head:
            raise UserError(f'{cfg.filename} has a {head}; only classifiers with one label for an '
                            'image can be exported.')
        role: type[Network] = Classification
        trained: TrainedModel = Classifier(cfg, checkpoint)
        size, overlap, swap = size or _input_size(cfg), 0, 'to_rgb'
    elif cfg.get('default_scope') in ('mmseg', 'opencd'):
        trained = Predictor(cfg, checkpoint)
        role = Change if trained.dates == 2 else Segmentation
        size, overlap, swap = size or trained.window, _overlap(cfg), 'channel_conversion'
    else:
        raise UserError(f'{cfg.filename} has {kind}, which cannot be exported: take the config of '
                        'a segmentation, change or classification task; tools/weights/convert.py '
                        'writes the backbone of a pre-training.')
    swaps = bool(getattr(trained.model.data_preprocessor, swap, False))
    network = role(trained.model, trained.reading.is_bgr != swaps)
    gsd = gsd or trained.reading.gsd
    mean, std = _statistics(network)
    metadata: dict[str, Any] = dict(
        class_names={index: name for index, name in enumerate(trained.classes)},
        tiles_size=size, tile_size=size,  # Deepness documents the first and reads the second
        tiles_overlap=overlap, standardization_mean=mean, standardization_std=std,
        task=type(network).__name__.lower(), pera_mm=pera_mm.__version__,
        config=Path(cfg.filename).name, checkpoint_sha256=sha256(Path(checkpoint)))
    if isinstance(network, Segmentation):
        # 0: no threshold. Below one, Deepness makes the first class of an uncertain pixel.
        metadata |= dict(model_type='Segmentor', seg_thresh=0)
    if gsd:
        metadata['resolution'] = round(100 * gsd, 4)  # cm
    return network, metadata


def _input_size(cfg: Config) -> int:
    """Return the side of the images that a classifier is tested with."""
    for step in reversed(cfg.test_dataloader.dataset.pipeline):
        if side := step.get('crop_size') or step.get('scale'):
            return int(side if isinstance(side, int) else side[0])
    raise UserError(f'The test pipeline of {cfg.filename} has no size of images: give --size.')


def _overlap(cfg: Config) -> int:
    """Return the overlap of sliding windows in percent."""
    test: Mapping[str, Any] = cfg.model.get('test_cfg') or {}
    if test.get('mode') != 'slide':
        return DEFAULT_OVERLAP
    return round(100 * (1 - test['stride'][0] / test['crop_size'][0]))


def _statistics(network: Network) -> tuple[list[float], list[float]]:
    """Return mean and std of R, G and B in 0-1 units."""
    preprocessor: Any = network.model.data_preprocessor
    if getattr(preprocessor, 'mean', None) is None:
        return [0.] * 3, [1 / 255] * 3  # the model takes 0-255
    values = [(value.flatten()[:3] / 255).tolist() for value in
              (preprocessor.mean, preprocessor.std)]
    mean, std = ([round(number, 7) for number in (each[::-1] if network.takes_bgr else each)]
                 for each in values)
    return mean, std


# From a function to a file -----------------------------------------------------------------------


def example_images(network: Network, size: int, batch: int) -> tuple[Tensor, ...]:
    """Draw standardized images ``[batch, 3, size, size]``, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, 3, size, size, generator=generator) for _ in network.inputs)


def trace(network: Network, images: tuple[Tensor, ...],
          name: str) -> tuple[torch.export.ExportedProgram, bool]:
    """Return the graph of a network, and whether it takes batches of any size.

    Some models fix the number of images in their code; their graph takes one.

    Raises:
        UserError: if PyTorch cannot follow the model's code.
    """
    batch = torch.export.Dim('batch', min=1, max=MAX_BATCH)
    with torch.no_grad(), _quiet():
        try:
            return torch.export.export(network, images, dynamic_shapes=tuple(
                {0: batch} for _ in images)), True
        except Exception:  # one of many classes
            pass
        try:
            return torch.export.export(network, tuple(x[:1] for x in images)), False
        except Exception as error:
            raise UserError(f'torch.export cannot follow the model of {name} ({_reason(error)}): '
                            'predict with tools/predict.py.') from error


def write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, Any],
               inputs: Sequence[str], any_batch: bool) -> None:
    """Write a graph as ONNX; weights of 2 GB and more lie beside it in ``.onnx.data``."""
    shapes = tuple({0: torch.export.Dim('batch', max=MAX_BATCH)} if any_batch else None
                   for _ in inputs)
    with torch.no_grad(), _quiet():
        try:
            onnx = torch.onnx.export(
                program, dynamo=True, verbose=False, opset_version=OPSET, input_names=list(inputs),
                output_names=['probabilities'], dynamic_shapes=shapes if any_batch else None)
        except torch.onnx.OnnxExporterError as error:
            raise UserError(f'PyTorch has no ONNX form of this model ({_reason(error)}): write a '
                            'file .pt2, or predict with tools/predict.py.') from error
    assert onnx is not None
    model = onnx.model
    model.ir_version = IR_VERSION
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # PyTorch's lines of code; not in this IR
    for key, value in metadata.items():
        model.metadata_props[key] = json.dumps(value)
    weights = sum(value.nbytes for value in program.state_dict.values())
    onnx.save(path, external_data=weights > PROTOBUF_BYTES)


def run_onnx(path: Path, images: Sequence[Tensor]) -> Tensor:
    """Compute probabilities with onnxruntime on the CPU."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        feed = {each.name: image.numpy() for each, image in zip(session.get_inputs(), images)}
        return torch.from_numpy(np.asarray(session.run(None, feed)[0]))
    except Exception as error:  # one of many classes
        raise UserError(f'onnxruntime {onnxruntime.__version__} does not run {path.name} '
                        f'({_reason(error)}), so it was deleted: predict with '
                        'tools/predict.py.') from error


def _reason(error: Exception) -> str:
    return printable(str(error).strip().partition('\n')[0].rstrip('.'))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence PyTorch's remarks about its own code."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
