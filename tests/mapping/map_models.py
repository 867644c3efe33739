"""Tiny models with random weights, as a runner leaves them: a config and a checkpoint."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import pera_mm  # noqa: F401  before any toolbox

SCENES = Path(__file__).parents[2] / 'configs' / 'scenes'
SIDE = 32
SEGMENTATION = f"""
_base_ = '{SCENES}/potsdam_upernet_pera_scenes.py'
model = dict(
    backbone=dict(vit=dict(
        _delete_=True, type='pera_mm.PerAViT', patch_size=8, img_size={SIDE},
        arch=dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32))),
    decode_head=dict(in_channels=[16] * 4, channels=16, output_channels=8),
    test_cfg=dict(crop_size=({SIDE}, {SIDE}), stride=({SIDE}, {SIDE})))
"""
# A config of MMSegmentation without anything of pera_mm's models, which loads and runs faster.
FCN = f"""
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
    test_cfg=dict(mode='slide', crop_size=({SIDE}, {SIDE}), stride=({SIDE}, {SIDE})))
classes = ('impervious', 'building', 'low vegetation', 'tree', 'vehicle', 'water', 'bare')
test_dataloader = dict(dataset=dict(
    type='pera_mm.SegmentationDataset', metainfo=dict(classes=classes),
    pipeline=[dict(type='pera_mm.LoadRGB')]))
"""
CHANGE = f"""
_base_ = '{SCENES}/levircd_bit_pera_scenes.py'
model = dict(
    backbone=dict(vit=dict(
        _delete_=True, type='pera_mm.PerAViT', patch_size=8, img_size={SIDE},
        arch=dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32))),
    neck=dict(in_channels=16),
    test_cfg=dict(_delete_=True, mode='slide', crop_size=({SIDE}, {SIDE}), stride=({SIDE}, {SIDE})))
"""
DETECTION = f"""
_base_ = '{SCENES}/dior_faster_rcnn_pera_scenes.py'
model = dict(backbone=dict(vit=dict(
    _delete_=True, type='pera_mm.PerAViT', patch_size=8, img_size={SIDE},
    arch=dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32))),
    neck=dict(in_channels=[16] * 4))
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = ({SIDE}, {SIDE})
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""
CLASSIFICATION = f"""
_base_ = '{SCENES}/aid_pera_scenes.py'
model = dict(backbone=dict(
    _delete_=True, type='pera_mm.PerAViT', patch_size=8, img_size={SIDE}, out_type='cls_token',
    arch=dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)),
    head=dict(in_channels=16))
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = ({SIDE}, {SIDE})
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""


def save(folder: Path, config: str, name: str = 'tiny', **dataset_meta) -> tuple[str, str]:
    """Write the config and a checkpoint of its untrained model; their paths."""
    path = folder / f'{name}.py'
    path.write_text(config)
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    spread(model)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dataset_meta)),
               folder / f'{name}.pth')
    return str(path), str(folder / f'{name}.pth')


def spread(model: torch.nn.Module) -> None:
    """Let the last layer tell all classes apart: untrained, most pixels would be of one class."""
    if hasattr(model, 'decode_head'):
        last = model.decode_head.conv_seg
    else:
        last = model.roi_head.bbox_head.fc_cls if hasattr(model, 'roi_head') else model.head.fc
    torch.nn.init.normal_(last.weight, std=3.)
    torch.nn.init.zeros_(last.bias)
