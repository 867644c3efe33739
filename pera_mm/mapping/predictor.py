"""A trained model as a function from windows of pixels to logits, boxes or classes."""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, init_default_scope
from numpy.typing import NDArray
from torch import Tensor

from pera_mm.datasets.reading import rule_of
from pera_mm.datasets.scene_pixels import Reading
from pera_mm.errors import UserError, printable
from pera_mm.mapping.rasters import MAX_CLASSES
from pera_mm.weights.fitting import compare, not_finite
from pera_mm.weights.loading import load_checkpoint
from pera_mm.weights.names import weights_of

PAIRS = ('LoadPair', 'MultiImgLoadImageFromFile', 'LoadMultipleRSImageFromFile')
BY_OUR_RULE = ('LoadRGB', 'LoadPair')  # they choose the bands, as scenes do
RAW = ('LoadSingleRSImageFromFile', 'LoadMultipleRSImageFromFile')  # bands as they are
DEFAULT_WINDOW = 512  # pixels
FLIPS = [(0, False), (0, True), (2, False), (2, True)]  # quarter turns, then a mirror
TURNS = {'none': FLIPS[:1], 'flips': FLIPS,
         'rotations': [(turns, mirror) for turns in range(4) for mirror in (False, True)]}


class TrainedModel:
    """A model of any toolbox, ready to predict windows.

    Args:
        cfg: of the model's training. Classes, palette, normalization, window and the way images
            are read come from it, the classes first from the checkpoint.
        checkpoint: as a runner writes it.
        device: where the model runs.

    Attributes:
        classes: their names.
        palette: RGB of each class.
        window: side of the windows in pixels.
        dates: 2 for a model of change, else 1.
        reading: how pixels are read.

    Raises:
        UserError: if the config has no model of this kind, or the checkpoint does not fit it.
    """

    makes = 'map'  # of a scene
    method = 'encode_decode'  # that models of this kind have

    def __init__(self, cfg: Config, checkpoint: str | Path, device: str = 'cpu') -> None:
        if cfg.get('model') is None:
            raise UserError(f'{cfg.filename} has no model: take the config of a downstream task.')
        init_default_scope(cfg.get('default_scope') or 'mmseg')
        self.device = torch.device(device)
        self.model = self._load(cfg, checkpoint)
        loader: Mapping[str, Any] = next(iter(pipeline_of(cfg)), {})
        name = _name(loader)
        self.dates = 2 if name in PAIRS else 1
        bands, scale = rule_of(loader.get('bands'), loader.get('scale', 'auto'))
        self.reading = Reading(
            bands=bands if name in BY_OUR_RULE else bands or tuple(range(1, self._channels() + 1)),
            channels=self._channels(),
            scale=None if name in RAW else scale,
            is_bgr=name.endswith('LoadImageFromFile') and name not in RAW
            and self._channels() == 3,
            gsd=cfg.get('gsd'))
        self.window = self._window(cfg)
        self.classes, self.palette = self._classes(cfg)

    def _load(self, cfg: Config, path: str | Path) -> Any:
        model = MODELS.build(cfg.model)
        if not hasattr(model, self.method):
            raise UserError(f'{cfg.filename} has a {type(model).__name__}, which makes no '
                            f'{self.makes}: take the config of a downstream task.')
        checkpoint = load_checkpoint(path)
        if not isinstance(checkpoint, dict):
            raise UserError(f'{path} holds a {type(checkpoint).__name__}, not a checkpoint: take '
                            'another file.')
        found = {str(key).removeprefix('module.'): value
                 for key, value in weights_of(checkpoint).items()}
        if differences := compare(found, model.state_dict()):
            raise UserError(f'{printable(path)} does not fit the model of {cfg.filename}: '
                            f'{differences}; take the config that it was trained with.')
        if broken := not_finite(found):
            raise UserError(f'{printable(path)} holds inf or nan in {len(broken)} of its tensors '
                            f'(first {broken[0]}): take an earlier checkpoint.')
        model.load_state_dict(found, strict=False)  # counters of batch norms may be missing
        meta = checkpoint.get('meta')
        self._meta = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
        return revert_sync_batchnorm(model).to(self.device).eval()

    def _channels(self) -> int:
        """Return the channels of one date, from the normalization."""
        mean = getattr(self.model.data_preprocessor, 'mean', None)
        number = 3 if mean is None else len(mean)
        return number // self.dates if number > 3 else number

    def _classes(self, cfg: Config) -> tuple[list[str], list[list[int]]]:
        number = self.number_of_classes
        if number > MAX_CLASSES:
            raise UserError(f'{cfg.filename} has {number} classes, and a map holds at most '
                            f'{MAX_CLASSES}.')
        names: list[str] = [f'class {index}' for index in range(number)]
        for meta in (self._meta, *_metas(cfg)):
            found = _lower(meta)
            if len(found.get('classes') or ()) == number:
                names = [str(name) for name in found['classes']]
                palette = found.get('palette') or ()
                if len(palette) == number and not isinstance(palette, str):  # 'random'
                    return names, [[int(value) for value in color] for color in palette]
                break
        return names, [_color(index) for index in range(number)]

    @property
    def number_of_classes(self) -> int:
        """C."""
        raise NotImplementedError

    def _window(self, cfg: Config) -> int:
        """Return the side of the windows, that of the images in the model's test."""
        steps = _inner(cfg).get('pipeline') or ()
        scale = next((step['scale'] for step in steps if step.get('scale')), DEFAULT_WINDOW)
        return int(scale) if isinstance(scale, int) else int(min(scale))


class Predictor(TrainedModel):
    """A segmentor of MMSegmentation, Open-CD or pera_mm, which gives logits.

    Args:
        cfg: as in the parent.
        checkpoint: as in the parent.
        device: as in the parent.
        tta: ``'none'``, ``'flips'`` (the mean over 4 mirror images) or ``'rotations'`` (over all 8
            orientations).

    Raises:
        UserError: as the parent, or if tta is unknown.
    """

    def __init__(self, cfg: Config, checkpoint: str | Path, device: str = 'cpu',
                 tta: str = 'none') -> None:
        if tta not in TURNS:
            raise UserError(f'tta must be one of {", ".join(TURNS)}, not {tta!r}.')
        super().__init__(cfg, checkpoint, device)
        self.turns = TURNS[tta]
        self.model.data_preprocessor.test_cfg = None  # windows have the model's size

    @property
    def number_of_classes(self) -> int:
        """C of the logits; a head of one channel has two classes."""
        return max(int(self.model.out_channels), 2)

    def _window(self, cfg: Config) -> int:
        """Return the side of the windows: what the model is tested with, else trained with."""
        crops = [(cfg.model.get('test_cfg') or {}).get('crop_size')]
        dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
        crops += [step.get('crop_size') or step.get('scale')
                  for step in dataset.get('pipeline') or ()
                  if 'crop_size' in step or step['type'] == 'pera_mm.RandomResizedCrop']
        crops += [cfg.get('crop_size')]
        crop = next((each for each in crops if each), DEFAULT_WINDOW)
        return int(crop) if isinstance(crop, int) else int(min(crop))

    @torch.inference_mode()
    def __call__(self, pixels: NDArray) -> NDArray[np.float32]:
        """Predict windows.

        Args:
            pixels: ``[B, dates * channels, size, size]`` as :class:`~pera_mm.datasets.scene.Scene`
                reads them.

        Returns:
            Logits ``[B, C, size, size]``.
        """
        images = torch.from_numpy(np.ascontiguousarray(pixels))
        total: Tensor | None = None
        for turns, mirror in self.turns:
            turned = torch.rot90(images, turns, (2, 3))
            logits = self._logits(turned.flip(3) if mirror else turned)
            logits = torch.rot90(logits.flip(3) if mirror else logits, -turns, (2, 3))
            total = logits if total is None else total + logits
        assert total is not None
        return (total / len(self.turns)).float().cpu().numpy()

    def _logits(self, images: Tensor) -> Tensor:
        size = tuple(images.shape[2:])
        meta = dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4)
        try:
            inputs = self.model.data_preprocessor(dict(inputs=list(images)), False)['inputs']
            logits = self.model.encode_decode(inputs, [dict(meta) for _ in images])
        except torch.OutOfMemoryError:
            raise UserError(f'{len(images)} windows of {size[0]} px are too many for the memory of '
                            f'{self.device}: set a smaller --batch-size.') from None
        if logits.shape[1] == 1:  # a sigmoid; the second class where it is above the threshold
            threshold = getattr(self.model.decode_head, 'threshold', None) or 0.5
            odds = logits - float(np.log(threshold / (1 - threshold)))
            logits = torch.cat([torch.zeros_like(odds), odds], dim=1)
        return logits


class Detector(TrainedModel):
    """A detector of MMDetection, which gives boxes."""

    makes, method = 'boxes', 'predict'

    @property
    def number_of_classes(self) -> int:
        """The classes of the objects."""
        head = self.model.roi_head if hasattr(self.model, 'roi_head') else self.model
        return int(head.bbox_head.num_classes)

    @torch.inference_mode()
    def __call__(self, pixels: NDArray) -> list[NDArray[np.float64]]:
        """Detect objects in windows ``[B, channels, size, size]``.

        Returns:
            x1, y1, x2, y2 in pixels of the window, score and class of each object ``[N, 6]``.
        """
        size = pixels.shape[2:]
        pack = TRANSFORMS.build(dict(type='PackDetInputs', meta_keys=(
            'ori_shape', 'img_shape', 'scale_factor')))
        packed = [pack(dict(img=np.ascontiguousarray(image.transpose(1, 2, 0)), ori_shape=size,
                            img_shape=size, scale_factor=(1., 1.))) for image in pixels]
        samples = self.model.test_step(
            {key: [each[key] for each in packed] for key in ('inputs', 'data_samples')})
        found = [sample.pred_instances for sample in samples]
        return [torch.cat([each.bboxes, each.scores[:, None], each.labels[:, None]], dim=1)
                .double().cpu().numpy() for each in found]


class Classifier(TrainedModel):
    """A classifier of MMPretrain, which gives one class for a window."""

    makes, method = 'class', 'extract_feat'

    @property
    def number_of_classes(self) -> int:
        """The classes of images."""
        return int(self.model.head.num_classes)

    @torch.inference_mode()
    def __call__(self, pixels: NDArray) -> NDArray[np.float32]:
        """Compute the probabilities ``[B, C]`` of windows ``[B, channels, size, size]``."""
        inputs = list(torch.from_numpy(np.ascontiguousarray(pixels)))
        samples = self.model.test_step(dict(inputs=inputs))
        return np.stack([sample.pred_score.float().cpu().numpy() for sample in samples])


def load_model(cfg: Config, checkpoint: str | Path, device: str = 'cpu',
               tta: str = 'none') -> TrainedModel:
    """Load the model of a config, of whichever kind it is.

    Raises:
        UserError: as the classes, or if tta is given for a model that gives no logits.
    """
    kinds = {'mmdet': Detector, 'mmpretrain': Classifier}
    kind = kinds.get(cfg.get('default_scope') or '')
    if kind is None:
        return Predictor(cfg, checkpoint, device, tta)
    if tta != 'none':
        raise UserError('--tta is for segmentation and change: leave it out.')
    return kind(cfg, checkpoint, device)


def pipeline_of(cfg: Config) -> Sequence[Mapping[str, Any]]:
    """Return the test pipeline, without the reading of labels."""
    steps = _inner(cfg).get('pipeline') or cfg.get('test_pipeline') or ()
    return [step for step in steps if _name(step) != 'LoadAnnotations']


def _inner(cfg: Config) -> Mapping[str, Any]:
    """Return the test data set; of a wrapped one the inner."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and dataset.get('datasets' if 'datasets' in dataset
                                                    else 'dataset'):
        dataset = dataset['datasets'][0] if 'datasets' in dataset else dataset['dataset']
    return dataset


def _name(part: Mapping[str, Any]) -> str:
    """Return a type's name without its scope."""
    kind = part.get('type', '')
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]


def _metas(cfg: Config) -> list[Mapping[str, Any] | None]:
    """List what the config says about classes: in its data set, and in the data set's class."""
    dataset = _inner(cfg)
    kind = DATASETS.get(dataset['type']) if isinstance(dataset.get('type'), str) else None
    return [dataset.get('metainfo'), getattr(kind, 'METAINFO', None)]


def _lower(meta: Any) -> dict[str, Any]:
    """Return a description of classes with small keys, as MMEngine 0.x and older write it."""
    return {str(key).lower(): value for key, value in meta.items()} if isinstance(
        meta, Mapping) else {}


def _color(index: int) -> list[int]:
    """Return the color of a class without one: hues a golden section apart."""
    hue = index * 0.618034 % 1
    return [round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.65, 0.9 - index % 3 * 0.15)]
