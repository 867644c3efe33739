"""Every config builds, its pipeline fits its model, and its header says how to run it."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import VISUALIZERS, init_default_scope
from torch import nn

import pera_mm  # noqa: F401  activates the bridges
from pera_mm.launch import merge_options
from pera_mm.registry import HOOKS, MODELS

CONFIGS = Path(__file__).parent.parent / 'configs'
LEAVES = sorted(path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)
PRETRAINING = [path for path in LEAVES if path.is_relative_to(CONFIGS / 'pera')]
DOWNSTREAM = [path for path in LEAVES if path not in PRETRAINING]


def pack(cfg: Config) -> dict:
    """A random 512-px image through the config's pipeline."""
    rng = np.random.default_rng(0)
    pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
    return pipeline(dict(img=rng.integers(0, 256, (512, 512, 3), dtype=np.uint8), rng=rng,
                         img_path='random', sample_idx=0, skipped=[]))['inputs']


def counts(group) -> list[int]:
    return [part.shape[-1] for part in (group.student, group.learnable, group.teacher)]


@pytest.mark.parametrize('path', PRETRAINING, ids=lambda path: path.stem)
def test_model_and_pipeline_of_each_config_fit(path):
    cfg = Config.fromfile(path)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    for group in pack(cfg).values():
        model.check_split(*group.pixels.shape[-3:-1], counts(group))
    for hook in cfg.default_hooks.values():
        HOOKS.build(hook)


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)
def test_header_names_the_command_and_the_file_itself(path):
    header = ast.get_docstring(ast.parse(path.read_text())) or ''
    assert 'Command:' in header
    name = path.relative_to(CONFIGS.parent).as_posix()
    assert name in header


@pytest.mark.parametrize('name, expected_global, expected_local', [
    ('pera_vitg_rsrsd', [157, 157, 470], [7, 7, 22]),
    ('pera_vitb_tov-100k_paper-text', [235, 157, 392], [11, 7, 18]),
    ('ablations/table12_patch-14', [205, 205, 614], [10, 10, 29]),
    ('ablations/table12_patch-8', [627, 627, 1882], [29, 29, 86]),
    ('ablations/table13_s30-l20-t50', [235, 157, 392], [11, 7, 18]),
    ('ablations/table13_s20-l30-t50', [157, 235, 392], [7, 11, 18]),
    ('ablations/table13_s20-l20-t60', [157, 157, 470], [7, 7, 22]),
    ('ablations/table13_s30-l10-t60', [235, 79, 470], [11, 3, 22]),
])  # fmt: skip
def test_patch_counts_are_the_references(name, expected_global, expected_local):
    groups = pack(Config.fromfile(CONFIGS / 'pera' / f'{name}.py'))
    assert counts(groups['global']) == expected_global
    assert counts(groups['local']) == expected_local


@pytest.mark.parametrize('name, temperatures, momentum', [
    ('pera_vitb_rsrsd', (0.03, 0.05, 30), (0.992, 1.0)),
    ('pera_vitg_rsrsd', (0.02, 0.03, 30), (0.998, 1.0)),
])
def test_teacher_schedules_are_the_references(name, temperatures, momentum):
    cfg = Config.fromfile(CONFIGS / 'pera' / f'{name}.py').default_hooks.schedule
    assert tuple(cfg.teacher_temp.values()) == temperatures
    assert tuple(cfg.momentum.values()) == momentum


def test_the_paper_text_weighs_losses_as_equations_4_8_and_9_say():
    model = Config.fromfile(CONFIGS / 'pera/pera_vitb_tov-100k_paper-text.py').model
    error = torch.randn(6, 768, generator=torch.Generator().manual_seed(0))
    pixel = MODELS.build(model.pixel)(error, torch.zeros_like(error))
    torch.testing.assert_close(pixel, 0.1 * error.square().mean())
    features = torch.eye(4).expand(2, 4, 4)  # every distance is sqrt(2)
    koleo = MODELS.build(model.koleo)(features)
    torch.testing.assert_close(koleo, torch.tensor(-0.01 * 0.5 * np.log(2), dtype=torch.float32))


# Downstream -------------------------------------------------------------------------------------


def load(path: Path) -> Config:
    """A downstream config; Open-CD is not on the package index."""
    if 'opencd' in path.parts:
        pytest.importorskip('opencd', reason='Open-CD is not installed')
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    return cfg


def forward(model: nn.Module, images: torch.Tensor) -> object:
    if hasattr(model, 'rpn_head'):  # the rest depends on where objects are
        return model.rpn_head(model.extract_feat(images))
    return model(images, mode='tensor')


@pytest.mark.parametrize('path', DOWNSTREAM, ids=lambda path: path.stem)
def test_backbone_and_head_of_each_downstream_config_fit(path):
    cfg = load(path)
    with torch.device('meta'):
        model = MMENGINE_MODELS.build(cfg.model).eval()
        channels = 6 if any(word in path.stem for word in ('levircd', 'change')) else 3
        vit = getattr(model.backbone, 'vit', model.backbone)
        out = forward(model, torch.empty(1, channels, *vit.img_size))
    assert out is not None


@pytest.mark.parametrize('path', DOWNSTREAM, ids=lambda path: path.stem)
def test_pipelines_hooks_metrics_and_schedule_of_each_downstream_config_build(path):
    cfg = load(path)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        Compose(cfg[name].dataset.pipeline)
    VISUALIZERS.build(dict(cfg.visualizer, name=str(path)))  # hooks ask for it
    for hook in [*cfg.default_hooks.values(), *cfg.custom_hooks]:
        MMENGINE_HOOKS.build(hook)
    metrics = cfg.val_evaluator
    for metric in metrics if isinstance(metrics, list) else [metrics]:
        MMENGINE_METRICS.build(metric)
    epochs = cfg.train_cfg.max_epochs
    assert max(scheduler.get('end', epochs) for scheduler in cfg.param_scheduler
               if scheduler.get('by_epoch')) == epochs


@pytest.mark.parametrize('path', DOWNSTREAM, ids=lambda path: path.stem)
def test_options_that_docs_name_are_keys_of_each_downstream_config(path):
    """mim knows no +key=value: there a new key would change nothing, in silence."""
    cfg = load(path)
    vit = 'model.backbone.vit' if 'vit' in cfg.model.backbone else 'model.backbone'
    merge_options(cfg, {
        'optim_wrapper.accumulative_counts': 4,
        'optim_wrapper.paramwise_cfg.layer_decay_rate': .8,
        'model.backbone.with_cp': True,
        f'{vit}.drop_path_rate': .2,
        f'{vit}.init_cfg.checkpoint': 'x.pth',
        f'{vit}.init_cfg.network': 'student'})


@pytest.mark.parametrize('name, batch, epochs, lr, decay, drop_path, size', [
    ('aid_tr20_pera', 16, 200, 1e-4, 5e-6, 0.3, 512),
    ('ucm_tr50_pera', 16, 200, 5e-5, 1e-4, 0.3, 512),
    ('ucm_tr80_pera', 16, 200, 5e-5, 1e-4, 0.3, 512),
    ('potsdam_upernet_pera', 8, 200, 1e-4, 1e-4, 0.1, 512),
    ('loveda_upernet_pera', 8, 200, 5e-5, 1e-4, 0.1, 512),
    ('levircd_bit_pera', 8, 500, 1e-4, None, 0.2, 512),
    ('dior_faster_rcnn_pera', 16, 100, 1e-4, 1e-3, 0.3, 512),
])
def test_downstream_settings_are_the_papers(name, batch, epochs, lr, decay, drop_path, size):
    """Section 4.2; the weight decay for LEVIR-CD is not given."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    optimizer = cfg.optim_wrapper.optimizer
    vit = cfg.model.backbone.get('vit', cfg.model.backbone)
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (batch, epochs)
    assert (optimizer.type, optimizer.lr) == ('AdamW', lr)
    assert optimizer.weight_decay == decay or decay is None
    assert (vit.arch, vit.drop_path_rate, vit.img_size) == ('pera-g', drop_path, size)
