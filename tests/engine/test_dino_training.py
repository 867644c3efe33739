"""DINO and DINOv2 in real runs: they resume, two processes equal one, checks and health work."""

import json

import pytest
import torch
from mmengine.runner import Runner
from training_runs import (
    ON_CPU_RANKS,
    KillHook,
    build_runner,
    draw_images,
    in_process,
    last_checkpoint,
    on_ranks,
    train,
    training_cfg,
)


@pytest.fixture(params=['DINO', 'DINOv2'])
def method(request) -> str:
    return request.param


@pytest.fixture
def model_cfg(tiny_cfg, method) -> dict:
    cfg = {key: tiny_cfg[key] for key in ('backbone', 'projector', 'data_preprocessor')}
    cfg['data_preprocessor'].update(teacher=None)
    cfg.update(type=f'pera_mm.{method}', distillation=dict(type='pera_mm.CrossCropLoss'))
    if method == 'DINOv2':
        cfg.update(ibot=dict(type='pera_mm.IBOTLoss'), patch_projector=cfg['projector'],
                   koleo=dict(type='pera_mm.KoLeoLoss'))
    return cfg


@pytest.fixture
def pipeline(tiny_pipeline, method) -> list[dict]:
    if method == 'DINOv2':
        tiny_pipeline[1] = dict(type='pera_mm.BlockMask', patch_size=16)
    else:
        tiny_pipeline[1].update(disjoint=False)
    return tiny_pipeline


@pytest.fixture
def cfg(tmp_path, model_cfg, pipeline):
    """Makes the config of 12 iterations, 2 epochs of 6, in a folder of its own."""
    images = draw_images(tmp_path / 'images', 12)

    def make(name: str, **options) -> dict:
        return training_cfg(tmp_path / name, images, model_cfg, pipeline, **options)

    return make


def test_killed_and_resumed_equals_uninterrupted(cfg, tmp_path, method):
    options = dict(accumulate=2)
    train(cfg('whole', **options))
    assert in_process(train, cfg('killed', **options), KillHook(11)) == -9
    assert last_checkpoint(tmp_path / 'killed')['meta']['iter'] == 10
    train(cfg('killed', resume=True, **options))
    one, two = (last_checkpoint(tmp_path / name)['state_dict'] for name in ('whole', 'killed'))
    assert one.keys() == two.keys() and ('ibot.center.value' in one) == (method == 'DINOv2')
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
    for name in one:
        if name.endswith('center.value'):
            assert one[name].any()


@pytest.mark.dist
def test_two_processes_equal_one_on_the_same_global_batch(cfg, model_cfg, tmp_path):
    # KoLeo seeks its neighbors on each device, and colors and depth are drawn there.
    model_cfg['backbone'].update(drop_path_rate=0.)
    model_cfg['data_preprocessor'].update(student={})
    if 'koleo' in model_cfg:
        model_cfg['koleo'] = None
    train(cfg('one', batch_size=4, interval=6))
    assert on_ranks(train, cfg('two', batch_size=2, interval=6, **ON_CPU_RANKS)) == [0, 0]
    one, two = (last_checkpoint(tmp_path / name) for name in ('one', 'two'))
    assert one['meta']['iter'] == two['meta']['iter'] == 6
    for name, value in one['state_dict'].items():
        torch.testing.assert_close(two['state_dict'][name], value, rtol=0, atol=2e-5, msg=name)


def test_health_hook_writes_every_sign(cfg, tmp_path):
    made = cfg('run', batch_size=4, max_epochs=2)
    made['visualizer'] = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    made['custom_hooks'].append(dict(type='pera_mm.HealthHook', interval=3))
    build_runner(made).train()
    file, = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    checks = [line for line in map(json.loads, file.read_text().splitlines())
              if 'health/feature_std' in line]
    assert [check['step'] for check in checks] == [3, 6]
    assert {name for name in checks[0] if name.startswith('health/')} == {
        f'health/{name}' for name in ('teacher_entropy', 'prototype_use', 'feature_std',
                                      'feature_rank', 'nearest_distance', 'alignment',
                                      'uniformity')}


# The configuration is checked before the first step ----------------------------------------------


@pytest.fixture
def start(cfg, model_cfg, pipeline):

    def _start(change, **options) -> Runner:
        change(model_cfg, pipeline)
        made = cfg('run', **options)
        made['custom_hooks'].append(dict(type='pera_mm.ConfigCheckHook'))
        runner = build_runner(made)
        runner.train()
        return runner

    return _start


def test_another_patch_size_is_refused(start):
    with pytest.raises(ValueError, match='64 x 64 crop has 64 patches of 8 px, but the pipeline '
                                         r'splits 16; give DisjointMask \(or BlockMask\) the '):
        start(lambda model, pipeline: model['backbone'].update(patch_size=8))


def test_hidden_patches_are_refused(start, method):
    mask = dict(type='pera_mm.DisjointMask', patch_size=16)
    with pytest.raises(ValueError, match=f'{method} shows every patch to student and teacher, but '
                                         'the pipeline shows them 3 and 10; set disjoint=False'):
        start(lambda model, pipeline: pipeline.__setitem__(1, mask))


@pytest.mark.parametrize('method', ['DINOv2'], indirect=True)
def test_ibot_needs_a_mask(start):
    mask = dict(type='pera_mm.DisjointMask', patch_size=16, disjoint=False)
    with pytest.raises(ValueError, match='iBOT needs masked patches; put BlockMask in the place'):
        start(lambda model, pipeline: pipeline.__setitem__(1, mask))


@pytest.mark.parametrize('method', ['DINOv2'], indirect=True)
def test_one_image_per_device_with_koleo(start):
    with pytest.raises(ValueError, match='KoLeo loss needs at least 2 images per device, got 1'):
        start(lambda model, pipeline: None, batch_size=1)


@pytest.mark.parametrize('method', ['DINO'], indirect=True)
def test_one_image_per_device_trains_without_koleo(start):
    assert start(lambda model, pipeline: None, batch_size=1, max_epochs=2).iter == 24
