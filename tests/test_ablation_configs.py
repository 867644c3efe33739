"""Table 11's switches do what their rows say, at the paper's size and in small."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from pera_mm.datasets.unlabeled import compose
from pera_mm.models import PerAViT
from pera_mm.registry import MODELS

CONFIGS = Path(__file__).parent.parent / 'configs'
PERA = {'paper': CONFIGS / 'pera/ablations', 'small': CONFIGS / 'small'}


def crops_of(cfg: Config) -> dict:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    return compose(cfg.train_dataloader.dataset.pipeline)(dict(
        img=image, rng=rng, img_path='random', sample_idx=0, skipped=[]))['inputs']


@pytest.mark.parametrize('size', ['paper', 'small'])
@pytest.mark.parametrize('row, aligned, disjoint, predicts', [
    ('sa', True, False, False), ('sa-dm', True, True, False), ('dm-pp', False, True, True)])
def test_rows_of_pera(size, row, aligned, disjoint, predicts):
    cfg = Config.fromfile(PERA[size] / f'table11_{row}.py')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert (model.predictor is not None) == predicts == hasattr(model, 'mask_token')
    for group in crops_of(cfg).values():
        assert len(group.pixels) == (1 if aligned else 2)  # views: one geometry serves both
        student, learnable, teacher = (part[0].tolist() for part in group.split[:3])
        number = (group.pixels.shape[2] // cfg.model.backbone.patch_size)**2
        if disjoint:
            assert sorted(student + learnable + teacher) == list(range(number))
            assert len(student) == round(.2 * number)
        else:
            assert student == teacher == list(range(number)) and not learnable


def test_nothing_else_changes():
    """The rows differ from PerA in their switches alone."""
    for size, base in (('paper', CONFIGS / 'pera/pera_vitb_tov-100k.py'),
                       ('small', CONFIGS / 'small/pera.py')):
        for row in ('sa', 'sa-dm', 'dm-pp'):
            pera, changed = (Config.fromfile(path).to_dict() for path in (
                base, PERA[size] / f'table11_{row}.py'))
            for cfg in (pera, changed):
                for key in ('predictor', 'pixel'):
                    cfg['model'].pop(key)
                pipeline = cfg['train_dataloader']['dataset']['pipeline']
                pipeline['crops'].pop('aligned', None)
                pipeline['mask'].pop('disjoint', None)
            assert pera == changed, (size, row)


def test_the_last_row_is_pera_and_the_first_loses_its_masks_with_ibot():
    last = Config.fromfile(PERA['paper'] / 'table11_sa-dm-pp.py')
    assert last.to_dict() == Config.fromfile(CONFIGS / 'pera/pera_vitb_tov-100k.py').to_dict()
    # tools/reproduce.py trains it once for Tables 8, 9, 11, 12 and 13
    ratios = Config.fromfile(PERA['paper'] / 'table13_s20-l20-t60.py').to_dict()
    assert ratios.pop('mask') and ratios == last.to_dict()
    cfg = Config.fromfile(CONFIGS / 'baselines/dinov2_vitb_tov-100k.py')
    cfg.merge_from_dict({'model.ibot': None})
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert model.ibot is None and not hasattr(model, 'mask_token')
    for group in crops_of(cfg).values():
        model.check_split(*group.pixels.shape[-3:-1], group.split)


def test_small_configs_share_budget_optimizer_and_schedule():
    """Comparisons of configs/small are between methods."""
    shared = ('train_cfg', 'param_scheduler', 'randomness')
    cfgs = {name: Config.fromfile(CONFIGS / f'small/{name}.py')
            for name in ('pera', 'dino', 'dinov2', 'mae', 'mocov3')}
    for name, cfg in cfgs.items():
        for key in shared:
            assert cfg[key] == cfgs['pera'][key], (name, key)
        assert cfg.optim_wrapper.optimizer == cfgs['pera'].optim_wrapper.optimizer, name
        assert cfg.train_dataloader.batch_size == 32
        assert cfg.train_dataloader.dataset.source == 'data/rsscn7'
    for name in ('dino', 'dinov2'):
        assert (cfgs[name].train_dataloader.dataset.pipeline.crops
                == cfgs['pera'].train_dataloader.dataset.pipeline.crops)
        assert cfgs[name].default_hooks.schedule.momentum == dict(start=.95, end=1.)


def test_the_small_pera_for_short_runs_differs_in_its_start_head_and_pixel_weight_alone():
    ours, base = (Config.fromfile(CONFIGS / f'small/{name}.py') for name in ('pera_short', 'pera'))
    vit = ours.model.backbone
    assert vit.pop('sine_positions') == .25
    assert vit.pop('mimetic') == dict(query_key=1., value_output=.2)
    two_heads, shape = (PerAViT.arch_zoo[cfg.model.backbone.pop('arch')] for cfg in (base, ours))
    assert shape == dict(two_heads, num_heads=8)
    assert ours.model.pop('predictor').type == 'pera_mm.MLPPixelHead'
    assert base.model.pop('predictor').type == 'pera_mm.PixelHead'
    assert ours.model.pixel.pop('loss_weight') == 5 * base.model.pixel.pop('loss_weight')
    assert ours.to_dict() == base.to_dict()


@pytest.mark.parametrize('name', ['mocov3', 'mae'])
def test_a_baseline_of_mmpretrain_for_short_runs_differs_in_its_heads_and_attention_alone(name):
    ours, base, pera = (Config.fromfile(CONFIGS / f'small/{config}.py')
                        for config in (f'{name}_short', name, 'pera_short'))
    vit, other = ours.model.backbone, pera.model.backbone
    assert vit.pop('mimetic') == other.mimetic
    assert vit.arch == PerAViT.arch_zoo[other.arch]
    assert vit.type == f'pera_mm.Mimetic{base.model.backbone.type}'
    vit.update(type=base.model.backbone.type, arch=dict(vit.arch, num_heads=2))
    assert ours.to_dict() == base.to_dict()


@pytest.mark.parametrize('name', ['dino', 'dinov2'])
def test_a_baseline_with_peras_vit_for_short_runs_differs_in_the_vit_of_pera_alone(name):
    ours, base, pera = (Config.fromfile(CONFIGS / f'small/{config}.py')
                        for config in (f'{name}_short', name, 'pera_short'))
    for key in ('arch', 'sine_positions', 'mimetic'):
        assert ours.model.backbone.pop(key) == pera.model.backbone[key]
    base.model.backbone.pop('arch')
    assert ours.to_dict() == base.to_dict()


def test_the_twins_on_drawn_scenes_have_the_vit_of_the_demo():
    twin = Config.fromfile(CONFIGS / 'scenes/aid_pera_scenes.py').model.backbone
    demo = Config.fromfile(CONFIGS / 'pera/pera_tiny_scenes.py').model.backbone
    for key in ('arch', 'patch_size', 'sine_positions', 'mimetic'):
        assert twin[key] == demo[key], key


def test_variants_of_the_views_have_the_other_methods_colors_and_nothing_else():
    def small(name: str) -> Config:
        return Config.fromfile(CONFIGS / f'small/{name}.py')

    ours = small('pera').model.data_preprocessor
    for name in ('dino', 'dinov2'):
        cfg, base = small(f'{name}_pera-colors'), small(name)
        for role in ('student', 'teacher'):
            assert cfg.model.data_preprocessor.pop(role) == ours[role]
            del base.model.data_preprocessor[role]
        assert cfg.model == base.model and cfg.train_dataloader == base.train_dataloader
    strong = small('pera_dino-colors').model.data_preprocessor
    assert strong.student == strong.teacher
    moco = small('mocov3').model.data_preprocessor.colors
    assert strong.student.global_crops == moco  # BYOL's colors are DINO's
    cfg = small('mocov3_pera-views')
    assert cfg.model.data_preprocessor.colors == [ours.student, ours.teacher]
    crops, of_pera = (each.train_dataloader.dataset.pipeline.crops for each in (cfg, small('pera')))
    assert crops.global_crops == of_pera.global_crops and crops.ratio == of_pera.ratio
    for name in ('dino_pera-colors', 'dinov2_pera-colors', 'pera_dino-colors', 'mocov3_pera-views'):
        MODELS.build(small(name).model.data_preprocessor)
