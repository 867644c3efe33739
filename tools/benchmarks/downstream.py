"""The part of resources.py for fine-tunings: labels in the batch, and costs by part.

Parameters and the GFLOPs of one forward pass are counted on the meta device, and the memory of a
training step on fake tensors. The GFLOPs do not include the sampling of deformable attention and of
RoIAlign.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from memory import training_peak
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pera_mm.errors import UserError
from pera_mm.registry import MODELS

BOXES = 10  # per image; DIOR has eight
COLORS = 3  # channels of an image
BOX_SIDE = 0.1  # of a random box, share of the image side


def is_downstream(cfg: Config) -> bool:
    return 'pera_mm.UnlabeledImages' not in str(cfg.train_dataloader.dataset)


def dates(cfg: Config) -> int:
    """Return the number of images that the model reads as one input."""
    return len(cfg.model.data_preprocessor.mean) // COLORS


def prepare(cfg: Config, side: int) -> None:
    """Let the ViT start at random, with position embeddings for inputs of ``side`` pixels."""
    vit_config(cfg).update(img_size=side, init_cfg=None)


def vit_config(cfg: Config) -> Any:
    return cfg.model.backbone.get('vit', cfg.model.backbone)


def vit_of(model: nn.Module) -> nn.Module:
    return getattr(model.backbone, 'vit', model.backbone)


# -- counted ---------------------------------------------------------------------------------------


def count(cfg: Config) -> dict[str, Any]:
    """Count the GFLOPs of a forward pass, and parameters and GFLOPs of ViT, adapter and head."""
    with torch.device('meta'):
        model = MODELS.build(cfg.model).eval()
    side, number = vit_config(cfg).img_size, dates(cfg)
    image = torch.empty(1, COLORS, side, side, device='meta')
    images = torch.cat([image] * number, dim=1)
    backbone = model.backbone
    vit = vit_of(model)
    proposals = model.test_cfg.rpn.max_per_img if hasattr(model, 'roi_head') else 0
    parameters = [millions(vit), millions(backbone), millions(model)]
    flops = [number * gflops(lambda: vit(image)), number * gflops(lambda: backbone(image)),
             gflops(lambda: forward(model, images, proposals))]
    return dict(forward=flops[-1], forward_backward=None, dates=number, side=side,
                parameters_by_part=by_part(*parameters), gflops_by_part=by_part(*flops))


def by_part(vit: float, backbone: float, model: float) -> dict[str, float]:
    return dict(vit=vit, adapter=backbone - vit, head=model - backbone)


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def gflops(run: Callable[[], Any]) -> float:
    # The counter knows the operators of plain attention on every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def memory_gb(cfg: Config, batch_size: int, bf16: bool) -> dict[str, float]:
    """Compute the peak memory of a training step, with and without activation checkpointing."""
    side = vit_config(cfg).img_size

    def peak(with_cp: bool) -> float:
        changed = deepcopy(cfg.model)
        changed.backbone.with_cp = with_cp
        return training_peak(
            lambda: MODELS.build(changed).train(),
            lambda model: loss(model, torch.empty(batch_size, COLORS * dates(cfg), side, side)),
            bf16)

    return dict(plain=peak(with_cp=False), checkpointed=peak(with_cp=True))


def loss(model: nn.Module, images: Tensor) -> Tensor:
    """Compute a loss of all outputs; that of segmentation is of the enlarged map, as the real."""
    if hasattr(model, 'roi_head'):
        outputs = forward(model, images, len(images) * model.train_cfg.rcnn.sampler.num)
    else:
        outputs = forward(model, images, 0)
        if outputs[0].ndim == 4:
            logits = F.interpolate(outputs[0], images.shape[-2:], mode='bilinear')
            labels = torch.zeros_like(logits[:, 0], dtype=torch.long)
            return F.cross_entropy(logits, labels)
    return sum(output.float().sum() for output in outputs)


def forward(model: nn.Module, images: Tensor, proposals: int) -> list[Tensor]:
    """Run all that computes in a forward pass, without choices that depend on the pixels."""
    if not hasattr(model, 'roi_head'):
        return tree_leaves(model(images, mode='tensor'))
    found = model.rpn_head(model.extract_feat(images))
    extractor = model.roi_head.bbox_roi_extractor
    shape = (proposals, extractor.out_channels, *extractor.roi_layers[0].output_size)
    regions = images.new_empty(shape).requires_grad_(torch.is_grad_enabled())
    return tree_leaves((found, model.roi_head.bbox_head(regions)))


# -- measured --------------------------------------------------------------------------------------


def make_batch(cfg: Config, batch_size: int) -> dict:
    """Make noise with labels, in the form that the data loader gives to the model."""
    side = vit_config(cfg).img_size
    shape = (side, side)
    meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1., 1.))
    samples = [labelled_sample(cfg, meta) for _ in range(batch_size)]
    pixels = torch.randint(0, 256, (batch_size, COLORS * dates(cfg), *shape), dtype=torch.uint8)
    inputs = pixels if cfg.default_scope == 'mmpretrain' else list(pixels)
    return dict(inputs=inputs, data_samples=samples)


def labelled_sample(cfg: Config, meta: dict) -> Any:
    """Make a data sample of the config's toolbox with a random label."""
    side = meta['img_shape'][0]
    sample: Any
    if cfg.default_scope == 'mmpretrain':
        from mmpretrain.structures import DataSample
        sample = DataSample(metainfo=meta).set_gt_label(0)
    elif cfg.default_scope == 'mmseg':
        from mmseg.structures import SegDataSample
        sample = SegDataSample(metainfo=meta)
        sample.gt_sem_seg = PixelData(
            data=torch.randint(0, cfg.model.decode_head.num_classes, (1, side, side)))
    elif cfg.default_scope == 'mmdet':
        from mmdet.structures import DetDataSample
        sample = DetDataSample(metainfo=meta)
        corners = torch.rand(BOXES, 2) * side * 0.8
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corners, corners + side * BOX_SIDE], dim=1),
            labels=torch.randint(0, cfg.model.roi_head.bbox_head.num_classes, (BOXES, )))
    else:
        raise UserError(f'No labels can be made for models of {cfg.default_scope}: give configs '
                        'of mmpretrain, mmseg or mmdet, or count only with --steps 0.')
    return sample
