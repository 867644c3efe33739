"""A configuration that cannot train is refused before the first step."""

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import BatchSampler, DataLoader
from training_runs import draw_images, training_cfg

from pera_mm.engine.hooks.config_check import other_total_batch


@pytest.fixture
def start(tmp_path, tiny_cfg, tiny_pipeline):
    """Start a run with the check; the options are those of ``training_cfg``."""

    def _start(change=lambda model, pipeline: None, drop_last=True, **options) -> Runner:
        change(tiny_cfg, tiny_pipeline)
        images = draw_images(tmp_path / 'images', 4)
        cfg = training_cfg(tmp_path / 'run', images, tiny_cfg, tiny_pipeline, max_epochs=2,
                           experiment_name=tmp_path.name, **options)
        cfg['train_dataloader']['drop_last'] = drop_last
        cfg['custom_hooks'].append(dict(type='pera_mm.ConfigCheckHook'))
        runner = Runner.from_cfg(Config(cfg))
        runner.train()
        return runner

    return _start


def test_a_sound_configuration_trains(start):
    assert start().iter == 4


@pytest.mark.parametrize('intended, warned', [(2, False), (3, True)])
def test_another_total_batch_is_one_warning_and_scales_nothing(start, tmp_path, intended, warned):
    runner = start(auto_scale_lr=dict(enable=False, base_batch_size=intended))
    assert runner.iter == 4
    log, = tmp_path.glob('run/*/*.log')
    lines = [line for line in log.read_text().splitlines() if 'A step has' in line]
    assert len(lines) == warned and 'LR is set based on' not in log.read_text()
    if warned:
        assert 'WARNING - A step has 2 images (batch_size 2 x 1 devices' in lines[0]


def test_the_total_batch_counts_devices_and_accumulation():
    cfg = Config(dict(optim_wrapper=dict(accumulative_counts=2),
                      auto_scale_lr=dict(enable=False, base_batch_size=192)))
    assert other_total_batch(cfg, 24, 4) is None
    assert other_total_batch(cfg, 12, 8) is None
    line = other_total_batch(cfg, 24, 8)
    assert line.startswith('A step has 384 images (batch_size 24 x 8 devices x '
                           'accumulative_counts 2), but this config is meant for 192: ')
    assert '\n' not in line
    cfg.auto_scale_lr = None
    assert other_total_batch(cfg, 24, 8) is None


class Constant(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs: torch.Tensor, mode: str) -> dict:
        return dict(loss=self.weight * inputs.float().mean())


@pytest.mark.parametrize('intended, warned', [(4, False), (16, True)])
def test_the_hook_alone_counts_the_images_of_a_batch_sampler(tmp_path, intended, warned):
    """MMDetection's configs have one, so that the loader's own batch_size is None."""
    data = [dict(inputs=torch.tensor(float(i))) for i in range(8)]
    loader = DataLoader(data, batch_sampler=BatchSampler(range(8), 4, False))
    assert loader.batch_size is None
    optimizer = dict(optimizer=dict(type='SGD', lr=0.1))
    Runner(Constant(), str(tmp_path), loader, experiment_name=tmp_path.name,
           train_cfg=dict(by_epoch=True, max_epochs=1), optim_wrapper=optimizer,
           custom_hooks=[dict(type='pera_mm.TotalBatchHook')],
           cfg=dict(optim_wrapper=optimizer, auto_scale_lr=dict(
               enable=False, base_batch_size=intended))).train()
    log, = tmp_path.glob('*/*.log')
    assert ('A step has 4 images (batch_size 4 x 1 devices' in log.read_text()) == warned


def test_one_image_per_device_with_koleo(start):
    with pytest.raises(ValueError, match='KoLeo loss needs at least 2 images per device, got 1'):
        start(batch_size=1)


def test_one_image_left_for_the_last_batch_with_koleo(start):
    with pytest.raises(ValueError, match='KoLeo loss needs at least 2 images per device, got 1'):
        start(batch_size=3, drop_last=False)  # of 4 images


def test_one_image_per_device_without_koleo_trains(start):
    assert start(lambda model, pipeline: model.update(koleo=None), batch_size=1).iter == 8


def test_patch_sizes_of_pipeline_and_backbone_differ(start):
    with pytest.raises(ValueError, match='64 x 64 crop has 64 patches of 8 px, but the pipeline '
                                         r'splits 16; give DisjointMask \(or BlockMask\) the '):
        start(lambda model, pipeline: model['backbone'].update(patch_size=8))


def test_a_crop_that_is_no_multiple_of_the_patch(start):
    with pytest.raises(ValueError, match='36 is not a multiple of the patch size 16'):
        start(lambda model, pipeline: pipeline[0]['local_crops'].update(size=36))


def test_ratios_that_do_not_sum_to_one_are_refused_at_build(start):
    with pytest.raises(ValueError, match='mask ratios must be >= 0 and sum to 1'):
        start(lambda model, pipeline: pipeline[1].update(teacher=0.7))


def test_an_unknown_arch_is_refused_at_build(start):
    archs = 'take one of mini, demo, tiny, small, base, large, pera-g'
    with pytest.raises(ValueError, match=f"unknown arch 'giant'; {archs}"):
        start(lambda model, pipeline: model['backbone'].update(arch='giant'))


def test_halves_without_pixel_prediction_train(start):
    def change(model, pipeline):
        model.update(predictor=None, pixel=None)
        pipeline[1].update(student=0.5, learnable=0.0, teacher=0.5)

    assert start(change).iter == 4


def test_nothing_to_predict(start):
    with pytest.raises(ValueError, match='learnable part is empty'):
        start(lambda model, pipeline: pipeline[1].update(student=0.4, learnable=0.0))
