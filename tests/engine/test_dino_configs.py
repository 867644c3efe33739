"""The four DINO and DINOv2 configs: settings as in their sources, and a shrunk run of each."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from training_runs import draw_images

from pera_mm.engine.hooks.teacher import inner_model
from pera_mm.engine.schedules import cosine

BASELINES = Path(__file__).parent.parent.parent / 'configs/baselines'
NAMES = [f'{method}_vitb_tov-100k{variant}' for method in ('dino', 'dinov2')
         for variant in ('', '_original')]


def load(name: str) -> Config:
    return Config.fromfile(BASELINES / f'{name}.py')


@pytest.mark.parametrize('name, lr, eps, end_lr, clip, temps, momentum, freeze', [
    ('dino_vitb_tov-100k', 5e-4, 2e-5, 1e-6, 3., (.04, .04, 0), .996, None),
    ('dinov2_vitb_tov-100k', 4e-3, 2e-5, 1e-6, 3., (.04, .07, 30), .992, None),
    ('dino_vitb_tov-100k_original', 7.5e-4 / 16, 1e-8, 2e-6, .3, (.04, .07, 50), .996, 3),
    ('dinov2_vitb_tov-100k_original', 5e-4, 1e-8, 1e-6, 3., (.04, .07, 30), .992, 1),
])  # fmt: skip
def test_optimization_is_that_of_the_source(name, lr, eps, end_lr, clip, temps, momentum, freeze):
    """pera_reference.md section 7; main_dino.py and ssl_default_config.yaml for the originals."""
    cfg = load(name)
    wrapper, hooks = cfg.optim_wrapper, cfg.default_hooks
    assert cfg.train_dataloader.batch_size == 16 and cfg.train_cfg.max_epochs == 200
    assert wrapper.optimizer.type == 'AdamW' and wrapper.optimizer.betas == (0.9, 0.999)
    assert (wrapper.optimizer.lr, wrapper.optimizer.eps) == pytest.approx((lr, eps))
    assert wrapper.clip_grad.max_norm == clip
    warmup, anneal, decay = cfg.param_scheduler
    assert (warmup.end, anneal.begin) == (10, 10)
    assert anneal.get('eta_min', lr * anneal.get('eta_min_ratio', 0)) == pytest.approx(end_lr)
    assert wrapper.optimizer.weight_decay == .04
    assert decay.get('eta_min', .04 * decay.get('eta_min_ratio', 0)) == pytest.approx(.4)
    assert tuple(hooks.schedule.teacher_temp.values()) == temps
    assert tuple(hooks.schedule.momentum.values()) == (momentum, 1.)
    assert hooks.get('freeze_last_layer', {}).get('epochs') == freeze


@pytest.mark.parametrize('name', NAMES)
def test_crops_and_colors_are_those_of_the_source(name):
    cfg, original = load(name), name.endswith('original')
    crops = cfg.train_dataloader.dataset.pipeline.crops
    student = cfg.model.data_preprocessor.student
    scales = (crops.global_crops.scale, crops.local_crops.scale)
    least = {'dino': .25, 'dinov2': .32}[name.split('_')[0]] if original else .4
    assert scales == ((least, 1.), (.05, least))
    assert (crops.global_crops.size, crops.local_crops.size) == (448, 96)
    assert crops.get('interpolation', 'bilinear') == ('bicubic' if original else 'bilinear')
    assert crops.get('vertical_flip', .5) == (0. if original else .5)
    assert cfg.model.data_preprocessor.teacher is None
    first, second, others = *student.global_crops, student.local_crops
    keys = ('jitter', 'gray', 'blur', 'solarize')
    assert [tuple(recipe.get(key, 0.) for key in keys) for recipe in (first, second, others)] == (
        [(.8, .2, 1., 0.), (.8, .2, .1, .2), (.8, .2, .5, 0.)] if original else
        [(.8, 0., 0., 0.), (.1, 0., 0., 0.), (.8, 0., 0., 0.)])
    assert not original or not any(recipe.exclusive for recipe in (first, second, others))


def shrink(cfg: Config, folder: Path) -> Config:
    """Two epochs of two steps on images of 96 px, with a ViT of four layers."""
    head = dict(num_prototypes=64, hidden_channels=32, bottleneck_channels=16)
    cfg.model.backbone.update(img_size=64, arch=dict(
        embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64))
    for projector in (cfg.model.projector, cfg.model.get('patch_projector')):
        if projector:
            projector.update(head)
    crops = cfg.train_dataloader.dataset.pipeline.crops
    crops.global_crops.size, crops.local_crops.size = 64, 32
    cfg.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False,
                                pin_memory=False)
    cfg.train_dataloader.dataset.source = draw_images(folder / 'images', 8)
    cfg.train_cfg.max_epochs = 2
    cfg.param_scheduler[0].end = cfg.param_scheduler[1].begin = 1
    cfg.default_hooks.schedule.teacher_temp.warmup_epochs = 1
    if 'freeze_last_layer' in cfg.default_hooks:
        cfg.default_hooks.freeze_last_layer.epochs = 1
    cfg.update(work_dir=str(folder / 'run'), experiment_name=folder.name, log_level='ERROR')
    cfg.visualizer = dict(type='Visualizer', vis_backends=[])
    return cfg


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.slow) if name.endswith('_original') else name
    for name in NAMES])
def test_a_shrunk_run_trains_every_parameter(name, tmp_path):
    runner = Runner.from_cfg(shrink(load(name), tmp_path))
    model = inner_model(runner)
    model.init_weights()
    before = {key: value.clone() for key, value in model.named_parameters() if value.requires_grad}
    runner.train()
    assert runner.iter == 4
    original = name.endswith('original')
    for key, value in model.named_parameters():
        assert value.isfinite().all()
        frozen = key.endswith('last_layer.weight_g') and name.startswith('dino_')
        assert value.requires_grad == (key in before)
        assert (key in before) == (not key.startswith('teacher.') and not frozen)
    moved = {key for key, value in model.named_parameters()
             if key in before and not torch.equal(before[key], value)}
    still = set(before) - moved
    assert not still, still
    groups = runner.optim_wrapper.optimizer.param_groups
    decays = {round(group['weight_decay'], 6) for group in groups}
    last = round(cosine(3, 4, .04, .4), 6)  # of the last of four steps
    assert decays == ({0., last} if original else {last})  # what did not decay never began to
    if name == 'dinov2_vitb_tov-100k_original':
        assert_learning_rates_keep_their_ratios_to_the_end(groups)


def assert_learning_rates_keep_their_ratios_to_the_end(groups: list[dict]) -> None:
    """As dinov2/train/train.py: one schedule times the multiplier of each parameter."""
    rates = {group['param_name']: group['lr'] for group in groups}
    top = rates['student.projector.mlp.0.weight']
    assert 1e-6 < top < 5e-4
    for name, share in {'student.backbone.layers.1.ffn.gamma2.weight': .9**3,
                        'student.backbone.cls_token': .9**5,
                        'student.backbone.patch_embed.projection.weight': .9**5 * .2,
                        'mask_token': .9**13}.items():  # its config has 12 layers
        assert rates[name] == pytest.approx(top * share), name
