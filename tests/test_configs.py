"""Every config builds, its pipeline fits its model, and its header says how to run it."""

import ast
import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import VISUALIZERS, init_default_scope
from torch import nn

import pera_mm  # noqa: F401  activates the bridges
from pera_mm.datasets.unlabeled import compose
from pera_mm.engine.hooks.config_check import other_total_batch
from pera_mm.launch import merge_options
from pera_mm.models.selfsup.self_distillation import SelfDistillation
from pera_mm.prepare.loveda import PUBLISHED, LoveDA
from pera_mm.prepare.tiles import tile_corners
from pera_mm.registry import HOOKS, MODELS

CONFIGS = Path(__file__).parent.parent / 'configs'
LEAVES = sorted(path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)
PRETRAINING = [path for path in LEAVES
               if path.relative_to(CONFIGS).parts[0] in ('pera', 'baselines', 'small')]
DOWNSTREAM = [path for path in LEAVES
              if path not in PRETRAINING and path.parent.name != 'collect']


read = functools.cache(Config.fromfile)


def load(path: Path) -> Config:
    """A copy of a config, its scope made the default; Open-CD is not on the package index."""
    if 'opencd' in path.relative_to(CONFIGS).as_posix():
        pytest.importorskip('opencd', reason='Open-CD is not installed')
    cfg = copy.deepcopy(read(path))
    init_default_scope(cfg.default_scope)
    return cfg


def pack(cfg: Config) -> dict:
    """A random 512-px image through the config's pipeline."""
    rng = np.random.default_rng(0)
    pipeline = compose(cfg.train_dataloader.dataset.pipeline)
    return pipeline(dict(img=rng.integers(0, 256, (512, 512, 3), dtype=np.uint8), rng=rng,
                         img_path='random', sample_idx=0, skipped=[]))['inputs']


def counts(group) -> list[int]:
    return list(group.split.counts())


def forward_views(model: nn.Module, pixels: torch.Tensor) -> None:
    """MMPretrain's MAE or MoCo v3 on meta images as the pipeline packs them."""
    number, size = pixels.shape[1:3]
    images = torch.empty(2, 3, size, size, device='meta')
    if hasattr(model, 'momentum_encoder'):
        assert number == 2
        model.head.predictor(model.neck(model.backbone(images)))
    else:
        assert number == 1
        model.loss(images, [])


@pytest.mark.parametrize('path', PRETRAINING, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_model_and_pipeline_of_each_config_fit(path):
    cfg = load(path)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    crops = pack(cfg)
    if isinstance(model, SelfDistillation):
        for group in crops.values():
            model.check_split(*group.pixels.shape[-3:-1], group.split)
    else:
        forward_views(model, crops.pop('global').pixels)
        assert not crops
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
    groups = pack(load(CONFIGS / 'pera' / f'{name}.py'))
    assert counts(groups['global']) == expected_global
    assert counts(groups['local']) == expected_local


@pytest.mark.parametrize('name, temperatures, momentum', [
    ('pera_vitb_rsrsd', (0.03, 0.05, 30), (0.992, 1.0)),
    ('pera_vitg_rsrsd', (0.02, 0.03, 30), (0.998, 1.0)),
])
def test_teacher_schedules_are_the_references(name, temperatures, momentum):
    cfg = load(CONFIGS / 'pera' / f'{name}.py').default_hooks.schedule
    assert tuple(cfg.teacher_temp.values()) == temperatures
    assert tuple(cfg.momentum.values()) == momentum


@pytest.mark.parametrize('name', [
    'pera_vitg_rsrsd', 'pera_vitg_rsrsd_tov_million-aid', 'pera_vitg_continue',
    'pera_vitg_rsrsd_fsdp', 'pera_vitg_rsrsd_deepspeed'])
def test_vit_g_trains_the_papers_192_images_a_step(name):
    cfg = load(CONFIGS / 'pera' / f'{name}.py')
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=192)
    assert other_total_batch(cfg, cfg.train_dataloader.batch_size, devices=8) is None
    assert 'A step has 96 images' in other_total_batch(
        cfg, cfg.train_dataloader.batch_size, devices=4)
    merge_options(cfg, {'+optim_wrapper.accumulative_counts': 2})  # as the header says
    assert other_total_batch(cfg, cfg.train_dataloader.batch_size, devices=4) is None


def test_only_the_config_of_three_data_sets_is_the_released_model():
    """Tables 2 to 7 are of RSRSD-5m, TOV-RS and Million-AID (paper 3.1)."""
    alone, formal = (CONFIGS / f'pera/pera_vitg_rsrsd{end}.py' for end in ('', '_tov_million-aid'))
    sources = load(formal).train_dataloader.dataset.source
    assert [source.path for source in sources] == [
        'data/rsrsd-5m', 'data/tov-rs', 'data/million-aid']
    assert '97.13' in formal.read_text() and '97.13' not in alone.read_text()
    rows = [line for line in (CONFIGS / 'pera/README.md').read_text().splitlines()
            if '97.13' in line]
    assert len(rows) == 1 and rows[0].startswith(f'| [{formal.name}]')


def test_the_paper_text_weighs_losses_as_equations_4_8_and_9_say():
    model = load(CONFIGS / 'pera/pera_vitb_tov-100k_paper-text.py').model
    error = torch.randn(6, 768, generator=torch.Generator().manual_seed(0))
    pixel = MODELS.build(model.pixel)(error, torch.zeros_like(error))
    torch.testing.assert_close(pixel, 0.1 * error.square().mean())
    features = torch.eye(4).expand(2, 4, 4)  # every distance is sqrt(2)
    koleo = MODELS.build(model.koleo)(features)
    torch.testing.assert_close(koleo, torch.tensor(-0.01 * 0.5 * np.log(2), dtype=torch.float32))


# Baselines --------------------------------------------------------------------------------------


def recipe(cfg: Config) -> dict:
    """The settings that docs/baselines.md and pera_reference.md §7 list for every method."""
    optimizer, clip = cfg.optim_wrapper.optimizer, cfg.optim_wrapper.clip_grad
    warmup, cosine, *decay = cfg.param_scheduler
    end = optimizer.weight_decay
    if decay:
        ratio = decay[0].get('eta_min_ratio')
        end = decay[0].eta_min if ratio is None else ratio * optimizer.weight_decay
    return dict(
        optimizer=optimizer.type, lr=optimizer.lr, warmup=warmup.end, final_lr=cosine.eta_min,
        decay=(optimizer.weight_decay, pytest.approx(end)), clip=clip and clip.max_norm,
        epochs=cfg.train_cfg.max_epochs, batch=cfg.train_dataloader.batch_size)


def crop_sizes(cfg: Config) -> list[tuple]:
    crops = cfg.train_dataloader.dataset.pipeline.crops
    return [tuple(group.values()) for group in (crops.global_crops, crops.local_crops)
            if group.number]


def baseline(name: str) -> Config:
    method, *original = name.split('_')
    return load(CONFIGS / 'baselines' / ('_'.join([method, 'vitb_tov-100k', *original]) + '.py'))


@pytest.mark.parametrize('name, optimizer, lr, warmup, final_lr, decay, clip, crops', [
    ('mae', 'AdamW', 1e-3, 20, 1e-6, (.04, .05), None, [(1, 512, (.4, 1.))]),
    ('mae_original', 'AdamW', 1.5e-4 / 16, 40, 0, (.05, .05), None, [(1, 512, (.2, 1.))]),
    ('mocov3', 'LARS', 1e-3, 10, 1e-6, (.04, 1e-6), None, [(2, 512, (.08, 1.))]),
    ('mocov3_original', 'AdamW', 1.5e-4 / 16, 40, 0, (.1, .1), None, [(2, 512, (.08, 1.))]),
])
def test_baseline_settings_are_the_sources(name, optimizer, lr, warmup, final_lr, decay, clip,
                                           crops):
    cfg = baseline(name)
    assert recipe(cfg) == dict(
        optimizer=optimizer, lr=pytest.approx(lr), warmup=warmup, final_lr=final_lr, decay=decay,
        clip=clip, epochs=200, batch=16)
    assert crop_sizes(cfg) == crops
    assert cfg.train_dataloader.dataset.source == 'data/tov-rs-100k.txt'


@pytest.mark.parametrize('name, eps, norm_pix', [('mae', 1e-5, False),
                                                 ('mae_original', 1e-6, True)])
def test_mae_is_the_sources(name, eps, norm_pix):
    cfg = baseline(name)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * 12 + 1 + 2 * 8 + 1 and {norm.eps for norm in norms} == {eps}
    assert model.head.norm_pix == norm_pix and model.backbone.mask_ratio == 0.75
    assert model.neck.decoder_pos_embed.shape == (1, 32 * 32 + 1, 512)
    assert cfg.optim_wrapper.optimizer.betas == (0.9, 0.95)
    crops = cfg.train_dataloader.dataset.pipeline.crops
    assert (crops.interpolation, crops.vertical_flip) == ('bicubic', 0)


@pytest.mark.parametrize('name, temperature, conv1_is_trained', [
    ('mocov3', 1.0, True), ('mocov3_original', 0.2, False)])
def test_mocov3_is_the_sources(name, temperature, conv1_is_trained):
    cfg = baseline(name)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert model.head.temperature == temperature
    assert model.head.loss_module.loss_weight == 2 * temperature
    assert model.backbone.patch_embed.projection.weight.requires_grad == conv1_is_trained
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    assert [(norm.num_features, norm.affine) for norm in norms] == [
        *[(4096, True), (4096, True), (256, False)],  # the projector,
        *[(4096, True), (256, False)],  # the predictor,
        *[(4096, True), (4096, True), (256, False)]]  # and the momentum projector
    assert model.momentum_encoder.momentum == pytest.approx(1 - 0.99)
    first, second = model.data_preprocessor.recipes['student']['global']
    assert (first.jitter, first.gray, first.exclusive) == (0.8, 0.2, False)
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1, 0, 0.1, 0.2)
    assert cfg.sync_bn == 'torch'


@pytest.mark.parametrize('name, exempt', [
    ('mae', False), ('mae_original', True), ('mocov3', True), ('mocov3_original', False)])
def test_which_parameters_decay(name, exempt):
    """Biases and norms are exempt in MAE's code and in the authors' LARS."""
    cfg = baseline(name)
    model = MODELS.build(load(CONFIGS / 'small' / f'{name.split("_")[0]}.py').model)
    model.backbone.patch_embed.projection.requires_grad_(True)  # MoCo v3's own code freezes it
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    seen = 0
    for group in groups:
        for parameter in group['params']:
            is_exempt = exempt and parameter.ndim <= 1
            assert group['weight_decay'] == (0 if is_exempt else recipe(cfg)['decay'][0])
            assert group.get('lars_exclude', False) == (is_exempt and name == 'mocov3')
            seen += 1
    assert seen == sum(parameter.requires_grad for parameter in model.parameters())


# Downstream -------------------------------------------------------------------------------------


def forward(model: nn.Module, images: torch.Tensor) -> object:
    if hasattr(model, 'rpn_head'):  # the rest depends on where objects are
        return model.rpn_head(model.extract_feat(images))
    return model(images, mode='tensor')


# What changes no shape between backbone and head.
SHAPELESS = {'drop_path_rate', 'frozen_stages', 'init_cfg', 'num_classes', 'test_cfg', 'train_cfg'}
forwarded: set[str] = set()


def shapes_of(model: object) -> object:
    """A model config without its settings that change no shape."""
    if isinstance(model, dict):
        return {key: shapes_of(value) for key, value in model.items() if key not in SHAPELESS}
    return model


@pytest.mark.parametrize('path', DOWNSTREAM, ids=lambda path: path.stem)
def test_backbone_and_head_of_each_downstream_config_fit(path):
    """All are built; of those that differ in no shape one runs."""
    cfg = load(path)
    with torch.device('meta'):
        model = MMENGINE_MODELS.build(cfg.model).eval()
        shapes = repr(shapes_of(cfg.model.to_dict()))
        if shapes in forwarded:
            return
        forwarded.add(shapes)
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
    assert cfg.optim_wrapper.accumulative_counts == 4 and cfg.model.backbone.with_cp
    start = cfg.model.backbone.get('vit', cfg.model.backbone).init_cfg
    assert (start.checkpoint, start.network) == ('x.pth', 'student')


@pytest.mark.parametrize('name, batch, epochs, lr, decay, drop_path, size', [
    ('aid_tr20_pera', 16, 200, 1e-4, 5e-6, 0.3, 512),
    ('classification/ucm_tr50_pera', 16, 200, 5e-5, 1e-4, 0.3, 512),
    ('ucm_tr80_pera', 16, 200, 5e-5, 1e-4, 0.3, 512),
    ('potsdam_upernet_pera', 8, 200, 1e-4, 1e-4, 0.1, 512),
    ('loveda_upernet_pera', 8, 200, 5e-5, 1e-4, 0.1, 512),
    ('levircd_bit_pera', 8, 500, 1e-4, None, 0.2, 512),
    ('dior_faster_rcnn_pera', 16, 100, 1e-4, 1e-3, 0.3, 512),
    ('detection/dior_faster_rcnn_pera_fpn', 16, 100, 1e-4, 1e-3, 0.3, 512),
])
def test_downstream_settings_are_the_papers(name, batch, epochs, lr, decay, drop_path, size):
    """Section 4.2; the weight decay for LEVIR-CD is not given."""
    cfg = load(CONFIGS / f'{name}.py')
    optimizer = cfg.optim_wrapper.optimizer
    vit = cfg.model.backbone.get('vit', cfg.model.backbone)
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (batch, epochs)
    assert (optimizer.type, optimizer.lr) == ('AdamW', lr)
    assert optimizer.weight_decay == decay or decay is None
    assert (vit.arch, vit.drop_path_rate, vit.img_size) == ('pera-g', drop_path, size)


@pytest.mark.parametrize('name, floor', [
    ('aid_tr20_pera', 1e-6), ('ucm_tr80_pera', 1e-6), ('potsdam_upernet_pera', 5e-6),
    ('loveda_upernet_pera', 5e-6), ('levircd_bit_pera', 1e-6), ('opencd/levircd_bit_pera', 1e-6)])
def test_where_the_paper_is_silent_the_authors_first_code_decides(name, floor):
    """pera_reference.md §7b."""
    cfg = load(CONFIGS / f'{name}.py')
    wrapper, (warmup, cosine) = cfg.optim_wrapper, cfg.param_scheduler
    assert (wrapper.optimizer.eps, wrapper.clip_grad) == (2e-5, dict(max_norm=10))
    assert (warmup.end, cosine.begin, cosine.eta_min) == (20, 20, floor)
    steps = cfg.train_dataloader.dataset.pipeline
    crop, = (step for step in steps if step.type.endswith('RandomResizedCrop'))
    assert (crop.scale, crop.crop_ratio_range, crop.aspect_ratio_range) == (
        512, (.4, 1.), (.75, 1.33))
    flips = [step for step in steps if step.type.endswith('RandomFlip')]
    assert [(flip.prob, flip.direction) for flip in flips] == [
        (.5, 'horizontal'), (.5, 'vertical')]
    swaps = [step.prob for step in steps
             if step.type in ('pera_mm.SwapDates', 'MultiImgExchangeTime')]
    assert swaps == ([.1] if 'levircd' in name else [])


def test_loveda_trains_the_papers_252200_steps_on_tiles_of_prepare():
    cfg, recipe = load(CONFIGS / 'loveda_upernet_pera.py'), LoveDA()
    data = cfg.train_dataloader
    assert data.drop_last and recipe.tile == 512
    assert data.dataset.data_prefix == dict(
        img_path=f'img_dir/train_{recipe.tile}', seg_map_path=f'ann_dir/train_{recipe.tile}')
    tiles = PUBLISHED['train'] * len(tile_corners(recipe.size, recipe.tile))
    assert tiles // data.batch_size * cfg.train_cfg.max_epochs == 252_200
    for part in (cfg.val_dataloader, cfg.test_dataloader):
        assert part.dataset.data_prefix.img_path == 'img_dir/val'


ADAPTED = ['potsdam_upernet_pera', 'loveda_upernet_pera', 'levircd_bit_pera',
           'opencd/levircd_bit_pera', 'dior_faster_rcnn_pera']


@pytest.mark.parametrize('name', ADAPTED)
def test_the_papers_adapter_is_that_of_the_authors_code(name):
    """pera_reference.md §7b; heads, points and the MLP's ratio are theirs by default."""
    cfg = load(CONFIGS / f'{name}.py')
    with torch.device('meta'):
        adapter = MODELS.build(cfg.model.backbone)
    assert (adapter.vit_feature, adapter.shared_norm) == ('stages', True)
    assert adapter.groups == [(0, 9), (10, 19), (20, 29), (30, 39)]
    attention, mlp = adapter.extractors[3][2].attention, adapter.extractors[3][2].ffn
    assert (attention.num_heads, attention.num_points) == (16, 4)
    assert attention.value_proj.weight.shape == (1024, 1024)  # deform_ratio 1.0
    assert mlp.fc1.out_features == 256 and len(adapter.extractors[3]) == 3


def test_dior_is_the_authors_detector_and_its_fpn_twin_differs_in_the_model_alone():
    """pera_reference.md §7b: no FPN, both flips, colors, warm-up, eps, the clipped gradient."""
    paper = load(CONFIGS / 'dior_faster_rcnn_pera.py')
    fpn = load(CONFIGS / 'detection/dior_faster_rcnn_pera_fpn.py')
    assert 'neck' not in paper.model and fpn.model.neck.out_channels == 256
    assert paper.model.rpn_head.in_channels == paper.model.rpn_head.feat_channels == 1024
    assert fpn.model.backbone.vit_feature == 'last' and not fpn.model.backbone.shared_norm
    assert fpn.model.backbone.deform_ratio == 0.5
    wrapper, (warmup, cosine) = paper.optim_wrapper, paper.param_scheduler
    assert (wrapper.optimizer.eps, wrapper.clip_grad) == (2e-5, dict(max_norm=10))
    assert (warmup.start_factor, warmup.end) == (1e-30, 20)
    assert (cosine.begin, cosine.eta_min) == (20, 1e-6)
    steps = paper.train_dataloader.dataset.pipeline
    assert [(step.prob, step.direction) for step in steps if step.type == 'RandomFlip'] == [
        (.5, 'horizontal'), (.5, 'vertical')]
    jitter, = (step for step in steps if step.type.endswith('ColorJitter'))
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (.4, .4, .2, .1)
    test = paper.model.test_cfg
    assert (test.rpn.nms.iou_threshold, test.rcnn.score_thr, test.rcnn.max_per_img) == (
        .8, .01, 200)
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'train_dataloader',
                'test_dataloader', 'test_evaluator', 'auto_scale_lr'):
        assert fpn[key] == paper[key], key


@pytest.mark.parametrize('path', [path for path in DOWNSTREAM if path.stem.startswith('dior')],
                         ids=lambda path: path.stem)
def test_a_step_of_each_detection_config_has_the_images_it_declares(path):
    cfg = load(path)
    intended = 2 if 'scenes' in path.stem else 16
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=intended)
    assert other_total_batch(cfg, cfg.train_dataloader.batch_size, devices=1) is None
    assert f'this config is meant for {intended}' in other_total_batch(
        cfg, cfg.train_dataloader.batch_size, devices=4)
    assert cfg.default_hooks.total_batch.type == 'pera_mm.TotalBatchHook'
